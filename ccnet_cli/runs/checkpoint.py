"""Checkpoints: written so that a crash never leaves a broken one, verified when read, found when not named."""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError, detail, notice
from ccnet_cli.runs import folder as runfolder
from ccnet_cli.runs import torchfile

FORMAT = 1
DEMO = Path(__file__).parents[1] / "weights" / "demo"
STEP = re.compile(r"step_(\d{8})")
# resumes from a checkpoint that may end before another is written
ATTEMPTS = 3
# the keys of manifests before they had a seal
UNSEALED = {"format", "step", "bytes", "sha256", "torch"}


def save(folder: Path, step: int, state: dict[str, Any], keep: int, facts: Mapping[str, Any] | None = None) -> Path:
    """Write step_STEP.pt and its manifest durably into folder, then delete all but the newest `keep`, 2 or more.

    The manifest, with the file's sha256 and the facts given, is the commit record. Checkpoints of later steps go: they
    are those of an attempt that this one has taken the place of. Raises EnvironmentFailure, naming the path, when the
    disk refuses; earlier checkpoints are then untouched.
    """
    if keep < 2:
        raise ValueError(f"keep {keep}: the one before must outlive the next one's writing")
    path = folder / f"step_{step:08d}.pt"
    try:
        files.make_folder(folder)
        collect(folder)
        digest = files.write(path, lambda file: torch.save(state, file), ("mid_write", "after_write", "after_fsync"))
        files.failpoint("after_rename")
        record = {"format": FORMAT, "step": step, "bytes": digest.bytes, "sha256": digest.sha256.hexdigest()}
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
        text = _sealed(record | versions | dict(facts or {})).encode()
        files.write(path.with_suffix(".json"), lambda file: file.write(text), ("mid_manifest", "", ""))
        files.failpoint("after_manifest")
        files.sync_folder(folder)
        runfolder.progress(folder)
    except (OSError, RuntimeError) as error:
        raise _unwritten(path, error) from error
    paths = committed(folder)
    kept = [old for old in paths if old.name <= path.name][:keep]
    for old in paths:
        if old not in kept:
            _delete(old)
    return path


def _unwritten(path: Path, error: OSError | RuntimeError) -> EnvironmentFailure:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        reason = f"{errno.errorcode.get(error.errno, error.errno)}, {error.strerror}"
    return EnvironmentFailure(path, f"checkpoint not written ({reason})", "free space and resume")


def _delete(path: Path) -> None:
    # the manifest first: data without one counts as never written
    for stale in (path.with_suffix(".json"), path):
        try:
            stale.unlink(missing_ok=True)
        except OSError as error:
            notice(f"warning: {stale} not deleted ({error.strerror})")
            return
        files.failpoint("mid_gc")


def _sealed(record: dict[str, Any]) -> str:
    """A manifest's text, which ends with its own sha256."""
    seal = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps(record | {"seal": seal}, indent=1)


def collect(folder: Path) -> None:
    """Delete what interrupted processes left: temporaries, and data older than the newest manifest without their own.

    Only who alone writes to the folder may call it.
    """
    files.sweep(folder)
    paths = committed(folder)
    for data in folder.glob("step_*.pt"):
        if STEP.fullmatch(data.stem) and data not in paths and paths and data.name < paths[0].name:
            _delete(data)


def name(path: Path, alias: Path) -> None:
    """Give a saved checkpoint a second name, such as best.pt, that survives the deletion of the first."""
    try:
        if all(_same(path.with_suffix(suffix), alias.with_suffix(suffix)) for suffix in (".pt", ".json")):
            return
        # a kill amid this must not leave new data beside an old manifest
        alias.with_suffix(".json").unlink(missing_ok=True)
        for suffix in (".pt", ".json"):
            target = alias.with_suffix(suffix)
            with files.replace_file(target) as temporary:
                os.link(path.with_suffix(suffix), temporary)
        files.sync_folder(alias.parent)
    except OSError as error:
        raise _unwritten(alias, error) from error


