"""A run that was cut continues to the very same bits; what is not finite is skipped by all, or ends the run."""

import copy
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import arguments, canonical, make_horizons, outcome, preset, start, steps, train, wait_until

from ccnet_cli.datasets.sampling import Batches
from ccnet_cli.datasets.training import TrainingSet
from ccnet_cli.errors import InputError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import state as states
from ccnet_cli.training import trainer as trainers
from ccnet_cli.weights import find

# everything that has a state of its own: dropout, momentum, a moving average, epochs that end amid batches
LONG = ("schedule.steps=20", "checkpoint.every=1", "checkpoint.keep=100", "eval.every=8")
RICH = ("model.dropout=0.5", "train.ema=0.9", "loss.ohem.min_kept=500")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Runs of 20 steps by their options, every step's checkpoint kept; each is made once."""
    made = {}

    def get(*options):
        if options not in made:
            made[options] = train(preset(data, *LONG, *options), run=tmp_path_factory.mktemp("whole") / "run")
        return made[options]

    return get


def assert_continues(whole, data, folder, k, *options):
    """Step k's checkpoint, continued in another folder, ends as the whole run did."""
    first = whole(*options)
    middle = first / f"checkpoints/step_{k:08d}.pt"
    second = train(preset(data, *LONG, *options), run=folder / f"from{k}", resume=str(middle), strict=True)
    assert outcome(second, after=k) == outcome(first, after=k)
    shutil.rmtree(second)


@pytest.mark.parametrize(("k", "workers"), [(1, 0), (9, 2), (12, 0), (19, 0)])
def test_a_run_in_two_parts_is_the_run_in_one(whole, data, tmp_path, k, workers):
    assert_continues(whole, data, tmp_path, k, *RICH, f"data.workers={workers}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_in_two_parts_is_the_run_in_one_wherever_it_is_cut(whole, data, tmp_path, workers):
    for k in range(1, 20):
        assert_continues(whole, data, tmp_path, k, *RICH, f"data.workers={workers}")


@pytest.mark.parametrize(
    "options",
    [
        ("train.precision=bf16",),
        ("loss.ohem.enabled=false",),
        ("train.micro_batch=2",),
        ("train.optimizer=sgd", "schedule.warmup=5", "data.photometric=true", "train.channels_last=false"),
        (
            "loss.ohem.class_weights=auto",
            "loss.together.kind=category_consistent",
            "loss.lovasz.weight=0.5",
            "loss.dice.weight=0.1",
            "loss.focal.gamma=1",
            "train.precision=bf16",
        ),
    ],
    ids=lambda options: options[0],
)
def test_so_it_is_with_every_way_to_compute(whole, data, tmp_path, options):
    assert_continues(whole, data, tmp_path, 10, *RICH, *options)


def test_so_it_is_with_two_processes(data, tmp_path, forked_workers):
    """Both ranks' dropout continues, and the other process that rank 0's checkpoint stands for."""
    options = (*LONG, *RICH, "schedule.steps=4", "eval.every=0")
    first = train(preset(data, *options), run=tmp_path / "whole", processes=2)
    middle = str(first / "checkpoints/step_00000002.pt")
    second = train(preset(data, *options), run=tmp_path / "cut", processes=2, resume=middle, strict=True)
    assert outcome(second, after=2) == outcome(first, after=2)
    one, other = checkpoint.read(first / "last.pt")["training"]["random"]
    assert canonical(one) != canonical(other)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_at_step_ten_changes_nothing(data, tmp_path, number, processes):
    options = (*RICH, "schedule.steps=20", "checkpoint.every=1", "eval.every=0", "--processes", str(processes))
    with start(arguments(data, tmp_path / "whole", *options)) as process:
        assert process.wait(300) == 0, process.communicate()[1]
    cut = tmp_path / "cut"
    with start(arguments(data, cut, *options)) as process:
        wait_until(lambda: steps(cut)[:1] >= [10], process)
        process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)
        printed = process.communicate(timeout=60)[1]
        assert process.returncode in (-number, 128 + number)
    assert steps(cut)[0] < 20
    # a stopped run prints the line that continues it
    line = re.search(r"continue with ccnet (train .*)", printed)
    assert (line is None) == (number == signal.SIGKILL)
    words = (
        [*shlex.split(line[1]), "--processes", str(processes)]
        if line
        else [*arguments(data, cut, *options), "--resume"]
    )
    with start(words) as process:
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 0, told
    assert outcome(cut) == outcome(tmp_path / "whole")


def _momentum(content):
    content["training"]["optimizer"]["state"] = {}


def _buffers(content):
    for state in (content["model"], content["training"]["model"]):
        for key, tensor in state.items():
            if "running_mean" in key:
                tensor.zero_()


def _step(content):
    content["step"] -= 1


def _random(content):
    content["training"]["random"][0]["torch"] = torch.Generator().manual_seed(5).get_state()


def _offset(content):
    content["training"]["offset"] = 0


def _scaler(content):
    content["training"]["scaler"] = torch.amp.GradScaler("cpu").state_dict()


