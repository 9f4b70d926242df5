"""The door for files from outside: what reading one may cost, and what becomes of whatever goes wrong inside.

A reading has one `Budget`, which travels with it and is spent on everything that is built. `untrusted` stands at the
door and turns any exception into a refusal that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stylegan_di.dnnlib.util import UserError, cache_folder

MAX_FILE_BYTES = 1 << 34  # of a file that is read as a whole; the largest published networks have 6 GB
MARGIN_BYTES = 192 << 20  # what any file may cost, however small
MAX_VALUES = 500_000  # steps and values of a network file; several times what the largest published ones need
JSON_VALUE_BYTES = 100  # of a value read from JSON, with its place in a list or dict

NOT_A_NETWORK = "It is no network file of stylegan2-ada-pytorch or edm; use a copy from a source you trust."
FORGED = "No program that this project knows writes such files; use a copy from a source you trust."
DAMAGED = "The file is damaged; download or copy it again."


class RefusedFileError(UserError):
    """A file is refused. The message names the file, what was found in it, and the remedy."""

    def __init__(self, source: str, found: str, remedy: str = NOT_A_NETWORK) -> None:
        super().__init__(f"{source}: found {found}. {remedy}")
        self.source = source
        self.found = found
        self.remedy = remedy


class OverBudget(Exception):
    """A file asks for more than its size can justify."""


class Budget:
    """What the reading of one file may still cost.

    Args:
        size: the file's size in bytes, or that of the archive that it is in.
        values: the most steps and values; None takes a number in proportion to the size, up to MAX_VALUES.
    """

    def __init__(self, size: int, values: int | None = None) -> None:
        self.bytes = 3 * size + MARGIN_BYTES
        self.values = min(MAX_VALUES, 5 * size + 1000) if values is None else values
        self.tensors = 100_000
        self.deadline = time.process_time() + 10 + size / 10e6  # seconds of the processor

    def spend(self, *, bytes: int = 0, values: int = 0, tensors: int = 0) -> None:
        """Takes from what is left.

        Raises:
            OverBudget: if it does not suffice.
        """
        self.bytes -= bytes
        self.values -= values
        self.tensors -= tensors
        if self.bytes < 0 or self.values < 0 or self.tensors < 0:
            what = "bytes" if self.bytes < 0 else "values" if self.values < 0 else "tensors"
            raise OverBudget(f"far more {what} than a file of its size has")
        if not self.values & 63 and time.process_time() > self.deadline:  # reading the clock costs time
            raise OverBudget("contents that take too long to read")


@contextlib.contextmanager
def untrusted(source: str, path: Path | None = None, remedy: str = DAMAGED) -> Iterator[None]:
    """Turns whatever goes wrong with a file from outside into a refusal, which keeps its cause for --debug.

    Args:
        source: what the file is called in messages.
        path: where it was read, if that may be in the cache: then the refusal says how to fetch it anew.
        remedy: what to do about contents that cannot be read.
    """
    try:
        yield
    except RefusedFileError as error:
        if path is None or path.parent != cache_folder() or str(path) in error.remedy:
            raise
        remedy = f"{error.remedy} It lies at {path}; DNNLIB_REFRESH=1 fetches it anew."
        raise RefusedFileError(error.source, error.found, remedy) from error.__cause__
    except UserError:
        raise
    except OverBudget as error:
        raise RefusedFileError(source, str(error), FORGED) from error
    except Exception as error:
        raise RefusedFileError(source, f"contents that cannot be read ({brief(error)})", remedy) from error


def brief(error: BaseException) -> str:
    """Returns the beginning of an exception's text, and its type unless it is ValueError, which our checks raise."""
    try:
        text = " ".join(str(error)[:400].split())[:160]
    except Exception:  # its own code may be wrong too
        text = ""
    if type(error) is ValueError and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def open_untrusted(
    path: str | os.PathLike[str], most: int = MAX_FILE_BYTES, *, in_memory: bool = True
) -> Iterator[tuple[IO[bytes], int]]:
    """Opens a file from outside for reading; yields it and its size.

    Raises:
        RefusedFileError: if it is larger than `most` bytes or, when it is to be read `in_memory`, than what is free.
        OSError: if it cannot be opened, or is no ordinary file.
    """
    if not os.path.isfile(path):
        raise OSError("it is no ordinary file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        free = free_memory() if in_memory and size > MARGIN_BYTES else most
        if size > min(most, free):
            limit = f"up to {most} are read" if size > most else f"{free} bytes of memory are free"
            raise RefusedFileError(os.fspath(path), f"{size} bytes; {limit}", "Use another file.")
        yield file, size


def safetensors_budget(file: IO[bytes], size: int) -> Budget:
    """Returns what is left of the budget of a safetensors file when its library has read it all.

    Raises:
        OverBudget: if its header is too long for the library, which takes some 80 bytes for each tensor in it.
    """
    budget = Budget(size)
    header = int.from_bytes(file.read(8), "little")
    budget.spend(bytes=size + JSON_VALUE_BYTES * min(header, size) // 8)
    return budget


def free_memory() -> int:
    """Returns how many bytes of memory are free, as far as the system says so."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return 1 << 62


def read_json(text: bytes | str, budget: Budget) -> Any:
    """Parses JSON from outside, after its cost has been taken from the budget.

    Raises:
        OverBudget, ValueError, RecursionError: if it costs too much, or is no JSON.
    """
    data = text.encode() if isinstance(text, str) else text
    values = 1 + data.count(b",") + data.count(b"[") + data.count(b"{")
    budget.spend(bytes=len(data) + JSON_VALUE_BYTES * values)
    return json.loads(str(data, "utf-8"))  # of bytes it would guess the encoding, and import it


def read_json_file(path: str | os.PathLike[str], most: int) -> Any:
    """Reads a JSON file from outside of at most `most` bytes; `untrusted` around it refuses what goes wrong.

    Raises:
        RefusedFileError, OSError, OverBudget, ValueError, RecursionError: see `open_untrusted` and `read_json`.
    """
    with open_untrusted(path, most) as (file, size):
        return read_json(file.read(), Budget(size))
