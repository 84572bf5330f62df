"""Every command reads a file of weights once and builds its network once."""

from collections import Counter

import peers
import pytest
import tiny
import torch
from runs import make_horizons, preset, train

from ccnet_cli import cli
from ccnet_cli.models import network
from ccnet_cli.runs import torchfile
from ccnet_cli.training import trainer
from ccnet_cli.weights import load


@pytest.fixture
def counts(monkeypatch):
    """How often each file was read, and how many networks were built with memory for their weights."""
    counts = Counter()
    read, build = torchfile.read, network.build

    def count_read(path):
        counts[path.name] += 1
        return read(path)

    def count_build(*arguments, **options):
        built = build(*arguments, **options)
        counts["networks"] += next(built.parameters()).device.type != "meta"
        return built

    monkeypatch.setattr(torchfile, "read", count_read)
    for module in (load, trainer.models):
        monkeypatch.setattr(module, "build", count_build)
    return counts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of ours, one of the authors', a data set and a picture."""
    folder = tmp_path_factory.mktemp("files")
    tiny.save_checkpoint(folder).rename(folder / "ours.pt")
    torch.save(peers.authors(width=2, channels=8, depth=50, classes=11), folder / "theirs.pth")
    tiny.make_camvid(folder / "data", [(40, 56)])
    tiny.write(folder / "image.png", tiny.picture(33, 49, 7))
    return folder


@pytest.mark.parametrize("name", ["ours.pt", "theirs.pth"])
@pytest.mark.parametrize(
    "words",
    [
        "eval FILE --data data",
        "predict image.png -o OUT/mask.png --checkpoint FILE",
        "visualize image.png --point 9,9 --checkpoint FILE -o OUT/figure.png",
        "visualize image.png --html OUT/page.html --checkpoint FILE",
        "export FILE -o OUT/new.pt",
        "export FILE --format torch-export -o OUT/new.pt2",
    ],
)
def test_a_command_reads_and_builds_once(files, counts, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.replace("FILE", name).replace("OUT", str(tmp_path)).split())
    assert not stopped.value.code
    # our weights are copied as they are, other people's are tried in a network first
    networks = 0 if words.startswith("export FILE -o") and name == "ours.pt" else 1
    assert counts == Counter({name: 1, "networks": networks})


def test_a_training_reads_and_builds_once(counts, tmp_path):
    small = ("model.channels=8", "schedule.steps=2", "eval.every=0", "checkpoint.every=1")
    data = make_horizons(tmp_path / "data")
    first = train(preset(data, *small), run=tmp_path / "first")
    assert counts == Counter(networks=1)
    counts.clear()
    train(preset(data, *small), run=tmp_path / "second", weights=first / "best.pt")
    assert counts == Counter({"best.pt": 1, "networks": 1})
    counts.clear()
    train(preset(data, *small, "schedule.steps=3"), run=tmp_path / "second", resume="auto")
    assert counts == Counter({"step_00000002.pt": 1, "networks": 1})
    counts.clear()
    middle = str(first / "checkpoints/step_00000001.pt")
    train(preset(data, *small), run=tmp_path / "third", resume=middle)
    assert counts == Counter({"step_00000001.pt": 1, "networks": 1})
