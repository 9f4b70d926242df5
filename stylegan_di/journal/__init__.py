"""Reports of a run: statistics of its steps, pictures and tables, sent to a list of sinks."""

from __future__ import annotations

from stylegan_di.journal.report import Report
from stylegan_di.journal.sinks import Console, JSONLines, Pictures, Sink
from stylegan_di.journal.tensorboard import TensorBoard
from stylegan_di.journal.trackers import Trackio, WandB

#: The sinks of every run, by name.
SINKS: dict[str, type[Sink]] = {"console": Console, "jsonl": JSONLines, "pictures": Pictures, "report": Report}

#: Those of --track, by its values (`config.Tracker`).
TRACKERS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
