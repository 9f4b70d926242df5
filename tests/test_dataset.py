"""Data sets in a folder or zip, their labels, and the order of batches."""

import io
import json
import multiprocessing
import os
import pickle
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.util import UserError
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sampler import batch_indices, iterate_batches, load_batch


def pixels(index: int, size: int = 8, channels: int = 3) -> np.ndarray:
    """Image number `index`, uint8 [size,size,channels]; its first pixel tells which."""
    image = np.random.default_rng(index).integers(256, size=[size, size, channels], dtype=np.uint8)
    image[0, 0] = index
    return image


def encode(image: np.ndarray, mode: str | None = None, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image.squeeze())
    (picture if mode is None else picture.convert(mode)).save(buffer, format=format)
    return buffer.getvalue()


def image_files(count: int, **kwargs: int) -> dict[str, bytes]:
    """Images named in an order other than that of the names, without labels."""
    return {f"{index % 2:05d}/img{index:08d}.png": encode(pixels(index, **kwargs)) for index in reversed(range(count))}


def labels_file(labels: object) -> bytes:
    return json.dumps({"labels": labels}).encode()


def write(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip (by its suffix) or folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.fixture(params=["data.zip", "data"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_sorted_by_name(target: Path, channels: int) -> None:
    dataset = ImageDataset(write(target, image_files(5, channels=channels)))
    assert (len(dataset), dataset.name, dataset.resolution, dataset.num_channels) == (5, "data", 8, channels)
    assert (dataset.label_dim, dataset.has_labels) == (0, False)
    for position, index in enumerate([0, 2, 4, 1, 3]):  # folder 00000, then 00001
        image, label = dataset[position]
        assert image.dtype == np.uint8
        assert np.array_equal(image, pixels(index, channels=channels).transpose(2, 0, 1))
        assert label.shape == (0,)
    assert np.array_equal(dataset[-1][0], dataset[4][0])
    with pytest.raises(IndexError):
        dataset[5]


@pytest.mark.parametrize("cache", [True, False])
def test_returned_images_are_copies(tmp_path: Path, cache: bool) -> None:
    dataset = ImageDataset(write(tmp_path / "a.zip", image_files(2)), cache=cache)
    before = dataset[0][0].copy()
    dataset[0][0][:] = 0
    assert np.array_equal(dataset[0][0], before)


def test_cache_reads_each_file_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", image_files(3))
    dataset = ImageDataset(folder)
    dataset.preload()
    for file in folder.rglob("*.png"):
        file.unlink()
    assert np.array_equal(dataset[2][0], pixels(1).transpose(2, 0, 1))


def test_other_files_and_those_of_the_system_are_no_images(target: Path) -> None:
    files = image_files(2) | {"readme.txt": b"hello", "__MACOSX/00000/._img.png": b"fork", ".thumbs/a.png": b""}
    assert len(ImageDataset(write(target, files))) == 2


def test_class_labels_become_one_hot(target: Path) -> None:
    files = image_files(4)
    pairs = [[name.replace("/", "\\"), 2 * index] for index, name in enumerate(sorted(files))]
    dataset = ImageDataset(write(target, files | {"dataset.json": labels_file(pairs)}), use_labels=True)
    assert (dataset.label_dim, dataset.has_labels) == (7, True)
    for index in range(4):
        label = dataset[index][1]
        assert label.dtype == np.float32
        assert np.array_equal(label, np.eye(7)[2 * index])


def test_vector_labels_are_kept(target: Path) -> None:
    files = image_files(3)
    pairs = [[name, [index, -0.5]] for index, name in enumerate(sorted(files))]
    dataset = ImageDataset(write(target, files | {"dataset.json": labels_file(pairs)}), use_labels=True)
    assert dataset.label_dim == 2
    assert dataset[2][1].tolist() == [2, -0.5]
    assert ImageDataset(target).label_dim == 0


def test_max_size_chooses_as_the_original_does(tmp_path: Path) -> None:
    files = image_files(10)
    pairs = [[name, index] for index, name in enumerate(sorted(files))]
    path = write(tmp_path / "a.zip", files | {"dataset.json": labels_file(pairs)})
    dataset = ImageDataset(path, use_labels=True, max_size=4, seed=3)
    expected = np.arange(10)
    np.random.RandomState(3).shuffle(expected)
    assert [int(dataset[i][1].argmax()) for i in range(4)] == sorted(expected[:4])
    assert (len(dataset), dataset.label_dim) == (4, 10)  # the classes of all the files
    assert len(ImageDataset(path, max_size=20)) == 10
    with pytest.raises(UserError, match="max_size is 0"):
        ImageDataset(path, max_size=0)


def test_xflip_appends_mirrored_images_with_their_labels(tmp_path: Path) -> None:
    files = image_files(3)
    pairs = [[name, index] for index, name in enumerate(sorted(files))]
    path = write(tmp_path / "a.zip", files | {"dataset.json": labels_file(pairs)})
    dataset = ImageDataset(path, use_labels=True, xflip=True)
    assert len(dataset) == 6
    for index in range(3):
        assert np.array_equal(dataset[index + 3][0], dataset[index][0][:, :, ::-1])
        assert np.array_equal(dataset[index + 3][1], dataset[index][1])


def test_fingerprint_follows_the_choice_and_the_files(target: Path) -> None:
    write(target, image_files(3))
    first = ImageDataset(target).fingerprint()
    assert ImageDataset(target).fingerprint() == first
    assert ImageDataset(target, xflip=True).fingerprint() != first
    assert ImageDataset(target, max_size=1).fingerprint() != first
    write(target, image_files(3, size=16))
    assert ImageDataset(target).fingerprint() != first


# Processes and threads.


def _read_all(dataset: ImageDataset, expected: list[bytes]) -> None:
    for _ in range(20):
        for index, data in enumerate(expected):
            assert dataset[index][0].tobytes() == data


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_forked_processes_do_not_share_the_zip(tmp_path: Path) -> None:
    dataset = ImageDataset(write(tmp_path / "a.zip", image_files(20, size=32)), cache=False)
    expected = [dataset[index][0].tobytes() for index in range(20)]  # the zip is open in this process by now
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_read_all, args=(dataset, expected)) for _ in range(2)]
    for worker in workers:
        worker.start()
    _read_all(dataset, expected)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_threads_may_share_a_data_set(tmp_path: Path) -> None:
    dataset = ImageDataset(write(tmp_path / "a.zip", image_files(20, size=32)), cache=False)
    expected = [dataset[index][0].tobytes() for index in range(20)]
    failures: list[BaseException] = []

    def read() -> None:
        try:
            _read_all(dataset, expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_open_data_set_can_be_pickled(tmp_path: Path) -> None:
    dataset = ImageDataset(write(tmp_path / "a.zip", image_files(2)), cache=False)
    image = dataset[1][0]
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[1][0], image)


# What is wrong with a data set is said by name.


def _huge_png(side: int) -> bytes:
    """A valid beginning of a PNG of side x side gray pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


GOOD = encode(pixels(0))
BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "truncated": (GOOD[: len(GOOD) // 2], "no readable image"),
    "empty": (b"", r"0 bytes\) is no readable image"),
    "html": (b"<!DOCTYPE html><html></html>", "no readable image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "no readable image"),
    "size": (encode(pixels(0, size=16)), "is 16x16 RGB, but 00000/img00000000.png is 8x8 RGB"),
    "gray": (encode(pixels(0, channels=1)), "is 8x8 gray, but"),
    "oblong": (encode(pixels(0)[:4]), "is 8x4 RGB, but"),
    "alpha": (encode(pixels(0), "RGBA"), "is a RGBA image.*dataset_tool"),
    "palette": (encode(pixels(0), "P"), "is a P image"),
    "bits": (encode(np.zeros([8, 8], dtype=np.uint16)), "is a I;16 image"),
    "bomb": (_huge_png(14000), "too large an image"),
    "large": (_huge_png(8200), r"too large an image \(8200x8200\)"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image_is_named(target: Path, case: str) -> None:
    data, message = BAD_IMAGES[case]
    dataset = ImageDataset(write(target, image_files(2) | {"00001/zzz.png": data}))
    with pytest.raises(UserError, match=message) as caught:
        dataset.preload()
    assert "00001/zzz.png" in str(caught.value)


@pytest.mark.parametrize("case", ["truncated", "html", "alpha", "bomb"])
def test_bad_first_image_is_named_at_once(target: Path, case: str) -> None:
    data, message = BAD_IMAGES[case]
    with pytest.raises(UserError, match=message) as caught:
        ImageDataset(write(target, image_files(1) | {"00000/a.png": data}))
    assert "00000/a.png" in str(caught.value)


def test_first_image_must_be_square(target: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png is 8x4; images must be square"):
        ImageDataset(write(target, {"a.png": encode(pixels(0)[:4])}))


NAME = "00000/img00000000.png"
BAD_LABELS: dict[str, tuple[bytes, str]] = {
    "json": (b'{"labels": [', "not valid JSON"),
    "binary": (b"\xff\xfe\x00", "not valid JSON"),
    "deep": (b"[" * 200_000, "not valid JSON"),
    "list": (b"[]", 'has no "labels"'),
    "none": (b"{}", 'has no "labels"'),
    "null": (labels_file(None), "has no labels"),
    "text": (labels_file("cat"), '"labels" is a str'),
    "not pairs": (labels_file([NAME]), "is not a pair"),
    "missing": (labels_file([["other.png", 0]]), f"no label for '{NAME}' \\(1 of 1"),
    "twice": (labels_file([[NAME, 0], [NAME, 1]]), f"labels '{NAME}' twice"),
    "negative": (labels_file([[NAME, -1]]), f"'{NAME}' is -1; class indices are 0 to"),
    "huge": (labels_file([[NAME, 10**9]]), "is 1000000000; class indices"),
    "name": (labels_file([[NAME, "cat"]]), "is 'cat'; expected a class index"),
    "bool": (labels_file([[NAME, True]]), "is True; expected a class index"),
    "float": (labels_file([[NAME, 1.5]]), "is 1.5; expected a class index"),
    "NaN": (labels_file([[NAME, [float("nan")]]]), "must be finite"),
    "beyond float32": (labels_file([[NAME, [1e39]]]), "must be finite"),
    "empty vector": (labels_file([[NAME, []]]), "expected a class index"),
    "nested": (labels_file([[NAME, [[1]]]]), "expected a class index"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_named_when_asked_for(target: Path, case: str) -> None:
    data, message = BAD_LABELS[case]
    write(target, image_files(1) | {"dataset.json": data})
    with pytest.raises(UserError, match=message) as caught:
        ImageDataset(target, use_labels=True)
    assert str(target) in str(caught.value)
    assert "dataset.json" in str(caught.value)
    assert len(ImageDataset(target)) == 1


@pytest.mark.parametrize("labels", [(0, [1.0]), ([1.0], [1.0, 2.0])])
def test_labels_of_two_kinds_are_refused(tmp_path: Path, labels: tuple[object, object]) -> None:
    files = image_files(2)
    pairs = [list(pair) for pair in zip(sorted(files), labels, strict=True)]
    write(tmp_path / "data", files | {"dataset.json": labels_file(pairs)})
    with pytest.raises(UserError, match="use one kind"):
        ImageDataset(tmp_path / "data", use_labels=True)


def test_no_labels_file(target: Path) -> None:
    with pytest.raises(UserError, match="has no labels"):
        ImageDataset(write(target, image_files(1)), use_labels=True)


def test_paths_that_are_no_data_sets(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "absent": "does not exist",
        "a.tar": "neither a folder nor a .zip",
        "a.zip": "not a readable zip",
        "empty": "holds no images",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            ImageDataset(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def _edit(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


BAD_ZIPS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated directory": (lambda data: data[:-30], "not a readable zip"),
    "encrypted": (_edit(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"), "is encrypted"),
    "named outside": (_edit(b"00000/img00000000", b"../00/img00000000"), "outside the archive"),
    "absolute": (_edit(b"00000/img00000000", b"/0000/img00000000"), "outside the archive"),
    "twice": (_edit(b"00001/img00000001", b"00000/img00000000"), "more than once, such as '00000/img00000000.png'"),
    "bad CRC": (lambda data: data.replace(b"IDAT", b"IDAX", 1), "img00000001.png cannot be read: Bad CRC-32"),
}


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_bad_zip_is_named(tmp_path: Path, case: str) -> None:
    edit, message = BAD_ZIPS[case]
    path = write(tmp_path / "a.zip", image_files(2))
    changed = edit(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(UserError, match=message) as caught:
        ImageDataset(path).preload()
    assert str(path) in str(caught.value)


def test_a_zip_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegan_di.data.files.MAX_FILE_BYTES", 10_000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", GOOD + bytes(1_000_000))
    with pytest.raises(UserError, match=r"a\.zip:a\.png is 1000\d+ bytes; files up to 10000"):
        ImageDataset(path)


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on this system")
def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    inside = write(tmp_path / "data", image_files(2))
    outside = write(tmp_path / "elsewhere", image_files(1))
    (inside / "copy.png").symlink_to(inside / NAME)
    assert len(ImageDataset(inside)) == 3
    for link, to in (("file.png", outside / NAME), ("folder", outside)):
        (inside / link).symlink_to(to)
        with pytest.raises(UserError, match="is a link out of the data set") as caught:
            ImageDataset(inside)
        assert str(inside / link) in str(caught.value)
        (inside / link).unlink()


# The order of batches.


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    n = 10
    order = batch_indices(n, seed=1, nimg=0, batch=3 * n).reshape(3, n)
    assert order.dtype == np.int64
    assert all(sorted(epoch) == list(range(n)) for epoch in order)
    assert len({tuple(epoch) for epoch in order}) == 3
    assert not np.array_equal(order[0], batch_indices(n, seed=2, nimg=0, batch=n))


@pytest.mark.parametrize("batch", [1, 4, 7, 30])
def test_order_depends_on_neither_batch_size_nor_resuming(batch: int) -> None:
    whole = batch_indices(7, seed=0, nimg=5, batch=60)
    parts = [batch_indices(7, seed=0, nimg=5 + start, batch=batch) for start in range(0, 60, batch)]
    assert np.array_equal(np.concatenate(parts)[:60], whole)


@pytest.fixture
def labelled(tmp_path: Path) -> ImageDataset:
    """Ten images; image i has the class i."""
    files = image_files(10)
    pairs = [[name, int(name[-8:-4])] for name in files]
    return ImageDataset(write(tmp_path / "a.zip", files | {"dataset.json": labels_file(pairs)}), use_labels=True)


def test_load_batch(labelled: ImageDataset) -> None:
    images, labels = load_batch(labelled, np.array([3, 0, 3]))
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.float32)
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(images[:, 0, 0, 0].long(), labels.argmax(dim=1))
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], torch.from_numpy(labelled[0][0]))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_are_the_same_with_any_number_of_workers(labelled: ImageDataset, num_workers: int) -> None:
    batches = iterate_batches(labelled, seed=4, nimg=8, batch=4, num_workers=num_workers)
    for step, (images, labels) in enumerate(islice(batches, 12)):
        expected = load_batch(labelled, batch_indices(10, seed=4, nimg=8 + 4 * step, batch=4))
        assert torch.equal(images, expected[0])
        assert torch.equal(labels, expected[1])
    batches.close()
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("data")]
    for worker in workers:
        worker.join(timeout=5)
    assert not any(worker.is_alive() for worker in workers)


def test_processes_share_a_batch(labelled: ImageDataset) -> None:
    whole = next(iterate_batches(labelled, seed=0, nimg=0, batch=6))
    shares = [next(iterate_batches(labelled, seed=0, nimg=0, batch=6, rank=rank, world_size=3)) for rank in range(3)]
    for index in range(2):
        assert torch.equal(torch.cat([share[index] for share in shares]), whole[index])
    with pytest.raises(ValueError, match="6 does not divide among 4"):
        next(iterate_batches(labelled, seed=0, nimg=0, batch=6, world_size=4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_stops_the_batches(tmp_path: Path, num_workers: int) -> None:
    path = write(tmp_path / "a.zip", image_files(3) | {"z.png": b"no image"})
    with pytest.raises(UserError, match=r"z\.png"):
        for _ in iterate_batches(ImageDataset(path), seed=0, nimg=0, batch=2, num_workers=num_workers):
            pass
