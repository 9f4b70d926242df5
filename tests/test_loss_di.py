"""Diff-Instruct's gradients against closed forms on Gaussians, where the scores are known exactly."""

import dataclasses

import pytest
import torch
from torch import Tensor

from stylegan_di.diffusion import edm_weight
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.loss_di import DIVERGENCES, IKL, Divergence, SiD, denoising_loss, parse_divergence


class GaussianDenoiser(Denoiser):
    """The exact denoiser of N(mean, std^2): (x std^2 + mean sigma^2) / (std^2 + sigma^2)."""

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        super().__init__()
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.std = torch.as_tensor(std, dtype=torch.float64)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        variance = self.std**2
        return (x * variance + self.mean * sigma**2) / (variance + sigma**2)


def draw(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z and noise [n,1,1,1], sigma [n] of the default noise law, float64."""
    generator = torch.Generator().manual_seed(seed)
    z, noise = (torch.randn([n, 1, 1, 1], generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = (torch.randn([n], generator=generator, dtype=torch.float64) * 1.2 - 1.2).exp()
    return z, noise, sigma


def gradients(divergence: Divergence, m: float, s: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Per-sample gradients in mean and scale of x = s z + m with an exact fake score against N(0,1), and sigma."""
    z, noise, sigma = draw(n, seed)
    mean = torch.full([n, 1, 1, 1], m, dtype=torch.float64, requires_grad=True)
    scale = torch.full([n, 1, 1, 1], s, dtype=torch.float64, requires_grad=True)
    x = scale * z + mean
    fake = GaussianDenoiser(m, s)
    loss = divergence.student_loss(x, noise, sigma, GaussianDenoiser(0.0, 1.0), fake, None)
    d_mean, d_scale = torch.autograd.grad(loss.sum(), [mean, scale])
    return d_mean.flatten(), d_scale.flatten(), sigma


@pytest.mark.parametrize("weight", ["sigma2", "one"])
def test_ikl_gradient_in_the_mean_is_exact_for_every_sample(weight: str) -> None:
    """s_q - s_p = m / (1 + sigma^2) whatever the noise (q and p of equal scale)."""
    d_mean, _, sigma = gradients(IKL(weight), m=-0.7, s=1.0, n=64)  # type: ignore[arg-type]
    w = sigma**2 if weight == "sigma2" else torch.ones_like(sigma)
    torch.testing.assert_close(d_mean, w * -0.7 / (1 + sigma**2), rtol=1e-9, atol=1e-12)


def test_ikl_gradient_in_the_scale_has_its_closed_form_in_expectation() -> None:
    """d/ds = w s [1 / (1 + sigma^2) - 1 / (s^2 + sigma^2)], estimated from 400,000 samples."""
    s = 0.6
    _, d_scale, sigma = gradients(IKL(), m=0.0, s=s, n=400_000)
    expected = (sigma**2 * s * (1 / (1 + sigma**2) - 1 / (s**2 + sigma**2))).mean()
    error = d_scale.std() / len(d_scale) ** 0.5
    assert abs(float(d_scale.mean() - expected)) < 4 * float(error)
    assert float(error) < 0.02 * abs(float(expected))


def test_ikl_vanishes_where_fake_score_and_teacher_agree() -> None:
    d_mean, d_scale, _ = gradients(IKL(), m=0.0, s=1.0, n=32)
    assert float(d_mean.abs().max()) < 1e-12
    assert float(d_scale.abs().max()) < 1e-12


def test_ikl_of_a_point_mass_is_score_distillation() -> None:
    """With D_q = x (exact for a point mass) the gradient is w (s_q - s_p) with s_q = -noise / sigma: SDS."""
    x = torch.full([16, 1, 1, 1], 0.8, dtype=torch.float64, requires_grad=True)
    _, noise, sigma = draw(16)
    teacher = GaussianDenoiser(0.0, 1.0)
    loss = IKL("one").student_loss(x, noise, sigma, teacher, GaussianDenoiser(0.8, 0.0), None)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    level = sigma.reshape(-1, 1, 1, 1)
    noisy = x.detach() + level * noise
    expected = -noise / level - (teacher(noisy, sigma) - noisy) / level**2
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_dmd_weight_divides_by_the_teachers_mean_absolute_error() -> None:
    generator = torch.Generator().manual_seed(3)
    x, noise = (torch.randn([4, 2, 3, 3], generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=torch.float64)
    teacher, fake = GaussianDenoiser(0.0, 1.0), GaussianDenoiser(0.3, 0.9)

    def gradient(weight: str) -> Tensor:
        leaf = x.clone().requires_grad_()
        loss = IKL(weight).student_loss(leaf, noise, sigma, teacher, fake, None)  # type: ignore[arg-type]
        return torch.autograd.grad(loss.sum(), leaf)[0]

    denoised = teacher(x + sigma.reshape(-1, 1, 1, 1) * noise, sigma)
    k = 1 / (x - denoised).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient("dmd"), gradient("sigma2") * k, rtol=1e-6, atol=1e-9)


def test_sid_is_its_formula_with_gradients_through_both_networks() -> None:
    """k <D_p - D_q, (D_p - x) - alpha (D_p - D_q)> for x ~ N(0, s^2), written out."""
    alpha, s = 1.2, 0.8
    z, noise, sigma = draw(32)
    x = (s * z).requires_grad_()
    loss = SiD(alpha).student_loss(x, noise, sigma, GaussianDenoiser(0.0, 1.0), GaussianDenoiser(0.0, s), None)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    level = sigma.reshape(-1, 1, 1, 1)
    p, q = 1 / (1 + level**2), s**2 / (s**2 + level**2)
    noisy = x.detach() + level * noise
    k = 1 / (x.detach() - p * noisy).abs()
    value = k * (p - q) * noisy * ((p * noisy - x.detach()) - alpha * (p - q) * noisy)
    # d/dx with noisy = x + sigma n, k detached: product rule.
    slope = k * (p - q) * (((p * noisy - x.detach()) - alpha * (p - q) * noisy) + noisy * (p - 1 - alpha * (p - q)))
    torch.testing.assert_close(loss.detach(), value.flatten(), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-9)


VARIANTS = [IKL(), IKL("one"), IKL("dmd"), SiD(0.5), SiD(1.0), SiD(1.2)]


def test_every_divergence_has_a_variant_here() -> None:
    assert {type(variant) for variant in VARIANTS} == set(DIVERGENCES.values())


@pytest.mark.parametrize("divergence", VARIANTS, ids=str)
def test_every_divergence_finds_mean_and_scale_of_the_teacher(divergence: Divergence) -> None:
    """1-D student x = s z + m with its exact fake score; teacher N(0, 1)."""
    m = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([m, s], lr=0.02, betas=(0.0, 0.99))
    for step in range(600):
        z, noise, sigma = draw(512, seed=step)
        fake = GaussianDenoiser(m.detach(), s.detach())
        loss = divergence.student_loss(s * z + m, noise, sigma, GaussianDenoiser(0.0, 1.0), fake, None).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 600)
    assert abs(float(m.detach())) < 0.03
    assert abs(float(s.detach()) - 1) < 0.03


