"""StyleGAN2-ADA's losses against values worked out by hand."""

import math

import pytest
import torch

from stylegan_di import loss_gan


def test_logistic_losses_are_cross_entropies() -> None:
    fake, real = torch.tensor([[0.3], [-2.0]]), torch.tensor([[1.5], [0.2]])
    torch.testing.assert_close(loss_gan.generator_logistic(fake), -torch.sigmoid(fake).log())
    expected = -(1 - torch.sigmoid(fake)).log() - torch.sigmoid(real).log()
    torch.testing.assert_close(loss_gan.discriminator_logistic(fake, real), expected)


def test_r1_of_a_linear_discriminator_is_its_squared_weights() -> None:
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 2, 2).requires_grad_()
    reals = torch.randn([5, 3, 2, 2], dtype=torch.float64, requires_grad=True)
    penalty = loss_gan.r1_penalty((reals * weight).sum(dim=(1, 2, 3))[:, None], reals, gamma=3.0)
    torch.testing.assert_close(penalty, 1.5 * weight.detach().square().sum().expand(5))
    (gradient,) = torch.autograd.grad(penalty.sum(), weight)
    torch.testing.assert_close(gradient, 5 * 3.0 * weight.detach())


def test_path_lengths_of_a_linear_synthesis_are_norms_of_its_transpose() -> None:
    """images = A ws (summed over layers): the gradient of each layer's w is A^T y, so the length is |A^T y|."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn([16, 6], generator=generator, dtype=torch.float64, requires_grad=True)
    ws = torch.randn([4, 3, 6], generator=generator, dtype=torch.float64, requires_grad=True)
    noise = torch.randn([4, 1, 4, 4], generator=generator, dtype=torch.float64)
    images = (ws.sum(dim=1) @ a.t()).reshape(4, 1, 4, 4)
    lengths = loss_gan.path_lengths(images, ws, noise)
    probe = noise.flatten(1) / 4
    torch.testing.assert_close(lengths, (probe @ a).norm(dim=1))
    (gradient,) = torch.autograd.grad(lengths.sum(), a)
    assert float(gradient.abs().max()) > 0


def test_path_length_penalty_tracks_the_mean_and_is_differentiated_through_it() -> None:
    """a = (4 + mean l) / 2; the sum's gradient is 2 (l_j - a) - sum_i 2 (l_i - a) / 4."""
    lengths = torch.tensor([1.0, 3.0], requires_grad=True)
    penalty, mean = loss_gan.path_length_penalty(lengths, torch.tensor(4.0), decay=0.5)
    assert float(mean) == 3.0
    assert not mean.requires_grad
    torch.testing.assert_close(penalty.detach(), torch.tensor([4.0, 0.0]))
    (gradient,) = torch.autograd.grad(penalty.sum(), lengths)
    torch.testing.assert_close(gradient, torch.tensor([-3.0, 1.0]))


@pytest.mark.parametrize(
    ("p", "signs", "expected"), [(0.2, 0.9, 0.204), (0.2, 0.1, 0.196), (0.2, 0.6, 0.2), (0.001, 0.1, 0.0)]
)
def test_ada_moves_p_by_images_over_ada_kimg(p: float, signs: float, expected: float) -> None:
    inputs = (torch.tensor(value, dtype=torch.float64) for value in (p, signs))
    moved = loss_gan.ada_adjust(*inputs, target=0.6, images=2000, ada_kimg=500)
    assert math.isclose(float(moved), expected, abs_tol=1e-12)
