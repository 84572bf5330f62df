"""Checkpoints outlast kills, damage and full disks; a run folder is one run's, and a crash loop is left."""

import errno
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import (
    arguments,
    canonical,
    ended,
    forked,
    make_horizons,
    outcome,
    preset,
    start,
    steps,
    train,
    wait_until,
)

from ccnet_cli import config, files
from ccnet_cli.errors import EnvironmentFailure, InputError, Interrupted
from ccnet_cli.runs import checkpoint, torchfile
from ccnet_cli.runs import folder as runfolder
from ccnet_cli.training.loop import Loop


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run of six steps that nothing disturbed."""
    return train(preset(data, "checkpoint.every=1"), run=tmp_path_factory.mktemp("whole") / "run")


def truth(step, size=100_000):
    """The content of a step's checkpoint, drawn from its number alone."""
    numbers = torch.Generator().manual_seed(step)
    weights = {f"layer{index}": torch.randn(size, generator=numbers) for index in range(4)}
    return {"format": 1, "model": weights, "preset": {}, "classes": {}, "step": step, "metrics": {}}


# kills of a saver


def save(folder, step):
    checkpoint.save(folder, step, truth(step), keep=2)


def found(folder):
    newest = checkpoint.read_newest(folder)
    if newest is None:
        return 0
    for path in checkpoint.list_checkpoints(folder):
        assert checkpoint.read(path)["step"] == int(path.stem.removeprefix("step_"))
    assert canonical(newest[1]) == canonical(truth(newest[1]["step"]))
    return newest[1]["step"]


def save_in_place(folder, step):
    folder.mkdir(exist_ok=True)
    torch.save(truth(step), folder / "last.pt")


def found_in_place(folder):
    path = folder / "last.pt"
    return torch.load(path, weights_only=True)["step"] if path.is_file() else 0


def kill_savers(folder, kills, save, found, seed):
    """Kill a process that saves step after step, at random instants, several times; what could be read after each."""
    instants = random.Random(seed)
    told, tell = os.pipe()
    last = 0
    for _ in range(kills):

        def work(first=last + 1):
            for step in itertools.count(first):
                save(folder, step)
                os.write(tell, struct.pack("q", step))

        process = forked(work)
        time.sleep(instants.uniform(0.02, 0.17))
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        os.set_blocking(told, False)
        acknowledged = last
        while True:
            try:
                (acknowledged,) = struct.unpack("q", os.read(told, 8))
            except BlockingIOError:
                break
        last = found(folder)
        assert last >= acknowledged
    os.close(told)
    os.close(tell)
    return last


def test_a_killed_saver_loses_nothing(tmp_path):
    assert kill_savers(tmp_path / "checkpoints", 30, save, found, seed=1) > 15
    # what the kills left is collected; data of the last one, newer than any manifest, once there is a newer one
    for step in (10_000, 10_001):
        save(tmp_path / "checkpoints", step)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


@pytest.mark.slow
def test_five_hundred_killed_savers_lose_nothing(tmp_path):
    assert kill_savers(tmp_path / "checkpoints", 500, save, found, seed=time.time_ns()) > 250


def test_a_saver_that_writes_in_place_loses_all(tmp_path):
    """The twin of the tests above."""
    with pytest.raises((RuntimeError, EOFError, AssertionError)):
        kill_savers(tmp_path / "checkpoints", 60, save_in_place, found_in_place, seed=1)


# kills of a run

RUN = ("model.dropout=0.5", "schedule.steps=30", "checkpoint.every=1", "eval.every=10")


def kill_and_resume(data, folder, whole, instants):
    """Kill a run with all its processes somewhere between its first checkpoint and its end, and let it go on."""
    run = folder / f"run{instants.random()}"
    at, pause = instants.randrange(1, 29), instants.uniform(0, 0.05)
    with start(arguments(data, run, *RUN)) as process:
        wait_until(lambda: steps(run)[:1] >= [at], process)
        time.sleep(pause)
        acknowledged = steps(run)[0]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert acknowledged <= steps(run)[0] < 30
    with start([*arguments(data, run, *RUN), "--resume"]) as process:
        told = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "warning" not in told, told
    assert outcome(run) == outcome(whole)
    assert not list(run.rglob(".*")) and not (run / "lock").exists()


