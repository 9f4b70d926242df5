"""--track=wandb and --track=trackio: a run's reports in a tracker of experiments, which have one interface.

Where the reports go, the trackers' own variables say, as WANDB_MODE=offline, WANDB_PROJECT, TRACKIO_DIR. A run that is
resumed goes on as the same run there.
"""

from __future__ import annotations

import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from stylegan_di.dnnlib.untrusted import brief, read_json_file, untrusted
from stylegan_di.dnnlib.util import UserError, atomic_write, say
from stylegan_di.images import tile, to_picture
from stylegan_di.journal.sinks import Sink

PROJECT = "stylegan-di"
KIMG = "Progress/kimg"
MAX_IDENTITY = 1000  # bytes of its file


class Tracker(Sink, ABC):
    """Logs means of statistics, metrics as Metrics/<name>, and grids of images, each with its kimg.

    A tracker that fails later on, as without a connection, does not end the training: a line says so once.
    """

    name: str  # of the package

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._kimg = 0.0
        self._has_failed = False
        options = json.loads((folder / "training_options.json").read_text(encoding="utf-8"))
        try:
            self.run: Any = self.start(options, identity(folder / f"{self.name}.json"))
        except Exception as error:  # of accounts, servers, disks: they have no base in common
            raise UserError(f"--track={self.name}: it cannot be started ({brief(error)}); {self.remedy}") from error

    #: What to do about a tracker that cannot be started.
    remedy: str

    @abstractmethod
    def start(self, options: Mapping[str, Any], identity: str) -> Any:
        """Begins or continues the run of an identity; returns its handle, with the method `log`."""

    @abstractmethod
    def picture(self, image: Image.Image) -> Any:
        """Wraps an image for `log`."""

    @abstractmethod
    def finish(self, ending: str) -> None:
        """Ends the tracker's run."""

    def log(self, values: Mapping[str, Any]) -> None:
        with self._goes_on():
            self.run.log({**values, KIMG: self._kimg})

    def close(self, ending: str) -> None:
        with self._goes_on():
            self.finish(ending)

    @contextmanager
    def _goes_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # see above
            if not self._has_failed:
                say(f"--track={self.name}: it does not take reports ({brief(error)}); the training goes on without it")
            self._has_failed = True

    def scalars(self, values: Mapping[str, Mapping[str, float]]) -> None:
        self._kimg = values[KIMG]["mean"]
        self.log({name: value["mean"] for name, value in values.items()})

    def table(self, name: str, row: Mapping[str, Any]) -> None:
        self.log({f"Metrics/{figure}": value for figure, value in row.get("results", {}).items()})

    def images(self, name: str, images: Tensor, columns: int) -> None:
        """Logs the grids of all snapshots as one series of pictures, 'fakes'."""
        series = "fakes" if name.startswith("fakes") else name
        self.log({series: self.picture(to_picture(tile(images, columns)))})


class WandB(Tracker):
    """Weights & Biases (its client: MIT)."""

    name = "wandb"
    remedy = "log in with `wandb login`, or set WANDB_MODE=offline and send the run later with `wandb sync`"

    def start(self, options: Mapping[str, Any], identity: str) -> Any:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=self.folder.name, id=identity, resume="allow",
            dir=str(self.folder), config=dict(options), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        run.define_metric("*", step_metric=KIMG)
        return run

    def picture(self, image: Image.Image) -> Any:
        import wandb

        return wandb.Image(image)

    def finish(self, ending: str) -> None:
        self.run.summary["ending"] = ending
        self.run.finish(exit_code=int(ending != "complete"))


class Trackio(Tracker):
    """Trackio (MIT), which keeps its runs on this machine: `trackio show --project stylegan-di`."""

    name = "trackio"
    remedy = "set TRACKIO_DIR to a folder that can be written"

    def start(self, options: Mapping[str, Any], identity: str) -> Any:
        import trackio

        name = f"{self.folder.name}-{identity}"  # runs of other folders may have the same name
        return trackio.init(project=PROJECT, name=name, config=dict(options), resume="allow", embed=False)

    def picture(self, image: Image.Image) -> Any:
        import trackio

        return trackio.Image(image)

    def finish(self, ending: str) -> None:
        self.run.finish()


def identity(path: Path) -> str:
    """Returns what a run is known by to a tracker: that in the run's file, which is written if it is not there."""
    if not path.exists():
        atomic_write(path, (json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n").encode())
    remedy = "Remove it: the tracker then begins a new run."
    with untrusted(str(path), remedy=remedy):
        found = str(read_json_file(path, MAX_IDENTITY)["id"])
        if not found.isalnum():
            raise ValueError(f"id={found[:40]}")
        return found
