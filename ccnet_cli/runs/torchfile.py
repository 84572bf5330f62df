"""Read a file that anybody wrote with torch.save, and run nothing that is in it.

Before torch sees a file, its pickles are read as plain opcodes: every name that they would look up must be on the list
below, and a zip must be stored, not compressed, with every checksum right. What torch then returns is copied, so that
nothing of the file stays mapped, and each tensor must be backed by bytes of the file.
"""

import pickletools
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ccnet_cli.errors import InputError, out_of_memory
from ccnet_cli.runs import safetensors

MAX_BYTES = 8 << 30
# a pickle holds names and shapes, never the weights; ten thousand tensors take one megabyte
MAX_PICKLE_BYTES = 64 << 20
MAX_DEPTH = 32
FIX = "give a checkpoint, or a file of weights that torch.save wrote"

NUMPY = {f"numpy{core}.multiarray.scalar" for core in (".core", "._core")} | {"numpy.dtype", "_codecs.encode"}
SAFE = {
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.set",
    "torch.Size",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.serialization._get_layout",
}
DTYPES = {f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
# the first bytes of other files -> what they are, and what to do
SIGNATURES = {
    b"version https://git-lfs": ("a git-lfs pointer, not the file itself", "run git lfs pull"),
    b"\x1f\x8b": ("a gzip archive", "unpack it first"),
    b"7z\xbc\xaf": ("a 7-zip archive", "unpack it first"),
    b"\x89HDF": ("an HDF5 file, of Keras perhaps", FIX),
    b"\x93NUMPY": ("a numpy array", FIX),
    b"<": ("a web page or XML, not weights", "download the file itself"),
    b"\x89PNG": ("an image", FIX),
    b"\xff\xd8\xff": ("an image", FIX),
}


def read(path: Path) -> Any:
    """What torch.save put into the file, in plain containers, numbers and dense CPU tensors; InputError if it did not.

    Safetensors, zip and legacy files are read, CUDA tensors moved to the CPU, numpy scalars made plain numbers.
    """
    size, head = _read_head(path)
    if safetensors.is_safetensors(head, size):
        return safetensors.read(path)
    # the signature that torch itself goes by
    zipped = head.startswith(b"PK\x03\x04")
    names = _zip_names(path, size) if zipped else _legacy_names(path, head)
    scalars = bool(names & {f"numpy{core}.multiarray.scalar" for core in (".core", "._core")})
    _refuse_unknown(path, names)
    try:
        with warnings.catch_warnings(), _numpy_scalars() if scalars else nullcontext():
            warnings.simplefilter("ignore")
            # mapped: a tensor that claims more than its record holds is then an error, not a wild access
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        return _Copier(path, 2 * size).copy(content)
    except InputError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        # torch fails in a dozen ways, one of them without a message
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(path, f"damaged, or no file of torch's ({reason})", FIX) from None


def _read_head(path: Path) -> tuple[int, bytes]:
    """Size and first bytes of a regular file that could be torch's."""
    if not path.exists():
        raise InputError(path, "does not exist", "give the path of a checkpoint")
    if not path.is_file():
        raise InputError(path, "not a regular file", FIX)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check its permissions") from None
    if not head:
        raise InputError(path, "empty", FIX)
    if size > MAX_BYTES:
        raise InputError(path, f"larger than {MAX_BYTES >> 30} GiB", "give the weights alone")
    if safetensors.is_safetensors(head, size):
        return size, head
    if path.suffix == ".pdparams":
        why = "a file of PaddlePaddle, whose pickled arrays are not read"
        raise InputError(path, why, "write its arrays with torch.save or safetensors, where Paddle is installed")
    for signature, (what, fix) in SIGNATURES.items():
        if head.lstrip().startswith(signature):
            raise InputError(path, what, fix)
    # an ONNX file: its version, then its producer, graph or operator sets
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        why = "an ONNX file, which holds neither attention maps nor weights to go on from"
        raise InputError(path, why, "give the checkpoint that it was exported from")
    if head[257:262] == b"ustar":
        raise InputError(path, "a tar archive", "unpack it first, or save it with a torch of 2018 or newer")
    return size, head


def _zip_names(path: Path, size: int) -> set[str]:
    """The names that a zip's pickle would look up, once its members are known to be stored whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise InputError(path, "a compressed archive, not a checkpoint", FIX)
            if sum(member.file_size for member in members) > 1.05 * size:
                raise InputError(path, "claims to hold more than its size", FIX)
            kinds = {member.filename.partition("/")[2].partition("/")[0] for member in members}
            if kinds & {"constants.pkl", "code"}:
                raise InputError(path, "a TorchScript program, not weights", "save the model's state_dict() instead")
            pickles = [member for member in members if member.filename.partition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise InputError(path, "an archive that torch.save did not write", FIX)
            damaged = archive.testzip()
            if damaged is not None:
                raise InputError(path, f"damaged in {damaged}", "download or copy it again")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise InputError(path, "its pickle is larger than any of weights", FIX)
            with archive.open(pickles[0]) as file:
                return _names(path, file)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError, RuntimeError):
        raise InputError(path, "damaged, or cut short", "download or copy it again") from None


def _legacy_names(path: Path, head: bytes) -> set[str]:
    """The names in the five pickles that open a file of torch 1.5 and older, of which the fourth is the content."""
    if not head.startswith(b"\x80") or b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." not in head[:16]:
        raise InputError(path, "not a file that torch.save wrote", FIX)
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(5):
            names |= _names(path, file)
    return names


def _names(path: Path, file: BinaryIO | Any) -> set[str]:
    """Every module.name that the pickle at the file's position would look up; nothing of it is run."""
    names: set[str] = set()
    start = file.tell()
    try:
        for opcode, argument, position in pickletools.genops(file):
            if position is not None and position - start > MAX_PICKLE_BYTES:
                raise InputError(path, "its pickle is larger than any of weights", FIX)
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", ".", 1))
            elif opcode.proto > 3:
                # its names come from the stack, so they are unknown until it runs
                raise InputError(path, "pickled with protocol 4 or newer", "save it with torch.save's own protocol, 2")
    except InputError:
        raise
    except Exception:
        raise InputError(path, "damaged, or cut short", "download or copy it again") from None
    return names


def _refuse_unknown(path: Path, names: set[str]) -> None:
    """InputError for a name beyond those that weights need."""
    storages = {name for name in names if name.startswith("torch.") and name.endswith("Storage")}
    unknown = sorted(name for name in names - SAFE - NUMPY - DTYPES - storages if not name.startswith("numpy.dtypes."))
    if not unknown:
        return
    named = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    fix = "save its state_dict() alone with torch.save"
    if any(name.startswith(("mmengine.", "mmcv.")) for name in unknown):
        fix = "publish it with mmsegmentation's tools, which leave the message hub out, or save its state_dict alone"
    raise InputError(path, f"holds Python objects ({named}), which are never run", fix)


def _numpy_scalars() -> AbstractContextManager[None]:
    """Let numpy's scalars through, under the names of numpy 1 and 2."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"]
    allowed: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
    context: AbstractContextManager[None] = torch.serialization.safe_globals(allowed)
    return context


class _Copier:
    """Copies a file's content into memory of its own; a tensor or container that occurs twice is copied once."""

    def __init__(self, path: Path, allowance: int) -> None:
        self.path = path
        # shared storages could otherwise be multiplied without end
        self.allowance = allowance
        self.copies: dict[Any, Any] = {}

    def copy(self, value: Any, depth: int = 0) -> Any:
        """The value in plain containers, numbers and tensors; InputError for anything else."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.generic):
            return value.item()
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
            return value
        if depth > MAX_DEPTH:
            raise InputError(self.path, "nested deeper than any checkpoint", FIX)
        if id(value) not in self.copies:
            # the original stays alive beside its copy: its id must not be reused
            self.copies[id(value)] = value, self._container(value, lambda inner: self.copy(inner, depth + 1))
        return self.copies[id(value)][1]

    def _container(self, value: Any, copy: Callable[[Any], Any]) -> Any:
        if isinstance(value, dict):
            return {self._key(key): copy(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set):
            return type(value)(copy(inner) for inner in value) if type(value) in (list, tuple, set) else tuple(value)
        raise InputError(self.path, f"holds a {type(value).__name__}", FIX)

    def _key(self, key: Any) -> Any:
        if not isinstance(key, str | int | float):
            raise InputError(self.path, f"has a {type(key).__name__} for a key", FIX)
        return key

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise InputError(self.path, f"holds a tensor of layout {tensor.layout} on {tensor.device}", FIX)
        storage, needed = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        if needed > storage.nbytes():
            why = f"a tensor of shape {tuple(tensor.shape)} stands on {storage.nbytes()} bytes"
            raise InputError(self.path, why, FIX)
        view = (storage.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if view not in self.copies:
            self.allowance -= needed
            if self.allowance < 0:
                raise InputError(self.path, "its tensors overlap beyond its size", FIX)
            self.copies[view] = tensor.detach().clone()
        copy: Tensor = self.copies[view]
        return copy
