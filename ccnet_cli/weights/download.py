"""Bring a file of the catalogue into the cache: from its address, a mirror, a folder or a file; whole or not at all."""

import fcntl
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ccnet_cli import files
from ccnet_cli.errors import EnvironmentFailure, InputError, detail, notice
from ccnet_cli.weights import transport
from ccnet_cli.weights.catalogue import RECORD, Entry, digest, find_cached, unusable, verify

OTHER_CACHE = "make room, or set $CCNET_CACHE to a folder that you can write to"
# the first bytes of what servers and git give in place of a file
STRANGERS = {b"<": "a web page, not the file", b"{": "a message, not the file", b"version https://git-lfs": "a pointer"}


def get(entry: Entry, source: str | None = None, timeout: float = 30, again: bool = False) -> Path:
    """The entry's file in the cache, brought there first unless it is there and sound.

    source is a file, a folder, or an address of one of them, in place of the catalogue's; timeout the seconds without
    a byte after which a server has stalled. InputError for what is not the file, EnvironmentFailure for what kept it.
    """
    if entry.unusable is not None:
        raise unusable(entry)
    place = _locate(entry, source)
    try:
        entry.cache.mkdir(parents=True, exist_ok=True)
        with _lock(entry):
            path = find_cached(entry)
            if path is not None and not again and _is_sound(entry, path):
                detail(f"{entry.name}: in the cache already")
                return path
            return _bring(entry, *place, timeout)
    except OSError as error:
        raise EnvironmentFailure(entry.cache, f"not written ({error.strerror or error})", OTHER_CACHE) from None


def _is_sound(entry: Entry, path: Path) -> bool:
    try:
        verify(entry, path)
    except InputError as error:
        notice(f"{path}: {error.why}: getting it again")
        return False
    return True


@contextmanager
def _lock(entry: Entry) -> Iterator[None]:
    """Let one process at a time fill the folder; another one waits, and then finds the file there."""
    with (entry.cache / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(f"{entry.name}: another process is getting it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bring(entry: Entry, local: Path | None, url: str, timeout: float) -> Path:
    part = entry.cache / f".{entry.file_name}.part"
    hashed = entry.sha256 is not None or entry.sha1 is not None
    job = transport.Job(entry.name, url, part, hashed, timeout, url == entry.url and bool(entry.drive))
    for path in (part, job.state):
        # what is written goes nowhere else
        if path.is_symlink():
            path.unlink()
    if local is not None:
        _copy(local, part)
        job.state.unlink(missing_ok=True)
    else:
        try:
            transport.download(job)
        except KeyboardInterrupt:
            notice(f"{entry.name}: interrupted; the same command goes on where it ended")
            raise
    try:
        _unpack(entry, part)
        proof, sha256 = _prove(entry, part, None if local is not None else job)
    except InputError:
        # what is wrong is not to be continued
        transport.forget(job)
        raise
    path = _place(entry, part, {"from": url or str(local), "sha256": sha256, "proof": proof})
    job.state.unlink(missing_ok=True)
    if proof is None:
        notice(f"{entry.name}: no hash is published to check it by; from now on it must be sha256 {sha256}")
    return path


def _locate(entry: Entry, source: str | None) -> tuple[Path | None, str]:
    """The file to copy, or the address to download from."""
    if source is None:
        if entry.url is None:
            fix = f"download {entry.file} from {entry.folder} in a browser, then add --from FILE"
            raise InputError(f"weights {entry.name}", "it lies in a shared folder, for browsers alone", fix)
        return None, entry.url
    address = urlsplit(source)
    if address.scheme in ("http", "https"):
        folder = address.path in ("", "/") or source.endswith("/")
        return None, f"{source.rstrip('/')}/{quote(entry.remote_name)}" if folder else source
    if "://" in source and address.scheme != "file":
        raise InputError(f"option --from {source}", "not http or https", "give such an address, a file or a folder")
    path = Path(unquote(address.path)) if address.scheme == "file" else Path(source)
    if not path.is_dir():
        return path, ""
    names = (entry.remote_name, entry.file_name, f"{entry.name}/{entry.file_name}", entry.file, entry.path)
    for name in dict.fromkeys(filter(None, names)):
        if (path / name).is_file():
            return path / name, ""
    raise InputError(path, f"has no file {entry.remote_name}", "give the file itself by --from FILE")


def _copy(source: Path, part: Path) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise InputError(source, f"cannot be read ({error.strerror})", "check the path given by --from") from None
    with file, part.open("wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def _unpack(entry: Entry, part: Path) -> None:
    """Put the file of weights in the place of the archive that it lies in, if it does."""
    if entry.sha1 is None or not zipfile.is_zipfile(part):
        return
    inner = part.with_name(f".{entry.file_name}.unpacked")
    try:
        with zipfile.ZipFile(part) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(entry.file_name)]
            if not members:
                # torch's own files are archives too
                return
            if members[0].file_size > transport.MAX_BYTES:
                raise InputError(f"weights {entry.name}", "unpacks to more than any file of weights", transport.FROM)
            with archive.open(members[0]) as file, inner.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        inner.replace(part)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise InputError(f"weights {entry.name}", "the archive is damaged", transport.FROM) from None
    finally:
        inner.unlink(missing_ok=True)


def _prove(entry: Entry, part: Path, job: transport.Job | None) -> tuple[str | None, str]:
    """By what published hash the file is proven, None for none, and its sha256; InputError where it is not the file."""
    what = f"weights {entry.name}"
    with part.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        raise InputError(what, "an empty file came", transport.FROM)
    for mark, kind in STRANGERS.items():
        if head.startswith(mark):
            raise InputError(what, f"{kind}, came", "give another place by --from")
    sha256 = digest(part)
    expected = {"sha256": entry.sha256, "sha1": entry.sha1, "md5": _published_md5(entry, job)}
    for algorithm, published in expected.items():
        if published is None:
            continue
        actual = sha256 if algorithm == "sha256" else digest(part, algorithm)
        if not actual.startswith(published):
            why = f"its {algorithm} begins with {actual[:8]}, published is {published[:8]}"
            raise InputError(what, why, "nothing was kept; get it again, or from another place by --from")
        return f"{algorithm} {published}", sha256
    return None, sha256


def _published_md5(entry: Entry, job: transport.Job | None) -> str | None:
    """The MD5 in the file beside the download; None where there is none."""
    if entry.md5 is None or job is None:
        return None
    text = transport.read_text(job, job.url.rpartition(".")[0] + entry.md5)
    found = re.search(r"\b[0-9a-fA-F]{32}\b", text or "")
    return None if found is None else found[0].lower()


def _place(entry: Entry, part: Path, record: dict[str, str | None]) -> Path:
    """Give the file its name, its record first: without the file it means nothing."""
    path = entry.cache / entry.file_name
    path.unlink(missing_ok=True)
    text = json.dumps({"name": entry.name, "licence": entry.licence, **record}, indent=1)
    files.write(entry.cache / RECORD, lambda file: file.write(text.encode()))
    part.replace(path)
    files.sync_folder(entry.cache)
    return path
