"""Files are written whole or not at all, the log tees and lets go."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from stylegan_di.dnnlib.logger import Logger
from stylegan_di.dnnlib.util import atomic_file, atomic_write, sha256_of_file

CONTENT = b"weights" * 100_000


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write(path, b"one")
    atomic_write(path, CONTENT)
    assert sha256_of_file(path) == hashlib.sha256(CONTENT).hexdigest()
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def stop_halfway() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_halfway()
    assert sha256_of_file(path) == hashlib.sha256(CONTENT).hexdigest()
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
    assert capsys.readouterr() == ("out\nmore\n", "err\n")
