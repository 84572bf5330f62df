"""What segmenting an image costs from file to file: its stages one by one, and images per second by N processes."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccnet_cli import files
from ccnet_cli.bench.meter import Meter, open_meter
from ccnet_cli.bench.report import Column, Report, Row, Spread, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.segmenter import Segmenter
from ccnet_cli.inference.sharing import Recipe, segment_here, segment_in_processes
from ccnet_cli.inference.stream import Collector, Keep, Outcome, Task
from ccnet_cli.media import images, outputs
from ccnet_cli.media.classes import Classes
from ccnet_cli.progress import Progress
from ccnet_cli.weights.find import find_artifact

FORMAT = "color"
STAGES = ("decode", "network", "encode", "write")
# pictures that differ, under as many names as there are images
PICTURES = 4
STAGE_COLUMNS = (Column("size", "size"), Column("stage", "stage"), *spread_columns("milliseconds", ".1f"))
RATE_COLUMNS = (
    Column("size", "size"),
    Column("processes", "processes"),
    Column("images/s", "rate", ".2f"),
    Column("times one", "ratio", ".2f"),
)


@dataclass(frozen=True)
class Prediction:
    """What to segment with and how often: a checkpoint, in up to N processes, and how many images."""

    checkpoint: Path | None = None
    overrides: tuple[str, ...] = ()
    precision: str = "fp32"
    processes: int = 1
    images: int = 40


def measure(work: Prediction, sizes: Sequence[tuple[int, int]], run: Run) -> Report:
    """Milliseconds of each stage of an image, one after the other in one process, and the rates of 1 to N processes.

    A rate is that of the last three quarters of the images, after processes have started. Threads are those of each
    process. decode reads a JPEG and makes the network's input, network gives the class ids, encode makes a palette PNG,
    write puts it into the file.
    """
    path = find_artifact(work.checkpoint)
    with open_meter(run) as meter, tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(str(meter.device), work.precision).resolve(path)
        recipe = Recipe(path, None, work.overrides, runtime, Keep(overwrite=True), work.images)
        artifact = recipe.open()
        segmenter = recipe.prepare(artifact)
        stages: list[Row] = []
        rates: list[Row] = []
        for size in sizes:
            sources = _make_pictures(Path(folder), size, work.images)
            stages += _measure_stages(segmenter, artifact.classes, sources[:PICTURES], size, meter)
            for count in range(1, work.processes + 1):
                rate = _measure_rate(recipe, sources, count, meter.threads)
                first = rates[-1]["rate"] / rates[-1]["ratio"] if count > 1 else rate
                rates.append({"size": size, "processes": count, "rate": rate, "ratio": rate / first})
    title = f"{path}, {runtime.precision}, {meter}; milliseconds of a stage, {meter.repeats} rounds"
    values = {"checkpoint": str(path), "precision": runtime.precision, "images": work.images, **meter.values()}
    tables = [Table(title, STAGE_COLUMNS, stages), Table("file to file, threads for each process", RATE_COLUMNS, rates)]
    return Report({**values, "stages": stages, "rates": rates}, tables)


def _make_pictures(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """JPEG files of smooth patterns with noise, which take about as long to decode as photographs."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(min(PICTURES, count)):
        coarse = random.integers(0, 256, (size[0] // 16 + 1, size[1] // 16 + 1, 3), dtype=np.uint8)
        picture = coarse.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]] // 2
        contents.append(images.encode_jpeg(picture + random.integers(0, 24, picture.shape, dtype=np.uint8), 92))
    sources = [folder / f"{size[0]}x{size[1]}" / f"{number:06}.jpg" for number in range(count)]
    for number, source in enumerate(sources):
        files.write_bytes(source, contents[number % len(contents)])
    return sources


def _measure_stages(
    segmenter: Segmenter, classes: Classes, sources: Sequence[Path], size: tuple[int, int], meter: Meter
) -> Iterator[Row]:
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    target = sources[0].with_suffix(".png")

    def timed(stage: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        answer = call(*arguments)
        if segmenter.device.type == "cuda":
            torch.cuda.synchronize(segmenter.device)
        times[stage].append(1000 * (time.perf_counter() - start))
        return answer

    def decode(source: Path) -> Tensor:
        return segmenter.load(images.read_image(source, exif=True))

    def predict(input_1CHW: Tensor) -> np.ndarray:
        return segmenter.predict(segmenter.score(input_1CHW))

    for round in range(-1, meter.repeats):
        source = sources[round % len(sources)]
        image = images.read_image(source, exif=True)
        input_1CHW = timed("decode", decode, source)
        ids = timed("network", predict, input_1CHW)
        timed("encode", outputs.write, target, FORMAT, ids, image, classes)
        timed("write", files.write_bytes, target, target.read_bytes())
        # both were timed together; on a busy machine the second can take longer alone
        times["encode"][-1] = max(0.0, times["encode"][-1] - times["write"][-1])
    for stage in STAGES:
        # the first round warms up
        yield {"size": size, "stage": stage, "milliseconds": Spread.of(times[stage][1:])}


def _measure_rate(recipe: Recipe, sources: Sequence[Path], count: int, threads: int) -> float:
    """Images per second of N processes, each with this many threads."""
    moments: list[float] = []

    def record(outcome: Outcome) -> None:
        if outcome.error is not None:
            raise outcome.error
        moments.append(time.perf_counter())

    tasks = (Task(number, source, {FORMAT: source.with_suffix(".png")}) for number, source in enumerate(sources))
    collector = Collector(record, Progress(len(sources), unit="image", every=len(sources) + 1), strict=True)
    before = torch.get_num_threads()
    if count == 1:
        segment_here(recipe, recipe.open(), tasks, collector)
    else:
        torch.set_num_threads(threads * count)
        segment_in_processes(recipe, tasks, collector, count)
        torch.set_num_threads(before)
    start = len(moments) // 4
    return (len(moments) - 1 - start) / (moments[-1] - moments[start])
