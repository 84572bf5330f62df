"""Other people's weight files: recognised by their names and shapes, converted to what ours compute.

| layout | recognised by | converted |
|---|---|---|
| the authors' CCNet | `head.conva`, `head.bottleneck.3` | scales w of in-place ABN become abs(w) + 1e-5 |
| its plain PyTorch port | `head.conva`, `head.bottleneck.4` | |
| mmsegmentation's CCNet | `decode_head.cca` | gamma from 0-d to 1-d |
| mmsegmentation's other heads, see layouts/mmseg_heads.py | `decode_head` | gammas from 0-d to 1-d |
| toolbox, OCNet, openseg, DANet, semseg, PyTorch-Encoding, torchvision | their heads' names | in-place ABN as above |
| MIT CSAIL's pairs of files, see pairs.py | `encoder.` and `decoder.` | counters of its norms left out |
| ResNets of MIT, open-mmlab (v1c), torchvision | `layer4` without a head | `fc` left out |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ccnet_cli.errors import InputError
from ccnet_cli.weights import catalogue
from ccnet_cli.weights.layouts import LAYOUTS, Foreign, Misfit

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "module", "weights")
# prefixes that DistributedDataParallel and torch.compile put before every name
PREFIXES = ("module.", "_orig_mod.")
OWN = tuple(LAYOUTS)
KNOWN = (
    "the authors' CCNet, its PyTorch port, mmsegmentation's CCNet and other heads, "
    "networks of the toolbox, OCNet, openseg, DANet, semseg, PyTorch-Encoding and torchvision, "
    "MIT CSAIL's encoder and decoder, "
    "ResNets of MIT, open-mmlab (v1c) and torchvision"
)
# parts of names that give other networks away
OTHERS = {
    "psp_modules": "a PSPNet",
    "ppm.": "a PSPNet",
    "aspp": "a DeepLab",
    "classifier.": "a segmentation or classification network of another kind",
    "transformer": "a transformer",
    "blocks.0.attn": "a transformer",
    "features.": "a VGG or DenseNet",
}


def recognise(content: Any, path: Path) -> Foreign:
    """Convert a file's content to our names and rules; InputError says what it is where no layout knows it.

    content is what torchfile.read gave: a state dict, or one below a wrapper such as `state_dict` or `model`. The
    layout that was added last is asked first. What is published of a file of the catalogue counts where it is silent.
    """
    state, meta = unwrap(content, path)
    known = catalogue.entry_of(path)
    meta = {**(known.meta if known else {}), **meta}
    for layout in reversed(LAYOUTS.values()):
        try:
            foreign = layout.recognise(dict(state), dict(meta))
        except Misfit as error:
            raise InputError(path, error.why, error.fix or _known_layouts()) from None
        if foreign is not None:
            return foreign
    raise _unknown(state, path)


def _known_layouts() -> str:
    return f"known are {', '.join([KNOWN, *(name for name in LAYOUTS if name not in OWN)])}"


def unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a file, its prefixes removed, and what lies beside it, with the entries of its `meta`."""
    if not isinstance(content, dict):
        raise InputError(path, f"holds a {type(content).__name__}, not a state dict", _known_layouts())
    inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
    state = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if len(state) < len(inner) or not state:
        odd = next((f"{key} ({type(value).__name__})" for key, value in inner.items() if key not in state), "nothing")
        raise InputError(path, f"no state dict of tensors: holds {odd}", _known_layouts())
    for prefix in PREFIXES:
        while all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    beside = {} if inner is content else {key: value for key, value in content.items() if value is not inner}
    meta = content.get("meta")
    return state, beside | (meta if isinstance(meta, dict) else {})


def _unknown(state: Mapping[str, Tensor], path: Path) -> InputError:
    keys = list(state)
    kind = next((what for part, what in OTHERS.items() if any(part in key for key in keys)), "no network known here")
    if any(key.startswith(("backbone.", "head.rcca", "head.conva")) for key in keys) and "decode_head" not in str(keys):
        kind = "weights of ccnet without their preset, or a network of another kind"
    named = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return InputError(path, f"{kind}: it holds {named}", _known_layouts())
