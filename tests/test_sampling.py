"""Heun's sampler against runs of the original code and an exactly solvable flow."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from stylegan_di.diffusion import per_sample
from stylegan_di.interfaces import Denoiser
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.heun import heun_sampler, sigma_steps
from stylegan_di.teachers.edm import EDMTeacher
from tests.golden_edm import assert_near, load_network

STD = 0.5  # of the images of the Gaussian below


class GaussianDenoiser(Denoiser):
    """The exact denoiser of images ~ N(0, STD^2); it remembers the noise levels it was called with."""

    def __init__(self, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = 2, 1, 0
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.calls: list[float] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append(float(sigma))
        return x * STD**2 / (STD**2 + per_sample(sigma, x).square())


class WholeLevels(GaussianDenoiser):
    """Knows whole noise levels only."""

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma.round()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 2e-5)])
@pytest.mark.parametrize("run", ["edm_det6", "edm_churn6"])
def test_runs_of_the_original_code(run: str, dtype: torch.dtype, tolerance: float) -> None:
    network, arrays, info = load_network("edm_ddpmpp_uncond", dtype)
    recorded = iter(arrays["churn_noise"])
    images = heun_sampler(
        EDMTeacher(network),
        arrays["latents"],
        noise_source=lambda *shape: next(recorded),
        **info["samplers"][run]["kwargs"],
    )
    assert images.dtype == torch.float64
    assert_near(images, arrays[f"sample64/{run}"], tolerance)


def test_second_order_convergence_to_the_exact_flow() -> None:
    """The flow of N(0, s^2) scales x by sqrt((s^2 + sigma^2) / (s^2 + sigma_max^2)); the error falls as 1 / steps^2."""
    latents = torch.ones(1, 1, 1, 1)
    exact = 10.0 * STD / math.sqrt(STD**2 + 10.0**2)
    errors = [
        abs(float(heun_sampler(GaussianDenoiser(), latents, num_steps=n, sigma_max=10.0, sigma_min=1e-5)) - exact)
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


def test_noise_levels() -> None:
    steps = sigma_steps(4, 0.002, 80.0, 7.0)
    root = [(80 ** (1 / 7) * (3 - i) + 0.002 ** (1 / 7) * i) / 3 for i in range(4)]
    torch.testing.assert_close(steps, torch.tensor([r**7 for r in root], dtype=torch.float64))
    denoiser = GaussianDenoiser()
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=4)
    expected = [steps[0], steps[1], steps[1], steps[2], steps[2], steps[3], steps[3]]
    assert denoiser.calls == pytest.approx([float(step) for step in expected])


def test_range_is_clipped_to_the_denoisers() -> None:
    denoiser = GaussianDenoiser(sigma_min=0.1, sigma_max=20.0)
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=5)
    assert (denoiser.calls[0], denoiser.calls[-1]) == pytest.approx((20.0, 0.1))


def test_one_step_is_one_evaluation() -> None:
    denoiser = GaussianDenoiser()
    images = heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=1, sigma_max=2.0)
    assert denoiser.calls == pytest.approx([2.0])
    torch.testing.assert_close(float(images), 2.0 * STD**2 / (STD**2 + 4.0))


def test_round_sigma_is_applied() -> None:
    denoiser = WholeLevels()
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=5, sigma_min=1.0)
    assert all(call == round(call) for call in denoiser.calls)
    unrounded = GaussianDenoiser()
    heun_sampler(unrounded, torch.ones(1, 1, 1, 1), num_steps=5, sigma_min=1.0)
    assert len(unrounded.calls) == len(denoiser.calls)
    assert any(call != round(call) for call in unrounded.calls)


def test_round_sigma_is_applied_to_the_level_that_churn_raises() -> None:
    denoiser = WholeLevels()
    noise = SampleRandom(0, "churn", 0, [0]).normal
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=5, sigma_min=1.0, S_churn=1.0, noise_source=noise)
    assert all(call == round(call) for call in denoiser.calls)
    assert denoiser.calls[0] > 80


def test_churn_noise_is_drawn_each_step_and_acts_within_bounds() -> None:
    def sample(seed: int, **kwargs: float) -> tuple[Tensor, int]:
        drawn = []
        rng = SampleRandom(seed, "churn", 0, range(3))

        def noise_source(*shape: int) -> Tensor:
            drawn.append(rng.normal(*shape))
            return drawn[-1]

        latents = SampleRandom(0, "z", 0, range(3)).normal(1, 2, 2)
        images = heun_sampler(
            GaussianDenoiser(), latents, num_steps=6, S_churn=10, S_noise=1.01, noise_source=noise_source, **kwargs
        )
        return images, len(drawn)

    (everywhere, count), (other, _) = sample(1), sample(2)
    assert count == 6
    assert everywhere.shape == (3, 1, 2, 2)
    assert not torch.allclose(everywhere, other)
    (nowhere, count), (other, _) = sample(1, S_min=100.0), sample(2, S_min=100.0)
    assert count == 6
    assert torch.equal(nowhere, other)


def test_churn_keeps_the_distribution() -> None:
    rng = SampleRandom(0, "churn", 0, range(4))
    latents = SampleRandom(0, "z", 0, range(4)).normal(1, 64, 64)
    images = heun_sampler(GaussianDenoiser(), latents, num_steps=160, S_churn=20, noise_source=rng.normal)
    assert float(images.std()) == pytest.approx(STD, rel=0.02)  # 16384 values: 0.6 %


def test_churn_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_source"):
        heun_sampler(GaussianDenoiser(), torch.ones(1, 1, 1, 1), S_churn=1)
