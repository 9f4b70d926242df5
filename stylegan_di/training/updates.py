"""One function an update. Each moves one network, and reports named scalars or per-sample values.

Gradients are means over the samples of the step, accumulated over chunks, averaged over processes. An update whose
gradients are not finite, or whose norm is beyond EXPLODED, is left out and noted in the state; otherwise each gradient
is kept within +-GRADIENT_LIMIT, as in StyleGAN2-ADA and Diff-Instruct.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.diffusion import NoiseLaw
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.loss_di import Divergence, denoising_loss
from stylegan_di.networks.stylegan2 import Generator as StyleGAN2
from stylegan_di.torch_utils import distributed
from stylegan_di.training.report import Statistics
from stylegan_di.training.state import Batch, TrainState, trainable

GRADIENT_LIMIT = 1e5
EXPLODED = 1e8
Samples = tuple[Tensor, Tensor | None]  # images in [-1,1], labels
Reals = Callable[[range], tuple[Tensor, Tensor | None]]  # a chunk -> images in [-1,1], labels


def draw_noise(law: NoiseLaw, batch: Batch, purpose: str, chunk: range, image: Tensor) -> tuple[Tensor, Tensor]:
    """Noise as image [n,C,H,W] and noise levels [n] of a chunk."""
    rng = batch.random(purpose, chunk)
    sigma = law.sigma(rng.normal() if law.normal else rng.uniform())
    return rng.normal(*image.shape[1:]), sigma


def apply_gradients(state: TrainState, role: str) -> Tensor:
    """Averages a network's gradients over processes and steps its optimizer, or leaves the step out and notes that.

    The decision stays on the device: a fused optimizer leaves weights, moments and its count of steps as they are where
    its `found_inf` is 1.

    Args:
        state: where the network and its optimizer are.
        role: of the network: model, fake_score or discriminator.

    Returns the norm of the gradients, [1]; NaN where the step was left out.
    """
    optimizer = state.optimizers[role]
    gradients = [parameter.grad for parameter in getattr(state, role).parameters() if parameter.grad is not None]
    distributed.average(gradients)
    norm = distributed.whole(torch.nn.utils.get_total_norm(gradients))
    taken = norm <= EXPLODED  # false for NaN
    torch._foreach_clamp_min_(gradients, -GRADIENT_LIMIT)
    torch._foreach_clamp_max_(gradients, GRADIENT_LIMIT)
    optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.undecided.append((state.cur_step, role, ~taken))
    return torch.where(taken, norm, torch.nan).reshape(1)


def student_images(generator: Generator, batch: Batch, chunk: range, purpose: str) -> tuple[Tensor, Tensor | None]:
    """Images of fresh latents and uniformly drawn labels."""
    labels = batch.labels(purpose, chunk, generator.label_dim)
    z = generator.sample_latents(len(chunk), rng=batch.random(f"{purpose}/z", chunk))
    return generator(z, labels, rng=batch.random(f"{purpose}/noise", chunk)), labels


def student_samples(state: TrainState, batch: Batch) -> Samples | None:
    """The student's images of a step, made once for both updates: the fake score sees them without their graph.

    None if the step has several chunks, whose graphs are not to be kept: each update then makes the same images anew.
    """
    assert isinstance(state.model, Generator)
    if len(batch.chunks) > 1:
        return None
    with trainable(state.model, train_mode=True):
        return student_images(state.model, batch, batch.chunks[0], "student")


def denoiser_update(
    state: TrainState, batch: Batch, reals: Reals, noise_law: NoiseLaw, label_dropout: float, report: Statistics
) -> None:
    """Moves the model, a Denoiser, by the denoising loss on real images, without label with chance label_dropout.

    With the state's augment_pipe, EDM's, images are augmented and the model is told how.
    """
    assert isinstance(state.model, Denoiser)
    with trainable(state.model, train_mode=True):
        for chunk in batch.chunks:
            images, labels = reals(chunk)
            if labels is not None and label_dropout:
                keep = batch.random("label_dropout", chunk).uniform(1) >= label_dropout
                labels = labels * keep
            denoiser: Callable[..., Tensor] = state.model
            if state.augment_pipe is not None:
                images, augment_labels = state.augment_pipe(images, rng=batch.random("augment", chunk))
                denoiser = partial(state.model, augment_labels=augment_labels)
            noise, sigma = draw_noise(noise_law, batch, "denoiser", chunk, images)
            batch.seed_dropout(chunk)
            loss = denoising_loss(denoiser, images, noise, sigma, labels, noise_law.weight)
            (loss.sum() / batch.local_size).backward()
            report.add({"Loss/denoising": loss.detach()})
            report.add_by_sigma("Loss/denoising", loss, sigma)
        report.add({"Gradient/model": apply_gradients(state, "model")})


def fake_score_update(
    state: TrainState, batch: Batch, noise_law: NoiseLaw, report: Statistics, samples: Samples | None = None
) -> None:
    """Moves the fake score by the denoising loss on the student's samples, made here if not given."""
    assert isinstance(state.fake_score, Denoiser)
    assert isinstance(state.model, Generator)
    with trainable(state.fake_score, train_mode=False):
        for chunk in batch.chunks:
            with torch.no_grad():
                images, labels = samples or student_images(state.model, batch, chunk, "student")
            images = images.detach()
            noise, sigma = draw_noise(noise_law, batch, "fake_score", chunk, images)
            loss = denoising_loss(state.fake_score, images, noise, sigma, labels)
            (loss.sum() / batch.local_size).backward()
            report.add({"Loss/fake_score": loss.detach()})
            report.add_by_sigma("Loss/fake_score", loss, sigma)
        report.add({"Gradient/fake_score": apply_gradients(state, "fake_score")})