def _same(path: Path, alias: Path) -> bool:
    return alias.exists() and alias.samefile(path)


def committed(folder: Path) -> list[Path]:
    """The checkpoints in folder that have a manifest, newest first."""
    found = [path for path in folder.glob("step_*.json") if STEP.fullmatch(path.stem)]
    return [path.with_suffix(".pt") for path in sorted(found, reverse=True)]


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in folder that reads back whole, and its content; None where nothing was ever saved.

    One that is damaged, or that three resumes ended from without another being written, is passed over with a warning;
    InputError when all of them are, and for one of a newer version, which must not be taken for damaged.
    """
    paths, failed = committed(folder), runfolder.attempts(folder)
    for path in paths:
        if failed.get(path.stem, 0) >= ATTEMPTS:
            notice(f"warning: skipped {path}: {failed[path.stem]} resumes from it ended before another was written")
            continue
        try:
            content = _own(_intact(path), path)
        except InputError as error:
            notice(f"warning: skipped {error}")
        except OSError as error:
            notice(f"warning: skipped {path}: cannot be read ({error.strerror})")
        else:
            return path, _current(content, path)
    if paths:
        why = f"all {len(paths)} checkpoints are damaged" + (" or failed three times" if failed else "")
        raise InputError(folder, why, "name one with --resume FILE, or start a new run with another --run")
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, verified against a manifest that lies beside it; InputError if bad."""
    return _own(load(path), path)


def load(path: Path) -> Any:
    """The content of anybody's checkpoint, read without running it; ours is verified as read does."""
    started = time.monotonic()
    content = _intact(path)
    detail(f"{path}: read and verified in {time.monotonic() - started:.2f} s")
    return _current(content, path) if ours(content) else content


def resumable(content: dict[str, Any]) -> bool:
    """Whether a checkpoint of ours holds all that a run needs to go on, not the model alone."""
    needed = {"model", "optimizer", "scaler", "best", "random"}
    return isinstance(content.get("training"), dict) and needed <= content["training"].keys()


def ours(content: Any) -> bool:
    """Whether a file's content is a checkpoint that this project wrote."""
    return isinstance(content, dict) and {"format", "model", "preset", "classes", "step", "metrics"} <= content.keys()


def _intact(path: Path) -> Any:
    manifest = path.with_suffix(".json")
    if manifest.is_file() and path.is_file():
        _verify(path, manifest)
    return torchfile.read(path)


def _own(content: Any, path: Path) -> dict[str, Any]:
    if not ours(content):
        raise InputError(path, "not a checkpoint of ccnet", "give a .pt file that ccnet train wrote")
    return dict(content)


def _current(content: dict[str, Any], path: Path) -> dict[str, Any]:
    if content["format"] != FORMAT:
        raise InputError(path, f"format {content['format']}, this version reads {FORMAT}", "update ccnet-cli")
    return content


def _verify(path: Path, manifest: Path) -> None:
    try:
        record = _opened(manifest.read_bytes())
        promised = (record["bytes"], record["sha256"])
        if STEP.fullmatch(path.stem) and record["step"] != int(path.stem.removeprefix("step_")):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # beside best.pt, last.pt or anybody's weights may lie a file of that name that is none, such as eval's --json
        if not STEP.fullmatch(path.stem):
            return
        raise InputError(manifest, "damaged manifest", "use an earlier checkpoint") from None
    with path.open("rb") as file:
        found = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    if found != promised:
        raise InputError(path, "not what its manifest records", "use an earlier checkpoint")


def _opened(content: bytes) -> dict[str, Any]:
    """What a manifest records, its seal checked; ValueError, KeyError or TypeError where it is not what was written."""
    text = content.decode()
    record: dict[str, Any] = json.loads(text)
    if record.keys() != UNSEALED:
        del record["seal"]
        if text != _sealed(record):
            raise ValueError
    return record


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
