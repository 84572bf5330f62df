"""For programs: a model that segments pictures as `ccnet predict` does, and shows its attention. See ccnet_cli.load."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ccnet_cli import __version__, config, files
from ccnet_cli.errors import InputError
from ccnet_cli.inference import segmenter
from ccnet_cli.inference.artifact import Artifact, load_model
from ccnet_cli.inference.attention import attend, require_attention
from ccnet_cli.inference.int8 import INT8
from ccnet_cli.inference.runtime import Runtime
from ccnet_cli.inference.scores import Scores
from ccnet_cli.inference.views import Views
from ccnet_cli.media import images, outputs, sources
from ccnet_cli.media.classes import Classes
from ccnet_cli.runs import safetensors
from ccnet_cli.runs.checkpoint import FORMAT


class PILPicture(Protocol):
    """What is asked of PIL.Image.Image, which ccnet does without."""

    def convert(self, mode: str) -> Any:
        """The same in another mode, such as RGB."""


# a file, an array (H, W, 3) or (H, W) uint8 RGB or grey, or a picture of PIL
Picture = str | PathLike[str] | npt.NDArray[Any] | PILPicture
CARD = """---
library_name: ccnet
pipeline_tag: image-segmentation
tags: [semantic-segmentation, criss-cross-attention]
---

# {name}

{description}. Semantic segmentation into {count} classes: {classes}.

```python
import ccnet_cli

segmentation = ccnet_cli.load("FOLDER").segment("street.jpg")
```

