"""Weights in two files, an encoder's and a decoder's, as MIT CSAIL writes them: read as one, each file below its name.

The path of a pair is a folder that holds one of each, or ENCODER,DECODER.
"""

from pathlib import Path
from typing import Any

from ccnet_cli.errors import InputError

PARTS = ("encoder", "decoder")


def pair_at(path: Path) -> tuple[Path, Path] | None:
    """The two files that a path stands for, None for any other path; InputError for a folder with several of a kind."""
    if path.is_dir():
        files = [sorted(path.glob(f"*{part}*.pt*")) for part in PARTS]
        if not all(files):
            return None
        if any(len(own) > 1 for own in files):
            count = max(map(len, files))
            raise InputError(path, f"holds {count} files of a part", "name the two: ENCODER.pth,DECODER.pth")
        return files[0][0], files[1][0]
    first, _, second = (Path(word) for word in str(path).partition(","))
    return (first, second) if not path.exists() and first.is_file() and second.is_file() else None


def list_files(path: Path) -> list[Path]:
    """The files behind a path: a pair's two, or a checkpoint's file and its manifest."""
    from ccnet_cli.runs import checkpoint

    return list(pair_at(path) or checkpoint.list_files(path))


def read_any(path: Path) -> Any:
    """The content of anybody's file or pair of files, nothing of it run; a checkpoint of ours is verified."""
    # torch, which finding files does without
    from ccnet_cli.runs import checkpoint
    from ccnet_cli.weights.recognise import unwrap

    pair = pair_at(path)
    if pair is None:
        return checkpoint.read_any(path)
    states = [unwrap(checkpoint.read_any(file), file)[0] for file in pair]
    return {f"{part}.{key}": value for part, state in zip(PARTS, states, strict=True) for key, value in state.items()}
