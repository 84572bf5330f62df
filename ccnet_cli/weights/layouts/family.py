"""Networks of one project, which differ in their heads: by which weights each is known, and what it is of ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ccnet_cli.weights.layouts.layout import Foreign, Misfit, Table, original_name, rename
from ccnet_cli.weights.layouts.network import is_scale, segmenter

Weights = Mapping[str, Tensor]
# what in-place ABN adds to the absolute value of its scale
ABN_EPS = 1e-5


@dataclass(frozen=True)
class Network:
    """A network that has all the weights `marks`; settings says of our weights how the head is set.

    input and align_corners are the section model's; abn is whether its norms are in-place ABN; unused are the first
    words of weights that it never runs.
    """

    what: str
    marks: tuple[str, ...]
    table: Table
    settings: Callable[[Weights], dict[str, Any]]
    backbone: Mapping[str, Any]
    input: Mapping[str, Any]
    align_corners: bool = True
    abn: bool = False
    auxiliary: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def recognise(networks: Sequence[Network], state: Weights) -> Foreign | None:
    """The first of the networks whose marks a file has."""
    network = next((each for each in networks if all(mark in state for mark in each.marks)), None)
    if network is None:
        return None
    left_out = [key for key in state if network.unused and key.startswith(network.unused)]
    weights = rename({key: tensor for key, tensor in state.items() if key not in left_out}, network.table)
    done = ["names changed", *([f"{left_out[0].rpartition('.')[0]} left out"] if left_out else [])]
    if network.abn:
        done.append(take_absolute_scales(weights))
    try:
        settings = network.settings(weights)
    except KeyError as error:
        missing = original_name(str(error.args[0]), network.table)
        raise Misfit(f"{network.what}, but {missing} is missing", "give the whole file") from None
    foreign = segmenter(
        network.what,
        weights,
        network.table,
        backbone=network.backbone,
        head=settings,
        others={**network.input, "align_corners": network.align_corners},
        done=done,
    )
    if foreign.model["auxiliary"] is not None:
        foreign.model["auxiliary"] |= network.auxiliary
    return foreign


def take_absolute_scales(weights: dict[str, Tensor]) -> str:
    """Turn the scales of in-place ABN into plain ones, and say how many there are."""
    scales = [key for key in weights if is_scale(key, weights)]
    for key in scales:
        weights[key] = weights[key].abs() + ABN_EPS
    return f"{len(scales)} batch-norm scales w taken as abs(w) + 1e-5, as in-place ABN does"


def pairs(theirs: str, ours: str, at: int = 0, first: int = 0) -> Table:
    """A convolution and its norm, at indices of a sequence: theirs from `first`, ours from `at`."""
    return tuple((f"{theirs}.{first + i}.", f"{ours}.{at + i}.") for i in (0, 1))
