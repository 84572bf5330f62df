"""ResNets trained on ImageNet: MIT's, open-mmlab's (v1c) and torchvision's; their classifier is left out."""

from typing import Any

from torch import Tensor

from ccnet_cli.weights.layouts.layout import Foreign, Table, rename
from ccnet_cli.weights.layouts.network import MIT_INPUT, OTHERS_BACKBONE, TORCHVISION_INPUT, V1C_STEM, resnet_of

BACKBONE: Table = (("", "backbone."),)
# the first words of a ResNet's weights: with others it has a head
OWN_NAMES = ("conv", "bn", "stem.", "layer1.", "layer2.", "layer3.", "layer4.", "fc.", "head.fc.")
# whose a ResNet is, by its stem
OWNERS = {
    "deep": ("MIT's", MIT_INPUT),
    "v1c": ("open-mmlab's v1c", TORCHVISION_INPUT),
    "7x7": ("torchvision's", TORCHVISION_INPUT),
}


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """A ResNet without a segmentation head, its names perhaps below `backbone`."""
    if "backbone.layer4.0.conv1.weight" in state and not any(k.startswith(("decode_head", "auxiliary")) for k in state):
        state = {key.removeprefix("backbone."): tensor for key, tensor in state.items()}
    if "layer4.0.conv1.weight" not in state or not {"conv1.weight", "stem.0.weight"} & state.keys():
        return None
    if not all(key.startswith(OWN_NAMES) for key in state):
        return None
    dropped = [key for key in state if key.startswith(("fc.", "head.fc."))]
    table = (*V1C_STEM, *BACKBONE) if "stem.0.weight" in state else BACKBONE
    weights = rename({key: tensor for key, tensor in state.items() if key not in dropped}, table)
    resnet = resnet_of(weights)
    owner, expected_input = OWNERS[resnet["stem"]]
    model = {"backbone": {**resnet, **OTHERS_BACKBONE}, **expected_input}
    done = ("a backbone alone", *([f"{dropped[0].rpartition('.')[0]} left out"] if dropped else []))
    return Foreign(f"{owner} {resnet['kind']}", model, weights, table, done=done)
