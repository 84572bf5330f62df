"""The criss-cross operators and the table of their implementations; torch loads with the first operator.

Shape legend of this package: B batch, C channels, S the axes of the grid: height H and width W of an image; frames T, H
and W of a clip; or more. P, their sum, is the number of entries on a position's cross, an arm for each axis in order:
the H positions of its column, then the W positions of its row. The position itself lies on every arm and is masked on
all but the last. A name's suffix spells its axes in order: ``value_BCS`` is (B, C, H, W) or (B, C, T, H, W).
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccnet_cli.ops.choice import Choices, use
    from ccnet_cli.ops.convolution import Conv2d, accelerate
    from ccnet_cli.ops.operators import affinity, aggregate, criss_cross, residual, scatter

__all__ = [
    "IMPLEMENTATIONS",
    "Choices",
    "Conv2d",
    "Implementation",
    "accelerate",
    "affinity",
    "aggregate",
    "criss_cross",
    "implementations",
    "residual",
    "scatter",
    "use",
]


@dataclass(frozen=True)
class Implementation:
    """A module, or its name, with `affinity`, `aggregate` and `scatter` as in reference.py, for any or for one device.

    `criss_cross` and `criss_cross_backward`, as in gemm.py, are composed of these three where the module has none.
    `attention_width(*S)` is the size of a position's attention between the two, the sum P without such a function. rest
    is the name of the implementation that computes what this one does not have.
    """

    anywhere: Any = None
    cpu: Any = None
    cuda: Any = None
    rest: str | None = None

    def on(self, device: str) -> Any:
        """The module, or its name, for a type of device; None where there is none."""
        # on the meta device, shapes are worked out for any other
        return {"cpu": self.cpu, "cuda": self.cuda, "meta": self.cuda or self.cpu}.get(device) or self.anywhere


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation("ccnet_cli.ops.reference"),
    "gemm": Implementation("ccnet_cli.ops.gemm", cuda="ccnet_cli.ops.padded"),
    "flash": Implementation("ccnet_cli.ops.flash", rest="gemm"),
    "numba": Implementation(cpu="ccnet_cli.ops.cpu", cuda="ccnet_cli.ops.cuda"),
}


def implementations(device: str = "cpu") -> tuple[str, ...]:
    """Names that `implementation` accepts besides "auto" for tensors on a device, the definition first."""
    return tuple(name for name, one in IMPLEMENTATIONS.items() if one.on(device.partition(":")[0]))


def __getattr__(name: str) -> Any:
    """Import torch's part of this package when a name of it is first used, all of it: it registers the operators."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = [import_module(f"{__name__}.{module}") for module in ("choice", "convolution", "operators")]
    globals()[name] = value = next(getattr(module, name) for module in modules if hasattr(module, name))
    return value
