"""Saves on a disk that fails: any error at any operation, short writes, and power loss with writes reordered."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_di.runs import statefile
from stylegan_di.runs.endings import StorageError
from tools.dev import power_loss
from tools.dev.system_calls import Call, unsupported

TENSORS = {f"t{index}": torch.full([50 * index], float(index)) for index in range(4)}
ERRORS = (
    "ENOSPC", "EIO", "EROFS", "EDQUOT", "EACCES", "EPERM", "ENOENT", "ESTALE", "EFBIG", "ENOMEM", "EBADF", "ENOTDIR"
)  # fmt: skip


def save(folder: Path, nimg: int) -> None:
    path = statefile.state_path(folder, nimg)
    statefile.save_state(path, TENSORS | {"nimg": torch.tensor(nimg)}, {"nimg": nimg}, {}, "0" * 64)
    statefile.prune(folder, path)


def newest_intact(folder: Path) -> int:
    """The images seen of the newest state that a resumed run would take; 0 if it would find none."""
    for path in reversed(statefile.complete_states(folder)):
        if statefile.damage(path) is None:
            state = statefile.load_state(path)
            assert int(state.tensors["nimg"]) == state.values["nimg"]
            return int(state.values["nimg"])
    return 0


class Disk:
    """Stands between a save and the disk: records its operations, shortens writes, and makes the n-th one fail."""

    def __init__(self, patch: pytest.MonkeyPatch, fails_at: int = -1, number: int = 0, short: bool = False) -> None:
        self.fails_at, self.errno, self.short = fails_at, number, short
        self.calls: list[Call] = []
        self.paths: dict[int, str] = {}
        patch.setattr("stylegan_di.dnnlib.util.open", self.open, raising=False)
        real = {name: getattr(os, name) for name in ("open", "close", "fsync", "replace", "unlink")}
        patch.setattr(os, "open", lambda path, *rest: self.opened(real["open"](path, *rest), path))
        patch.setattr(os, "fsync", lambda fd: (self.note("fsync", self.paths[fd]), real["fsync"](fd))[1])
        patch.setattr(os, "replace", lambda a, b: (self.note("rename", str(a), str(b)), real["replace"](a, b))[1])
        patch.setattr(os, "unlink", lambda a, **rest: (self.note("unlink", str(a)), real["unlink"](a, **rest))[1])

    def opened(self, number: int, path: Any) -> int:
        self.paths[number] = str(path)
        return number

    def note(self, name: str, *paths: str, **more: Any) -> None:
        self.calls.append(Call(name, paths, **more))
        if len(self.calls) - 1 == self.fails_at:
            raise OSError(self.errno, os.strerror(self.errno))

    def open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "x" not in mode:
            return builtins.open(path, mode, *args, **kwargs)
        self.note("open", str(path), flags=os.O_CREAT)
        raw = _Raw(path, self)
        self.paths[raw.fileno()] = str(path)
        return io.BufferedWriter(raw, buffer_size=256)


class _Raw(io.FileIO):
    def __init__(self, path: Any, disk: Disk) -> None:
        super().__init__(path, "x")
        self.path, self.disk = str(path), disk

    def write(self, data: Any) -> int:
        piece = bytes(data)[: max(1, len(data) // 3)] if self.disk.short else bytes(data)
        self.disk.note("write", self.path, offset=self.tell(), data=piece)
        return super().write(piece) or 0


@pytest.mark.parametrize("name", ERRORS)
def test_any_error_at_any_operation_leaves_the_states_before_intact(tmp_path: Path, name: str) -> None:
    failures = 0
    while True:
        folder = tmp_path / str(failures)
        folder.mkdir()
        save(folder, 4)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, failures, getattr(errno, name))
            raised: list[StorageError] = []
            try:
                save(folder, 8)
            except StorageError as error:
                raised.append(error)
        assert newest_intact(folder) >= 4
        if not raised:
            break
        assert raised[0].status == 4
        assert str(folder / "training-state-000000008") in str(raised[0])
        failures += 1
        save(folder, 12)  # where the disk works again
        assert newest_intact(folder) == 12
    assert failures == 13  # a file is made, written, synced, renamed, and its folder synced; then the same of another


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, short=True)
    save(tmp_path, 4)
    assert sum(call.name == "write" for call in disk.calls) > 20
    assert newest_intact(tmp_path) == 4


# Power loss.


def lose_power(tmp_path: Path, calls: list[Call], cut: int, rng: random.Random) -> tuple[int, int]:
    """Returns the images seen of the newest state that is left, and of the newest that had been saved by then."""
    (tmp_path / "empty").mkdir(exist_ok=True)
    disk, folder = power_loss.Disk(tmp_path / "empty", tmp_path / "recorded", calls), tmp_path / "after"
    folder.mkdir()
    for name, data in disk.after(cut, rng).items():
        (folder / name).write_bytes(data)
    found = newest_intact(folder)
    shutil.rmtree(folder)
    return found, disk.saved(cut)


def record(patch: pytest.MonkeyPatch, folder: Path, saves: int) -> list[Call]:
    folder.mkdir()
    disk = Disk(patch)
    for number in range(saves):
        save(folder, 4 + 4 * number)
    return disk.calls


def test_no_save_is_lost_or_torn_by_2000_power_losses(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = record(patch, tmp_path / "recorded", 6)
    rng = random.Random(0)
    between = 0
    for trial in range(2000):
        cut = rng.randrange(len(calls) + 1)
        found, saved = lose_power(tmp_path, calls, cut, rng)
        assert found in (saved, saved + 4), (trial, cut)
        between += found > saved
    assert between > 20  # of saves that were cut after their last sync


def test_a_save_that_does_not_sync_would_be_noticed(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = record(patch, tmp_path / "recorded", 1)
    unsynced = [call for call in calls if call.name != "fsync"]
    lost = sum(lose_power(tmp_path, unsynced, len(unsynced), random.Random(trial))[0] != 4 for trial in range(50))
    assert lost > 40


def test_a_few_faults_at_system_calls_of_a_training_lose_nothing(tmp_path: Path) -> None:
    if why := unsupported():
        pytest.skip(why)
    script = str(Path(__file__).resolve().parents[1] / "tools" / "dev" / "save_faults.py")
    command = [sys.executable, script, "--faults=9", "--power-losses=60", "--every=30", f"--dest={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = r"^[1-9]\d\d system calls: .*\n(.*: status (0|4|-9): \d\n)+9 faults\n60 power losses"
    assert re.search(counted, done.stdout, re.MULTILINE)
    assert "3 of the runs continued to their end\n0 lost, torn or untold\n" in done.stdout
    assert list(tmp_path.iterdir()) == []
