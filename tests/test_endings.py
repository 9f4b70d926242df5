"""How a run ends before its end: signals, a full disk, a training that comes apart; each with its exit status."""

import builtins
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.progress import PassProgress
from stylegan_di.dnnlib.util import atomic_write
from stylegan_di.runs import statefile
from stylegan_di.runs.endings import StorageError, storage_errors
from stylegan_di.runs.folder import RunFolder
from stylegan_di.snapshots import checkpoint
from stylegan_di.training import watch
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.trainer import Trainer
from tests.test_resume import SHORT, TINY_EDM, assert_same_run, files, invoke, last_state, small, whole_run  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The real train.py, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, start_new_session=True,
    )  # fmt: skip


def wait_for_tick(outdir: Path, tick: int, process: subprocess.Popen[str]) -> Path:
    """The run's folder, once its log has a tick's line."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        for folder in outdir.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if f"\ntick {tick} " in (folder / "log.txt").read_text():
                    return folder
        time.sleep(0.01)
    raise AssertionError(f"no tick {tick}: {process.communicate()}")


def session_is_empty(leader: int) -> bool:
    """Whether no process of the session is left, zombies apart."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                return False
    return True


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits_with_75(
    files: dict[str, str], tmp_path: Path, number: signal.Signals  # noqa: F811
) -> None:
    arguments = [*small(files), "--kimg=0.06", "--tick=0.008"]
    process = start(*arguments, f"--outdir={tmp_path / 'stopped'}")
    folder = wait_for_tick(tmp_path / "stopped", 1, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    nimg = last_state(folder).values["state"]["cur_nimg"]
    assert 8 <= nimg < 60
    message = f"stopped by {number.name} at kimg {nimg / 1000:g}: the state is saved; continue with --resume={folder}"
    assert message in out
    assert message in (folder / "log.txt").read_text()
    assert err == ""
    assert session_is_empty(process.pid)
    assert invoke(f"--resume={folder}").exit_code == 0
    assert_same_run(whole_run(tmp_path / "whole", *arguments), folder)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Trainer.step

    def stops(self: Trainer) -> None:
        if self.state.cur_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(Trainer, "step", stops)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_stop_inside_a_tick_loses_no_statistics(files: dict[str, str], tmp_path: Path, step: int) -> None:  # noqa: F811
    """Also with ADA's signs, which are collected over four steps."""
    hybrid = [f"--data={files['data']}", "--cond=true", "--adv-weight=1", "--gamma=0.1", "--aug=ada", "--augpipe=blit",
              "--ada-kimg=0.05", "--tick=0.012"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        result = invoke(*small(files), *hybrid, f"--outdir={tmp_path / 'stopped'}")
    assert result.exit_code == 75, result.output
    (folder,) = (tmp_path / "stopped").iterdir()
    assert last_state(folder).values["state"]["cur_nimg"] == 4 * (step + 1)
    assert invoke(f"--resume={folder}").exit_code == 0
    assert_same_run(whole_run(tmp_path / "whole", *small(files), *hybrid), folder)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_stop_inside_a_save_finishes_it(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """The signal comes between the state's two files, when it is on disk without its manifest."""
    original, saves = statefile.atomic_write, []

    def stops(path: Path, data: bytes) -> None:
        saves.append(path)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statefile, "atomic_write", stops)
        result = invoke(*small(files), f"--outdir={tmp_path / 'stopped'}")
    assert result.exit_code == 75, result.output
    (folder,) = (tmp_path / "stopped").iterdir()
    assert statefile.damage(last_state(folder).path) is None
    assert saves[1] in set(folder.glob("training-state-*.json"))
    assert invoke(f"--resume={folder}").exit_code == 0
    assert_same_run(whole_run(tmp_path / "whole", *small(files)), folder)


@pytest.mark.parametrize("measurement", [1, 2])
def test_a_stop_while_metrics_are_measured_measures_again_later(
    files: dict[str, str], tmp_path: Path, measurement: int  # noqa: F811
) -> None:
    arguments = [*small(files), f"--ref={files['ref']}", "--metrics=fd_fashion", "--metric-samples=300"]
    passes = []

    def stops(self: PassProgress, label: str, done: int, total: int) -> None:
        passes.append(done)
        if done == 128 and passes.count(128) == measurement:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassProgress, "__call__", stops)
        result = invoke(*arguments, f"--outdir={tmp_path / 'stopped'}")
    assert result.exit_code == 75, result.output
    assert passes[-1] == 128
    (folder,) = (tmp_path / "stopped").iterdir()
    if measurement == 1:
        assert "before the first step: there is nothing to save; start it again" in result.output
        assert statefile.complete_states(folder) == []
        return
    assert invoke(f"--resume={folder}").exit_code == 0
    assert_same_run(whole_run(tmp_path / "whole", *arguments), folder)


def test_no_loader_is_left_behind(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    arguments = ["--kind=edm", f"--data={files['data']}", *SHORT, *TINY_EDM, "--metrics=none", "--kimg=9", "--tick=0.1"]
    process = start(*arguments, "--workers=3", f"--outdir={tmp_path}")
    wait_for_tick(tmp_path, 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 75
    assert session_is_empty(process.pid)


def test_runs_that_start_at_once_get_different_folders(tmp_path: Path) -> None:
    def create(_: int) -> Path:
        with RunFolder.create(TrainConfig("di", outdir=str(tmp_path), teacher="x", desc="run")) as folder:
            return folder.path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(create, range(16)))
    assert sorted(path.name for path in paths) == [f"{number:05d}-x-di-ikl-batch64-run" for number in range(16)]


# A full disk.


class FullDisk:
    """Makes the n-th operation on the disk fail, counting writes, flushes, fsyncs and renames."""

    def __init__(self, patch: pytest.MonkeyPatch, fails_at: int) -> None:
        self.fails_at, self.done = fails_at, 0
        real_open = builtins.open

        def counted_open(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return _File(real_open(path, mode, *args, **kwargs), self)

        patch.setattr("stylegan_di.dnnlib.util.open", counted_open, raising=False)
        for name in ("fsync", "replace"):
            patch.setattr(f"stylegan_di.dnnlib.util.os.{name}", self.counted(getattr(os, name)))

    def counted(self, function: Any) -> Any:
        def call(*args: Any) -> Any:
            self.done += 1
            if self.done > self.fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args)

        return call


class _File:
    def __init__(self, file: Any, disk: FullDisk) -> None:
        self.file = file
        self.write, self.flush = disk.counted(file.write), disk.counted(file.flush)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def fileno(self) -> int:
        return int(self.file.fileno())


def test_a_disk_that_is_full_at_any_write_leaves_the_state_before_intact(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full([1000 * i], float(i)) for i in range(6)}
    old, new = statefile.state_path(tmp_path, 4), statefile.state_path(tmp_path, 8)
    statefile.save_state(old, tensors, {"nimg": 4}, {}, "0" * 64)
    failures = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            FullDisk(patch, failures)
            raised: list[StorageError] = []
            try:
                statefile.save_state(new, tensors, {"nimg": 8}, {}, "0" * 64)
            except StorageError as error:
                raised.append(error)
        if not raised:
            break
        failures += 1
        assert raised[0].status == 4
        for part in (str(tmp_path / "training-state-000000008"), "No space left on device", "it needs 0.1 MB"):
            assert part in str(raised[0])
        intact = [path for path in statefile.complete_states(tmp_path) if statefile.damage(path) is None]
        assert old in intact
        assert list(tmp_path.glob(".*.tmp")) == []
        torch.testing.assert_close(statefile.load_state(old).tensors, tensors)
    assert failures == 16  # 7 writes, flush, fsync, rename, fsync of the folder; of the manifest a write and the same
    assert statefile.complete_states(tmp_path) == [old, new]


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_run_on_a_disk_that_fills_up_ends_with_4_and_goes_on_when_there_is_room(
    files: dict[str, str], tmp_path: Path  # noqa: F811
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "700k"):
        result = invoke(*small(files), f"--outdir={disk}")
        assert result.exit_code == 4, result.output
        (folder,) = disk.iterdir()
        said = " ".join(result.output.split())
        assert f"Error: {folder}" in said
        assert "cannot write (No space left on device)" in said
        assert f"MB are free in {folder}" in said
        states = statefile.complete_states(folder)
        assert states
        assert [statefile.damage(path) for path in states] == [None] * len(states)
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        assert invoke(f"--resume={folder}").exit_code == 0
        assert_same_run(whole_run(tmp_path / "whole", *small(files)), folder)


def test_a_snapshot_that_finds_no_room_names_its_file_and_its_need(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", full)
        result = invoke(*small(files), f"--outdir={tmp_path / 'full'}")
    assert result.exit_code == 4, result.output
    (folder,) = (tmp_path / "full").iterdir()
    said = " ".join(result.output.split())
    assert f"{folder / 'network-snapshot-000000.pkl'}: cannot write (No space left on device): it needs 0.0 MB" in said
    assert invoke(f"--resume={folder}").exit_code == 0
    assert_same_run(whole_run(tmp_path / "whole", *small(files)), folder)


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, 0)
        with pytest.raises(OSError, match="No space left") as caught:
            atomic_write(tmp_path / "file", b"data")
    assert caught.value.filename == str(tmp_path / "file")


def test_a_folder_that_has_vanished_is_an_error_of_storage_and_others_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"{tmp_path / 'none'}.*cannot write \(No such file or directory\)"):
        statefile.save_state(statefile.state_path(tmp_path / "none", 1), {}, {}, {}, "")
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        Path("/none/of/the/run").read_bytes()


# A training that comes apart.


def test_a_training_that_diverges_ends_with_3_and_a_diagnosis(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    arguments = [*small(files), "--lr=1e30", "--fake-lr=1e30", "--kimg=9", "--max-skips=5"]
    result = invoke(*arguments, f"--outdir={tmp_path}")
    assert result.exit_code == 3, result.output
    said = " ".join(result.output.split())
    assert "were skipped because their gradients were not finite or exploded (model 3, fake_score 2)" in said
    assert "lower learning rates (--lr, --fake-lr, --dlr)" in said
    (folder,) = tmp_path.iterdir()
    assert "the training diverged at kimg" in (folder / "log.txt").read_text()
    assert not (folder / "result.json").exists()


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Puts NaN into the student's weights at the beginning of these steps."""
    original = Trainer.step

    def poisoned(self: Trainer) -> None:
        if self.state.cur_step in steps:
            next(self.state.networks["model"].parameters()).fill_(torch.nan)
        original(self)

    monkeypatch.setattr(Trainer, "step", poisoned)


BEST = ["--metrics=fd_fashion", "--metric-samples=32", "--snap=1", "--on-divergence=best", "--max-skips=2"]


def test_a_single_bad_update_is_left_out_counted_and_reported(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    original, bad = torch.nn.utils.get_total_norm, []

    def norm(gradients: Any) -> torch.Tensor:
        bad.append(len(bad) == 4)
        return original(gradients) * (torch.nan if bad[-1] else 1.0)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm)
    result = invoke(*small(files), f"--outdir={tmp_path}")
    assert result.exit_code == 0, result.output
    assert "tick 1" in result.output
    assert "skipped updates 1" in result.output
    (folder,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [line["Progress/skipped_updates"]["mean"] for line in lines] == [0, 1, 1, 1]
    assert lines[1]["Gradient/fake_score"]["num"] == 1
    assert last_state(folder).values["state"]["skipped"] == [[2, "fake_score"]]


def test_a_training_that_comes_apart_returns_to_its_best_snapshot(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    poison(monkeypatch, range(5, 6))
    result = invoke(*small(files), *BEST, f"--ref={files['ref']}", "--kimg=0.064", f"--outdir={tmp_path}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert result.output.count("back to the best snapshot, kimg 0.0") == 1
    (folder,) = tmp_path.iterdir()
    state = last_state(folder)
    assert (state.values["state"]["returns"], state.values["state"]["cur_nimg"]) == (1, 64)
    assert [name for name, value in state.tensors.items() if not value.isfinite().all()] == []


def test_a_training_that_always_comes_apart_ends_after_three_returns(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    poison(monkeypatch, range(5, 999))
    result = invoke(*small(files), *BEST, f"--ref={files['ref']}", "--kimg=9", f"--outdir={tmp_path}")
    assert result.exit_code == 3, result.output + str(result.exception)
    assert result.output.count("back to the best snapshot, kimg 0.0") == 3
    assert "after 3 returns to the best snapshot" in " ".join(result.output.split())


def test_returning_needs_a_metric() -> None:
    result = invoke("--kind=di", "--teacher=x", "--on-divergence=best", "--metrics=none")
    assert result.exit_code == 2
    assert "--on-divergence=best needs --metrics" in result.output


def test_losses_are_watched_from_the_fourth_tick_on() -> None:
    history: dict[str, list[float]] = {}

    def told(value: float) -> str:
        values = {"Loss/fake_score": {"mean": value}, "Loss/unknown": {"mean": 1e9}}
        return watch.out_of_range(history, values, DiffInstruct.watched)

    assert [told(value) for value in (500.0, 0.5, 0.4, 49.0)] == [""] * 4
    assert told(0.6) == ""
    assert told(61.0) == "Loss/fake_score is 61, over 100 times its median 0.6 at earlier ticks"


def test_skips_count_within_their_window() -> None:
    skipped = [(step, "model") for step in (3, 10, 20)]
    assert watch.skipped_too_often(skipped, 33, 3) == ""
    assert "3 updates of the last 30 steps" in watch.skipped_too_often(skipped, 32, 3)
    assert "(model 3)" in watch.skipped_too_often(skipped, 32, 3)


def test_the_help_lists_the_exit_statuses() -> None:
    result = invoke("--help")
    for status in ("0 complete", "2 wrong options", "3 diverged", "4 disk full", "5 a process lost", "75 stopped"):
        assert status in " ".join(result.output.split())
    assert train.main.name == "main"
