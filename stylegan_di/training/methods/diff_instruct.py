"""--kind=di: Diff-Instruct (Luo et al. 2023, arXiv 2305.18455, algorithm 1). A teacher instructs a generator.

The generator is a GAN to refine, or the teacher's own network to distil to one step. Beside the divergence there may be
an adversarial term of the GAN's own discriminator, which learns from real images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.diffusion import NOISE_LAWS
from stylegan_di.divergences import parse_divergence
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.presets import RECIPES
from stylegan_di.snapshots.checkpoint import as_denoiser, as_generator, load_snapshot
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.specs import parse
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.torch_utils.hashing import weights_hash
from stylegan_di.training import transfer
from stylegan_di.training.adversary import PIPE, ROLE, Adversary
from stylegan_di.training.batch import Batch, Reals, Samples, generated
from stylegan_di.training.instruction import Instruction
from stylegan_di.training.methods.base import Method, count_parameters
from stylegan_di.training.optimize import adam, apply_gradients, trainable

FAKE_LOSS, STUDENT_GRADIENT = "Loss/fake_score", "Gradient/student"


class DiffInstruct(Method):
    """Alternates the fake score's update, on the student's samples, with the student's, by a divergence's gradient."""

    watched: ClassVar[Mapping[str, float]] = {FAKE_LOSS: 100.0, STUDENT_GRADIENT: 1000.0}

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        dataset: ImageDataset | None,
        model: Generator,
        instructions: Sequence[Instruction],
        discriminator: torch.nn.Module | None = None,
    ) -> None:
        """As a Method, of a generator, what instructs it, and a GAN's discriminator, which config may train."""
        super().__init__(config, device, dataset)
        self.model, self.ema = model, copy.deepcopy(model)
        self.instructions = list(instructions)
        transfer.freeze(self.model, self.ema, config.freeze)
        self.adversary: Adversary | None = None
        networks: dict[str, torch.nn.Module] = {"model": self.model, "ema": self.ema}
        networks |= {each.role: each.fake_score for each in self.instructions}
        if discriminator is not None:
            networks[ROLE] = discriminator  # which a snapshot hands on, trained or not
        if config.trains_critic:
            assert discriminator is not None
            self.adversary = Adversary(config, discriminator, self.model.img_resolution)
            networks |= self.adversary.networks
        for each in self.instructions:
            self.inputs["teacher"] = f"weights with SHA-256 {weights_hash(each.teacher)}"
        scores = [network for each in self.instructions for network in (each.teacher, each.fake_score)]
        teachers = [each.teacher for each in self.instructions]
        self.prepare(networks, helpers=teachers, sharded=scores, compiled=[self.model, *scores])
        lr = config.fake_lr or config.lr
        for each in self.instructions:
            self.state.optimizers[each.role] = adam(each.fake_score, lr, beta1=config.beta1, beta2=config.beta2)
        if self.adversary is not None:
            self.state.optimizers[ROLE] = self.adversary.optimizer()
            self.state.totals |= self.adversary.totals(device)

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> DiffInstruct:
        teacher = None if config.teacher is None else as_denoiser(load_snapshot(config.teacher))
        model, discriminator = _student(config, teacher)
        instructions = [] if teacher is None else [instruction(config, teacher)]
        return cls(config, device, dataset, model, instructions, discriminator)

    def step(self, batch: Batch, journal: Journal) -> None:
        """Moves the fake scores, then, after the warm-up, the student, and last the discriminator."""
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
        if self.adversary is not None:
            assert reals is not None
            self.adversary.step(
                self.state, batch, reals, lambda chunk: generated(self.model, batch, chunk, "discriminator"), journal
            )

    def samples(self, batch: Batch) -> Samples | None:
        """The student's images of a step, made once for both updates: the fake score sees them without their graph.

        None if the step has several chunks, whose graphs are not to be kept: each update then makes the same images
        anew.
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
        """Moves an instruction's fake score by the loss for it on the student's samples, made here if not given.

        extra: tells the random numbers of further updates in a step from the first one's.
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
        """Moves the student by the weighted gradients of divergences and adversarial loss in its images.

        samples: with their graph, see `samples`; made here if not given.
        """
        critic = None if self.adversary is None else self.adversary.critic
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
                images.backward(total / batch.local_size)
            journal.shared({STUDENT_GRADIENT: apply_gradients(self.state, "model")})

    def running_means(self) -> list[Tensor]:
        return self.model.running_means()

    def shown(self) -> Generator:
        return self.ema

    def entries(self) -> dict[str, torch.nn.Module | None]:
        entries = self.ema.entries(self.model)
        own = {"D": self.state.networks.get(ROLE), "augment_pipe": self.state.networks.get(PIPE)}
        return entries | {name: network for name, network in own.items() if name in entries}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return self.ema.extras(data)

    def header(self) -> list[tuple[str, str]]:
        config, lines = self.config, super().header()
        for each in self.instructions:
            lines.append(("teacher", f"{config.teacher}, {count_parameters(each.teacher)}"))
            lines.append(("divergence", f"{config.divergence}, adversarial weight {config.adv_weight:g}"))
        if config.cfg is not None:
            lines.append(("recipe", f"{config.cfg}: {RECIPES[config.cfg].note(config.gan_pkl is not None)}"))
        return lines


def rms(gradient: Tensor) -> Tensor:
    """Root mean square over the elements of each sample, [n]."""
    return gradient.flatten(1).square().mean(dim=1).sqrt()


def _student(config: TrainConfig, teacher: Denoiser | None) -> tuple[Generator, torch.nn.Module | None]:
    """The generator to be trained, and the discriminator of its file."""
    if config.gan_pkl is None:
        assert teacher is not None
        return OneStepStudent.of_teacher(teacher, config.sigma_init), None
    snapshot = load_snapshot(config.gan_pkl)
    discriminator = snapshot.networks.get("D")
    if discriminator is None and config.trains_critic:
        raise UserError(
            f"--gan-pkl={config.gan_pkl} holds no discriminator 'D', which {config.wants_reals} needs; "
            "use the training's own .pkl, or leave that option out"
        )
    return as_generator(snapshot), discriminator


def instruction(config: TrainConfig, teacher: Denoiser) -> Instruction:
    """What a teacher instructs as configured, with a fake score that starts as its copy."""
    divergence = parse_divergence(config.divergence)
    assert divergence is not None
    return Instruction(
        teacher=teacher,
        space=Pixels(teacher.img_resolution, teacher.img_channels),
        fake_score=teacher.trainable_copy(),
        divergence=divergence,
        student_law=parse(config.noise_law, NOISE_LAWS, "--noise-law"),
        fake_law=parse(config.fake_noise_law, NOISE_LAWS, "--fake-noise-law"),
    )
