"""The training loop: each step is the method's plus EMA; the loop adds ticks, snapshots, metrics and states."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.journal.clock import Clock
from stylegan_di.journal.journal import Journal
from stylegan_di.journal.resources import estimate, resources
from stylegan_di.random import SampleRandom
from stylegan_di.runs import statefile
from stylegan_di.runs.endings import Diverged, Interrupted, StopRequest, storage_errors
from stylegan_di.runs.folder import RunFolder
from stylegan_di.runs.resume import check_inputs, config_hash
from stylegan_di.snapshots.checkpoint import save_snapshot
from stylegan_di.students.stylegan2 import W_AVG_SAMPLES
from stylegan_di.torch_utils import distributed
from stylegan_di.training import watch
from stylegan_di.training.batch import Batch
from stylegan_di.training.evaluation import Evaluation
from stylegan_di.training.graphs import StepGraph, wanted
from stylegan_di.training.methods.base import Method
from stylegan_di.training.schedule import annealing, ema_beta, lr_scale, update_ema
from stylegan_di.training.state import TrainState

SKIPS_INTERVAL = 10  # steps between checks for skipped updates
TRIED = range(5, 10)  # steps by which the time of a run is estimated; earlier ones choose algorithms and make graphs
MAX_RETURNS = 3  # returns to the best snapshot with --on-divergence=best
ANNEALED_LR = 0.25  # the factor on learning rates where --anneal ends


class Trainer:
    """One training run, from the state `saved` where it resumes; `stop` says when to end early."""

    def __init__(
        self,
        method: Method,
        folder: RunFolder,
        evaluation: Evaluation,
        journal: Journal,
        stop: StopRequest,
        saved: statefile.State | None = None,
    ) -> None:
        self.method = method
        self.method_step = StepGraph(method).step if wanted(method) else method.step
        self.config = method.config
        self.state = method.state
        self.folder = folder
        self.evaluation = evaluation
        self.journal = journal
        self.stop = stop
        #: What a training state holds the tensors and values of.
        self.kept: dict[str, TrainState | Evaluation | Journal] = {
            "state": self.state, "evaluation": evaluation, "journal": journal
        }  # fmt: skip
        self.saved: Path | None = None  # the newest state on disk
        self.tries = 0  # steps so far that are like those of the rest of the run
        self.tried = 0.0  # what the clock said when those began by which its time is estimated
        seconds = 0.0 if saved is None else self.restore(saved)
        self.total_nimg = round(self.config.kimg * 1000)
        self.clock = Clock(self.total_nimg, self.state.cur_nimg, seconds)
        share = self.config.batch // distributed.world_size()
        self.batch_gpu = min(self.config.batch_gpu or share, share)

    def step(self) -> None:
        """Runs the method's step on the next `batch` images, then updates the EMA."""
        config, state = self.config, self.state
        batch = Batch.of_step(
            seed=config.seed,
            nimg=state.cur_nimg,
            size=config.batch,
            batch_gpu=self.batch_gpu,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            device=self.method.device,
        )
        scale = lr_scale(state.cur_nimg, kimg=config.kimg, rampup=config.lr_rampup, decay=config.lr_decay)
        scale *= 1 - (1 - ANNEALED_LR) * annealing(state.cur_nimg, config.anneal)
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
        self.method_step(batch, self.journal)
        state.cur_nimg += batch.size
        state.cur_step += 1
        halflife = config.ema * (annealing(state.cur_nimg, config.anneal) if config.anneal else 1)
        beta = ema_beta(batch.size, halflife_kimg=halflife, rampup=config.ema_rampup, nimg=batch.nimg)
        update_ema(state.networks["ema"], state.networks["model"], beta)

    def run(self) -> dict[str, Any]:
        """Trains to the end; returns the contents of result.json.

        Raises:
            Interrupted: if a signal stopped the run; the state is saved.
            Diverged: if the training diverged.
        """
        state = self.state
        if self.saved is None:
            with self.clock.maintenance():
                self.begin()
        while state.snapshot_due or state.cur_nimg < self.total_nimg:
            if state.snapshot_due:
                with self.clock.maintenance():
                    self.snapshot()
            else:
                warms_up = self.method.phase() is False
                self.step()
                self.journal.live(self.clock.live(state.cur_nimg))
                if not warms_up:
                    self.estimate()
                self.after_step()
            if distributed.any_process(self.stop.requested):
                self.save()
                raise Interrupted(f"{self._stopped()}: the state is saved; continue with --resume={self.folder.path}")
        return self.evaluation.finish(self.clock.elapsed())

    def estimate(self) -> None:
        """Says after some steps what time and memory the run takes from the first of them on, without metrics.

        These are the first steps of a run, or after its warm-up, or since it was resumed.
        """
        self.tries += 1
        batch, device = self.config.batch, self.method.device
        if self.tries in (TRIED.start, TRIED.stop) and device.type == "cuda":
            torch.cuda.synchronize(device)
        if self.tries == TRIED.start:
            self.tried = self.clock.trained()
        if self.tries == TRIED.stop and distributed.rank() == 0:
            seconds = (self.clock.trained() - self.tried) / len(TRIED) / batch * 1000
            kimg = (self.total_nimg - self.state.cur_nimg + TRIED.stop * batch) / 1000
            self.journal.say(f"estimate        {estimate(seconds, kimg, device)}")

    def begin(self) -> None:
        with contextlib.suppress(Interrupted, distributed.Abandoned):
            self.evaluation.begin()
            self.journal.snapshot()
        if distributed.any_process(self.stop.requested):
            raise Interrupted(f"{self._stopped()}, before the first step: there is nothing to save; start it again")

    def save(self) -> None:
        """Writes the training state and removes all but the last few; every process must call this."""
        distributed.average(self.method.running_means())
        config, folder, path = self.config, self.folder, self.folder.state_path(self.state.cur_nimg)
        if path == self.saved:
            return
        tensors = {name: tensor for part in self.kept.values() for name, tensor in part.tensors().items()}
        self.saved = path
        if distributed.rank() != 0:
            return
        values: dict[str, Any] = {name: part.values() for name, part in self.kept.items()}
        values |= {"inputs": self.method.inputs, "line_files": folder.line_files(), "seconds": self.clock.elapsed()}
        values["started_in"] = os.getcwd()  # which relative paths are relative to
        statefile.save_state(path, tensors, values, asdict(config), config_hash(config))
        statefile.prune(folder.path, path)

    def restore(self, saved: statefile.State) -> float:
        """Restores a training state; returns the seconds that the run had taken.

        Raises:
            UserError: if the teacher or the data set has changed since the run began, or the state was altered.
        """
        with untrusted(str(saved.path), remedy="Pass a training state that stylegan-di train wrote."):
            check_inputs(saved.values["inputs"], self.method.inputs)
            seconds = float(saved.values["seconds"])
            if not 0 <= seconds < 1e12:
                raise ValueError(f"seconds of {seconds}")
            for name, part in self.kept.items():
                part.restore(saved.values[name], saved.tensors)
            if distributed.rank() == 0:
                self.folder.cut_line_files(saved.values["line_files"])
        self.saved = saved.path
        return seconds

    def after_step(self) -> None:
        """Does what is due after a step: a tick, a check for divergence, a state."""
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
            self.return_to_best(trouble)
        if is_tick:
            state.snapshot_due = done or state.cur_tick % config.snap == 0
            if state.snapshot_due or state.cur_tick % config.state == 0:
                with self.clock.maintenance():
                    self.save()

    def judge_skips(self) -> str:
        """Returns a diagnosis if too many updates were skipped within any window that ended since the last check."""
        state = self.state
        state.note_skipped()
        steps = range(state.cur_step - SKIPS_INTERVAL + 1, state.cur_step + 1)
        judgements = (watch.skipped_too_often(state.skipped, step, self.config.max_skips) for step in steps)
        return next(filter(None, judgements), "")

    def tick(self) -> str:
        """Reports a line and all processes' statistics; returns a diagnosis if a watched one left its range."""
        state = self.state
        distributed.average(self.method.running_means())
        values = self.journal.drain()
        if distributed.rank() != 0:
            return ""
        timing = self.clock.tick(state.cur_nimg)
        line = f"tick {state.cur_tick:<4d} kimg {state.cur_nimg / 1000:<8.1f} {self.clock.line(state.cur_nimg)}"
        if "Progress/augment" in values:
            line += f" augment {values['Progress/augment']['mean']:.3f}"
        if state.skipped:
            line += f" skipped updates {len(state.skipped)}"
        self.journal.say(line)
        trouble = watch.out_of_range(state.history, values, self.method.watched)
        values["Progress/distance_from_start"] = self.evaluation.distance_from_start()
        progress = {"tick": state.cur_tick, "kimg": state.cur_nimg / 1000, "skipped_updates": len(state.skipped)}
        once = {f"Progress/{name}": value for name, value in progress.items()} | timing | resources()
        values |= {name: {"num": 1, "mean": value, "std": 0.0} for name, value in once.items()}
        self.journal.tick(values)
        return trouble

    def return_to_best(self, trouble: str) -> None:
        """Returns to the networks and optimizers of the best snapshot (--on-divergence=best), or ends the run.

        The count of images is kept, so that the random numbers differ from those of the diverged training.

        Raises:
            Diverged: if there is no best state, or the run has returned to it MAX_RETURNS times.
        """
        state, best_path = self.state, self.folder.best_state_path()
        best = None
        if self.config.on_divergence == "best" and best_path.is_file():
            best = statefile.load_state(best_path)
        where = f"the training diverged at kimg {state.cur_nimg / 1000:g}: {trouble}"
        if best is None:
            raise Diverged(
                f"{where}. Snapshots and states in {self.folder.path} are older; use network-best, or start "
                "again with lower learning rates (--lr, --fake-lr, --dlr), or with --on-divergence=best"
            )
        if state.returns == MAX_RETURNS:
            raise Diverged(f"{where}, after {MAX_RETURNS} returns to the best snapshot; lower the learning rates")
        with untrusted(str(best_path)):
            state.recover(best.tensors)
            kimg = best.values["state"]["cur_nimg"] / 1000
        self.journal.say(f"{where}; back to the best snapshot, kimg {kimg:g} ({state.returns} of {MAX_RETURNS})")

    def snapshot(self) -> None:
        """Evaluates and writes the average; the best by the first metric is also written as network-best."""
        kimg = self.state.cur_nimg / 1000
        streams = SampleRandom(self.config.seed, "w_avg", 0, range(W_AVG_SAMPLES), self.method.device)
        self.evaluation.generator.settle(streams)
        try:
            metrics, is_best = self.evaluation.measure(kimg)
        except (Interrupted, distributed.Abandoned):
            return  # the snapshot is still due
        if distributed.rank() == 0:
            for path in [self.folder.snapshot_path(kimg)] + ([self.folder.best_path()] if is_best else []):
                self.write_snapshot(path, metrics, self.method.entries(), self.method.extras)
            for name, networks in self.method.beside().items():
                self.write_snapshot(self.folder.beside_path(name), {}, networks, lambda data: {"dataset_kwargs": data})
            if is_best and self.config.on_divergence == "best":
                assert self.saved is not None
                statefile.keep_best(self.saved, self.folder.best_state_path())
        self.journal.snapshot()
        self.state.snapshot_due = False

    def write_snapshot(
        self,
        path: Path,
        metrics: dict[str, float],
        networks: Mapping[str, torch.nn.Module | None],
        extras: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Writes networks, the other entries of NVlabs' snapshots for a description of the data, and the provenance."""
        config = self.config
        data: dict[str, Any] = {
            "class_name": "training.dataset.ImageFolderDataset", "path": config.data, "use_labels": config.cond,
            "max_size": config.subset, "xflip": config.mirror, "resolution": self.evaluation.generator.img_resolution,
        }  # fmt: skip
        entries = extras(data) | self.method.label_entry()
        if config.data is None or samples_wanted(config.data) is not None:  # no data set that NVlabs' tools could open
            entries |= {name: None for name in ("training_set_kwargs", "dataset_kwargs") if name in entries}
        modules = [network for network in networks.values() if network is not None]
        need = sum(value.nbytes for module in modules for value in module.state_dict().values())
        with storage_errors(path, need):
            save_snapshot(path, networks, extras=entries, metadata=self.provenance(metrics))

    def _stopped(self) -> str:
        return f"stopped by {self.stop.signal or 'a signal to another process'} at kimg {self.state.cur_nimg / 1000:g}"

    def provenance(self, metrics: dict[str, float]) -> dict[str, str | float]:
        config = self.config
        origin = {"command": " ".join(sys.argv), "kind": config.kind, "date": time.strftime("%Y-%m-%d")}
        named = {"teacher": config.teacher, "gan_pkl": config.gan_pkl, "data": config.data}
        return (
            origin
            | {key: value for key, value in named.items() if value}
            | {"seed": float(config.seed), "kimg": self.state.cur_nimg / 1000}
            | {f"metric/{name}": value for name, value in metrics.items()}
        )
