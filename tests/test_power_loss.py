"""Saves on a disk that fails: any error at any operation, short writes, and power loss with writes reordered."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_di.runs import statefile
from stylegan_di.runs.endings import StorageError

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
        self.operations: list[tuple[Any, ...]] = []
        self.paths: dict[int, str] = {}
        patch.setattr("stylegan_di.dnnlib.util.open", self.open, raising=False)
        real = {name: getattr(os, name) for name in ("open", "close", "fsync", "replace", "unlink")}
        patch.setattr(os, "open", lambda path, *rest: self.opened(real["open"](path, *rest), path))
        patch.setattr(os, "fsync", lambda fd: (self.note("sync", self.paths[fd]), real["fsync"](fd))[1])
        patch.setattr(os, "replace", lambda a, b: (self.note("rename", str(a), str(b)), real["replace"](a, b))[1])
        patch.setattr(os, "unlink", lambda a, **rest: (self.note("unlink", str(a)), real["unlink"](a, **rest))[1])

    def opened(self, number: int, path: Any) -> int:
        self.paths[number] = str(path)
        return number

    def note(self, *operation: Any) -> None:
        self.operations.append(operation)
        if len(self.operations) - 1 == self.fails_at:
            raise OSError(self.errno, os.strerror(self.errno))

    def open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "x" not in mode:
            return builtins.open(path, mode, *args, **kwargs)
        self.note("create", str(path))
        raw = _Raw(path, self)
        self.paths[raw.fileno()] = str(path)
        return io.BufferedWriter(raw, buffer_size=256)


class _Raw(io.FileIO):
    def __init__(self, path: Any, disk: Disk) -> None:
        super().__init__(path, "x")
        self.path, self.disk = str(path), disk

    def write(self, data: Any) -> int:
        piece = bytes(data)[: max(1, len(data) // 3)] if self.disk.short else bytes(data)
        self.disk.note("write", self.path, self.tell(), piece)
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
    assert sum(operation[0] == "write" for operation in disk.operations) > 20
    assert newest_intact(tmp_path) == 4


# Power loss.


def after_power_loss(operations: list[tuple[Any, ...]], cut: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yields the files that a disk may hold if power goes after `cut` operations.

    What was synced is there. Of what came after the last sync of a file, any of its writes may be there, in any order,
    and zeros stand for those that are not; of what came after the last sync of the folder, any of its names.
    """
    synced = {path: index for index, (kind, path, *_) in enumerate(operations[:cut]) if kind == "sync"}
    contents: dict[str, bytearray] = {}
    names: dict[str, str] = {}  # name -> the name that its file was created under
    originals: dict[str, str] = {}
    for index, (kind, path, *rest) in enumerate(operations[:cut]):
        folder = os.path.dirname(path)
        kept = index <= synced.get(folder, -1) or rng.random() < 0.5
        if kind == "create":
            contents[path], originals[path] = bytearray(), path
            if kept:
                names[path] = path
        elif kind == "write" and (index <= synced.get(path, -1) or rng.random() < 0.5):
            offset, data = rest
            contents[path].extend(bytes(max(0, offset + len(data) - len(contents[path]))))
            contents[path][offset : offset + len(data)] = data
        elif kind == "rename" and kept:
            names[rest[0]] = originals[path]
            names.pop(path, None)
        elif kind == "unlink" and kept:
            names.pop(path, None)
        if kind == "rename":
            originals[rest[0]] = originals[path]
    return iter([(name, bytes(contents[original])) for name, original in names.items()])


def test_no_save_is_lost_or_torn_by_2000_power_losses(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    done: list[tuple[int, int]] = []  # (operations, images seen) after each save
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        for nimg in range(4, 28, 4):
            save(recorded, nimg)
            done.append((len(disk.operations), nimg))
    rng = random.Random(0)
    between = 0
    for trial in range(2000):
        cut = rng.randrange(len(disk.operations) + 1)
        folder = tmp_path / "after"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, data in after_power_loss(disk.operations, cut, rng):
            (folder / os.path.basename(name)).write_bytes(data)
        saved = max((nimg for count, nimg in done if count <= cut), default=0)
        found = newest_intact(folder)
        assert found in (saved, saved + 4), (trial, cut)
        between += found > saved
    assert between > 20  # of saves that were cut after their last sync


def test_a_save_that_does_not_sync_would_be_noticed(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        save(recorded, 4)
    unsynced = [operation for operation in disk.operations if operation[0] != "sync"]
    folder, lost = tmp_path / "after", 0
    folder.mkdir()
    for trial in range(50):
        for path in folder.iterdir():
            path.unlink()
        for name, data in after_power_loss(unsynced, len(unsynced), random.Random(trial)):
            (folder / os.path.basename(name)).write_bytes(data)
        lost += newest_intact(folder) != 4
    assert lost > 40
