"""What a run goes on from: its state is put on disk, taken up again, and gone back to when the training comes apart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from stylegan_di.runs import statefile
from stylegan_di.runs.endings import Diverged
from stylegan_di.runs.folder import RunFolder
from stylegan_di.runs.resume import check_inputs, config_hash
from stylegan_di.torch_utils import distributed
from stylegan_di.training.build import Job
from stylegan_di.training.evaluation import Evaluation
from stylegan_di.training.report import Statistics
from stylegan_di.training.state import below

MAX_RETURNS = 3  # to the best snapshot, by --on-divergence=best


class Keeper:
    """Keeps a run's training states.

    Args:
        job: networks, data and options.
        folder: where the run is written.
        evaluation: what was measured so far.
        report: statistics since the last tick.
        real_signs: signs of D(real) since ADA's p was last moved.
    """

    def __init__(
        self, job: Job, folder: RunFolder, evaluation: Evaluation, report: Statistics, real_signs: Statistics
    ) -> None:
        self.job = job
        self.folder = folder
        self.evaluation = evaluation
        self.report = report
        self.real_signs = real_signs
        self.saved: Path | None = None  # the newest state on disk

    def save(self, seconds: float) -> None:
        """Writes the training state and removes all but the last few; every process must call this.

        Args:
            seconds: that the run has taken so far.
        """
        state = self.job.state
        path = self.folder.state_path(state.cur_nimg)
        if path == self.saved:
            return
        state.average_w_avg()
        tensors = state.tensors()
        tensors |= {f"real_signs.{name}": distributed.gather(v) for name, v in self.real_signs.tensors().items()}
        self.saved = path
        if distributed.rank() != 0:
            return
        tensors |= {f"report.{name}": values for name, values in self.report.tensors().items()}
        tensors |= self.evaluation.tensors()
        values = {
            "state": state.values(), "evaluation": self.evaluation.values(), "inputs": self.job.inputs,
            "line_files": self.folder.line_files(), "seconds": seconds,
        }  # fmt: skip
        config = self.job.config
        statefile.save_state(path, tensors, values, asdict(config), config_hash(config))
        statefile.prune(self.folder.path, path)

    def restore(self, saved: statefile.State) -> float:
        """Takes up a training state; returns the seconds that the run has taken so far.

        Raises:
            UserError: the teacher or the data set is another than when the run began.
        """
        tensors, values, device = saved.tensors, saved.values, self.job.device
        check_inputs(values["inputs"], self.job.inputs)
        self.job.state.load_tensors(tensors)
        self.job.state.load_values(values["state"])
        signs = below("real_signs", tensors).items()
        share = distributed.rank(), distributed.world_size()
        self.real_signs.restore({name: v.tensor_split(share[1])[share[0]] for name, v in signs}, device)
        if distributed.rank() == 0:
            self.report.restore(below("report", tensors), device)
            self.evaluation.restore(values["evaluation"], tensors)
            self.folder.cut_line_files(values["line_files"])
        self.saved = saved.path
        return float(values["seconds"])

    def keep_best(self) -> None:
        """Notes that the newest state is that of the best snapshot, for --on-divergence=best."""
        if self.job.config.on_divergence == "best":
            assert self.saved is not None
            statefile.keep_best(self.saved, self.folder.best_state_path())

    def return_to_best(self, trouble: str) -> None:
        """Returns to the networks and optimizers of the best snapshot (--on-divergence=best), or ends the run.

        The count of images goes on, so that the random numbers are others than when the training came apart.

        Raises:
            Diverged: there is nothing to return to, or it has been returned to MAX_RETURNS times.
        """
        config, state, best = self.job.config, self.job.state, self.folder.best_state_path()
        where = f"the training came apart at kimg {state.cur_nimg / 1000:g}: {trouble}"
        if config.on_divergence == "abort" or not best.is_file():
            raise Diverged(
                f"{where}. Snapshots and states in {self.folder.path} are from before; use network-best, or start "
                "again with lower learning rates (--lr, --fake-lr, --dlr), or with --on-divergence=best"
            )
        if state.returns == MAX_RETURNS:
            raise Diverged(f"{where}, after {MAX_RETURNS} returns to the best snapshot; lower the learning rates")
        saved = statefile.load_state(best)
        state.load_tensors(saved.tensors)
        state.returns += 1
        state.undecided.clear()
        state.skipped.clear()
        state.history.clear()
        if distributed.rank() == 0:
            kimg = saved.values["state"]["cur_nimg"] / 1000
            print(f"{where}; back to the best snapshot, kimg {kimg:g} ({state.returns} of {MAX_RETURNS})", flush=True)
