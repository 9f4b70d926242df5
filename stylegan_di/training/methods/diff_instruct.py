"""--kind=di: Diff-Instruct (Luo et al. 2023, arXiv 2305.18455, algorithm 1). A teacher instructs a generator.

The generator is a GAN to refine, or the teacher's own network to distil to one step. The GAN's own discriminator,
or a critic on the teacher's features, may add an adversarial term to the divergence.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.config import TrainConfig
from stylegan_di.critics import CRITIC_SPECS
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.diffusion import NOISE_LAWS
from stylegan_di.divergences import parse_divergence
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.presets import RECIPES
from stylegan_di.snapshots.checkpoint import as_generator, load_snapshot
from stylegan_di.snapshots.teacher_files import open_teacher
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.specs import parse
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.torch_utils.hashing import weights_hash
from stylegan_di.training import feature_adversary as critic
from stylegan_di.training import transfer
from stylegan_di.training.adversary import ROLE, Adversary
from stylegan_di.training.batch import Batch, Reals, Samples, generated
from stylegan_di.training.feature_adversary import FeatureAdversary
from stylegan_di.training.instruction import Instruction
from stylegan_di.training.methods.base import GeneratorMethod, count_parameters
from stylegan_di.training.optimize import adam, apply_gradients, trainable

FAKE_LOSS, STUDENT_GRADIENT = "Loss/fake_score", "Gradient/student"


class DiffInstruct(GeneratorMethod):
    """Alternates updates of the fake score, on the student's samples, and of the student, by the divergence."""

    watched: ClassVar[Mapping[str, float]] = {FAKE_LOSS: 100.0, STUDENT_GRADIENT: 1000.0}

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        dataset: ImageDataset | None,
        model: Generator,
        instructions: Sequence[Instruction],
        discriminator: torch.nn.Module | None = None,
        feature_adversary: FeatureAdversary | None = None,
    ) -> None:
        """Takes a Method's arguments, a generator, its instructions, its file's discriminator and a feature critic."""
        super().__init__(config, device, dataset)
        self.model, self.ema = model, copy.deepcopy(model)
        self.instructions = list(instructions)
        transfer.freeze(self.model, self.ema, config.freeze)
        self.adversary: Adversary | None = None
        networks: dict[str, torch.nn.Module] = {"model": self.model, "ema": self.ema}
        networks |= {each.role: each.fake_score for each in self.instructions}
        if discriminator is not None:
            networks[ROLE] = discriminator  # snapshots include it, trained or not
        if config.trains_critic:
            assert discriminator is not None
            self.adversary = Adversary(config, discriminator, self.model.img_resolution)
            networks |= self.adversary.networks
        self.feature_adversary = feature_adversary
        teachers = [each.teacher for each in self.instructions]
        if feature_adversary is not None:
            networks[critic.ROLE] = feature_adversary.critic.heads
            teachers.append(feature_adversary.critic.teacher)
        for teacher in teachers[:1]:
            self.inputs["teacher"] = f"weights with SHA-256 {weights_hash(teacher)}"
        scores = [network for each in self.instructions for network in (each.teacher, each.fake_score)]
        self.prepare(networks, helpers=teachers, sharded=scores, compiled=[self.model, *scores])
        lr = config.fake_lr or config.lr
        for each in self.instructions:
            self.state.optimizers[each.role] = adam(each.fake_score, lr, beta1=config.beta1, beta2=config.beta2)
        if self.adversary is not None:
            self.state.optimizers[ROLE] = self.adversary.optimizer()
            self.state.totals |= self.adversary.totals(device)
        if feature_adversary is not None:
            self.state.optimizers[critic.ROLE] = feature_adversary.optimizer()

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> DiffInstruct:
        teacher = None if config.teacher is None else open_teacher(config.teacher, config.teacher_options)
        if teacher is not None and teacher.space is not None:
            _check_latents(config)
        model, discriminator = _student(config, teacher)
        instructions = [] if teacher is None or config.divergence == "none" else [instruction(config, teacher)]
        adversary = None
        if config.critic != "none":
            assert teacher is not None
            law = "lognormal" if config.critic_noise_law == "none" else config.critic_noise_law
            spec = parse(config.critic, CRITIC_SPECS, "--critic")
            adversary = FeatureAdversary(spec, teacher, parse(law, NOISE_LAWS, "--critic-noise-law"))
        return cls(config, device, dataset, model, instructions, discriminator, adversary)

    def step(self, batch: Batch, journal: Journal) -> None:
        """Updates the fake scores, then the student if the warm-up is over, and last the discriminator."""
        config = self.config
        student_moves = self.state.cur_nimg >= config.fake_warmup * 1000
        reals = None if self.reals is None else self.reals.take(batch)
        with self.autocast():
            samples = self.samples(batch) if student_moves else None
            for each in self.instructions:
                for extra in range(config.fake_steps - 1):
                    self.fake_score_update(each, batch, journal, reals, None, f"/{extra}")
                self.fake_score_update(each, batch, journal, reals, samples)
            if student_moves:
                self.student_update(batch, journal, samples)

        def fakes(chunk: range) -> Samples:
            return generated(self.model, batch, chunk, "discriminator")

        for adversary in (self.adversary, self.feature_adversary):
            if adversary is not None:
                assert reals is not None
                adversary.step(self.state, batch, reals, fakes, journal)

    def samples(self, batch: Batch) -> Samples | None:
        """Generates a step's images once for both updates; the fake score sees them without their graph.

        Returns None if the step has several chunks, to save the memory of their graphs; each update then generates the
        same images again.
        """
        if len(batch.chunks) > 1:
            return None
        with trainable(self.model, train_mode=True):
            return generated(self.model, batch, batch.chunks[0], "student")

    def fake_score_update(
        self,
        to: Instruction,
        batch: Batch,
        journal: Journal,
        reals: Reals | None = None,
        samples: Samples | None = None,
        extra: str = "",
    ) -> None:
        """Updates an instruction's fake score by its loss on the student's samples, generated here if not given.

        extra: makes the random numbers of further updates in a step different from the first one's.
        """
        with trainable(to.fake_score, train_mode=False):
            for chunk in batch.chunks:
                with torch.no_grad():
                    images, labels = samples or generated(self.model, batch, chunk, "student" + extra)
                seen = reals(chunk) if reals is not None and to.divergence.needs_reals else None
                detached = images.detach(), labels
                loss, sigma = to.score_loss(detached, batch, chunk, to.role + extra, seen)
                (loss.sum() / batch.local_size).backward()
                journal.scalars({FAKE_LOSS: loss.detach()})
                journal.by_sigma(FAKE_LOSS, loss, sigma)
            journal.shared({"Gradient/fake_score": apply_gradients(self.state, to.role)})

    def student_update(self, batch: Batch, journal: Journal, samples: Samples | None = None) -> None:
        """Updates the student by the weighted gradients of divergences and adversarial loss in its images.

        samples: the result of `samples`, with its graph; generated here if not given.
        """
        judge = self.feature_adversary or self.adversary
        critic = None if judge is None else judge.critic
        with trainable(self.model, train_mode=True):
            for chunk in batch.chunks:
                images, labels = samples or generated(self.model, batch, chunk, "student")
                x = images.detach().requires_grad_()
                total = torch.zeros_like(images)
                for index, each in enumerate(self.instructions):
                    purpose = "divergence" + (f"/{index}" if index else "")
                    gradient, sigma = each.gradient(x, labels, batch, chunk, purpose, critic)
                    journal.by_sigma("Gradient/divergence_per_pixel", rms(gradient), sigma)
                    total = total + each.weight * gradient
                if self.adversary is not None and self.config.adv_weight:
                    logits = self.adversary.logits(x, labels, batch, chunk, "augment/student")
                    (gradient,) = torch.autograd.grad(loss_gan.generator_logistic(logits).sum(), x)
                    journal.scalars({"Gradient/adversarial_per_pixel": rms(gradient)})
                    total = total + self.config.adv_weight * gradient
                if self.feature_adversary is not None:
                    gradient = self.feature_adversary.gradient(x, labels, batch, chunk)
                    journal.scalars({"Gradient/critic_per_pixel": rms(gradient)})
                    total = total + gradient
                images.backward(total / batch.local_size)
            journal.shared({STUDENT_GRADIENT: apply_gradients(self.state, "model")})

    def header(self) -> list[tuple[str, str]]:
        config, lines = self.config, super().header()
        for each in self.instructions:
            lines.append(("teacher", f"{config.teacher}, {count_parameters(each.teacher)}"))
            lines.append(("divergence", f"{config.divergence}, adversarial weight {config.adv_weight:g}"))
        if self.feature_adversary is not None:
            heads = count_parameters(self.feature_adversary.critic.heads)
            lines.append(("critic", f"{config.critic}, {heads} on {config.teacher}, against {config.data}"))
        if config.cfg is not None:
            lines.append(("recipe", f"{config.cfg}: {RECIPES[config.cfg].note(config.gan_pkl is not None)}"))
        return lines