def _epoch(content):
    content["training"]["epoch"] = 0


@pytest.fixture
def scaled(monkeypatch):
    """A gradient scaler on the CPU, whose scale grows every third step."""
    build = trainers.build

    def with_scaler(*given):
        trainer = build(*given)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        return trainer

    monkeypatch.setattr(trainers, "build", with_scaler)


MUTANTS = [_momentum, _buffers, _step, _random, _offset, _scaler, _epoch]


@pytest.mark.parametrize("drop", [None, *MUTANTS], ids=lambda drop: drop.__name__[1:] if drop else "nothing")
def test_nothing_of_the_state_can_be_left_out(whole, data, tmp_path, monkeypatch, scaled, drop):
    read = checkpoint.read

    def incomplete(path):
        content = copy.deepcopy(read(path))
        if drop and path.parent.name == "checkpoints":
            drop(content)
        return content

    monkeypatch.setattr(checkpoint, "read", incomplete)
    if drop is None:
        assert_continues(whole, data, tmp_path, 11, *RICH, "seed=5")
    else:
        with pytest.raises(AssertionError):
            assert_continues(whole, data, tmp_path, 11, *RICH, "seed=5")


@pytest.mark.parametrize("process", [2, 4])
def test_every_image_comes_once_an_epoch_though_processes_come_and_go(process):
    """Three epochs of 24 in global batches of 8: that many processes to the middle of the second epoch, then one."""
    alone = [set(batch) for batch in Batches(24, 8, 7, steps=9)]
    ranks = [list(Batches(24, 8, 7, rank, process, steps=4)) for rank in range(process)]
    shared = [set(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)]
    shared += [set(batch) for batch in Batches(24, 8, 7, start_step=4, steps=9)]
    assert shared == alone
    assert sorted(itertools.chain(*shared)) == [(epoch, index) for epoch in range(3) for index in range(24)]


