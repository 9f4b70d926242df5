"""--kind=gan --cfg=r3gan: R3GAN (Huang et al. 2024, arXiv 2501.05441)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.networks import r3gan
from stylegan_di.snapshots.checkpoint import load_snapshot
from stylegan_di.students.r3gan import R3GANStudent
from stylegan_di.training.adversary import ROLE, judged
from stylegan_di.training.batch import Batch, Reals
from stylegan_di.training.methods.base import GeneratorMethod
from stylegan_di.training.optimize import apply_gradients, trainable
from stylegan_di.training.relativistic import RelativisticAdversary
from stylegan_di.training.schedule import annealing
from stylegan_di.training.transfer import new_parts, rebuilt

FIRST_BETA2 = 0.9  # where --anneal begins
CHANNELS_PER_GROUP = 8
EMBEDDING = 64  # length of the generator's embedded labels
BLOCKS, EXPANSION = 2, 2  # residual blocks of a stage, and how many times wider they are inside

Networks = tuple[r3gan.Generator, r3gan.Discriminator, r3gan.Generator]  # generator, discriminator, average


class R3GAN(GeneratorMethod):
    """Trains discriminator and generator by the relativistic loss, the discriminator with R1 and R2."""

    model: R3GANStudent

    def __init__(
        self, config: TrainConfig, device: torch.device, dataset: ImageDataset | None, networks: Networks
    ) -> None:
        """Takes a Method's arguments and the networks to train."""
        super().__init__(config, device, dataset)
        generator, discriminator, ema = networks
        self.model, self.ema = R3GANStudent(generator), R3GANStudent(ema)
        self.adversary = RelativisticAdversary(config, discriminator, self.model.img_resolution)
        self.prepare({"model": self.model, "ema": self.ema, **self.adversary.networks})
        self.state.optimizers[ROLE] = self.adversary.optimizer()

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> R3GAN:
        assert dataset is not None
        if config.resume is None:
            return cls(config, device, dataset, _new_networks(config, dataset))
        networks, notes = _opened(config.resume, dataset)
        method = cls(config, device, dataset, networks)
        method.notes = notes
        return method

    def step(self, batch: Batch, journal: Journal) -> None:
        """Updates the discriminator, then the generator, each with latents of its own."""
        self.set_schedules(batch.nimg)
        assert self.reals is not None
        reals = self.reals.take(batch)
        self.adversary.step(
            self.state, batch, reals, lambda chunk: self.sample(batch, chunk, "discriminator", reals), journal
        )
        self.generator_update(batch, reals, journal)

    def set_schedules(self, nimg: int) -> None:
        """Sets Adam's beta2 and the probability of augmentations after nimg images."""
        config = self.config
        beta2 = config.beta2
        if config.anneal:
            beta2 = FIRST_BETA2 + (beta2 - FIRST_BETA2) * annealing(nimg, config.anneal)
        for optimizer in self.state.optimizers.values():
            for group in optimizer.param_groups:
                group["betas"] = (group["betas"][0], beta2)
        self.adversary.set_probability(nimg)

    def sample(self, batch: Batch, chunk: range, purpose: str, reals: Reals) -> tuple[Tensor, Tensor | None]:
        """Generates images of fresh latents with the labels of the real images."""
        _, labels = reals(chunk)
        z = self.model.sample_latents(len(chunk), rng=batch.random(f"{purpose}/z", chunk))
        return self.model(z, labels), labels

    def generator_update(self, batch: Batch, reals: Reals, journal: Journal) -> None:
        """Updates the generator by the relativistic loss."""
        with trainable(self.model, train_mode=True):
            for chunk in batch.chunks:
                fakes, labels = self.sample(batch, chunk, "generator", reals)
                loss, logits = self.adversary.generator_loss(fakes, reals(chunk)[0], labels, batch, chunk)
                (loss.sum() / batch.local_size).backward()
                journal.scalars({"Loss/G/loss": loss.detach(), **judged("fake", logits)})
            journal.shared({"Gradient/model": apply_gradients(self.state, "model")})


def _new_networks(config: TrainConfig, dataset: ImageDataset) -> Networks:
    """Makes new networks for a data set; the discriminator's stages are the generator's in reverse."""
    resolutions = [r3gan.BASE * 2**level for level in range(dataset.resolution.bit_length() - 2)]
    widths = [min(config.cbase // resolution, config.cmax) for resolution in resolutions]
    groups = [_cardinality(width) for width in widths]
    conditional = dataset.label_dim > 0
    common: dict[str, Any] = dict(
        BlocksPerStage=[BLOCKS] * len(widths),
        ExpansionFactor=EXPANSION,
        c_dim=dataset.label_dim,
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
    )
    generator = r3gan.Generator(
        NoiseDimension=config.w_dim,
        WidthPerStage=widths,
        CardinalityPerStage=groups,
        FP16Stages=[-1 - index for index in range(config.fp16_res)],
        ConditionEmbeddingDimension=EMBEDDING if conditional else 0,
        **common,
    )
    discriminator = r3gan.Discriminator(
        WidthPerStage=widths[::-1],
        CardinalityPerStage=groups[::-1],
        FP16Stages=list(reversed(range(config.fp16_res))),
        ConditionEmbeddingDimension=widths[0] if conditional else 0,
        **common,
    )
    return generator, discriminator, copy.deepcopy(generator)


def _cardinality(width: int) -> int:
    """The number of groups of a width, of 8 channels if that divides it."""
    return next(n for n in range(max(width // CHANNELS_PER_GROUP, 1), 0, -1) if EXPANSION * width % n == 0)


def _opened(source: str, dataset: ImageDataset) -> tuple[Networks, tuple[str, ...]]:
    """Opens the networks of --resume's file, for the classes of the data; also says what of them is new.

    Raises:
        UserError: if it holds no R3GAN with its discriminator, or is for images of another shape.
    """
    networks = load_snapshot(zoo.TRANSFER_SOURCES.get(source, source)).networks
    generator, discriminator = networks.get("G"), networks.get("D")
    ema = networks.get("G_ema") or generator
    if not (
        isinstance(generator, r3gan.Generator)
        and isinstance(discriminator, r3gan.Discriminator)
        and isinstance(ema, r3gan.Generator)
    ):
        raise UserError(
            f"--resume={source}: --cfg=r3gan needs R3GAN's generator and discriminator, but the file's entries are "
            f"{', '.join(networks) or 'none'}; pass a .pkl of R3GAN, or choose another --cfg"
        )
    found, wanted = (generator.img_resolution, generator.img_channels), (dataset.resolution, dataset.num_channels)
    if found != wanted:
        raise UserError(
            f"--resume={source}: resolution and channels of its images are {found}, of those of --data {wanted}, and "
            "R3GAN's stages are laid out for its own; stylegan-di dataset makes data of another resolution "
            "(--resolution), gray or RGB (--channels)"
        )
    classes = dataset.label_dim

    def told(network: Any, embedding: int) -> tuple[Any, list[str]]:
        embedding = network.init_kwargs["ConditionEmbeddingDimension"] or embedding
        return rebuilt(network, c_dim=classes, ConditionEmbeddingDimension=embedding if classes else 0)

    generator, new_in_g = told(generator, EMBEDDING)
    discriminator, new_in_d = told(discriminator, discriminator.init_kwargs["WidthPerStage"][-1])
    notes = new_parts(generator=new_in_g, discriminator=new_in_d)
    return (generator, discriminator, told(ema, EMBEDDING)[0]), notes
