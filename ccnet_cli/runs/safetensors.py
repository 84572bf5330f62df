"""Safetensors: a JSON header of names, types, shapes and offsets, then the numbers; nothing in it can be run.

Read and written here, as the format is smaller than the dependency; a checkpoint of ours has its facts in the metadata.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ccnet_cli.errors import InputError

SUFFIX = ".safetensors"
FIX = "download or copy it again"
# as the format's own reader has it
MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of this size that begins so is one: the header's length, and its first character."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size


def read(path: Path) -> dict[str, Any]:
    """The tensors by name, or the content of a checkpoint of ours; InputError for what the format does not allow."""
    try:
        with path.open("rb") as file:
            header, begin = _read_header(path, file)
            facts = header.pop("__metadata__", None)
            file.seek(0, 2)
            tensors = dict(_read_tensors(file, header, begin, file.tell() - begin))
        own = facts.get("ccnet") if isinstance(facts, dict) else None
        return tensors if own is None else {**json.loads(own), "model": tensors}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(path, f"a damaged safetensors file ({str(error)[:80]})", FIX) from None


def write(file: BinaryIO, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors by name; facts make a checkpoint of ours of them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    if facts is not None:
        header["__metadata__"]["ccnet"] = json.dumps(dict(facts))
    # wide types first, so that each begins where its type may
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in names:
        tensor, end = tensors[name], offset + tensors[name].nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().tobytes())


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise InputError(path, "its header is larger than any of weights", FIX)
    header = json.loads(file.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header, 8 + length


def _read_tensors(file: BinaryIO, header: dict[str, Any], begin: int, size: int) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in memory of its own; ValueError where they do not fill the file one after another."""
    position = 0
    for name, facts in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = facts["data_offsets"]
        dtype, shape = DTYPES[facts["dtype"]], facts["shape"]
        if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
            raise ValueError(f"{name} has a shape that is none")
        if start != position or end - start != math.prod(shape) * dtype.itemsize or end > size:
            raise ValueError(f"{name} does not lie where it should")
        file.seek(begin + start)
        content = bytearray(file.read(end - start))
        if len(content) != end - start:
            raise ValueError("cut short")
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        yield name, flat.reshape(shape)
        position = end
    if position != size:
        raise ValueError(f"{size - position} bytes belong to no tensor")
