"""Checkpoints: a crash never leaves a broken one, and each is verified when it is read."""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError, detail, notice
from ccnet_cli.runs import torchfile
from ccnet_cli.runs.fields import FORMAT as FORMAT
from ccnet_cli.runs.fields import UnsupportedError, check_format, check_manifest
from ccnet_cli.runs.folder import MAX_ATTEMPTS, clear_attempts, count_attempt, read_attempts

STEP = re.compile(r"step_(\d{8})")
# the keys of manifests before they had a seal
KEYS_WITHOUT_SEAL = {"format", "step", "bytes", "sha256", "torch"}
KEYS = {"format", "model", "preset", "classes", "step", "metrics"}


def save(folder: Path, step: int, state: dict[str, Any], keep: int, facts: Mapping[str, Any] | None = None) -> Path:
    """Write step_STEP.pt and its manifest durably into folder, then delete all but the newest `keep`, 2 or more.

    The manifest, which holds the file's sha256 and the facts, is the commit record. Checkpoints of later steps are
    deleted: they belong to an attempt that this one replaces. EnvironmentFailure, naming the path, if the disk refuses;
    earlier checkpoints are then untouched.
    """
    if keep < 2:
        raise ValueError(f"keep {keep}: the previous checkpoint must outlive the writing of the next")
    path = folder / f"step_{step:08d}.pt"
    try:
        files.make_folder(folder)
        delete_leftovers(folder)
        data = files.write(path, lambda file: torch.save(state, file), ("mid_write", "after_write", "after_fsync"))
        files.failpoint("after_rename")
        record = {"format": FORMAT, "step": step, "bytes": data.bytes, "sha256": data.sha256.hexdigest()}
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
        text = _seal_manifest(record | versions | dict(facts or {})).encode()
        files.write(path.with_suffix(".json"), lambda file: file.write(text), ("mid_manifest", "", ""))
        files.failpoint("after_manifest")
        files.sync_folder(folder)
        clear_attempts(folder)
    except (OSError, RuntimeError) as error:
        raise _write_failure(path, error) from error
    paths = list_checkpoints(folder)
    newest = [old for old in paths if old.name <= path.name][:keep]
    for old in paths:
        if old not in newest:
            _delete(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in folder that have a manifest, newest first."""
    manifests = [path for path in folder.glob("step_*.json") if STEP.fullmatch(path.stem) and path.is_file()]
    return [path.with_suffix(".pt") for path in sorted(manifests, reverse=True)]


def delete_leftovers(folder: Path) -> None:
    """Delete what dead processes left: temporaries, and data older than the newest manifest that have none.

    Only the folder's sole writer may call it.
    """
    files.sweep(folder)
    paths = list_checkpoints(folder)
    for data in folder.glob("step_*.pt"):
        if STEP.fullmatch(data.stem) and data not in paths and paths and data.name < paths[0].name:
            _delete(data)


def add_name(path: Path, alias: Path) -> None:
    """Give a saved checkpoint a second name, such as best.pt, that survives the deletion of the first."""
    try:
        if all(_is_same_file(path.with_suffix(suffix), alias.with_suffix(suffix)) for suffix in (".pt", ".json")):
            return
        # a kill in between must not leave new data beside an old manifest
        alias.with_suffix(".json").unlink(missing_ok=True)
        for suffix in (".pt", ".json"):
            with files.replace_file(alias.with_suffix(suffix)) as temporary:
                os.link(path.with_suffix(suffix), temporary)
        files.sync_folder(alias.parent)
    except OSError as error:
        raise _write_failure(alias, error) from error


def read_newest(
    folder: Path,
    count: bool = False,
    check: Callable[[dict[str, Any], Path], None] = lambda *_: None,
    before: Path | None = None,
) -> tuple[Path, dict[str, Any]] | None:
    """The newest sound checkpoint in folder, of those before one, and its content; None if none was ever saved.

    One that is damaged, or that check refuses, or from which three resumes did no step, is passed over with a warning;
    but if no other is sound, the newest of the latter is taken. InputError if all are damaged, and UnsupportedError for
    one that must not be taken for damaged. With count, the folder's sole writer counts a resume from it, before it is
    read.
    """
    paths = [path for path in list_checkpoints(folder) if before is None or path.name < before.name]
    attempts = read_attempts(folder)
    failed = [path for path in paths if attempts.get(path.stem, 0) >= MAX_ATTEMPTS]
    for path in failed:
        notice(f"warning: passed over {path}: {attempts[path.stem]} resumes from it did no step")
    for path in [*(path for path in paths if path not in failed), *failed]:
        if count:
            count_attempt(path)
        try:
            content = _require_checkpoint(_read_verified(path), path)
            check(content, path)
            return path, content
        except UnsupportedError:
            if count:
                count_attempt(path, -1)
            raise
        except InputError as error:
            notice(f"warning: skipped {error}")
        except OSError as error:
            notice(f"warning: skipped {path}: cannot be read ({error.strerror})")
        if count:
            count_attempt(path, -1)
    if paths:
        why, fix = f"all {len(paths)} checkpoints are damaged", "start a new run with another --run"
        raise InputError(folder, why, fix)
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, verified against the manifest beside it; InputError if bad."""
    content = read_any(path)
    return content if is_checkpoint(content) else _require_checkpoint(content, path)


def read_any(path: Path) -> Any:
    """The content of anybody's torch file, nothing of it run; a checkpoint of ours is verified as by read."""
    started = time.monotonic()
    content = _read_verified(path)
    detail(f"{path}: read and verified in {time.monotonic() - started:.2f} s")
    return _require_checkpoint(content, path) if is_checkpoint(content) else content


def list_files(path: Path) -> list[Path]:
    """The file of a checkpoint, and its manifest if it has one."""
    manifest = path.with_suffix(".json")
    try:
        _parse_manifest(manifest.read_bytes() if manifest.is_file() else b"")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [path]
    return [path, manifest]


def is_checkpoint(content: Any) -> bool:
    """Whether a file's content is a checkpoint that this project wrote."""
    return isinstance(content, dict) and len(content.keys() & KEYS) >= len(KEYS) - 2


def is_resumable(content: dict[str, Any]) -> bool:
    """Whether a checkpoint of ours holds all that a run needs to continue, not the model alone."""
    return content.get("training") is not None


def _read_verified(path: Path) -> Any:
    manifest = path.with_suffix(".json")
    if manifest.is_file() and path.is_file():
        _verify(path, manifest)
    return torchfile.read(path)


def _require_checkpoint(content: Any, path: Path) -> dict[str, Any]:
    if not is_checkpoint(content):
        raise InputError(path, "not a checkpoint of ccnet", "give a .pt file that ccnet train wrote")
    check_format(content.get("format"), path)
    step = _step_of_name(path)
    if isinstance(content.get("step"), int) and step not in (None, content["step"]):
        why = f"its configuration is damaged (field step is not the {step} of its name)"
        raise InputError(path, why, "use an earlier checkpoint")
    return dict(content)


def _step_of_name(path: Path) -> int | None:
    match = STEP.fullmatch(path.stem)
    return int(match[1]) if match else None


def _verify(path: Path, manifest: Path) -> None:
    """InputError unless a file has the size and hash that its manifest records."""
    try:
        record = _parse_manifest(manifest.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # beside best.pt, last.pt or other weights may lie an unrelated file of that name, such as eval's --json
        if not STEP.fullmatch(path.stem):
            return
        raise InputError(manifest, "damaged manifest", "use an earlier checkpoint") from None
    check_manifest(record, _step_of_name(path), manifest)
    expected = (record["bytes"], record["sha256"])
    with path.open("rb") as file:
        actual = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    if actual != expected:
        raise InputError(path, "not what its manifest records", "use an earlier checkpoint")


def _parse_manifest(content: bytes) -> dict[str, Any]:
    """A manifest's record, its seal checked; ValueError, KeyError or TypeError if it is not as it was written."""
    text = content.decode()
    record: dict[str, Any] = json.loads(text)
    if record.keys() != KEYS_WITHOUT_SEAL:
        del record["seal"]
        if text != _seal_manifest(record):
            raise ValueError
    return record


def _seal_manifest(record: dict[str, Any]) -> str:
    """A manifest's text, which ends with its own sha256."""
    seal = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps(record | {"seal": seal}, indent=1)


def _write_failure(path: Path, error: OSError | RuntimeError) -> EnvironmentFailure:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        reason = f"{errno.errorcode.get(error.errno, error.errno)}, {error.strerror}"
    return EnvironmentFailure(path, f"checkpoint not written ({reason})", "free space and resume")


def _delete(path: Path) -> None:
    # the manifest first: data without one counts as never written
    for file in (path.with_suffix(".json"), path):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            notice(f"warning: {file} not deleted ({error.strerror})")
            return
        files.failpoint("mid_gc")


def _is_same_file(path: Path, alias: Path) -> bool:
    return alias.exists() and alias.samefile(path)