def student_update(
    state: TrainState,
    batch: Batch,
    teacher: Denoiser | None,
    divergence: Divergence | None,
    noise_law: NoiseLaw,
    adv_weight: float,
    report: Statistics,
    samples: Samples | None = None,
) -> None:
    """Moves the student by the gradient of a divergence on its samples, plus adv_weight times the adversarial one.

    samples: with their graph, see `student_samples`; made here if not given.
    """
    assert isinstance(state.model, Generator)
    with trainable(state.model, train_mode=True):
        for chunk in batch.chunks:
            images, labels = samples or student_images(state.model, batch, chunk, "student")
            x = images.detach().requires_grad_()
            gradient = torch.zeros_like(images)
            if divergence is not None:
                assert teacher is not None
                assert state.fake_score is not None
                noise, sigma = draw_noise(noise_law, batch, "divergence", chunk, images)
                loss = divergence.student_loss(x, noise, sigma, teacher, state.fake_score, labels).sum()
                (gradient,) = torch.autograd.grad(loss, x)
                report.add_by_sigma("Gradient/divergence_per_pixel", rms(gradient), sigma)
            if adv_weight:
                logits = discriminator_logits(state, x, labels, batch, chunk, "augment/student")
                (adversarial,) = torch.autograd.grad(loss_gan.generator_logistic(logits).sum(), x)
                report.add({"Gradient/adversarial_per_pixel": rms(adversarial)})
                gradient = gradient + adv_weight * adversarial
            images.backward(gradient / batch.local_size)
        report.add({"Gradient/student": apply_gradients(state, "model")})


def rms(gradient: Tensor) -> Tensor:
    """Root mean square over the pixels of each sample, [n]."""
    return gradient.square().mean(dim=(1, 2, 3)).sqrt()


def discriminator_logits(
    state: TrainState, images: Tensor, labels: Tensor | None, batch: Batch, chunk: range, purpose: str
) -> Tensor:
    """D of the (augmented) images, [n,1]; without autocast: a discriminator has float16 layers of its own."""
    assert state.discriminator is not None
    with torch.autocast(images.device.type, enabled=False):
        if isinstance(state.augment_pipe, torch.nn.Module):
            images = state.augment_pipe(images, rng=batch.random(purpose, chunk))
        return state.discriminator(images, labels)


