"""One download over HTTP into a file that is continued where it ended; proxies are those of the environment."""

import http.client
import json
import re
import shutil
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ccnet_cli import __version__
from ccnet_cli.errors import EnvironmentFailure, InputError, detail, notice
from ccnet_cli.progress import Progress

# larger than any file of weights that ccnet reads
MAX_BYTES = 8 << 30
MAX_PAGE_BYTES = 1 << 20
BLOCK_BYTES = 1 << 18
# a connection that broke after it brought something is tried again
ATTEMPTS = 5
# bytes per second below which a server counts as stalled
MIN_RATE = 1024
# where hosts keep their files: no foreign places
STORES = {"github.com": "githubusercontent.com", "google.com": "googleusercontent.com"}
FROM = "try later, or give another place by --from"
AGAIN = "run the same command again, which goes on from there"


class Dropped(Exception):
    """The connection ended before the file did."""


@dataclass(frozen=True)
class Job:
    """An address, the file to fill, whether a published hash will prove the content, and the seconds to wait.

    confirm lets a page of Google Drive, which asks whether to download without a virus scan, be answered.
    """

    name: str
    url: str
    part: Path
    hashed: bool
    timeout: float
    confirm: bool = False

    @property
    def state(self) -> Path:
        """What is known of the file that the part belongs to."""
        return self.part.with_name(f"{self.part.name}.json")


@dataclass(frozen=True)
class Body:
    """An open answer: from which byte on it brings the file, and the whole file's size if the server says it."""

    response: http.client.HTTPResponse
    start: int
    total: int | None


def download(job: Job) -> None:
    """Fill the part; InputError where the server has no such file, EnvironmentFailure where the way there failed."""
    state = _read_state(job)
    if state.get("url") == job.url and 0 < _size(job.part) == state.get("total"):
        # the process ended between the last byte and its proof
        return
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(job.part)
        try:
            _transfer(job)
            return
        except Dropped as error:
            if attempt == ATTEMPTS or _size(job.part) <= before:
                raise EnvironmentFailure(job.url, f"{error}", AGAIN) from None
            detail(f"{job.url}: {error}; trying again")
            time.sleep(0.2 * attempt)


def forget(job: Job) -> None:
    """Delete the part and what is known of it."""
    for path in (job.part, job.state):
        path.unlink(missing_ok=True)


def read_text(job: Job, url: str) -> str | None:
    """A small text beside a file; None where there is none."""
    try:
        with _open(job, url, {}) as response:
            text: bytes = response.read(4096)
            return text.decode("ascii", "replace")
    except InputError:
        return None
    except (http.client.HTTPException, OSError) as error:
        raise EnvironmentFailure(url, f"broke off ({error})", FROM) from None


def _transfer(job: Job) -> None:
    """One attempt, from where the part ends if the file is still the same; Dropped if the connection breaks."""
    body = _begin(job, job.url)
    with body.response:
        page = first = _read(body.response, job.timeout)
        if body.start or first.lstrip()[:1] != b"<":
            _save(job, body, first)
            return
        while job.confirm and first and len(page) < MAX_PAGE_BYTES:
            first = _read(body.response, job.timeout, len(page) == body.total)
            page += first
    # a page is no part of the file
    forget(job)
    if not job.confirm:
        raise InputError(
            job.url, "a web page came, not the file", "give the file's own address, or a folder's with / at its end"
        )
    body = _begin(job, _answer(job.url, page.decode("utf-8", "replace")))
    with body.response:
        first = _read(body.response, job.timeout)
        if first.lstrip()[:1] == b"<":
            forget(job)
            raise InputError(job.url, "a web page came, not the file", "download it in a browser, then use --from FILE")
        _save(job, body, first)


