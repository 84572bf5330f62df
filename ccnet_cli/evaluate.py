"""Score a checkpoint on labelled images: one confusion matrix over every valid pixel."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ccnet_cli import checkpoint as checkpoints
from ccnet_cli import config, distributed, images, loading, outputs
from ccnet_cli import model as models
from ccnet_cli.datasets import Sample, Source, load_pair, open_source
from ccnet_cli.errors import InputError, notice
from ccnet_cli.images import cv2
from ccnet_cli.inference import check_precision, segment
from ccnet_cli.metrics import Confusion

# images between two lines of progress
EVERY = 20
# pixels of a cell of the drawn matrix
CELL = 44


@dataclass(frozen=True)
class Result:
    """What an evaluation found: shares in 0..1, None where there was nothing to measure."""

    miou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    classes: dict[str, float | None]
    images: int
    pixels: int
    checkpoint: str
    settings: dict[str, Any]

    def to_mapping(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return asdict(self)


def evaluate(
    checkpoint: Path | None = None,
    data: str | None = None,
    split: str = "val",
    overrides: Sequence[str] = (),
    preset: str | None = None,
    mode: str | None = None,
    tile: tuple[int, int] | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    precision: str = "fp32",
    device: str = "auto",
    limit: int | None = None,
    confusion: Path | None = None,
    save: Path | None = None,
    save_formats: Sequence[str] = ("color",),
    overwrite: bool = False,
) -> Result:
    """Score a checkpoint or other people's weights; of several processes each takes its share, all return the same.

    preset (a name or file) replaces the one that the checkpoint holds or the weights suggest, overrides ("key=value")
    its keys, data its data.root, and mode, tile, scales and flip those of its eval section. limit scores the first
    images only. confusion draws the matrix as a PNG, save writes one PNG per image and format into a folder, where
    existing files are refused unless overwrite.
    """
    place = models.device(device)
    formats = outputs.check_formats(save_formats)
    check_precision(precision)
    if confusion is not None and confusion.suffix.lower() != ".png":
        raise InputError(confusion, "the confusion matrix is drawn as a PNG", "end the name in .png")
    restored = loading.restore(checkpoints.find(checkpoint), preset, overrides)
    settled = with_choices(restored.preset, data, mode=mode, tile=tile, scales=scales, flip=flip)
    source = open_source(settled.data, split, labels_required=True)
    source = replace(source, samples=source.samples[:limit])
    _check(source, restored)
    planned = {} if save is None else _plan(source, save, formats, overwrite)

    shard = len(distributed.shard(len(source.samples)))
    done = 0

    def on_image(sample: Sample, image: np.ndarray, ids: np.ndarray) -> None:
        nonlocal done
        done += 1
        if save is not None:
            for format, path in planned[sample.name].items():
                outputs.write(path, format, ids, image, source.classes)
        if done % EVERY == 0 and done < shard and distributed.rank() == 0:
            notice(f"{done} of {shard} images evaluated")

    matrix = evaluate_model(network(restored, place), source, settled.eval, place, on_image, precision)
    if confusion is not None and distributed.rank() == 0:
        images.write_image(confusion, draw(matrix, source.classes.names))
    settings = {
        **settled.eval.model_dump(mode="json", include={"mode", "tile", "fit", "scales", "flip"}),
        "precision": precision,
        "dataset": settled.data.dataset,
        "data": settled.data.root,
        "split": split,
        "limit": limit,
    }
    return result(matrix, source, restored.path, settings)


def evaluate_model(
    model: nn.Module,
    source: Source,
    settings: config.Eval,
    device: torch.device,
    on_image: Callable[[Sample, np.ndarray, np.ndarray], None] | None = None,
    precision: str = "fp32",
) -> Confusion:
    """The confusion matrix over every labelled image, on every process, each image counted once.

    on_image gets sample, BGR image and train ids (H, W) of each image of this process. The model's modes are kept.
    """
    confusion = Confusion(len(source.classes))
    counted = torch.zeros(2, dtype=torch.int64)
    samples = [source.samples[index] for index in distributed.shard(len(source.samples))]
    s = settings
    with evaluating(model):
        for sample, image, label in _ahead(lambda sample: (sample, *load_pair(source, sample)), samples):
            mirrored = source.classes.mirrored
            ids = segment(model, image, device, s.mode, s.tile, s.scales, s.flip, precision, s.fit, mirrored)
            confusion.update(torch.from_numpy(ids), torch.from_numpy(label), source.ignore_index)
            counted += torch.tensor([1, np.count_nonzero(label != source.ignore_index)])
            if on_image is not None:
                on_image(sample, image, ids)
    # where the processes meet: NCCL sums on the GPU alone
    confusion.matrix = distributed.all_reduce_sum(confusion.matrix.to(device)).cpu()
    seen, pixels = distributed.all_reduce_sum(counted.to(device)).tolist()
    if seen != len(source.samples) or pixels != int(confusion.matrix.sum()):
        raise AssertionError(
            f"{seen} of {len(source.samples)} images, {confusion.matrix.sum()} of {pixels} pixels counted"
        )
    return confusion


def result(confusion: Confusion, source: Source, checkpoint: Path, settings: dict[str, Any]) -> Result:
    """The figures of a confusion matrix."""
    return Result(
        miou=_finite(confusion.miou()),
        pixel_accuracy=_finite(confusion.pixel_accuracy()),
        mean_accuracy=_finite(confusion.mean_accuracy()),
        classes={name: _finite(iou) for name, iou in zip(source.classes.names, confusion.iou().tolist(), strict=True)},
        images=len(source.samples),
        pixels=int(confusion.matrix.sum()),
        checkpoint=str(checkpoint),
        settings=settings,
    )


def with_choices(preset: config.Preset, data: str | None = None, **choices: Any) -> config.Preset:
    """The preset with another data root, and those of the eval section's keys that are not None."""
    mapping = config.to_mapping(preset)
    if data is not None:
        mapping["data"]["root"] = data
    mapping["eval"].update({key: value for key, value in choices.items() if value is not None})
    return config.from_mapping(mapping)