def test_a_killed_run_ends_as_if_it_had_not_been(data, tmp_path):
    whole = train(preset(data, *RUN), run=tmp_path / "whole")
    kill_and_resume(data, tmp_path, whole, random.Random(2))


@pytest.mark.slow
def test_twenty_killed_runs_end_as_if_they_had_not_been(data, tmp_path):
    whole = train(preset(data, *RUN), run=tmp_path / "whole")
    instants = random.Random(time.time_ns())
    for _ in range(20):
        kill_and_resume(data, tmp_path, whole, instants)


# for each point, passages early, in the middle and late in a run of six steps
POINTS = {
    "mid_write": ("1", "500", "1500"),
    "after_write": ("1", "3", "6"),
    "after_fsync": ("1", "3", "6"),
    "after_rename": ("1", "3", "6"),
    "mid_manifest": ("1", "3", "6"),
    "after_manifest": ("1", "3", "6"),
    "mid_gc": ("1", "2", "7"),
    "at_exit": ("1", "1", "1"),
}


def stop_and_resume(data, run, whole, point, passage, monkeypatch):
    made = preset(data, "checkpoint.every=1")
    with monkeypatch.context() as patch:
        patch.setattr(files, "POINT", point)
        patch.setattr(files, "PASSAGE", passage)
        patch.setattr(files, "_passages", itertools.count(1))
        process = forked(lambda: train(made, run=run))
        assert ended(process) == 137
    before = steps(run)
    assert train(made, run=run, resume="auto") == run
    assert steps(run)[0] == 6 and before[:1] <= [6]
    assert outcome(run) == outcome(whole)
    if before[:1] != [6]:
        # it had something to do, and what the stop left is collected
        assert len(list((run / "checkpoints").iterdir())) == 4 and not list(run.rglob(".tmp-*"))


