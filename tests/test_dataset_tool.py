"""stylegan-di dataset: sources, transforms, labels, what it writes and what it refuses."""

import gzip
import io
import itertools
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from stylegan_di.commands.dataset import main
from stylegan_di.data.convert import transform_image
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from tests.datasets import encode, pixels

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
RANDOM = np.random.default_rng(0)


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def convert(source: Path, dest: Path, *options: str) -> ImageDataset:
    """Run the tool; the data set it made, with labels if it has any."""
    result = run(f"--source={source}", f"--dest={dest}", *options)
    assert result.exit_code == 0, result.output
    return ImageDataset(dest, use_labels="no labels" not in result.output)


def refused(source: Path, dest: Path, *options: str) -> str:
    """Run the tool, which must refuse in one line and leave nothing behind; that line."""
    before = sorted(dest.parent.iterdir())
    result = run(f"--source={source}", f"--dest={dest}", *options)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert sorted(dest.parent.iterdir()) == before
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    return errors[0]


def save(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> np.ndarray:
    """Write a random image of (width, height) and the mode; its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = RANDOM.integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


IMAGES = RANDOM.integers(256, size=[12, 28, 28], dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 5


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder like MNIST's: the training files gzipped, the test files (the last four images) plain."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES[8:]))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[8:]))
    return folder


@pytest.mark.parametrize("name", ["out.zip", "out", "new/folder/out.zip"])
@pytest.mark.parametrize("resolution", ["32x32", "32"])
def test_idx_padded_keeps_pixels_and_labels(mnist: Path, tmp_path: Path, name: str, resolution: str) -> None:
    dataset = convert(mnist, tmp_path / name, "--transform=pad", f"--resolution={resolution}")
    assert (len(dataset), dataset.resolution, dataset.num_channels, dataset.label_dim) == (12, 32, 1, 5)
    for index in range(12):
        image, label = dataset[index]
        assert np.array_equal(image[0], np.pad(IMAGES[index], 2))
        assert label.argmax() == LABELS[index]


def test_idx_images_alone_are_padded_as_by_nvlabs_tool(mnist: Path, tmp_path: Path) -> None:
    """Without any option, and without labels beside them."""
    (mnist / "train-labels-idx1-ubyte.gz").unlink()
    dataset = convert(mnist / "train-images-idx3-ubyte.gz", tmp_path / "out.zip")
    assert (len(dataset), dataset.resolution, dataset.label_dim) == (12, 32, 0)
    assert np.array_equal(dataset[3][0][0], np.pad(IMAGES[3], 2))


def test_idx_split_and_single_file(mnist: Path, tmp_path: Path) -> None:
    options = ["--transform=pad", "--resolution=32"]
    assert len(convert(mnist, tmp_path / "test.zip", "--split=test", *options)) == 4
    single = convert(mnist / "t10k-images-idx3-ubyte", tmp_path / "single.zip", *options)
    assert (len(single), single.label_dim) == (4, 5)
    (mnist / "t10k-images-idx3-ubyte").unlink()
    error = refused(mnist, tmp_path / "none.zip", "--split=test", *options)
    assert "t10k-images-idx3-ubyte" in error
    assert "train-images-idx3-ubyte.gz" in error


def test_output_is_the_format_and_always_the_same_bytes(mnist: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        convert(mnist, tmp_path / name, "--transform=pad", "--resolution=32", "--max-images=3")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = [f"00000/img{index:08d}.png" for index in range(3)]
        assert archive.namelist() == [*names, "dataset.json"]
        assert json.loads(archive.read("dataset.json")) == {"labels": [[name, i] for i, name in enumerate(names)]}
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        assert len(archive.read(names[0])) > 32 * 32  # not compressed either
        with Image.open(io.BytesIO(archive.read(names[0]))) as image:
            assert (image.format, image.mode) == ("PNG", "L")
    assert {path.name for path in tmp_path.iterdir()} == {"mnist", "a.zip", "b.zip"}


def test_thousand_images_a_folder(tmp_path: Path) -> None:
    images = np.zeros([1001, 2, 2], dtype=np.uint8)
    (tmp_path / "many-images-idx3-ubyte").write_bytes(idx(images))
    convert(tmp_path / "many-images-idx3-ubyte", tmp_path / "out")
    assert [len(list((tmp_path / "out" / folder).iterdir())) for folder in ("00000", "00001")] == [1000, 1]
    assert (tmp_path / "out" / "00001" / "img00001000.png").is_file()


BAD_IDX: dict[str, tuple[bytes, str]] = {
    "truncated": (idx(IMAGES)[:-1], "its shape [12, 28, 28] needs 9408"),
    "longer": (idx(IMAGES) + b"x", "holds 9409 values or more"),
    "labels for images": (idx(LABELS), "not an IDX file of 3-dimensional"),
    "html": (b"<!DOCTYPE html>" * 9, "not an IDX file"),
    "empty": (b"", "not an IDX file"),
    "of no images": (idx(IMAGES[:0]), "claims the shape [0, 28, 28]"),
    "too large": (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31), "claims the shape [2147483648"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_file_is_named(tmp_path: Path, case: str) -> None:
    data, message = BAD_IDX[case]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    error = refused(path, tmp_path / "out.zip")
    assert str(path) in error
    assert message in error


def test_damaged_gzip_and_unequal_counts_are_named(mnist: Path, tmp_path: Path) -> None:
    images = mnist / "train-images-idx3-ubyte.gz"
    labels = mnist / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(LABELS[:5])))
    assert f"{labels} has 5 labels, but {images} has 12 images" in refused(mnist, tmp_path / "out.zip")
    images.write_bytes(images.read_bytes()[:100])
    assert f"{images}: found contents that cannot be read" in refused(mnist, tmp_path / "out.zip")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of one folder a class."""
    for name in ("dog/1.png", "dog/2.png", "cat/7.png"):
        save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_folders_become_classes(photos: Path, tmp_path: Path, wrapped: bool, zipped: bool) -> None:
    source = photos.parent / "photos.zip" if zipped else photos
    if wrapped and not zipped:
        (tmp_path / "outer").mkdir()
        source = photos.rename(tmp_path / "outer" / "photos").parent
    if zipped:
        with zipfile.ZipFile(source, "w") as archive:
            for file in photos.rglob("*.png"):
                archive.write(file, file.relative_to(photos.parent if wrapped else photos))
    dataset = convert(source, tmp_path / "out.zip", "--labels")
    assert [int(dataset[index][1].argmax()) for index in range(3)] == [0, 1, 1]  # cat, dog, dog


def test_an_image_beside_the_folders_has_no_class(photos: Path, tmp_path: Path) -> None:
    save(photos / "a.png")
    said = refused(photos, tmp_path / "out.zip")
    assert f"{photos / 'a.png'} is beside the folders of classes (cat, dog, ...), so it has no class" in said
    assert convert(photos, tmp_path / "out.zip", "--no-labels").label_dim == 0


def test_dataset_json_comes_before_folders(photos: Path, tmp_path: Path) -> None:
    pairs = [["dog/1.png", [0.5, 1]], ["dog/2.png", [2, 3]], ["cat/7.png", [4, 5]]]
    (photos / "dataset.json").write_text(json.dumps({"labels": pairs}))
    dataset = convert(photos, tmp_path / "out.zip", "--labels")
    assert dataset.label_dim == 2
    assert dataset[0][1].tolist() == [4, 5]
    (photos / "dataset.json").write_text(json.dumps({"labels": pairs[:2]}))
    assert "no label for 'cat/7.png'" in refused(photos, tmp_path / "missing.zip")
    assert convert(photos, tmp_path / "unlabelled.zip", "--no-labels").label_dim == 0
    (photos / "dataset.json").write_text(json.dumps({"labels": None}))
    assert convert(photos, tmp_path / "null.zip").label_dim == 0


def test_converting_again_changes_nothing(mnist: Path, tmp_path: Path) -> None:
    convert(mnist, tmp_path / "a.zip", "--transform=pad", "--resolution=32")
    convert(tmp_path / "a.zip", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_transforms() -> None:
    """On an image whose left half is 0 and right half is 200, twice as wide as it is high."""
    wide = Image.fromarray(np.repeat(np.repeat(np.uint8([[0, 200]]), 16, axis=1), 16, axis=0))

    def transformed(transform: str | None, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(transform_image(wide, transform, size, "image"))

    scaled = transformed(None, (8, 8))
    assert scaled.shape == (8, 8)
    assert scaled[:, 0].max() <= 2
    assert scaled[:, 7].min() >= 198
    cropped = transformed("center-crop", (16, 16))
    assert np.array_equal(cropped, np.asarray(wide)[:, 8:24])
    odd = Image.fromarray(np.random.default_rng(0).integers(256, size=[21, 40], dtype=np.uint8))
    expected = Image.fromarray(np.asarray(odd)[:, 9:30]).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(transform_image(odd, "center-crop", (8, 8), "image")), np.asarray(expected))
    letterbox = transformed("center-crop-wide", (16, 8))
    assert letterbox.shape == (16, 16)
    assert not letterbox[:4].any()
    assert not letterbox[12:].any()
    assert letterbox[4:12, 12:].min() >= 198
    padded = transformed("pad", (64, 64))
    assert np.array_equal(padded[24:40, 16:48], np.asarray(wide))
    assert padded.sum() == np.asarray(wide).sum()


MODES: dict[str, tuple[Image.Image, tuple[int, ...]]] = {
    "palette": (Image.new("RGB", (4, 4), (255, 0, 51)).convert("P", palette=Image.Palette.WEB), (255, 0, 51)),
    "opaque": (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), (10, 20, 30)),
    "gray and opaque": (Image.new("LA", (4, 4), (10, 255)), (10,)),
    "black and white": (Image.new("1", (4, 4), 1), (255,)),
}


@pytest.mark.parametrize("case", MODES)
def test_modes_that_are_converted(tmp_path: Path, case: str) -> None:
    image, color = MODES[case]
    image.save(tmp_path / "a.png")
    pixels = convert(tmp_path, tmp_path / "out.zip")[0][0]
    assert pixels[:, 0, 0].tolist() == list(color)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(np.uint8([[0, 85], [170, 255]]), 8, axis=0), 8, axis=1)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(convert(tmp_path, tmp_path / "out.zip")[0][0][0], pixels[::-1, ::-1])


