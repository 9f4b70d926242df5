"""What is wrong with a data set is said by file, exactly, within seconds: when it is opened, trained on and checked."""

from __future__ import annotations

import os
import re
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import train
from stylegan_di.commands.dataset import main as dataset_tool
from stylegan_di.data.check import check_dataset
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.files import decode_image
from stylegan_di.dnnlib.util import UserError
from tests.datasets import encode, image_files, labels_file, pixels, write

SECONDS = 3  # of the processor that a refusal may take
NAME = "00000/img00000000.png"  # the first of image_files
LAST = "00001/zzz.png"
FORMATS = "PNG, JPEG, BMP, WEBP, TIFF, PPM, TGA, GIF"
CONVERT = "Convert them with stylegan-di dataset."


def matches(text: str, message: str) -> bool:
    """Whether a text is the message, in which ... stands for a library's own words."""
    return re.fullmatch(re.escape(message).replace(re.escape("..."), ".+"), text) is not None


def assert_opening_refuses(path: Path, message: str, labels: bool) -> None:
    """Opened and read whole, as a training does before it starts."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        ImageDataset(path, use_labels=labels).preload()
    assert time.process_time() - start < SECONDS
    assert matches(str(caught.value), message), str(caught.value)


def assert_training_refuses(path: Path, message: str, labels: bool, kind: str = "gan") -> None:
    """train.py ends with one line and exit status 2, and has written nothing."""
    outdir = path.parent / "runs"
    start = time.process_time()
    arguments = [f"--kind={kind}", f"--data={path}", f"--cond={labels}", f"--outdir={outdir}", "--device=cpu"]
    result = CliRunner().invoke(train.main, arguments)
    assert time.process_time() - start < SECONDS
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert matches(line.removeprefix("Error: "), message), line
    assert not outdir.exists()


def assert_check_names(path: Path, *messages: str) -> None:
    """dataset_tool.py --check says just these, in any order, then how many, and ends with exit status 2."""
    start = time.process_time()
    result = CliRunner().invoke(dataset_tool, [f"--source={path}", "--check"])
    assert time.process_time() - start < SECONDS
    assert result.exit_code == 2
    *complaints, summary = result.stdout.splitlines()
    assert len(complaints) == len(messages), complaints
    for message in messages:
        assert any(matches(line, message) for line in complaints), (message, complaints)
    assert summary.endswith(f", {len(messages)} problem{'s' if len(messages) > 1 else ''}")


def assert_refused(path: Path, message: str, *, check: str | None = None, labels: bool = False) -> None:
    """Refused wherever it is used; `check` where --check has other words for it."""
    assert_opening_refuses(path, message, labels)
    assert_training_refuses(path, message, labels)
    assert_check_names(path, check or message)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What a process does once (PIL loads its formats, click its options) is not part of the time a refusal takes."""
    CliRunner().invoke(train.main, ["--kind=gan", "--data=absent", "--device=cpu"])
    CliRunner().invoke(dataset_tool, ["--source=absent", "--check"])
    with pytest.raises(UserError):
        decode_image(b"", "nothing")


