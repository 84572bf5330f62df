"""What the names and shapes of weights say of a network, once they have our names."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ccnet_cli.models.backbones.resnet import RESNETS, Bottleneck
from ccnet_cli.weights.layouts.layout import Foreign, Misfit, Table, original_name

ATTENTION = "head.rcca.attention."
REQUIRED = ("head.conva.0.weight", "head.bottleneck.4.weight")
# what an image network of these owners expects; torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 in 0..255
AUTHORS_INPUT: dict[str, Any] = {
    "channel_order": "bgr",
    "mean": [104.00698793, 116.66876762, 122.67891434],
    "std": [1.0, 1.0, 1.0],
}
MIT_INPUT: dict[str, Any] = {"channel_order": "bgr", "mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0]}
TORCHVISION_INPUT: dict[str, Any] = {
    "channel_order": "rgb",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
}
AUTHORS_BACKBONE = {"dilation": "dilated", "pool": "ceil"}
MMSEG_BACKBONE = {"dilation": "mmseg", "pool": "floor"}
OTHERS_BACKBONE = {"dilation": "contracted", "pool": "floor"}
# the classifier of a head whose last layer is not called classify
CLASSIFIERS = {
    **dict.fromkeys(("rcca", "wrapped", "nonlocal", "gc"), "head.bottleneck.4.weight"),
    "fcn": "head.4.weight",
}
WHOLE_FILE = "give the whole file"
# the stem of open-mmlab's v1c
V1C_STEM: Table = tuple(
    (f"stem.{index}.", f"backbone.{name}.")
    for index, name in zip((0, 1, 3, 4, 6, 7), ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"), strict=True)
)


def ccnet(
    what: str,
    weights: dict[str, Tensor],
    table: Table,
    *,
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    others: Mapping[str, Any],
    done: Sequence[str],
) -> Foreign:
    """A whole CCNet: what its shapes say, beside the keys of backbone, head and model that its layout fixes."""
    resnet = resnet_of(weights)
    missing = [key for key in REQUIRED if key not in weights]
    if missing:
        raise Misfit(f"{what}, but {original_name(missing[0], table)} is missing", WHOLE_FILE)
    classes = len(weights["head.bottleneck.4.weight"])
    rcca = {"kind": "rcca", "recurrence": 2, "channels": len(weights["head.conva.0.weight"]), **head}
    if f"{ATTENTION}query_conv.weight" in weights:
        rcca["query_channels"] = len(weights[f"{ATTENTION}query_conv.weight"])
    else:
        rcca["recurrence"] = 0
        done = [note for note in done if "recurrence" not in note]
    auxiliary = None
    if "auxiliary.0.weight" in weights:
        shape = {"channels": len(weights["auxiliary.0.weight"]), "bias": "auxiliary.0.bias" in weights}
        auxiliary = {"kind": "fcn", **shape, "activation": rcca["activation"]}
    model = {"backbone": {**resnet, **backbone}, "head": rcca, "auxiliary": auxiliary, **others}
    return Foreign(f"{what}, {resnet['kind']}, {classes} classes", model, weights, table, classes, done=tuple(done))


def segmenter(
    what: str,
    weights: dict[str, Tensor],
    table: Table,
    *,
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    others: Mapping[str, Any],
    done: Sequence[str] = (),
) -> Foreign:
    """A whole network with the head of these settings; its auxiliary head is what the shapes say."""
    resnet = resnet_of(weights)
    classifier = CLASSIFIERS.get(head["kind"], "head.classify.1.weight")
    if classifier not in weights:
        raise Misfit(f"{what}, but {original_name(classifier, table)} is missing", WHOLE_FILE)
    classes = len(weights[classifier])
    auxiliary = None
    if "auxiliary.0.weight" in weights:
        shape = {"channels": len(weights["auxiliary.0.weight"]), "bias": "auxiliary.0.bias" in weights}
        auxiliary = {"kind": "fcn", **shape, "activation": head.get("activation", "relu")}
    model = {"backbone": {**resnet, **backbone}, "head": dict(head), "auxiliary": auxiliary, **others}
    return Foreign(f"{what}, {resnet['kind']}, {classes} classes", model, weights, table, classes, done=tuple(done))


def resnet_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Kind, width and stem of a ResNet; Misfit for a residual network of another kind."""
    depths = tuple(
        len({key.split(".")[2] for key in weights if key.startswith(f"backbone.layer{layer}.")})
        for layer in range(1, 5)
    )
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    kinds = [
        name for name, (block, blocks) in RESNETS.items() if blocks == depths and (block is Bottleneck) == bottleneck
    ]
    try:
        first = weights["backbone.layer1.0.conv2.weight"]
        last = weights[f"backbone.layer1.0.{'conv3' if bottleneck else 'conv2'}.weight"]
        kernel, width = weights["backbone.conv1.weight"].shape[-1], len(first)
        stem = "7x7" if kernel == 7 else "deep" if len(weights["backbone.conv3.weight"]) == 2 * width else "v1c"
        plain = first.shape[1] == width and len(last) == width * (4 if bottleneck else 1)
    except (KeyError, IndexError, TypeError):
        raise Misfit("a ResNet with parts missing", WHOLE_FILE) from None
    if not kinds or not plain:
        kind = "wide or grouped" if kinds else f"of {'-'.join(map(str, depths))} blocks"
        raise Misfit(f"a residual network {kind}")
    return {"kind": kinds[0], "width": width, "stem": stem}


def is_scale(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the key is a batch norm's scale: it has running statistics beside it."""
    return key.endswith(".weight") and f"{key.removesuffix('weight')}running_mean" in state
