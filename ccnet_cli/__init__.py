"""Semantic segmentation with criss-cross attention, from the command line."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

# torch takes seconds to load, and the command line's help does without it
if TYPE_CHECKING:
    from ccnet_cli.models.network import CCNet

__version__ = "0.1.0"
__all__ = ["load"]


def load(
    path: str | PathLike[str],
    recurrence: int | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> "CCNet":
    """Load the network of a file, ours, the authors', mmsegmentation's or a backbone's, in evaluation mode on the CPU.

    It takes a normalised image (N, 3, H, W), see its `normalisation`, and returns scores (N, K, h, w) at its `stride`.
    recurrence replaces R, which the authors' files do not hold (2 is assumed); preset and overrides ("key=value")
    replace the rest. Raises ccnet_cli.errors.InputError for a file that is damaged or unknown; nothing in it is run.
    """
    from ccnet_cli.inference.artifact import load_model

    own = [] if recurrence is None else [f"model.head.recurrence={recurrence}"]
    return load_model(Path(path), preset, [*overrides, *own], headless=True).network
