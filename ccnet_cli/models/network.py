"""CCNet: a backbone, the criss-cross attention head and the auxiliary head (ICCV 2019, figure 2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ccnet_cli import config, ops
from ccnet_cli.errors import InputError, notice
from ccnet_cli.models.attention import CrissCrossAttention, RecurrentCrissCross
from ccnet_cli.models.backbones.resnet import build as build_backbone

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Normalisation:
    """What the network expects of an image: channel order, and mean and std per channel of values 0 to 255."""

    channel_order: Literal["bgr", "rgb"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def _conv_norm_act(inputs: int, outputs: int, activation: str, bias: bool = False) -> list[nn.Module]:
    conv = ops.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    act = nn.ReLU(inplace=True) if activation == "relu" else nn.LeakyReLU(0.01, inplace=True)
    return [conv, nn.BatchNorm2d(outputs), act]


class RCCAHead(nn.Module):
    """Reduce, attend over criss-cross paths, and classify with the backbone's features beside.

    (B, C, h, w) -> (B, K, h, w). rcca None leaves the attention out (R = 0).
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        classes: int,
        rcca: RecurrentCrissCross | None,
        dropout: float = 0.1,
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        self.conva = nn.Sequential(*_conv_norm_act(inputs, channels, activation))
        self.rcca = rcca
        self.convb = nn.Sequential(*_conv_norm_act(channels, channels, activation))
        self.bottleneck = nn.Sequential(
            *_conv_norm_act(inputs + channels, channels, activation),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores at the features' size."""
        reduced = self.conva(x)
        return self._classify(x, reduced if self.rcca is None else self.rcca(reduced))

    def attend(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class scores and the attention of each pass, each (B, P, h, w)."""
        reduced = self.conva(x)
        gathered, maps = (reduced, []) if self.rcca is None else self.rcca.attend(reduced)
        return self._classify(x, gathered), maps

    def _classify(self, x: Tensor, gathered: Tensor) -> Tensor:
        scores: Tensor = self.bottleneck(torch.cat([x, self.convb(gathered)], dim=1))
        return scores


class FCNHead(nn.Sequential):
    """The auxiliary classifier on layer3: (B, C, h, w) -> (B, K, h, w)."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        classes: int,
        dropout: float = 0.1,
        activation: str = "leaky_relu",
        bias: bool = True,
    ) -> None:
        super().__init__(
            *_conv_norm_act(inputs, channels, activation, bias),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, classes, 1),
        )


class CCNet(nn.Module):
    """Normalised image (B, 3, H, W) -> class scores (B, K, h, w) at stride 8.

    `normalisation` tells what the image must look like, `align_corners` how the scores are enlarged to image size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: RCCAHead,
        auxiliary: FCNHead | None = None,
        normalisation: Normalisation | None = None,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary
        self.normalisation = normalisation or Normalisation(
            "bgr", (104.00698793, 116.66876762, 122.67891434), (1, 1, 1)
        )
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """The main scores alone."""
        scores: Tensor = self.head(self.backbone(x)[1])
        return scores

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The main scores, and those of the auxiliary head where the model has one."""
        c3, c4 = self.backbone(x)
        return self.head(c4), None if self.auxiliary is None else self.auxiliary(c3)

    def attend(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The main scores and the attention of each pass, each (B, P, h, w); an empty list for R = 0."""
        return self.head.attend(self.backbone(x)[1])

    @property
    def recurrence(self) -> int:
        """How often the attention is applied, R."""
        return 0 if self.head.rcca is None else self.head.rcca.recurrence

    @recurrence.setter
    def recurrence(self, times: int) -> None:
        if self.head.rcca is None and times:
            raise ValueError("the model was built without attention (recurrence 0)")
        if self.head.rcca is not None:
            self.head.rcca.recurrence = times

    @property
    def gamma(self) -> float:
        """The weight of what the attention gathers; 0 for R = 0."""
        return 0.0 if self.head.rcca is None else self.head.rcca.attention.gamma.item()


def build(model: config.Model, classes: int, recompute: bool = False) -> CCNet:
    """The network that a preset describes, freshly initialised; recompute trades time for training memory."""
    backbone = build_backbone(model.backbone, model.width, model.stem, model.dilation, model.pool, recompute)
    c3, c4 = backbone.channels
    rcca = auxiliary = None
    if model.recurrence:
        attention = CrissCrossAttention(model.channels, model.query_channels, model.implementation)
        rcca = RecurrentCrissCross(attention, model.recurrence)
    if model.auxiliary:
        auxiliary = FCNHead(
            c3, model.auxiliary_channels, classes, model.dropout, model.activation, model.auxiliary_bias
        )
    return CCNet(
        backbone=backbone,
        head=RCCAHead(c4, model.channels, classes, rcca, model.dropout, model.activation),
        auxiliary=auxiliary,
        normalisation=Normalisation(model.channel_order, model.mean, model.std),
        align_corners=model.align_corners,
    )


def share(gpus: int | None, processes: int, name: str) -> torch.device:
    """The device of one of so many processes of this machine; each takes a GPU of its own where it is CUDA."""
    if gpus and processes > 1:
        raise InputError("option --processes", "--gpus is given too", "give one of them")
    if gpus and gpus > torch.cuda.device_count():
        raise InputError(
            f"option --gpus {gpus}", f"this machine has {torch.cuda.device_count()}", "use fewer, or --processes"
        )
    return device("cuda" if gpus else "cpu" if processes > 1 else name)


def device(name: str = "auto") -> torch.device:
    """The device of a name: auto (CUDA where there is one), cpu, cuda or cuda:N; InputError where it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise InputError(f"device {name}", "unknown", "use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {name}", "torch sees no GPU here", "use --device cpu, or install a CUDA build of torch"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise InputError(f"device {name}", f"this machine has {torch.cuda.device_count()}", "count from cuda:0")
    return torch.device(name)


def precision(name: str, device: torch.device, tell: Callable[[str], None] = notice) -> str:
    """The name of one of PRECISIONS; for auto bf16 where the device computes in it, else fp32, which a notice tells."""
    if name != "auto":
        if name not in PRECISIONS:
            raise InputError(f"precision {name}", "unknown", f"use one of auto, {', '.join(PRECISIONS)}")
        return name
    native = computes_bf16(device)
    where = "GPU" if device.type == "cuda" else "processor"
    found = "bf16" if native else "fp32"
    tell(f"precision {found}: this {where} {'has' if native else 'has no'} instructions for bfloat16")
    return found


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
