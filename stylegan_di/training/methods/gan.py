"""--kind=gan: StyleGAN2-ADA (Karras et al. 2020, arXiv 1912.04958 and 2006.06676), and with its losses StyleGAN3.

StyleGAN3 (Karras et al. 2021, arXiv 2106.12423) has the same discriminator.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from stylegan_di import loss_gan, presets
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.networks import stylegan2, stylegan3
from stylegan_di.presets import FP16_RES, STYLEGAN3
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.students.stylegan3 import gan_student
from stylegan_di.torch_utils import distributed
from stylegan_di.training import transfer
from stylegan_di.training.adversary import ROLE, Adversary, judged
from stylegan_di.training.batch import Batch, Samples
from stylegan_di.training.methods.base import GeneratorMethod
from stylegan_di.training.methods.r3gan import R3GAN
from stylegan_di.training.optimize import apply_gradients, trainable

MAGNITUDE_HALFLIFE = 20_000  # images, of StyleGAN3's running magnitudes
PL_MEAN, PL_DECAY = "pl_mean", 0.01  # the mean path length's name in the state, and its rate of change
PL_SHRINK = 2  # path lengths are measured on 1 / PL_SHRINK of the samples, because they take more memory


class GAN(GeneratorMethod):
    """Trains generator and discriminator, each with its lazy regularisation."""

    model: StyleGAN2Student

    def __init__(
        self, config: TrainConfig, device: torch.device, dataset: ImageDataset | None, gan: transfer.GAN
    ) -> None:
        """Takes a Method's arguments and the networks to train."""
        super().__init__(config, device, dataset)
        self.notes = gan.notes
        self.model, self.ema = gan_student(gan.generator), gan_student(gan.ema)
        transfer.freeze(self.model, self.ema, config.freeze)
        self.adversary = Adversary(config, gan.discriminator, self.model.img_resolution)
        networks = {"model": self.model, "ema": self.ema, **self.adversary.networks}
        self.prepare(networks, interval=config.pl_interval if config.pl_weight else None)
        self.state.optimizers[ROLE] = self.adversary.optimizer()
        self.state.scalars[PL_MEAN] = torch.zeros((), device=device)
        self.state.totals |= self.adversary.totals(device)

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> GeneratorMethod:
        assert dataset is not None
        if config.cfg == presets.R3GAN:
            return R3GAN.open(config, device, dataset)
        gan = _new_gan(config, dataset) if config.resume is None else _gan_to_resume(config, dataset)
        return cls(config, device, dataset, gan)

    def due(self) -> tuple[bool, ...]:
        config, step = self.config, self.state.cur_step
        return bool(config.pl_weight) and step % config.pl_interval == 0, *self.adversary.due(step)

    def hinders_graph(self) -> str:
        return self.adversary.hinders_graph()

    def step(self, batch: Batch, journal: Journal) -> None:
        """Updates the generator, also by path lengths when these are due, then the discriminator."""
        self.generator_update(batch, journal)
        if self.due()[0]:
            self.path_length_update(batch, journal)
        assert self.reals is not None
        reals = self.reals.take(batch)
        self.adversary.step(self.state, batch, reals, lambda chunk: self.fakes(batch, chunk), journal)

    def fakes(self, batch: Batch, chunk: range) -> Samples:
        """Generates images and labels for the discriminator; StyleGAN3's running means move with these."""
        self.model.train("discriminator" in self.model.means_move_with)
        images, _, labels = self.sample(batch, chunk, "discriminator")
        self.model.eval()
        return images, labels

    def sample(self, batch: Batch, chunk: range, purpose: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Generates images, with their ws and labels, and mixes styles in a share `mixing` of the samples.

        With style mixing (arXiv 1812.04948, section 3.1) the ws from a random layer on come from a second latent.
        """
        model, moves = self.model, purpose in self.model.means_move_with
        labels = batch.labels(purpose, chunk, self.model.label_law)
        rng = batch.random(f"{purpose}/z", chunk)
        ws = model.mapped_in_training(model.sample_latents(len(chunk), rng=rng), labels, moves=moves)
        if self.config.mixing:
            z = self.model.sample_latents(len(chunk), rng=rng)
            second = model.mapped_in_training(z, labels, moves=False)
            mixed = rng.uniform() < self.config.mixing
            cutoff = torch.where(mixed, 1 + rng.integers(ws.shape[1] - 1), ws.shape[1])
            layer = torch.arange(ws.shape[1], device=ws.device)
            ws = torch.where((layer[None, :] < cutoff[:, None])[:, :, None], ws, second)
        if torch.is_grad_enabled() and not ws.requires_grad:
            ws.requires_grad_()  # for path lengths; a frozen mapping network gives ws without gradients
        noise = batch.random(f"{purpose}/noise", chunk)
        return model.synthesized_in_training(ws, noise, moves=moves), ws, labels

    def generator_update(self, batch: Batch, journal: Journal) -> None:
        """Updates the generator by the non-saturating logistic loss."""
        with trainable(self.model, train_mode=True):
            for chunk in batch.chunks:
                fakes, _, labels = self.sample(batch, chunk, "generator")
                logits = self.adversary.logits(fakes, labels, batch, chunk, "augment/generator")
                loss = loss_gan.generator_logistic(logits)
                (loss.sum() / batch.local_size).backward()
                journal.scalars({"Loss/G/loss": loss.detach(), **judged("fake", logits)})
            journal.shared({"Gradient/model": apply_gradients(self.state, "model")})

    def path_length_update(self, batch: Batch, journal: Journal) -> None:
        """Updates the generator by path length regularisation, scaled because it runs only every pl_interval steps.

        pl_mean moves once a batch, however this is divided into chunks and among processes.
        """
        config, pl_mean = self.config, self.state.scalars[PL_MEAN]
        chunks = [chunk[: max(len(chunk) // PL_SHRINK, 1)] for chunk in batch.chunks]
        size = sum(map(len, chunks))
        with trainable(self.model, train_mode=True):
            means = []
            for chunk in chunks:
                fakes, ws, _ = self.sample(batch, chunk, "path_length")
                noise = batch.random("path_length/probe", chunk).normal(*fakes.shape[1:])
                lengths = loss_gan.path_lengths(fakes, ws, noise)
                penalty, mean = loss_gan.path_length_penalty(lengths, pl_mean, PL_DECAY)
                (penalty.sum() * config.pl_weight * config.pl_interval / size).backward()
                means.append(mean)
                journal.scalars({"Loss/pl_penalty": penalty, "Loss/G/reg": penalty * config.pl_weight})
            new_mean = torch.stack(means).mean()
            distributed.average([new_mean])
            skipped = apply_gradients(self.state, "model")[0].isnan()
            pl_mean.copy_(torch.where(skipped, pl_mean, new_mean))


def _new_gan(config: TrainConfig, dataset: ImageDataset) -> transfer.GAN:
    common: dict[str, Any] = dict(
        c_dim=dataset.label_dim, img_resolution=dataset.resolution, img_channels=dataset.num_channels
    )
    layers: dict[str, Any] = dict(channel_base=config.cbase, channel_max=config.cmax)
    if config.fp16_res:
        layers |= dict(num_fp16_res=config.fp16_res, conv_clamp=256)
    generator = _new_stylegan3(config, common) if config.cfg in STYLEGAN3 else _new_stylegan2(config, common, layers)
    discriminator = stylegan2.Discriminator(
        **common,
        **layers,
        architecture=config.d_arch,
        block_kwargs={"freeze_layers": config.freezed} if config.freezed else {},
        mapping_kwargs={},
        epilogue_kwargs=dict(mbstd_group_size=config.mbstd_group),
    )
    return transfer.GAN(generator, discriminator, copy.deepcopy(generator))


def _new_stylegan2(config: TrainConfig, common: dict[str, Any], layers: dict[str, Any]) -> stylegan2.Generator:
    return stylegan2.Generator(
        z_dim=config.w_dim,
        w_dim=config.w_dim,
        mapping_kwargs=dict(num_layers=config.map_depth),
        synthesis_kwargs=layers if config.noise_inputs else layers | dict(use_noise=False),
        **common,
    )


def _new_stylegan3(config: TrainConfig, common: dict[str, Any]) -> stylegan3.Generator:
    """Without float16, the network has no clamp either."""
    assert config.cfg is not None
    factor, options = STYLEGAN3[config.cfg]
    if config.fp16_res != FP16_RES:
        options = options | dict(num_fp16_res=config.fp16_res) | ({} if config.fp16_res else dict(conv_clamp=None))
    return stylegan3.Generator(
        z_dim=config.w_dim,
        w_dim=config.w_dim,
        mapping_kwargs=dict(num_layers=config.map_depth),
        channel_base=config.cbase * factor,
        channel_max=config.cmax * factor,
        magnitude_ema_beta=0.5 ** (config.batch / MAGNITUDE_HALFLIFE),
        **options,
        **common,
    )


def _gan_to_resume(config: TrainConfig, dataset: ImageDataset) -> transfer.GAN:
    """Opens the networks of --resume's file."""
    assert config.resume is not None
    gan = transfer.gan_to_resume(config.resume, dataset, config.freezed)
    wants, is_one = config.cfg in STYLEGAN3, isinstance(gan.generator, stylegan3.Generator)
    if wants != is_one:
        remedy = f"give --cfg={' or '.join(STYLEGAN3)}" if is_one else "choose another --cfg"
        raise UserError(
            f"--resume={config.resume}: its generator is a StyleGAN{3 if is_one else 2}, which --cfg={config.cfg} does "
            f"not train; {remedy}"
        )
    return gan
