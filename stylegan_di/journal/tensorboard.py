"""--track=tensorboard: statistics and metrics as TensorBoard's events, with the names and steps of stylegan2-ada's.

    tensorboard --logdir=runs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylegan_di.journal.sinks import Sink


class TensorBoard(Sink):
    """Writes events.out.tfevents.* into the run's folder; a step is a kimg."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))
        self._kimg = 0

    def scalars(self, values: Mapping[str, Mapping[str, float]]) -> None:
        self._kimg = int(values["Progress/kimg"]["mean"])
        for name, value in values.items():
            self._writer.add_scalar(name, value["mean"], global_step=self._kimg)
        self._writer.flush()

    def table(self, name: str, row: Mapping[str, Any]) -> None:
        for figure, value in row.get("results", {}).items():
            self._writer.add_scalar(f"Metrics/{figure}", value, global_step=self._kimg)
        self._writer.flush()

    def close(self, ending: str) -> None:
        self._writer.close()
