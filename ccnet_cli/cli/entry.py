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
from pathlib import Path

import typer
from typer.exceptions import TyperException

from ccnet_cli import files
from ccnet_cli.cli.commands import ANYWHERE, app
from ccnet_cli.errors import (
    VERBOSITY,
    CCNetError,
    EnvironmentFailure,
    InputError,
    announce,
    detail,
    one_line,
    out_of_memory,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of DESIGN's table; errors of the user take one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, chosen = _anywhere(words)
    words = resume_alone(words)
    _mend_streams()
    if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    os.environ[VERBOSITY] = "quiet" if "quiet" in chosen else "verbose" if "verbose" in chosen else ""
    started = time.monotonic()
    # what torch's C++ has to say about lost connections takes many lines, and ours says it in one
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torch's own folder for compiled code is emptied when the machine starts
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(files.cache_folder() / "compiled"))
    try:
        if {"quiet", "verbose"} <= chosen:
            raise InputError("option --quiet", "--verbose is given too", "give one of them")
        code = typer.main.get_command(app).main(words, prog_name="ccnet", standalone_mode=False)
        sys.stdout.flush()
        detail(f"done in {time.monotonic() - started:.1f} s")
    except SystemExit as stop:
        # typer turns a broken pipe into a plain exit
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = _broken_pipe()
    except BrokenPipeError:
        code = _broken_pipe()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        told = _told(error)
        if "debug" in chosen or told is None:
            traceback.print_exc()
        # of several processes that met the same error one speaks
        if told is not None and not told.reported:
            announce(f"error: {told}")
            for note in getattr(told, "__notes__", ()):
                announce(note)
        code = 1 if told is None else told.exit_code
    if arguments is None:
        # an interrupt while the interpreter ends is no exception of ours
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code or 0)


def _interrupt(*_: object) -> None:
    """End the command; a second interrupt, which could fall anywhere in its end, ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _anywhere(words: list[str]) -> tuple[list[str], set[str]]:
    """The words without the options that may stand anywhere, and which of these there were; -- ends the options."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word not in ANYWHERE]
    return kept + words[end:], {ANYWHERE[word] for word in words[:end] if word in ANYWHERE}


def resume_alone(words: list[str]) -> list[str]:
    """Let --resume stand without a value, which means auto; typer knows no option with a value that may be left out."""
    if "--resume" in words:
        after = words.index("--resume") + 1
        if after == len(words) or words[after].startswith("-"):
            return [*words[:after], "auto", *words[after:]]
    return words


def _mend_streams() -> None:
    """Let results be printed whatever the locale, and to nowhere where a stream is closed."""
    # a file that is opened under the number of a closed stream would get what libraries print there
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - lives as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _broken_pipe() -> int:
    # what is still buffered must not raise again when the interpreter exits
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + 13


def _told(error: Exception) -> CCNetError | None:
    """The error as one that a user can act on; None for a bug of ours."""
    if isinstance(error, CCNetError):
        return error
    if isinstance(error, TyperException):
        return _usage(error)
    if out_of_memory(error):
        return EnvironmentFailure(
            "memory", one_line(str(error))[:160] or "exhausted", "use smaller images or --mode sliding"
        )
    if isinstance(error, OSError) and error.errno is not None:
        what: object = error.filename if error.filename is not None else "system"
        why = os.strerror(error.errno)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENOMEM):
            return EnvironmentFailure(what, why, "free some space or use another disk")
        if error.filename is not None:
            return InputError(what, why, "check the path and its permissions")
    return None


def _usage(error: TyperException) -> InputError:
    """A mistake in the arguments, with the option that was meant."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "ccnet"
    see = f"see {command} --help"
    option = getattr(error, "option_name", None)
    parameter = getattr(error, "param", None)
    why = error.message.removeprefix("Value error, ").replace("Input should be", "must be").rstrip(".")
    if unknown := re.match(r"No such command '(.*?)'", why, re.DOTALL):
        near = difflib.get_close_matches(unknown[1], context.command.commands, n=1) if context else []
        return InputError(f"command {unknown[1]}", "unknown", f"did you mean {near[0]}?" if near else see)
    if option is not None and "No such option" in why:
        known = [name for known in context.command.params for name in known.opts] if context else []
        near = difflib.get_close_matches(option, ANYWHERE, n=1, cutoff=0.8)
        near = near or difflib.get_close_matches(option, known, n=1, cutoff=0.7)
        return InputError(f"option {option}", "unknown", f"did you mean {near[0]}?" if near else see)
    if parameter is not None:
        kind = parameter.param_type_name
        name = parameter.opts[0] if kind == "option" else parameter.metavar or parameter.name
        return InputError(f"{kind} {name}", why or "missing", see)
    return InputError(command if option is None else f"option {option}", why, see)
