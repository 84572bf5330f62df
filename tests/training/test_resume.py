"""A run that was cut continues to the very same bits; what is not finite is skipped by all, or ends the run."""

import copy
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import arguments, canonical, make_horizons, outcome, plan_of, preset, start, steps, train, wait_until
from torch.utils._python_dispatch import TorchDispatchMode

from ccnet_cli.datasets.sampling import Batches
from ccnet_cli.datasets.source import open_source
from ccnet_cli.datasets.training import TrainingSet
from ccnet_cli.errors import InputError, NonFiniteError
from ccnet_cli.inference.artifact import load_model
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import process
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
    ],
    ids=lambda options: options[0],
)
def test_so_it_is_with_every_way_to_compute(whole, data, tmp_path, options):
    assert_continues(whole, data, tmp_path, 10, *RICH, *options)


def test_so_it_is_with_two_processes(data, tmp_path):
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
        process.communicate(timeout=60)
        assert process.returncode in (-number, 128 + number)
    assert steps(cut)[0] < 20
    with start([*arguments(data, cut, *options), "--resume"]) as process:
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
    """Three epochs of 24 in global batches of 8: so many processes to the middle of the second epoch, then one."""
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
    assert manifest["world_size"] == 1 and manifest["global_batch"] == 4
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


# of what is not finite

BAD = (*LONG, *RICH, "eval.every=0", "train.optimizer=sgd")


def spoil(kind, first, times, rank=0):
    """Make the loss, or one gradient, of a rank not finite for some steps in a row; a list of what happened, by step.

    Each entry is the step, whether it was skipped, and whether it left weights, buffers and optimiser as they were.
    """
    forward, update = trainers.LossNetwork.forward, trainers.Trainer.update
    happened, current = [], [0]

    def bad():
        return first <= current[0] < first + times and int(os.environ.get("RANK", 0)) == rank

    def spoilt_forward(self, image, label):
        loss, terms = forward(self, image, label)
        return loss * math.nan if kind == "loss" and bad() else loss, terms

    def watched_update(self, losses, buffers):
        if kind == "gradient" and bad():
            next(self.model.parameters()).grad[0] = math.inf
        everything = [self.model.state_dict(), self.averaged.state_dict(), self.optimizer.state_dict()]
        before = copy.deepcopy(everything)
        names = [name for name, _ in self.model.named_buffers()]
        before[0].update(zip(names, (buffer.clone() for buffer in buffers), strict=True))
        applied = update(self, losses, buffers)
        after = [self.model.state_dict(), self.averaged.state_dict(), self.optimizer.state_dict()]
        happened.append((self.step, not applied, canonical(after) == canonical(before)))
        current[0] = self.step + 1
        return applied

    trainers.LossNetwork.forward, trainers.Trainer.update = spoilt_forward, watched_update
    current[0] = 1
    return happened


@pytest.fixture
def mended(monkeypatch):
    """Whatever spoil replaces is put back."""
    monkeypatch.setattr(trainers.LossNetwork, "forward", trainers.LossNetwork.forward)
    monkeypatch.setattr(trainers.Trainer, "update", trainers.Trainer.update)


def expected(times):
    last = 20 if times < 10 else 14
    return [(step, 5 <= step < 5 + times, 5 <= step < 5 + times) for step in range(1, last + 1)]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("times", [1, 9, 10])
def test_a_step_that_is_not_finite_is_skipped_whole(data, tmp_path, capsys, mended, kind, times):
    happened = spoil(kind, 5, times)
    run = tmp_path / "run"
    if times < 10:
        train(preset(data, *BAD), run=run)
        assert not list(run.glob("nonfinite*"))
    else:
        with pytest.raises(NonFiniteError, match=r"step 14: loss .* 10 steps in a row"):
            train(preset(data, *BAD), run=run)
        told = json.loads((run / "nonfinite_step_14.json").read_text())
        assert told["in_a_row"] == 10 and len(told["ranks"][0]["samples"]) == 4
        assert told["ranks"][0]["loss" if kind == "loss" else "gradient_norm"] in ("nan", "inf")
        assert steps(run)[0] == 13
    assert happened == expected(times)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    skipped = {row["step"]: row["skipped"] for row in rows if "skipped" in row}
    assert list(skipped) == list(range(5, 5 + times))
    order = [str(index) for _, index in itertools.chain(*Batches(6, 4, 0, start_step=4, steps=4 + times))]
    assert [Path(name).name for names in skipped.values() for name in names] == order
    assert f"warning: step 5 skipped (loss {'nan' if kind == 'loss' else ''}" in capsys.readouterr().err


