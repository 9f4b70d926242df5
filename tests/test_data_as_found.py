"""Data sets as people have them: photos that are turned, odd folders, classes with names and without images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylegan_di.data.convert import convert_mode, load_picture, transform_image
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.files import ImageFiles
from stylegan_di.data.sources import natural_order, open_source
from tests.datasets import encode, image_files, labels_file, pixels, write
from tests.test_dataset_tool import convert, run

TURN = 0x0112  # EXIF's orientation; 6: turn by 90 degrees clockwise to see it upright


def turned(path: Path, upright: np.ndarray) -> None:
    """Writes an image as a camera that was held upright: its pixels lie, and a tag says so."""
    exif = Image.Exif()
    exif[TURN] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rot90(upright)).save(path, exif=exif)


def test_every_reader_turns_a_photo_as_its_tag_says(tmp_path: Path) -> None:
    upright = pixels(7)
    turned(tmp_path / "in" / "a.png", upright)
    expected = upright.transpose(2, 0, 1)
    assert np.array_equal(ImageDataset(tmp_path / "in")[0][0], expected)
    assert np.array_equal(load_picture(tmp_path / "in" / "a.png", 8, 3), expected)
    assert np.array_equal(np.asarray(open_source(tmp_path / "in").load(0)), upright)
    assert np.array_equal(convert(tmp_path / "in", tmp_path / "out.zip")[0][0], expected)


def test_gif_and_jfif_are_taken_and_what_is_left_is_said(tmp_path: Path) -> None:
    gray = pixels(3, channels=1)
    files = {
        "a.png": encode(gray), "b.gif": encode(gray, format="GIF"), "c.jfif": encode(gray, format="JPEG"),
        "notes.txt": b"", "d.heic": b"", "e.heic": b"",
    }  # fmt: skip
    dataset = convert(write(tmp_path / "in", files), tmp_path / "out.zip", "--channels=1")
    assert len(dataset) == 3
    assert np.array_equal(dataset[1][0], dataset[0][0])
    assert ImageFiles(tmp_path / "in").left_out() == "2 of .heic, 1 of .txt"
    for arguments in (["--check"], [f"--dest={tmp_path / 'other.zip'}", "--channels=1"]):
        assert (
            "no image files that are read: 2 of .heic, 1 of .txt"
            in run(f"--source={tmp_path / 'in'}", *arguments).output
        )


def test_dataset_json_in_the_one_folder_of_a_zip(tmp_path: Path) -> None:
    files = {f"mydata/{name}": data for name, data in image_files(2).items()}
    labels = [["00000/img00000000.png", 1], ["00001/img00000001.png", 0]]
    dataset = ImageDataset(
        write(tmp_path / "a.zip", files | {"mydata/dataset.json": labels_file(labels)}), use_labels=True
    )
    assert [dataset[index][1].tolist() for index in range(2)] == [[0, 1], [1, 0]]
    two = files | {"mydata/dataset.json": labels_file(labels), "other/c.png": encode(pixels(0))}
    assert ImageFiles(write(tmp_path / "b.zip", two)).labels_name is None
    assert ImageFiles(tmp_path / "b.zip").left_out() == "1 of .json"


def test_class_folders_are_in_natural_order_and_keep_their_names(tmp_path: Path) -> None:
    for name in ("10", "9", "b2", "b10", "1"):
        write(tmp_path / "in", {f"{name}/x.png": encode(pixels(0))})
    result = run(f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'out.zip'}")
    assert "classes by folder: 0 = 1, 1 = 9, 2 = 10, 3 = b2, 4 = b10" in result.output
    dataset = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert dataset.label_law().names == ("1", "9", "10", "b2", "b10")
    assert np.array_equal(dataset.label_law().counts, [1, 1, 1, 1, 1])
    assert convert(tmp_path / "out.zip", tmp_path / "again.zip").label_law().names == dataset.label_law().names
    assert natural_order("a") > natural_order("12")


@pytest.mark.parametrize(
    "names", [["00000/00012.png", "01000/01999.png"], ["00000/img00000012.png", "00001/img00001999.png"]]
)
def test_folders_that_number_the_images_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path / "in", {name: encode(pixels(0)) for name in names})
    result = run(f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'out.zip'}")
    assert "number the images and are no classes" in result.output
    assert json.loads(ImageFiles(tmp_path / "out.zip").read("dataset.json")) == {"labels": None}
    write(tmp_path / "in", {"00003/00012.png": encode(pixels(0))})  # it would be in 00000
    assert convert(tmp_path / "in", tmp_path / "labelled.zip").label_dim == 3


def test_classes_without_images_are_said(tmp_path: Path) -> None:
    files = image_files(2)
    labels = [[name, index] for name, index in zip(sorted(files), (1, 3), strict=True)]
    folder = write(tmp_path / "in", files | {"dataset.json": labels_file(labels)})
    for arguments in (["--check"], [f"--dest={tmp_path / 'out.zip'}"]):
        result = run(f"--source={folder}", *arguments)
        assert result.exit_code == 0
        assert "no image is of class 0, 2: number the classes from 0" in result.output
    law = ImageDataset(folder, use_labels=True).label_law()
    assert (law.empty, law.counts.tolist()) == ([0, 2], [0, 1, 0, 1])
    assert str(law) == "4 classes, equally often; no image is of class 0, 2"


def test_letterbox_fits_the_image_and_adds_borders() -> None:
    wide = Image.fromarray(np.full([4, 16], 200, dtype=np.uint8))
    found = np.asarray(transform_image(wide, "letterbox", (8, 8), "a.png"))
    assert np.array_equal(found, np.pad(np.full([2, 8], 200), [(3, 3), (0, 0)]))


def test_transparent_images_on_a_background_and_16_bits() -> None:
    clear = Image.new("RGBA", (2, 2), (100, 0, 0, 0))
    assert np.asarray(convert_mode(clear, None, "a", background=(1, 2, 3)))[0, 0].tolist() == [1, 2, 3]
    half = Image.new("LA", (2, 2), (0, 51))  # a fifth of black over white
    assert np.array_equal(np.asarray(convert_mode(half, None, "a", background=(255, 255, 255))), np.full([2, 2], 204))
    deep = Image.fromarray(np.array([[0, 1000, 4095, 5000]], dtype=np.uint16))
    assert np.asarray(convert_mode(deep, None, "a", white=4095)).tolist() == [[0, 62, 255, 255]]


def test_content_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    files = image_files(3) | {"dataset.json": labels_file(None)}
    here, there, zipped = write(tmp_path / "a", files), write(tmp_path / "b", files), write(tmp_path / "c.zip", files)
    content = ImageDataset(here).content()
    assert {ImageDataset(path).content() for path in (there, zipped)} == {content}
    write(there, {"00000/img00000000.png": encode(pixels(0)) + b"x"})
    assert ImageDataset(there).content() != content
