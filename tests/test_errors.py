"""The one-line form of errors."""

import pytest

from ccnet_cli import errors


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x00", "\x85", "\u2028"])
def test_an_error_is_one_line_whatever_the_file_is_called(character: str):
    told = str(errors.InputError(f"a{character}b.png", "is damaged", "replace it"))
    assert len(told.splitlines()) == 1
    assert character not in told
    assert told.startswith("a\\") and told.endswith("b.png: is damaged; replace it")


def test_ordinary_letters_stay_as_they_are():
    assert str(errors.InputError("straße 日本.png", "why", "fix")) == "straße 日本.png: why; fix"


def test_exit_codes_are_the_documented_ones():
    kinds = (errors.CCNetError, errors.InputError, errors.EnvironmentFailure, errors.NonFiniteError)
    assert [kind("a", "b", "c").exit_code for kind in kinds] == [1, 2, 3, 4]


def test_a_notice_goes_to_stderr_alone(capsys: pytest.CaptureFixture[str]):
    errors.notice("two\nlines")
    assert capsys.readouterr() == ("", "ccnet: two\\nlines\n")


@pytest.mark.parametrize(
    ("verbosity", "told"),
    [("", ["error", "notice"]), ("quiet", ["error"]), ("verbose", ["error", "notice", "detail"])],
)
def test_what_is_told_depends_on_the_verbosity(
    verbosity: str, told: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(errors.VERBOSITY, verbosity)
    errors.announce("error")
    errors.notice("notice")
    errors.detail("detail")
    assert capsys.readouterr() == ("", "".join(f"ccnet: {text}\n" for text in told))


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (RuntimeError("std::bad_alloc"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("failed to map segment from shared object"), False),
        (ImportError("libGL.so.1: cannot open shared object file"), False),
    ],
)
def test_a_lack_of_memory_is_known_by_its_text(error: Exception, memory: bool):
    assert errors.out_of_memory(error) == memory
