"""What is printed: nothing from a stranger's file can steer a terminal, or hide, reorder or forge text there.

Names of files, keys and classes may hold escape sequences, carriage returns or marks that turn the direction of text.
Commands print through `plain_output`, which shows such characters as escapes, \\x1b for ESC. Where a text from outside
must not begin a line of its own, `one_line` escapes line ends too.
"""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO, cast

_LAYOUT = "\n\t"  # what our own texts consist of besides printable characters


def plain(text: str) -> str:
    """Returns a text with escapes for all that is not printable, but for line ends and tabs.

    A carriage return is kept at its beginning, where lines that rewrite themselves have it.
    """
    if text.isprintable():
        return text
    start = "\r" if text.startswith("\r") else ""
    rest = text.removeprefix(start).replace("\r\n", "\n")
    return start + "".join(c if c in _LAYOUT or _is_shown(c) else _escape(c) for c in rest)


def one_line(text: object) -> str:
    """Returns a text, or what str() makes of a value, with escapes for all that is not printable."""
    return "".join(c if _is_shown(c) else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # spaces of other widths


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Makes what is printed on stdout and stderr inside its block plain."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", PlainStream(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class PlainStream:
    """A text stream that writes plain text; everything else but the bytes below it is delegated to the stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(plain(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click would write there
            raise AttributeError(name)
        return getattr(self._stream, name)
