"""Where a network looks: the attention of each pass over an image, and what it says of a point."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.errors import InputError, NonFiniteError, notice
from ccnet_cli.figures.attention import Fractions, ModelMaps, Point, cross_mask
from ccnet_cli.figures.clips import ClipPoint, Shares
from ccnet_cli.inference.artifact import Artifact, load_model
from ccnet_cli.inference.runtime import to_device
from ccnet_cli.inference.views import to_input
from ccnet_cli.media.resampling import interpolation
from ccnet_cli.models.attention import attention_map
from ccnet_cli.models.dense import ChannelPass, DensePass
from ccnet_cli.models.network import CCNet, maps_of

# H, W the image; h, w the grid of cells on which the network attends; points and cells are (x, y)

# below this weight of the attended features, gamma, the scores hardly depend on the attention
UNUSED_GAMMA = 1e-3


@dataclass(frozen=True, eq=False)
class ImageAttention:
    """A model's run over an image of size (H, W): scores (K, h, w) and the attention of each pass.

    That is over each cell's row and column, (1, h + w, h, w), over all cells, or over channels.
    projections are query and key of each pass, (1, C', h, w), of a head that has them.
    """

    artifact: Artifact[CCNet]
    size: tuple[int, int]
    scores: Tensor
    passes: list[Tensor | DensePass | ChannelPass]
    projections: list[tuple[Tensor, Tensor]]

    @property
    def cells(self) -> np.ndarray:
        """The class of each cell, (h, w)."""
        return self.scores.argmax(dim=0).cpu().numpy()

    @property
    def gamma(self) -> float | None:
        """The weight of the attended features; None for a head without one."""
        gamma = getattr(self.artifact.network.head, "gamma", None)
        return None if gamma is None else float(gamma)

    @property
    def names(self) -> tuple[str, ...]:
        """What the maps are called."""
        return self._side_by_side or tuple(f"R = {r}" for r in range(1, len(self.passes) + 1))

    @property
    def composed(self) -> bool:
        """Whether each pass works on the output of the one before, so that its maps go through all of these."""
        return not self._side_by_side

    @property
    def _side_by_side(self) -> tuple[str, ...]:
        return tuple(getattr(self.artifact.network.head, "attention_names", ()))

    def maps(self, points: Sequence[tuple[int, int]], drawn_class: int | None = None) -> ModelMaps:
        """The maps of each point, and what they say; those over channels are of a class, else of the point's."""
        network = self.artifact.network
        described, maps = [], []
        for point in points:
            cell, own = locate(self.scores, point, self.size, network.align_corners)
            drawn = own if drawn_class is None else drawn_class
            of_point = [self._map(number, cell, own, drawn) for number in range(len(self.passes))]
            fractions = tuple(each for _, each in of_point)
            described.append(Point(point, cell, self.artifact.classes.names[own], fractions))
            maps.append([map_hw for map_hw, _ in of_point])
        title = "/".join(self.artifact.path.parts[-2:])
        return ModelMaps(described, maps, network.align_corners, title, self.names)

    def _map(self, number: int, cell: tuple[int, int], own: int, drawn: int) -> tuple[np.ndarray, Fractions]:
        """The map of a cell (x, y) of class `own`, or of the class `drawn`, and its fractions."""
        last = self.passes[number]
        if isinstance(last, ChannelPass):
            channel, part_hw = last.of_class(drawn)
            map_hw = part_hw.cpu().numpy()
            on_class = float(map_hw[self.cells == drawn].sum())
            return map_hw, Fractions(on_class, None, None, channel, self.artifact.classes.names[drawn])
        passes: Any = self.passes[: number + 1] if self.composed else [last]
        map_hw = attention_map(passes, cell[1], cell[0]).cpu().numpy()
        return map_hw, fractions_of(map_hw, cell, self.cells == own)


def load_attentive(path: Path | None, preset: str | None = None, overrides: Sequence[str] = ()) -> Artifact[CCNet]:
    """A model whose head has attention to draw; notices say where its maps mean little."""
    artifact = load_model(path, preset, overrides)
    require_attention(artifact)
    return artifact


def require_attention(artifact: Artifact[CCNet]) -> None:
    """InputError for a head without attention to draw; notices say where its maps mean little."""
    head = artifact.network.head
    if getattr(head, "attend", None) is None:
        why = f"the head {_kind(artifact)} has no attention to draw"
        raise InputError(artifact.path, why, "use a checkpoint with another model.head.kind, such as rcca")
    recurrence, gamma = getattr(head, "recurrence", None), getattr(head, "gamma", None)
    if recurrence == 0:
        raise _no_attention(artifact)
    if recurrence == 1:
        notice("the model has one pass (R=1): only its R=1 map is drawn")
    if gamma is not None and abs(gamma) < UNUSED_GAMMA:
        why = f"the attention is hardly used: its weight gamma is {float(gamma):.1e}"
        notice(f"{why}; train longer before reading the maps")


def attend(artifact: Artifact[CCNet], image_bgr: np.ndarray, device: torch.device) -> ImageAttention:
    """Run the model over an image (H, W, 3); NonFiniteError if its attention is not finite."""
    network = to_device(artifact, device)
    head = network.head
    with torch.inference_mode():
        features = network.backbone(to_input(image_bgr, network.normalisation, device))
        scores, passes = head.attend(features)
        project = getattr(head, "projections", None)
        projections = [] if project is None else project(features)
    if not passes:
        raise _no_attention(artifact)
    _require_finite(artifact, passes)
    h, w = scores.shape[2:]
    sizes = [tuple(each.shape) if isinstance(each, Tensor) else each.size for each in passes]
    names = getattr(head, "attention_names", ())
    if names and len(names) != len(passes):
        why = f"the head {_kind(artifact)} names {len(names)} attentions and has {len(passes)}"
        raise InputError(artifact.path, why, "give its attention_names one name for each that attend returns")
    if any(size not in ((1, h + w, h, w), (h, w)) for size in sizes):
        why = f"the attention of the head {_kind(artifact)} is not over each cell's row and column"
        raise InputError(artifact.path, why, "use a head whose attend gives maps (B, h + w, h, w)")
    height, width = image_bgr.shape[:2]
    return ImageAttention(artifact, (height, width), scores[0], passes, projections)


@dataclass(frozen=True, eq=False)
class ClipAttention:
    """A model's run over a clip of frames of size (H, W): the labelled frame's scores (K, h, w) and the passes.

    Each pass is the attention over each cell's cross in time and space, (1, T + h + w, T, h, w). features are the
    backbone's maps.
    """

    artifact: Artifact[CCNet]
    size: tuple[int, int]
    place: int
    scores: Tensor
    passes: list[Tensor]
    features: Sequence[Tensor]

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of a frame, (h, w)."""
        return self.scores.shape[1], self.scores.shape[2]

    @property
    def projections(self) -> list[tuple[Tensor, Tensor]]:
        """Query and key of each pass, (1, C', T, h, w)."""
        with torch.inference_mode():
            pairs: list[tuple[Tensor, Tensor]] = self.artifact.network.head.projections(self.features)
        return pairs

    @property
    def frame_scores(self) -> Tensor:
        """The scores of every frame, (T, K, h, w)."""
        with torch.inference_mode():
            scores: Tensor = self.artifact.network.head.score_frames(self.features)[0]
        return scores

    def maps(self, points: Sequence[tuple[int, int]]) -> list[ClipPoint]:
        """The maps of points (x, y) of the labelled frame, and what they say."""
        described, align_corners = [], self.artifact.network.align_corners
        for point in points:
            cell, own = locate(self.scores, point, self.size, align_corners)
            chains = [self.passes[:r] for r in range(1, len(self.passes) + 1)]
            maps = tuple(attention_map(each, self.place, cell[1], cell[0]).cpu().numpy() for each in chains)
            shares = tuple(Shares.of(each, self.place, cell) for each in maps)
            described.append(ClipPoint(point, cell, self.artifact.classes.names[own], maps, shares))
        return described


def attend_clip(artifact: Artifact[CCNet], frames_bgr: Sequence[np.ndarray], device: torch.device) -> ClipAttention:
    """Run the model over a clip; NonFiniteError if its attention is not finite."""
    network = to_device(artifact, device)
    clip = torch.stack([to_input(frame, network.normalisation, device) for frame in frames_bgr], dim=1)
    with torch.inference_mode():
        features = maps_of(network.backbone, clip)
        scores, passes = network.head.attend(features)
    _require_finite(artifact, passes)
    height, width = frames_bgr[0].shape[:2]
    return ClipAttention(artifact, (height, width), network.labelled % len(frames_bgr), scores[0], passes, features)


def _require_finite(artifact: Artifact[CCNet], passes: Sequence[Tensor | DensePass | ChannelPass]) -> None:
    if not all(attention.isfinite().all() for attention in passes):
        raise NonFiniteError(artifact.path, "its attention is not finite", "use a checkpoint whose weights are sound")


def locate(
    scores_Khw: Tensor, point: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> tuple[tuple[int, int], int]:
    """The cell (x, y) whose scores weigh most where the network enlarges them to the image, and the pixel's class.

    With align_corners that is the cell nearest to x (w - 1) / (W - 1), y (h - 1) / (H - 1).
    """
    (x, y), (H, W), (h, w) = point, size, scores_Khw.shape[1:]
    row = interpolation(H, h, align_corners)[y].to(scores_Khw)
    column = interpolation(W, w, align_corners)[x].to(scores_Khw)
    own = torch.einsum("khw,h,w->k", scores_Khw, row, column).argmax()
    return (int(column.argmax()), int(row.argmax())), int(own)


def fractions_of(map_hw: np.ndarray, cell: tuple[int, int], own_hw: np.ndarray) -> Fractions:
    """How much of a map that sums to 1 lies where own is true, and on and off the cross of the cell."""
    height, width = map_hw.shape
    cross = cross_mask((height, width), cell)
    weights = map_hw.astype(np.float64)
    own, on, off = (float(weights[mask].sum()) for mask in (own_hw, cross, ~cross))
    return Fractions(own, on, off)


def _kind(artifact: Artifact[CCNet]) -> str:
    head: Any = artifact.preset.model.head
    return str(head.kind)


def _no_attention(artifact: Artifact[CCNet]) -> InputError:
    fix = "use a checkpoint with model.head.recurrence 1 or more"
    return InputError(artifact.path, "the model has no attention (R=0), so there is nothing to draw", fix)