def test_modes_that_are_refused(tmp_path: Path) -> None:
    for name, image, message in (
        ("clear", Image.new("RGBA", (4, 4), (0, 0, 0, 254)), "is partly transparent"),
        ("deep", Image.fromarray(np.zeros([4, 4], dtype=np.uint16)), "is a gray image of 16 bits; say"),
    ):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png")
        assert f"{tmp_path / name / 'a.png'} {message}" in refused(tmp_path / name, tmp_path / "out.zip")


def test_what_was_made_is_described_as_the_check_does(tmp_path: Path) -> None:
    """Classes are counted up to the largest, as a training does, whether or not each occurs."""
    save(tmp_path / "in" / "a.png")
    described = ("no labels", "1 class", "6 classes", "labels of 2 numbers")
    for label, words in zip((None, 0, 5, [0.5, 1.0]), described, strict=True):
        labels = {"labels": None if label is None else [["a.png", label]]}
        (tmp_path / "in" / "dataset.json").write_text(json.dumps(labels))
        for arguments in ([f"--dest={tmp_path / 'out.zip'}"], ["--check"]):
            result = run(f"--source={tmp_path / 'in'}", *arguments)
            assert f": 1 image, 8x8 RGB, {words}" in result.output, result.output


def test_gray_mixed_with_rgb(tmp_path: Path) -> None:
    gray = save(tmp_path / "in" / "a.png", mode="L")
    save(tmp_path / "in" / "b.png")
    error = refused(tmp_path / "in", tmp_path / "out.zip")
    assert "b.png becomes 8x8 RGB" in error
    assert "a.png 8x8 gray; give channels, 1 or 3, for all." in error
    rgb = convert(tmp_path / "in", tmp_path / "rgb.zip", "--channels=3")
    assert np.array_equal(rgb[0][0], np.stack([gray] * 3))
    assert convert(tmp_path / "in", tmp_path / "gray.zip", "--channels=1").num_channels == 1


