"""A run folder from someone else: tampered states end in one line, links are not written through, pipes may close."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from stylegan_di.dnnlib.cli import user_errors
from stylegan_di.dnnlib.logger import Logger
from stylegan_di.dnnlib.util import UserError
from stylegan_di.runs import processes, resume, statefile
from tests.test_endings import ROOT, session_is_empty, start, wait_for_tick
from tests.test_processes import ENDING_SECONDS, children, finish
from tests.test_resume import files, invoke, last_state, small, whole_run  # noqa: F401


@pytest.fixture(scope="module")
def finished(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return whole_run(tmp_path_factory.mktemp("finished"), *small(files))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name))


def forge(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Rewrites the newest state with changed values and options, and a manifest that fits."""
    state = last_state(folder)
    change(state.values, state.config)
    digest = resume.stored_hash(state.config)
    statefile.save_state(state.path, state.tensors, state.values, state.config, digest)


def set_in(path: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    def change(values: dict[str, Any], config: dict[str, Any]) -> None:
        target: Any = {"values": values, "config": config}
        *names, last = path.split(".")
        for name in names:
            target = target[name]
        target[last] = value

    return change


TAMPERED = [
    ("config.batch", "4"), ("config.batch", -4), ("config.batch", 4.0), ("config.batch", None), ("config.batch", True),
    ("config.lr", "x"), ("config.lr", [1]), ("config.lr", float("nan")), ("config.kimg", float("inf")),
    ("config.kind", "x"), ("config.kind", ["di"]), ("config.metrics", "x"), ("config.metrics", [1]),
    ("config.surprise", 1), ("config.seed", -1), ("config.divergence", 3), ("config.cond", "yes"),
    ("config.cfg", "x"), ("config.device", "x"), ("config.device", "\ud800"), ("config.workers", 10**30),
    ("config.batch", 10**12), ("config.num_blocks", 2**20),
    ("config.teacher", "a\nError: b"), ("config.desc", "\x1b[2J"), ("config.data", "a\0b"),
    ("config.data", "a" * 9999),
    ("config.classes", {}), ("config.freeze", [["x"]]), ("config.prompt", "\r"), ("config.track", ["\ud800"]),
    ("values.state", None), ("values.state", {}), ("values.state.cur_nimg", "x"), ("values.state.cur_nimg", -1),
    ("values.state.cur_tick", 1.5), ("values.state.history", 3), ("values.state.history", {"a": "b"}),
    ("values.state.skipped", [[1]]), ("values.state.returns", []), ("values.seconds", "x"), ("values.seconds", -1),
    ("values.seconds", None), ("values.inputs", 3), ("values.inputs", {"teacher": "x"}), ("values.line_files", 3),
    ("values.line_files", {"stats.jsonl": "x"}), ("values.evaluation.before", 0),
    ("values.evaluation.best", {"a": "b"}), ("values.evaluation.best_kimg", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), TAMPERED, ids=[ascii(f"{path}={value}"[:40]) for path, value in TAMPERED])
def test_a_tampered_state_is_refused_in_one_line(run: Path, path: str, value: Any) -> None:
    forge(run, set_in(path, value))
    result = invoke(f"--resume={run}", "--kimg=0.04")
    assert result.exit_code == 2, result.output + str(result.exception)
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.output.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize("change", ["lacks one", "another shape", "another name", "another network"])
def test_tampered_tensors_are_refused_in_one_line(run: Path, change: str) -> None:
    state = last_state(run)
    name = next(name for name in state.tensors if name.startswith("optimizer.model.") and name.endswith("exp_avg"))
    value = state.tensors[name]
    tensors = {other: tensor for other, tensor in state.tensors.items() if other != name}
    if change == "another shape":
        tensors[name] = value.reshape(-1)[:1]
    elif change == "another name":
        tensors[name + "_x"] = value
    elif change == "another network":
        tensors = {other: tensor for other, tensor in state.tensors.items() if not other.startswith("ema.")}
    statefile.save_state(state.path, tensors, state.values, state.config, resume.stored_hash(state.config))
    result = invoke(f"--resume={run}", "--kimg=0.04")
    assert result.exit_code == 2, result.output + str(result.exception)
    assert result.output.splitlines()[-1].startswith("Error: ")


def test_options_that_do_not_fit_the_manifest_are_refused(run: Path) -> None:
    state = last_state(run)
    statefile.save_state(state.path, state.tensors, state.values, state.config | {"lr": 1.0}, "0" * 64)
    result = invoke(f"--resume={run}")
    assert result.exit_code == 2
    assert "its options are not those that its manifest was written for" in " ".join(result.output.split())


def test_the_number_of_processes_never_comes_from_a_state(run: Path) -> None:
    forge(run, set_in("config.gpus", 3000))
    result = invoke(f"--resume={run}", "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["gpus"] is None


def test_no_more_processes_than_cores_or_gpus(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(processes, "run", lambda *args: pytest.fail("started"))
    result = invoke(*small(files), "--gpus=3000")
    assert result.exit_code == 2
    assert f"--gpus=3000: this machine has {os.cpu_count()} cores; accepted are 1 to {os.cpu_count()}" in result.output
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(UserError, match="--gpus=5: this machine has 4 GPUs"):
        processes.check_count(5, "cuda")
    processes.check_count(4, "cuda")


@pytest.mark.parametrize("name", ["log.txt", "stats.jsonl", ".lock"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_in_a_run_folder_are_not_written_through(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n" * 100)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim) if kind == "link" else os.mkfifo(run / name)
    result = invoke(f"--resume={run}", "--kimg=0.04")
    assert result.exit_code == 2, result.output
    assert f"{run / name}: this is {'a link' if kind == 'link' else 'no ordinary file'}" in result.output
    assert victim.read_text() == "precious\n" * 100


def test_a_relative_path_that_is_not_found_names_the_folder(
    files: dict[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(files["teacher"], "teacher.pkl")
    folder = whole_run(tmp_path / "runs", *small({**files, "teacher": "teacher.pkl"}))
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    result = invoke(f"--resume={folder}", "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["teacher"] == str(tmp_path / "teacher.pkl")
    Path(tmp_path / "teacher.pkl").unlink()
    result = invoke(f"--resume={folder}", "--kimg=0.04")
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert f"--teacher=teacher.pkl of {folder}" in said
    assert f"is not found from {other}: the path is relative to the folder that the run was started in" in said


def test_latest_passes_over_a_folder_that_cannot_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "00099-closed").mkdir()
    original = statefile.complete_states

    def closed(folder: Path) -> list[Path]:
        if folder.name == "00099-closed":
            raise PermissionError(13, "Permission denied")
        return original(folder)

    monkeypatch.setattr(statefile, "complete_states", closed)
    assert invoke("--resume=latest", f"--outdir={run.parent}", "--kimg=0.04").exit_code == 0


def test_latest_passes_over_strange_siblings(run: Path) -> None:
    """Folders of higher numbers whose states are none: links to endless devices, pipes, folders, forged manifests."""
    manifest = {"format": 1, "sha256": "0" * 64, "config_sha256": "0", "versions": {}, "bytes": 0}
    good = last_state(run).path
    for number, (state, told) in enumerate(
        [
            ("/dev/zero", manifest), ("/dev/zero", "/dev/zero"), ("folder", manifest), ("pipe", manifest),
            (b"x", "pipe"), (b"x", "folder"), (b"x", "[" * 60000), (b"x", []), (b"", manifest),
            (b"x", manifest | {"bytes": "1" * 5000}), (good, manifest | {"bytes": good.stat().st_size}),
            (None, manifest),
        ]
    ):  # fmt: skip
        folder = run.parent / f"{90 + number:05d}-x\nError: \x1b[2J"
        folder.mkdir()
        for name, content in (("training-state-000000099.safetensors", state), ("training-state-000000099.json", told)):
            path = folder / name
            if content == "folder":
                path.mkdir()
            elif content == "pipe":
                os.mkfifo(path)
            elif isinstance(content, Path | str) and os.path.exists(content):
                path.symlink_to(content)
            elif content is not None:
                path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (run.parent / "00120-link").symlink_to(run)
    (run.parent / "00121-file").write_text("")
    found = resume.resume("latest", {"outdir": str(run.parent)})
    assert found.state.path == good
    assert len(found.notes) == resume.MOST_NOTES + 1


# What becomes of the output.


class Closed(io.StringIO):
    encoding = "ascii"

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_the_log_goes_on_when_the_terminal_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Closed())
    with Logger(tmp_path / "log.txt"):
        print("one", flush=True)
        print("two", flush=True)
    text = (tmp_path / "log.txt").read_text()
    assert text == "the output is closed ([Errno 32] Broken pipe): this log alone goes on\none\ntwo\n"


def test_what_the_terminal_cannot_encode_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @user_errors
    def command() -> None:
        with Logger(tmp_path / "log.txt"):
            print("é = 1, \udcff", flush=True)

    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    command.main([], standalone_mode=False)
    assert terminal.buffer.getvalue() == b"? = 1, \\udcff\n"  # type: ignore[attr-defined]
    assert (tmp_path / "log.txt").read_text() == "é = 1, \\udcff\n"


def test_a_training_whose_output_is_closed_goes_on(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    process = start(*small(files), f"--outdir={tmp_path}")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert (folder / "result.json").exists()


def test_a_run_whose_folder_vanishes_ends_with_4(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    process = start(*small(files), "--kimg=9", f"--outdir={tmp_path / 'runs'}")
    folder = wait_for_tick(tmp_path / "runs", 1, process)
    folder.rename(tmp_path / "elsewhere")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 4, err
    assert "cannot write (No such file or directory)" in " ".join(err.split())
    assert "Traceback" not in err


def test_a_run_whose_disk_becomes_read_only_ends_with_4(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """In a mount namespace, a read-only view of the folder is mounted over it: a remount fails while files are open."""
    outdir, view = tmp_path / "runs", tmp_path / "view"
    for folder in (outdir, view):
        folder.mkdir()
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    make_view = 'mount --bind "$0" "$1" && mount -o remount,bind,ro "$1"'
    probe = subprocess.run([*unshare, f'{make_view} && ! touch "$1/x"', outdir, view], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"file systems cannot be mounted here: {probe.stderr.strip()}")
    script = f"""
        {make_view}; outdir="$0"; view="$1"; shift
        "$@" --outdir="$outdir" & child=$!
        until ls "$outdir"/*/training-state-*.json >/dev/null 2>&1; do kill -0 $child || exit 99; sleep 0.05; done
        mount --bind "$view" "$outdir" || kill $child
        wait $child
    """
    arguments = [sys.executable, ROOT / "train.py", *small(files), "--kimg=9"]
    command = [*unshare, script, outdir, view, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 4, result.stderr
    assert "cannot write (Read-only file system)" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    (folder,) = outdir.iterdir()
    nimg = last_state(folder).values["state"]["cur_nimg"]
    result = invoke(f"--resume={folder}", f"--kimg={nimg / 1000 + 0.008}")
    assert result.exit_code == 0, result.output


def test_a_folder_that_cannot_be_written_is_said_when_it_is_resumed(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    folder = whole_run(tmp_path, *small(files))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(folder / ".lock"))

    monkeypatch.setattr("stylegan_di.runs.folder.RunFolder.reopen", refuse)
    result = invoke(f"--resume={folder}", "--kimg=0.064")
    assert result.exit_code == 4
    assert "cannot write (Read-only file system)" in " ".join(result.output.split())


# A process that hangs.


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_ends_the_run(files: dict[str, str], tmp_path: Path, rank: int) -> None:  # noqa: F811
    process = start(*small(files), "--kimg=99", "--gpus=2", "--heartbeat=5", f"--outdir={tmp_path}")
    wait_for_tick(tmp_path, 1, process)
    ranks = children(process)
    os.kill(ranks[rank], signal.SIGSTOP)
    began = time.monotonic()
    status, _, err = finish(process)
    assert status == 5, err
    assert time.monotonic() - began < ENDING_SECONDS
    assert all(session_is_empty(pid) for pid in ranks)
    if rank == 1:
        assert "process 0 of 2: process 1 has not been heard of for 5 s" in err


def test_a_process_that_does_not_stop_after_its_parent_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    ended = threading.Event()

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        sent.append(number)
        if number == signal.SIGKILL:
            ended.set()

    monkeypatch.setenv(processes.PARENT, "1")
    monkeypatch.setattr(processes, "ORPHAN", 0.05)
    monkeypatch.setattr(processes.os, "read", lambda fd, count: b"")
    monkeypatch.setattr(processes.os, "kill", kill)
    processes.follow_parent()
    assert ended.wait(10)
    assert sent == [signal.SIGTERM, signal.SIGKILL]


# Snapshots.


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_inspect_verifies_the_checksum_of_a_snapshot(tmp_path: Path, suffix: str) -> None:
    import numpy as np

    from stylegan_di.snapshots.inspection import inspect_file
    from tests.tiny import gan_networks, save_gan

    path = save_gan(tmp_path / f"gan.{suffix}")
    assert inspect_file(path).warnings == ()
    assert "weights_sha256" not in inspect_file(path).metadata
    network: Any = gan_networks()["G_ema"]
    values = network.synthesis.b8.conv1.weight.numpy().tobytes()
    changed = np.frombuffer(values, np.float32).copy()
    changed[3] += 1e-3
    data = path.read_bytes()
    assert data.count(values) >= 1
    path.write_bytes(data.replace(values, changed.tobytes()))
    (warning,) = inspect_file(path).warnings
    assert "its weights are not those that were saved" in warning
