"""--kind=di: Diff-Instruct (Luo et al. 2023, arXiv 2305.18455, algorithm 1). A teacher instructs a generator.

The generator is a GAN to refine, or the teacher's own network to distil to one step. The GAN's own discriminator,
or a critic on the teacher's features, may add an adversarial term to the divergence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import FRESH, samples_wanted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.headroom import WORSE, compare, look
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.networks.edm_layers import prepare_convolutions
from stylegan_di.presets import RECIPES
from stylegan_di.resolve import departure
from stylegan_di.snapshots.teachers import open_teachers
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.hashing import weights_hash
from stylegan_di.training import transfer
from stylegan_di.training.adversary import ROLE, Adversary
from stylegan_di.training.batch import Batch, RealImages, Reals, Samples, generated
from stylegan_di.training.denoising import new_network
from stylegan_di.training.feature_adversary import FeatureAdversary
from stylegan_di.training.instruction import FakePass, Instruction
from stylegan_di.training.methods.base import GeneratorMethod, count_parameters, drops_at_random
from stylegan_di.training.online_teacher import OnlineTeacher
from stylegan_di.training.optimize import adam, apply_gradients, trainable
from stylegan_di.training.student import open_student
from stylegan_di.training.teacher_reals import FreshSamples, kept_samples
from stylegan_di.training.whitening import whitened

FAKE_LOSS, STUDENT_GRADIENT = "Loss/fake_score", "Gradient/student"


class DiffInstruct(GeneratorMethod):
    """Alternates updates of the fake score, on the student's samples, and of the student, by the divergence."""

    watched: ClassVar[Mapping[str, float]] = {FAKE_LOSS: 100.0, STUDENT_GRADIENT: 1000.0}
    compares = True

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        dataset: ImageDataset | None,
        model: Generator,
        instructions: Sequence[Instruction],
        discriminator: torch.nn.Module | None = None,
        feature_adversary: FeatureAdversary | None = None,
        online: OnlineTeacher | None = None,
    ) -> None:
        """Takes a Method's arguments, a generator, its instructions, its file's discriminator, and what trains with it.

        feature_adversary: a critic on the teacher's features; online: the teacher, if it is trained on the way.
        """
        super().__init__(config, device, dataset)
        self.model, self.ema = model, copy.deepcopy(model)
        self.model.learns = True
        self.instructions = list(instructions)
        self.adversary: Adversary | None = None
        self.feature_adversary, self.online = feature_adversary, online
        transfer.freeze(self.model, self.ema, config.freeze)
        networks: dict[str, torch.nn.Module] = {"model": self.model, "ema": self.ema}
        networks |= {each.role: each.fake_score for each in self.instructions}
        if discriminator is not None:
            networks[ROLE] = discriminator  # snapshots include it, trained or not
        if config.trains_critic:
            assert discriminator is not None
            self.adversary = Adversary(config, discriminator, self.model.img_resolution)
        beside = [part for part in (self.adversary, feature_adversary, online) if part is not None]
        for part in beside:
            networks |= part.networks
        teachers = [each.teacher for each in self.instructions]
        if feature_adversary is not None:
            teachers.append(feature_adversary.critic.teacher)
        if online is None and teachers:
            hashes = [weights_hash(teacher) for teacher in dict.fromkeys(teachers)]
            self.inputs["teacher"] = f"weights with SHA-256 {', '.join(hashes)}"
        scores = [network for each in self.instructions for network in (each.teacher, each.fake_score)]
        self.prepare(networks, helpers=teachers, sharded=scores, compiled=[self.model, *scores])
        self.prepared = 0
        if config.winograd:
            self.prepared = sum(prepare_convolutions(teacher) for teacher in dict.fromkeys(teachers))
            if not self.prepared:
                raise UserError(f"--winograd: {config.teacher} has no layers of EDM's U-Nets: leave it out")
        lr = config.fake_lr or config.lr
        for each in self.instructions:
            self.state.optimizers[each.role] = adam(each.fake_score, lr, beta1=config.beta1, beta2=config.beta2)
        for part in beside:
            self.state.optimizers[part.role] = part.optimizer()
        if self.adversary is not None:
            self.state.totals |= self.adversary.totals(device)

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> DiffInstruct:
        online = None
        if config.trains_teacher:
            assert dataset is not None
            network = EDMTeacher(new_network(config, dataset))
            if config.checkpointing:
                network.checkpoint_activations()
            online = OnlineTeacher(config, network)
            teachers = [(1.0, cast("Denoiser", online.average))]
        else:
            teachers = [] if config.teacher is None else open_teachers(config.teacher, config.teacher_options)
            if any(teacher.space is not None for _, teacher in teachers):
                _check_latents(config)
        model, discriminator = open_student(config, teachers[0][1] if teachers else None)
        instructions = []
        if config.divergence != "none":
            for index, (weight, teacher) in enumerate(teachers):
                instructions.append(Instruction.configured(config, teacher, model.label_dim, weight, index))
        adversary = turns = None
        num = samples_wanted(config.data) if config.needs_data else None
        if num:  # drawn last, as it takes long: whatever is wrong with the networks is known
            dataset = kept_samples(config, teachers[0][1], num, device)
        if config.teacher_samples is not None:
            samples = kept_samples(config, teachers[0][1], config.teacher_samples, device)
            turns = RealImages(samples, config.workers)
        if config.critic != "none":
            adversary = FeatureAdversary.configured(config, teachers[0][1], model.label_dim, turns)
        method = cls(config, device, dataset, model, instructions, discriminator, adversary, online)
        if num == FRESH:
            method.reals = FreshSamples(teachers[0][1])
        return method

    def examine(self, evaluator: Evaluator | None = None, factor: float = WORSE) -> Iterator[tuple[str, str]]:
        """As a Method; factor: how many times as bad as the GAN the teacher must be to be hopeless."""
        if self.config.gan_pkl is None or self.online is not None:
            return
        seed = self.config.seed
        views = [(each.teacher, each.space, each.classes) for each in self.instructions]
        if self.feature_adversary is not None and not views:
            judge = self.feature_adversary
            views = [(judge.critic.teacher, judge.space, judge.classes)]
        for teacher, space, classes in views:
            found = look(self.model, teacher, space, classes, seed)
            yield self._judged(found.sentence(), found.problem())
        if evaluator is not None:
            figures = compare(evaluator, self.model.origin, [teacher for teacher, *_ in views], seed)
            yield self._judged(figures.sentence(), figures.problem(factor))

    def _judged(self, found: str, problem: str | None) -> tuple[str, str]:
        """A line of the header for what was found of the teacher.

        Raises:
            UserError: there is a problem, and no --force.
        """
        line = found if problem is None else f"{found}; {problem}"
        if problem is not None and not self.config.force:
            raise UserError(f"--teacher={self.config.teacher}: {line}; or start all the same with --force")
        return "headroom", line

    def phase(self) -> bool:
        """Whether the student moves: the warm-up is over."""
        return self.state.cur_nimg >= (self.config.teacher_warmup + self.config.fake_warmup) * 1000

    def due(self) -> tuple[bool, ...]:
        return () if self.adversary is None else self.adversary.due(self.state.cur_step)

    def hinders_graph(self) -> str:
        if self.adversary is not None:
            return "with a discriminator it has not been verified on a GPU"
        if self.online is not None:
            return "the average of the teacher on the way follows the images seen"
        if self.feature_adversary is not None and self.feature_adversary.turns is not None:
            return "real images and the teacher's samples take turns"
        return drops_at_random(self.model)

    def step(self, batch: Batch, journal: Journal) -> None:
        """Updates the fake scores, then the student if the warm-up is over, and last the discriminator."""
        config, student_moves = self.config, self.phase()
        reals = None if self.reals is None else self.reals.take(batch)
        if self.online is not None:
            assert reals is not None
            with self.autocast():
                self.online.step(self.state, batch, reals, journal)
            if self.online.warms_up(self.state.cur_nimg):
                return
            if self.online.ends_warmup(self.state.cur_nimg, batch.size):
                for each in self.instructions:
                    each.fake_score.load_state_dict(each.teacher.state_dict())
        with self.autocast():
            samples = self.samples(batch) if student_moves else None
            passes = []
            for each in self.instructions:
                for extra in range(config.fake_steps - 1):
                    self.fake_score_update(each, batch, journal, reals, None, f"/{extra}")
                passes.append(self.fake_score_update(each, batch, journal, reals, samples))
            if student_moves:
                self.student_update(batch, journal, samples, passes if config.one_noise else None)

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
    ) -> dict[range, FakePass]:
        """Updates an instruction's fake score by its loss on the student's samples, generated here if not given.

        extra: makes the random numbers of further updates in a step different from the first one's. Returns the fake
        score's passes, by chunk.
        """
        passes = {}
        with trainable(to.fake_score, train_mode=False):
            for chunk in batch.chunks:
                with torch.no_grad():
                    images, labels = samples or generated(self.model, batch, chunk, "student" + extra)
                seen = reals(chunk) if reals is not None and to.divergence.needs_reals else None
                detached = images.detach(), labels
                passes[chunk] = done = to.score_loss(detached, batch, chunk, to.role + extra, seen)
                (done.loss.sum() / batch.local_size).backward()
                journal.scalars({FAKE_LOSS: done.loss.detach()})
                journal.by_sigma(FAKE_LOSS, done.loss, done.sigma)
            journal.shared({"Gradient/fake_score": apply_gradients(self.state, to.role)})
        return passes

    def student_update(
        self,
        batch: Batch,
        journal: Journal,
        samples: Samples | None = None,
        passes: Sequence[Mapping[range, FakePass]] | None = None,
    ) -> None:
        """Updates the student by the weighted gradients of divergences and adversarial loss in its images.

        samples: the result of `samples`, with its graph; generated here if not given. passes: the fake scores' on these
        images, which then serve this update too (--one-noise).
        """
        judge = self.feature_adversary or self.adversary
        critic = None if judge is None else judge.critic
        with trainable(self.model, train_mode=True):
            for chunk in batch.chunks:
                images, labels = samples or generated(self.model, batch, chunk, "student")
                x = images.detach().requires_grad_()
                instructed = torch.zeros_like(images)
                for index, each in enumerate(self.instructions):
                    purpose = "divergence" + (f"/{index}" if index else "")
                    shared = None if passes is None else passes[index][chunk]
                    gradient, sigma = each.gradient(x, labels, batch, chunk, purpose, critic, shared)
                    journal.by_sigma("Gradient/divergence_per_pixel", rms(gradient), sigma)
                    instructed = instructed + each.weight * gradient
                total = instructed
                if self.adversary is not None and self.config.adv_weight:
                    logits = self.adversary.logits(x, labels, batch, chunk, "augment/student")
                    (gradient,) = torch.autograd.grad(loss_gan.generator_logistic(logits).sum(), x)
                    journal.scalars({"Gradient/adversarial_per_pixel": rms(gradient)})
                    total = total + self.config.adv_weight * gradient
                if self.feature_adversary is not None:
                    gradient, natural = self.feature_adversary.gradient(x, labels, batch, chunk, instructed)
                    journal.scalars({"Gradient/critic_per_pixel": rms(gradient)})
                    journal.scalars({"Gradient/critic_natural_per_pixel": rms(natural)})
                    total = total + gradient
                images.backward(whitened(total, self.config.whitening) / batch.local_size)
            journal.shared({STUDENT_GRADIENT: apply_gradients(self.state, "model")})

    def beside(self) -> dict[str, Mapping[str, torch.nn.Module]]:
        return {} if self.online is None else {"teacher": self.online.average.entries()}

    def header(self) -> list[tuple[str, str]]:
        config, lines = self.config, super().header()
        for each in self.instructions:
            share = f", weight {each.weight:g}" if len(self.instructions) > 1 else ""
            lines.append(("teacher", f"{config.teacher}, {count_parameters(each.teacher)}{share}"))
            lines += each.conversions(self.model)
            lines.append(("divergence", f"{config.divergence}, adversarial weight {config.adv_weight:g}"))
        if self.prepared:
            lines.append(("winograd", f"{self.prepared} convolutions of the teacher"))
        if self.feature_adversary is not None:
            heads = count_parameters(self.feature_adversary.critic.heads)
            beside = "" if config.teacher_samples is None else f" and {config.teacher_samples} samples of the teacher"
            lines.append(("critic", f"{config.critic}, {heads} on {config.teacher}, against {config.data}{beside}"))
        if config.cfg is not None:
            lines.append(("recipe", f"{config.cfg}: {RECIPES[config.cfg].note(config.use, departure(config))}"))
        return lines


def rms(gradient: Tensor) -> Tensor:
    """Returns the root mean square over the elements of each sample, [n]."""
    return gradient.flatten(1).square().mean(dim=1).sqrt()


def _check_latents(config: TrainConfig) -> None:
    """Raises UserError for what a teacher that works on latents has no part in: it neither sees nor makes pixels."""
    latents = f"--teacher={config.teacher} works on an autoencoder's latents, and"
    if config.gan_pkl is None:
        raise UserError(f"{latents} a student makes images: give --gan-pkl, a GAN to refine")
    if config.asks_discriminator:
        raise UserError(
            f"{latents} --divergence={config.divergence} asks the GAN's own discriminator, which sees pixels; add "
            "--critic=features"
        )