def test_sizes_that_are_refused_without_a_resolution(tmp_path: Path) -> None:
    for name, size, message in (
        ("oblong", (8, 4), "becomes 8x4 RGB; images must be square"),
        ("odd", (33, 33), "becomes 33x33 RGB; images must be square, and their side a power of two"),
    ):
        save(tmp_path / name / "a.png", size)
        assert message in refused(tmp_path / name, tmp_path / "out.zip")
        cropped = convert(tmp_path / name, tmp_path / f"{name}.zip", "--transform=center-crop", "--resolution=8")
        assert cropped.resolution == 8
    save(tmp_path / "mixed" / "a.png", (8, 8))
    save(tmp_path / "mixed" / "b.png", (16, 16))
    error = refused(tmp_path / "mixed", tmp_path / "out.zip")
    assert "b.png becomes 16x16 RGB, but" in error
    assert error.endswith("a.png 8x8 RGB; give a resolution.")
    assert "b.png is 16x16, too large to pad to 8x8" in refused(
        tmp_path / "mixed", tmp_path / "out.zip", "--transform=pad", "--resolution=8"
    )


def test_a_damaged_image_leaves_what_was_there(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "3.png").write_bytes(b"<html>")
    dest = tmp_path / "out.zip"
    dest.write_bytes(b"precious")
    assert str(photos / "dog" / "3.png") in refused(photos, dest)
    assert dest.read_bytes() == b"precious"
    assert str(photos / "dog" / "3.png") in refused(photos, tmp_path / "folder")