@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_resume_at_an_epoch_s_end_repeats_and_skips_none(step):
    """24 images are three batches: before the first, after one epoch, and after two."""
    later = list(itertools.chain(*Batches(24, 8, 7, start_step=step, steps=9, first=step * 8)))
    assert sorted(later) == [(epoch, index) for epoch in range(step // 3, 3) for index in range(24)]


def test_another_global_batch_continues_where_the_data_were_left(whole, data, tmp_path, capsys, monkeypatch):
    seen, middle = [], str(whole(*RICH) / "checkpoints/step_00000010.pt")
    item = TrainingSet.__getitem__
    monkeypatch.setattr(TrainingSet, "__getitem__", lambda self, key: (seen.append(key), item(self, key))[1])
    run = train(preset(data, *LONG, *RICH, "train.batch=2", "eval.every=0"), run=tmp_path / "run", resume=middle)
    told = capsys.readouterr().err
    assert "global_batch 2, was 4: sample-exact, not bit-exact" in told
    assert seen == list(itertools.chain(*Batches(6, 2, 0, start_step=20, steps=30)))
    state = checkpoint.read(run / "last.pt")["training"]
    assert (state["epoch"], state["offset"]) == (60 // 6, 0)


def test_what_the_manifest_and_the_state_tell(whole):
    run = whole(*RICH)
    manifest = json.loads((run / "checkpoints/step_00000007.json").read_text())
    assert (manifest["step"], manifest["epoch"], manifest["offset"]) == (7, 28 // 6, 28 % 6)
    assert (manifest["world_size"], manifest["global_batch"], manifest["accumulation"]) == (1, 4, 1)
    assert manifest["num_threads"] == torch.get_num_threads() and manifest["torch"] == torch.__version__
    assert "cuda" in manifest and len(manifest["config_sha256"]) == len(manifest["list_sha256"]) == 64
    state = checkpoint.read(run / "checkpoints/step_00000007.pt")["training"]
    (own,) = state["random"]
    assert own.keys() == {"torch", "cuda", "python", "numpy"} and isinstance(own["numpy"][1], list)


def test_python_s_and_numpy_s_numbers_continue():
    random.seed(3)
    np.random.seed(4)
    np.random.standard_normal()
    state = states.random_state(torch.device("cpu"))
    wanted = random.random(), np.random.standard_normal(), np.random.random(), torch.rand(())
    states.set_random_state(state, torch.device("cpu"))
    assert (random.random(), np.random.standard_normal(), np.random.random(), torch.rand(())) == wanted


def test_each_difference_is_told_once_and_by_what_it_costs():
    before = {"world_size": 2, "global_batch": 4, "torch": "2.12", "precision": "fp32", "list_sha256": "a"}
    assert list(states.differences(before, before)) == []
    # what the earlier one lacks is no difference, and neither are the settings' hashes
    assert (
        list(states.differences(before | {"numpy": "2", "config_sha256": "x"}, before | {"config_sha256": "y"})) == []
    )
    now = before | {"world_size": 1, "global_batch": 8, "torch": "2.13", "list_sha256": "b"}
    assert list(states.differences(now, before)) == [
        "world_size 1, was 2, global_batch 8, was 4: sample-exact, not bit-exact",
        "another list of training images than before: other samples will come",
        "torch 2.13, was 2.12: not bit-exact",
    ]


CHANGES = {
    "other values of schedule.lr, eval.every than before": ("schedule.lr=1e-3",),
    "another list of training images": ("data.train_list=shorter.txt",),
    "global_batch 2, was 4": ("train.batch=2",),
}


@pytest.mark.parametrize("words", CHANGES)
def test_what_differs_from_before_is_told_or_refused(whole, data, tmp_path, capsys, words):
    shorter = "".join(f"images/train/{index}.png labels/train/{index}.png\n" for index in range(4))
    (data / "shorter.txt").write_text(shorter)
    middle = str(whole(*RICH) / "checkpoints/step_00000018.pt")
    made = preset(data, *LONG, *RICH, "eval.every=0", *CHANGES[words])
    with pytest.raises(InputError, match="strict-resume"):
        train(made, run=tmp_path / "strict", resume=middle, strict=True)
    assert not (tmp_path / "strict").exists()
    capsys.readouterr()
    train(made, run=tmp_path / "run", resume=middle)
    assert any(words in line and "warning: resumed with" in line for line in capsys.readouterr().err.splitlines())


def test_other_threads_are_told_or_refused(whole, data, tmp_path, capsys, monkeypatch):
    middle = str(whole(*RICH) / "checkpoints/step_00000018.pt")
    real = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.raises(InputError, match=f"num_threads 7, was {real}: not bit-exact"):
        train(preset(data, *LONG, *RICH), run=tmp_path / "strict", resume=middle, strict=True)
    train(preset(data, *LONG, *RICH), run=tmp_path / "run", resume=middle)
    assert f"warning: resumed with num_threads 7, was {real}: not bit-exact" in capsys.readouterr().err


def test_strict_resume_needs_a_resume(data, tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        train(preset(data), run=tmp_path / "run", strict=True)


def test_a_checkpoint_of_the_version_before_continues_alike(whole, data, tmp_path, capsys):
    """Format 1 as it was first: fewer things saved, a manifest of five keys. The rest of the run is the same."""
    first = whole(*RICH)
    new = first / "checkpoints/step_00000013.pt"
    content = checkpoint.read(new)
    kept = ("model", "optimizer", "scaler", "best", "random")
    content["training"] = {key: content["training"][key] for key in kept}
    for state in content["training"]["random"]:
        del state["numpy"]
    del content["preset"]["train"]["max_nonfinite"]
    old = checkpoint.save(tmp_path / "old", 13, content, keep=2)
    manifest = json.loads(old.with_suffix(".json").read_text())
    before = {key: manifest[key] for key in ("format", "step", "bytes", "sha256", "torch")}
    old.with_suffix(".json").write_text(json.dumps(before, indent=1))
    assert checkpoint.read_newest(tmp_path / "old")[0] == old
    second = train(preset(data, *LONG, *RICH), run=tmp_path / "run", resume=str(old))
    one, other = outcome(first, after=13), outcome(second, after=13)
    assert one[1] == other[1]
    models = [checkpoint.read(run / "last.pt")["model"] for run in (first, second)]
    assert canonical(models[0]) == canonical(models[1])
    assert "warning" not in capsys.readouterr().err


def test_the_packaged_weights_still_load():
    restored = load_model(find.DEMO / "demo.pt")
    assert restored.step > 0 and restored.metrics["miou"] > 0.9


GOLDEN = Path(__file__).parent / "golden_losses.txt"


def golden(data, run):
    """What decides the bits, and the losses of a hundred steps on one thread, a line each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options = ("schedule.steps=100", "schedule.lr=0.005", "eval.every=0", "checkpoint.every=100")
        options += ("model.implementation=reference",)
        train(preset(data, *RICH, *options), run=run)
    finally:
        torch.set_num_threads(threads)
    flags = re.findall(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[:1]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        f"torch {torch.__version__}, processor {canonical(flags)[:8]}",
        *(repr(row["loss"]) for row in rows if "loss" in row),
    ]


def test_the_losses_are_those_of_before(data, tmp_path):
    """To the last digit on the machine that wrote the file (golden's lines), nearly so at first on any other."""
    found, wanted = golden(data, tmp_path / "run"), GOLDEN.read_text().splitlines()
    assert len(found) == len(wanted) == 101
    if found[0] == wanted[0]:
        assert found == wanted
    assert [float(line) for line in found[1:9]] == pytest.approx([float(line) for line in wanted[1:9]], rel=0.01)


@pytest.mark.parametrize("steps_", [20, 12])
def test_past_the_end_there_is_nothing_to_do(whole, data, tmp_path, capsys, steps_):
    run = tmp_path / "run"
    shutil.copytree(whole(*RICH), run)
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(preset(data, *LONG, *RICH, f"schedule.steps={steps_}"), run=run, resume="auto") == run
    assert f"has done 20 of {steps_} steps" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
