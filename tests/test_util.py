"""Downloads are cached and checked, files written whole or not at all, the log tees and lets go."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dnnlib.util import Logger, UserError, atomic_file, atomic_write, cached_path, open_url, sha256_of_file

CONTENT = b"weights" * 100_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000] if self.path.startswith("/short") else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.root = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    url = server.root + "/models/net%20a.pkl?x=1"
    path = open_url(url, sha256=SHA256, cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "downloads" / f"{hashlib.md5(url.encode()).hexdigest()}_net_a.pkl"
    assert open_url(url, sha256=SHA256.upper(), cache_dir=tmp_path) == path
    assert len(server.requests) == 1


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    assert cached_path("https://example.org/a.pkl").parent == tmp_path / "downloads"
    monkeypatch.delenv("DNNLIB_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached_path("https://example.org/a.pkl").parent == tmp_path / "home" / ".cache" / "dnnlib" / "downloads"


def test_wrong_contents_are_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"SHA-256 of what was downloaded is {SHA256}, not {'0' * 64}"):
        open_url(server.root + "/net.pkl", sha256="0" * 64, cache_dir=tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_an_altered_cached_file_is_refused(server: Server, tmp_path: Path) -> None:
    path = open_url(server.root + "/net.pkl", sha256=SHA256, cache_dir=tmp_path)
    path.write_bytes(b"other")
    with pytest.raises(UserError, match=f"Delete {path}"):
        open_url(server.root + "/net.pkl", sha256=SHA256, cache_dir=tmp_path)


@pytest.mark.parametrize(("name", "reason"), [("missing.pkl", "404"), ("short.pkl", "1000 bytes")])
def test_a_failed_download_says_where_to_put_the_file(server: Server, tmp_path: Path, name: str, reason: str) -> None:
    url = f"{server.root}/{name}"
    with pytest.raises(UserError, match=reason) as caught:
        open_url(url, cache_dir=tmp_path)
    assert url in str(caught.value)
    assert str(cached_path(url, tmp_path)) in str(caught.value)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match="Without a connection, put the file at"):
        open_url("http://127.0.0.1:1/net.pkl", cache_dir=tmp_path)


def test_local_files(tmp_path: Path) -> None:
    path = tmp_path / "a b.pkl"
    path.write_bytes(CONTENT)
    assert open_url(path, sha256=SHA256) == path
    assert open_url(path.as_uri()) == path
    with pytest.raises(UserError, match="there is no such file"):
        open_url(tmp_path / "b.pkl")
    with pytest.raises(UserError, match="SHA-256"):
        open_url(path, sha256="0" * 64)


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write(path, b"one")
    atomic_write(path, CONTENT)
    assert sha256_of_file(path) == SHA256
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def stop_halfway() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_halfway()
    assert sha256_of_file(path) == SHA256
    assert sorted(os.listdir(tmp_path)) == ["a", "plain"]


def test_logger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr

    def log_and_fail() -> None:
        with Logger(tmp_path / "log.txt"):
            print("out")
            print("err", file=sys.stderr)
            assert (tmp_path / "log.txt").read_text() == "out\nerr\n"
            assert sys.stdout.encoding == before[0].encoding
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        log_and_fail()
    assert (sys.stdout, sys.stderr) == before
    with Logger(tmp_path / "log.txt"):
        print("more", flush=True)
    assert (tmp_path / "log.txt").read_text() == "out\nerr\nmore\n"
    with Logger(tmp_path / "log.txt", append=False):
        pass
    assert (tmp_path / "log.txt").read_text() == ""
    assert capsys.readouterr() == ("out\nmore\n", "err\n")