def test_without_the_guard_the_weights_are_ruined(data, tmp_path, mended, monkeypatch):
    """The twin of the test above."""
    monkeypatch.setattr(trainers, "_not_finite", torch.zeros_like)
    spoil("loss", 5, 1)
    with pytest.raises((NonFiniteError, AssertionError)):
        run = train(preset(data, *BAD, "schedule.steps=6"), run=tmp_path / "run")
        assert all(tensor.isfinite().all() for tensor in checkpoint.read(run / "last.pt")["model"].values())


def test_a_kill_amid_skipped_steps_forgets_none_of_them(data, tmp_path, mended):
    """The tenth in a row is the tenth though the run was resumed after the sixth."""
    spoil("loss", 5, 10)
    with pytest.raises(NonFiniteError):
        train(preset(data, *BAD), run=tmp_path / "run")
    middle = str(tmp_path / "run/checkpoints/step_00000010.pt")
    assert checkpoint.read(Path(middle))["training"]["nonfinite"] == 6
    spoil("loss", 1, 100)
    with pytest.raises(NonFiniteError, match=r"step 14: .* 10 steps in a row"):
        train(preset(data, *BAD), run=tmp_path / "again", resume=middle)


def test_a_rate_beyond_all_measure_ends_the_run(data, tmp_path):
    with pytest.raises(NonFiniteError, match="10 steps in a row"):
        train(
            preset(data, *BAD, "schedule.lr=1e20", "train.clip_norm=null", "train.ema=0.0", "checkpoint.every=50"),
            run=tmp_path / "run",
        )


def _spoilt_work(worker, made, kind, times, folder):
    """One of two processes, of which the second meets something that is not finite."""
    happened = spoil(kind, 5, times, rank=1)
    try:
        process.run(worker, made.request, made.device, made)
    finally:
        (folder / str(os.environ["RANK"])).write_text(json.dumps(happened))


def assert_skipped_by_two(data, folder, kind, times):
    made = plan_of(preset(data, *BAD), folder / "run", processes=2)
    (folder / "run").mkdir()
    if times < 10:
        supervisor.run(_spoilt_work, (made, kind, times, folder), 2)
    else:
        with pytest.raises(NonFiniteError, match=r"step 14: .* 10 steps in a row"):
            supervisor.run(_spoilt_work, (made, kind, times, folder), 2)
        told = json.loads((folder / "run/nonfinite_step_14.json").read_text())
        assert [len(rank["samples"]) for rank in told["ranks"]] == [2, 2]
    for rank in "01":
        assert [tuple(each) for each in json.loads((folder / rank).read_text())] == expected(times)


