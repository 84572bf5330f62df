"""Other people's weight files: recognised by their keys and shapes, renamed to ours, converted to what ours compute.

| layout | told by | converted |
|---|---|---|
| the authors' CCNet | `head.conva`, `head.bottleneck.3` | scales w of in-place ABN become abs(w) + 1e-5 |
| its plain PyTorch port | `head.conva`, `head.bottleneck.4` | |
| mmsegmentation's CCNet | `decode_head.cca` | gamma from 0-d to 1-d |
| ResNets of MIT, open-mmlab (v1c), torchvision | `layer4` without a head | `fc` left out |
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ccnet_cli import config
from ccnet_cli.config import migration
from ccnet_cli.datasets import known_classes
from ccnet_cli.errors import InputError
from ccnet_cli.models.backbones.resnet import RESNETS, Bottleneck

# theirs -> ours: the first prefix that fits is exchanged
Table = tuple[tuple[str, str], ...]
PORT: Table = (
    ("head.cca.", "head.rcca.attention."),
    ("head.", "head."),
    ("dsn.", "auxiliary."),
    ("", "backbone."),
)
# the activation is inside their batch norm, so what follows stands one place earlier
OFFICIAL: Table = (("head.bottleneck.3.", "head.bottleneck.4."), ("dsn.3.", "auxiliary.4."), *PORT)
STEM: Table = tuple(
    (f"stem.{index}.", f"backbone.{name}.")
    for index, name in zip((0, 1, 3, 4, 6, 7), ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"), strict=True)
)
BACKBONE: Table = (("", "backbone."),)
MMSEG: Table = (
    *((f"backbone.{theirs}", ours) for theirs, ours in STEM),
    ("backbone.", "backbone."),
    ("decode_head.cca.gamma.scale", "head.rcca.attention.gamma"),
    ("decode_head.cca.", "head.rcca.attention."),
    ("decode_head.convs.0.conv.", "head.conva.0."),
    ("decode_head.convs.0.bn.", "head.conva.1."),
    ("decode_head.convs.1.conv.", "head.convb.0."),
    ("decode_head.convs.1.bn.", "head.convb.1."),
    ("decode_head.conv_cat.conv.", "head.bottleneck.0."),
    ("decode_head.conv_cat.bn.", "head.bottleneck.1."),
    ("decode_head.conv_seg.", "head.bottleneck.4."),
    ("auxiliary_head.convs.0.conv.", "auxiliary.0."),
    ("auxiliary_head.convs.0.bn.", "auxiliary.1."),
    ("auxiliary_head.conv_seg.", "auxiliary.4."),
)

AUTHORS_INPUT = {
    "channel_order": "bgr",
    "mean": [104.00698793, 116.66876762, 122.67891434],
    "std": [1.0, 1.0, 1.0],
}
MIT_INPUT = {"channel_order": "bgr", "mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0]}
# torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 in 0..255; mmsegmentation's are the same
IMAGENET_INPUT = {"channel_order": "rgb", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
AUTHORS_TRUNK = {"dilation": "dilated", "pool": "ceil"}
OTHERS_TRUNK = {"dilation": "contracted", "pool": "floor"}

# what in-place ABN adds to the absolute value of its scale
ABN_EPS = 1e-5
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "module", "weights")
KNOWN = "the authors' CCNet, its PyTorch port, mmsegmentation's CCNet, ResNets of MIT, open-mmlab (v1c) and torchvision"
# keys that tell other networks apart from ours
OTHERS = {
    "psp_modules": "a PSPNet",
    "ppm.": "a PSPNet",
    "aspp": "a DeepLab",
    "classifier.": "a segmentation or classification network of another kind",
    "transformer": "a transformer",
    "blocks.0.attn": "a transformer",
    "features.": "a VGG or DenseNet",
}


@dataclass(frozen=True)
class Foreign:
    """A recognised file: weights under our names, the keys of config.Model that it fixes, and what was done to it.

    classes is None for a backbone alone; names and palette are those that the file itself tells. table leads from its
    names to ours.
    """

    what: str
    model: dict[str, Any]
    weights: dict[str, Tensor]
    table: Table
    classes: int | None = None
    names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    done: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "; ".join([self.what, *self.done])

    def theirs(self, key: str) -> str:
        """Our name of a weight as the file would have it."""
        return next((mine + key.removeprefix(ours) for mine, ours in self.table if key.startswith(ours)), key)


def recognise(content: Any, path: Path) -> Foreign:
    """What a file of weights is, converted to our names and rules; InputError tells what it is not.

    content is what torchfile.read gave: a state dict, or one below a wrapper such as `state_dict` or `model`.
    """
    state, meta = _state(content, path)
    if any(key.startswith("decode_head.cca.") for key in state):
        return _mmseg(state, meta, path)
    if "head.conva.0.weight" in state and "conv1.weight" in state:
        return _authors(state, _recurrence(content), path)
    if "backbone.layer4.0.conv1.weight" in state and not any(k.startswith(("decode_head", "auxiliary")) for k in state):
        state = {key.removeprefix("backbone."): tensor for key, tensor in state.items()}
    if "layer4.0.conv1.weight" in state and {"conv1.weight", "stem.0.weight"} & state.keys():
        return _backbone(state, path)
    raise _unknown(state, path)


def preset(found: Foreign, name: str | None = None, overrides: Sequence[str] = ()) -> config.Preset:
    """The preset to use a file with: the named one, or what the file tells; then overrides, each "key=value"."""
    if name is not None:
        return config.load(name, overrides)
    dataset = _dataset(found)
    mapping = config.to_mapping(config.load(_recipe(found, dataset)))
    mapping |= {"name": "inferred", "description": found.what, "source": "", "published": None}
    migration.assign(mapping, found.model)
    if dataset is None and found.classes is not None:
        names = found.names or tuple(f"class {index}" for index in range(found.classes))
        palette = None if found.palette is None else [list(colour) for colour in found.palette]
        mapping["data"] |= {"dataset": "folder", "root": None, "classes": list(names), "palette": palette}
    elif dataset is not None and dataset != mapping["data"]["dataset"]:
        mapping["data"] |= {"dataset": dataset, "root": None}
    for text in overrides:
        config.override(mapping, text)
    return config.from_mapping(mapping)


def unlike(trained: Mapping[str, Any], settings: config.Model) -> list[str]:
    """The keys in which a network was trained in another way than settings say, and weights cannot make up for it.

    A backbone alone tells nothing of dilation, rounding and head: ImageNet networks are trained without any.
    """
    keys = ["channel_order", "std", *(["dilation", "pool", "activation"] if "channels" in trained else [])]
    new = migration.flat(settings.model_dump(mode="json"))
    differing = [f"model.{key}" for key in keys if key in trained and trained[key] != new.get(key)]
    # a level or two apart is how recipes differ, and is made up for at once
    if any(abs(before - now) > 4 for before, now in zip(trained.get("mean", new["mean"]), new["mean"], strict=True)):
        differing.append("model.mean")
    return differing


def other_shapes(trained: Mapping[str, Any], settings: config.Model) -> list[str]:
    """The keys, as KEY=VALUE, that settings would need for a network's weights to fit."""
    keys = ("backbone", "width", "stem", "channels", "query_channels", "auxiliary_channels", "auxiliary_bias")
    new = migration.flat(settings.model_dump(mode="json"))
    new["query_channels"] = new.get("query_channels") or max(new.get("channels", 8) // 8, 1)
    return [f"model.{key}={trained[key]}" for key in keys if key in trained and trained[key] != new.get(key)]


def is_scale(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the key is a batch norm's scale: it has running statistics beside it."""
    return key.endswith(".weight") and f"{key.removesuffix('weight')}running_mean" in state


def _state(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a file, prefixes of wrappers removed, and what stands beside it under meta."""
    fix = f"known are {KNOWN}"
    if not isinstance(content, dict):
        raise InputError(path, f"holds a {type(content).__name__}, not a state dict", fix)
    inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
    state = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if len(state) < len(inner) or not state:
        odd = next((f"{key} ({type(value).__name__})" for key, value in inner.items() if key not in state), "nothing")
        raise InputError(path, f"no state dict of tensors: holds {odd}", fix)
    for prefix in ("module.", "_orig_mod."):
        while all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    meta = content.get("meta")
    return state, meta if isinstance(meta, dict) else {}


def _renamed(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        ours = next((ours + key.removeprefix(theirs) for theirs, ours in table if key.startswith(theirs)), key)
        renamed[ours] = tensor
    return renamed


def _recurrence(content: dict[str, Any]) -> int | None:
    """R, where somebody kept it beside the weights, as the authors' option of that name."""
    for kept in (content, content.get("args"), content.get("config")):
        value = kept.get("recurrence") if isinstance(kept, dict) else None
        if isinstance(value, int) and 0 <= value <= 3:
            return value
    return None


def _authors(state: dict[str, Tensor], recurrence: int | None, path: Path) -> Foreign:
    """The authors' layout: in-place ABN if the head's last convolution follows its norm directly, else the port."""
    abn = "head.bottleneck.3.weight" in state
    table = OFFICIAL if abn else PORT
    weights = _renamed(state, table)
    done = []
    if abn:
        scales = [key for key in weights if is_scale(key, weights)]
        for key in scales:
            weights[key] = weights[key].abs() + ABN_EPS
        done.append(f"{len(scales)} batch-norm scales w taken as abs(w) + 1e-5, as in-place ABN does")
    if recurrence is None:
        done.append("recurrence is not in the file, taken as 2 (model.recurrence)")
    what = "the authors' CCNet" if abn else "a plain PyTorch port of the authors' CCNet"
    traits = {"activation": "leaky_relu" if abn else "relu", **AUTHORS_TRUNK, **AUTHORS_INPUT, "align_corners": True}
    traits["recurrence"] = 2 if recurrence is None else recurrence
    return _network(what, weights, table, traits, done, path)


def _mmseg(state: dict[str, Tensor], meta: dict[str, Any], path: Path) -> Foreign:
    """mmsegmentation's CCNet; meta of both generations tells class names, colours and the configuration's text."""
    told = {name: state.pop(f"data_preprocessor.{name}", None) for name in ("mean", "std")}
    weights = _renamed(state, MMSEG)
    gamma = weights.get("head.rcca.attention.gamma")
    if gamma is not None:
        weights["head.rcca.attention.gamma"] = gamma.reshape(1)
    traits: dict[str, Any] = {"activation": "relu", **OTHERS_TRUNK, **IMAGENET_INPUT}
    traits |= {name: [float(v) for v in value.flatten()] for name, value in told.items() if value is not None}
    text = str(meta.get("config") or meta.get("cfg") or "")
    aligned = re.search(r"decode_head\b(?:(?!auxiliary_head).)*?\balign_corners'?\s*[=:]\s*(True|False)", text, re.S)
    recurrence = re.search(r"\brecurrence'?\s*[=:]\s*([0-3])\b", text)
    traits["align_corners"] = bool(aligned) and aligned[1] == "True"
    done = ["names and gamma's shape changed"]
    if not aligned:
        done.append("align_corners is not in the file, taken as false (model.align_corners)")
    traits["recurrence"] = int(recurrence[1]) if recurrence else 2
    found = _network("mmsegmentation's CCNet", weights, MMSEG, traits, done, path)
    described = meta.get("dataset_meta") if isinstance(meta.get("dataset_meta"), dict) else meta
    names = described.get("classes") or described.get("CLASSES")
    palette = described.get("palette") or described.get("PALETTE")
    return _with_classes(found, names, palette)


def _with_classes(found: Foreign, names: Any, palette: Any) -> Foreign:
    """The names and colours that a file tells, where they are as many as its classes."""
    if isinstance(names, list | tuple) and len({str(name) for name in names}) == len(names) == found.classes:
        found = replace(found, names=tuple(str(name) for name in names))
        colours = [tuple(colour) for colour in palette] if isinstance(palette, list | tuple) else []
        if len(colours) == found.classes and all(
            len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in colours
        ):
            found = replace(found, palette=tuple((int(r), int(g), int(b)) for r, g, b in colours))
    return found


def _backbone(state: dict[str, Tensor], path: Path) -> Foreign:
    """A ResNet trained on ImageNet; its classifier is left out."""
    dropped = [key for key in state if key.startswith(("fc.", "head.fc."))]
    table = (*STEM, *BACKBONE) if "stem.0.weight" in state else BACKBONE
    weights = _renamed({key: tensor for key, tensor in state.items() if key not in dropped}, table)
    trunk = _trunk(weights, path)
    owner, expected = {
        "deep": ("MIT's", MIT_INPUT),
        "v1c": ("open-mmlab's v1c", IMAGENET_INPUT),
        "7x7": ("torchvision's", IMAGENET_INPUT),
    }[trunk["stem"]]
    model = {**trunk, **OTHERS_TRUNK, **expected}
    done = ("a backbone alone", *([f"{dropped[0].rpartition('.')[0]} left out"] if dropped else []))
    return Foreign(f"{owner} {trunk['backbone']}", model, weights, table, done=done)


def _network(
    what: str, weights: dict[str, Tensor], table: Table, traits: dict[str, Any], done: Sequence[str], path: Path
) -> Foreign:
    """A whole CCNet: what its tensors' shapes tell beside its traits."""
    trunk = _trunk(weights, path)
    needed = ("head.conva.0.weight", "head.bottleneck.4.weight")
    missing = [key for key in needed if key not in weights]
    if missing:
        why = f"{what}, but {Foreign('', {}, {}, table).theirs(missing[0])} is missing"
        raise InputError(path, why, "give the whole file")
    attention = "head.rcca.attention."
    classes, channels = len(weights["head.bottleneck.4.weight"]), len(weights["head.conva.0.weight"])
    model: dict[str, Any] = {**trunk, "recurrence": 2, "channels": channels, **traits}
    if f"{attention}query_conv.weight" in weights:
        model["query_channels"] = len(weights[f"{attention}query_conv.weight"])
    else:
        model["recurrence"] = 0
        done = [note for note in done if "recurrence" not in note]
    model["auxiliary"] = "auxiliary.0.weight" in weights
    if model["auxiliary"]:
        model["auxiliary_channels"] = len(weights["auxiliary.0.weight"])
        model["auxiliary_bias"] = "auxiliary.0.bias" in weights
    what = f"{what}, {trunk['backbone']}, {classes} classes"
    return Foreign(what, model, weights, table, classes, done=tuple(done))


def _trunk(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Backbone, width and stem by keys and shapes; InputError for a residual network of another kind."""
    depths = tuple(
        len({key.split(".")[2] for key in weights if key.startswith(f"backbone.layer{layer}.")})
        for layer in range(1, 5)
    )
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    fits = [
        name for name, (block, blocks) in RESNETS.items() if blocks == depths and (block is Bottleneck) == bottleneck
    ]
    fix = f"known are {KNOWN}"
    try:
        first = weights["backbone.layer1.0.conv2.weight"]
        last = weights[f"backbone.layer1.0.{'conv3' if bottleneck else 'conv2'}.weight"]
        kernel, width = weights["backbone.conv1.weight"].shape[-1], len(first)
        stem = "7x7" if kernel == 7 else "deep" if len(weights["backbone.conv3.weight"]) == 2 * width else "v1c"
        plain = first.shape[1] == width and len(last) == width * (4 if bottleneck else 1)
    except (KeyError, IndexError, TypeError):
        raise InputError(path, "a ResNet with parts missing", "give the whole file") from None
    if not fits or not plain:
        kind = "wide or grouped" if fits else f"of {'-'.join(map(str, depths))} blocks"
        raise InputError(path, f"a residual network {kind}", fix)
    return {"backbone": fits[0], "width": width, "stem": stem}


def _dataset(found: Foreign) -> str | None:
    """The data set whose classes the file has, by their names, or their number where it tells no names."""
    for name, classes in known_classes().items():
        same = found.names is None or [_letters(n) for n in found.names] == [_letters(n) for n in classes.names]
        if len(classes) == found.classes and same:
            return name
    return None


def _letters(name: str) -> str:
    """A class's name without what spellings differ in: Left-arm and left arm are one."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _recipe(found: Foreign, dataset: str | None) -> str:
    """The preset whose data and evaluation fit a file."""
    if found.table is MMSEG and dataset == "cityscapes":
        return f"mmseg-r101-cityscapes-{'769' if found.model['align_corners'] else '512x1024'}-80k"
    own = {"camvid": "camvid", "ade20k": "mmseg-r101-ade20k-512-160k", "voc": "mmseg-r101-voc-512-40k"}
    return own.get(dataset or "", "cityscapes-r2-ohem")


def _unknown(state: Mapping[str, Tensor], path: Path) -> InputError:
    keys = list(state)
    kind = next((what for mark, what in OTHERS.items() if any(mark in key for key in keys)), "no network known here")
    if any(key.startswith(("backbone.", "head.rcca", "head.conva")) for key in keys) and "decode_head" not in str(keys):
        kind = "weights of ccnet without their preset, or a network of another kind"
    named = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return InputError(path, f"{kind}: it holds {named}", f"known are {KNOWN}")
