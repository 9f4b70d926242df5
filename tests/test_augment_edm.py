"""EDM's augmentation pipe against the numbers of NVlabs' own, draw by draw, and what its labels mean."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_di.data.augment_edm import TRAINING, TRAINING_LABELS, AugmentPipe
from stylegan_di.random import SampleRandom
from stylegan_di.torch_utils.persistence import PersistentObject, read_pickle, write_pickle

FOLDER = Path(__file__).parent / "golden"
with np.load(FOLDER / "augment" / "edm_augment.npz") as _file:
    GOLDEN = {name: torch.from_numpy(_file[name]) for name in _file}
COMBOS = json.loads((FOLDER / "augment" / "edm_augment.json").read_text())["combos"]


class Replay:
    """Gives recorded draws, one stream a sample.

    The original draws both numbers of the anisotropic scaling before both gates, we each number before its gate;
    integers are given as the middle of their share of [0,1).
    """

    def __init__(self, case: str) -> None:
        self.left = sorted(name for name in GOLDEN if name.startswith(f"{case}/draw"))
        self.integers = 4 if case == "rotate_int" else 2
        first = {"aniso": 0}.get(case, 8 if case.startswith("train") else None)
        if first is not None:
            self.left[first + 1], self.left[first + 2] = self.left[first + 2], self.left[first + 1]

    def normal(self, *shape: int) -> Tensor:
        return self._next(("_randn",), shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._next(("_rand", "_randint"), shape)

    def _next(self, kinds: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
        name = self.left.pop(0)
        assert name.endswith(kinds)
        values = GOLDEN[name]
        if name.endswith("_randint"):
            values = (values + 0.5) / self.integers
        samples = values.shape[1] if shape else values.shape[0]  # pairs come first in the recording
        return values.reshape(-1, samples).T.reshape(samples, *shape)


@pytest.mark.parametrize("case", COMBOS)
def test_every_transform_with_recorded_draws(case: str) -> None:
    replay = Replay(case)
    images, labels = AugmentPipe(**COMBOS[case])(GOLDEN["x"].double(), rng=replay)
    assert not replay.left
    for actual, name in ((images, "y64"), (labels, "labels")):
        expected = GOLDEN[f"{case}/{name}"]
        tolerance = 1e-10 * max(expected.abs().max().item(), 1)
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_the_training_pipe_in_float32() -> None:
    replay = Replay("train_p1_f32")
    images, labels = AugmentPipe(**COMBOS["train_p1"])(GOLDEN["x"], rng=replay)
    torch.testing.assert_close(images, GOLDEN["train_p1_f32/y32"], rtol=0, atol=1e-4)
    torch.testing.assert_close(labels, GOLDEN["train_p1_f32/labels"], rtol=0, atol=1e-6)


def test_the_training_pipe_is_edms() -> None:
    assert COMBOS["train_p1"] == TRAINING | {"p": 1}
    assert GOLDEN["train_p1/labels"].shape[1] == TRAINING_LABELS


def test_without_p_images_are_flipped_at_most() -> None:
    smooth = torch.nn.functional.interpolate(GOLDEN["x"][:, :, :4, :4], size=32, mode="bicubic", align_corners=False)
    images, labels = AugmentPipe(p=0, **TRAINING)(smooth, rng=SampleRandom(0, "augment", 0, range(4)))
    assert torch.equal(labels[:, 1:], torch.zeros(4, 8))  # p = 0: xflip's 1e8 * 0 as well
    torch.testing.assert_close(images, smooth, rtol=0, atol=0.05)
    _, labels = AugmentPipe(p=1e-6, **TRAINING)(smooth.repeat(64, 1, 1, 1), rng=SampleRandom(0, "a", 0, range(256)))
    assert labels[:, 0].mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(labels[:, 1:], torch.zeros(256, 8))


def test_a_sample_depends_on_its_own_stream_only() -> None:
    pipe, x = AugmentPipe(p=0.5, **TRAINING), GOLDEN["x"].double()
    whole = pipe(x, rng=SampleRandom(0, "augment", 64, range(4)))
    halves = [pipe(x[part], rng=SampleRandom(0, "augment", 64, range(4)[part])) for part in (slice(3), slice(3, 4))]
    for index in (0, 1):
        torch.testing.assert_close(torch.cat([half[index] for half in halves]), whole[index], rtol=0, atol=1e-6)


def test_gray_images_have_the_same_labels() -> None:
    colors = {"brightness": 1.0, "contrast": 1.0, "lumaflip": 1.0, "hue": 1.0, "saturation": 1.0}
    gray = GOLDEN["x"][:, :1]
    images, labels = AugmentPipe(**colors)(gray, rng=SampleRandom(0, "augment", 0, range(4)))
    rgb, rgb_labels = AugmentPipe(**colors)(gray.expand(-1, 3, -1, -1), rng=SampleRandom(0, "augment", 0, range(4)))
    assert torch.equal(labels, rgb_labels)
    torch.testing.assert_close(images.expand(-1, 3, -1, -1), rgb, rtol=1e-4, atol=1e-4)


def test_labels_are_standard_normal_and_gated() -> None:
    n = 2000
    x = torch.zeros(n, 1, 2, 2)
    _, labels = AugmentPipe(p=0.5, scale=1)(x, rng=SampleRandom(0, "augment", 0, range(n)))
    applied = labels[labels != 0]
    assert len(applied) / n == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / n))
    assert applied.std().item() == pytest.approx(1, abs=0.1)


def test_it_is_written_as_nvlabs_plain_object() -> None:
    names = json.loads((FOLDER / "format" / "state_attrs_edm.json").read_text())["plain_objects"]["AugmentPipe"]
    pipe = AugmentPipe(p=0.12, **TRAINING)
    read = read_pickle(write_pickle({"augment_pipe": pipe}), "a.pkl")["augment_pipe"]
    assert isinstance(read, PersistentObject)
    assert (read.class_name, list(read.state)) == ("AugmentPipe", list(names))
    assert all(type(value).__name__ == names[name] for name, value in read.state.items())
    assert read.state["p"] == 0.12
    assert read.state["_init_kwargs"] == {"p": 0.12} | TRAINING
