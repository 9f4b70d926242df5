"""The loop: `step` is the updates of the run's kind plus EMA; `run` owns ticks, snapshots, metrics and the report."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan_di.data.sampler import iterate_batches
from stylegan_di.diffusion import LogNormalLaw, NoiseLaw, VELaw, VPLaw
from stylegan_di.images import from_uint8
from stylegan_di.interfaces import Generator
from stylegan_di.loss_di import parse_divergence
from stylegan_di.loss_gan import ada_adjust
from stylegan_di.random import SampleRandom
from stylegan_di.runs.endings import Interrupted, StopRequest, storage_errors
from stylegan_di.runs.folder import RunFolder
from stylegan_di.runs.keeper import Keeper
from stylegan_di.runs.statefile import State
from stylegan_di.snapshots.checkpoint import save_snapshot
from stylegan_di.students import StyleGAN2Student
from stylegan_di.torch_utils import distributed
from stylegan_di.training import updates, watch
from stylegan_di.training.build import Job, lr_scale, r1_gamma
from stylegan_di.training.ema import ema_beta, update_ema
from stylegan_di.training.evaluation import Evaluation
from stylegan_di.training.report import Clock, Statistics
from stylegan_di.training.state import Batch

W_AVG_SAMPLES = 4096  # latents over which a snapshot's w_avg is the mean
SKIPS_INTERVAL = 10  # steps between reads of which updates were left out
AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ADA_INTERVAL = 4  # steps between adjustments of p (arXiv 2006.06676, section 3)


class Trainer:
    """One training run.

    Args:
        job: networks, data and options.
        folder: where the run is written.
        evaluation: metrics and grids.
        stop: tells when to end early.
        saved: the state to go on from.
    """

    def __init__(
        self, job: Job, folder: RunFolder, evaluation: Evaluation, stop: StopRequest, saved: State | None = None
    ) -> None:
        self.job = job
        self.config = job.config
        self.state = job.state
        self.folder = folder
        self.evaluation = evaluation
        self.stop = stop
        self.report = Statistics()
        self.real_signs = Statistics()
        self.keeper = Keeper(job, folder, evaluation, self.report, self.real_signs)
        seconds = 0.0 if saved is None else self.keeper.restore(saved)
        self.total_nimg = round(self.config.kimg * 1000)
        self.clock = Clock(self.total_nimg, self.state.cur_nimg, seconds)
        share = self.config.batch // distributed.world_size()
        self.batch_gpu = min(self.config.batch_gpu or share, share)
        self.divergence = parse_divergence(self.config.divergence)
        self.noise_law = self.make_noise_law(self.config.P_mean, self.config.P_std)
        self.fake_noise_law = self.make_noise_law(self.config.fake_P_mean, self.config.fake_P_std)
        if job.dataset is not None:
            self.data = iterate_batches(
                job.dataset,
                seed=self.config.seed,
                nimg=self.state.cur_nimg,
                batch=self.config.batch,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                num_workers=self.config.workers,
            )

    def make_noise_law(self, P_mean: float, P_std: float) -> NoiseLaw:
        """What noise levels are trained at; of --kind=di those that the teacher knows."""
        if self.config.precond != "edm":
            return {"vp": VPLaw, "ve": VELaw}[self.config.precond]()
        if self.job.teacher is None:
            return LogNormalLaw(P_mean, P_std)
        return LogNormalLaw(P_mean, P_std, self.job.teacher.sigma_min, self.job.teacher.sigma_max)

    # The step.

    def step(self) -> None:
        """One step of the run's kind on the next `batch` images, then EMA."""
        batch = self.next_batch()
        self.set_learning_rates()
        {"edm": self.edm_step, "gan": self.gan_step, "di": self.di_step}[self.config.kind](batch)
        self.state.cur_nimg += batch.size
        self.state.cur_step += 1
        beta = ema_beta(
            batch.size, halflife_kimg=self.config.ema, rampup=self.config.ema_rampup, nimg=self.state.cur_nimg
        )
        update_ema(self.state.ema, self.state.model, beta)

    def autocast(self) -> torch.autocast:
        """Products and convolutions in --amp's type; weights move between passes, so no casts of them are kept."""
        dtype = AMP_TYPES.get(self.config.amp)
        return torch.autocast(self.job.device.type, dtype, enabled=dtype is not None, cache_enabled=False)

    def edm_step(self, batch: Batch) -> None:
        """Denoising loss on real images."""
        reals = self.reals(batch)
        with self.autocast():
            updates.denoiser_update(self.state, batch, reals, self.noise_law, self.config.label_dropout, self.report)

    def gan_step(self, batch: Batch) -> None:
        """Generator, discriminator and their lazy regularisations."""
        config, state = self.config, self.state
        updates.generator_update(state, batch, config.mixing, self.report)
        if config.pl_weight and state.cur_step % config.pl_interval == 0:
            updates.path_length_update(
                state, batch, config.mixing, config.pl_weight, 0.01, config.pl_interval, self.report
            )
        self.discriminator_step(
            batch, lambda chunk: updates.gan_images(state, batch, chunk, "discriminator", config.mixing)[::2]
        )

    def di_step(self, batch: Batch) -> None:
        """Fake score on the student's samples; then the student; with --adv-weight the discriminator."""
        config, state, teacher = self.config, self.state, self.job.teacher
        student_moves = state.cur_nimg >= config.fake_warmup * 1000
        with self.autocast():
            samples = updates.student_samples(state, batch) if student_moves else None
            if state.fake_score is not None:
                updates.fake_score_update(state, batch, self.fake_noise_law, self.report, samples)
            if student_moves:
                updates.student_update(
                    state, batch, teacher, self.divergence, self.noise_law, config.adv_weight, self.report, samples
                )
        if config.adv_weight:
            student = state.model
            assert isinstance(student, Generator)
            self.discriminator_step(
                batch, lambda chunk: updates.student_images(student, batch, chunk, "discriminator")
            )

    def discriminator_step(
        self, batch: Batch, fakes_of: Callable[[range], tuple[Tensor, Tensor | None]]
    ) -> None:
        """The discriminator's logistic loss, lazily R1, and ADA's control of p."""
        config, state = self.config, self.state
        reals = self.reals(batch)
        adaptive = config.aug == "ada" and state.augment_pipe is not None
        signs = self.real_signs if adaptive else Statistics()
        updates.discriminator_update(state, batch, reals, fakes_of, self.report, signs)
        gamma = r1_gamma(config, self.evaluation.resolution)
        if gamma and state.cur_step % config.r1_interval == 0:
            updates.r1_update(state, batch, reals, gamma, config.r1_interval, self.report)
        if adaptive and (state.cur_step + 1) % ADA_INTERVAL == 0:
            self.adjust_augmentation(batch.size * ADA_INTERVAL)

    def adjust_augmentation(self, images: int) -> None:
        """Moves p by ADA's rule."""
        signs = self.real_signs.drain_mean("Signs/real", self.config.target)
        distributed.average([signs])
        p: Tensor = self.state.augment_pipe.p  # type: ignore[union-attr, assignment]
        target, ada_kimg = self.config.target, self.config.ada_kimg
        p.copy_(ada_adjust(p, signs, target=target, images=images, ada_kimg=ada_kimg))
        self.report.add({"Progress/augment": p.clone()})

    # What a step needs.

    def next_batch(self) -> Batch:
        return Batch.of_step(
            seed=self.config.seed,
            nimg=self.state.cur_nimg,
            size=self.config.batch,
            batch_gpu=self.batch_gpu,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            device=self.job.device,
        )

    def reals(self, batch: Batch) -> updates.Reals:
        """The real images of a step, chunk by chunk: this process's share of the shuffled data set's next images."""
        dataset, device = self.job.dataset, self.job.device
        assert dataset is not None
        images, labels = next(self.data)
        first = batch.chunks[0].start

        def load(chunk: range) -> tuple[Tensor, Tensor | None]:
            part = slice(chunk.start - first, chunk.stop - first)
            return from_uint8(images[part].to(device)), labels[part].to(device) if dataset.label_dim else None

        return load

    def set_learning_rates(self) -> None:
        scale = lr_scale(self.config, self.state.cur_nimg)
        for optimizer in self.state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale

    # The run.

    def run(self) -> dict[str, Any]:
        """Trains to the end; returns what result.json holds.

        Raises:
            Interrupted: a signal asked to stop; the state is saved. Diverged: the training came apart.
        """
        state = self.state
        if self.keeper.saved is None:
            self.begin()
        while state.snapshot_due or state.cur_nimg < self.total_nimg:
            if state.snapshot_due:
                self.snapshot()
            else:
                self.step()
                self.after_step()
            if distributed.any_process(self.stop.requested):
                self.keeper.save(self.clock.elapsed())
                raise Interrupted(f"{self._stopped()}: the state is saved; go on with --resume={self.folder.path}")
        return self.evaluation.finish(self.clock.elapsed())

    def begin(self) -> None:
        """What is measured and shown before the first step."""
        with contextlib.suppress(Interrupted):
            self.evaluation.begin()
        if distributed.any_process(self.stop.requested):
            raise Interrupted(f"{self._stopped()}, before the first step: there is nothing to save; start it anew")

    def after_step(self) -> None:
        """What is due after a step: a tick, a judgement of how the training goes, a state."""
        config, state = self.config, self.state
        tick_nimg, done = config.tick * 1000, state.cur_nimg >= self.total_nimg
        is_tick = done or state.cur_nimg // tick_nimg > (state.cur_nimg - config.batch) // tick_nimg
        trouble = ""
        if is_tick or state.cur_step % SKIPS_INTERVAL == 0:
            trouble = self.judge_skips()
        if is_tick:
            state.cur_tick += 1
            trouble = distributed.broadcast_string(self.tick()) or trouble
        if trouble:
            self.keeper.return_to_best(trouble)
        if is_tick:
            state.snapshot_due = done or state.cur_tick % config.snap == 0
            if state.snapshot_due or state.cur_tick % config.state == 0:
                self.keeper.save(self.clock.elapsed())

    def judge_skips(self) -> str:
        """What is wrong with the updates left out, if anything is, after any of the steps since they were last read."""
        state = self.state
        state.note_skipped()
        steps = range(state.cur_step - SKIPS_INTERVAL + 1, state.cur_step + 1)
        judgements = (watch.skipped_too_often(state.skipped, step, self.config.max_skips) for step in steps)
        return next(filter(None, judgements), "")

    def tick(self) -> str:
        """One line to the log, one to stats.jsonl; returns what is wrong with the statistics, if anything is."""
        state = self.state
        state.average_w_avg()
        values = self.report.drain()
        if distributed.rank() != 0:
            return ""
        line = f"tick {state.cur_tick:<4d} kimg {state.cur_nimg / 1000:<8.1f} {self.clock.tick(state.cur_nimg)}"
        if state.augment_pipe is not None:
            line += f" augment {float(state.augment_pipe.p):.3f}"  # type: ignore[arg-type]
        if state.skipped:
            line += f" skipped updates {len(state.skipped)}"
        print(line, flush=True)
        trouble = watch.out_of_range(state.history, values)
        values["Progress/distance_from_start"] = self.evaluation.distance_from_start()
        values["Progress/skipped_updates"] = _scalar(len(state.skipped))
        self.folder.add_statistics(values | {"Progress/kimg": _scalar(state.cur_nimg / 1000)})
        return trouble

    def snapshot(self) -> None:
        """Weights, grid and metrics of the EMA; the best by the first metric is kept as network-best."""
        kimg = self.state.cur_nimg / 1000
        if distributed.rank() == 0:
            self.estimate_w_avg()
            try:
                metrics, is_best = self.evaluation.measure(kimg)
            except Interrupted:
                metrics, is_best = {}, False
            if not self.stop.requested:
                for path in [self.folder.snapshot_path(kimg)] + ([self.folder.best_path()] if is_best else []):
                    self.write_snapshot(path, metrics)
                if is_best:
                    self.keeper.keep_best()
        self.state.snapshot_due = distributed.any_process(self.stop.requested)

    def write_snapshot(self, path: Path, metrics: dict[str, float]) -> None:
        """The averaged weights, with what NVlabs' snapshots hold beside them and where they come from."""
        networks = self.evaluation.networks()
        modules = [network for network in networks.values() if isinstance(network, torch.nn.Module)]
        need = sum(value.nbytes for module in modules for value in module.state_dict().values())
        with storage_errors(path, need):
            save_snapshot(path, networks, extras=self.evaluation.extras(), metadata=self.provenance(metrics))

    def _stopped(self) -> str:
        return f"stopped by {self.stop.signal or 'a signal to another process'} at kimg {self.state.cur_nimg / 1000:g}"

    def estimate_w_avg(self) -> None:
        """Makes the average's w_avg that of its own mapping network; what it has from training is the model's."""
        if isinstance(self.state.ema, StyleGAN2Student):
            streams = range(W_AVG_SAMPLES)
            self.state.ema.estimate_w_avg(SampleRandom(self.config.seed, "w_avg", 0, streams, self.job.device))

    def provenance(self, metrics: dict[str, float]) -> dict[str, str | float]:
        """Where a snapshot comes from, as written into it."""
        config = self.config
        origin = {"command": " ".join(sys.argv), "kind": config.kind, "date": time.strftime("%Y-%m-%d")}
        named = {"teacher": config.teacher, "gan_pkl": config.gan_pkl, "data": config.data}
        return (
            origin
            | {key: value for key, value in named.items() if value}
            | {"seed": float(config.seed), "kimg": self.state.cur_nimg / 1000}
            | {f"metric/{name}": value for name, value in metrics.items()}
        )


def _scalar(value: float) -> dict[str, float]:
    return {"num": 1, "mean": value, "std": 0.0}
