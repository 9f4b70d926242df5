"""Losses of StyleGAN2-ADA and R3GAN: logistic, relativistic, gradient penalties, path length; the control of ADA's p.

Logistic: Goodfellow et al. 2014; relativistic: Jolicoeur-Martineau 2018 (arXiv 1807.00734), Huang et al. 2024 (arXiv
2501.05441); R1: Mescheder et al. 2018 (arXiv 1801.04406, eq. 9); path length: Karras et al. 2020 (arXiv 1912.04958,
eq. 4); ADA: Karras et al. 2020 (arXiv 2006.06676, section 3).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_logistic(fake_logits: Tensor) -> Tensor:
    """Returns -log sigmoid(D(G(z))) per sample, shaped as fake_logits [B,1]."""
    return F.softplus(-fake_logits)


def discriminator_logistic(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Returns -log(1 - sigmoid(D(fake))) - log sigmoid(D(real)) per sample [B,1]."""
    return F.softplus(fake_logits) + F.softplus(-real_logits)


def generator_relativistic(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Returns -log sigmoid(D(fake) - D(real)) per pair, shaped as the logits."""
    return F.softplus(real_logits - fake_logits)


def discriminator_relativistic(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Returns -log sigmoid(D(real) - D(fake)) per pair, shaped as the logits."""
    return F.softplus(fake_logits - real_logits)


def r1_penalty(real_logits: Tensor, reals: Tensor, gamma: float) -> Tensor:
    """Returns gamma / 2 * |grad_x D(x)|^2 at real images, per sample [B]; differentiable in D's parameters.

    At generated images, which it takes as well, it is called R2.

    Args:
        real_logits: D(reals), with the graph.
        reals: [B,C,H,W], requires grad.
        gamma: weight of the penalty.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1) * (gamma / 2)


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Returns |J_w^T y| per sample [B], y = noise / sqrt(H W): the root of the mean over layers of squared norms.

    Args:
        images: [B,C,H,W], with the graph.
        ws: [B,num_ws,w_dim], requires grad.
        noise: standard normal, shaped as images.
    """
    probe = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * probe).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def path_length_penalty(lengths: Tensor, pl_mean: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Returns (lengths - a)^2 per sample [B] and, detached, the new a = lerp(pl_mean, mean length, decay).

    The penalty is differentiated through a, as in StyleGAN2-ADA.
    """
    new_mean = pl_mean.lerp(lengths.mean(), decay)
    return (lengths - new_mean).square(), new_mean.detach()


def ada_adjust(p: Tensor, real_signs_mean: Tensor, *, target: float, images: int, ada_kimg: float) -> Tensor:
    """Returns ADA's next p [], >= 0: moved by images / (ada_kimg * 1000) to bring E[sign D(real)] [] to the target."""
    step = images / (ada_kimg * 1000)
    return (p + (real_signs_mean - target).sign() * step).clamp(min=0)
