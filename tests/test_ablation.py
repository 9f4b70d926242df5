"""The ablation sampler against every run of the original code, an exact flow, and its own special cases."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.ablation import (
    DISCRETIZATIONS,
    SCALINGS,
    SCHEDULES,
    Process,
    ablation_sampler,
    noise_levels,
    vp_betas,
)
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.teachers.edm import EDMTeacher
from tests.golden_edm import assert_near, load_arrays, load_network
from tests.test_sampling import STD, GaussianDenoiser, WholeLevels

SAMPLED = ["edm_ddpmpp_uncond", "vp_ddpmpp_cond4_aug9", "ve_ncsnpp_uncond", "iddpm_adm_cond6"]
RUNS = [(name, run) for name in SAMPLED for run in load_arrays(name)[1]["samplers"]]
SAMPLERS = {"edm_sampler": heun_sampler, "ablation_sampler": ablation_sampler}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("name", "run"), RUNS)
def test_runs_of_the_original_code(name: str, run: str, dtype: torch.dtype, tolerance: float) -> None:
    network, arrays, info = load_network(name, dtype)
    recorded = iter(arrays["churn_noise"])
    images = SAMPLERS[info["samplers"][run]["fn"]](
        EDMTeacher(network),
        arrays["latents"],
        arrays.get("labels"),
        noise_source=lambda *shape: next(recorded),
        **info["samplers"][run]["kwargs"],
    )
    assert images.dtype == torch.float64
    assert_near(images, arrays[f"sample64/{run}"], tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_slopes_are_derivatives(schedule: str, scaling: str) -> None:
    process = Process(schedule, scaling, *vp_betas(0.002, 80.0, 1e-3))
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    (sigma_slope,) = torch.autograd.grad(process.sigma(t).sum(), t)
    scale = process.scale(t).log()
    log_scale_slope = torch.autograd.grad(scale.sum(), t)[0] if scaling == "vp" else torch.zeros_like(t)
    torch.testing.assert_close(process.sigma_slope(t).detach(), sigma_slope)
    torch.testing.assert_close(process.log_scale_slope(t).detach(), log_scale_slope)
    torch.testing.assert_close(process.time(process.sigma(t)), t)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_noise_levels_fall_through_the_whole_range(discretization: str) -> None:
    levels = noise_levels(discretization, 12, 0.01, 70.0)
    assert levels.dtype == torch.float64
    assert (levels.diff() < 0).all()
    ends = (70.0, 0.01)
    tolerance = 0.3 if discretization == "iddpm" else 1e-9  # iDDPM has levels of its own
    assert (float(levels[0]), float(levels[-1])) == pytest.approx(ends, rel=tolerance)
    assert levels.min() >= 0.01 * (1 - 1e-9)
    assert levels.max() <= 70 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        (dict(solver="euler"), 1),
        (dict(solver="heun"), 2),
        (dict(solver="heun", alpha=0.5), 2),
        (dict(solver="heun", schedule="ve", discretization="ve"), 2),
        (dict(solver="heun", schedule="vp", scaling="vp", discretization="vp"), 2),
    ],
    ids=["euler", "heun", "midpoint", "ve", "vp"],
)
def test_convergence_to_the_exact_flow(options: dict[str, object], order: int) -> None:
    """N(0, s^2) is scaled by s / sqrt(s^2 + sigma_max^2); the error falls at least as 1 / steps^order."""
    latents = torch.ones(1, 1, 1, 1)
    high, low = 5.0, 1e-4
    exact = high * STD / math.sqrt(STD**2 + high**2)
    errors = []
    for steps in (80, 160, 320):
        image = ablation_sampler(
            GaussianDenoiser(), latents, num_steps=steps, sigma_min=low, sigma_max=high, **options
        )
        errors.append(abs(float(image) - exact))
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine > 0.8 * 2**order
    if order == 1:
        assert errors[0] / errors[1] < 2.5


def test_defaults_are_edms_sampler() -> None:
    latents = SampleRandom(0, "z", 0, range(2)).normal(1, 4, 4)

    def noise() -> dict[str, object]:
        return dict(noise_source=SampleRandom(0, "churn", 0, range(2)).normal, S_churn=5, S_noise=1.01)

    for churn in (dict, noise):
        expected = heun_sampler(GaussianDenoiser(), latents, num_steps=7, **churn())
        torch.testing.assert_close(ablation_sampler(GaussianDenoiser(), latents, num_steps=7, **churn()), expected)


def test_the_denoisers_range_and_rounding_are_respected() -> None:
    denoiser = GaussianDenoiser(sigma_min=0.5, sigma_max=20.0)
    ablation_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=5, discretization="ve", solver="euler")
    assert (denoiser.calls[0], denoiser.calls[-1]) == pytest.approx((20.0, 0.5))
    denoiser = WholeLevels()
    ablation_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=4, sigma_min=1.0)
    assert all(call == round(call) for call in denoiser.calls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(solver="rk4"), "euler, heun"),
        (dict(discretization="ddim"), "edm, vp, ve, iddpm"),
        (dict(schedule="cosine"), "linear, vp, ve"),
        (dict(scaling="edm"), "none, vp"),
        (dict(S_churn=1), "noise_source"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options: dict[str, object], message: str) -> None:
    def sample(latents: Tensor) -> Tensor:
        return ablation_sampler(GaussianDenoiser(), latents, **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=message):
        sample(torch.ones(1, 1, 1, 1))


def test_a_range_between_iddpms_levels_is_refused() -> None:
    with pytest.raises(UserError, match=r"none of iDDPM's 1000 noise levels is from 80\.01 to 80\.02; widen"):
        noise_levels("iddpm", 5, 80.01, 80.02)
