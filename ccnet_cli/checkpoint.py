"""Checkpoints: written so that a crash never leaves a broken one, verified when read, found when not named."""

import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ccnet_cli import config
from ccnet_cli.datasets import Classes
from ccnet_cli.errors import EnvironmentFailure, InputError, notice
from ccnet_cli.model import CCNet, build

FORMAT = 1
DEMO = Path(__file__).parent / "demo"
STEP = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Restored:
    """A model in evaluation mode, and what its checkpoint tells of it; metrics are those of its last evaluation."""

    model: CCNet
    preset: config.Preset
    classes: Classes
    step: int
    path: Path
    metrics: dict[str, float]


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
        digest = _write(path, lambda file: torch.save(state, file))
        manifest = {
            "format": FORMAT,
            "step": step,
            "bytes": digest.bytes,
            "sha256": digest.sha256.hexdigest(),
            "torch": torch.__version__,
        }
        text = json.dumps(manifest, indent=1).encode()
        _write(path.with_suffix(".json"), lambda file: file.write(text))
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


def _write(path: Path, fill: Any) -> _Hashing:
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
    _examine(path)
    manifest = path.with_suffix(".json")
    if manifest.is_file():
        _verify(path, manifest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load fails in a dozen ways, one of them without a word
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(
            path, f"not a readable checkpoint ({reason})", "give a checkpoint that ccnet train wrote"
        ) from None
    wanted = {"format", "model", "preset", "classes", "step", "metrics"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise InputError(path, "not a checkpoint of ccnet", "give a .pt file that ccnet train wrote")
    if content["format"] != FORMAT:
        raise InputError(path, f"format {content['format']}, this version reads {FORMAT}", "update ccnet-cli")
    return content


def _examine(path: Path) -> None:
    """Refuse what torch.load should not even see: no regular file, nothing in it, no or a compressed zip."""
    fix = "give a .pt file that ccnet train wrote"
    if not path.exists():
        raise InputError(path, "does not exist", "give the path of a checkpoint")
    if not path.is_file():
        raise InputError(path, "not a regular file", fix)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check its permissions") from None
    if not head:
        raise InputError(path, "empty", fix)
    if head.startswith(b"version https://git-lfs"):
        raise InputError(path, "a git-lfs pointer, not the file itself", "run git lfs pull")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise InputError(path, "a compressed archive, not a checkpoint", fix)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError):
        raise InputError(path, "not a checkpoint of ccnet, or cut short", fix) from None
    if damaged is not None:
        raise InputError(path, f"damaged in {damaged}", "use an earlier checkpoint")


def _verify(path: Path, manifest: Path) -> None:
    try:
        record = json.loads(manifest.read_bytes())
        # beside best.pt, last.pt or a copy may lie somebody's own file of that name, such as eval's --json
        if not STEP.fullmatch(path.stem) and "sha256" not in record:
            return
        promised = (record["bytes"], record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(manifest, "damaged manifest", "use an earlier checkpoint") from None
    with path.open("rb") as file:
        found = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    if found != promised:
        raise InputError(path, "not what its manifest records", "use an earlier checkpoint")


def restore(path: Path) -> Restored:
    """The model of a checkpoint, in evaluation mode on the CPU; InputError if the file is not ours or damaged."""
    content = read(path)
    try:
        preset = config.from_mapping(content["preset"])
        classes = Classes.from_mapping(content["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, f"its configuration is damaged ({error})", "use an earlier checkpoint") from None
    model = build(preset.model, len(classes))
    load_weights(model, content["model"], path)
    metrics = {key: float(value) for key, value in content["metrics"].items()}
    return Restored(model.eval(), preset, classes, int(content["step"]), path, metrics)


def load_weights(model: CCNet, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Copy weights into the model, every one of them; InputError tells the first that does not fit."""
    own = model.state_dict()
    for key, tensor in own.items():
        if key not in weights:
            raise InputError(path, f"weight {key} is missing", "use the preset that it was trained with")
        if weights[key].shape != tensor.shape:
            shapes = f"{tuple(weights[key].shape)}, the model's is {tuple(tensor.shape)}"
            raise InputError(path, f"weight {key} is {shapes}", "use the preset that it was trained with")
    surplus = [key for key in weights if key not in own]
    if surplus:
        raise InputError(
            path, f"weight {surplus[0]} has no place in the model", "use the preset that it was trained with"
        )
    model.load_state_dict(weights)


def export(source: Path, output: Path) -> Path:
    """Write what is needed to use a checkpoint's model, without the state to train on; about a third of the size."""
    content = read(source)
    if output.exists() and output.samefile(source):
        raise InputError(output, "is the checkpoint itself", "choose another name")
    kept = {key: value for key, value in content.items() if key != "training"}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write(output, lambda file: torch.save(kept, file))
    except OSError as error:
        raise EnvironmentFailure(output, f"not written ({error.strerror})", "choose a writable place") from None
    return output


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
