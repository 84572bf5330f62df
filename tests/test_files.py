"""Files whole or not at all, temporaries of living and dead processes, and the cache folder."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CCNET_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/ccnet"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/ccnet"),
        ({"CCNET_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/ccnet"),
        ({"TMPDIR": "/tmp"}, "/tmp/ccnet"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("CCNET_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    assert files.cache_folder() == Path(expected)


@pytest.fixture(scope="module")
def dead():
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    return process.pid


def test_the_sweep_knows_every_naming_and_spares_the_living(tmp_path, dead):
    host, own = files.HOST, os.getpid()
    stale = {
        f".tmp-{host}-{dead}-0123abcd.png",
        f".tmp-{host}-{dead}-01234567",
        # as earlier versions named them
        f".tmp-{host}-{dead}-step_00000001.pt",
        f".tmp-{dead}-step_00000001.json",
        f".ccnet-{host}-{dead}-0123abcd.tmp",
        f".ccnet-{host}-{dead}-01234567.tmp.mp4",
    }
    others = {
        f".tmp-{host}-{own}-0123abcd.png",
        f".tmp-{own}-step_00000001.pt",
        f".tmp-{host}-elsewhere-{dead}-0123abcd",
        f".tmp-{host}-{dead}-{dead}-0123abcd",
        f".ccnet-{host}-{own}-0123abcd.tmp",
        f".ccnet-else{host}-{dead}-0123abcd.tmp",
        f".ccnet-{dead}-0123abcd.tmp",
        ".ccnet-x.tmp",
        ".tmp-mine",
        f"tmp-{host}-{dead}-0123abcd.png",
    }
    for name in stale | others:
        (tmp_path / name).write_bytes(b"half")
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others
    files.sweep(tmp_path / "nowhere")


def test_a_temporary_is_this_process_s_and_holds_any_name(tmp_path):
    path = tmp_path / ("ü" * 125 + ".webm")
    with files.replace_file(path) as first, files.replace_file(path) as second:
        assert first != second and first.suffix == second.suffix == ".webm" and first.parent == tmp_path
        assert first.name.startswith(f".tmp-{files.HOST}-{os.getpid()}-")
        assert files.is_temporary(first.name) and not files.is_temporary(path.name)
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        files.sweep(tmp_path)
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", ["write", "write_bytes", "replace_file"])
def test_what_fails_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, write):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises((OSError, EnvironmentFailure), match="No space left"):
        if write == "write":
            files.write(path, lambda file: file.write(b"new"))
        elif write == "write_bytes":
            files.write_bytes(path, b"new")
        else:
            with files.replace_file(path) as temporary:
                temporary.write_bytes(b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_size_and_sha256_are_those_of_the_file(tmp_path):
    file = files.write(tmp_path / "a", lambda file: (file.write(b"ab"), file.write(b"c")))
    assert (tmp_path / "a").read_bytes() == b"abc" and file.bytes == 3
    # of "abc", by the standard that defines it
    assert file.sha256.hexdigest() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_fault_of_the_machine_is_told_from_one_of_the_arguments(tmp_path, monkeypatch):
    files.write_bytes(tmp_path / "deep" / "er" / "a", b"x")
    with pytest.raises(InputError, match=r"output .*: cannot be written \(.*\); choose a folder"):
        files.write_bytes(tmp_path / "deep/er/a/b", b"x")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_bytes(tmp_path / "a\0b", b"x")
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS):

        def refuse(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(EnvironmentFailure, match=r"output .*: not written \(.*\); make room") as failure:
            files.write_bytes(tmp_path / "a", b"x")
        assert os.strerror(number) in str(failure.value)
