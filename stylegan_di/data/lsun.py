"""Reads LSUN's databases (Yu et al. 2015, arXiv 1506.03365), LMDB folders whose values are image files.

The package lmdb maps the file into memory and trusts its structure, so open only databases whose origin you know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stylegan_di.data.files import MAX_FILE_BYTES
from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.dnnlib.util import UserError, not_installed

DATA_FILE = "data.mdb"


def is_database(path: Path) -> bool:
    """Whether a source is a folder that holds an LMDB."""
    return (path / DATA_FILE).is_file()


class Database:
    """The values of an LMDB, read-only, in the order of their keys.

    Raises UserError if the package lmdb is missing or the database is damaged or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lmdb = _import_lmdb(path)
        with untrusted(str(path / DATA_FILE), remedy="Unpack or download it again."):
            self._environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
            with self._environment.begin() as transaction:
                self._keys = list(transaction.cursor().iternext(values=False))
        if not self._keys:
            raise UserError(f"{path / DATA_FILE} holds no images; unpack or download it again.")

    def __len__(self) -> int:
        return len(self._keys)

    def where(self, index: int) -> str:
        """A value's name in error messages."""
        return f"{self.path}:{self._keys[index].decode('utf-8', 'backslashreplace')}"

    def read(self, index: int) -> bytes:
        """Returns the value at an index."""
        with self._environment.begin(buffers=True) as transaction:
            value = transaction.get(self._keys[index])
            if len(value) > MAX_FILE_BYTES:
                raise UserError(f"{self.where(index)} is {len(value)} bytes; up to {MAX_FILE_BYTES} are read.")
            return bytes(value)


def _import_lmdb(path: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise not_installed(f"{path} is an LMDB, which", "lmdb", "lmdb") from None
    return lmdb
