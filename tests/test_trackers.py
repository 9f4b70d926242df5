"""--track: what TensorBoard, Weights & Biases and Trackio hold of a run; a test skips where its tracker is missing."""

from __future__ import annotations

import json
import sqlite3
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from stylegan_di import preflight
from stylegan_di.config import TrainConfig
from stylegan_di.config.fields import Tracker
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal import TRACKERS
from stylegan_di.journal.sinks import Sink
from stylegan_di.journal.trackers import identity

VALUES: tuple[Tracker, ...] = get_args(Tracker)
PIXELS = torch.zeros([4, 3, 8, 8], dtype=torch.uint8)


def tracker(name: Tracker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sink:
    """A tracker of a run in a folder, that keeps everything in the folder above; pytest skips where it is missing."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(folder.parent / "trackio"))
    folder.mkdir(exist_ok=True)
    options = asdict(TrainConfig("edm", data="x.zip", track=(name,)))
    (folder / "training_options.json").write_text(json.dumps(options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages themselves
        pytest.importorskip(name, exc_type=ImportError)
        return TRACKERS[name](folder)


def report(sink: Sink, kimg: float) -> None:
    """What a run reports at a tick and its snapshot."""
    values = {"Progress/kimg": kimg, "Loss/loss": 1 / kimg}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink.scalars({name: {"num": 1, "mean": value, "std": 0.0} for name, value in values.items()})
        sink.images(f"fakes{int(kimg):06d}", PIXELS, 2)
        sink.table("metric-fd_fashion", {"results": {"fd_fashion": 10 / kimg}, "metric": "fd_fashion"})


def test_the_table_has_what_the_option_accepts() -> None:
    assert tuple(TRACKERS) == VALUES


@pytest.mark.parametrize("name", VALUES)
def test_a_missing_package_is_told_before_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda package: None)
    config = TrainConfig("di", gan_pkl="fashion-gan.pkl", teacher="fashion-teacher.pkl", metrics=(), track=(name,))
    with pytest.raises(UserError, match=f"--track={name} needs the package {name}, which is not installed"):
        preflight.check(config, processes=1, fetch=False)


def test_an_unknown_tracker_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="--track=wanbd: accepted are tensorboard, wandb, trackio; did you mean wandb"):
        TrainConfig("edm", data="x.zip", track=("wanbd",))  # type: ignore[arg-type]


def test_a_run_keeps_its_identity(tmp_path: Path) -> None:
    first = identity(tmp_path / "wandb.json")
    assert identity(tmp_path / "wandb.json") == first != identity(tmp_path / "trackio.json")
    (tmp_path / "wandb.json").write_text('{"id": "../x"}')
    with pytest.raises(UserError, match=r"wandb\.json: .*Remove it"):
        identity(tmp_path / "wandb.json")


def test_tensorboard_has_the_lineages_tags_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = tracker("tensorboard", tmp_path / "run", monkeypatch)
    for kimg in (1.9, 4.0):
        report(sink, kimg)
    sink.close("complete")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events: Any = EventAccumulator(str(tmp_path / "run"))
        events.Reload()
    assert set(events.Tags()["scalars"]) == {"Progress/kimg", "Loss/loss", "Metrics/fd_fashion"}
    assert [event.step for event in events.Scalars("Loss/loss")] == [1, 4]
    assert [event.value for event in events.Scalars("Metrics/fd_fashion")] == pytest.approx([10 / 1.9, 2.5])


def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = tracker("wandb", tmp_path / "run", monkeypatch)
    for kimg in (2.0, 4.0):
        report(sink, kimg)
    summary: Any = sink.run.summary  # type: ignore[attr-defined]
    assert (summary["Loss/loss"], summary["Metrics/fd_fashion"], summary["Progress/kimg"]) == (0.25, 2.5, 4.0)
    run: Any = sink.run  # type: ignore[attr-defined]
    assert (run.project, run.name, run.offline, run.config["data"]) == ("stylegan-di", "run", True, "x.zip")
    sink.close("complete")
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    identity = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    until = time.monotonic() + 60  # another process of wandb's writes the file
    while (folder / f"run-{identity}.wandb").stat().st_size < 1000:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert len(list(folder.glob("files/media/images/fakes_*.png"))) == 2


def test_a_tracker_that_cannot_start_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("no API key")

    (tmp_path / "training_options.json").write_text("{}")
    monkeypatch.setattr("stylegan_di.journal.trackers.WandB.start", refuses)
    with pytest.raises(UserError, match=r"--track=wandb: it cannot be started \(RuntimeError: no API key\); log in"):
        TRACKERS["wandb"](tmp_path)


def test_a_tracker_that_fails_later_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def log(self, values: Any) -> None:
            raise ConnectionError("no route")

        finish = log

    (tmp_path / "training_options.json").write_text("{}")
    monkeypatch.setattr("stylegan_di.journal.trackers.Trackio.start", lambda *_: Broken())
    sink = TRACKERS["trackio"](tmp_path)
    for kimg in (1.0, 2.0):
        sink.scalars({"Progress/kimg": {"mean": kimg}})
    sink.close("complete")
    line = "--track=trackio: it does not take reports (ConnectionError: no route); the training goes on without it\n"
    assert capsys.readouterr().err == line


def test_trackio_keeps_a_run_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = tracker("trackio", tmp_path / "run", monkeypatch)
    report(sink, 2.0)
    sink.close("stopped")
    again = tracker("trackio", tmp_path / "run", monkeypatch)  # resumed
    report(again, 4.0)
    again.close("complete")
    with sqlite3.connect(tmp_path / "trackio" / "stylegan-di.db") as database:
        rows = database.execute("select run_name, metrics from metrics order by id").fetchall()
    identity = json.loads((tmp_path / "run" / "trackio.json").read_text())["id"]
    assert {name for name, _ in rows} == {f"run-{identity}"}
    logged = [json.loads(metrics) for _, metrics in rows]
    assert [row["Loss/loss"] for row in logged if "Loss/loss" in row] == [0.5, 0.25]
    assert [row["Metrics/fd_fashion"] for row in logged if "Metrics/fd_fashion" in row] == [5, 2.5]
    assert all("Progress/kimg" in row for row in logged)
    assert len(list((tmp_path / "trackio").glob("media/**/*.png"))) == 2
