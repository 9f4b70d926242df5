"""Progress: what it says, and how often, on a terminal and in a log."""

from __future__ import annotations

import io
import time

import pytest

from stylegan_di.dnnlib.progress import Progress, counted, format_time


class Clock:
    """Stands for time.monotonic."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_a_log_gets_a_line_every_ten_seconds_and_the_last_one(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress("Images", 30, log)
    for done in range(1, 31):
        clock.now += 1
        progress.update(done)
    progress.close()
    assert log.getvalue().splitlines() == [
        "Images: 10/30, 1/s, 20s left",
        "Images: 20/30, 1/s, 10s left",
        "Images: 30/30, 1/s, 30s in all",
    ]


def test_a_short_loop_leaves_one_line_in_a_log(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress("Images", 2, log)
    clock.now += 1
    progress.update(1)
    clock.now += 7
    progress.update(2, note="seed 4")
    progress.close()
    progress.close()
    assert log.getvalue() == "Images: 2/2, 4 s each, 8s in all, seed 4\n"


def test_a_loop_without_steps_says_nothing() -> None:
    log = Terminal()
    Progress("Images", 0, log).close()
    assert log.getvalue() == ""


def test_a_terminal_has_one_line_that_is_rewritten(clock: Clock) -> None:
    terminal = Terminal()
    progress = Progress("Images", 100, terminal)
    for done in (50, 51, 100):
        clock.now += 0.05 if done == 51 else 5
        progress.update(done)
    progress.close()
    first, second = "Images: 50/100, 10/s, 5s left", "Images: 100/100, 9.95/s, 10s in all"
    assert terminal.getvalue() == f"\r{first}\r{second}\n"  # 51 came too soon after 50


def test_a_shorter_line_wipes_out_a_longer_one(clock: Clock) -> None:
    terminal = Terminal()
    progress = Progress("A", 2, terminal)
    for note in ("a long note", ""):
        clock.now += 1
        progress.update(0, note)
    progress.close()
    assert terminal.getvalue() == "\rA: 0/2, a long note\rA: 0/2" + " " * 13 + "\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (7620, "2h 07m"), (356400, "4d 03h")],
)
def test_times_are_told_in_two_units(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("steps", "rate"), [(1, "4 s each"), (10, "2.5/s"), (400, "100/s"), (4938, "1234/s"), (4_000_000, "1000000/s")]
)
def test_rates_are_plain_numbers(clock: Clock, steps: int, rate: str) -> None:
    log = io.StringIO()
    progress = Progress("A", steps, log)
    clock.now += 4
    progress.update(steps)
    progress.close()
    assert log.getvalue() == f"A: {steps}/{steps}, {rate}, 4s in all\n"


def test_what_takes_no_time_has_no_rate(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress("A", 24, log)
    clock.now += 0.01
    progress.update(24)
    progress.close()
    assert log.getvalue() == "A: 24/24\n"


def test_numbers_of_things() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