def test_options_that_are_refused(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out.zip"
    assert "needs --resolution" in refused(photos, dest, "--transform=pad")
    assert "exists" in refused(tmp_path, photos)
    assert "No such option '--height': give --resolution=WxH" in run("--height=32").output
    assert "is the source itself" in refused(photos, photos)
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file' / 'out.zip'} cannot be written" in run(
        f"--source={photos}", f"--dest={tmp_path / 'file' / 'out.zip'}"
    ).output
    assert "'8x8x8' is not a size" in refused(photos, dest, "--resolution=8x8x8")
    assert "'0' is not a size" in refused(photos, dest, "--resolution=0")
    assert "does not exist" in refused(tmp_path / "absent", dest)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(tmp_path / "empty", dest)


def test_runs_from_anywhere_without_installation(mnist: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent.parent / "tools" / "dataset_tool.py"
    command = [sys.executable, script, f"--source={mnist}", "--dest=out.zip", "--transform=pad", "--resolution=32"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "out.zip: 12 images, 32x32 gray, 5 classes\n"
    assert "12/12" in result.stderr


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"Fashion-MNIST is not in {FASHION} (package dataset-fashion-mnist)")
def test_fashion_mnist(tmp_path: Path) -> None:
    options = ["--split=test", "--transform=pad", "--resolution=32x32", "--max-images=200"]
    dataset = convert(FASHION, tmp_path / "out.zip", *options)
    assert (len(dataset), dataset.resolution, dataset.label_dim) == (200, 32, 10)
    classes = [int(dataset[index][1].argmax()) for index in range(5)]
    assert classes == [9, 2, 1, 1, 6]  # ankle boot, pullover, trouser, trouser, shirt: as published
    assert not dataset[0][0][0, :2].any()


# CIFAR-10.


def python2_pickle(pixels: np.ndarray, labels: list[int], filenames: list[str]) -> bytes:
    """A batch as Python 2's cPickle wrote CIFAR-10's: protocol 2, 8-bit strings, a memo from 1."""

    memo = itertools.count(1)

    def put() -> bytes:
        index = next(memo)
        return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode() + put()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    rows, columns = pixels.shape
    parts = [
        b"\x80\x02}", put(), b"(", text("batch_label"), text("training batch 1 of 5"),
        text("labels"), b"]", put(), b"(", *map(integer, labels), b"e",
        text("data"), b"cnumpy.core.multiarray\n_reconstruct\n", put(), b"cnumpy\nndarray\n", put(),
        b"K\x00\x85", text("b"), b"\x87R", put(), b"(K\x01", integer(rows), integer(columns), b"\x86",
        b"cnumpy\ndtype\n", put(), text("u1"), b"K\x00K\x01\x87R", put(),
        b"(K\x03", text("|"), b"NNN", integer(-1), integer(-1), b"K\x00tb",
        b"\x89T", struct.pack("<I", pixels.size), pixels.tobytes(), b"tb",
        text("filenames"), b"]", put(), b"(", *map(text, filenames), b"eu.",
    ]  # fmt: skip
    return b"".join(parts)


def cifar_batches(count: int = 2) -> dict[str, tuple[np.ndarray, list[int]]]:
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(256, size=[count, 3072], dtype=np.uint8), rng.integers(10, size=count).tolist())
        for name in names
    }