def _begin(job: Job, url: str) -> Body:
    """Ask for the rest of the file, or for all of it where the rest would not fit what is there."""
    start, state = _size(job.part), _read_state(job)
    validator = state.get("validator")
    if state.get("url") != job.url or not (validator or job.hashed):
        start = 0
    headers = {} if not start else {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        response = _open(job, url, headers)
    except HTTPError:
        # the part is as long as the file, or longer
        response = _open(job, url, {})
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() and not response.chunked else None
    total = size
    if response.status == 206:
        total = _continued(response, start, validator)
        if total is None:
            response.close()
            return _begin_again(job, url, start)
    else:
        if start:
            detail(f"{job.url}: begins again, the file changed or the server sends it whole")
        start = 0
    if size is not None:
        # one more than it says, to notice where there is more
        response.length = size + 1
    try:
        _check_form(job, response, total)
        _check_size(job, total, start)
        if not start:
            _write_state(job, {"url": job.url, "validator": _validator(response), "total": total})
    except Exception:
        response.close()
        raise
    return Body(response, start, total)


def _begin_again(job: Job, url: str, start: int) -> Body:
    """Ask for all of it, after an answer that continues another file, or at another byte."""
    forget(job)
    if not start:
        raise EnvironmentFailure(job.url, "answered with a part that nobody asked for", FROM)
    return _begin(job, url)


def _continued(response: http.client.HTTPResponse, start: int, validator: str | None) -> int | None:
    """The whole file's size, from an answer that brings the bytes from start of the same file; None for any other."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
    same = validator is None or _validator(response) in (None, validator)
    return int(found[2]) if found and start and int(found[1]) == start and same else None


def _save(job: Job, body: Body, block: bytes) -> None:
    """Append what comes to the part, or write it anew, until the end; Dropped before the end."""
    done, began, rate = body.start, time.monotonic(), 0.0
    mark, marked = began, done
    progress = Progress(body.total and -(-body.total >> 20), done >> 20, unit="MiB", every=32)
    try:
        with job.part.open("ab" if body.start else "wb") as file:
            while block:
                shown, done = done >> 20, done + len(block)
                if done > (MAX_BYTES if body.total is None else body.total):
                    file.close()
                    forget(job)
                    raise EnvironmentFailure(job.url, f"sent more than the {body.total} bytes that it announced", FROM)
                _write(job, file, block)
                now = time.monotonic()
                if now - mark >= job.timeout:
                    if done - marked < MIN_RATE * job.timeout:
                        why = f"{done - marked} bytes in {now - mark:.0f} s: the server has stalled"
                        raise EnvironmentFailure(job.url, why, AGAIN)
                    mark, marked = now, done
                rate = (done - body.start) / max(now - began, 1e-9)
                if done >> 20 != shown:
                    progress.show(done >> 20, f"{rate / (1 << 20):.1f} MiB/s")
                block = _read(body.response, job.timeout, done == body.total)
    finally:
        progress.close()
    if body.total is not None and done < body.total:
        raise Dropped(f"broke off after {done} of {body.total} bytes")


def _read(response: http.client.HTTPResponse, timeout: float, complete: bool = False) -> bytes:
    """What has come, nothing at the end; a server may leave the connection open behind a file that is complete."""
    try:
        return response.read1(BLOCK_BYTES)
    except TimeoutError:
        if complete:
            return b""
        why = f"nothing came for {timeout:g} s"
        raise EnvironmentFailure(response.geturl(), why, AGAIN) from None
    except (http.client.HTTPException, OSError) as error:
        raise Dropped(f"broke off ({type(error).__name__})") from None


def _write(job: Job, file: IO[bytes], block: bytes) -> None:
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        why, fix = f"not written ({error.strerror})", "make room, or set $CCNET_CACHE to another folder"
        raise EnvironmentFailure(job.part, why, fix) from None


def _check_form(job: Job, response: http.client.HTTPResponse, total: int | None) -> None:
    """EnvironmentFailure for an answer of which nobody could say whether it is the whole file as it was published."""
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise EnvironmentFailure(job.url, f"sends the file packed ({coding[:20]}), against what was asked", FROM)
    if total is None and not response.chunked and not job.hashed:
        why = "does not say how long the file is, and no hash is published to check it by"
        raise EnvironmentFailure(job.url, why, FROM)


def _check_size(job: Job, total: int | None, start: int) -> None:
    """InputError for a file that is too large for weights, EnvironmentFailure where the disk has no room for it."""
    if total is not None and total > MAX_BYTES:
        raise InputError(job.url, f"{total >> 30} GiB, larger than any file of weights", "give another by --from")
    free, needed = shutil.disk_usage(job.part.parent).free, (total or 0) - start
    if needed > free:
        fix = "make room, or set $CCNET_CACHE to another folder"
        raise EnvironmentFailure(job.part.parent, f"{free >> 20} MiB free, {-(-needed >> 20)} needed", fix)


def _open(job: Job, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The server's answer; HTTPError where it cannot continue at the byte asked for."""
    own = {"User-Agent": f"ccnet/{__version__}", "Accept-Encoding": "identity", **headers}
    try:
        opener = build_opener(_Redirects(job))
        response: http.client.HTTPResponse = opener.open(Request(url, headers=own), timeout=job.timeout)
        return response
    except HTTPError as error:
        with error:
            if error.code == 416 and "Range" in headers:
                raise
            raise _refusal(url, error) from None
    except (URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLError):
            why, fix = f"its certificate was not accepted ({reason.reason or reason})", "check the clock and the proxy"
        elif isinstance(reason, TimeoutError):
            why, fix = f"no answer for {job.timeout:g} s", FROM
        else:
            why, fix = (
                f"not reached ({getattr(reason, 'strerror', None) or reason})",
                f"check network and proxy, {FROM}",
            )
        raise EnvironmentFailure(url, why, fix) from None


def _refusal(url: str, error: HTTPError) -> InputError | EnvironmentFailure:
    """The error of an answer that is no file."""
    code, meaning = error.code, http.client.responses.get(error.code, "")
    why = f"the server answers {code} {meaning}".rstrip()
    if str(error.reason).startswith(HTTPRedirectHandler.inf_msg):
        return EnvironmentFailure(url, "redirects in a circle, or too often", FROM)
    if code == 407:
        return EnvironmentFailure(url, "the proxy asks for a name and a password", "write them into $https_proxy")
    if code in (408, 429) or code >= 500:
        return EnvironmentFailure(url, why, FROM)
    return InputError(url, why, "give another place by --from")


class _Redirects(HTTPRedirectHandler):
    """Follows to the same site and to its store of files; elsewhere only what a hash will prove, and says so."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        """The request to follow with; InputError where this is refused."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        why = None
        if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme == "http"):
            why = f"redirects to {after.scheme}://{after.hostname}, which is not encrypted"
        elif not _is_own(before.hostname or "", after.hostname or ""):
            if not self.job.hashed:
                why = f"redirects to another host, {after.hostname}, and no hash is published to check its file by"
            else:
                notice(f"{self.job.name}: redirected to another host, {after.hostname}")
        if why is not None:
            fp.close()
            raise InputError(req.full_url, why, "give that address by --from if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_own(before: str, after: str) -> bool:
    """Whether a host belongs to the same site as another, or is where it keeps its files."""
    if before == after:
        return True
    if before.replace(".", "").isdecimal() or "." not in before:
        return False
    site = ".".join(before.split(".")[-2:])
    return any(after == own or after.endswith(f".{own}") for own in (site, STORES.get(site, site)))


class _Form(HTMLParser):
    """The first form of a page, with its hidden fields."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the form's address and its hidden fields."""
        values = {key: value or "" for key, value in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self.action = values.get("action", "")
        elif tag == "input" and values.get("type") == "hidden" and self.action is not None:
            self.fields[values.get("name", "")] = values.get("value", "")


def _answer(url: str, page: str) -> str:
    """The address behind a page that asks whether to go on; InputError for any other page."""
    form = _Form()
    form.feed(page)
    if form.action is None:
        quota = "quota" in page.casefold()
        why = "too many people downloaded it today" if quota else "a web page came, not the file"
        raise InputError(url, why, "download it in a browser, then use --from FILE")
    target = urljoin(url, form.action)
    if not _is_own(urlsplit(url).hostname or "", urlsplit(target).hostname or ""):
        raise InputError(url, f"its page leads to another host, {urlsplit(target).hostname}", "use --from FILE")
    return f"{target}?{urlencode(form.fields)}"


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What names the file's version: a strong ETag, or the time of its last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _read_state(job: Job) -> dict[str, Any]:
    try:
        state = json.loads(job.state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(job: Job, state: dict[str, Any]) -> None:
    try:
        job.part.unlink(missing_ok=True)
        job.state.write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        fix = "make room, or set $CCNET_CACHE to another folder"
        raise EnvironmentFailure(job.state, f"not written ({error.strerror})", fix) from None