@pytest.mark.parametrize("point", POINTS)
def test_a_run_stopped_at_a_point_of_its_saving_ends_the_same(data, tmp_path, whole, point, monkeypatch):
    stop_and_resume(data, tmp_path / "run", whole, point, POINTS[point][1], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_run_stopped_early_and_late_in_its_saving_ends_the_same(data, tmp_path, whole, point, monkeypatch):
    for index, passage in enumerate(POINTS[point]):
        stop_and_resume(data, tmp_path / f"run{index}", whole, point, passage, monkeypatch)


def test_the_environment_names_the_failpoint(data, tmp_path):
    run = tmp_path / "run"
    with start(arguments(data, run, "checkpoint.every=1"), CCNET_FAILPOINT="after_rename:2") as process:
        told = process.communicate(timeout=120)[1]
    assert process.returncode == 137 and "Traceback" not in told
    assert steps(run) == [1] and (run / "checkpoints/step_00000002.pt").is_file()


# what a power cut leaves


class Disk:
    """What the calls of a saver do to a disk: a log of them, from which every state after a power cut is made."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.log = []
        fsync, replace, unlink, opened = os.fsync, Path.replace, Path.unlink, Path.open

        def note_open(path, mode="r", *rest, **more):
            if mode == "wb":
                self.log.append(("create", path.name))
            return opened(path, mode, *rest, **more)

        def note_fsync(descriptor):
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            self.log.append(("sync",) if target == folder else ("fsync", target.name, target.read_bytes()))
            fsync(descriptor)

        def note_replace(path, target):
            self.log.append(("rename", path.name, Path(target).name))
            return replace(path, target)

        def note_unlink(path, missing_ok=False):
            if path.exists():
                self.log.append(("unlink", path.name))
            return unlink(path, missing_ok)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(Path, "open", note_open)
        monkeypatch.setattr(Path, "replace", note_replace)
        monkeypatch.setattr(Path, "unlink", note_unlink)

    def acknowledge(self, step):
        self.log.append(("acknowledged", step))

    def states(self):
        """For each prefix of the log: the files by name, and the last acknowledged step.

        Content that no fsync has followed is lost; of the names since the folder's last sync all, none or any one is.
        """
        for end in range(len(self.log) + 1):
            prefix = self.log[:end]
            synced = max((at for at, event in enumerate(prefix) if event[0] == "sync"), default=-1)
            open_ends = [at for at in range(synced + 1, end) if prefix[at][0] in ("rename", "unlink")]
            steps = [event[1] for event in prefix if event[0] == "acknowledged"]
            for lost in {(), tuple(open_ends), *((at,) for at in open_ends)}:
                yield self._files(prefix, set(lost)), max(steps, default=0)

    def _files(self, prefix, lost):
        files = {}
        for at, (kind, *rest) in enumerate(prefix):
            if kind == "create":
                files[rest[0]] = b""
            elif kind == "fsync":
                files[rest[0]] = rest[1]
            elif at not in lost and kind == "rename":
                # a name that an unsynced rename before it has lost is not there to be given
                if rest[0] in files:
                    files[rest[1]] = files.pop(rest[0])
            elif at not in lost and kind == "unlink":
                files.pop(rest[0], None)
        return files


def assert_survives_power_cuts(folder, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        for step in range(1, 5):
            checkpoint.save(folder, step, truth(step, size=10), keep=2)
            disk.acknowledge(step)
    left = folder.parent / "left"
    count = 0
    for names, acknowledged in disk.states():
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
        for name, content in names.items():
            (left / name).write_bytes(content)
        try:
            newest = checkpoint.read_newest(left)
            assert (newest[1]["step"] if newest else 0) >= acknowledged
        except InputError:
            # the first manifest may be there before its data
            assert not acknowledged
        count += 1
    return count


def test_every_state_after_a_power_cut_has_what_was_acknowledged(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    assert assert_survives_power_cuts(tmp_path / "checkpoints", monkeypatch) > 80


def _without_file_sync(monkeypatch):
    real = os.fsync
    folder = Path.is_dir
    monkeypatch.setattr(
        files.os, "fsync", lambda number: real(number) if folder(Path(f"/proc/self/fd/{number}")) else None
    )


def _without_folder_sync(monkeypatch):
    monkeypatch.setattr(files, "sync_folder", lambda folder: None)


def _all_deleted(monkeypatch):
    def delete(old):
        for path in checkpoint.list_checkpoints(old.parent):
            path.unlink(missing_ok=True)

    monkeypatch.setattr(checkpoint, "_delete", delete)


@pytest.mark.parametrize("flaw", [_without_file_sync, _without_folder_sync, _all_deleted])
def test_a_flaw_in_the_order_is_noticed(tmp_path, monkeypatch, flaw):
    """The twins of the test above."""
    (tmp_path / "checkpoints").mkdir()
    real = Disk.__init__

    def flawed(self, folder, patch):
        real(self, folder, patch)
        flaw(patch)

    monkeypatch.setattr(Disk, "__init__", flawed)
    with pytest.raises((AssertionError, InputError)):
        assert_survives_power_cuts(tmp_path / "checkpoints", monkeypatch)


# damage


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two checkpoints of which the newest is to be damaged."""
    folder = tmp_path_factory.mktemp("pair") / "checkpoints"
    for step in (1, 2):
        checkpoint.save(folder, step, truth(step, size=2000), keep=2)
    return folder


def assert_falls_back(folder, capsys):
    capsys.readouterr()
    path, content = checkpoint.read_newest(folder)
    assert path.name == "step_00000001.pt" and canonical(content) == canonical(truth(1, size=2000))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ccnet: warning: skipped ") and "step_00000002" in line


def damages(folder, truncations, flips, seed):
    """(file, content) of the newest checkpoint or its manifest: cut, empty, zeros, garbage, one bit flipped."""
    places = random.Random(seed)
    data, manifest = folder / "step_00000002.pt", folder / "step_00000002.json"
    size = data.stat().st_size
    content, text = data.read_bytes(), manifest.read_bytes()
    for _ in range(truncations):
        yield data, content[: places.randrange(1, size)]
    yield from ((data, b""), (data, bytes(size)), (data, places.randbytes(size)))
    for index in range(flips):
        path, whole = (data, content) if index % 5 else (manifest, text)
        bit = places.randrange(8 * len(whole))
        yield path, whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]


def assert_all_noticed(pair, folder, capsys, truncations, flips, seed):
    folder = shutil.copytree(pair, folder / "checkpoints")
    for path, content in damages(folder, truncations, flips, seed):
        good = path.read_bytes()
        path.write_bytes(content)
        assert_falls_back(folder, capsys)
        path.write_bytes(good)
    assert checkpoint.read_newest(folder)[1]["step"] == 2


