"""What a training sample costs, from its files to the network: the authors' way, whole pictures, crops, decoding."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ccnet_cli import config
from ccnet_cli.bench.meter import WARM_UP, Meter, open_meter
from ccnet_cli.bench.report import Column, Report, Row, Spread, Table, spread_columns
from ccnet_cli.bench.request import Run
from ccnet_cli.datasets import transforms
from ccnet_cli.datasets.sampling import Batches
from ccnet_cli.datasets.source import Source, load_pair, open_source
from ccnet_cli.datasets.training import Augmentation, TrainingSet, collate, raise_worker_errors, to_device
from ccnet_cli.media import images, pixels
from ccnet_cli.media.images import cv2

# H, W a picture; h, w the crop

Pair = tuple[torch.Tensor, torch.Tensor]
Key = tuple[int, int]

OFFICIAL = "official"
DESCRIPTIONS = {
    OFFICIAL: "the authors' way: all of it scaled, subtracted in float32, padded, cut, transposed, mirrored",
    "whole": "all of it scaled, cut, normalised by table, padded, mirrored",
    "sample": "what a worker does: only what the crop needs scaled, bytes handed on",
    "arrived": "the same, and normalised on the device: what the network takes",
    "decoding": "the floor: both files read and decoded, nothing checked",
}
# the made pictures, and a preset that cuts as the authors do
PICTURES = 3
PRESET = "cityscapes-r2"
# batches for each worker that are measured, and those before them that are not
MEASURED, BEFORE = 8, 2
# ratio is to official's median
COLUMNS = (
    Column("one sample", "name"),
    *spread_columns("time", ".1f"),
    Column("ratio", "ratio", ".2f"),
    Column("", "what"),
)
# images per second that a loader hands to the network, once its workers run
RATE_COLUMNS = (Column("workers", "workers"), *spread_columns("", ".1f", "images/s"))


def measure(
    preset: config.Preset | None,
    sizes: Sequence[tuple[int, int]],
    run: Run,
    crop: tuple[int, int] | None = None,
    workers: Sequence[int] = (0, 1, 2),
    batch: int = 4,
) -> Report:
    """Measure one sample's ways and a loader's rate on a preset's training data, or on made pictures of these sizes.

    Every round takes another sample and runs every way with the same scale, location and mirror, so that a busy machine
    slows them alike. All but the official way give the same pixels, which is checked first.
    """
    with open_meter(run) as meter, tempfile.TemporaryDirectory() as folder:
        measured = []
        for size in sizes if preset is None else sizes[:1]:
            used = preset or make_preset(Path(folder, f"{size[0]}x{size[1]}"), size)
            if crop is not None:
                used = used.model_copy(update={"data": used.data.model_copy(update={"crop": crop})})
            measured.append(_measure(used, workers, batch, meter))
        name, cut = used.name, used.data.crop
        tables = []
        for one in measured:
            height, width = one["size"]
            title = f"{height}x{width} ({one['bytes'] / 1e6:.1f} MB) to {cut[0]}x{cut[1]} as {name} cuts, "
            title += f"{meter.device}, {meter.threads} threads, OpenCV {cv2.__version__}, median of {meter.repeats}"
            tables.append(Table(title, COLUMNS, one["rows"]))
            tables.append(Table(f"batches of {batch}, normalised", RATE_COLUMNS, one["rates"]))
        values = {"preset": name, "crop": cut, "batch": batch, **meter.values(), "opencv": cv2.__version__}
        return Report({**values, "tables": measured}, tables)


def make_preset(folder: Path, size: tuple[int, int]) -> config.Preset:
    """Write pictures of a size, and return a preset that trains on them."""
    random = np.random.default_rng(0)
    for index in range(PICTURES):
        image, label = make_photograph(random, size)
        images.write_image(folder / f"images/train/{index}.png", image)
        images.write_label(folder / f"labels/train/{index}.png", label)
    keys = ["data.dataset=folder", f"data.root={folder}", f"data.classes={[f'class {k}' for k in range(19)]}"]
    return config.load(PRESET, keys)


def make_photograph(random: np.random.Generator, size: tuple[int, int]) -> tuple[images.Pixels, images.Pixels]:
    """A picture that a PNG stores in about as many bytes as a street's, 9 bits a pixel, and a label map of patches."""
    height, width = size
    picture = np.full((height, width, 3), 110, np.float32)
    # detail at every scale, mostly grey: a photograph's spectrum
    for cells in (8, 16, 32, 64, 128, 256, 512):
        coarse = (max(2, height * cells // 2048), max(2, width * cells // 2048))
        noise = random.standard_normal((*coarse, 1)) + 0.35 * random.standard_normal((*coarse, 3))
        picture += 400 / cells * cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture += random.standard_normal(picture.shape, np.float32) * 0.7
    label = np.full(size, 255, np.uint8)
    for _ in range(150):
        centre = int(random.integers(width)), int(random.integers(height))
        axes = int(random.integers(2, width // 6 + 3)), int(random.integers(2, height // 6 + 3))
        cv2.ellipse(label, centre, axes, float(random.integers(180)), 0, 360, int(random.integers(19)), -1)
    return np.clip(picture, 0, 255).astype(np.uint8), label


def _measure(preset: config.Preset, workers: Sequence[int], batch: int, meter: Meter) -> dict[str, Any]:
    """Rows and rates, the size of the first picture, and the mean bytes of an image and its label together."""
    source = open_source(preset.data, "train")
    ways = _ways(preset, source, meter.device)
    for key in _keys(source, 2):
        _require_same(ways["whole"](key), ways["arrived"](key), 1 / min(preset.model.std))
    keys = _keys(source, WARM_UP[meter.device.type] + meter.repeats)
    times = meter.alternate({name: partial(_next, way, iter(keys)) for name, way in ways.items()})
    rows = [
        {"name": name, "what": DESCRIPTIONS[name], "time": time, "ratio": time.median / times[OFFICIAL].median}
        for name, time in times.items()
    ]
    first = [source.samples[index] for index in range(min(len(source.samples), PICTURES))]
    files = [path for sample in first for path in (sample.image, sample.label) if path]
    return {
        "size": images.read_size(first[0].image),
        "bytes": sum(path.stat().st_size for path in files) / len(first),
        "rows": rows,
        "rates": list(_rates(preset, source, workers, batch, meter.device)),
    }


def _next(way: Callable[[Key], Any], keys: Iterator[Key]) -> None:
    way(next(keys))


def _keys(source: Source, count: int) -> list[Key]:
    """Keys of samples, (epoch, index), as training meets them."""
    return [key for (key,) in Batches(len(source.samples), 1, seed=0, steps=count)]


def _training(preset: config.Preset, source: Source) -> TrainingSet:
    augmentation = Augmentation.from_settings(preset.data)
    return TrainingSet(source, augmentation, preset.model.channel_order, preset.seed)


def _ways(preset: config.Preset, source: Source, device: torch.device) -> dict[str, Callable[[Key], Any]]:
    """Functions from a key to its sample, to be timed and compared."""
    training = _training(preset, source)
    recipe, model = training.augmentation, preset.model
    # a data set may have a reader of its own
    own = source.read_label is not images.read_label
    read_label = source.read_label if own else partial(images.read_unchecked, grey=True)

    def decode(key: Key) -> tuple[np.ndarray, np.ndarray]:
        sample = source.samples[key[1]]
        assert sample.label is not None
        return images.read_unchecked(sample.image), read_label(sample.label)

    def official_way(key: Key) -> tuple[np.ndarray, np.ndarray]:
        random = transforms.generator(preset.seed, *key)
        scale = recipe.random_scale(random)
        return official(*decode(key), scale, preset.data.crop, random, model.mean, preset.data.mirror)

    def whole(key: Key) -> Pair:
        image, label = load_pair(source, source.samples[key[1]])
        random = transforms.generator(preset.seed, *key)
        image, label = transforms.resize(image, label, recipe.random_scale(random), recipe.fit)
        size = (label.shape[0], label.shape[1])
        ignored = source.ignore_index
        image, label = transforms.cut(image, label, size, recipe.crop, random, recipe.category_ratio, ignored)
        if recipe.photometric:
            image = transforms.distort(image, random)
        planes = pixels.normalise(image, model.channel_order, model.mean, model.std)
        below, right = (whole - part for whole, part in zip(recipe.crop, label.shape, strict=True))
        planes = np.pad(planes, ((0, 0), (0, below), (0, right)))
        label = np.pad(label, ((0, below), (0, right)), constant_values=ignored)
        if recipe.mirror and random.integers(2):
            planes, (_, label) = planes[..., ::-1].copy(), transforms.mirror(image, label, source.classes.mirrored)
        return torch.from_numpy(planes), torch.from_numpy(label.astype(np.int64))

    def on_device(key: Key) -> Pair:
        batches = raise_worker_errors([collate([training[key]])])
        image, label, _ = next(to_device(batches, model.mean, model.std, device))
        return image[0], label[0]

    ways = (official_way, whole, training.__getitem__, on_device, decode)
    return dict(zip(DESCRIPTIONS, ways, strict=True))


def official(
    image_HW3: np.ndarray,
    label_HW: np.ndarray,
    scale: float,
    crop: tuple[int, int],
    random: np.random.Generator,
    mean: Sequence[float],
    mirror: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The authors' steps in their order, each over the whole picture: float32 (3, h, w), label float32 (h, w)."""
    image = cv2.resize(image_HW3, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image = image.astype(np.float32)
    image -= np.array(mean, np.float32)
    below, right = (max(whole - part, 0) for whole, part in zip(crop, label.shape, strict=True))
    if below or right:
        edges = 0, below, 0, right, cv2.BORDER_CONSTANT
        image, label = cv2.copyMakeBorder(image, *edges, value=0), cv2.copyMakeBorder(label, *edges, value=255)
    top, left = (int(random.integers(whole - part + 1)) for whole, part in zip(label.shape, crop, strict=True))
    image = image[top : top + crop[0], left : left + crop[1]].transpose(2, 0, 1)
    label = label[top : top + crop[0], left : left + crop[1]].astype(np.float32)
    if mirror and random.integers(2):
        image, label = image[:, :, ::-1], label[:, ::-1]
    return image.copy(), label.copy()


def _require_same(whole: Pair, crop: Pair, level: float) -> None:
    """Raise RuntimeError unless a crop's labels are those of the whole picture and its pixels within a grey level."""
    image, label = (each.cpu() for each in crop)
    # not (>), so that nan is refused too
    if not torch.equal(label, whole[1]) or not float((image - whole[0]).abs().max()) <= 1.001 * level:
        raise RuntimeError("a crop differs from that of the whole picture: not timed")


def _rates(
    preset: config.Preset, source: Source, workers: Sequence[int], batch: int, device: torch.device
) -> Iterator[Row]:
    """Images per second of a loader whose batches are only waited for."""
    # torch's Dataset in all but its base class
    training: Any = _training(preset, source)
    for count in workers:
        before, measured = BEFORE * max(count, 1), MEASURED * max(count, 1)
        loader: DataLoader[Any] = DataLoader(
            training,
            batch_sampler=Batches(len(source.samples), batch, preset.seed, steps=before + measured),
            num_workers=count,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            multiprocessing_context="fork" if count and sys.platform == "linux" else None,
        )
        mean, std = preset.model.mean, preset.model.std
        arrivals = []
        for _ in to_device(raise_worker_errors(loader), mean, std, device):
            arrivals.append(time.perf_counter())
        # over as many batches as there are workers, which come together
        pace = max(count, 1)
        gaps = [arrivals[at + pace] - arrivals[at] for at in range(before - 1, before + measured - pace, pace)]
        rates = [pace * batch / gap for gap in gaps]
        yield {"workers": count, **asdict(Spread.of(rates))}
