"""Networks of one project, which differ in their heads: by which weights each is known, and what it is of ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ccnet_cli.models.backbones.resnet import RESNETS, Bottleneck
from ccnet_cli.models.settings import Model
from ccnet_cli.weights.layouts.abn import give_abn_scales, take_absolute_scales
from ccnet_cli.weights.layouts.layout import Foreign, Misfit, Table, original_name, rename
from ccnet_cli.weights.layouts.network import segmenter

Weights = Mapping[str, Tensor]
# keys without effect on what a trained network answers
FREE = ("dropout", "implementation")


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


def export(networks: Sequence[Network], state: Weights, model: Model) -> dict[str, Tensor]:
    """Our weights as those of one of the networks; Misfit unless reading them gives this model again."""
    for network in networks:
        # in-place ABN counts no batches
        ours = {key: t.clone() for key, t in state.items() if not (network.abn and key.endswith("num_batches_tracked"))}
        if network.abn:
            give_abn_scales(ours)
        theirs = {original_name(key, network.table): tensor for key, tensor in ours.items()}
        try:
            foreign = recognise([network], theirs)
        except Misfit:
            continue
        if foreign is not None and foreign.weights.keys() == ours.keys() and is_same(foreign.model, model):
            return theirs
    names = ", ".join(dict.fromkeys(network.what for network in networks))
    raise Misfit(f"the model is none of {names}", "use --format weights")


def is_same(theirs: dict[str, Any], model: Model) -> bool:
    """Whether two networks compute the same from the same weights; what is left to the shapes does not count."""
    try:
        one, other = Model.model_validate(theirs).model_dump(mode="json"), model.model_dump(mode="json")
    except ValueError:
        return False
    for each in (one, other):
        _name_alike(each["backbone"], each["head"])
    for key, value in other.items():
        if not isinstance(value, dict) or not isinstance(one[key], dict):
            if value != one[key]:
                return False
        elif value["kind"] != one[key]["kind"] or any(
            own not in (None, one[key][name]) for name, own in value.items() if name not in FREE
        ):
            return False
    return True


def _name_alike(backbone: dict[str, Any], head: dict[str, Any]) -> None:
    """Give what is the same one name: rules of dilation on a backbone, and what an attention is that never runs."""
    block, _ = RESNETS.get(backbone["kind"], (None, ()))
    if backbone.get("stride") == 32 or (block is Bottleneck and backbone["dilation"] != "dilated"):
        backbone["dilation"] = "contracted"
    if head.get("recurrence") == 0:
        head["query_channels"] = None


def pairs(theirs: str, ours: str, at: int = 0, first: int = 0) -> Table:
    """A convolution and its norm, at indices of a sequence: theirs from `first`, ours from `at`."""
    return tuple((f"{theirs}.{first + i}.", f"{ours}.{at + i}.") for i in (0, 1))
