"""Reading anybody's torch files: what is sound comes back the same, all else is refused and nothing of it is run."""

import collections
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch

from ccnet_cli import cli
from ccnet_cli.errors import InputError
from ccnet_cli.runs import torchfile


def kinds():
    """A little of everything that checkpoints hold."""
    strided = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensor = torch.randn(3, 4)
    return collections.OrderedDict(
        tensor=tensor,
        again=tensor,
        view=tensor[1:, ::2],
        strided=strided,
        parameter=torch.nn.Parameter(torch.ones(2)),
        scalar=torch.tensor(3.5),
        nothing=torch.zeros(0, 3),
        half=torch.ones(3, dtype=torch.bfloat16),
        count=torch.tensor(7),
        generator=torch.get_rng_state(),
        python=random.getstate(),
        plain={"a": [1, 2.5, None, True, "text", b"bytes"], "size": torch.Size([1, 2]), 3: (4,)},
        dtype=torch.float16,
        device=torch.device("cpu"),
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("legacy", [False, True])
def test_sound_files_come_back_the_same(tmp_path, legacy):
    content = kinds()
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    read = torchfile.read(tmp_path / "a.pt")
    view = content.pop("view"), read.pop("view")
    assert same(content, read) and torch.equal(*view)
    # nothing of the file is held on to
    before = read["tensor"].clone()
    (tmp_path / "a.pt").write_bytes(b"")
    assert torch.equal(read["tensor"], before)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("generation", [1, 2])
def test_numpy_scalars_of_both_generations_become_numbers(tmp_path, legacy, generation):
    content = {"best": np.float64(0.75), "epoch": np.int64(12), "flag": np.bool_(True), "weight": torch.ones(2)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    if generation == 1:
        # the name that numpy 1 wrote is two letters shorter; a legacy file has no index that would notice
        if not legacy:
            _rewrite(tmp_path / "a.pt", b"numpy._core.multiarray", b"numpy.core.multiarray")
        else:
            data = (tmp_path / "a.pt").read_bytes()
            (tmp_path / "a.pt").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert b"numpy.core.multiarray" in (tmp_path / "a.pt").read_bytes()
    read = torchfile.read(tmp_path / "a.pt")
    assert [read[key] for key in ("best", "epoch", "flag")] == [0.75, 12, True]
    assert [type(read[key]) for key in ("best", "epoch", "flag")] == [float, int, bool]


def _rewrite(path, old, new):
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(old, new))


def test_message_hubs_are_told_how_to_be_rid_of(tmp_path, monkeypatch):
    hub = type("HistoryBuffer", (), {"__module__": "mmengine.logging.history_buffer"})
    module = type(sys)("mmengine.logging.history_buffer")
    module.HistoryBuffer = hub
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"state_dict": {"a": torch.ones(1)}, "message_hub": hub()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"mmengine.logging.history_buffer.HistoryBuffer.*publish"):
        torchfile.read(tmp_path / "a.pth")


def told(capfd, *words):
    """Exit code and what was said on stderr."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code, capfd.readouterr().err


@pytest.mark.parametrize("command", ["eval", "weights", "resume", "export"])
@pytest.mark.parametrize("kind", hostile.FILES)
def test_hostile_files_are_refused_in_one_line_by_every_command(kind, command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write, words = hostile.FILES[kind]
    write(Path("bad.pth"))
    before = {path.name for path in tmp_path.iterdir()}
    train = ("train", "--preset", "quickstart", "-o", "run")
    code, said = told(
        capfd,
        *{
            "eval": ("eval", "bad.pth"),
            "weights": (*train, "--weights", "bad.pth"),
            "resume": (*train[:3], "--resume", "bad.pth"),
            "export": ("export", "bad.pth", "-o", "new.pt"),
        }[command],
    )
    assert code == 2 and said.count("\n") == 1 and said.startswith("ccnet: error: bad.pth: ")
    # only a checkpoint can be continued, whatever network other weights are of
    if command == "resume" and kind.endswith("other network"):
        words = "not a checkpoint of ccnet"
    assert re.search(words, said), said
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not Path(hostile.MARK).exists()


def test_the_gadgets_would_work(tmp_path, monkeypatch):
    """Teeth: read without the guard, a gadget runs."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": hostile.GADGETS["os.system"]}, "bad.pth")
    torch.load("bad.pth", weights_only=False)
    assert Path(hostile.MARK).exists()


def test_hostile_files_take_no_memory(tmp_path):
    """Every file in one process of its own, whose high-water mark is then its worst."""
    for number, (write, _) in enumerate(hostile.FILES.values()):
        write(tmp_path / f"{number}.pth")
    code = """
import resource, sys
from pathlib import Path
from ccnet_cli.runs import torchfile
from ccnet_cli.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        torchfile.read(path)
    except InputError:
        refused += 1
print(refused, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    refused, grown = map(int, ran.stdout.split())
    # two are sound files of unknown networks, another is missing
    assert refused == len(hostile.FILES) - 3 and grown < 300


def test_random_damage_is_refused_or_changes_nothing(tmp_path):
    """Flips and cuts anywhere: an error, or the very same content (a byte that nobody reads)."""
    whole = {f"w{n}": torch.randn(8, 8) for n in range(3)}
    changes = np.random.default_rng(7)
    for legacy in (False, True):
        torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        data = (tmp_path / "a.pt").read_bytes()
        for number in range(150):
            damaged = bytearray(data)
            at = int(changes.integers(len(data)))
            if number % 3:
                damaged[at] ^= 1 << int(changes.integers(8))
            else:
                damaged = damaged[:at]
            (tmp_path / "b.pt").write_bytes(damaged)
            try:
                read = torchfile.read(tmp_path / "b.pt")
            except InputError as error:
                assert "\n" not in str(error)
            else:
                # a legacy file has no checksum: what a flip makes of its numbers cannot be known
                assert legacy or same(whole, read)


def test_a_tensor_must_not_be_larger_than_what_it_stands_on(tmp_path):
    """By a single repetition: two rows that are one row of twelve bytes."""
    path = tmp_path / "twice.pt"
    torch.save({"a": torch.ones(3).expand(2, 3)}, path)
    with pytest.raises(InputError, match=r"a tensor of shape \(2, 3\) stands on 12 bytes"):
        torchfile.read(path)
    torch.save({"a": torch.ones(3).expand(1, 3)}, path)
    assert torch.equal(torchfile.read(path)["a"], torch.ones(1, 3))


def test_two_views_of_the_same_bytes_stay_two(tmp_path):
    """A square matrix and its transpose begin at one byte and have one shape."""
    square = torch.arange(4.0).view(2, 2)
    torch.save({"a": square, "b": square.T, "c": square}, tmp_path / "views.pt")
    content = torchfile.read(tmp_path / "views.pt")
    assert [content[name].tolist() for name in "abc"] == [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 1], [2, 3]]]
    assert content["a"] is content["c"]
