"""A command needs no terminal, ends with the codes that are promised, and can be interrupted from its first moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tiny
from runs import arguments, ended, forked, make_horizons, outcome, preset, steps, train

from ccnet_cli import cli, errors
from ccnet_cli.media import images
from ccnet_cli.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_horizons(tmp_path_factory.mktemp("horizons") / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return train(preset(data), tmp_path_factory.mktemp("undisturbed") / "run")


def closed(number):
    os.close(number)


def full(number):
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def broken(number):
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, number)


def sound(number):
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def code_of(words, prepare, number=2):
    """The exit code of a command in a copy of this process, one of whose streams is prepared before it starts."""

    def work():
        for each in (1, 2):
            (prepare if each == number else sound)(each)
        streams = ["stdout", "stderr"]
        for each, name in enumerate(streams, 1):
            stream = None if prepare is closed and each == number else os.fdopen(each, "w", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        os.environ[errors.VERBOSITY] = ""
        try:
            sys.argv[1:] = map(str, words)
            cli.main()
        except SystemExit as stop:
            # what the interpreter does at its end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)

    return ended(forked(work))


BAD = {"closed": closed, "full": full, "broken": broken}


@pytest.mark.parametrize("prepare", BAD.values(), ids=BAD)
def test_training_goes_on_without_stderr(data, tmp_path, undisturbed, prepare):
    run = tmp_path / "run"
    assert code_of(arguments(data, run), prepare) == 0
    assert outcome(run)[1] == outcome(undisturbed)[1]
    # an error is one even if nobody reads it
    assert code_of(arguments(data, run), prepare) == 2


@pytest.mark.parametrize("prepare", BAD.values(), ids=BAD)
def test_evaluation_and_prediction_go_on_without_stderr(model, tmp_path, prepare):
    data = tiny.make_camvid(tmp_path / "data", [(24, 40)] * 3)
    words = ("eval", model, "--data", data, "--json", tmp_path / "scores.json")
    assert code_of(words, prepare) == 0 and json.loads((tmp_path / "scores.json").read_text())["images"] == 3
    assert code_of(("predict", data / "val", "-o", tmp_path / "masks", "--checkpoint", model), prepare) == 0
    assert len(list((tmp_path / "masks").iterdir())) == 3


# nobody reads a closed stdout; the results that another refuses are an error, but the work is done
CODES = {"closed": 0, "full": 3, "broken": 128 + signal.SIGPIPE}


@pytest.mark.parametrize("kind", BAD)
def test_what_a_bad_stdout_ends_is_never_a_bug(data, model, tmp_path, kind):
    run = tmp_path / "run"
    assert code_of(arguments(data, run, "schedule.steps=1"), BAD[kind], 1) == CODES[kind]
    assert steps(run) == [1]
    source = tiny.make_camvid(tmp_path / "data", [(24, 40)])
    assert code_of(("eval", model, "--data", source), BAD[kind], 1) == CODES[kind]
    assert (
        code_of(("predict", source / "val", "-o", tmp_path / "masks", "--checkpoint", model), BAD[kind], 1)
        == (CODES[kind])
    )


def test_stderr_that_breaks_while_it_is_used_is_lost(monkeypatch, capfd):
    read, write = os.pipe()
    saved = os.dup(2)
    os.dup2(write, 2)
    try:
        monkeypatch.setattr(sys, "__stderr__", sys.stderr)
        errors.mend_streams()
        errors.announce("before")
        assert os.read(read, 100) == b"ccnet: before\n"
        os.close(read)
        errors.announce("after")
        print("and \ud800", file=sys.stderr)
    finally:
        os.dup2(saved, 2)
    errors.announce("again")
    assert capfd.readouterr().err == "ccnet: again\n"


# signals


def hang_up(data, run, ignored):
    """Train, and send SIGHUP after the second step; the exit code."""

    def work():
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        update = Trainer.update

        def then(trainer, *parts):
            done = update(trainer, *parts)
            if trainer.step == 2:
                os.kill(os.getpid(), signal.SIGHUP)
            return done

        Trainer.update = then
        try:
            cli.main(arguments(data, run, "checkpoint.every=100"))
        except SystemExit as stop:
            os._exit(stop.code)

    return ended(forked(work))


def test_a_hang_up_is_answered_with_a_checkpoint_unless_it_is_ignored(data, tmp_path):
    assert hang_up(data, tmp_path / "run", ignored=False) == 129 and steps(tmp_path / "run") == [2]
    assert hang_up(data, tmp_path / "other", ignored=True) == 0 and steps(tmp_path / "other")[0] == 6


def test_a_hang_up_ends_a_prediction_after_a_whole_image(model, tmp_path):
    source = tiny.make_camvid(tmp_path / "data", [(24, 40)] * 4)

    def work():
        write = images.write_label

        def then(*parts):
            write(*parts)
            # a second one ends the process at once
            images.write_label = write
            os.kill(os.getpid(), signal.SIGHUP)

        images.write_label = then
        try:
            cli.main(list(map(str, ("predict", source / "val", "-o", tmp_path / "masks", "--checkpoint", model))))
        except SystemExit as stop:
            os._exit(stop.code)

    assert ended(forked(work)) == 129
    assert all(images.read_label(path).shape == (24, 40) for path in (tmp_path / "masks").iterdir())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_an_evaluation_in_one_line(model, tmp_path, monkeypatch, capfd, number):
    folder = tiny.make_camvid(tmp_path / "data", [(24, 40)] * 4)

    def work():
        for each in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        read = images.read_image

        def then(*parts, **options):
            os.kill(os.getpid(), number)
            return read(*parts, **options)

        images.read_image = then
        sys.argv = ["ccnet", "eval", str(model), "--data", str(folder), "--device", "cpu", "--quiet"]
        try:
            cli.main()
        except SystemExit as stop:
            sys.stderr.flush()
            os._exit(stop.code)

    assert ended(forked(work)) == 128 + number
    line = f"ccnet: error: this command: stopped by {number.name}; start it again\n"
    assert capfd.readouterr().err == line


COMMANDS = {
    "train": ("train", "--preset", "quickstart", "-o", "run", "-s", "schedule.steps=100000"),
    "eval": ("eval", "{model}", "--data", "{data}"),
    "predict": ("predict", "{data}/val", "-o", "masks", "--checkpoint", "{model}"),
    "visualize": ("visualize", "--point", "3,4", "-o", "a.png", "--checkpoint", "{model}"),
    "export": ("export", "{model}", "-o", "new.onnx", "--format", "onnx"),
    "doctor": ("doctor",),
    "bench": ("bench", "cost"),
    "data": ("data", "check", "{data}"),
    "presets": ("presets", "list"),
    "guide": ("guide", "training"),
}


def interrupt(command, folder, model, seconds):
    """Interrupt a command some time after its first line of Python; its code, None if it had ended, and its stderr."""
    values = {"model": str(model), "data": str(folder / "data")}
    words = [word.format(**values) for word in COMMANDS[command]]
    start = f"import signal, sys; print(flush=True); from ccnet_cli.cli import main; sys.argv[1:] = {words!r}; main()"
    with subprocess.Popen(
        [sys.executable, "-c", start],
        cwd=folder,
        env=os.environ | {"CCNET_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        time.sleep(seconds)
        done = process.poll() is not None
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    return None if done or process.returncode == 0 else process.returncode, err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "span",
    [(0.05, 0.4), *(pytest.param((0.1 * n, 0.1 * n + 0.1), marks=pytest.mark.slow) for n in range(1, 20))],
    ids=str,
)
def test_an_interrupt_at_any_time_is_a_code_and_one_line_at_most(model, tmp_path, command, span):
    for split in ("train", "val"):
        tiny.make_camvid(tmp_path / "data", [(24, 40)], split)
    code, err = interrupt(command, tmp_path, model, random.Random(f"{command}{span}").uniform(*span))
    assert "Traceback" not in err and "Exception ignored" not in err, err
    if code is not None:
        # while the interpreter ends, the signal has its default action, which is 130 to a shell as well
        assert code in (130, -signal.SIGINT), err
        lines = [line for line in err.splitlines() if line.startswith("ccnet: error")]
        assert len(lines) <= 1


def test_an_interrupt_in_an_import_is_no_exception(tmp_path):
    """Some libraries swallow whatever an import of theirs raises."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(9): pass\n"
    )
    (tmp_path / "swallow.py").write_text("try:\n    import slow\nexcept BaseException:\n    print('swallowed')\n")
    words = ["presets", "list", "--extend", str(tmp_path / "swallow.py")]
    done = subprocess.run(
        [sys.executable, "-m", "ccnet_cli.cli", *words],
        env=os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_names_from_a_closed_stdin_are_refused(model, tmp_path):
    command = f"{sys.executable} -m ccnet_cli.cli predict - -o masks --checkpoint {model} <&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("ccnet: error: standard input: is closed;")