Written by ccnet {version} after {step} steps{metrics}{origin}. `{weights}` holds the weights, and the classes and the
preset in its metadata.
"""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmented picture: image (H, W, 3) uint8 RGB, and mask (H, W) uint8, the index of each pixel's class."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    _table: Classes
    _scores: Scores

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names."""
        return self._table.names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """An RGB colour for each class."""
        return self._table.palette

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """The class scores before the softmax, (K, H, W) float32, computed when asked for."""
        return self._scores.dense().float().cpu().numpy()

    def overlay(self) -> npt.NDArray[np.uint8]:
        """The mean of the picture and the class colours, (H, W, 3) uint8 RGB."""
        return np.ascontiguousarray(outputs.draw("overlay", self.mask, self.image[..., ::-1], self._table)[..., ::-1])

    def areas(self) -> dict[str, float]:
        """The fraction of the pixels that each class has."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return {name: int(count) / self.mask.size for name, count in zip(self.classes, counts, strict=True)}

    def save(self, path: str | PathLike[str], format: str = "color") -> None:
        """Write a PNG as `ccnet predict --format` does: color, overlay, overlay-legend, train-id or label-id."""
        (format,) = outputs.check_formats([format])
        outputs.write(Path(path), format, self.mask, np.ascontiguousarray(self.image[..., ::-1]), self._table)


class Segmenter:
    """A model with its classes. Called with a normalised tensor it is its network, whose attributes it has as well.

    network is that of training, a torch.nn.Module; segment runs a folded copy, which follows its weights.
    """

    def __init__(self, artifact: Artifact[Any], runtime: Runtime) -> None:
        self.artifact = artifact
        self.network = artifact.network
        self.runtime = runtime
        self._prepared: tuple[Any, segmenter.Segmenter] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), see `normalisation` -> scores (N, K, h, w) at the network's `stride`."""
        scores: Tensor = self.network(x)
        return scores

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("artifact", "network"):
            raise AttributeError(name)
        return getattr(self.network, name)

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names."""
        return self.artifact.classes.names

    @property
    def recurrence(self) -> int:
        """How often the head's attention is applied, R; it can be set."""
        return int(self.network.recurrence)

    @recurrence.setter
    def recurrence(self, times: int) -> None:
        self.network.recurrence = times

    @overload
    def segment(self, pictures: list[Any] | tuple[Any, ...]) -> list[Segmentation]: ...

    @overload
    def segment(self, pictures: Picture) -> Segmentation: ...

    def segment(self, pictures: list[Any] | tuple[Any, ...] | Picture) -> Segmentation | list[Segmentation]:
        """Segment a picture, or each of a list, with the same bits as `ccnet predict`.

        A picture is a file, an array (H, W, 3) or (H, W), uint8 RGB or grey, or one of PIL. InputError for others.
        """
        if not isinstance(pictures, list | tuple):
            return self._segment(_read(pictures), 1)
        return [self._segment(each, len(pictures)) for each in map(_read, pictures)]

    def attention(self, picture: Picture, point: tuple[int, int]) -> dict[str, npt.NDArray[np.float64]]:
        """What the network attends to from a pixel (x, y): the maps (h, w) by name, R = 1, R = 2, ... each sums to 1.

        h and w are the size of the scores. InputError for a head without attention and for a point outside.
        """
        image_bgr = _read(picture)
        height, width = image_bgr.shape[:2]
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise InputError(f"point {point[0]},{point[1]}", f"outside the image of {width}x{height} pixels", "move it")
        require_attention(self.artifact)
        own = next(self.network.parameters())
        (maps,) = (seen := attend(self.artifact, image_bgr, own.device)).maps([point]).maps
        return dict(zip(seen.names, (np.asarray(each, np.float64) for each in maps), strict=True))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model with its classes and preset to a .pt or .safetensors file, which ccnet reads everywhere."""
        content = io.BytesIO()
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        if Path(path).suffix.lower() == safetensors.SUFFIX:
            safetensors.write(content, state, self._facts())
        else:
            torch.save({**self._facts(), "model": state}, content)
        files.write_bytes(Path(path), content.getvalue())

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write model.safetensors and README.md, a model card, into a folder, which `load` takes."""
        a, weights = self.artifact, f"model{safetensors.SUFFIX}"
        self.save(Path(folder) / weights)
        card = CARD.format(
            **{"name": a.preset.name, "description": a.preset.description, "count": len(a.classes)},
            **{"classes": ", ".join(a.classes.names), "version": __version__, "step": a.step, "weights": weights},
            metrics="".join(f", {name} {value:.4f}" for name, value in a.metrics.items()),
            origin=f"; weights from {a.origin}" if a.origin else "",
        )
        files.write_bytes(Path(folder) / "README.md", card.encode())

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], **options: Any) -> "Segmenter":
        """Load what save_pretrained wrote, or whatever `load` takes, with its options."""
        return load(folder, **options)

    def _facts(self) -> dict[str, Any]:
        a = self.artifact
        facts = {"format": FORMAT, "step": a.step, "metrics": a.metrics, "origin": a.origin}
        return {**facts, "preset": config.to_mapping(a.preset), "classes": a.classes.to_mapping()}

    def _segment(self, image_bgr: images.Pixels, count: int) -> Segmentation:
        own = self._prepare(count)
        scores = own.score(own.load(image_bgr))
        return Segmentation(
            np.ascontiguousarray(image_bgr[..., ::-1]), own.predict(scores), self.artifact.classes, scores
        )

    def _prepare(self, count: int) -> segmenter.Segmenter:
        """The folded network for N pictures, made anew after its weights have changed."""
        weights = [*self.network.parameters(), *self.network.buffers()]
        state = (count, self.network.recurrence, [(id(tensor), tensor._version) for tensor in weights])
        if self._prepared is None or self._prepared[0] != state:
            a = self.artifact
            network = self.runtime.prepare(a, count)
            views, device = (
                Views.of(a.preset.eval, a.classes, self.runtime.budget(a, network).fit),
                torch.device(self.runtime.device),
            )
            self._prepared = state, segmenter.Segmenter(network, views, device, a.clip)
        return self._prepared[1]


def load(
    path: str | PathLike[str],
    recurrence: int | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    calibrate: Sequence[str] = (),
) -> Segmenter:
    """See ccnet_cli.load."""
    own = [] if recurrence is None else [f"model.head.recurrence={recurrence}"]
    artifact, runtime = load_model(Path(path), preset, [*overrides, *own], headless=True), Runtime(device, precision)
    if (precision == INT8) is not bool(calibrate):
        why = f"{len(calibrate)} names of images to measure ranges on"
        raise InputError(f"precision {precision}", why, "name some by calibrate=[FILE, ...] for int8, else none")
    if calibrate:
        runtime = runtime.calibrate(each.path for each in sources.find(calibrate) if not sources.is_video(each.path))
    return Segmenter(artifact, runtime.resolve(artifact.path))


def _read(picture: Picture) -> images.Pixels:
    """A picture as (H, W, 3) uint8 BGR; InputError for what is none."""
    if isinstance(picture, str | PathLike):
        return images.read_image(Path(picture), exif=True)
    array = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        why = f"an array of {array.dtype} with shape {array.shape}"
        raise InputError("picture", why, "give uint8 RGB of shape (H, W, 3), a file's name, or a list")
    return np.ascontiguousarray(array[..., ::-1])
