"""From the words of a command line to an exit code: one line for each error."""

import difflib
import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from typer.exceptions import TyperException

from ccnet_cli import files
from ccnet_cli.cli import exit_at_once
from ccnet_cli.cli.commands import EXTEND, FLAGS, app
from ccnet_cli.errors import (
    VERBOSITY,
    CCNetError,
    EnvironmentFailure,
    InputError,
    announce,
    detail,
    mend_streams,
    one_line,
    out_of_memory,
)


class _Stopped(BaseException):
    """A signal, by its number, ends the command; as a KeyboardInterrupt, it is no error that anything handles."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of DESIGN's table; errors of the user take one line on stderr."""
    words, flags, extensions = take_common(sys.argv[1:] if arguments is None else arguments)
    words = resume_alone(words)
    mend_streams()
    os.environ[VERBOSITY] = "quiet" if "quiet" in flags else "verbose" if "verbose" in flags else ""
    # torch's C++ reports a lost connection in many lines, ccnet in one
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torch's own folder for compiled code is emptied when the machine starts
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(files.cache_folder() / "compiled"))
    _use_huge_pages(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    handlers = _handle_signals() if arguments is None else {}
    try:
        if {"quiet", "verbose"} <= flags:
            raise InputError("option --quiet", "--verbose is given too", "give one of them")
        code = _run(words, extensions)
    except SystemExit as stop:
        # typer turns a broken pipe into a plain exit
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = _broken_pipe()
    except BrokenPipeError:
        code = _broken_pipe()
    except KeyboardInterrupt:
        code = 130
    except _Stopped as stop:
        code = _report_signal(*stop.args)
    except Exception as error:
        code = _report(error, "debug" in flags)
    if arguments is None:
        # an interrupt while the interpreter exits is no exception of ours
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _drop_unprinted()
    sys.exit(code)


def _use_huge_pages(choice: Path) -> None:
    """Let torch ask for huge pages where Linux gives them on request: large maps are in use sooner."""
    with suppress(OSError):
        if "[madvise]" in choice.read_text():
            os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def take_common(words: Sequence[str]) -> tuple[list[str], set[str], list[str]]:
    """The words without the options of every command, the flags among these, and the files of --extend.

    They may stand anywhere before --, which ends the options.
    """
    end = words.index("--") if "--" in words else len(words)
    rest: list[str] = []
    flags: set[str] = set()
    extensions: list[str] = []
    before = iter(words[:end])
    for word in before:
        if word in FLAGS:
            flags.add(FLAGS[word])
        elif word == EXTEND and (file := next(before, None)) is not None:
            extensions.append(file)
        elif word.startswith(f"{EXTEND}="):
            extensions.append(word.removeprefix(f"{EXTEND}="))
        else:
            rest.append(word)
    return [*rest, *words[end:]], flags, extensions


def _run(words: list[str], extensions: list[str]) -> int:
    """Run a command, and give its exit code; parts from outside are imported first, unless for help or completion."""
    started = time.monotonic()
    options = words[: words.index("--")] if "--" in words else words
    if words and not {"--help", "-h", "--version"} & set(options) and "_CCNET_COMPLETE" not in os.environ:
        _extend(extensions)
    code = typer.main.get_command(app).main(words, prog_name="ccnet", standalone_mode=False)
    sys.stdout.flush()
    detail(f"done in {time.monotonic() - started:.1f} s")
    return code or 0


def _extend(extensions: list[str]) -> None:
    """Import the files of $CCNET_EXTEND and of --extend, and let the processes that a command starts do the same."""
    inherited = [file for file in os.environ.get("CCNET_EXTEND", "").split(os.pathsep) if file]
    if not (inherited or extensions):
        return
    from ccnet_cli import parts

    absolute = list(dict.fromkeys(str(Path(file).expanduser().absolute()) for file in [*inherited, *extensions]))
    if unusable := [file for file in absolute if os.pathsep in file]:
        raise InputError(f"option --extend {unusable[0]}", f"its path holds a {os.pathsep}", "rename it")
    os.environ[parts.EXTEND] = os.pathsep.join(absolute)
    parts.extend_from_environment()


def _handle_signals() -> dict[int, Any]:
    """Let signals end the command, but those that nohup or a program around has changed; the handlers of before."""
    ends: dict[int, Any] = {signal.SIGINT: exit_at_once}
    # one of several processes may wait for the others where no handler runs
    if "RANK" not in os.environ and os.environ.get("SLURM_NTASKS", "1") == "1":
        ends |= {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    handled = [number for number, handler in ends.items() if signal.getsignal(number) is handler]
    return {number: signal.signal(number, _interrupt) for number in handled}


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the command; a second signal, which could fall anywhere in its end, ends the process at once.

    So does one during an import, where libraries swallow exceptions or print them.
    """
    signal.signal(number, signal.SIG_DFL)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else _Stopped(number)


def _report_signal(number: int) -> int:
    """Say that a signal stopped the command, and give its exit code."""
    announce(f"error: this command: stopped by {signal.Signals(number).name}; start it again")
    return 128 + number


def resume_alone(words: list[str]) -> list[str]:
    """Add the value auto to a --resume without one: typer has no option whose value may be left out."""
    if "--resume" in words:
        after = words.index("--resume") + 1
        if after == len(words) or words[after].startswith("-"):
            return [*words[:after], "auto", *words[after:]]
    return words


def _broken_pipe() -> int:
    # what is still buffered must not raise again when the interpreter exits
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + 13


def _drop_unprinted() -> None:
    """Let no results that could not be printed, which was reported, fail again when the interpreter exits."""
    try:
        sys.stdout.flush()
    except OSError:
        _broken_pipe()


def _report(error: Exception, debug: bool) -> int:
    """Print an error in one line, with its traceback for a bug of ours or with --debug, and give its exit code."""
    known = _explain(error)
    if debug or known is None:
        traceback.print_exc()
    if known is None:
        return 1
    # of several processes that met the same error one reports it
    if not known.reported:
        announce(f"error: {known}")
        for note in getattr(known, "__notes__", ()):
            announce(note)
    return known.exit_code


def _explain(error: Exception) -> CCNetError | None:
    """The error in words that a user can act on; None for a bug of ours."""
    if isinstance(error, CCNetError):
        return error
    if isinstance(error, TyperException):
        return _explain_usage(error)
    if out_of_memory(error) and isinstance(error, ImportError):
        return EnvironmentFailure(
            "memory", "too little to load the libraries", "free some, or raise the limit (ulimit -v)"
        )
    if out_of_memory(error):
        why = one_line(str(error))[:160] or "exhausted"
        return EnvironmentFailure("memory", why, "use smaller images or --mode sliding")
    if isinstance(error, OSError) and error.errno is not None:
        what: object = error.filename if error.filename is not None else "system or standard output"
        why = os.strerror(error.errno)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENOMEM):
            return EnvironmentFailure(what, why, "free some space or use another disk")
        if error.filename is not None:
            return InputError(what, why, "check the path and its permissions")
    return None


def _explain_usage(error: TyperException) -> InputError:
    """A mistake in the arguments, with the option or command that was probably meant."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "ccnet"
    see = f"see {command} --help"
    option = getattr(error, "option_name", None)
    parameter = getattr(error, "param", None)
    why = error.message.removeprefix("Value error, ").replace("Input should be", "must be").rstrip(".")
    if unknown := re.match(r"No such command '(.*?)'", why, re.DOTALL):
        names = list(context.command.commands) if context else []
        return InputError(f"command {unknown[1]}", "unknown", _nearest(unknown[1], names, 0.6) or see)
    if option is not None and "No such option" in why:
        own = [name for parameter in context.command.params for name in parameter.opts] if context else []
        near = _nearest(option, [*FLAGS, EXTEND], 0.8) or _nearest(option, own, 0.7)
        return InputError(f"option {option}", "unknown", near or see)
    if parameter is not None:
        kind = parameter.param_type_name
        name = parameter.opts[0] if kind == "option" else parameter.metavar or parameter.name
        return InputError(f"{kind} {name}", why or "missing", see)
    return InputError(command if option is None else f"option {option}", why, see)


def _nearest(word: str, known: Sequence[str], likeness: float) -> str | None:
    """A question for the known word that is most like another, if any is."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=likeness)
    return f"did you mean {near[0]}?" if near else None