def test_damage_to_the_newest_is_noticed(pair, tmp_path, capsys):
    assert_all_noticed(pair, tmp_path, capsys, 40, 100, seed=3)


@pytest.mark.slow
def test_seven_hundred_and_three_damages_are_noticed(pair, tmp_path, capsys):
    assert_all_noticed(pair, tmp_path, capsys, 200, 500, seed=time.time_ns())


def test_without_the_manifest_damage_would_pass(pair, tmp_path, capsys, monkeypatch):
    """The twin of the tests above."""
    monkeypatch.setattr(checkpoint, "_verify", lambda path, manifest: None)
    with pytest.raises((AssertionError, ValueError)):
        assert_all_noticed(pair, tmp_path, capsys, 40, 100, seed=3)


@pytest.mark.parametrize("key", ["step", "epoch", "torch", "sha256", "bytes", "seal"])
def test_a_manifest_is_what_was_written_or_none(pair, tmp_path, capsys, key):
    """One that is valid JSON still, of another version or another step, is no more than one that is none."""
    folder = shutil.copytree(pair, tmp_path / "checkpoints")
    manifest = folder / "step_00000002.json"
    record = json.loads(manifest.read_text())
    record[key] = 1
    manifest.write_text(json.dumps(record, indent=1))
    assert_falls_back(folder, capsys)


def test_a_manifest_of_another_step_is_none(pair, tmp_path, capsys):
    folder = shutil.copytree(pair, tmp_path / "checkpoints")
    for suffix in (".pt", ".json"):
        shutil.copy(folder / f"step_00000001{suffix}", folder / f"step_00000002{suffix}")
    assert_falls_back(folder, capsys)


def test_a_manifest_without_data_is_passed_over_and_data_without_one_count_as_never_written(pair, tmp_path, capsys):
    folder = shutil.copytree(pair, tmp_path / "checkpoints")
    (folder / "step_00000002.pt").unlink()
    assert_falls_back(folder, capsys)
    for path in folder.glob("*.json"):
        path.unlink()
    assert checkpoint.read_newest(folder) is None


