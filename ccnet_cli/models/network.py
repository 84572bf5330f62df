"""CCNet: a backbone, a head, and an auxiliary head for training (ICCV 2019, figure 2)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ccnet_cli import ops
from ccnet_cli.devices import PRECISIONS, computes_bf16, device, precision
from ccnet_cli.devices import local_device as share
from ccnet_cli.errors import InputError
from ccnet_cli.models.backbones import BACKBONES
from ccnet_cli.models.heads import HEADS
from ccnet_cli.models.settings import Model
from ccnet_cli.parts import Outputs, part_of

# channels above which the weights are counted before they are made, and how many there may be: 8 GiB of float32
MANY_CHANNELS, MAX_WEIGHTS = 4096, 1 << 31
# for callers that do not yet ask ccnet_cli.devices
__all__ = ["PRECISIONS", "CCNet", "Normalisation", "build", "computes_bf16", "device", "precision", "share"]


@dataclass(frozen=True)
class Normalisation:
    """What the network expects of an image: channel order, and mean and std per channel of values 0 to 255."""

    channel_order: Literal["bgr", "rgb"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class CCNet(nn.Module):
    """Normalised image (B, 3, H, W) -> class scores (B, K, h, w) at the stride of the backbone.

    A head that takes clips scores one frame of (B, T, 3, H, W).

    `normalisation` says what the image must look like, `align_corners` how the scores are enlarged to image size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        auxiliary: nn.Module | None = None,
        normalisation: Normalisation | None = None,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        # parts may have any attribute, which nn.Module's own types hide
        self.backbone: Any = backbone
        self.head: Any = head
        self.auxiliary: Any = auxiliary
        self.normalisation = normalisation or Normalisation(
            "bgr", (104.00698793, 116.66876762, 122.67891434), (1, 1, 1)
        )
        self.align_corners = align_corners
        self._connect()

    def forward(self, x: Tensor) -> Tensor:
        """The main scores alone."""
        scores: Tensor = self.head(maps_of(self.backbone, x))
        return scores

    @property
    def takes_clips(self) -> bool:
        """Whether an input may be a clip (B, T, 3, H, W), of which one frame is scored."""
        return bool(getattr(self.head, "takes_clips", False))

    @property
    def labelled(self) -> int:
        """The place in a clip of the frame that is scored."""
        return int(getattr(self.head, "labelled", -1))

    @labelled.setter
    def labelled(self, place: int) -> None:
        if self.takes_clips:
            self.head.labelled = place

    def _connect(self) -> None:
        """Let the heads know how maps are resized, and the backbone how many of its maps they take."""
        levels = [2]
        for part, below in ((self.head, 0), (self.auxiliary, 1)):
            if hasattr(part, "align_corners"):
                part.align_corners = self.align_corners
            if part is not None:
                levels.append(below + getattr(part, "levels", len(self.backbone.channels) - below))
        if hasattr(self.backbone, "levels"):
            self.backbone.levels = max(levels)

    def outputs(self, x: Tensor) -> Outputs:
        """All that the network answers in training; the auxiliary head's scores are called `auxiliary`."""
        features = maps_of(self.backbone, x)
        own = getattr(self.head, "outputs", None)
        main, auxiliary, deepest = own(features) if own else (self.head(features), {}, features[-1])
        if self.auxiliary is not None:
            frame = [each if each.dim() == 4 else each[:, self.labelled] for each in features[:-1]]
            auxiliary = {**auxiliary, "auxiliary": self.auxiliary(frame)}
        return Outputs(main, auxiliary, deepest)

    @property
    def output_names(self) -> set[str]:
        """The names of the scores that `outputs` answers with, the head's own `output_names` among them."""
        return {"main", *getattr(self.head, "output_names", ()), *(["auxiliary"] if self.auxiliary is not None else [])}

    @property
    def feature_channels(self) -> int:
        """The channels of outputs.features: the head's own `feature_channels`, else those of the deepest map."""
        return int(getattr(self.head, "feature_channels", 0) or self.backbone.channels[-1])

    def attend(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The main scores and the attention of each pass, each (B, P, h, w); AttributeError for a head without any."""
        scores, maps = self.head.attend(maps_of(self.backbone, x))
        return scores, maps

    @property
    def stride(self) -> int:
        """Pixels of the image for each cell of the scores, each way."""
        if getattr(self.head, "finest", False) and hasattr(self.backbone, "strides"):
            return int(self.backbone.strides[-self.head.levels])
        return int(self.backbone.stride)

    @property
    def recurrence(self) -> int:
        """How often the head's attention is applied, R; 0 where it has none."""
        return int(getattr(self.head, "recurrence", 0))

    @recurrence.setter
    def recurrence(self, times: int) -> None:
        self.head.recurrence = times

    @property
    def gamma(self) -> float:
        """The weight of what the head's attention gathers; 0 where it has none."""
        return float(getattr(self.head, "gamma", 0.0))


def maps_of(backbone: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> Sequence[Tensor]:
    """The backbone's maps of images (B, 3, H, W) or, frame by frame, of clips (B, T, 3, H, W): (B, T, C, h, w) each."""
    if x.dim() == 4:
        return backbone(x)
    return [each.unflatten(0, x.shape[:2]) for each in backbone(x.flatten(0, 1))]


def build(model: Model, classes: int, recompute: bool = False) -> CCNet:
    """The network that a preset describes, freshly initialised; recompute trades time for training memory.

    A seed gives the weights that it always gave: what a head draws first comes before the auxiliary head.
    """
    _check_channels(model, classes, recompute)
    return _build(model, classes, recompute)


def build_unfilled(model: Model, classes: int) -> CCNet:
    """The same for those who load every weight, or want the shapes alone: no random numbers are drawn for weights."""
    with _Unfilled():
        return build(model, classes)


class _Unfilled(TorchFunctionMode):
    """Leaves tensors as they are that would be filled with random numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # of the meta device, normal_ alone would load torch's compiler: a second, and 80 MiB
        if func.__name__.endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _check_channels(model: Model, classes: int, recompute: bool) -> None:
    """InputError where the weights would not fit in memory; none are made."""
    if max(_whole_numbers(model.model_dump()), default=0) > MANY_CHANNELS:
        with torch.device("meta"), _Unfilled():
            count = sum(weight.numel() for weight in _build(model, classes, recompute).parameters())
        if count > MAX_WEIGHTS:
            why = f"its channels make {count:,} weights, at most {MAX_WEIGHTS:,} are possible"
            raise InputError("preset key model", why, "choose fewer channels")


def _whole_numbers(value: object) -> Iterator[int]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _whole_numbers(inner)
    elif isinstance(value, int):
        yield value


def _build(model: Model, classes: int, recompute: bool) -> CCNet:
    settings: Any = model
    backbone = part_of(BACKBONES, "model.backbone.kind", settings.backbone.kind).build(settings.backbone, recompute)
    part = part_of(HEADS, "model.head.kind", settings.head.kind)
    block = () if part.first is None else (part.first(settings.head),)
    auxiliary = None
    if settings.auxiliary is not None:
        second = part_of(HEADS, "model.auxiliary.kind", settings.auxiliary.kind)
        inner = () if second.first is None else (second.first(settings.auxiliary),)
        auxiliary = second.build(settings.auxiliary, backbone.channels[:-1], classes, *inner)
    head = part.build(settings.head, backbone.channels, classes, *block)
    normalisation = Normalisation(model.channel_order, model.mean, model.std)
    network = CCNet(backbone, head, auxiliary, normalisation, model.align_corners)
    ops.accelerate(network)
    return network