def test_denoising_loss_is_least_at_the_posterior_mean() -> None:
    z, noise, sigma = draw(20_000)
    x = 0.6 * z + 0.2

    def loss(mean: float, std: float) -> float:
        return float(denoising_loss(GaussianDenoiser(mean, std), x, noise, sigma, None).mean())

    best = loss(0.2, 0.6)
    assert all(best < loss(mean, std) for mean, std in [(0.3, 0.6), (0.1, 0.6), (0.2, 0.7), (0.2, 0.5)])


def test_denoising_loss_is_weighted_and_summed_over_pixels() -> None:
    x = torch.zeros([2, 3, 4, 4], dtype=torch.float64)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    loss = denoising_loss(GaussianDenoiser(0.5, 0.0), x, torch.randn_like(x), sigma, None)
    torch.testing.assert_close(loss, edm_weight(sigma) * 0.25 * 48)


def test_gradients_do_not_reach_the_networks_of_ikl() -> None:
    mean = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    fake = GaussianDenoiser(mean, 1.0)
    x = torch.zeros([2, 1, 1, 1], requires_grad=True)
    loss = IKL().student_loss(x, torch.ones_like(x), torch.ones(2), GaussianDenoiser(0.0, 1.0), fake, None)
    loss.sum().backward()
    assert mean.grad is None


def test_divergences_are_parsed_from_the_command_line() -> None:
    assert parse_divergence("ikl") == IKL()
    assert parse_divergence("ikl:weight=dmd") == IKL("dmd")
    assert parse_divergence("sid:alpha=1.2") == SiD(1.2)
    for divergence in VARIANTS:
        assert dataclasses.is_dataclass(divergence)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("kl", "accepted: ikl, sid"),
        ("ikl:alpha=1", "no field 'alpha'; accepted: weight"),
        ("ikl:weight=two", "accepted: sigma2, one, dmd"),
        ("sid:alpha=nan", "a number from 0 to 10"),
        ("sid:alpha=", "a number from 0 to 10"),
    ],
)
def test_wrong_divergences_are_refused_with_what_is_accepted(text: str, found: str) -> None:
    with pytest.raises(UserError, match=found):
        parse_divergence(text)
