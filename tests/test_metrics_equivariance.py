"""Equivariance: pictures that move exactly by construction, and ones that do not; tiny networks; processes' shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.equivariance import Motion, errors_of, motion_errors, psnr, shifted, turned, turned_filter
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.networks import stylegan3
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.students.stylegan3 import StyleGAN3Student
from tests.tiny import gan_networks, stylegan3_networks

MOTIONS: list[Motion] = ["int", "frac", "rotation"]
DRAWS = torch.rand([4, 2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def waves(frequency: float, size: int, wobble: float = 0.0, seed: int = 0) -> object:
    """A picture of waves of up to `frequency` cycles a pixel along each axis, drawn where a transform says.

    wobble: of positions, by which the picture changes with where it is seen.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = (torch.rand([12, 2], generator=generator, dtype=torch.float64) * 2 - 1) * frequency * size
    phases = torch.rand([12], generator=generator, dtype=torch.float64)

    def draw(transforms: Tensor) -> Tensor:
        axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        seen = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
        images = []
        for transform in transforms:
            at = (transform @ seen)[:2] + wobble * seen[:2].flip(0) ** 2
            channels = [torch.sin(2 * math.pi * (vectors @ at + phases[:, None] + c)).mean(0) for c in (0, 0.3)]
            images.append(torch.stack(channels).view(2, size, size))
        return torch.stack(images)

    return draw


def figure(draw: object, motion: Motion, size: int) -> float:
    return psnr(errors_of(draw, motion, DRAWS, size))  # type: ignore[arg-type]


@pytest.mark.parametrize(("motion", "least"), [("int", 250), ("frac", 60), ("rotation", 75)])
def test_an_exactly_equivariant_picture(motion: Motion, least: float) -> None:
    """Whole pixels are exact; the filters cost what they cost at a tenth of the sampling rate."""
    assert figure(waves(0.1, 48), motion, 48) > least


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_picture_that_changes_with_its_place(motion: Motion) -> None:
    """In order of how far it is from equivariant, and of a picture that stands still; no figure is near the exact."""
    changing = [figure(waves(0.1, 48, wobble), motion, 48) for wobble in (0.01, 0.05, 0.25)]
    still = waves(0.1, 48)
    standing = figure(lambda transforms: still(torch.eye(3).double().expand_as(transforms)), motion, 48)  # type: ignore[operator]
    assert 66 > changing[0] > changing[1] + 10 > changing[2] + 20
    assert 0 < standing < 25


def test_what_is_compared_with_a_turned_picture() -> None:
    """A wave that only one of the two grids can hold is in neither picture; one that both can hold is in both."""
    angle = math.pi / 4
    taps = turned_filter(angle, 1)
    axis = torch.arange(len(taps), dtype=torch.float64) - len(taps) // 2

    def response(x: float, y: float) -> float:
        wave = torch.cos(2 * math.pi * (axis[None, :] * x + axis[:, None] * y))
        return float((taps * wave).sum())

    assert response(0, 0) == pytest.approx(1)
    assert response(0.3, 0) == pytest.approx(1, abs=0.01)
    assert response(0.45, 0.45) == pytest.approx(0, abs=0.06)  # in a corner: 0.64 along the turned axis
    assert float((taps - taps.T).abs().max()) < 1e-12
    quarter = turned_filter(math.pi / 2, 1)
    assert float((quarter - turned_filter(0.0, 1)).abs().max()) < 1e-3


def test_quarter_turns_are_exact() -> None:
    image = waves(0.1, 40)(torch.eye(3, dtype=torch.float64)[None])[0]  # type: ignore[operator]
    result, mask = turned(image, math.pi / 2)
    inside = mask.bool()
    expected = torch.rot90(image, 1, [1, 2])  # pixel (x, y) shows what was at (-y, x)
    assert inside.sum() > 100
    assert float((result - expected)[:, inside].abs().max()) < 5e-3


def test_shifts_of_whole_pixels_and_their_mask() -> None:
    image = torch.arange(2 * 6 * 6, dtype=torch.float64).view(2, 6, 6)
    moved, mask = shifted(image, 2, -1)
    assert torch.equal(moved[:, :5, 2:], image[:, 1:, :4])
    assert torch.equal(mask, torch.zeros(6, 6).double().index_put((torch.arange(5)[:, None], torch.arange(2, 6)),
                                                                  torch.ones(()).double()))  # fmt: skip
    _, partly = shifted(image.repeat(1, 3, 3), 0.5, 0)
    assert partly.sum() == 18 * (18 - 5)


def tiny(resolution: int = 32, **kwargs: object) -> StyleGAN3Student:
    network = stylegan3_networks(resolution=resolution, **kwargs)["G_ema"]  # type: ignore[arg-type]
    assert isinstance(network, stylegan3.Generator)
    return StyleGAN3Student(network)


def test_figures_of_networks() -> None:
    """T moves whole pixels well; the rotation of R, whose layers commute with it, is better than T's."""
    wide: dict[str, object] = dict(num_layers=6, margin_size=10, channel_base=256, c_dim=0)
    t, r = tiny(**wide), tiny(**wide, conv_kernel=1, use_radial_filters=True)
    figures = {
        (name, motion): psnr(motion_errors(student, motion, num=4, batch=2))
        for name, student in (("t", t), ("r", r))
        for motion in MOTIONS
    }
    assert figures["t", "int"] > 35
    assert figures["r", "int"] > 35
    assert figures["r", "rotation"] > figures["t", "rotation"] + 3


@pytest.mark.parametrize("motion", MOTIONS)
def test_samples_depend_on_the_seed_and_not_on_the_batch(motion: Motion) -> None:
    student = tiny()
    first = motion_errors(student, motion, num=5, batch=5, seed=3)
    assert first.shape == (5, 2)
    for batch in (1, 2):
        np.testing.assert_allclose(motion_errors(student, motion, num=5, batch=batch, seed=3), first, rtol=1e-2)
    assert not np.allclose(motion_errors(student, motion, num=5, batch=5, seed=4), first)
    assert torch.equal(student.network.synthesis.input.transform, torch.eye(3))


def test_the_evaluator_measures_them() -> None:
    student, done = tiny(), []
    names = ["eqt50k_int", "eqt50k_frac", "eqr50k"]
    evaluator = Evaluator(names, None, 3, batch=2, report=lambda *words: done.append(words))
    results = evaluator(student, seed=1)
    assert list(results) == names
    for name, motion in zip(names, MOTIONS, strict=True):
        assert results[name] == psnr(motion_errors(student, motion, num=3, batch=2, seed=1))
    assert done[:2] == [("Motions", 2, 3), ("Motions", 3, 3)]


def test_what_cannot_be_moved_is_refused() -> None:
    network = gan_networks()["G_ema"]
    with pytest.raises(UserError, match="is for a StyleGAN3"):
        motion_errors(StyleGAN2Student(network), "int", num=1, batch=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="without truncation"):
        motion_errors(tiny().with_options(trunc=0.5), "int", num=1, batch=1)
    with pytest.raises(UserError, match="eqr50k needs images of 32 pixels"):
        motion_errors(tiny(16), "rotation", num=1, batch=1)
