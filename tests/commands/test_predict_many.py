"""Prediction of many images: by several processes, in shards, with errors among them, from lists without an end."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import calls
import pytest
import runs
import tiny

from ccnet_cli import files
from ccnet_cli.commands import predict as prediction
from ccnet_cli.errors import EnvironmentFailure, InputError, Interrupted
from ccnet_cli.inference import dispatch, stream, task_queue
from ccnet_cli.media import images, layout, sources
from ccnet_cli.parallel.group import Limits

COUNT = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, twelve photographs of different sizes in two folders, and their masks by one process."""
    folder = tmp_path_factory.mktemp("many")
    saved = tiny.save_checkpoint(folder / "checkpoint")
    for number in range(COUNT):
        tiny.write(folder / "photos" / "ab"[number % 2] / f"{number:02}.png", tiny.picture(20 + number, 30, number))
    undisturbed = calls.predict([folder / "photos"], folder / "masks", saved, areas=True, device="cpu")
    return folder, saved, undisturbed, read_all(folder / "masks")


def read_all(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predict(place, output, **options):
    folder, saved, *_ = place
    return calls.predict([folder / "photos"], output, saved, **{"device": "cpu", "areas": True} | options)


def watch_reading(monkeypatch, log, act):
    """Log which process reads which image, and act on it before."""
    read = images.read_image

    def read_image(path, **options):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {path.stem}\n")
        act(path)
        return read(path, **options)

    monkeypatch.setattr(images, "read_image", read_image)


def read_log(log):
    return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []


def test_processes_take_the_next_image_as_soon_as_they_can(place, tmp_path, monkeypatch, forked_workers):
    # the first image is slow; what was read ahead behind it waits, the rest does not
    watch_reading(monkeypatch, tmp_path / "log", lambda path: time.sleep(1.0 if path.stem == "00" else 0.02))
    result = predict(place, tmp_path / "out", processes=2)
    assert read_all(tmp_path / "out") == place[3]
    assert result.to_mapping() == place[2].to_mapping()
    assert [path.name for path in result.files] == [path.name for path in place[2].files]
    log = read_log(tmp_path / "log")
    slow = next(process for process, name in log if name == "00")
    assert len({process for process, _ in log}) == 2
    assert len([name for process, name in log if process == slow]) <= dispatch.DEPTH


@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_cannot_be_read_does_not_stop_the_others(place, tmp_path, processes, forked_workers):
    folder, saved, _, masks = place
    (tmp_path / "bad.png").write_bytes(b"no image")
    list_of = [tmp_path / "bad.png", folder / "photos"]
    options = {"device": "cpu", "processes": processes, "areas": True}
    result = calls.predict(list_of, tmp_path / "out", saved, check=False, **options)
    assert read_all(tmp_path / "out") == masks
    assert result.areas == place[2].areas
    with pytest.raises(InputError, match=f"1 of {COUNT + 1} sources were not segmented, the others were") as caught:
        result.result.check()
    assert re.match(r"image .*bad\.png: not a PNG", caught.value.__notes__[0])
    with pytest.raises(InputError, match=r"bad\.png: not a PNG"):
        calls.predict(list_of, tmp_path / "strict", saved, strict=True, **options)
    assert len(read_all(tmp_path / "strict")) < COUNT


def test_the_image_of_a_process_that_died_is_tried_again(place, tmp_path, monkeypatch, capfd, forked_workers):
    def act(path):
        if path.stem == "03" and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    watch_reading(monkeypatch, tmp_path / "log", act)
    result = predict(place, tmp_path / "out", processes=2)
    assert read_all(tmp_path / "out") == place[3]
    assert result.areas == place[2].areas
    process = next(process for process, name in read_log(tmp_path / "log") if name == "03")
    assert re.search(
        rf"warning: process \d of this run \({process} on .*\) died; \d of its sources", capfd.readouterr().err
    )


@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_a_process_that_is_frozen_or_hangs_is_replaced(place, tmp_path, monkeypatch, capfd, forked_workers, how):
    monkeypatch.setattr(dispatch, "SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(task_queue, "BEAT_SECONDS", 0.2)

    def act(path):
        if path.stem == "03" and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            # the stop may come a moment later
            time.sleep(1000)

    watch_reading(monkeypatch, tmp_path / "log", act)
    result = predict(place, tmp_path / "out", processes=2, timeout=2.0)
    assert read_all(tmp_path / "out") == place[3]
    assert result.areas == place[2].areas
    process = next(process for process, name in read_log(tmp_path / "log") if name == "03")
    assert not is_alive(int(process))
    why = r"gave no sign of life for 2 s" if how == "stopped" else r"has been at .*03\.png for 2 s"
    words = rf"warning: process \d of this run \({process} on .*\) {why}; [1-3] of its sources are tried again"
    assert re.search(words, capfd.readouterr().err)


def test_an_image_at_which_two_processes_hang_is_reported(place, tmp_path, monkeypatch, forked_workers):
    watch_reading(monkeypatch, tmp_path / "log", lambda path: time.sleep(1000 if path.stem == "03" else 0))
    with pytest.raises(EnvironmentFailure, match="1 of 12 sources were not segmented") as caught:
        predict(place, tmp_path / "out", processes=2, timeout=2.5)
    assert caught.value.exit_code == 3 and "03.png: two processes" in caught.value.__notes__[0]
    assert len([name for name in read_all(tmp_path / "out") if ".tmp-" not in name]) == COUNT - 1


def test_what_killed_processes_left_is_gone_after_the_next_run(place, tmp_path):
    predict(place, tmp_path / "out")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    start = files.process_start(os.getpid())
    names = [f".tmp-{files.HOST}-{process.pid}-s1-aa.png", f".tmp-{files.HOST}-{os.getpid()}-s1-bb.json"]
    names += [f".tmp-{files.HOST}-{os.getpid()}-s{start}-cc.png"]
    (tmp_path / "areas").mkdir()
    for folder in ("out/a", "out/b", "areas"):
        for name in names:
            (tmp_path / folder / name).touch()
    predict(place, tmp_path / "out", skip_complete=True, others=(tmp_path / "areas/areas.json",))
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == [names[2]] * 3


def test_an_image_of_which_two_processes_die_is_reported(place, tmp_path, monkeypatch, forked_workers):
    def act(path):
        if path.stem in ("03", "10"):
            os.kill(os.getpid(), signal.SIGKILL)

    watch_reading(monkeypatch, tmp_path / "log", act)
    with pytest.raises(EnvironmentFailure, match="2 of 12 sources were not segmented") as caught:
        predict(place, tmp_path / "out", processes=2)
    assert caught.value.exit_code == 3
    assert [
        re.search(r"(\d+)\.png: two processes that segmented it died or hung", n)[1] for n in caught.value.__notes__
    ] == [
        "10",
        "03",
    ]
    expected = {name: content for name, content in place[3].items() if name not in ("a/10.png", "b/03.png")}
    # a process that is killed while it writes leaves its temporary, which the next run sweeps
    found = {name: content for name, content in read_all(tmp_path / "out").items() if ".tmp-" not in name}
    assert found == expected
    # what only was in the hands of such a process is not to blame; one of the two may have been in the other's hands
    read = [name for _, name in read_log(tmp_path / "log")]
    assert 3 <= read.count("03") + read.count("10") <= 4, read


def test_processes_that_all_die_end_the_run(place, tmp_path, monkeypatch, forked_workers):
    monkeypatch.setattr(dispatch, "MAX_DEATHS", 2)
    watch_reading(monkeypatch, tmp_path / "log", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(EnvironmentFailure, match="3 died or hung one after the other"):
        predict(place, tmp_path / "out", processes=2)


def test_an_error_of_the_machine_stops_all(place, tmp_path, monkeypatch, forked_workers):
    def fail(*_):
        raise EnvironmentFailure("output x", "not written (No space left on device)", "make room")

    monkeypatch.setattr(stream.outputs, "write", fail)
    with pytest.raises(EnvironmentFailure, match="No space left"):
        predict(place, tmp_path / "out", processes=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_supervisor_ends_all_and_continues(place, tmp_path, monkeypatch, number, forked_workers):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        watch_reading(patch, tmp_path / "log", lambda path: time.sleep(0.2))

        def run():
            with pytest.raises(Interrupted, match=f"stopped by SIGTERM after .* of {COUNT}, each of them whole"):
                predict(place, out, processes=2)

        supervisor = runs.forked(run)
        while is_alive(supervisor) and len(list(out.rglob("[0-9]*.png"))) < 3:
            time.sleep(0.01)
        os.kill(supervisor, number)
        assert runs.ended(supervisor) == (-number if number == signal.SIGKILL else 0)
    workers = {int(process) for process, _ in read_log(tmp_path / "log")}
    deadline = time.monotonic() + 20
    while any(is_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(worker) for worker in workers)
    left = {name: content for name, content in read_all(out).items() if ".tmp-" not in name}
    assert 3 <= len(left) < COUNT and left.items() <= place[3].items()
    result = predict(place, out, processes=2, skip_complete=True)
    assert read_all(out) == place[3]
    assert result.areas == place[2].areas
    assert len(result.files) == COUNT - len(left)


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def launch(place, out, rank, port, work=lambda: None, **options):
    """Start a process as torchrun or SLURM would, without a supervisor; rank 0 writes the areas to a file."""

    def run():
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()
        result = predict(place, out, **options)
        if rank == 0:
            Path(f"{out}.json").write_text(json.dumps(result.to_mapping()))

    return runs.forked(run)


def test_processes_of_a_launcher_share_the_images(place, tmp_path, monkeypatch, forked_workers):
    watch_reading(monkeypatch, tmp_path / "log", lambda path: time.sleep(0.1))
    port = runs.free_port()
    processes = [launch(place, tmp_path / "out", rank, port) for rank in range(2)]
    assert [runs.ended(process) for process in processes] == [0, 0]
    assert {int(process) for process, _ in read_log(tmp_path / "log")} == set(processes)
    assert read_all(tmp_path / "out") == place[3]
    assert json.loads((tmp_path / "out.json").read_text())["sources"] == place[2].to_mapping()["sources"]


def test_without_one_process_of_a_launcher_the_others_go_on(place, tmp_path, monkeypatch, forked_workers):
    watch_reading(monkeypatch, tmp_path / "log", lambda path: time.sleep(0.1))
    port = runs.free_port()
    limits = Limits(collective=1)
    monkeypatch.setattr(prediction, "share_store", lambda device, own=prediction.share_store: own(device, limits))
    first, second = [launch(place, tmp_path / "out", rank, port) for rank in range(2)]
    while is_alive(second) and not any(int(process) == second for process, _ in read_log(tmp_path / "log")):
        time.sleep(0.02)
    os.kill(second, signal.SIGKILL)
    assert [runs.ended(process) for process in (first, second)] == [0, -signal.SIGKILL]
    assert read_all(tmp_path / "out") == place[3]


def test_shards_are_parts_of_the_whole(place, tmp_path):
    parts = [{path.name for path in predict(place, tmp_path / "out", shard=(part, 3)).files} for part in (1, 2, 3)]
    assert sum(map(len, parts)) == COUNT and all(parts)
    assert read_all(tmp_path / "out") == place[3]
    # each of them goes on by itself, whatever the others have done
    removed = next(iter(parts[1]))
    for path in (tmp_path / "out").rglob(removed):
        path.unlink()
    again = [predict(place, tmp_path / "out", shard=(part, 3), skip_complete=True).files for part in (1, 2, 3)]
    assert [[path.name for path in files] for files in again] == [[], [removed], []]


def test_a_fan_out_spreads_the_files_of_each_folder(place, tmp_path):
    result = predict(place, tmp_path / "out", fan_out=2, formats=["color", "train-id"], probabilities=True)
    names = sorted(read_all(tmp_path / "out"))
    assert len(names) == 3 * COUNT
    pattern = re.compile(r"(color|train-id|npz)/([ab])/([0-9a-f]{2}/){2}\d\d\.(png|npz)")
    assert all(pattern.fullmatch(name) for name in names)
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in result.files) == names
    again = predict(
        place, tmp_path / "out", fan_out=2, formats=["color", "train-id"], probabilities=True, skip_complete=True
    )
    assert again.files == []
    # as evenly as hashes do
    folders = [
        layout.Layout(tmp_path, ("color",), fan_out=1).targets(Path(f"{n}.png"), f"{n}")["color"] for n in range(5120)
    ]
    counts = [sum(path.parent.name == f"{number:02x}" for path in folders) for number in range(256)]
    assert 4 <= min(counts) and max(counts) <= 50


class Endless(io.RawIOBase):
    """Standard input that repeats some names of files that do not exist after the first."""

    def __init__(self, first):
        self.content = first + b"\n"
        self.bytes = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        while len(self.content) < len(buffer):
            self.content += b"missing/%d.png\n" % self.bytes * 1000
        count = len(buffer)
        buffer[:], self.content = self.content[:count], self.content[count:]
        self.bytes += count
        return count


def test_a_list_without_an_end_is_segmented_as_it_comes(place, tmp_path, monkeypatch):
    folder, saved, *_ = place
    images_of = sorted((folder / "photos").rglob("*.png"))[:3]
    endless = Endless(b"\n".join(os.fsencode(path) for path in images_of))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(endless)))
    monkeypatch.setattr(prediction, "WINDOW", 50)
    monkeypatch.setattr(prediction, "MAX_AHEAD", 100)
    waiting = []

    class Watched(stream.Collector):
        def add(self, outcome):
            super().add(outcome)
            waiting.append(len(self.waiting))
            if outcome.index == 5000:
                raise InputError("test", "enough", "stop")

    monkeypatch.setattr(prediction, "Collector", Watched)
    with pytest.raises(InputError, match="enough"):
        calls.predict(["-"], tmp_path / "out", saved, device="cpu", skip_complete=True)
    assert len(read_all(tmp_path / "out")) == 3
    assert endless.bytes < 5_000 * 100
    # no outcome waits for more than MAX_AHEAD others
    assert len(waiting) > 5000 and max(waiting) <= 100


def test_a_large_folder_comes_in_pieces_of_the_disks_order(tmp_path, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number:02}.png").write_bytes(b"x")
    assert [source.name for source in sources.find([tmp_path])] == [f"{number:02}" for number in range(50)]
    monkeypatch.setattr(sources, "PIECE", 10)
    names = [source.name for source in sources.find([tmp_path])]
    assert sorted(names) == [f"{number:02}" for number in range(50)]
    assert all(names[first : first + 10] == sorted(names[first : first + 10]) for first in range(0, 50, 10))
    # what follows is not read before it is asked for
    opened = []
    monkeypatch.setattr(sources.Skipped, "is_source", lambda self, path: opened.append(path) or True)
    assert len(list(islice(sources.find([tmp_path]), 3))) == 3 and len(opened) == 3


def test_collisions_and_repeats_are_noticed_however_far_apart(place, tmp_path, monkeypatch):
    folder, saved, *_ = place
    for name in ("a/00.jpg", "z/x.png", "z/x.jpg"):
        tiny.write(tmp_path / "more" / name, tiny.picture(9, 9, 1))
    (tmp_path / "more" / "link.png").symlink_to(folder / "photos" / "a" / "02.png")
    monkeypatch.setattr(prediction, "WINDOW", 4)
    result = calls.predict(
        [folder / "photos", tmp_path / "more"], tmp_path / "out", saved, check=False, device="cpu", overwrite=True
    )
    assert result.result.failed == 2 and result.result.sources == COUNT + 3
    assert read_all(tmp_path / "out").items() >= place[3].items()
    first, second = result.result.errors
    assert f"{folder}/photos/a/00.png and {tmp_path}/more/a/00.jpg: both would be written to a/00.png" in str(first)
    assert "both would be written to z/x.png" in str(second)
    monkeypatch.setattr(prediction, "WINDOW", 100)
    with pytest.raises(InputError, match="both would be written"):
        calls.predict([folder / "photos", tmp_path / "more"], tmp_path / "new", saved, device="cpu")
    assert not (tmp_path / "new").exists()


def test_an_image_is_never_replaced_however_long_the_list(tmp_path, monkeypatch, place):
    saved = place[1]
    for name in ("a.jpg", "b.jpg", "c.jpg", "c.png", "more/a.png"):
        tiny.write(tmp_path / "photos" / name, tiny.picture(9, 9, 1))
    # under a name that no source has
    (tmp_path / "photos/a.png").symlink_to(tmp_path / "photos/more/a.png")
    before = read_all(tmp_path / "photos")
    monkeypatch.setattr(prediction, "WINDOW", 1)
    monkeypatch.chdir(tmp_path / "photos")
    listing = "a.jpg\nc.jpg\nb.jpg\nmissing.jpg\nc.png\nmore/a.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listing.encode())))
    result = calls.predict(["-"], Path(), saved, check=False, device="cpu", overwrite=True)
    assert result.result.sources == 6
    # the output of a.jpg is an image far down the list, that of c.jpg one that comes later, that of c.png is c.jpg's
    failed = [str(error) for error in result.result.errors]
    assert ["output a.png", "output c.png", "standard input: missing.jpg", "c.jpg and c.png"] == [
        str(error.what) for error in result.result.errors[:4]
    ], failed
    assert read_all(tmp_path / "photos").items() >= before.items()
    assert (tmp_path / "photos/b.png").exists()


def children(process):
    """The processes that a process has started."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def resident(process):
    """MiB that a process holds in memory."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


@pytest.mark.slow
def test_two_thousand_images_survive_the_loss_of_processes_in_flat_memory(tmp_path):
    saved = tiny.save_checkpoint(tmp_path / "checkpoint")
    for number in range(2000):
        tiny.write(
            tmp_path / "photos" / f"{number % 10}" / f"{number:04}.png", tiny.picture(48 + number % 32, 96, number)
        )
    whole = calls.predict([tmp_path / "photos"], tmp_path / "one", saved, device="cpu").files
    assert len(whole) == 2000
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ccnet_cli.cli", "predict", tmp_path / "photos", "-o", out, "--device", "cpu"]
    command += ["--checkpoint", saved, "--processes", "2", "--continue", "--json", tmp_path / "areas.json"]

    def is_worker(process):
        return b"resource_tracker" not in Path(f"/proc/{process}/cmdline").read_bytes()

    def wait_for(process, count):
        while process.poll() is None and len(list(out.rglob("[0-9]*.png"))) < count:
            time.sleep(0.02)
        assert process.poll() is None
        return [child for child in children(process.pid) if is_worker(child)]

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    os.kill(wait_for(first, 300)[1], signal.SIGKILL)
    left = wait_for(first, 700)
    first.kill()
    assert "died; " in first.communicate()[1]
    time.sleep(2)
    assert not any(is_alive(process) for process in left)
    done = len(list(out.rglob("[0-9]*.png")))
    assert done < 2000
    second = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    processes = [second.pid, *wait_for(second, done + 100)]
    assert len(processes) == 3
    early = {process: resident(process) for process in processes}
    late = dict(early)
    while second.poll() is None and len(list(out.rglob("[0-9]*.png"))) < 1950:
        late |= {process: max(late[process], resident(process)) for process in processes}
        time.sleep(0.1)
    assert f"{done} of 2000 are there already" in second.communicate()[1]
    assert second.returncode == 0
    print({process: (round(early[process]), round(late[process])) for process in processes})
    assert all(late[process] - early[process] < 60 for process in processes)
    assert read_all(out) == read_all(tmp_path / "one")
    found = [entry["source"] for entry in json.loads((tmp_path / "areas.json").read_text())["sources"]]
    assert found == sorted(found) and len(found) == 2000