@pytest.fixture(params=["data.zip", "data"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def where(path: Path, name: str) -> str:
    return f"{path}:{name}" if path.suffix == ".zip" else str(path / name)


# Images.


def _png(width: int, height: int) -> bytes:
    """A valid beginning of a PNG of gray pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


def _mode(mode: str) -> str:
    return (
        f"{{where}} is a {mode} image; gray (L) and RGB images of 8 bits per channel are accepted. Convert the "
        "data set with stylegan-di dataset."
    )


def _large(size: str) -> str:
    return f"{{where}} is too large an image ({size}); the limit is 67108864 pixels."


GOOD = encode(pixels(0))
UNLIKE = f"{{where}} is {{kind}}, but {NAME} is 8x8 RGB; all must have one shape. Remove it, or c{CONVERT[1:]}"
NO_IMAGE = f"{{where}} ({{size}} bytes) is not an image of {FORMATS}. Replace or remove it."

BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "truncated": (
        GOOD[: len(GOOD) // 2],
        f"{{where}} ({len(GOOD) // 2} bytes) cannot be decoded: .... Replace or remove it.",
    ),
    "empty": (b"", NO_IMAGE),
    "html": (b"<!DOCTYPE html><html></html>", NO_IMAGE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", NO_IMAGE),
    "another size": (encode(pixels(0, size=16)), UNLIKE.replace("{kind}", "16x16 RGB")),
    "oblong": (encode(pixels(0)[:4]), UNLIKE.replace("{kind}", "8x4 RGB")),
    "gray among RGB": (encode(pixels(0, channels=1)), UNLIKE.replace("{kind}", "8x8 gray")),
    "alpha": (encode(pixels(0), "RGBA"), _mode("RGBA")),
    "palette": (encode(pixels(0), "P"), _mode("P")),
    "16 bits": (encode(np.zeros([8, 8], dtype=np.uint16)), _mode("I;16")),
    "CMYK": (encode(pixels(0), "CMYK", format="JPEG"), _mode("CMYK")),
    "bomb": (_png(14000, 14000), _large("...")),
    "large": (_png(8200, 8200), _large("8200x8200")),
    "long": (_png(2**26 + 1, 1), _large("67108865x1")),
}


def in_check(message: str) -> str:
    """What --check, which compares with the commonest image instead of the first, says for a message."""
    return message.replace(f"but {NAME} is 8x8 RGB; all must", "but most images are 8x8 RGB; all must")


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image(target: Path, case: str) -> None:
    data, message = BAD_IMAGES[case]
    write(target, image_files(3) | {LAST: data})
    message = message.replace("{where}", where(target, LAST)).replace("{size}", str(len(data)))
    assert_refused(target, message, check=in_check(message))


@pytest.mark.parametrize("case", ["truncated", "html", "alpha", "bomb"])
def test_bad_first_image(target: Path, case: str) -> None:
    data, message = BAD_IMAGES[case]
    write(target, image_files(2) | {"00000/a.png": data})
    message = message.replace("{where}", where(target, "00000/a.png")).replace("{size}", str(len(data)))
    with pytest.raises(UserError) as caught:
        ImageDataset(target)
    assert matches(str(caught.value), message)
    assert_check_names(target, message)


def test_images_that_are_not_square(target: Path) -> None:
    """They are for a denoiser whose levels divide both sides."""
    write(target, {f"{name}.png": encode(pixels(0)[:6]) for name in "ab"})
    needs = f"--data={target} has images of 8x6; {{}}"
    square = "--kind=gan needs square ones: crop with stylegan-di dataset --transform=center-crop"
    assert_training_refuses(target, needs.format(square), False)
    divisible = "--channel-mult of 3 resolutions needs sides divisible by 4: resize with stylegan-di dataset"
    assert_training_refuses(target, needs.format(divisible), False, kind="edm")


def test_images_whose_side_is_no_power_of_two(target: Path) -> None:
    write(target, image_files(2, size=33))
    needs = f"--data={target} has images of side 33; {{}}: resize with stylegan-di dataset"
    assert ImageDataset(target).resolution == 33
    assert_training_refuses(target, needs.format("--kind=gan needs one that is a power of two, from 4"), False)
    divisible = "--channel-mult of 3 resolutions needs one divisible by 4"
    assert_training_refuses(target, needs.format(divisible), False, kind="edm")
    wrong = f"{target} holds images of 33x33 RGB; they must be square, and their side a power of two. {CONVERT}"
    assert_check_names(target, wrong)


@pytest.mark.parametrize("files", [{"readme.txt": b"hello"}, {"dataset.json": labels_file([])}])
def test_no_images(target: Path, files: dict[str, bytes]) -> None:
    write(target, files)
    assert_refused(target, f"{target} holds no images; make a data set with stylegan-di dataset.")


@pytest.mark.skipif(sys.platform != "linux", reason="names are text on this system")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "data", image_files(3))
    (path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    message = f"{path}/\udcff.png (0 bytes) is not an image of {FORMATS}. Replace or remove it."
    assert_opening_refuses(path, message, labels=False)
    assert_check_names(path, message.replace("\udcff", "\\udcff"))
    assert ImageDataset(path).fingerprint() == ImageDataset(path).fingerprint()


# Labels.

CLASSES = "class indices are 0 to 99999."
EXPECTED = "expected a class index or a list of numbers."
NO_LABELS = '{where} has no "labels"; expected {"labels": [[name, class], ...]} or {"labels": null}.'
NO_JSON = "{where}: found contents that cannot be read (...). Make the data set again."
LABEL = f"{{where}}: the label of '{NAME}' is "
BAD_LABELS: dict[str, tuple[bytes, str]] = {
    "truncated": (b'{"labels": [', NO_JSON),
    "binary": (b"\xff\xfe\x00", NO_JSON),
    "deep": (b"[" * 200_000, NO_JSON),
    "a list": (b"[]", NO_LABELS),
    "without labels": (b"{}", NO_LABELS),
    "text": (labels_file("cat"), '{where}: "labels" is a str; expected a list of [name, class] or null.'),
    "no pairs": (labels_file([[NAME, 0], NAME]), f"{{where}}: the entry '{NAME}' is not a pair [name, class]."),
    "missing label": (labels_file([]), f"{{where}} has no label for '{NAME}'; add one, or use no labels."),
    "missing file": (
        labels_file([[NAME, 0], ["other.png", 0]]),
        "{where} labels 'other.png', which does not exist; restore the file or remove its label.",
    ),
    "twice": (labels_file([[NAME, 0], [NAME, 1]]), f"{{where}} labels '{NAME}' twice; keep one of the entries."),
    "negative": (labels_file([[NAME, -1]]), LABEL + f"-1; {CLASSES}"),
    "huge": (labels_file([[NAME, 10**9]]), LABEL + f"1000000000; {CLASSES}"),
    "a name": (labels_file([[NAME, "cat"]]), LABEL + f"'cat'; {EXPECTED}"),
    "a bool": (labels_file([[NAME, True]]), LABEL + f"True; {EXPECTED}"),
    "a float": (labels_file([[NAME, 1.5]]), LABEL + f"1.5; {EXPECTED}"),
    "NaN": (labels_file([[NAME, [float("nan")]]]), LABEL + "[nan]; its numbers must be finite."),
    "beyond float32": (labels_file([[NAME, [1e39]]]), LABEL + "[1e+39]; its numbers must be finite."),
    "an empty vector": (labels_file([[NAME, []]]), LABEL + f"[]; {EXPECTED}"),
    "nested": (labels_file([[NAME, [[1]]]]), LABEL + f"[[1]]; {EXPECTED}"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(target: Path, case: str) -> None:
    data, message = BAD_LABELS[case]
    write(target, image_files(1) | {"dataset.json": data})
    assert_refused(target, message.replace("{where}", where(target, "dataset.json")), labels=True)
    assert len(ImageDataset(target)) == 1  # without labels they are not read


@pytest.mark.parametrize("labels", [(0, [1.0]), ([1.0], [1.0, 2.0])])
def test_labels_of_two_kinds(tmp_path: Path, labels: tuple[object, object]) -> None:
    files = image_files(2)
    pairs = [list(pair) for pair in zip(sorted(files), labels, strict=True)]
    path = write(tmp_path / "data", files | {"dataset.json": labels_file(pairs)})
    first = "a class index" if labels[0] == 0 else "a vector of 1 numbers"
    second = f"a vector of {1 if labels[0] == 0 else 2} numbers"
    message = f"{path / 'dataset.json'}: '{sorted(files)[1]}' has {second}, '{NAME}' has {first}; use one kind."
    assert_refused(path, message, labels=True)


@pytest.mark.parametrize("files", [{}, {"dataset.json": labels_file(None)}])
def test_labels_asked_for_where_there_are_none(target: Path, files: dict[str, bytes]) -> None:
    write(target, image_files(1) | files)
    message = (
        f"{target} has no labels (in {where(target, 'dataset.json')}); train without --cond, or make a labelled data "
        "set with stylegan-di dataset."
    )
    assert_opening_refuses(target, message, labels=True)
    assert_training_refuses(target, message, labels=True)
    assert check_dataset(target).complaints == []  # nothing is wrong with the data set


# Paths and archives.


def test_paths_that_are_no_data_sets(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    not_images = f"{tmp_path / 'a.tar'} is neither a folder nor a .zip file; give one that holds images."
    assert_refused(tmp_path / "a.tar", not_images)
    missing = f"{tmp_path / 'absent'} does not exist; give a folder or a .zip file of images"
    assert_opening_refuses(tmp_path / "absent", missing + ".", labels=False)
    assert_training_refuses(tmp_path / "absent", f"--data={missing}", labels=False)
    assert_check_names(tmp_path / "absent", missing + ".")


def _edit(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


UNREADABLE = "{path}: found contents that cannot be read (...). It is no readable zip file; was it copied completely?"
OUTSIDE = "{path} has an entry named '{name}', outside the archive; make the zip again."
BAD_ZIPS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in the directory": (lambda data: data[:-30], UNREADABLE),
    "cut in half": (lambda data: data[: len(data) // 2], UNREADABLE),
    "beginning only": (lambda data: b"PK\x03\x04 and then nothing", UNREADABLE),
    "encrypted": (
        _edit(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
        "{path}:00001/img00000001.png is encrypted; give a zip file without a password.",
    ),
    "named outside": (
        _edit(b"00000/img00000000", b"../00/img00000000"),
        OUTSIDE.replace("{name}", "../00/img00000000.png"),
    ),
    "absolute": (_edit(b"00000/img00000000", b"/0000/img00000000"), OUTSIDE.replace("{name}", "/0000/img00000000.png")),
    "twice": (
        _edit(b"00001/img00000001", b"00000/img00000000"),
        f"{{path}} has 2 entries named '{NAME}'; make the zip again.",
    ),
    "bad CRC": (
        lambda data: data.replace(b"IDAT", b"IDAX", 1),
        "{path}:00001/img00000001.png: found contents that cannot be read (BadZipFile: Bad CRC-32 for file "
        "'00001/img00000001.png'). "
        "Make the data set again.",
    ),
}


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_bad_zip(tmp_path: Path, case: str) -> None:
    edit, message = BAD_ZIPS[case]
    path = write(tmp_path / "a.zip", image_files(2))
    changed = edit(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    message = message.replace("{path}", str(path))
    assert_opening_refuses(path, message, labels=False)
    assert_training_refuses(path, message, labels=False)
    start = time.process_time()
    complaints = check_dataset(path).complaints
    assert time.process_time() - start < SECONDS
    assert any(matches(complaint, message) for complaint in complaints)


def test_a_bomb_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegan_di.data.files.MAX_FILE_BYTES", 10_000)
    monkeypatch.setattr("stylegan_di.data.files.MAX_RATIO", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", GOOD + bytes(1_000_000))
    size = len(GOOD) + 1_000_000
    message = f"{path}:a.png is {size} bytes; files up to 10000 are read."
    assert_opening_refuses(path, message, labels=False)
    assert_training_refuses(path, message, labels=False)
    assert check_dataset(path).complaints[0] == message


def test_a_bomb_of_many_files(tmp_path: Path) -> None:
    """300 files of 1 MB in 300 kB: none too large by itself, all together a thousand times the archive."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index in range(300):
            archive.writestr(f"{index:03d}.png", GOOD + bytes(2**20))
    unpacked = 300 * (len(GOOD) + 2**20)
    size = path.stat().st_size
    assert_refused(path, f"{path} of {size} bytes unpacks to {unpacked}; up to 200 times its size is read.")


def test_a_file_that_unpacks_to_more_than_it_says_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", GOOD + bytes(2**20))
    entry = struct.pack("<I", len(GOOD) + 2**20)
    path.write_bytes(path.read_bytes().replace(entry, struct.pack("<I", len(GOOD))))
    assert_opening_refuses(
        path,
        f"{path}:a.png: found contents that cannot be read (BadZipFile: Bad CRC-32 for file 'a.png'). "
        "Make the data set again.",
        labels=False,
    )


# Folders.


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on this system")
@pytest.mark.parametrize("linked", ["file", "folder"])
def test_links_out_of_the_folder(tmp_path: Path, linked: str) -> None:
    inside = write(tmp_path / "data", image_files(2))
    outside = write(tmp_path / "elsewhere", image_files(1))
    (inside / "copy.png").symlink_to(inside / NAME)
    assert len(ImageDataset(inside)) == 3
    to = outside / NAME if linked == "file" else outside
    (inside / "link.png").symlink_to(to)
    message = f"{inside / 'link.png'} is a link out of the data set, to {to}; copy the file there."
    assert_refused(inside, message)


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on this system")
def test_a_link_to_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "data", image_files(2))
    (path / "link.png").symlink_to(path / "gone.png")
    message = f"{path / 'link.png'} is a dead link, to {path / 'gone.png'}; restore that file or remove the link."
    assert_refused(path, message)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data", image_files(2))
    scandir = os.scandir

    def refuse(folder: Any = ".") -> Any:
        if str(folder).endswith("00001"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert_refused(path, f"{path / '00001'} cannot be read: Permission denied. Make it readable or remove it.")


# Many at once, and none.


def test_everything_wrong_is_named(tmp_path: Path) -> None:
    bad = {f"{case}.png": data for case, (data, _) in BAD_IMAGES.items()}
    files = image_files(9) | bad
    first, second, *rest = sorted(files)
    pairs = [[second, 0], *([name, 0] for name in rest), [rest[0], -3], ["gone.png", "cat"]]
    path = write(tmp_path / "data.zip", files | {"dataset.json": labels_file(pairs)})
    expected = [
        in_check(message.replace("{where}", f"{path}:{case}.png").replace("{size}", str(len(data))))
        for case, (data, message) in BAD_IMAGES.items()
    ]
    json = f"{path}:dataset.json"
    assert_check_names(
        path,
        *expected,
        f"{json} has no label for '{first}'; add one, or use no labels.",
        f"{json} labels '{rest[0]}' twice; keep one of the entries.",
        f"{json}: the label of '{rest[0]}' is -3; {CLASSES}",
        f"{json}: the label of 'gone.png' is 'cat'; {EXPECTED}",
        f"{json} labels 'gone.png', which does not exist; restore the file or remove its label.",
    )


def test_names_that_labels_miss_and_files_that_are_missing_are_all_named(tmp_path: Path) -> None:
    labels = labels_file([[NAME, 0], ["b.png", 0], ["a.png", 0]])
    path = write(tmp_path / "data", image_files(4) | {"dataset.json": labels})
    json = path / "dataset.json"
    unlabelled = [name for name in image_files(4) if name != NAME]
    absent = "which does not exist; restore the file or remove its label."
    assert_check_names(
        path,
        *[f"{json} has no label for '{name}'; add one, or use no labels." for name in unlabelled],
        *[f"{json} labels '{name}', {absent}" for name in ("a.png", "b.png")],
    )


@dataclass(frozen=True)
class Good:
    labels: object
    summary: str


GOODS = {
    "classes": Good([[name, index] for index, name in enumerate(image_files(3))], "3 classes"),
    "vectors": Good([[name, [0.5, 1]] for name in image_files(3)], "labels of 2 numbers"),
    "none": Good(None, "no labels"),
}


@pytest.mark.parametrize("case", GOODS)
def test_a_good_data_set(target: Path, case: str) -> None:
    write(target, image_files(3) | {"dataset.json": labels_file(GOODS[case].labels)})
    result = CliRunner().invoke(dataset_tool, [f"--source={target}", "--check"])
    assert result.exit_code == 0
    assert result.stdout == f"{target}: 3 images, 8x8 RGB, {GOODS[case].summary}, nothing wrong\n"


def test_check_takes_no_other_options(target: Path) -> None:
    write(target, image_files(1))
    result = CliRunner().invoke(dataset_tool, [f"--source={target}", "--check", "--max-images=1"])
    assert result.exit_code == 2
    assert "--check reads the data set --source unchanged; leave the other options out." in result.stderr
