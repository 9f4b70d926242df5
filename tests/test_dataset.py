"""Data sets in a folder or zip, their labels, and the order of batches."""

import multiprocessing
import pickle
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sampler import batch_indices, iterate_batches, load_batch
from stylegan_di.dnnlib.util import UserError
from tests.datasets import image_files, labels_file, pixels, write


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
    with pytest.raises(ValueError, match="6 cannot be divided among 4"):
        next(iterate_batches(labelled, seed=0, nimg=0, batch=6, world_size=4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_stops_the_batches(tmp_path: Path, num_workers: int) -> None:
    path = write(tmp_path / "a.zip", image_files(3) | {"z.png": b"no image"})
    with pytest.raises(UserError, match=r"z\.png"):
        for _ in iterate_batches(ImageDataset(path), seed=0, nimg=0, batch=2, num_workers=num_workers):
            pass