def save_cifar(path: Path, files: dict[str, bytes] | None = None) -> Path:
    """CIFAR-10's archive of the files, or of cifar_batches."""
    if files is None:
        filenames = [f"{index}.png" for index in range(400)]
        files = {name: python2_pickle(*batch, filenames) for name, batch in cifar_batches().items()}
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-python.tar"])
def test_cifar_is_read_without_unpickling(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_cifar(tmp_path / name)
    with tarfile.open(path) as archive:
        member = archive.extractfile("cifar-10-batches-py/data_batch_1")
        assert member is not None
        theirs = pickle.load(member, encoding="latin1")  # the test's own file
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(pickle, "load", None)
    monkeypatch.setattr(pickle, "loads", None)
    dataset = convert(path, tmp_path / "out.zip")
    assert (len(dataset), dataset.resolution, dataset.num_channels) == (10, 32, 3)
    for index, (row, label) in enumerate(zip(theirs["data"], theirs["labels"], strict=True)):
        image, onehot = dataset[index]
        assert np.array_equal(image, row.reshape(3, 32, 32))
        assert onehot.argmax() == label
    test = convert(path, tmp_path / "test.zip", "--split=test")
    assert [int(test[index][1].argmax()) for index in range(2)] == cifar_batches()["test_batch"][1]


def _cifar(**changes: Any) -> dict[str, bytes]:
    """The batches, the first of them with something changed."""
    files = {name: python2_pickle(*batch, ["a.png"]) for name, batch in cifar_batches().items()}
    pixels, labels = cifar_batches()["data_batch_1"]
    first = {"pixels": pixels, "labels": labels, "filenames": ["a.png"]} | changes
    return files | {"data_batch_1": python2_pickle(**first)}


BAD_CIFAR: dict[str, tuple[dict[str, bytes], str]] = {
    "missing": ({k: v for k, v in _cifar().items() if k != "data_batch_3"}, " holds no data_batch_3 (split train)."),
    "code": (
        _cifar() | {"data_batch_1": b"\x80\x02cos\nsystem\nU\x04true\x85R."},
        ":data_batch_1 is not a CIFAR-10 batch: found the global 'os' 'system', which no network needs",
    ),
    "truncated": (_cifar() | {"data_batch_1": _cifar()["data_batch_1"][:-50]}, ":data_batch_1 is not a CIFAR-10 batch"),
    "a list": (_cifar() | {"data_batch_1": b"\x80\x02]."}, ":data_batch_1 has no 'data' of uint8 [N, 3072]."),
    "other rows": (_cifar(pixels=np.zeros([2, 300], np.uint8)), ":data_batch_1 has no 'data' of uint8 [N, 3072]."),
    "class 10": (_cifar(labels=[3, 10]), ":data_batch_1 has no 'labels', a list of classes from 0 to 9."),
    "one label": (_cifar(labels=[3]), ":data_batch_1 has 1 labels, but 2 images."),
}


@pytest.mark.parametrize("case", BAD_CIFAR)
def test_bad_cifar(tmp_path: Path, case: str) -> None:
    files, message = BAD_CIFAR[case]
    path = save_cifar(tmp_path / "cifar.tar.gz", files)
    assert f"{path}{message}" in refused(path, tmp_path / "out.zip")


def test_bad_archives_of_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_cifar(tmp_path / "cifar.tar.gz")
    whole = path.read_bytes()
    for data in (whole[:2000], b"<!DOCTYPE html>", b""):
        path.write_bytes(data)
        error = refused(path, tmp_path / "out.zip")
        assert str(path) in error
        assert "Download cifar-10-python.tar.gz again" in error
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert "holds no data_batch_1" in refused(path, tmp_path / "out.zip")
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("data_batch_1"), io.BytesIO())
    assert "holds data_batch_1 twice" in refused(path, tmp_path / "out.zip")
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("data_batch_1")  # holes of 1 TB
        member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**12)}
        archive.addfile(member)
    assert "holds no data_batch_1" in refused(path, tmp_path / "out.zip")
    monkeypatch.setattr("stylegan_di.data.cifar.MAX_ARCHIVE_BYTES", 100_000)
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 200_000
        archive.addfile(member, io.BytesIO(bytes(200_000)))
    assert f"{path} unpacks to more than 100000 bytes" in refused(path, tmp_path / "out.zip")


