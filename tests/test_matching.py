"""A teacher of other images than the GAN's: --match=resize, and --classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_di.dnnlib.util import UserError
from stylegan_di.labels import ClassMap, LabelLaw, class_map, one_hot
from stylegan_di.spaces.resized import LUMA, Resized
from tests.test_methods import make_batch
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import save_files, save_gan, save_teacher

pytestmark = pytest.mark.usefixtures("small_grids")

# The space.


def test_images_that_fit_come_back_as_they_are() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert Resized(8, 3).encode(images) is images


@pytest.mark.parametrize("size", [3, 16, 24, 50])
def test_it_resizes_as_pillow_does(size: int) -> None:
    """Pillow's bicubic filter is antialiased in the same way; it works on float images of one channel too."""
    image = np.random.default_rng(0).normal(size=[16, 16]).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    found = Resized(size, 1).encode(torch.from_numpy(image)[None, None])
    torch.testing.assert_close(found[0, 0], torch.tensor(expected), rtol=0, atol=2e-2)
    assert float((found[0, 0] - torch.tensor(expected)).abs().mean()) < 2e-3


@pytest.mark.parametrize("size", [4, 8, 32])
def test_constant_images_stay_constant(size: int) -> None:
    torch.testing.assert_close(
        Resized(size, 1).encode(torch.full([1, 1, 16, 16], 0.3)), torch.full([1, 1, size, size], 0.3)
    )


def test_colors_become_gray_by_luma_and_gray_becomes_rgb() -> None:
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = sum(weight * images[:, index] for index, weight in enumerate(LUMA))
    torch.testing.assert_close(Resized(8, 1).encode(images)[:, 0], expected)
    gray = images[:, :1]
    torch.testing.assert_close(Resized(8, 3).encode(gray), gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(Resized(8, 1).encode(Resized(8, 3).encode(gray)), gray)


@pytest.mark.parametrize(("channels", "size"), [(1, 4), (3, 5), (1, 20)])
def test_gradients_run_back_through_it(channels: int, size: int) -> None:
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Resized(size, channels).encode, [images])


# Classes.


def never(classes: int) -> None:
    raise AssertionError("labels were drawn")


def table(tmp_path: Path, listed: Any) -> str:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(listed))
    return str(path)


def test_the_same_classes_pass_and_others_are_refused_by_name() -> None:
    labels = one_hot(torch.arange(3), 3)
    assert class_map(None, 3, 3)(labels, never) is labels
    assert class_map(None, 0, 0)(None, never) is None
    with pytest.raises(UserError, match=r"classes 10 against 3; .*--classes=null, drawn, or a JSON list"):
        class_map(None, 3, 10)


def test_null_and_drawn() -> None:
    labels = one_hot(torch.arange(3), 3)
    assert class_map("null", 3, 0)(labels, never) is None
    assert class_map("null", 0, 10)(None, never) is None
    batch = make_batch(size=256, batch_gpu=256)
    drawn = class_map("drawn", 0, 4)(
        None, lambda classes: batch.labels("some", batch.chunks[0], LabelLaw.uniform(classes))
    )
    assert drawn is not None
    assert drawn.shape == (256, 4)
    assert ((drawn.sum(dim=0) > 40) & (drawn.sum(dim=1) == 1).all()).all()


def test_a_table_tells_the_class_or_null(tmp_path: Path) -> None:
    mapped = class_map(table(tmp_path, [4, None, 0]), 3, 5)
    labels = mapped(one_hot(torch.tensor([2, 1, 0, 0]), 3), never)
    assert labels is not None
    assert labels.tolist() == [[1, 0, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert str(mapped) == "0->4, 1->null, 2->0"
    assert [str(ClassMap(*given)) for given in (("null",), ("drawn", None, 7))] == [
        "the null label for all",
        "drawn from 7",
    ]


@pytest.mark.parametrize(
    "listed", [[0, 1], [0, 1, 5], [0, 1, -1], [0, 1, "2"], [0, 1, True], {"0": 1}, "012", [0, 1, 2.0]]
)
def test_other_tables_are_refused(tmp_path: Path, listed: Any) -> None:
    with pytest.raises(UserError, match=r"map\.json: accepted is a JSON list of 3 numbers from 0 to 4, or null"):
        class_map(table(tmp_path, listed), 3, 5)


def test_files_that_are_none_and_a_teacher_without_classes(tmp_path: Path) -> None:
    for text in ("nul", str(tmp_path)):
        with pytest.raises(UserError, match=r"no such file\. Accepted are null, drawn, or a file that is a JSON list"):
            class_map(text, 3, 5)
    for damaged, words in (("[0, 1", "cannot be read .*Accepted are null"), ("[" * 10**6, "Recursion|far more"),
                           ("[0," * 10**6, "bytes; up to 1048576 are read")):  # fmt: skip
        (tmp_path / "map.json").write_text(damaged)
        with pytest.raises(UserError, match=words):
            class_map(str(tmp_path / "map.json"), 3, 5)
    with pytest.raises(UserError, match=r"--classes=drawn: the teacher has no classes; accepted is null"):
        class_map("drawn", 3, 0)


# Runs.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Those of `save_files`; a larger GAN of two classes, and a teacher of colours without classes."""
    folder = tmp_path_factory.mktemp("files")
    own = save_files(folder)
    own["large"] = str(save_gan(folder / "large.pkl", resolution=16, c_dim=2))
    own["color"] = str(save_teacher(folder / "color.pkl", img_channels=3, label_dim=0))
    own["map"] = table(folder, [2, 0])
    return own


@pytest.mark.usefixtures("own_cache")
def test_a_gan_of_another_size_and_other_classes_goes_on_exactly(files: dict[str, str], tmp_path: Path) -> None:
    """With a critic on the teacher's features, against the teacher's samples, which have its own size and classes."""
    arguments = ["--kind=di", f"--gan-pkl={files['large']}", f"--teacher={files['teacher']}", "--match=resize",
                 f"--classes={files['map']}", "--metrics=none", "--tick=0.016", "--critic=features:width=4",
                 "--data=teacher:8", *SHORT]  # fmt: skip
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    header = (undisturbed / "log.txt").read_text()
    assert "converted       images of 16x16 gray to 8x8 gray for the teacher" in header
    assert "classes         the teacher is told 0->2, 1->0" in header
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}").exit_code == 0
    assert_same_run(undisturbed, folder)


def test_a_teacher_of_colours_without_classes(files: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--kind=di", f"--gan-pkl={files['large']}", f"--teacher={files['color']}", "--metrics=none",
                 "--tick=0.016", *SHORT]  # fmt: skip
    refused = invoke(*arguments, f"--outdir={tmp_path / 'refused'}")
    assert refused.exit_code == 2
    for told in ("--match=resize", "--classes=null", "3 problems"):
        assert told in refused.output
    folder = whole_run(tmp_path / "runs", *arguments, "--match=resize", "--classes=null")
    header = (folder / "log.txt").read_text()
    assert "images of 16x16 gray to 8x8 RGB for the teacher" in header
    assert "the teacher is told the null label for all" in header


def test_options_without_a_gan_or_that_do_not_go_together(files: dict[str, str]) -> None:
    teacher = f"--teacher={files['teacher']}"
    assert "--match=resize has no effect without a GAN" in invoke("--kind=di", teacher, "--match=resize").output
    told = invoke("--kind=di", teacher, f"--gan-pkl={files['gan']}", "--match=resize", "--divergence=ikl:f=js",
                  f"--data={files['data']}", "--cond=true").output  # fmt: skip
    assert "asks the GAN's own discriminator, which does not see what the teacher sees with --match=resize" in told
