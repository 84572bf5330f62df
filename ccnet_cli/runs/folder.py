"""What a run folder holds, and its count of resumes that did no step."""

import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError, Interrupted, TakenOver

FOLDERS = {"checkpoints", "tensorboard"}
FILES = re.compile(
    r"lock|preset\.yaml|environment\.json|log\.jsonl|metrics\.csv|curves\.png|report\.html|batch\.jpg"
    r"|(best|last)\.(pt|json)|nonfinite_step_\d+\.json"
)
CHECKPOINT_FILES = re.compile(r"attempts\.json|step_\d{8}\.(pt|json)")
# resumes in a row from a checkpoint that did no step
MAX_ATTEMPTS = 3
ATTEMPTS = "attempts.json"


def check(run: Path) -> None:
    """InputError where a run folder has something else in the place of a file of its own: it could be a way out."""
    for folder, own in ((run, FILES), (run / "checkpoints", CHECKPOINT_FILES)):
        for path in folder.iterdir() if folder.is_dir() and (folder == run or not folder.is_symlink()) else ():
            mode = path.lstat().st_mode
            if folder == run and path.name in FOLDERS:
                is_right, kind = stat.S_ISDIR(mode), "folder"
            else:
                # a checkpoint may lie elsewhere: nothing is written into it, its name is given to another file
                followed = folder != run and path.suffix == ".pt" and path.is_file()
                is_right, kind = not own.fullmatch(path.name) or stat.S_ISREG(mode) or followed, "file"
            if not is_right:
                what = "a link" if stat.S_ISLNK(mode) else "something else"
                raise InputError(path, f"is {what}, not a {kind} of this run", "delete it, or choose another --run")


def count_attempt(checkpoint: Path, by: int = 1) -> None:
    """Count a resume from a checkpoint, before it is read, in case that kills the process; by -1 takes it back."""
    counts = read_attempts(checkpoint.parent)
    _write_attempts(checkpoint.parent, counts | {checkpoint.stem: counts.get(checkpoint.stem, 0) + by})


def forget_attempts(checkpoint: Path) -> None:
    """Forget the attempts of a checkpoint that has proved its worth: a step was done from it."""
    counts = read_attempts(checkpoint.parent)
    if counts.pop(checkpoint.stem, 0):
        _write_attempts(checkpoint.parent, counts)


@contextmanager
def uncount_refusal(checkpoint: Path | None) -> Iterator[None]:
    """Take back the count of a resume that ends by no fault of its checkpoint: a signal, a full disk, bad arguments."""
    try:
        yield
    except (InputError, EnvironmentFailure, Interrupted, TakenOver, KeyboardInterrupt):
        if checkpoint is not None and checkpoint.stem in read_attempts(checkpoint.parent):
            count_attempt(checkpoint, -1)
        raise


def read_attempts(folder: Path) -> dict[str, int]:
    """Checkpoint, by name without suffix -> resumes from it that did no step."""
    path = folder / ATTEMPTS
    counts: Any = {}
    with suppress(OSError, ValueError, RecursionError):
        counts = json.loads(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
    pairs = counts.items() if isinstance(counts, dict) else ()
    return {name: count for name, count in pairs if isinstance(count, int) and count > 0}


def clear_attempts(folder: Path) -> None:
    """Forget the attempts, once a newer checkpoint exists."""
    (folder / ATTEMPTS).unlink(missing_ok=True)


def _write_attempts(folder: Path, counts: dict[str, int]) -> None:
    # a full disk must not keep a run from continuing
    with suppress(OSError):
        counts = {name: count for name, count in counts.items() if count > 0}
        if not counts:
            clear_attempts(folder)
            return
        files.write(folder / ATTEMPTS, lambda file: file.write(json.dumps(counts).encode()))
