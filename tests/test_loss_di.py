"""Diff-Instruct's gradients against closed forms on Gaussians, where the scores are known exactly."""

import dataclasses

import pytest
import torch
from torch import Tensor

from stylegan_di.diffusion import edm_weight
from stylegan_di.interfaces import Denoiser
from stylegan_di.loss_di import IKL, Divergence, Noised, denoising_loss
from tests.gaussians import GaussianDenoiser, draw, student_loss


def gradients(divergence: Divergence, m: float, s: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Per-sample gradients in mean and scale of x = s z + m with an exact fake score against N(0,1), and sigma."""
    z, noise, sigma = draw(n, seed=seed)
    mean = torch.full([n, 1, 1, 1], m, dtype=torch.float64, requires_grad=True)
    scale = torch.full([n, 1, 1, 1], s, dtype=torch.float64, requires_grad=True)
    x = scale * z + mean
    fake = GaussianDenoiser(m, s)
    loss = student_loss(divergence, x, noise, sigma, GaussianDenoiser(0.0, 1.0), fake)
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
    loss = student_loss(IKL("one"), x, noise, sigma, teacher, GaussianDenoiser(0.8, 0.0))
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
        loss = student_loss(IKL(weight), leaf, noise, sigma, teacher, fake)  # type: ignore[arg-type]
        return torch.autograd.grad(loss.sum(), leaf)[0]

    denoised = teacher(x + sigma.reshape(-1, 1, 1, 1) * noise, sigma)
    k = 1 / (x - denoised).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient("dmd"), gradient("sigma2") * k, rtol=1e-6, atol=1e-9)


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
    student_loss(IKL(), x, torch.ones_like(x), torch.ones(2), GaussianDenoiser(0.0, 1.0), fake).sum().backward()
    assert mean.grad is None


class Counted(Denoiser):
    """Half of its input; counts its calls."""

    calls = 0

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        return x / 2


@pytest.mark.parametrize("differentiable", [False, True])
def test_networks_are_asked_once_and_only_when_needed(differentiable: bool) -> None:
    teacher, fake = Counted(), Counted()
    x = torch.ones([3, 2], requires_grad=True)
    at = Noised(x, torch.ones(3, 2), torch.tensor([1.0, 2.0, 3.0]), None, teacher, fake, differentiable=differentiable)
    assert torch.equal(at.noisy, torch.tensor([[2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]))
    assert torch.equal(at.teacher_x0, at.noisy / 2)
    assert at.teacher_x0 is at.teacher_x0
    assert (teacher.calls, fake.calls) == (1, 0)
    assert torch.equal(at.fake_x0, at.teacher_x0)
    assert (teacher.calls, fake.calls) == (1, 1)
    assert [tensor.requires_grad for tensor in (at.noisy, at.teacher_x0, at.fake_x0)] == [differentiable] * 3


def test_the_teachers_error_is_a_constant_and_never_divided_by_zero() -> None:
    """|x - D_p| is 0 for the first sample and 1 and 3 for the second."""
    x = torch.tensor([[1.0, 1.0], [2.0, 6.0]], requires_grad=True)
    at = Noised(x, torch.ones(2, 2), torch.tensor([1.0, 0.0]), None, Counted(), Counted(), differentiable=True)
    torch.testing.assert_close(at.inverse_teacher_error, torch.tensor([[1e8], [0.5]]))
    assert not at.inverse_teacher_error.requires_grad


def test_samples_need_not_be_images() -> None:
    """Samples may have any shape: the loss of [B,2] is that of the same numbers as images [B,2,1,1]."""
    z, noise, sigma = draw(8, (2,))
    teacher, fake = GaussianDenoiser(0.0, 1.0), GaussianDenoiser(0.3, 0.8)
    points = student_loss(IKL("one"), z, noise, sigma, teacher, fake)
    images = student_loss(IKL("one"), z[..., None, None], noise[..., None, None], sigma, teacher, fake)
    torch.testing.assert_close(points, images)
    torch.testing.assert_close(
        denoising_loss(fake, z, noise, sigma, None),
        denoising_loss(fake, z[..., None, None], noise[..., None, None], sigma, None),
    )


def test_a_divergence_is_a_frozen_dataclass() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IKL().clip = 3.0  # type: ignore[misc]
