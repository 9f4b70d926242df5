"""Gradients weighed by frequency (--whitening)."""

from __future__ import annotations

import math

import pytest
import torch

from stylegan_di.training.whitening import whitened


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 1), (0, 2), (3, 4), (8, 0), (8, 8)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_wave_is_multiplied_by_its_gain(row: int, column: int, share: float) -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    wave = (2 * math.pi * (row * y + column * x) / 16 + 0.3).cos()[None, None].expand(2, 3, -1, -1)
    gain = max(1.0, math.hypot(row, column) / 2) ** (2 * share)
    torch.testing.assert_close(whitened(wave, share), gain * wave, rtol=1e-4, atol=1e-4)


def test_nothing_is_nothing_and_images_of_two_sides() -> None:
    gradient = torch.randn(2, 1, 8, 4)
    assert whitened(gradient, 0) is gradient
    assert whitened(torch.zeros(1, 1, 8, 4), 1).abs().max() == 0
    assert whitened(gradient, 1).shape == gradient.shape
    assert whitened(gradient.bfloat16(), 0.5).dtype == torch.bfloat16


def test_its_errors_are_those_of_whitened_images() -> None:
    """<g', v> is the derivative of |A (x - x*)|^2 / 2 in the direction v, A being the root of the gain."""
    torch.manual_seed(0)
    x, target = (torch.randn(1, 1, 16, 16, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    root = whitened_matrix(x - target)
    (expected,) = torch.autograd.grad(root.square().sum() / 2, x)
    torch.testing.assert_close(whitened(x.detach() - target, 1.0), expected, rtol=1e-4, atol=1e-4)


def whitened_matrix(error: torch.Tensor) -> torch.Tensor:
    """An error filtered by max(1, f / 2)."""
    cycles = torch.fft.fftfreq(16, 1 / 16, dtype=error.dtype)
    gain = (torch.hypot(cycles[:, None], cycles) / 2).clamp_min(1)
    return torch.fft.ifft2(torch.fft.fft2(error) * gain).real
