"""Checkpoints: written so that a crash never leaves a broken one, verified when read, found when not named."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ccnet_cli import torchfile
from ccnet_cli.errors import EnvironmentFailure, InputError, detail, notice

FORMAT = 1
DEMO = Path(__file__).parent / "demo"
STEP = re.compile(r"step_(\d{8})")


class _Hashing:
    """A writable file that hashes and counts what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write step_STEP.pt and its manifest durably into folder, then delete all but the newest `keep`.

    The manifest, with the file's sha256, is the commit record. Raises EnvironmentFailure, naming the path, when the
    disk refuses; earlier checkpoints are then untouched.
    """
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        digest = write(path, lambda file: torch.save(state, file))
        manifest = {
            "format": FORMAT,
            "step": step,
            "bytes": digest.bytes,
            "sha256": digest.sha256.hexdigest(),
            "torch": torch.__version__,
        }
        text = json.dumps(manifest, indent=1).encode()
        write(path.with_suffix(".json"), lambda file: file.write(text))
        _sync(folder)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise EnvironmentFailure(path, f"checkpoint not written ({reason})", "free space and resume") from error
    for old in committed(folder)[keep:]:
        # the manifest first: data without one counts as never written
        for stale in (old.with_suffix(".json"), old):
            try:
                stale.unlink(missing_ok=True)
            except OSError as error:
                notice(f"warning: {stale} not deleted ({error.strerror})")
    return path


def write(path: Path, fill: Callable[[Any], object]) -> _Hashing:
    """Let fill write into a file that appears under its name when it is whole and on the disk; size and sha256."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            fill(hashing)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return hashing


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Delete temporaries that a killed process left behind."""
    for path in folder.glob(".tmp-*"):
        owner = path.name.split("-")[1]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            path.unlink(missing_ok=True)


def name(path: Path, alias: Path) -> None:
    """Give a saved checkpoint a second name, such as best.pt, that survives the deletion of the first."""
    for suffix in (".pt", ".json"):
        target = alias.with_suffix(suffix)
        temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
        temporary.unlink(missing_ok=True)
        os.link(path.with_suffix(suffix), temporary)
        temporary.replace(target)
    _sync(alias.parent)


def committed(folder: Path) -> list[Path]:
    """The checkpoints in folder that have a manifest, newest first."""
    found = [path for path in folder.glob("step_*.json") if STEP.fullmatch(path.stem)]
    return [path.with_suffix(".pt") for path in sorted(found, reverse=True)]


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in folder that reads back whole, and its content; None where nothing was ever saved.

    A damaged one is passed over with a warning; InputError when all of them are damaged.
    """
    paths = committed(folder)
    for path in paths:
        try:
            return path, read(path)
        except InputError as error:
            notice(f"warning: skipped {error}")
    if paths:
        raise InputError(folder, f"all {len(paths)} checkpoints are damaged", "start a new run with another --run")
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, verified against a manifest that lies beside it; InputError if bad."""
    content = load(path)
    if not ours(content):
        raise InputError(path, "not a checkpoint of ccnet", "give a .pt file that ccnet train wrote")
    return dict(content)


def load(path: Path) -> Any:
    """The content of anybody's checkpoint, read without running it; ours is verified as read does."""
    started = time.monotonic()
    manifest = path.with_suffix(".json")
    if manifest.is_file() and path.is_file():
        _verify(path, manifest)
    content = torchfile.read(path)
    detail(f"{path}: read and verified in {time.monotonic() - started:.2f} s")
    if ours(content) and content["format"] != FORMAT:
        raise InputError(path, f"format {content['format']}, this version reads {FORMAT}", "update ccnet-cli")
    return content


def ours(content: Any) -> bool:
    """Whether a file's content is a checkpoint that this project wrote."""
    return isinstance(content, dict) and {"format", "model", "preset", "classes", "step", "metrics"} <= content.keys()


def _verify(path: Path, manifest: Path) -> None:
    try:
        record = json.loads(manifest.read_bytes())
        promised = (record["bytes"], record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        # beside best.pt, last.pt or anybody's weights may lie a file of that name that is none, such as eval's --json
        if not STEP.fullmatch(path.stem):
            return
        raise InputError(manifest, "damaged manifest", "use an earlier checkpoint") from None
    with path.open("rb") as file:
        found = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    if found != promised:
        raise InputError(path, "not what its manifest records", "use an earlier checkpoint")


def find(explicit: Path | None = None) -> Path:
    """The checkpoint to use: the named one, $CCNET_CHECKPOINT, the newest run's below ./runs, or the demo weights.

    A run folder stands for its best checkpoint. The demo weights come with a notice of what they were trained on.
    """
    chosen = explicit or (Path(os.environ["CCNET_CHECKPOINT"]) if os.environ.get("CCNET_CHECKPOINT") else None)
    if chosen is not None:
        if not chosen.is_dir():
            return chosen
        for path in _named(chosen):
            return path
        raise InputError(chosen, "a folder without best.pt or last.pt", "give a run folder or a checkpoint file")
    runs = [path for folder in Path("runs").glob("*/") for path in _named(folder)]
    if runs:
        path = max(runs, key=lambda path: path.stat().st_mtime)
        notice(f"using {path}, the newest run's")
        return path
    demo = DEMO / "demo.pt"
    if not demo.is_file():
        raise InputError("checkpoint", "none given and no run below ./runs", "train one, or use --checkpoint FILE")
    notice(
        "using the demo weights, trained on toyscapes (drawn street scenes) alone: give a checkpoint for real images"
    )
    return demo


def _named(run: Path) -> Iterator[Path]:
    for alias in ("best.pt", "last.pt"):
        if (run / alias).is_file():
            yield run / alias
            return


def sample_image() -> Path:
    """The picture that comes with ccnet, for a first try."""
    return DEMO / "sample.png"
