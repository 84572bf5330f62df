"""Files that are no weights: code in pickles, bombs, damage and other kinds, each written by a function of its path."""

import copyreg
import functools
import gzip
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

MARK = "executed"


class Gadget:
    """Pickles to a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


TOUCH = f"touch {MARK}"
GADGETS = {
    "os.system": Gadget(os.system, TOUCH),
    "eval": Gadget(eval, f"open({MARK!r}, 'w')"),
    "torch.hub": Gadget(torch.hub.load, ".", "model", "source", "local"),
    "getattr": Gadget(getattr, Gadget(__import__, "os"), "system"),
    "partial": Gadget(functools.partial, os.system, TOUCH),
    "copyreg": Gadget(copyreg._reconstructor, Gadget, object, None),
}


def saved(content: object, legacy: bool = False) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def state() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {f"layer{n}.weight": torch.randn(64, 64, generator=random) for n in range(4)}


def cut(keep: float, legacy: bool = False) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        saved(state(), legacy)(path)
        size = path.stat().st_size
        os.truncate(path, int(size * keep) if keep < 1 else size - 1)

    return write


def flipped(path: Path) -> None:
    """One bit of a tensor's data."""
    saved(state())(path)
    data = bytearray(path.read_bytes())
    at = data.index(next(iter(state().values())).numpy().tobytes()[:16])
    data[at + 7] ^= 4
    path.write_bytes(data)


def deflated(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))


def claims(path: Path) -> None:
    """A record that the pickle says is a thousand times as large."""
    saved({"weight": torch.zeros(4000, dtype=torch.uint8)})(path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            # BININT2 4000, twice: the storage's length and the tensor's
            archive.writestr(name, data.replace(b"M\xa0\x0f", b"J\x00\x09\x3d\x00"))


def module(legacy: bool) -> Callable[[Path], None]:
    return saved(torch.nn.Linear(2, 2), legacy)


def script(path: Path) -> None:
    # what a TorchScript archive looks like from outside
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"model/{name}", b"\x80\x02}.")


def archive(path: Path) -> None:
    inner = path.with_name("inner")
    saved(state())(inner)
    with tarfile.open(path, "w") as tar:
        tar.add(inner, "weights")
    inner.unlink()


def packed(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        torch.save(state(), file)


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


def safetensors(entries: object, size: int = 4, length: int | None = None) -> Callable[[Path], None]:
    """A file of this header, and of this many bytes behind it."""

    def write(path: Path) -> None:
        header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        path.write_bytes((length or len(header)).to_bytes(8, "little") + header + bytes(size))

    return write


def entry(start: object = 0, end: object = 4, shape: object = (1,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def nested(path: Path) -> None:
    value: object = torch.ones(1)
    for _ in range(400):
        value = [value]
    saved({"a": value})(path)


def shared(path: Path) -> None:
    """Many overlapping views of one storage."""
    base = torch.zeros(1_000_000)
    saved({f"w{n}": base[n : n + 900_000] for n in range(1000)})(path)


def bytes_bomb(path: Path) -> None:
    saved({"a": Gadget(bytearray, 1 << 33)})(path)


# name: how it is written, and a word of the reason
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"{name}, {'legacy' if legacy else 'zip'}": (saved({"state_dict": gadget}, legacy), "never run")
        for name, gadget in GADGETS.items()
        for legacy in (False, True)
    },
    "module": (module(False), "torch.nn.modules.linear.Linear"),
    "module, legacy": (module(True), "torch.nn.modules.linear.Linear"),
    "array": (saved({"a": np.zeros(3)}), "numpy.*_reconstruct"),
    "protocol 4": (lambda path: torch.save(state(), path, pickle_protocol=4), "protocol 4"),
    "deflated bomb": (deflated, "compressed"),
    "stride 0": (saved({"a": torch.zeros(1).as_strided((1 << 40,), (0,))}), "stands on 4 bytes"),
    "stride 0, legacy": (saved({"a": torch.zeros(1).as_strided((1 << 40,), (0,))}, True), "stands on 4 bytes"),
    "false length": (claims, "damaged"),
    "shared": (shared, "overlap"),
    "bytes bomb": (bytes_bomb, "bytearray"),
    "nested": (nested, "nested deeper"),
    "half": (cut(0.5), "cut short"),
    "a byte short": (cut(1), "cut short"),
    "half, legacy": (cut(0.5, True), "damaged"),
    "a byte short, legacy": (cut(1, True), "damaged"),
    "flipped": (flipped, "damaged in"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "one byte": (lambda path: path.write_bytes(b"\x80"), "not a file that torch.save wrote"),
    "zeros": (lambda path: path.write_bytes(bytes(1 << 20)), "not a file that torch.save wrote"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "not a file that torch.save wrote"),
    "html": (lambda path: path.write_text("<!DOCTYPE html><html>404</html>"), "web page"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "gzip": (packed, "gzip"),
    "tar": (archive, "tar archive"),
    "zip": (plain_zip, "did not write"),
    "script": (script, "TorchScript"),
    **{
        f"safetensors, {name}": (write, "a damaged safetensors file")
        for name, write in {
            "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}),
            "shape": safetensors({"a": entry(shape=[2])}),
            "negative": safetensors({"a": entry(shape=[-1, -1])}),
            "huge": safetensors({"a": entry(0, 1 << 60, [1 << 58])}),
            "unknown type": safetensors({"a": entry(dtype="F9")}),
            "overlap": safetensors({"a": entry(), "b": entry()}),
            "hole": safetensors({"a": entry(), "b": entry(8, 12)}, 12),
            "more": safetensors({"a": entry()}, 8),
            "cut": safetensors({"a": entry(0, 8, [2])}, 4),
            "no JSON": safetensors(b"{" + b"[" * 5000),
            "cut header": safetensors({"a": entry()}, 4, 20),
            "offsets": safetensors({"a": entry("0", "4")}),
            "list": safetensors({"a": [1]}),
            "facts": safetensors({"a": entry(), "__metadata__": {"ccnet": "{"}}),
        }.items()
    },
    "safetensors, other network": (safetensors({"a": entry()}), "no network known here"),
    "picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "an image"),
    "pipe": (os.mkfifo, "not a regular file"),
    "folder": (lambda path: path.mkdir(), "folder|not a regular file"),
    "missing": (lambda path: None, "does not exist"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "never run"),
    "other network": (saved(state()), "no network known here"),
}
