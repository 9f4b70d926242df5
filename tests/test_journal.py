"""What a run says on the console and in its log, and how it measures its time."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from stylegan_di import preflight
from stylegan_di.dnnlib.logger import Logger
from stylegan_di.journal.clock import Clock
from stylegan_di.journal.journal import Journal
from stylegan_di.journal.resources import resources
from stylegan_di.journal.sinks import Console, Sink
from stylegan_di.training import launch
from tests.test_resume import commands, invoke, lines
from tests.test_train import LINEAGE
from tests.tiny import save_files


class Time:
    """Stands for time.monotonic."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock_time(monkeypatch: pytest.MonkeyPatch) -> Time:
    stand_in = Time()
    monkeypatch.setattr(time, "monotonic", stand_in)
    return stand_in


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(text: str) -> list[str]:
    """The lines that a terminal shows of what was written to it."""
    screen = [""]
    column = 0
    for character in text:
        if character == "\n":
            screen.append("")
            column = 0
        elif character == "\r":
            column = 0
        else:
            screen[-1] = screen[-1][:column] + character + screen[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in screen]


def test_a_terminal_has_one_live_line_below_the_others_and_the_log_has_none(
    clock_time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with Logger(tmp_path / "log.txt"):
        console = Console(tmp_path)
        console.text("header")
        for percent in (5, 6, 7):
            clock_time.now += 0.06
            console.live(f"{percent} % of a long line")
        assert shown(terminal.getvalue()) == ["header", "7 % of a long line"]  # 6 came too soon after 5
        assert "6 %" not in terminal.getvalue()
        console.text("tick 1")
        clock_time.now += 1
        console.live("50 %")
        assert shown(terminal.getvalue()) == ["header", "tick 1", "50 %"]
        console.close("complete")
        print("after")
    assert shown(terminal.getvalue()) == ["header", "tick 1", "after", ""]
    assert (tmp_path / "log.txt").read_text() == "header\ntick 1\nafter\n"


def test_where_there_is_no_terminal_there_is_no_live_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path)
    console.text("header")
    console.live("5 %")
    console.close("complete")
    assert capsys.readouterr().out == "header\n"


def test_a_log_has_the_last_of_a_line_that_was_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Logger(tmp_path / "log.txt"):
        for text in ("\rImages: 1/2, slow", "\rImages: 2/2      ", "\n", "whole\r\n", "part"):
            sys.stderr.write(text)
    assert (tmp_path / "log.txt").read_text() == "Images: 2/2\nwhole\npart\n"


def test_a_ticks_time_is_without_that_of_snapshots(clock_time: Time) -> None:
    clock = Clock(4000, nimg=1000, elapsed=50.0)
    clock_time.now += 4
    with clock.maintenance():
        clock_time.now += 6
    assert clock.live(1500) == "kimg 1.5 of 4, 37 %, 125 images/s, 50s left"
    expected = {
        "total_sec": 60, "total_hours": 60 / 3600, "total_days": 60 / 86400, "sec_per_tick": 4, "sec_per_kimg": 8,
        "maintenance_sec": 6,
    }  # fmt: skip
    assert clock.tick(1500) == pytest.approx({f"Timing/{name}": value for name, value in expected.items()})
    assert clock.line(1500) == "sec/kimg 8.00    images/s 125.0   elapsed 1m 00s   left 50s"
    clock_time.now += 0.5
    assert "125 images/s" in clock.live(1501)  # the rate of the last tick, as this one has just begun
    clock_time.now += 1.5
    timing = clock.tick(1600)
    assert (timing["Timing/sec_per_kimg"], timing["Timing/maintenance_sec"]) == pytest.approx((20, 0))


def test_resources_are_counted() -> None:
    block = torch.ones([16, 1 << 20])  # 64 MiB
    found = resources()
    del block
    assert 0.1 < found["Resources/cpu_mem_gb"] < 100
    if not torch.cuda.is_available():
        assert found["Resources/peak_gpu_mem_gb"] == found["Resources/peak_gpu_mem_reserved_gb"] == 0


def test_sinks_learn_how_a_run_ended(tmp_path: Path) -> None:
    endings: list[str] = []

    class Last(Console):
        def close(self, ending: str) -> None:
            endings.append(ending)

    class Fails(Console):
        def close(self, ending: str) -> None:
            raise OSError("the folder has vanished")

    def run_that_ends_with(error: BaseException | None) -> None:
        with Journal([Last(tmp_path), Fails(tmp_path)]):
            if error is not None:
                raise error

    for error in (None, ValueError("too\nlate"), KeyboardInterrupt()):
        expected = OSError if error is None else type(error)  # a sink's own does not hide what ended the run
        with pytest.raises(expected):
            run_that_ends_with(error)
    assert endings == ["complete", "too late", "KeyboardInterrupt"]


def test_a_denoisers_statistics_have_edms_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is a mean over pixels, as EDM's is; and a tracker that was asked for is told all of it."""
    told: list[str] = []

    class Tracker(Sink):
        def scalars(self, values: Mapping[str, Mapping[str, float]]) -> None:
            told.append(f"kimg {values['Progress/kimg']['mean']:g}")

        def images(self, name: str, images: torch.Tensor, columns: int) -> None:
            told.append(name)

        def snapshot(self) -> None:
            told.append("snapshot")

        def close(self, ending: str) -> None:
            told.append(ending)

    monkeypatch.setitem(launch.TRACKERS, "wandb", Tracker)
    monkeypatch.setattr(preflight, "find_spec", lambda package: package)
    (tmp_path / "files").mkdir()
    arguments = commands(save_files(tmp_path / "files"))["edm"]
    assert invoke(*arguments, "--track=wandb", f"--outdir={tmp_path / 'runs'}").exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    first, *_ = lines(folder / "stats.jsonl")
    theirs = {name for name in LINEAGE if name.startswith("Progress/")} | {"Loss/loss"}
    assert theirs <= first.keys()
    assert first["Loss/loss"]["mean"] == pytest.approx(65.8436461687088 / 64, rel=2e-3)  # of 8x8 pixels
    begun, ended = ["fakes_init", "reals", "snapshot"], ["fakes000000", "snapshot", "complete"]
    assert told == [*begun, "kimg 0.016", "kimg 0.032", *ended]
