"""Reads state dicts that torch.save wrote: zip archives of a pickle and one file a storage, as inert data.

The pickle (`NAME/data.pkl`) holds names and views of storages (`NAME/data/KEY`), which are raw numbers. It goes through
the same machine as NVlabs' pickles, with a shorter list of names that it may contain.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator

import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import DAMAGED, Budget, RefusedFileError, brief, untrusted
from stylegan_di.torch_utils.pickle_arrays import NESTED_GLOBALS, check_view, is_call, storage_reference
from stylegan_di.torch_utils.pickle_machine import Call, Machine, Pairs, PersistentId, Refusal
from stylegan_di.torch_utils.pickle_reader import TENSOR_BYTES

_KNOWN_GLOBALS = NESTED_GLOBALS | {
    ("collections", "OrderedDict"): "state_dict",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
}
_ENTRY_BYTES = 1000  # of memory that a file in an archive takes besides its contents
_NOT_A_STATE_DICT = "Pass the .pt file of a state dict that torch.save wrote (PyTorch 1.6 or later)."


def read_state_dict(data: bytes, source: str, budget: Budget | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a state dict by their names.

    Args:
        data: the file's contents.
        source: the file's name, for messages.
        budget: the file's, where more is read from it.

    Raises:
        RefusedFileError: for any other file.
    """
    with untrusted(source):
        try:
            return _Archive(data, Budget(len(data)) if budget is None else budget).state_dict()
        except Refusal as refusal:
            raise RefusedFileError(source, refusal.found, refusal.remedy) from None


@contextlib.contextmanager
def _unzipping() -> Iterator[None]:
    """Turns what zipfile raises for damaged archives, errors of many types, into a Refusal."""
    try:
        yield
    except Exception as error:
        raise Refusal(f"no archive of torch.save ({brief(error)})", _NOT_A_STATE_DICT) from error


class _Archive:
    """An archive whose files are not compressed, so that its contents are no larger than itself."""

    def __init__(self, data: bytes, budget: Budget) -> None:
        self.budget = budget
        self.budget.spend(bytes=_ENTRY_BYTES * data.count(b"PK\1\2"))
        with _unzipping():
            self.zip = zipfile.ZipFile(io.BytesIO(data))
            infos = self.zip.infolist()
        self.files = {info.filename: info for info in infos}
        if len(self.files) < len(infos):
            raise Refusal("an archive with two files of one name")
        pickles = [name for name in self.files if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refusal("a zip archive without a torch.save's data.pkl", _NOT_A_STATE_DICT)
        self.root = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def read(self, name: str) -> bytes:
        info = self.files.get(self.root + name)
        if info is None:
            raise Refusal(f"an archive without {name[:80]!r}", DAMAGED)
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refusal("a compressed file in an archive, which torch.save writes none of")
        self.budget.spend(bytes=info.file_size)
        with _unzipping():
            return self.zip.read(info)

    def state_dict(self) -> dict[str, Tensor]:
        if self.root + "byteorder" in self.files and self.read("byteorder") != b"little":
            raise Refusal("numbers of a big-endian machine", "Save it again on a little-endian machine.")
        data = memoryview(self.read("data.pkl"))
        root = Machine(data, budget=self.budget, known=_KNOWN_GLOBALS, allow_persistent_ids=True).run()
        if not isinstance(root, Pairs) and not is_call(root, "state_dict"):
            raise Refusal("no state dict at the top of the archive", _NOT_A_STATE_DICT)
        return dict(self.entry(name, node) for name, node in root.pairs)

    def entry(self, name: object, node: object) -> tuple[str, Tensor]:
        if is_call(node, "parameter") and isinstance(node, Call) and len(node.arguments) == 3:
            node = node.arguments[0]
        if not isinstance(name, str) or not is_call(node, "tensor"):
            raise Refusal("a state dict of other things than named tensors", _NOT_A_STATE_DICT)
        assert isinstance(node, Call)
        if len(node.arguments) != 6:
            raise Refusal("a tensor without its storage", DAMAGED)
        reference, offset, size, stride = node.arguments[:4]
        storage = self.storage(reference)
        check_view(storage.numel(), offset, size, stride)
        self.budget.spend(values=1, tensors=1, bytes=TENSOR_BYTES)
        return name, storage.as_strided(size, stride, offset)

    def storage(self, reference: PersistentId) -> Tensor:
        """Returns the flat tensor of a storage, which is read once however many tensors share it."""
        dtype, key, count = storage_reference(reference)
        if key not in self.storages:
            raw = self.read(f"data/{key}")
            if len(raw) != count * dtype.itemsize:
                raise Refusal(f"a storage of {count} numbers in {len(raw)} bytes ({dtype})", DAMAGED)
            flat = torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)
            self.storages[key] = flat
        found = self.storages[key]
        if (found.dtype, found.numel()) != (dtype, count):
            raise Refusal("a storage that is described in two ways", DAMAGED)
        return found
