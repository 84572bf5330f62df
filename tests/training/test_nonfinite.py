"""What is not finite: the step is skipped by all, whole; too many of them end the run; half precision's scale."""

import copy
import itertools
import json
import math
import os
from pathlib import Path

import pytest
import torch
from runs import canonical, make_horizons, plan_of, preset, steps, train
from torch.utils._python_dispatch import TorchDispatchMode

from ccnet_cli.datasets.sampling import Batches
from ccnet_cli.datasets.source import open_source
from ccnet_cli.errors import NonFiniteError
from ccnet_cli.parallel import supervisor
from ccnet_cli.parallel.group import Group, Limits
from ccnet_cli.runs import checkpoint
from ccnet_cli.training import process
from ccnet_cli.training import trainer as trainers

LONG = ("schedule.steps=20", "checkpoint.every=1", "checkpoint.keep=100")
RICH = ("model.dropout=0.5", "train.ema=0.9", "loss.ohem.min_kept=500")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


BAD = (*LONG, *RICH, "eval.every=0", "train.optimizer=sgd")


def spoil(kind, steps, rank=0):
    """Make the loss, or one gradient, of a rank not finite at some steps; a list of what happened, by step.

    Each entry is the step, whether it was skipped, and whether it left weights, buffers and optimiser as they were.
    """
    forward, update = trainers.LossNetwork.forward, trainers.Trainer.update
    happened, current = [], [1]

    def bad():
        return current[0] in steps and int(os.environ.get("RANK", 0)) == rank

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
    return happened


@pytest.fixture
def mended(monkeypatch):
    """Whatever spoil replaces is put back."""
    monkeypatch.setattr(trainers.LossNetwork, "forward", trainers.LossNetwork.forward)
    monkeypatch.setattr(trainers.Trainer, "update", trainers.Trainer.update)


def expected(skipped):
    """Ten in a row end the run of 20 steps, or of 21 where the 20th is skipped."""
    last = 14 if len(skipped) == 10 else 21 if 20 in skipped else 20
    return [(step, step in skipped, step in skipped) for step in range(1, last + 1)]


def five_on(times):
    return range(5, 5 + times)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("times", [1, 9, 10])
def test_a_step_that_is_not_finite_is_skipped_whole(data, tmp_path, capsys, mended, kind, times):
    happened = spoil(kind, five_on(times))
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
    assert happened == expected(five_on(times))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    skipped = {row["step"]: row["skipped"] for row in rows if "skipped" in row}
    assert list(skipped) == list(range(5, 5 + times))
    order = [str(index) for _, index in itertools.chain(*Batches(6, 4, 0, start_step=4, steps=4 + times))]
    assert [Path(name).name for names in skipped.values() for name in names] == order
    assert f"warning: step 5 skipped (loss {'nan' if kind == 'loss' else ''}" in capsys.readouterr().err


def test_a_good_step_ends_a_row_of_bad_ones(data, tmp_path, mended):
    """Nine bad, one good, nine bad: never ten in a row, though nineteen of twenty-one are skipped."""
    bad = [*range(2, 11), *range(12, 21)]
    happened = spoil("loss", bad)
    run = train(preset(data, *BAD, "schedule.steps=21", "train.max_nonfinite=10"), run=tmp_path / "run")
    assert happened == expected(bad)
    counts = [
        checkpoint.read(run / f"checkpoints/step_{step:08d}.pt")["training"]["nonfinite"] for step in (10, 11, 20)
    ]
    assert counts == [9, 0, 9]


def test_a_run_that_ends_on_two_bad_steps_has_failed(data, tmp_path, mended):
    """One bad step at the end is forgiven, as one is anywhere else."""
    for bad in ([6], [5, 6]):
        spoil("loss", bad)
        made = preset(data, *BAD, "schedule.steps=6")
        if len(bad) == 1:
            assert steps(train(made, run=tmp_path / "one"))[0] == 6
        else:
            with pytest.raises(NonFiniteError, match=r"step 6: loss .* 2 steps in a row"):
                train(made, run=tmp_path / "two")


def test_without_the_guard_the_weights_are_ruined(data, tmp_path, mended, monkeypatch):
    """The twin of the test above."""
    monkeypatch.setattr(trainers, "_not_finite", torch.zeros_like)
    spoil("loss", [5])
    with pytest.raises((NonFiniteError, AssertionError)):
        run = train(preset(data, *BAD, "schedule.steps=6"), run=tmp_path / "run")
        assert all(tensor.isfinite().all() for tensor in checkpoint.read(run / "last.pt")["model"].values())


def test_a_kill_amid_skipped_steps_forgets_none_of_them(data, tmp_path, mended):
    """The tenth in a row is the tenth though the run was resumed after the sixth."""
    spoil("loss", five_on(10))
    with pytest.raises(NonFiniteError):
        train(preset(data, *BAD), run=tmp_path / "run")
    middle = str(tmp_path / "run/checkpoints/step_00000010.pt")
    assert checkpoint.read(Path(middle))["training"]["nonfinite"] == 6
    spoil("loss", range(100))
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
    happened = spoil(kind, five_on(times), rank=1)
    try:
        process.run(worker, made.request, made.device, made)
    finally:
        (folder / str(os.environ["RANK"])).write_text(json.dumps(happened))


def assert_skipped_by_two(data, folder, kind, times):
    # a rank that skips alone waits for the other: no longer than this
    made = plan_of(preset(data, *BAD), folder / "run", processes=2, limits=Limits(collective=30))
    (folder / "run").mkdir()
    if times < 10:
        supervisor.run(_spoilt_work, (made, kind, times, folder), 2)
    else:
        with pytest.raises(NonFiniteError, match=r"step 14: .* 10 steps in a row"):
            supervisor.run(_spoilt_work, (made, kind, times, folder), 2)
        told = json.loads((folder / "run/nonfinite_step_14.json").read_text())
        assert [len(rank["samples"]) for rank in told["ranks"]] == [2, 2]
    for rank in "01":
        assert [tuple(each) for each in json.loads((folder / rank).read_text())] == expected(five_on(times))


def test_what_one_process_meets_all_skip(data, tmp_path, forked_workers):
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
