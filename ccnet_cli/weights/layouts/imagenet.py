"""ResNets trained on ImageNet, of MIT, semseg, PyTorch-Encoding, open-mmlab (v1c), timm and torchvision.

Their classifier is left out. MIT's files exist in two generations under the same addresses: of 2018, for values from 0
to 255, blue first, and since August 2019 for values of unit deviation, red first, as everybody else's.
"""

from typing import Any

from torch import Tensor

from ccnet_cli.weights.layouts.layout import Foreign, Table, rename
from ccnet_cli.weights.layouts.network import MIT_INPUT, OTHERS_BACKBONE, TORCHVISION_INPUT, V1C_STEM, resnet_of

BACKBONE: Table = (("", "backbone."),)
# the first words of a ResNet's weights: with others it has a head
OWN_NAMES = ("conv", "bn", "stem.", "layer1.", "layer2.", "layer3.", "layer4.", "fc.", "head.fc.")
# whose a ResNet is, by its stem
OWNERS = {"deep": "MIT's", "v1c": "open-mmlab's v1c", "7x7": "torchvision's"}
# a stem as a sequence, whose last norm stands outside of it
SEQUENCE: Table = (
    *((theirs.replace("stem.", "conv1."), ours) for theirs, ours in V1C_STEM[:5]),
    ("bn1.", "backbone.bn3."),
)
# by the first convolution's name
STEMS: dict[str, Table] = {"conv1": (), "stem.0": V1C_STEM, "conv1.0": SEQUENCE}
# of the first convolution's weights: where pixels are divided by their deviation, which is about 57, it is 0.05 or more
MAX_DEVIATION_FOR_PIXELS = 0.02


def recognise(state: dict[str, Tensor], _: dict[str, Any]) -> Foreign | None:
    """A ResNet without a segmentation head, its names perhaps below `backbone`."""
    if "backbone.layer4.0.conv1.weight" in state and not any(k.startswith(("decode_head", "auxiliary")) for k in state):
        state = {key.removeprefix("backbone."): tensor for key, tensor in state.items()}
    stem = next((name for name in STEMS if f"{name}.weight" in state), None)
    if "layer4.0.conv1.weight" not in state or stem is None:
        return None
    if not all(key.startswith(OWN_NAMES) for key in state):
        return None
    dropped = [key for key in state if key.startswith(("fc.", "head.fc."))]
    table = (*STEMS[stem], *BACKBONE)
    weights = rename({key: tensor for key, tensor in state.items() if key not in dropped}, table)
    resnet = resnet_of(weights)
    for_pixels = float(weights["backbone.conv1.weight"].float().std()) < MAX_DEVIATION_FOR_PIXELS
    model = {"backbone": {**resnet, **OTHERS_BACKBONE}, **(MIT_INPUT if for_pixels else TORCHVISION_INPUT)}
    done = [
        "a backbone alone",
        "for pixels from 0 to 255, blue first" if for_pixels else "for pixels of unit deviation, red first",
        *([f"{dropped[0].rpartition('.')[0]} left out"] if dropped else []),
    ]
    owner = OWNERS[resnet["stem"]] if stem != "conv1.0" or resnet["stem"] == "v1c" else "PyTorch-Encoding's"
    return Foreign(f"{owner} {resnet['kind']}", model, weights, table, done=tuple(done))