def gan_images(
    state: TrainState, batch: Batch, chunk: range, purpose: str, mixing: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images, their ws and labels from a StyleGAN2, with style mixing in a share `mixing` of the samples.

    Style mixing (arXiv 1812.04948, section 3.1): from a random layer on, the ws come from a second latent.
    """
    assert isinstance(state.model, Generator)
    network = state.model.network
    assert isinstance(network, StyleGAN2)
    labels = batch.labels(purpose, chunk, state.model.label_dim)
    rng = batch.random(f"{purpose}/z", chunk)
    ws = network.mapping(state.model.sample_latents(len(chunk), rng=rng), labels)
    if mixing:
        second = network.mapping(
            state.model.sample_latents(len(chunk), rng=rng), labels, skip_w_avg_update=True
        )
        mixed = rng.uniform() < mixing
        cutoff = torch.where(mixed, 1 + rng.integers(ws.shape[1] - 1), ws.shape[1])
        layer = torch.arange(ws.shape[1], device=ws.device)
        ws = torch.where((layer[None, :] < cutoff[:, None])[:, :, None], ws, second)
    if torch.is_grad_enabled() and not ws.requires_grad:
        ws.requires_grad_()  # path lengths are gradients in ws, which a frozen mapping network does not ask for
    noise = batch.random(f"{purpose}/noise", chunk)
    return network.synthesis(ws, noise_mode="random", noise_source=noise.normal), ws, labels


def generator_update(state: TrainState, batch: Batch, mixing: float, report: Statistics) -> None:
    """Moves the generator by the non-saturating logistic loss."""
    with trainable(state.model, train_mode=True):
        for chunk in batch.chunks:
            fakes, _, labels = gan_images(state, batch, chunk, "generator", mixing)
            logits = discriminator_logits(state, fakes, labels, batch, chunk, "augment/generator")
            loss = loss_gan.generator_logistic(logits)
            (loss.sum() / batch.local_size).backward()
            report.add({"Loss/generator": loss.detach(), "Signs/fake": logits.detach().sign()})
        report.add({"Gradient/model": apply_gradients(state, "model")})


def path_length_update(
    state: TrainState, batch: Batch, mixing: float, weight: float, decay: float, interval: int, report: Statistics
) -> None:
    """Moves the generator by path length regularisation, scaled for being done once in `interval` steps."""
    with trainable(state.model, train_mode=True):
        means = []
        for chunk in batch.chunks:
            fakes, ws, _ = gan_images(state, batch, chunk, "path_length", mixing)
            noise = batch.random("path_length/probe", chunk).normal(*fakes.shape[1:])
            lengths = loss_gan.path_lengths(fakes, ws, noise)
            penalty, mean = loss_gan.path_length_penalty(lengths, state.pl_mean, decay)
            (penalty.sum() * weight * interval / batch.local_size).backward()
            means.append(mean)
            report.add({"Loss/path_length": penalty.detach()})
        pl_mean = torch.stack(means).mean()
        distributed.average([pl_mean])
        left_out = apply_gradients(state, "model")[0].isnan()
        state.pl_mean = torch.where(left_out, state.pl_mean, pl_mean)


def discriminator_update(
    state: TrainState,
    batch: Batch,
    reals: Reals,
    fakes_of: Callable[[range], tuple[Tensor, Tensor | None]],
    report: Statistics,
    real_signs: Statistics,
) -> None:
    """Moves the discriminator by the logistic loss on real images and on fakes_of(chunk) -> images, labels.

    real_signs collects sign D(real) for ADA's control of p.
    """
    assert state.discriminator is not None
    with trainable(state.discriminator, train_mode=True):
        for chunk in batch.chunks:
            with torch.no_grad():
                fakes, fake_labels = fakes_of(chunk)
            images, labels = reals(chunk)
            fake_logits = discriminator_logits(state, fakes, fake_labels, batch, chunk, "augment/fakes")
            real_logits = discriminator_logits(state, images, labels, batch, chunk, "augment/reals")
            loss = loss_gan.discriminator_logistic(fake_logits, real_logits)
            (loss.sum() / batch.local_size).backward()
            signs = {"Signs/real": real_logits.detach().sign()}
            real_signs.add(signs)
            report.add({"Loss/discriminator": loss.detach()} | signs)
        report.add({"Gradient/discriminator": apply_gradients(state, "discriminator")})


def r1_update(state: TrainState, batch: Batch, reals: Reals, gamma: float, interval: int, report: Statistics) -> None:
    """Moves the discriminator by the R1 penalty, scaled for being done once in `interval` steps."""
    assert state.discriminator is not None
    with trainable(state.discriminator, train_mode=True):
        for chunk in batch.chunks:
            images, labels = reals(chunk)
            images = images.detach().requires_grad_()
            logits = discriminator_logits(state, images, labels, batch, chunk, "augment/r1")
            penalty = loss_gan.r1_penalty(logits, images, gamma)
            (penalty.sum() * interval / batch.local_size).backward()
            report.add({"Loss/r1": penalty.detach()})
        apply_gradients(state, "discriminator")
