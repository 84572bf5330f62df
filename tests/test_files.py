"""Files whole or not at all, temporaries of living and dead processes, and the cache folder."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
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


# outputs


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file that is read, and other names for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCNET_EXTEND", raising=False)
    Path("input").write_bytes(b"mine")
    Path("below").mkdir()
    Path("link").symlink_to("input")
    Path("chain").symlink_to("link")
    Path("folder").symlink_to("below")
    os.link("input", "below/hard")
    return tmp_path


def null(path):
    """A device of our own: a test that fails must not replace the machine's."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.read_bytes()
    except OSError:
        pytest.skip("no devices can be made here")
    return path


def read_fifo(path):
    """Read a FIFO to its end in the background; a function that waits for what came."""
    content = []
    thread = threading.Thread(target=lambda: content.append(path.read_bytes()), daemon=True)
    thread.start()

    def wait():
        thread.join(30)
        return content[0]

    return wait


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["input", "./below/../input", "link", "chain", "folder/hard", "{here}/link"])
def test_what_is_read_is_no_output(place, name, overwrite):
    path = Path(name.format(here=place))
    with pytest.raises(InputError, match="is read by this command"):
        files.refuse_outputs([Path("new"), path], [None, Path("absent"), Path("input")], overwrite)
    # read by a name of another file
    with pytest.raises(InputError, match="is read by this command"):
        files.refuse_outputs([Path("input")], [path], overwrite)


def test_what_extends_the_command_is_read_too(place, monkeypatch):
    monkeypatch.setenv("CCNET_EXTEND", f"/absent{os.pathsep}{place / 'input'}")
    with pytest.raises(InputError, match="is read by this command"):
        files.refuse_outputs([Path("link")])


@pytest.mark.parametrize(
    ("one", "other"),
    [("new", "./new"), ("new", "below/../new"), ("below/new", "folder/new"), ("input", "link"), ("link", "below/hard")],
)
def test_two_outputs_are_two_files(place, one, other):
    with pytest.raises(InputError, match="is the name of two outputs"):
        files.refuse_outputs([Path(one), Path("third"), Path(other)])
    files.refuse_outputs([Path(one), Path("third")])


def test_what_exists_is_replaced_only_if_asked(place):
    Path("dangling").symlink_to("nowhere")
    files.refuse_outputs([Path("new/a.png")], overwrite=False)
    for name in ("input", "link", "dangling"):
        with pytest.raises(InputError, match="exists; pass --overwrite"):
            files.refuse_outputs([Path("new"), Path(name)], overwrite=False)
        files.refuse_outputs([Path(name)])
    with pytest.raises(InputError, match="its folder does not exist"):
        files.refuse_outputs([Path("new/a.png")], new_folders=False)


def test_what_can_be_no_file_is_refused(place, monkeypatch):
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, words in {
            "below": "is a folder",
            "folder": "is a folder",
            "socket": "neither a file nor a stream",
            "loop": "a link that leads to itself",
            "input/a.png": "is a file, not a folder",
        }.items():
            with pytest.raises(InputError, match=words):
                files.refuse_outputs([Path(name)])
            # and by whoever writes without having asked
            with pytest.raises((InputError, OSError)):
                files.write_output(Path(name), lambda file: file.write(b"new"))
            with pytest.raises(InputError):
                files.write_bytes(Path(name), b"new")
        assert stat.S_ISSOCK(Path("socket").lstat().st_mode) and Path("loop").is_symlink()


@pytest.mark.parametrize(
    "write", [files.write_bytes, lambda path, content: files.write_output(path, lambda file: file.write(content))]
)
def test_links_are_followed_and_streams_written_through(place, write):
    write(Path("chain"), b"new")
    assert Path("chain").readlink() == Path("link") and Path("link").readlink() == Path("input")
    assert Path("input").read_bytes() == b"new" and Path("below/hard").read_bytes() == b"mine"
    Path("dangling").symlink_to("below/later")
    write(Path("dangling"), b"late")
    assert Path("dangling").is_symlink() and Path("below/later").read_bytes() == b"late"
    os.mkfifo("fifo")
    Path("to-fifo").symlink_to("fifo")
    for name in ("fifo", "to-fifo"):
        content = read_fifo(Path(name))
        write(Path(name), b"x" * 200_000)
        assert content() == b"x" * 200_000
    assert stat.S_ISFIFO(Path("fifo").stat().st_mode) and Path("to-fifo").is_symlink()
    files.refuse_outputs([Path("fifo")], overwrite=False)
    with pytest.raises(InputError, match="is the name of two outputs"):
        files.refuse_outputs([Path("fifo"), Path("to-fifo")])
    assert not list(place.rglob(".tmp-*"))


def test_a_device_takes_whatever_is_written_as_often_as_asked(place):
    device = null(Path("null"))
    files.refuse_outputs([device, device, Path("./null")], [device], overwrite=False)
    files.write_bytes(device, b"new")
    files.write_output(device, lambda file: file.write(b"new"))
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_standard_stream_that_is_a_file_goes_on(place):
    code = (
        "import sys; from pathlib import Path; from ccnet_cli import files; print('before');"
        "files.refuse_outputs([Path('/dev/stdout')], overwrite=False, new_folders=False);"
        "files.write_bytes(Path('/dev/stdout'), b'through\\n'); print('after');"
        "\ntry: files.refuse_outputs([Path(sys.argv[1])])"
        "\nexcept Exception as error: print(error)"
    )
    with Path("out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code, "out"], stdout=out, check=True)
    *lines, last = Path("out").read_text().splitlines()
    assert lines == ["before", "through", "after"] and "is open as a standard stream" in last
