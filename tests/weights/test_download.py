"""Downloads from a server that fails in every way: nothing is ever half in its place."""

import gzip
import hashlib
import http.client
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.request import Request

import pytest
import shelf

from ccnet_cli.errors import EnvironmentFailure, InputError
from ccnet_cli.weights import catalogue, transport
from ccnet_cli.weights.download import get

CONTENT = b"PK\x03\x04" + random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PLAIN = catalogue.find("mit-resnet50-imagenet")
HASHED = replace(PLAIN, name="hashed", sha256=SHA256[:8])
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "cache"))


def placed():
    """Whether anything but hidden files lies in the cache."""
    folder = catalogue.files.cache_folder()
    return [path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def refuses(entry, source, error, words, timeout=5.0):
    """The download ends with this error, in one line, and leaves nothing in its place."""
    with pytest.raises(error, match=words) as raised:
        get(entry, source, timeout)
    assert "\n" not in str(raised.value) and placed() == []
    return str(raised.value)


def test_a_file_is_placed_with_its_record_and_asked_for_once(capsys):
    with shelf.serve(shelf.whole(CONTENT)) as server:
        path = get(PLAIN, f"{server.url}/models/")
        assert path.read_bytes() == CONTENT and path.name == "resnet50-imagenet.pth"
        record = json.loads((path.parent / "record.json").read_text())
        assert (record["sha256"], record["proof"], record["licence"]) == (SHA256, None, "BSD-3-Clause")
        assert SHA256 in capsys.readouterr().err
        assert get(PLAIN, server.url) == catalogue.require(PLAIN) == path
        assert [request[0] for request in server.requests] == ["/models/resnet50-imagenet.pth"]
        assert get(PLAIN, server.url, again=True) == path and len(server.requests) == 2
        # a published hash proves it, and then there is nothing to say
        capsys.readouterr()
        get(HASHED, f"{server.url}/any")
        assert capsys.readouterr().err == "" and server.requests[-1][0] == "/any"


def test_a_changed_file_in_the_cache_is_noticed_and_replaced(capsys):
    with shelf.serve(shelf.whole(CONTENT)) as server:
        path = get(PLAIN, server.url)
        path.write_bytes(CONTENT[:-1])
        with pytest.raises(InputError, match="has changed since it was downloaded; run ccnet weights get"):
            catalogue.require(PLAIN)
        assert get(PLAIN, server.url).read_bytes() == CONTENT
        (path.parent / "record.json").write_text("{")
        assert get(PLAIN, server.url).read_bytes() == CONTENT and len(server.requests) == 3


def test_a_broken_connection_is_continued_at_its_byte():
    answers = iter([shelf.broken(CONTENT, 100_000), shelf.whole(CONTENT)])
    with shelf.serve(lambda request: next(answers)(request)) as server:
        assert get(PLAIN, server.url).read_bytes() == CONTENT
        first, second = (headers for _, headers in server.requests)
        assert "Range" not in first
        assert (second["Range"], second["If-Range"]) == ("bytes=100000-", '"one"')


def test_what_is_truncated_stays_out_and_is_continued_later():
    with shelf.serve(shelf.broken(CONTENT, 200_000)) as server:
        # the server sends the same first bytes whatever it is asked for
        refuses(PLAIN, server.url, EnvironmentFailure, "broke off after 200000 of 300004 bytes; run the same command")
        server.answer = shelf.whole(CONTENT)
        assert get(PLAIN, server.url).read_bytes() == CONTENT
        assert server.requests[-1][1]["Range"] == "bytes=200000-"


@pytest.mark.parametrize("kind", ["range ignored", "changed", "changed without If-Range", "another byte"])
def test_a_part_that_cannot_be_continued_begins_again(kind):
    other = CONTENT[::-1].replace(b"<", b"a")
    other = b"PK" + other
    answers = {
        "range ignored": shelf.whole(CONTENT, ranges=False),
        "changed": shelf.whole(other, tag='"two"'),
        "changed without If-Range": partial(other, tag='"two"'),
        "another byte": partial(CONTENT, shift=1),
    }
    with shelf.serve(shelf.broken(CONTENT, 1000)) as server:
        refuses(PLAIN, server.url, EnvironmentFailure, "broke off")
        server.answer = answers[kind]
        wanted = other if kind.startswith("changed") else CONTENT
        assert get(PLAIN, server.url).read_bytes() == wanted


def partial(content, tag='"one"', shift=0):
    """A server that answers with a part, whatever the condition is, perhaps another part than asked for."""
    ordinary = shelf.whole(content, tag)

    def answer(request):
        asked = request.headers.get("Range")
        if asked is None:
            return ordinary(request)
        start = int(asked.removeprefix("bytes=").rstrip("-")) + shift
        shelf.head(request, 206, len(content) - start, tag)
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        request.wfile.write(content[start:])

    return answer


def test_a_part_without_version_is_continued_only_where_a_hash_will_prove_it():
    def versionless(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT[:5000])

    for entry, continued in ((PLAIN, False), (HASHED, True)):
        with shelf.serve(versionless) as server:
            refuses(entry, server.url, EnvironmentFailure, "broke off")
            server.answer = shelf.whole(CONTENT)
            assert get(entry, server.url).read_bytes() == CONTENT
            assert ("Range" in server.requests[-1][1]) == continued
        shutil.rmtree(entry.cache)


def test_a_complete_part_is_proven_without_asking_again():
    with shelf.serve(shelf.whole(CONTENT)) as server:
        path = get(HASHED, server.url)
        part = path.with_name(f".{path.name}.part")
        path.rename(part)
        state = {"url": f"{server.url}/{path.name}", "validator": None, "total": len(CONTENT)}
        part.with_name(f"{part.name}.json").write_text(json.dumps(state))
        assert get(HASHED, server.url).read_bytes() == CONTENT and len(server.requests) == 1
        # one that is longer than the file, as the server answers it with 416
        path.rename(part)
        part.with_name(f"{part.name}.json").write_text(json.dumps(state | {"total": 1}))
        server.answer = lambda r: shelf.fail(416)(r) if r.headers.get("Range") else shelf.whole(CONTENT)(r)
        assert get(HASHED, server.url).read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_stays():
    with shelf.serve(shelf.whole(CONTENT[:-1] + b"x")) as server:
        error = refuses(HASHED, server.url, InputError, f"published is {SHA256[:8]}; nothing was kept")
        assert "sha256 begins with" in error
        assert not list(HASHED.cache.glob(".*.part*"))
        server.answer = shelf.whole(CONTENT)
        assert get(HASHED, server.url).read_bytes() == CONTENT
        assert all("Range" not in headers for _, headers in server.requests)


def test_a_redirect_to_the_same_host_is_followed_and_to_another_one_where_a_hash_proves(capsys):
    with shelf.serve(shelf.whole(CONTENT)) as store, shelf.serve(shelf.redirect(store.url + "/x.pth")) as server:
        assert get(PLAIN, server.url).read_bytes() == CONTENT
        shutil.rmtree(PLAIN.cache)
        server.answer = shelf.redirect(store.url.replace("127.0.0.1", "localhost") + "/x.pth")
        refuses(PLAIN, server.url, InputError, "redirects to another host, localhost, and no hash is published")
        capsys.readouterr()
        assert get(HASHED, server.url).read_bytes() == CONTENT
        assert "redirected to another host, localhost" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_scheme_is_refused(target):
    with shelf.serve(shelf.redirect(target)) as server:
        refuses(HASHED, server.url, InputError, "which is not encrypted|answers 302 Found")


def test_a_redirect_from_https_to_http_is_refused_even_with_a_hash(tmp_path):
    job = transport.Job("hashed", "https://a.example/x", tmp_path / "part", True, 5)
    with io.BytesIO() as body, pytest.raises(InputError, match=r"redirects to http://a\.example"):
        transport._Redirects(job).redirect_request(
            Request("https://a.example/x"), body, 302, "Found", http.client.HTTPMessage(), "http://a.example/y"
        )


@pytest.mark.parametrize(
    ("before", "after", "own"),
    [
        ("download.openmmlab.com", "cdn.openmmlab.com", True),
        ("download.openmmlab.com", "download.oz1z1penmmlab.com", False),
        ("github.com", "release-assets.githubusercontent.com", True),
        ("drive.google.com", "drive.usercontent.google.com", True),
        ("example.com", "badexample.com", False),
        ("127.0.0.1", "127.0.0.2", False),
        ("localhost", "127.0.0.1", False),
    ],
)
def test_hosts_of_one_site(before, after, own):
    assert transport._is_own(before, after) == own


@pytest.mark.parametrize(
    ("status", "error"), [(404, InputError), (403, InputError), (500, EnvironmentFailure), (429, EnvironmentFailure)]
)
def test_an_answer_that_is_no_file(status, error):
    with shelf.serve(shelf.fail(status)) as server:
        refuses(PLAIN, server.url, error, f"the server answers {status} ")


def test_redirects_in_a_circle_end():
    with shelf.serve(lambda request: shelf.redirect(request.path)(request)) as server:
        refuses(HASHED, server.url, EnvironmentFailure, "redirects in a circle, or too often; try later")
        server.answer = lambda request: shelf.redirect(f"{request.path}x")(request)
        refuses(HASHED, server.url, EnvironmentFailure, "redirects in a circle, or too often; try later")


@pytest.mark.parametrize("entry", [PLAIN, HASHED], ids=["plain", "hashed"])
def test_a_packed_answer_is_not_taken_for_the_file(entry):
    def packed(request):
        content = gzip.compress(CONTENT)
        shelf.head(request, 200, len(content))
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        request.wfile.write(content)

    with shelf.serve(packed) as server:
        refuses(entry, server.url, EnvironmentFailure, r"sends the file packed \(gzip\)")
        assert server.requests[0][1]["Accept-Encoding"] == "identity"
        server.answer = shelf.whole(CONTENT)
        assert get(entry, server.url).read_bytes() == CONTENT


def test_a_file_of_unknown_length_needs_a_hash():
    def endless(count):
        def answer(request):
            request.send_response(200)
            request.end_headers()
            request.wfile.write(CONTENT[:count])

        return answer

    with shelf.serve(endless(9000)) as server:
        refuses(PLAIN, server.url, EnvironmentFailure, "does not say how long the file is, and no hash is published")
        refuses(HASHED, server.url, InputError, "its sha256 begins with")
        server.answer = endless(None)
        assert get(HASHED, server.url).read_bytes() == CONTENT


def test_a_server_that_speaks_no_http():
    with shelf.serve(lambda request: request.wfile.write(b"220 mail ready\r\n\r\nx\r\n")) as server:
        refuses(PLAIN, server.url, EnvironmentFailure, "not reached")


@pytest.mark.parametrize("status", [407, 403])
def test_a_proxy_that_refuses(monkeypatch, status):
    with shelf.serve(shelf.fail(status)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)
        error, words = (
            (EnvironmentFailure, "the proxy asks for a name") if status == 407 else (InputError, "answers 403")
        )
        refuses(PLAIN, "http://weights.invalid/a.pth", error, words)
        # it knows no CONNECT
        refuses(
            PLAIN, "https://weights.invalid/a.pth", EnvironmentFailure, "not reached .Tunnel connection failed: 501"
        )
    refuses(PLAIN, "http://weights.invalid/a.pth", EnvironmentFailure, "not reached .*; check network and proxy")


def test_links_in_the_cache_lead_nowhere(tmp_path):
    victim = write(tmp_path / "victim", b"own")
    folder = PLAIN.cache
    folder.mkdir(parents=True)
    for name in (".lock", PLAIN.file_name, f".{PLAIN.file_name}.part", f".{PLAIN.file_name}.part.json"):
        (folder / name).symlink_to(victim)
    with shelf.serve(shelf.whole(CONTENT)) as server:
        path = get(PLAIN, server.url)
    assert path.read_bytes() == CONTENT and not path.is_symlink()
    assert victim.read_bytes() == b"own"


def test_no_server_at_all():
    with shelf.serve(shelf.fail(500)) as server:
        pass
    refuses(PLAIN, server.url, EnvironmentFailure, "not reached .*; check network and proxy")
    refuses(PLAIN, "https" + server.url.removeprefix("http"), EnvironmentFailure, "not reached")


def trickle(request, count, size, seconds):
    shelf.head(request, 200, len(CONTENT))
    request.end_headers()
    for index in range(count):
        request.wfile.write(CONTENT[index * size : (index + 1) * size])
        time.sleep(seconds)


def test_a_server_that_stalls_and_one_that_trickles():
    hold = threading.Event()

    def stall(request):
        trickle(request, 1, 1000, 0)
        hold.wait(20)

    with shelf.serve(stall) as server:
        refuses(PLAIN, server.url, EnvironmentFailure, "nothing came for 0.2 s", 0.2)
        hold.set()
        server.answer = lambda request: trickle(request, 200, 5, 0.02)
        refuses(PLAIN, server.url, EnvironmentFailure, "the server has stalled|nothing came", 0.2)
        # slow, but it moves
        server.answer = lambda request: trickle(request, 31, 10_000, 0.02)
        assert get(PLAIN, server.url).read_bytes() == CONTENT


def test_more_than_announced_less_than_announced_and_nothing():
    def longer(request):
        shelf.head(request, 200, len(CONTENT) - 10)
        request.end_headers()
        request.wfile.write(CONTENT)

    with shelf.serve(longer) as server:
        refuses(PLAIN, server.url, EnvironmentFailure, "sent more than the 299994 bytes")
        assert not list(PLAIN.cache.glob(".*.part*"))
        server.answer = shelf.whole(b"")
        refuses(PLAIN, server.url, InputError, "an empty file came")
        server.answer = lambda request: (shelf.head(request, 200, transport.MAX_BYTES + 1), request.end_headers())
        refuses(PLAIN, server.url, InputError, "larger than any file of weights")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>login</html>", b'\n <?xml version="1.0"?>', b'{"error": 1}'])
def test_a_page_in_place_of_the_file(page):
    with shelf.serve(shelf.whole(page)) as server:
        refuses(PLAIN, server.url, InputError, "not the file")
        assert not list(PLAIN.cache.glob(".*.part*"))
        server.answer = shelf.whole(CONTENT)
        assert get(PLAIN, server.url).read_bytes() == CONTENT


def test_two_at_once_download_it_once(capsys):
    entered = threading.Event()

    def slow(request):
        entered.set()
        time.sleep(0.3)
        shelf.whole(CONTENT)(request)

    paths = []
    with shelf.serve(slow) as server:
        threads = [threading.Thread(target=lambda: paths.append(get(PLAIN, server.url))) for _ in range(2)]
        threads[0].start()
        entered.wait(5)
        threads[1].start()
        for thread in threads:
            thread.join(20)
        assert len(server.requests) == 1
    assert len(paths) == 2 and paths[0] == paths[1] and paths[0].read_bytes() == CONTENT
    assert "another process is getting it" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CCNET_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    with shelf.serve(shelf.whole(CONTENT)) as server:
        refuses(PLAIN, server.url, EnvironmentFailure, r"not written \(.*set \$CCNET_CACHE")
        assert server.requests == []


def run(server, cache, *arguments, **options):
    command = [sys.executable, "-m", "ccnet_cli.cli", "weights", "get", PLAIN.name, "--from", server.url, *arguments]
    environment = os.environ | {"CCNET_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def test_no_space_is_one_line_and_exit_code_3(tmp_path):
    # as a full disk does, the limit refuses the write
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with shelf.serve(shelf.whole(CONTENT)) as server:
        process = run(server, tmp_path / "cache", preexec_fn=limit)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count(b"\n")) == (3, b"", 1)
    assert b"not written (File too large); make room" in err and placed() == []


def test_an_interrupt_keeps_the_part_for_later(tmp_path):
    hold, sent = threading.Event(), threading.Event()

    def stall(request):
        trickle(request, 1, 150_000, 0)
        sent.set()
        hold.wait(30)

    with shelf.serve(stall) as server:
        process = run(server, tmp_path / "cache")
        assert sent.wait(30)
        part = PLAIN.cache / f".{PLAIN.file_name}.part"
        while not part.exists() or part.stat().st_size < 150_000:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        hold.set()
        assert (process.returncode, out, placed()) == (130, b"", [])
        assert err.decode().count("\n") == 1 and "goes on where it ended" in err.decode()
        server.answer = shelf.whole(CONTENT)
        assert get(PLAIN, server.url).read_bytes() == CONTENT
        assert server.requests[-1][1]["Range"] == "bytes=150000-"


def test_from_a_file_and_from_folders(tmp_path):
    source = tmp_path / "shelf" / PLAIN.file_name
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    for place in (source, source.parent, source.as_uri()):
        entry = replace(PLAIN, name=f"plain {place}".replace("/", "-")[-40:])
        assert get(entry, str(place)).read_bytes() == CONTENT
    assert source.read_bytes() == CONTENT


def test_what_from_cannot_mean(tmp_path):
    refuses(PLAIN, str(tmp_path / "none.pth"), InputError, "cannot be read")
    refuses(PLAIN, str(tmp_path), InputError, "has no file resnet50-imagenet.pth")
    refuses(PLAIN, "s3://bucket/x", InputError, "not http or https")
    refuses(HASHED, str(write(tmp_path / "bad.pth", b"PK other")), InputError, "published is")


def write(path, content):
    path.write_bytes(content)
    return path


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    with shelf.serve(shelf.whole(CONTENT)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert get(PLAIN, "http://weights.invalid/a.pth").read_bytes() == CONTENT
        assert proxy.requests[0][0] == "http://weights.invalid/a.pth"


PAGE = b"""<html><body><form id="download-form" action="/confirmed" method="get">
<input type="hidden" name="id" value="1 2"><input type="hidden" name="confirm" value="t"></form></body></html>"""


def test_google_drive_s_question_is_answered(monkeypatch):
    entry = replace(catalogue.find("ccnet-authors-r1"), name="drive")
    with shelf.serve(lambda r: shelf.whole(CONTENT if "confirmed" in r.path else PAGE)(r)) as server:
        monkeypatch.setattr(catalogue, "DRIVE", f"{server.url}/uc?id=")
        assert get(entry).read_bytes() == CONTENT
        assert server.requests[-1][0] == "/confirmed?id=1+2&confirm=t"
        server.answer = shelf.whole(b"<html>Too many users: Quota exceeded</html>")
        with pytest.raises(InputError, match=r"too many people .* use --from FILE"):
            get(replace(entry, name="quota"))
        server.answer = shelf.whole(PAGE.replace(b'"/conf', b'"http://other.invalid/conf'))
        with pytest.raises(InputError, match=r"leads to another host, other\.invalid"):
            get(replace(entry, name="elsewhere"))


def test_a_file_in_an_archive_is_checked_by_its_sha1(tmp_path):
    entry = replace(catalogue.find("encoding-resnet50s"), sha1=hashlib.sha1(CONTENT).hexdigest())
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(entry.file_name, CONTENT)
    path = get(entry, str(archive))
    assert path.name == "resnet50s-a75c83cf.pth" and path.read_bytes() == CONTENT
    assert get(replace(entry, name="unpacked"), str(write(tmp_path / "b.pth", CONTENT))).read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"its sha1 begins with .*, published is a75c83cf"):
        get(replace(entry, name="wrong", sha1="a75c83cfc89a56a4e8ba71b14f1ec67e923787b3"), str(archive))
    damaged = bytearray(archive.read_bytes())
    damaged[2000:2100] = bytes(100)
    with pytest.raises(InputError, match=r"the archive is damaged"):
        get(replace(entry, name="damaged"), str(write(archive, bytes(damaged))))


def test_an_md5_beside_the_file_is_compared():
    entry = catalogue.find("bdd100k-ccnet-r50-512x1024-40k")
    texts = {".md5": hashlib.md5(CONTENT).hexdigest().encode() + b"  file.pth\n"}
    with shelf.serve(lambda r: shelf.whole(texts.get(r.path[-4:], CONTENT))(r)) as server:
        assert json.loads((get(entry, f"{server.url}/").parent / "record.json").read_text())["proof"][:4] == "md5 "
        texts[".md5"] = b"0" * 32
        with pytest.raises(InputError, match="its md5 begins with"):
            get(replace(entry, name="wrong"), f"{server.url}/")


def test_what_only_a_browser_reaches_and_what_cannot_be_loaded():
    refuses(catalogue.find("semseg-pspnet50-ade20k"), None, InputError, "for browsers alone; download exp/ade20k")
    refuses(catalogue.find("openseg-ocr-r101"), None, InputError, "no head for object context")
