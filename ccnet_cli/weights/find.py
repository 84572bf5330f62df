"""Which file to use when none is named, and what comes with ccnet for a first try."""

import os
from collections.abc import Iterator
from pathlib import Path

from ccnet_cli.errors import InputError, notice
from ccnet_cli.weights import catalogue
from ccnet_cli.weights.pairs import pair_at

DEMO = Path(__file__).parent / "demo"
# a file of the catalogue for photographs: small, with a hash, and its score is not far from the best
FOR_PHOTOGRAPHS = "mmseg-ccnet-r50-769-80k"


def find_artifact(explicit: Path | None = None) -> Path:
    """The file to use: the explicit one, $CCNET_CHECKPOINT, the newest run's below ./runs, or the demo weights.

    A run folder stands for its best checkpoint, one of save_pretrained for its weights, one with an encoder's and a
    decoder's file for both, a name of the catalogue for its file in the cache. A notice says what the demo weights were
    trained on.
    """
    chosen = explicit or (Path(os.environ["CCNET_CHECKPOINT"]) if os.environ.get("CCNET_CHECKPOINT") else None)
    if chosen is not None:
        if not chosen.is_dir():
            return find_weights(chosen)
        for path in _best(chosen):
            return path
        if pair_at(chosen) is not None:
            return chosen
        raise InputError(chosen, "a folder without best.pt or last.pt", "give a run folder or a checkpoint file")
    runs = [path for folder in Path("runs").glob("*/") for path in _best(folder)]
    if runs:
        path = max(runs, key=lambda path: path.stat().st_mtime)
        notice(f"using {path}, the newest run's")
        return path
    demo = DEMO / "demo.pt"
    if not demo.is_file():
        raise InputError("checkpoint", "none given and no run below ./runs", "train one, or use --checkpoint FILE")
    notice(
        "using the demo weights, trained on toyscapes (drawn street scenes) alone; for photographs, run "
        f"ccnet weights get {FOR_PHOTOGRAPHS}, then add --checkpoint {FOR_PHOTOGRAPHS}"
    )
    return demo


def find_weights(path: Path) -> Path:
    """A file, of a run folder its best, or for a name of the catalogue its file in the cache, verified.

    Of two in one path, FILE,FILE, each is looked for. InputError for a name whose file is not there.
    """
    first, comma, second = str(path).partition(",")
    if comma and not path.exists():
        return Path(f"{find_weights(Path(first))},{find_weights(Path(second))}")
    if path.is_dir():
        return find_artifact(path)
    if path.exists() or len(path.parts) != 1:
        return path
    if len(names := catalogue.expand(path.name)) > 1:
        return find_weights(Path(",".join(names)))
    entry = catalogue.read().entries.get(path.name)
    if entry is None and not path.suffix and catalogue.nearest(path.name):
        raise InputError(path, "neither a file nor known", f"did you mean {catalogue.nearest(path.name)}?")
    return path if entry is None else catalogue.require(entry)


def sample_image() -> Path:
    """The picture that comes with ccnet, for a first try."""
    return DEMO / "sample.png"


def _best(run: Path) -> Iterator[Path]:
    for name in ("best.pt", "last.pt", "model.safetensors"):
        if (run / name).is_file():
            yield run / name
            return
