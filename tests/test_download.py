"""Downloads are cached, checked and gone on with: against a server that drops, lies, ignores ranges and stalls."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stylegan_di.dnnlib import download
from stylegan_di.dnnlib.download import cached_path, notice_once, open_url
from stylegan_di.dnnlib.util import UserError

CONTENT = b"\x80\x04" + bytes(range(254)) + bytes(range(256)) * 3071  # begins like a pickle
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
PAGE = b"<html>Please log in"
# What servers answer instead of the file: status, headers, body.
ODD: dict[str, tuple[int, dict[str, str], bytes]] = {
    "empty": (200, {"Content-Length": "0"}, b""),
    "none": (204, {}, b""),
    "nothing": (416, {"Content-Range": "bytes */0", "Content-Length": "0"}, b""),
    "HTML": (200, {"Content-Type": "Text/HTML"}, PAGE),
    "xhtml": (200, {"Content-Type": "application/xhtml+xml"}, PAGE),
    "stream": (200, {"Content-Type": "application/octet-stream"}, b"\xef\xbb\xbf\r\n " + PAGE),
    "other": (200, {}, b"another kind of file"),
    "digits": (206, {"Content-Range": f"bytes {'0' * 5000}-9/10"}, CONTENT),
    "square": (200, {"Content-Length": "\xb2"}, CONTENT),
    "address": (302, {"Location": "http://[::1"}, b""),
    "huge": (200, {"Content-Length": str(1 << 50)}, CONTENT),
}


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how to answer."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        manner = self.path.split("/")[1]
        first = sum(path == self.path for path, _ in self.server.requests) == 1
        if manner == "missing":
            self.send_error(404)
        elif manner == "busy" and first:
            self.send_error(503)
        elif manner == "bare":
            self.answer(CONTENT[: HALF if first else None], len(CONTENT), etag=None)
        elif manner == "drops" and first:
            self.answer(CONTENT[:HALF], len(CONTENT))
        elif manner == "stalls" and first:
            self.answer(CONTENT[:HALF], len(CONTENT))
            self.wfile.flush()
            time.sleep(1.0)
            with contextlib.suppress(OSError):  # nobody is to wait for what comes now
                self.wfile.write(bytes(len(CONTENT) - HALF))
        elif manner == "portions" and not first:  # never as much as was asked for
            self.ranged(CONTENT, most=HALF // 2)
        elif manner == "portions":
            self.answer(CONTENT[:HALF], len(CONTENT))
        elif manner == "short":  # always breaks off after the same bytes, whatever is asked for
            self.answer(CONTENT[: 1 << 16], len(CONTENT))
        elif manner == "overstates":  # its first answer announces more than there is
            self.ranged(CONTENT, announced=len(CONTENT) + 500 if first else None)
        elif manner == "ignores":
            self.answer(CONTENT[: HALF if first else None], len(CONTENT))
        elif manner == "changes" and first:
            self.answer(b"o" * (1 << 16), 100_000, etag='"old"')
        elif manner == "elsewhere" and not first:
            self.ranged(CONTENT, shift=-7)
        elif manner == "elsewhere":
            self.answer(CONTENT[:HALF], len(CONTENT))
        elif manner == "switches" and first:  # the old version breaks off, and of the new one a part comes all the same
            self.answer(b"o" * (1 << 16), 100_000, etag='"old"')
        elif manner == "switches" and self.headers.get("If-Range") == '"old"':
            self.headers.replace_header("If-Range", '"new"')
            self.ranged(CONTENT)
        elif manner == "page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>Please log in")
        elif manner in ODD:
            status, headers, body = ODD[manner]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        elif manner == "shrinks" and first:
            self.answer(CONTENT[:HALF], len(CONTENT))
        elif manner == "shrinks":
            self.ranged(CONTENT[: HALF + 1] if self.headers.get("Range") else CONTENT)
        elif manner == "drips":
            self.answer(CONTENT[:100], len(CONTENT))
            with contextlib.suppress(OSError):
                for value in CONTENT[100:]:
                    time.sleep(0.02)
                    self.wfile.write(bytes([value]))
        elif manner == "endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(CONTENT)
        elif manner == "chunked":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.ranged(CONTENT)

    def answer(self, body: bytes, announced: int, etag: str | None = '"new"') -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(announced))
        if etag is not None:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body)

    def ranged(self, content: bytes, announced: int | None = None, shift: int = 0, most: int | None = None) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match is None or self.headers.get("If-Range") != '"new"':
            self.answer(content, announced or len(content))
            return
        start = int(match[1]) + shift
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = content[start:][:most]
        self.send_response(206)
        self.send_header("ETag", '"new"')
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.root = f"http://{self.host}"

    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(download.MIRRORS, raising=False)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(download, "READ_SECONDS", 0.3)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files(cache: Path) -> list[str]:
    return sorted(os.listdir(cache / "downloads"))


def test_a_url_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    url = server.root + "/models/net%20a.pkl?x=1"
    path = open_url(url, sha256=SHA256, cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "downloads" / f"{hashlib.md5(url.encode()).hexdigest()}_net_a.pkl"
    assert open_url(url, sha256=SHA256.upper(), cache_dir=tmp_path) == path
    assert len(server.requests) == 1
    assert files(tmp_path) == [path.name]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    assert cached_path("https://example.org/a.pkl").parent == tmp_path / "downloads"
    monkeypatch.delenv("DNNLIB_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached_path("https://example.org/a.pkl").parent == tmp_path / "home" / ".cache" / "dnnlib" / "downloads"


@pytest.mark.parametrize("manner", ["drops", "stalls"])
def test_a_broken_transfer_goes_on_where_it_was(server: Server, tmp_path: Path, manner: str) -> None:
    path = open_url(f"{server.root}/{manner}/net.pkl", cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-"]
    assert files(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("manner", "ranges"),
    [
        ("busy", [None, None]),
        ("ignores", [None, f"bytes={HALF}-"]),  # the whole file comes again, and replaces the half
        ("changes", [None, "bytes=65536-"]),  # another version: the old beginning is dropped
        ("overstates", [None, f"bytes={len(CONTENT)}-", None]),  # announced more than there is: from the beginning
        ("shrinks", [None, f"bytes={HALF}-", None]),  # the rest of a smaller file: from the beginning
        ("portions", [None, f"bytes={HALF}-", f"bytes={HALF + HALF // 2}-"]),
        ("elsewhere", [None, f"bytes={HALF}-", None]),  # other bytes than asked for: from the beginning
        ("switches", [None, "bytes=65536-", None]),  # If-Range is ignored, but the answer names its version
        ("bare", [None, None]),  # neither ETag nor date nor hash: parts cannot be told to fit
        ("chunked", [None]),
    ],
)
def test_odd_servers(server: Server, tmp_path: Path, manner: str, ranges: list[str | None]) -> None:
    path = open_url(f"{server.root}/{manner}/net.pkl", cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges() == ranges


def test_a_hash_allows_parts_to_be_joined(server: Server, tmp_path: Path) -> None:
    assert open_url(server.root + "/bare/net.pkl", sha256=SHA256, cache_dir=tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_the_next_call_goes_on_too(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.root + "/drops/net.pkl"
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(UserError, match=r"0\.4 MB have arrived and are kept"):
            open_url(url, cache_dir=tmp_path)
    name = f".{cached_path(url).name}.partial"
    assert files(tmp_path) == [name, name + ".json"]
    assert open_url(url, cache_dir=tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    url, found = server.root + "/stalls/net.pkl", []
    threads = [threading.Thread(target=lambda: found.append(open_url(url, cache_dir=tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in found] == [True] * 4
    assert len(server.requests) == 2  # the stalled one and its end


def test_wrong_contents_are_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"SHA-256 of the download is {SHA256}, not {'0' * 64}"):
        open_url(server.root + "/net.pkl", sha256="0" * 64, cache_dir=tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("sha256", [SHA256, None])
@pytest.mark.parametrize("poison", [b"", PAGE, b" <!DOCTYPE html>", b"other"])
def test_a_poisoned_cache_heals(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], poison: bytes, sha256: str | None
) -> None:
    url = server.root + "/net.pkl"
    path = cached_path(url, tmp_path)
    path.parent.mkdir()
    path.write_bytes(poison)
    assert open_url(url, sha256=sha256, cache_dir=tmp_path).read_bytes() == CONTENT
    assert f"{path} is fetched anew: it " in capsys.readouterr().err


def test_an_altered_cached_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    path = open_url(server.root + "/net.pkl", sha256=SHA256, cache_dir=tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert open_url(server.root + "/net.pkl", sha256=SHA256, cache_dir=tmp_path).read_bytes() == CONTENT


def test_what_the_cache_has_can_be_fetched_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.root + "/net.pkl"
    path = open_url(url, cache_dir=tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert open_url(url, cache_dir=tmp_path).read_bytes() == CONTENT[:-1]  # without a hash nobody can tell
    monkeypatch.setenv(download.REFRESH, "1")
    for _ in range(2):
        assert open_url(url, cache_dir=tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2  # once in each process


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("empty", "it is empty"),
        ("none", "status 204"),
        ("nothing", "416"),
        ("HTML", "a web page"),
        ("xhtml", "a web page"),
        ("stream", "a web page"),
        ("other", r"does not begin like a \.pkl file"),
        ("digits", "a part of the file without its position"),
        ("address", "LocationParseError|InvalidURL|Invalid IPv6"),
        ("huge", "a file of 1125899906842624 bytes; up to 34359738368 are fetched"),
    ],
)
def test_odd_answers_are_not_kept(server: Server, tmp_path: Path, manner: str, reason: str) -> None:
    url = f"{server.root}/{manner}/net.pkl"
    with pytest.raises(UserError, match=rf"{url}: the download failed \(.*({reason})") as caught:
        open_url(url, cache_dir=tmp_path)
    assert f"put the file at {cached_path(url, tmp_path)}" in str(caught.value)
    assert files(tmp_path) == []


def test_a_length_that_is_no_number_does_not_count(server: Server, tmp_path: Path) -> None:
    assert open_url(f"{server.root}/square/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("manner", "limits", "reason"),
    [
        ("drips", {"RATE_SECONDS": 0.1}, "fewer than 1000 bytes per second"),
        ("drips", {"MAX_SECONDS": 0.1}, "longer than 0 s"),
        ("endless", {"MAX_BYTES": 1 << 20}, "more than the 1048576 bytes that were to come"),
    ],
)
def test_limits(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str, limits: dict[str, float], reason: str
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    for name, value in limits.items():
        monkeypatch.setattr(download, name, value)
    with pytest.raises(UserError, match=reason):
        open_url(f"{server.root}/{manner}/net.pkl", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "notes", [b"[" * 100_000, b'{"source": 1}', b"\xff", b'{"source": "x", "validator": [], "total": 0}']
)
def test_odd_notes_beside_a_partial_file(server: Server, tmp_path: Path, notes: bytes) -> None:
    url = f"{server.root}/net.pkl"
    partial = tmp_path / "downloads" / f".{cached_path(url).name}.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"begun")
    partial.with_name(partial.name + ".json").write_bytes(notes)
    assert open_url(url, cache_dir=tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [None]


@pytest.mark.parametrize("suffix", ["", ".json"])
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_planted_partial_file_is_not_written_into(server: Server, tmp_path: Path, suffix: str, kind: str) -> None:
    url = f"{server.root}/net.pkl"
    victim, partial = tmp_path / "victim", tmp_path / "downloads" / f".{cached_path(url).name}.partial{suffix}"
    partial.parent.mkdir()
    victim.write_text("precious")
    {"link": partial.symlink_to, "hard link": partial.hardlink_to, "pipe": lambda _: os.mkfifo(partial)}[kind](victim)
    assert open_url(url, cache_dir=tmp_path).read_bytes() == CONTENT
    assert victim.read_text() == "precious"
    assert files(tmp_path) == [cached_path(url).name]


def test_a_url_that_is_none() -> None:
    with pytest.raises(UserError, match=r"^https://\[x: this is no URL"):
        open_url("https://[x")


@pytest.mark.parametrize(
    ("manner", "reason", "requests"),
    [("missing", "404", 1), ("short", "IncompleteRead", 5), ("page", "a web page instead", 2)],
)
def test_a_failed_download_says_where_to_put_the_file(
    server: Server, tmp_path: Path, manner: str, reason: str, requests: int
) -> None:
    url = f"{server.root}/{manner}/net.pkl"
    with pytest.raises(UserError, match=reason) as caught:
        open_url(url, cache_dir=tmp_path)
    assert url in str(caught.value)
    assert str(cached_path(url, tmp_path)) in str(caught.value)
    assert len(server.requests) == requests
    assert not cached_path(url, tmp_path).exists()


def test_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"Connection refused.*Without a connection, put the file at"):
        open_url("http://127.0.0.1:1/net.pkl", cache_dir=tmp_path)
    assert files(tmp_path) == []


def test_mirrors_come_first_and_the_original_after_them(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://example.invalid/a/net.pkl"
    monkeypatch.setenv(download.MIRRORS, f"{server.root}/missing/ {server.root}/here")
    path = open_url(url, sha256=SHA256, cache_dir=tmp_path)
    assert path == cached_path(url, tmp_path)
    assert [asked for asked, _ in server.requests] == [
        "/missing/example.invalid/a/net.pkl", "/here/example.invalid/a/net.pkl",
    ]  # fmt: skip
    original = f"{server.root}/net.pkl"
    monkeypatch.setenv(download.MIRRORS, f"{server.root}/missing")
    assert open_url(original, cache_dir=tmp_path).read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"missing/.*404.*; http://.*/missing/b\.pkl: .*404"):
        open_url(f"{server.root}/missing/b.pkl", cache_dir=tmp_path)


def test_a_folder_can_be_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "mirror" / "example.invalid" / "net.pkl"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    monkeypatch.setenv(download.MIRRORS, (tmp_path / "mirror").as_uri())
    assert open_url("https://example.invalid/net.pkl", sha256=SHA256, cache_dir=tmp_path) == copy
    with pytest.raises(UserError, match="Repair the mirror"):
        open_url("https://example.invalid/net.pkl", sha256="0" * 64, cache_dir=tmp_path)
    monkeypatch.setenv(download.MIRRORS, "mirror")
    with pytest.raises(UserError, match="DNNLIB_MIRRORS: mirror is no"):
        open_url("https://example.invalid/net.pkl", cache_dir=tmp_path)


def test_local_files(tmp_path: Path) -> None:
    path = tmp_path / "a b.pkl"
    path.write_bytes(CONTENT)
    assert open_url(path, sha256=SHA256) == path
    assert open_url(path.as_uri()) == path
    with pytest.raises(UserError, match="there is no such file"):
        open_url(tmp_path / "b.pkl")
    for local in (path, path.as_uri()):
        with pytest.raises(UserError, match=f"^{local}: its SHA-256 is {SHA256}, not 0{{64}}.*replace it by the one"):
            open_url(local, sha256="0" * 64)


def test_progress_is_shown(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_url(server.root + "/net.pkl", cache_dir=tmp_path)
    assert f"Downloading {server.root}/net.pkl, MB: 1/1" in capsys.readouterr().err
    open_url(server.root + "/chunked/b.pkl", cache_dir=tmp_path)
    assert "b.pkl, MB: 1" in capsys.readouterr().err


def test_a_notice_is_shown_once_for_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cache, expected in (("a", "terms\n"), ("a", ""), ("b", "terms\n")):
        monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / cache))
        notice_once("key", "terms")
        assert capsys.readouterr() == ("", expected)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "file"))  # cannot be written
    notice_once("key", "terms")
    assert capsys.readouterr().err == "terms\n"