def rms(gradient: Tensor) -> Tensor:
    """Returns the root mean square over the elements of each sample, [n]."""
    return gradient.flatten(1).square().mean(dim=1).sqrt()


def _student(config: TrainConfig, teacher: Denoiser | None) -> tuple[Generator, torch.nn.Module | None]:
    """Returns the generator to train, and the discriminator of its file."""
    if config.gan_pkl is None:
        assert teacher is not None
        return OneStepStudent.of_teacher(teacher, config.sigma_init), None
    snapshot = load_snapshot(config.gan_pkl)
    return as_generator(snapshot), snapshot.networks.get("D")  # that it has one where it is needed, preflight checks


def _check_latents(config: TrainConfig) -> None:
    """Raises UserError for what a teacher that works on latents has no part in: it neither sees nor makes pixels."""
    latents = f"--teacher={config.teacher} works on an autoencoder's latents, and"
    if config.gan_pkl is None:
        raise UserError(f"{latents} a student makes images: give --gan-pkl, a GAN to refine")
    divergence = parse_divergence(config.divergence)
    if config.critic != "none" or (divergence is not None and divergence.needs_critic):
        option = f"--divergence={config.divergence}" if config.critic == "none" else f"--critic={config.critic}"
        raise UserError(f"{latents} {option} needs a critic that sees what the teacher sees: leave it out")


def instruction(config: TrainConfig, teacher: Denoiser) -> Instruction:
    """Makes the configured instruction of a teacher, with a copy of the teacher, or adapters on it, as fake score."""
    divergence = parse_divergence(config.divergence)
    assert divergence is not None
    rank = config.fake_rank
    return Instruction(
        teacher=teacher,
        space=teacher.space or Pixels(teacher.img_resolution, teacher.img_channels),
        fake_score=teacher.trainable_copy() if rank is None else teacher.adapted_copy(rank),
        divergence=divergence,
        student_law=parse(config.noise_law, NOISE_LAWS, "--noise-law"),
        fake_law=parse(config.fake_noise_law, NOISE_LAWS, "--fake-noise-law"),
    )