# LSUN.


def save_database(path: Path, values: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return path


def test_lsun_database(tmp_path: Path) -> None:
    values = {key: encode(pixels(index), format="WEBP") for index, key in enumerate((b"b", b"a", b"c"))}
    path = save_database(tmp_path / "church_outdoor_train_lmdb", values)
    dataset = convert(path, tmp_path / "out.zip", "--max-images=2", "--transform=center-crop", "--resolution=4")
    assert (len(dataset), dataset.resolution, dataset.label_dim) == (2, 4, 0)
    for position, key in enumerate((b"a", b"b")):
        with Image.open(io.BytesIO(values[key])) as image:
            expected = transform_image(image.convert("RGB"), "center-crop", (4, 4), "")
        assert np.array_equal(dataset[position][0], np.asarray(expected).transpose(2, 0, 1))
    assert f"{path} has no labels" in refused(path, tmp_path / "labelled.zip", "--labels")


def test_bad_lsun_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ill = save_database(tmp_path / "ill", {b"good": encode(pixels(0)), b"ill": b"<html>"})
    assert f"{ill}:ill (6 bytes) is not an image of PNG" in refused(ill, tmp_path / "out.zip")
    empty = save_database(tmp_path / "empty", {})
    assert f"{empty / 'data.mdb'} holds no images" in refused(empty, tmp_path / "out.zip")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(b"no database at all")
    told = refused(tmp_path / "damaged", tmp_path / "out.zip")
    assert f"{tmp_path / 'damaged' / 'data.mdb'}: found contents that cannot be read" in told
    large = save_database(tmp_path / "large", {b"large": encode(pixels(0))})
    monkeypatch.setattr("stylegan_di.data.lsun.MAX_FILE_BYTES", 5)
    assert f"{large}:large is" in refused(large, tmp_path / "out.zip")


def test_lsun_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").touch()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    error = refused(tmp_path / "lmdb", tmp_path / "out.zip")
    assert 'which needs the package lmdb, which is not installed: pip install ".[lmdb]" in the clone' in error


# ImageNet.


def test_imagenet_folders(tmp_path: Path) -> None:
    """Classes from folders, sorted; JPEGs of any mode and shape."""
    rng = np.random.default_rng(0)
    modes = {"n02/b.JPEG": "CMYK", "n01/a.JPEG": "L", "n02/a.JPEG": "RGB"}
    for name, mode in modes.items():
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=[37, 61, 3], dtype=np.uint8)).convert(mode).save(path, quality=95)
    options = ["--channels=3", "--resolution=16x16", "--transform=center-crop-dhariwal"]
    dataset = convert(tmp_path / "train", tmp_path / "out.zip", *options)
    assert (len(dataset), dataset.resolution, dataset.num_channels, dataset.label_dim) == (3, 16, 3, 2)
    assert [int(dataset[index][1].argmax()) for index in range(3)] == [0, 1, 1]


def test_center_crop_dhariwal() -> None:
    """Against the published steps by hand: 70x50 halves to 35x25, then to 22x16 by bicubic; columns 3 to 18 stay."""
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=[50, 70], dtype=np.uint8))
    halved = np.asarray(image).reshape(25, 2, 35, 2).mean(axis=(1, 3))
    resized = Image.fromarray(np.floor(halved + 0.5).astype(np.uint8)).resize((22, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[:, 3:19]
    found = np.asarray(transform_image(image, "center-crop-dhariwal", (16, 16), "image"))
    assert found.shape == (16, 16)
    assert np.abs(found.astype(int) - expected).max() <= 2  # halves may be rounded either way
    oblong = Image.new("L", (2**16, 1))
    with pytest.raises(UserError, match=r"picture is 65536x1, too oblong to be resized to 16777216x256"):
        transform_image(oblong, "center-crop-dhariwal", (256, 256), "picture")


def test_center_crop_dhariwal_makes_squares(photos: Path, tmp_path: Path) -> None:
    options = ["--transform=center-crop-dhariwal", "--resolution=16x8"]
    assert "makes squares; --resolution=16x8 is not square" in refused(photos, tmp_path / "out.zip", *options)


def test_dest_is_needed(photos: Path) -> None:
    result = run(f"--source={photos}")
    assert result.exit_code == 2
    assert "--dest=ZIP|DIR is missing" in result.output
