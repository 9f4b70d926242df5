"""Says what a disk may hold after its power went, from a record of what was written to it (`system_calls`).

What was synced is there. Of what came after the last sync of a file, any of its writes may be there, in pieces of
4 KiB, and zeros stand for those that are not; of what came after the last sync of the folder, any of its names.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.dev.system_calls import WRITES, Call

PAGE = 4096  # bytes that a disk writes together


class Disk:
    """What a disk may hold after calls that were recorded.

    Files are numbers: names are given to them, and taken away, by operations ('name', name, number or None); contents
    change by ('write', number, offset, data) and ('cut', number, length). ('sync', number) makes the contents of a file
    last, ('sync', None) the names. Each has the number of its call.

    `complete` are the contents that files of a name were meant to have: from before, or when they were renamed to it.

    Args:
        before: a copy of the folder as it was; all of that lasts.
        folder: the folder of the calls.
    """

    def __init__(self, before: Path, folder: Path, calls: Sequence[Call]) -> None:
        self.names = {path.name: number for number, path in enumerate(sorted(before.iterdir()))}
        self.contents = {number: (before / name).read_bytes() for name, number in self.names.items()}
        self.operations: list[tuple[int, tuple[Any, ...]]] = []
        self.complete: dict[str, set[bytes]] = {name: {self.contents[i]} for name, i in self.names.items()}
        names, current = dict(self.names), {i: bytearray(data) for i, data in self.contents.items()}
        for index, call in enumerate(calls):
            if call.result < 0 or not all(os.path.dirname(path) == str(folder) for path in call.paths):
                if call.name == "fsync" and call.result == 0 and call.paths == (str(folder),):
                    self.operations.append((index, ("sync", None)))
                continue
            name, *others = (os.path.basename(path) for path in call.paths)
            for operation in self._operations(call, name, others, names, current):
                self.operations.append((index, operation))

    def _operations(
        self, call: Call, name: str, others: list[str], names: dict[str, int], current: dict[int, bytearray]
    ) -> Iterator[tuple[Any, ...]]:
        """Yields what a call did, and does it to `names` and `current`."""
        if call.name in ("open", "openat") and call.flags & os.O_CREAT and name not in names:
            names[name] = len(current)
            current[names[name]] = bytearray()
            yield "name", name, names[name]
        if call.name in ("open", "openat") and call.flags & os.O_TRUNC and current[names[name]]:
            current[names[name]].clear()
            yield "cut", names[name], 0
        if call.name in WRITES:
            write(current[names[name]], call.offset, call.data)
            yield "write", names[name], call.offset, call.data
        elif call.name in ("truncate", "ftruncate"):
            del current[names[name]][call.length :]
            yield "cut", names[name], call.length
        elif call.name in ("fsync", "fdatasync"):
            yield "sync", names[name]
        elif call.name in ("rename", "renameat", "renameat2", "link", "linkat"):
            number = names[name] if "link" in call.name else names.pop(name)
            names[others[0]] = number
            self.complete.setdefault(others[0], set()).add(bytes(current[number]))
            yield "name", others[0], number
            if "link" not in call.name:
                yield "name", name, None
        elif call.name in ("unlink", "unlinkat"):
            del names[name]
            yield "name", name, None

    def after(self, cut: int, random: random.Random) -> dict[str, bytes]:
        """Returns files by name that may be there if power goes after so many calls."""
        made = [operation for index, operation in self.operations if index < cut]
        synced = {operation[1]: at for at, operation in enumerate(made) if operation[0] == "sync"}
        names = dict(self.names)
        contents = {number: bytearray(data) for number, data in self.contents.items()}
        for at, (kind, target, *rest) in enumerate(made):
            lasts = at < synced.get(None if kind == "name" else target, -1)
            if kind == "name" and (lasts or random.random() < 0.5):
                if rest[0] is None:
                    names.pop(target, None)
                else:
                    names[target] = rest[0]
            elif kind == "cut" and (lasts or random.random() < 0.5):
                del contents[target][rest[0] :]
            elif kind == "write":
                own = contents.setdefault(target, bytearray())
                offset, data = rest
                for start in range(offset - offset % PAGE, offset + len(data), PAGE):
                    if lasts or random.random() < 0.5:
                        first = max(start, offset)
                        write(own, first, data[first - offset : start + PAGE - offset])
        return {name: bytes(contents.get(number, b"")) for name, number in names.items()}

    def saved(self, cut: int) -> int:
        """Returns the images seen of the newest state of a training that was saved before a call; 0 if none was."""
        newest = pending = 0
        for index, (kind, target, *_) in self.operations:
            if index >= cut:
                break
            if kind == "name" and (found := re.fullmatch(r"training-state-(\d+)\.json", target)):
                pending = max(pending, int(found[1]))
            elif (kind, target) == ("sync", None):
                newest = pending
        return newest


def write(contents: bytearray, offset: int, data: bytes) -> None:
    """Writes into a file's contents; zeros stand for what is not there before."""
    contents.extend(bytes(max(0, offset + len(data) - len(contents))))
    contents[offset : offset + len(data)] = data
