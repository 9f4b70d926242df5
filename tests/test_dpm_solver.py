"""DPM-Solver++(2M) against the exactly solvable flow of a Gaussian, and as an option of the tools."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.sampling.dpm_solver import dpm_solver
from stylegan_di.sampling.seeded import SeedNoise, image_latents
from stylegan_di.snapshots.checkpoint import load_denoiser
from tests.test_sampling import STD, GaussianDenoiser


def error(num_steps: int, sigma_min: float = 0.5) -> float:
    """Of the flow from sigma_max = 10 down to sigma_min, from where the denoiser jumps to its estimate."""
    latents = torch.ones(1, 1, 1, 1)
    at_min = 10 * math.sqrt((STD**2 + sigma_min**2) / (STD**2 + 10.0**2))
    exact = at_min * STD**2 / (STD**2 + sigma_min**2)
    found = dpm_solver(GaussianDenoiser(), latents, num_steps=num_steps, sigma_min=sigma_min, sigma_max=10.0)
    return abs(float(found) - exact)


def test_second_order_convergence_to_the_exact_flow() -> None:
    """The flow of N(0, s^2) scales x by sqrt((s^2 + sigma^2) / (s^2 + sigma_max^2)); the error falls as 1 / steps^2."""
    errors = [error(steps + 1) for steps in (40, 80, 160, 320)]
    assert errors[-1] < 1e-4
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


def test_one_evaluation_a_step_at_the_levels_of_karras_grid() -> None:
    denoiser = GaussianDenoiser()
    dpm_solver(denoiser, torch.ones(1, 1, 1, 1), num_steps=8)
    assert len(denoiser.calls) == 8
    assert denoiser.calls[0] == pytest.approx(40)
    assert denoiser.calls[-1] == pytest.approx(0.02)


def test_levels_are_clipped_to_the_denoisers_range_and_rounded() -> None:
    class Whole(GaussianDenoiser):
        def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
            return sigma.round()

    denoiser = Whole(sigma_min=1.0, sigma_max=20.0)
    dpm_solver(denoiser, torch.ones(1, 1, 1, 1), num_steps=4)
    assert denoiser.calls[0] == 20
    assert denoiser.calls[-1] == 1
    assert all(level == round(level) for level in denoiser.calls)


def test_one_step_is_the_denoiser_itself() -> None:
    x = torch.tensor([0.3, -1.0]).reshape(2, 1, 1, 1)
    found = dpm_solver(GaussianDenoiser(), x, num_steps=1, sigma_max=2.0)
    torch.testing.assert_close(found, 2.0 * x.double() * STD**2 / (STD**2 + 4.0))
    with pytest.raises(ValueError, match="accepted: 1 or more"):
        dpm_solver(GaussianDenoiser(), x, num_steps=0)


def test_a_sampler_with_the_solver_draws_what_the_function_gives() -> None:
    denoiser = load_denoiser("fashion-teacher.pkl")
    sampler = DiffusionSampler(denoiser).with_options(solver="dpmpp", steps=3)
    z, labels = image_latents(sampler, SeedNoise([1, 2], torch.device("cpu")), 4)
    expected = dpm_solver(denoiser, z, labels, num_steps=3)
    assert torch.equal(sampler.draw([1, 2], class_index=4), expected)
    assert torch.equal(sampler(z, labels), expected.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disc": "vp"}, "--disc=vp is not for --solver=dpmpp"),
        ({"S_churn": 1.0}, "--S_churn=1.0 is not for --solver=dpmpp"),
        ({"sigma_min": 50.0}, "--sigma-min=50 is not below --sigma-max=40"),
    ],
)
def test_options_that_the_solver_has_not_are_refused(options: dict[str, Any], message: str) -> None:
    sampler = DiffusionSampler(GaussianDenoiser(0.002, 80.0))
    with pytest.raises(UserError, match=message):
        sampler.with_options(solver="dpmpp", **options)
