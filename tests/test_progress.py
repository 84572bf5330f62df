"""Progress where there is no terminal."""

import pytest

from ccnet_cli import errors
from ccnet_cli.progress import Progress


def test_a_line_for_each_call_on_stderr(capsys: pytest.CaptureFixture[str]):
    Progress(10).show(3, "loss 0.5")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("step 3/10  loss 0.5  eta ")


def test_nothing_where_ccnet_is_to_be_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv(errors.VERBOSITY, "quiet")
    progress = Progress(10)
    progress.show(3, "loss 0.5")
    progress.close()
    assert capsys.readouterr() == ("", "")
