"""Perceptual path length: NVlabs' numbers of its parts, a generator whose paths are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.metrics import path_length
from stylegan_di.metrics.path_length import Path as LatentPath
from stylegan_di.metrics.path_length import path_distances, slerp, trimmed_mean
from stylegan_di.metrics.vgg16 import LPIPS
from stylegan_di.networks import stylegan2
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from tests.tiny import edm_network, gan_networks

GOLDEN = Path(__file__).parent / "golden" / "metrics"
WEND = LatentPath("w", "end", crop=False)


class Pixels(torch.nn.Module):
    """Stands for LPIPS: the image itself, so that a distance is the squared difference of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return images.double().flatten(1)


def distances(generator: Generator, path: LatentPath, **options: int) -> np.ndarray:
    lpips = Pixels()
    assert not isinstance(lpips, LPIPS)
    return path_distances(generator, lpips, path, **{"num": 6, "batch": 6} | options)  # type: ignore[arg-type]


@pytest.fixture
def student() -> StyleGAN2Student:
    network = gan_networks(resolution=16)["G_ema"]
    assert isinstance(network, stylegan2.Generator)
    return StyleGAN2Student(network.double())


def test_nvlabs_trimming() -> None:
    golden = np.load(GOLDEN / "sg2_metrics.npz")["ppl_dist"]
    expected = json.loads((GOLDEN / "sg2_metrics.json").read_text())["ppl_trimmed_mean"]
    assert trimmed_mean(golden.astype(np.float64)) == pytest.approx(expected, rel=1e-6)
    assert trimmed_mean(np.array([*[2.0] * 150, 1e9, -1e9])) == 2


def test_nvlabs_slerp() -> None:
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    a, b, t = (torch.from_numpy(golden[f"slerp_{name}"]) for name in "abt")
    np.testing.assert_allclose(slerp(a, b, t), golden["slerp_out"], rtol=0, atol=1e-12)
    for end, point in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(slerp(a, b, torch.full([5, 1], end)), point / point.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("space", ["z", "w"])
@pytest.mark.parametrize("sampling", ["full", "end"])
def test_the_speed_along_a_path(student: StyleGAN2Student, space: str, sampling: str) -> None:
    """Against the derivative of the image along the path: the difference over epsilon, squared, for a small epsilon."""
    path = LatentPath(space, sampling, crop=False)  # type: ignore[arg-type]
    found = distances(student, path)
    assert found.shape == (6,)
    assert (found > 0).all()
    rng = path_length.SampleRandom(0, "path", 0, range(6))
    network = student.network
    t = rng.uniform(1).double() if sampling == "full" else torch.zeros([6, 1], dtype=torch.float64)
    labels = torch.nn.functional.one_hot(rng.integers(3), 3).double()
    a, b = rng.normal(8).double(), rng.normal(8).double()
    noise = path_length.SampleRandom(0, "path noise", 0, range(6))
    kept: list[Tensor] = []
    network.synthesis(torch.zeros(6, network.num_ws, 8).double(),
                      noise_source=lambda *shape: kept.append(noise.normal(*shape).double()) or kept[-1])  # fmt: skip

    @torch.no_grad()
    def images(t: Tensor) -> Tensor:
        again = iter(kept)
        if space == "z":
            ws = network.mapping(slerp(a, b, t), labels)
        else:
            ws = network.mapping(a, labels).lerp(network.mapping(b, labels), t[:, :, None])
        return network.synthesis(ws, noise_source=lambda *shape: next(again)).expand(-1, 3, -1, -1) * 127.5

    speed = (images(t + 1e-6) - images(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(found, speed.square().sum(dim=(1, 2, 3)), rtol=2e-2)


def test_paths_depend_on_the_seed_and_not_on_the_batch(student: StyleGAN2Student) -> None:
    first = distances(student, WEND, seed=3)
    for batch in (1, 4):
        np.testing.assert_allclose(distances(student, WEND, seed=3, batch=batch), first, rtol=1e-9)
    np.testing.assert_allclose(distances(student, WEND, seed=3, num=2), first[:2], rtol=1e-9)
    assert not np.allclose(distances(student, WEND, seed=4), first)


def test_what_lpips_is_shown() -> None:
    """Cropped to rows 3/8..7/8 and columns 2/8..6/8, averaged down to 256, gray made RGB, in 0..255."""
    ramp = torch.linspace(-1, 1, 16).view(1, 1, 16, 1).expand(1, 1, 16, 16) + torch.arange(16) / 100
    shown = path_length._prepare(ramp, True)
    assert shown.shape == (1, 3, 8, 8)
    torch.testing.assert_close(shown[0, 2], (ramp[0, 0, 6:14, 4:12] + 1) * 127.5)
    big = torch.zeros(1, 3, 512, 512)
    big[:, :, 0, 0] = 0.4
    shown = path_length._prepare(big, False)
    assert shown.shape == (1, 3, 256, 256)
    assert float(shown[0, 1, 0, 0]) == pytest.approx((0.1 + 1) * 127.5)


def test_what_has_no_paths_is_refused(student: StyleGAN2Student) -> None:
    with pytest.raises(UserError, match="for a GAN"):
        distances(OneStepStudent(edm_network(), 2.5), WEND)
    with pytest.raises(UserError, match="32 pixels or more"):
        distances(student, LatentPath("w", "end", crop=True))
    with pytest.raises(UserError, match="without truncation"):
        distances(StyleGAN2Student(student.network, trunc=0.5), WEND)
