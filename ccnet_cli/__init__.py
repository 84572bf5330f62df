"""Semantic segmentation with criss-cross attention: the command line `ccnet`, and its parts for programs.

load(path) -> Segmenter, whose segment(picture) -> Segmentation; CrissCrossAttention, a layer, and criss_cross, the
operator in it. See `ccnet guide library`.
"""

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

# torch takes seconds to load, and the command line's help does without it
if TYPE_CHECKING:
    from ccnet_cli.inference.library import Segmentation, Segmenter
    from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross
    from ccnet_cli.ops import criss_cross

__version__ = "0.1.0"
__all__ = ["CrissCrossAttention", "RecurrentCrissCross", "Segmentation", "Segmenter", "criss_cross", "load"]

_HOMES = {
    "CrissCrossAttention": "ccnet_cli.models.attention",
    "RecurrentCrissCross": "ccnet_cli.models.attention",
    "Segmentation": "ccnet_cli.inference.library",
    "Segmenter": "ccnet_cli.inference.library",
    "criss_cross": "ccnet_cli.ops",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_HOMES[name]), name)


def load(
    path: str | PathLike[str],
    recurrence: int | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    calibrate: Sequence[str] = (),
) -> "Segmenter":
    """Load a model: a file of ours, the authors', mmsegmentation's or a backbone's, a run's folder, a catalogue name.

    Its network is in evaluation mode on the CPU. Called, it takes a normalised image (N, 3, H, W), see `normalisation`,
    and returns scores (N, K, h, w) at its `stride`. recurrence replaces R, which the authors' files do not hold (2 is
    assumed); preset and overrides ("key=value") replace the rest. device and precision are those of `segment`, as in
    `ccnet predict`; int8 measures its ranges on the images that calibrate names, files or folders. Raises
    ccnet_cli.errors.InputError for a file that is damaged or unknown; nothing in it is run.
    """
    from ccnet_cli.inference import library

    return library.load(path, recurrence, preset, overrides, device, precision, calibrate)