def network(restored: loading.Restored, device: torch.device) -> nn.Module:
    """The restored model on the device, in the memory format it was trained in."""
    model = restored.model.to(device)
    return model.to(memory_format=torch.channels_last) if restored.preset.train.channels_last else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module back in its own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def draw(confusion: Confusion, names: Sequence[str]) -> np.ndarray:
    """The matrix as a picture, BGR: each row is a true class, in percent of its pixels; grey where it has none."""
    counts = confusion.matrix.double().numpy()
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    cell, font, ink = CELL, cv2.FONT_HERSHEY_SIMPLEX, (40, 40, 40)
    plain = [name.encode("ascii", "replace").decode() for name in names]
    margin = 20 + max(cv2.getTextSize(name, font, 0.5, 1)[0][0] for name in [*plain, "truth / prediction"])
    side = cell * len(names)
    # OpenCV writes from left to right only: the columns' names are the rows', turned
    head = np.full((side, margin, 3), 255, np.uint8)
    for index, name in enumerate(plain):
        cv2.putText(head, name, (10, index * cell + cell // 2 + 5), font, 0.5, ink, 1, cv2.LINE_AA)
    picture = np.full((margin + side + 10, margin + side + 10, 3), 255, np.uint8)
    # shows between the cells as a grid
    picture[margin : margin + side, margin : margin + side] = 235
    picture[margin : margin + side, :margin] = head
    picture[:margin, margin : margin + side] = np.rot90(head)
    cv2.putText(picture, "truth / prediction", (10, margin - 12), font, 0.5, ink, 1, cv2.LINE_AA)
    for (row, column), value in np.ndenumerate(share):
        x, y = margin + column * cell, margin + row * cell
        # from white to a dark blue
        color = (225, 225, 225) if np.isnan(value) else 255 - value * np.array([115, 185, 225])
        picture[y : y + cell - 1, x : x + cell - 1] = np.round(color)
        if value >= 0.005:
            text = f"{100 * value:.0f}"
            width = cv2.getTextSize(text, font, 0.5, 1)[0][0]
            at = (x + (cell - width) // 2, y + cell // 2 + 5)
            cv2.putText(picture, text, at, font, 0.5, (255, 255, 255) if value > 0.5 else ink, 1, cv2.LINE_AA)
    return picture


def _check(source: Source, restored: loading.Restored) -> None:
    """InputError unless there are images, of the classes that the checkpoint knows."""
    fix = "choose another --split, or the data set that the checkpoint was trained on"
    if not source.samples:
        raise InputError(f"data set {source.dataset}", "has no image in this split", fix)
    if source.classes.names != restored.classes.names:
        ours, theirs = len(restored.classes), len(source.classes)
        why = f"has {theirs} classes, the checkpoint {ours}" if ours != theirs else "names its classes differently"
        raise InputError(f"data set {source.dataset}", why, fix)


def _plan(source: Source, folder: Path, formats: Sequence[str], overwrite: bool) -> dict[str, dict[str, Path]]:
    """The files of each image of this process, by its name; InputError if one leaves the folder or replaces a file."""
    if folder.exists() and not folder.is_dir():
        raise InputError(folder, "is a file, not a folder", "name another folder to save to")
    names = [sample.name for sample in source.samples]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"image name {twice}", "stands for two images", "rename one of them")
    own = [names[index] for index in distributed.shard(len(names))]
    planned = {name: outputs.destinations(folder, name, formats) for name in own}
    outputs.refuse_existing((path for paths in planned.values() for path in paths.values()), overwrite)
    return planned


def _ahead(load: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """load(item) of each item in order, the next one read while the caller works."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(load, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