def test_a_checkpoint_that_cannot_be_read_is_passed_over(pair, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(pair, tmp_path / "checkpoints")
    opened = Path.open

    def failing(path, *rest, **more):
        if path.name == "step_00000002.pt":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(Path, "open", failing)
    assert_falls_back(folder, capsys)


def test_one_of_a_newer_version_is_not_taken_for_damaged(pair, tmp_path):
    folder = shutil.copytree(pair, tmp_path / "checkpoints")
    checkpoint.save(folder, 3, truth(3, size=10) | {"format": 2}, keep=3)
    with pytest.raises(InputError, match="update ccnet-cli"):
        checkpoint.read_newest(folder)


def test_all_damaged_never_means_from_the_start(data, tmp_path, whole, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="all 2 checkpoints are damaged"):
        train(preset(data, "schedule.steps=8"), run=run, resume="auto")
    assert capsys.readouterr().err.count("warning: skipped") == 2
    assert {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("harm", ["cut", "no manifest"])
def test_a_named_checkpoint_that_is_bad_is_refused(data, tmp_path, whole, harm):
    run = shutil.copytree(whole, tmp_path / "run")
    path = run / "checkpoints/step_00000006.pt"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="manifest"):
        train(preset(data, "schedule.steps=8"), run=tmp_path / "other", resume=str(path))
    assert not (tmp_path / "other").exists()


def test_what_was_passed_over_is_gone_once_another_takes_its_place(data, tmp_path, whole):
    """Otherwise it would be the newest again, and keep one that is sound from being kept."""
    run = shutil.copytree(whole, tmp_path / "run")
    path = run / "checkpoints/step_00000006.pt"
    path.write_bytes(path.read_bytes()[:-1])
    made = preset(data, "checkpoint.every=1", "schedule.steps=9")
    train(made, run=run, resume=str(run / "checkpoints/step_00000005.pt"))
    assert steps(run) == [9, 8]
    checkpoint.save(run / "checkpoints", 4, truth(4, size=10), keep=2)
    assert steps(run) == [4]


# full disks


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _limited(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


def _full(folder):
    opened = Path.open

    def to_full(path, mode="r", *rest, **more):
        full = path.name.startswith(".tmp-") and path.name.endswith(".pt") and mode == "wb"
        return opened(Path("/dev/full") if full else path, mode, *rest, **more)

    Path.open = to_full


def _ballast(folder):
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() - 120_000)


@pytest.fixture(params=["tmpfs", "RLIMIT_FSIZE", "/dev/full"])
def full(request, tmp_path):
    """A folder for runs, and what makes its disk full for the process that calls it, with the words of the error."""
    if request.param != "tmpfs":
        yield tmp_path, *((_limited, "EFBIG") if request.param == "RLIMIT_FSIZE" else (_full, "ENOSPC"))
        return
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield small, _ballast, "ENOSPC"
    subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize(("every", "refused"), [("1", 3), ("100", 1)], ids=["periodic", "final"])
def test_a_full_disk_ends_the_run_and_harms_nothing(data, full, capfd, every, refused):
    """Two steps fit; of the next, the third periodic checkpoint that is refused or the final one ends the run."""
    folder, fill, words = full
    run = train(preset(data, "schedule.steps=2", "eval.every=0"), run=folder / "run")
    before = contents(run / "checkpoints")
    saves = preset(data, "schedule.steps=20", "eval.every=0", f"checkpoint.every={every}")

    def work():
        fill(folder)
        try:
            train(saves, run=run, resume="auto")
        except EnvironmentFailure as error:
            print(f"ended {error.exit_code}: {error}", flush=True)

    capfd.readouterr()
    assert ended(forked(work)) == 0
    out, told = capfd.readouterr()
    last = {"1": 5, "100": 20}[every]
    assert f"ended 3: {run}/checkpoints/step_{last:08d}.pt: checkpoint not written ({words}, " in out
    assert len(re.findall(r"warning: \S+: checkpoint not written", told)) == refused - 1
    assert contents(run / "checkpoints") == before
    assert not list(run.rglob(".tmp-*"))


def test_a_disk_full_for_a_while_costs_checkpoints_only(data, tmp_path, whole, capsys, monkeypatch):
    """Two in a row are refused, twice: the run goes on, and its last evaluation's weights are the best ones."""
    real, refused = checkpoint.save, (1, 2, 4, 5)

    def sometimes(folder, step, *rest):
        if step in refused:
            raise EnvironmentFailure(folder / f"step_{step:08d}.pt", "checkpoint not written (ENOSPC)", "free space")
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    run = train(preset(data, "checkpoint.every=1"), run=tmp_path / "run")
    assert steps(run) == [6, 3] and outcome(run) == outcome(whole)
    assert capsys.readouterr().err.count("goes on without it") == 4
    refused = (2, 3, 4)
    with pytest.raises(EnvironmentFailure, match="step_00000004"):
        train(preset(data, "checkpoint.every=1"), run=tmp_path / "other")
    assert steps(tmp_path / "other") == [1]


def test_best_weights_that_the_disk_refused_are_not_the_best_so_far(data, tmp_path, monkeypatch):
    real = checkpoint.save

    def sometimes(folder, step, state, *rest):
        if step == 3:
            raise EnvironmentFailure(folder, "checkpoint not written (ENOSPC)", "free space")
        return real(folder, step, state, *rest)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    scores = iter([0.9, 0.5])

    def evaluate(loop):
        trainer = loop.trainer
        trainer.metrics = {"miou": next(scores)}
        if trainer.metrics["miou"] > trainer.best:
            trainer.best, trainer.best_step = trainer.metrics["miou"], trainer.step
        return 0

    monkeypatch.setattr(Loop, "_evaluate", evaluate)
    run = train(preset(data, "checkpoint.every=3"), run=tmp_path / "run")
    assert checkpoint.read(run / "best.pt")["metrics"]["miou"] == 0.5


# retention and leftovers


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_so_many_are_kept(tmp_path, keep):
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, truth(step, size=10), keep)
    wanted = {f"step_{step:08d}{suffix}" for step in range(8 - keep, 8) for suffix in (".pt", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == wanted


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_fewer_than_two_are_refused(tmp_path, data, keep):
    with pytest.raises(InputError, match=r"checkpoint\.keep"):
        config.load("quickstart", [f"checkpoint.keep={keep}"])
    with pytest.raises(ValueError, match="keep"):
        checkpoint.save(tmp_path, 1, truth(1, size=10), keep)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_one_that_cannot_be_deleted_is_told_and_stays_consistent(tmp_path, monkeypatch, capsys, suffix):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, truth(step, size=10), 2)
    unlink = Path.unlink

    def refusing(path, missing_ok=False):
        if path.name == f"step_00000001{suffix}":
            raise PermissionError(errno.EACCES, "Permission denied")
        return unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refusing)
        checkpoint.save(tmp_path, 3, truth(3, size=10), 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"step_00000001{suffix} not deleted (Permission denied)" in line
    # data may stay without a manifest, never the other way round
    assert (tmp_path / "step_00000001.pt").exists()
    checkpoint.save(tmp_path, 4, truth(4, size=10), 2)
    assert len(list(tmp_path.iterdir())) == 4


def dead_process():
    process = forked(lambda: None)
    ended(process)
    return process


@pytest.mark.parametrize("begin", ["save", "run"])
def test_forty_leftovers_but_for_the_living(data, tmp_path, begin):
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    dead = dead_process()
    stale = [folder / f".tmp-{files.HOST}-{dead}-{index}" for index in range(37)]
    stale += [folder / f".tmp-{dead}-step_00000001.pt", folder / f".tmp-{files.HOST}-{dead}-step_00000007.json"]
    others = {folder / f".tmp-{files.HOST}-{os.getppid()}-9"}
    others |= {folder / f".tmp-elsewhere-{dead}-9", folder / f".tmp-{files.HOST}-{dead}-{dead}-step_00000003.pt"}
    for path in (*stale, *others):
        path.write_bytes(b"half")
    if begin == "save":
        checkpoint.save(folder, 1, truth(1, size=10), keep=2)
    else:
        train(preset(data, "schedule.steps=1"), run=tmp_path / "run", resume="auto")
    assert set(folder.glob(".tmp-*")) == others


def test_data_without_a_manifest_are_collected_once_others_are_newer(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, truth(step, size=10), keep=5)
    for step in (2, 5):
        (tmp_path / f"step_{step:08d}.json").unlink()
    (tmp_path / "step_1.pt").write_bytes(b"not ours")
    checkpoint.delete_leftovers(tmp_path)
    assert not (tmp_path / "step_00000002.pt").exists()
    assert (tmp_path / "step_00000005.pt").exists() and (tmp_path / "step_1.pt").exists()


def test_a_kill_while_a_name_is_given_leaves_it_readable(tmp_path, monkeypatch):
    paths = [checkpoint.save(tmp_path / "all", step, truth(step, size=10), keep=2) for step in (1, 2)]
    checkpoint.add_name(paths[0], tmp_path / "best.pt")
    for calls in range(1, 6):
        left = itertools.count(1)

        def dying(function, left=left, calls=calls):
            def call(*given, **named):
                if next(left) == calls:
                    raise KeyboardInterrupt
                return function(*given, **named)

            return call

        with monkeypatch.context() as patch:
            for owner, word in ((os, "link"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(owner, word, dying(getattr(owner, word)))
            with pytest.raises(KeyboardInterrupt):
                checkpoint.add_name(paths[1], tmp_path / "best.pt")
        assert checkpoint.read(tmp_path / "best.pt")["step"] in (1, 2)


# crash loops and locks


def crash(monkeypatch, data, run, error=RuntimeError, **more):
    """A resume that ends by an error before it has written anything."""

    def failing(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", failing)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            train(preset(data, "checkpoint.every=1", "schedule.steps=9"), run=run, resume="auto", **more)


def resumed(data, run, steps, **more):
    return train(preset(data, "checkpoint.every=1", f"schedule.steps={steps}"), run=run, resume="auto", **more)


def test_a_checkpoint_from_which_three_resumes_failed_is_passed_over(data, tmp_path, whole, capsys, monkeypatch):
    run = shutil.copytree(whole, tmp_path / "run")
    for count in range(1, 4):
        crash(monkeypatch, data, run)
        assert runfolder.read_attempts(run / "checkpoints") == {"step_00000006": count}
    capsys.readouterr()
    crash(monkeypatch, data, run)
    assert "step_00000006.pt: 3 resumes from it did no step" in capsys.readouterr().err
    assert runfolder.read_attempts(run / "checkpoints") == {"step_00000006": 3, "step_00000005": 1}
    resumed(data, run, 9)
    assert steps(run) == [9, 8] and runfolder.read_attempts(run / "checkpoints") == {}


def test_the_last_sound_checkpoint_is_never_passed_over(data, tmp_path, whole, monkeypatch):
    run = shutil.copytree(whole, tmp_path / "run")
    for _ in range(6):
        crash(monkeypatch, data, run)
    assert runfolder.read_attempts(run / "checkpoints") == {"step_00000006": 3, "step_00000005": 3}
    resumed(data, run, 6)
    assert steps(run) == [6, 5]
    # and where the only other one is damaged
    for _ in range(3):
        crash(monkeypatch, data, run)
    (run / "checkpoints/step_00000005.pt").write_bytes(b"")
    resumed(data, run, 7)
    assert steps(run)[0] == 7


@pytest.mark.parametrize(
    "error",
    [
        InputError("data", "bad", "mend"),
        EnvironmentFailure("disk", "full", "free"),
        Interrupted("run", "stopped", "again", 15),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_resume_that_was_refused_or_stopped_has_not_failed(data, tmp_path, whole, monkeypatch, error):
    run = shutil.copytree(whole, tmp_path / "run")
    crash(monkeypatch, data, run)
    for _ in range(4):
        crash(monkeypatch, data, run, error)
    assert runfolder.read_attempts(run / "checkpoints") == {"step_00000006": 1}


class KilledError(BaseException):
    """What a test takes for a SIGKILL that comes after a step."""


def test_kills_after_a_step_are_no_attempts(data, tmp_path, whole, monkeypatch):
    """Six of them between two checkpoints: the next resume goes on from the newest."""
    run = shutil.copytree(whole, tmp_path / "run")
    step, killed = Loop._step, []

    def die(loop):
        step(loop)
        killed.append(loop.trainer.step)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", die)
        for _ in range(6):
            with pytest.raises(KilledError):
                resumed(data, run, 9)
    assert killed == [7] * 6 and runfolder.read_attempts(run / "checkpoints") == {}


def test_a_step_forgets_the_attempts_of_its_checkpoint_alone(tmp_path):
    newest, before = tmp_path / "step_00000002.pt", tmp_path / "step_00000001.pt"
    for path in (newest, newest, newest, before, before):
        runfolder.count_attempt(path)
    runfolder.forget_attempts(before)
    assert runfolder.read_attempts(tmp_path) == {"step_00000002": 3}
    runfolder.forget_attempts(newest)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("planted", ["read", "step"])
def test_a_checkpoint_that_kills_is_passed_over_after_three(data, tmp_path, whole, monkeypatch, planted):
    """The process dies while it reads the file, or in its first step."""
    run = shutil.copytree(whole, tmp_path / "run")
    read, step = torchfile.read, Loop._step

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if planted == "read":
        monkeypatch.setattr(torchfile, "read", lambda path: die() if path.stem == "step_00000006" else read(path))
    else:
        monkeypatch.setattr(Loop, "_step", lambda loop: die() if loop.trainer.step == 6 else step(loop))
    for count in range(1, 4):
        assert ended(forked(lambda: resumed(data, run, 9))) == -signal.SIGKILL
        assert runfolder.read_attempts(run / "checkpoints") == {"step_00000006": count}
    if planted == "read":
        assert ended(forked(lambda: resumed(data, run, 6))) == 0
        assert steps(run) == [6, 5] and outcome(run) == outcome(whole)


def test_a_zombie_holds_nothing():
    process = forked(lambda: None)
    deadline = time.monotonic() + 30
    while files.process_start(process) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert files.process_start(process) is None and Path(f"/proc/{process}").exists()
    ended(process)


def test_an_empty_run_starts_afresh_and_says_so(data, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/step_00000004.pt").write_bytes(b"never written whole")
    train(preset(data, "schedule.steps=1"), run=run, resume="auto")
    assert f"nothing to resume in {run}: starting a new run" in capsys.readouterr().err
    assert steps(run) == [1]