def test_what_one_process_meets_all_skip(data, tmp_path):
    assert_skipped_by_two(data, tmp_path, "gradient", 9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("times", [1, 9, 10])
def test_what_one_process_meets_all_skip_however_often(data, tmp_path, kind, times):
    assert_skipped_by_two(data, tmp_path, kind, times)


def scaled_trainer(data, *options):
    made = preset(data, *options)
    torch.manual_seed(0)
    trainer = trainers.build(made, open_source(made.data, "train"), Group())
    trainer.scaler = torch.amp.GradScaler("cpu")
    return trainer


def scaled_step(trainer, spoilt):
    """A step on a plain loss, its scaled gradients too large for a number if asked."""
    trainer.optimizer.zero_grad()
    loss = sum(parameter.square().sum() for parameter in trainer.model.parameters())
    trainer.scaler.scale(loss).backward()
    if spoilt:
        next(trainer.model.parameters()).grad[0] = math.inf
    return trainer.update(loss.detach().repeat(len(trainer.loss_names)), trainer.copy_buffers())


def test_half_precision_lowers_its_scale_and_the_schedule_goes_on(data, tmp_path):
    trainer = scaled_trainer(data)
    applied, weights = [], []
    for step in range(1, 6):
        applied.append(scaled_step(trainer, step in (3, 4)))
        weights.append(canonical([trainer.model.state_dict(), trainer.optimizer.state_dict()]))
    assert applied == [True, True, False, False, True]
    assert weights[1] == weights[2] == weights[3] != weights[4]
    assert trainer.scaler.get_scale() == 65536 / 4
    # a skipped step takes its place in the schedule and its batch; while the scale can fall it is no failure
    assert (trainer.step, trainer.position, trainer.nonfinite) == (5, 20, 0)
    path = checkpoint.save(tmp_path, 5, trainer.state(), keep=2)
    again = scaled_trainer(data)
    again.resume(checkpoint.read(path), path)
    assert again.scaler.get_scale() == 16384
    assert canonical(again.state()) == canonical(trainer.state())


def test_half_precision_ends_once_its_scale_can_fall_no_further(data):
    trainer = scaled_trainer(data)
    for _ in range(16):
        scaled_step(trainer, True)
    assert (trainer.scaler.get_scale(), trainer.nonfinite) == (1.0, 0)
    scaled_step(trainer, True)
    assert trainer.nonfinite == 1


def test_a_step_waits_for_the_device_once(data, monkeypatch):
    """Whatever else read a number on the host would be seen by the dispatcher."""
    trainer = scaled_trainer(data, "train.optimizer=sgd")
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=False)
    asked = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                asked.append("item")
            return func(*args, **(kwargs or {}))

    whole = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: asked.append("list") or whole(self))
    for spoilt in (False, True):
        asked.clear()
        with Seen():
            assert scaled_step(trainer, spoilt) is not spoilt
        # the loss is sent along; nothing but the gradients' clipping may look again
        assert asked == ["list"]
    assert trainer.losses["loss"] > 0 and not math.isfinite(trainer.norm)


def test_the_copy_of_the_buffers_takes_memory_once(data):
    trainer = scaled_trainer(data)
    first = trainer.copy_buffers()
    wanted = [buffer.clone() for buffer in trainer.model.buffers()]
    for buffer in trainer.model.buffers():
        buffer += 1
    assert all(torch.equal(*pair) for pair in zip(first, wanted, strict=True))
    second = trainer.copy_buffers()
    assert [one.data_ptr() for one in first] == [one.data_ptr() for one in second]
    assert all(torch.equal(*pair) for pair in zip(second, trainer.model.buffers(), strict=True))
    assert {buffer.dtype for buffer in second} == {torch.float32, torch.int64}


@pytest.mark.parametrize("was", [None, False])
def test_a_run_from_before_the_fused_optimiser_goes_on_with_it(data, tmp_path, was):
    """Its weights then differ in the last places from what they would have been; its momentum is taken over."""
    ways = []
    for fused in (was, True):
        trainer = scaled_trainer(data, "train.optimizer=sgd", "train.ema=0.0")
        assert trainer.optimizer.defaults["fused"]
        if not fused:
            trainer.optimizer = torch.optim.SGD(
                trainer.model.parameters(), 1e-3, 0.9, weight_decay=trainer.preset.train.weight_decay, fused=fused
            )
        trainer.set_rate(1e-3)
        scaled_step(trainer, False)
        path = checkpoint.save(tmp_path / str(fused), 1, trainer.state(), keep=2)
        again = scaled_trainer(data, "train.optimizer=sgd", "train.ema=0.0")
        again.resume(checkpoint.read(path), path)
        assert again.optimizer.param_groups[0]["fused"] is True
        again.set_rate(1e-3)
        assert scaled_step(again, False)
        ways.append(again.model.state_dict())
    for key, value in ways[0].items():
        torch.testing.assert_close(value, ways[1][key], msg=key)
