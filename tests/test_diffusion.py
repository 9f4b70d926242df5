"""Noising, scores, weights and preconditioning against closed forms and EDM's loss."""

import math

import pytest
import torch

from stylegan_di.diffusion import (
    NOISE_LAWS,
    KarrasLaw,
    LogNormalLaw,
    LogUniformLaw,
    NoiseLaw,
    VELaw,
    VPLaw,
    add_noise,
    edm_preconditioning,
    edm_weight,
    per_sample,
    vp_sigma,
    vp_time,
)
from stylegan_di.loss_di import denoising_loss
from stylegan_di.sampling.heun import sigma_steps
from tests.golden_edm import assert_near, load_network

SIGMAS = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)


def test_per_sample_broadcasts_over_samples() -> None:
    x = torch.zeros(4, 3, 2, 2)
    assert per_sample(SIGMAS, x).shape == (4, 1, 1, 1)
    assert per_sample(torch.tensor(2.0), x).shape == (1, 1, 1, 1)
    assert per_sample(SIGMAS, torch.zeros(4, 5)).shape == (4, 1)


def test_noise_law_is_lognormal() -> None:
    torch.manual_seed(0)
    sigma = LogNormalLaw(P_mean=-1.2, P_std=1.2).sigma(torch.randn(100_000, dtype=torch.float64))
    torch.testing.assert_close(sigma.log().mean().item(), -1.2, rtol=0, atol=0.02)
    torch.testing.assert_close(sigma.log().std().item(), 1.2, rtol=0, atol=0.02)
    torch.testing.assert_close(LogNormalLaw(-2.0, 1.0).sigma(torch.zeros(2)), torch.full([2], math.exp(-2)))


def test_add_noise_per_sample_and_scalar() -> None:
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    noisy = add_noise(x, noise, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(noisy[0], x[0] + 0.5 * noise[0])
    torch.testing.assert_close(noisy[1], x[1] + 2.0 * noise[1])
    torch.testing.assert_close(add_noise(x, noise, torch.tensor(2.0)), x + 2 * noise)


def test_preconditioning_gives_unit_variances() -> None:
    """With x0 of variance sigma_d^2: var(c_in x) = 1, and the target (x0 - c_skip x) / c_out has variance 1 too."""
    sigma_data = 0.6
    c_skip, c_out, c_in, c_noise = edm_preconditioning(SIGMAS, sigma_data)
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c_in.square() * (SIGMAS.square() + sigma_data**2), ones)
    target_variance = (1 - c_skip).square() * sigma_data**2 + c_skip.square() * SIGMAS.square()
    torch.testing.assert_close(target_variance / c_out.square(), ones)
    torch.testing.assert_close(edm_weight(SIGMAS, sigma_data) * c_out.square(), ones)
    torch.testing.assert_close((4 * c_noise).exp(), SIGMAS)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("edm_ncsnpp_cond10_aug9", LogNormalLaw()),
        ("vp_ddpmpp_cond4_aug9", VPLaw()),
        ("ve_ncsnpp_uncond", VELaw()),
    ],
)
def test_losses_of_the_original_code(name: str, law: NoiseLaw) -> None:
    """weight * (D(y + n) - y)^2 with the recorded draws."""
    network, arrays, _ = load_network(name)
    images = arrays["loss_images"].double()
    draw = arrays["loss_rnd_normal" if law.normal else "loss_rnd_uniform"].double().flatten()
    sigma, noise, labels = law.sigma(draw), arrays["loss_noise"].double(), arrays.get("labels")
    with torch.no_grad():
        denoised = network(add_noise(images, noise, sigma), sigma, labels)
        total = denoising_loss(network, images, noise, sigma, labels, law.weight)
    loss = per_sample(law.weight(sigma), images) * (denoised - images).square()
    assert_near(loss, arrays["loss64"], 1e-10)
    assert_near(total, arrays["loss64"].sum(dim=(1, 2, 3)), 1e-10)


def test_lognormal_law_is_not_cut_off() -> None:
    n = torch.tensor([-9.0, 0.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(LogNormalLaw().sigma(n).log(), n * 1.2 - 1.2)
    torch.testing.assert_close(LogNormalLaw(0.5, 2.0).sigma(n).log(), n * 2 + 0.5)


@pytest.mark.parametrize(("rho", "t_max"), [(7.0, 1.0), (7.0, 0.8), (3.0, 1.0)])
def test_karras_law_is_uniform_on_the_samplers_grid(rho: float, t_max: float) -> None:
    """The quantile i / (N - 1) of the whole law is the i-th lowest of the sampler's N levels; t_max leaves some out."""
    grid = sigma_steps(11, 0.002, 80.0, rho).flip(0)
    kept = grid[: round(10 * t_max) + 1]
    quantiles = torch.linspace(0, 1, len(kept), dtype=torch.float64)
    torch.testing.assert_close(KarrasLaw(rho=rho, t_max=t_max).sigma(quantiles), kept, rtol=1e-10, atol=0)


def test_sids_noise_levels_reach_24() -> None:
    assert float(KarrasLaw(t_max=0.8).sigma(torch.ones(()))) == pytest.approx(24.4, abs=0.1)


def test_loguniform_law_has_the_same_share_in_every_octave() -> None:
    quantiles = torch.linspace(0, 1, 5, dtype=torch.float64)
    sigma = LogUniformLaw(sigma_min=0.5, sigma_max=8.0).sigma(quantiles)
    torch.testing.assert_close(sigma, torch.tensor([0.5, 1, 2, 4, 8], dtype=torch.float64))


def test_ve_has_the_loguniform_law_and_its_own_weight() -> None:
    draw = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert isinstance(VELaw(), LogUniformLaw)
    assert torch.equal(VELaw().sigma(draw), LogUniformLaw().sigma(draw))
    torch.testing.assert_close(VELaw().weight(SIGMAS), 1 / SIGMAS.square())
    torch.testing.assert_close(LogUniformLaw().weight(SIGMAS), edm_weight(SIGMAS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NOISE_LAWS)
def test_every_noise_law(name: str, dtype: torch.dtype) -> None:
    """Levels and weights are positive and finite, and levels follow the draw in one direction."""
    law = NOISE_LAWS[name]()
    uniform = torch.linspace(0, 1, 1001, dtype=dtype)
    draw = torch.linspace(-4, 4, 1001, dtype=dtype) if law.normal else uniform
    sigma = law.sigma(draw)
    assert sigma.dtype == law.weight(sigma).dtype == dtype
    assert law.sigma(draw.reshape(7, 11, 13)).shape == (7, 11, 13)
    for values in (sigma, law.weight(sigma)):
        assert bool(values.isfinite().all())
        assert float(values.min()) > 0
    steps = sigma.diff()
    assert bool((steps > 0).all()) or bool((steps < 0).all())


def test_ends_of_the_uniform_laws() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(VELaw().sigma(ends).tolist(), [0.02, 100.0])
    assert VPLaw().sigma(ends).tolist() == pytest.approx([152.167, 0.0010005], rel=1e-4)


def test_vp_time_is_the_inverse_of_its_noise_level() -> None:
    torch.testing.assert_close(vp_sigma(vp_time(SIGMAS)), SIGMAS, rtol=1e-9, atol=0)
