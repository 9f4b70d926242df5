"""Noising, scores, weights and preconditioning against closed forms and EDM's loss."""

import math

import torch

from stylegan_di.diffusion import (
    add_noise,
    edm_preconditioning,
    edm_weight,
    per_sample,
    score,
    sigma_from_normal,
)
from tests.golden_edm import assert_near, load_network

SIGMAS = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)


def test_per_sample_broadcasts_over_samples() -> None:
    x = torch.zeros(4, 3, 2, 2)
    assert per_sample(SIGMAS, x).shape == (4, 1, 1, 1)
    assert per_sample(torch.tensor(2.0), x).shape == (1, 1, 1, 1)
    assert per_sample(SIGMAS, torch.zeros(4, 5)).shape == (4, 1)


def test_noise_law_is_lognormal() -> None:
    torch.manual_seed(0)
    sigma = sigma_from_normal(torch.randn(100_000, dtype=torch.float64), P_mean=-1.2, P_std=1.2)
    torch.testing.assert_close(sigma.log().mean().item(), -1.2, rtol=0, atol=0.02)
    torch.testing.assert_close(sigma.log().std().item(), 1.2, rtol=0, atol=0.02)
    torch.testing.assert_close(sigma_from_normal(torch.zeros(2), -2.0, 1.0), torch.full([2], math.exp(-2)))


def test_add_noise_per_sample_and_scalar() -> None:
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    noisy = add_noise(x, noise, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(noisy[0], x[0] + 0.5 * noise[0])
    torch.testing.assert_close(noisy[1], x[1] + 2.0 * noise[1])
    torch.testing.assert_close(add_noise(x, noise, torch.tensor(2.0)), x + 2 * noise)


def test_score_of_a_gaussian() -> None:
    """For x0 ~ N(m, s^2): D = (s^2 x + sigma^2 m) / (s^2 + sigma^2), and the score is (m - x) / (s^2 + sigma^2)."""
    torch.manual_seed(0)
    mean, std = 0.7, 1.5
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    variance = per_sample(SIGMAS, x).square()
    denoised = (std**2 * x + variance * mean) / (std**2 + variance)
    torch.testing.assert_close(score(denoised, x, SIGMAS), (mean - x) / (std**2 + variance), rtol=1e-8, atol=0)


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


def test_loss_of_the_original_code() -> None:
    """weight * (D(y + n) - y)^2 with the recorded draws."""
    network, arrays, _ = load_network("edm_ncsnpp_cond10_aug9")
    images = arrays["loss_images"].double()
    sigma = sigma_from_normal(arrays["loss_rnd_normal"].double().flatten(), P_mean=-1.2, P_std=1.2)
    with torch.no_grad():
        denoised = network(add_noise(images, arrays["loss_noise"].double(), sigma), sigma, arrays["labels"])
    loss = per_sample(edm_weight(sigma), images) * (denoised - images).square()
    assert_near(loss, arrays["loss64"], 1e-10)
