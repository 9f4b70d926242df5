"""Several processes on one machine: they train as one does, end together, and say why once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stylegan_di.runs import statefile
from stylegan_di.torch_utils import distributed
from tests.test_endings import ROOT, session_is_empty, start, wait_for_tick
from tests.test_resume import commands, files, invoke, last_state, lines, small, whole_run  # noqa: F401

PATIENCE = 300  # seconds for a run on a busy machine
ENDING_SECONDS = 60  # a run of several processes must have ended by then, whatever happens to one of them


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    return process.returncode, out, " ".join(err.split())


def completed(outdir: Path, *arguments: str) -> Path:
    status, out, err = finish(start(*arguments, f"--outdir={outdir}"))
    assert status == 0, out + err
    (folder,) = outdir.iterdir()
    return folder


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a run in order of rank."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(map(int, text.split()))


def differences(first: Path, second: Path) -> dict[str, float]:
    """The largest difference of every tensor of the last states but w_avg, which follows each process's own samples."""
    a, b = last_state(first).tensors, last_state(second).tensors
    assert a.keys() == b.keys()
    names = [name for name in a if not name.endswith("w_avg")]
    return {name: float((a[name].double() - b[name].double()).abs().max()) for name in names if a[name].numel()}


@pytest.fixture(scope="module")
def double(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A complete run of eight steps in two processes."""
    return completed(tmp_path_factory.mktemp("double"), *small(files), "--gpus=2")


def test_two_processes_make_the_same_bits_as_one_with_the_same_micro_batches(
    files: dict[str, str], tmp_path: Path, double: Path  # noqa: F811
) -> None:
    single = whole_run(tmp_path, *small(files), "--batch-gpu=2")
    assert {name: value for name, value in differences(single, double).items() if value} == {}
    assert_same_statistics(single, double)
    assert (double / "log.txt").read_text().count("over 2 processes") == 1
    assert len((double / "stats.jsonl").read_text().splitlines()) == 4  # the first process alone writes


KINDS = ["gan", "edm", "di", "hybrid"]
IN_TURN = """
import contextlib, json, os, sys
from stylegan_di.commands import train
train.leave = sys.exit  # it would end the process without a look back
for port, command in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    with contextlib.suppress(SystemExit):
        train.main.main(command, standalone_mode=False)
"""


@pytest.fixture(scope="module")
def doubles(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    """A run of each kind, by the same two processes in turn, because starting them takes longer than the runs."""
    outdirs = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    stores = [distributed.meeting_point() for _ in KINDS]
    runs = [
        (store.port, [*commands(files)[kind], f"--outdir={outdirs[kind]}"])
        for kind, store in zip(KINDS, stores, strict=True)
    ]
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
    command = [sys.executable, "-c", IN_TURN, json.dumps(runs)]
    options: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    ranks = [os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    pair = [subprocess.Popen(command, env=environment, **options) for environment in ranks]
    for process in pair:
        status, out, err = finish(process)
        assert status == 0, out + err
    return {kind: next(outdir.iterdir()) for kind, outdir in outdirs.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_every_kind_as_one_does(
    files: dict[str, str], tmp_path: Path, doubles: dict[str, Path], kind: str  # noqa: F811
) -> None:
    """With path lengths, R1, mixing and ADA's p, with dropout and dropped labels, and with metrics."""
    double = doubles[kind]
    single = whole_run(tmp_path / "single", *commands(files)[kind], "--batch-gpu=2")
    assert {name: value for name, value in differences(single, double).items() if value} == {}
    assert_same_statistics(single, double)
    assert_same_metrics(single, double)
    assert bool(list(double.glob("metric-*.jsonl"))) == (kind == "di")


def assert_same_statistics(single: Path, double: Path) -> None:
    """Of all samples, whichever process had them: as many, and the same means and deviations to rounding."""
    expected, found = lines(single / "stats.jsonl"), lines(double / "stats.jsonl")
    assert len(expected) == len(found) > 1
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        assert one["Progress/kimg"] == two["Progress/kimg"]
        for name, figures in one.items():
            assert figures["num"] == two[name]["num"], name
            assert two[name]["mean"] == pytest.approx(figures["mean"], rel=1e-5), name
            assert two[name]["std"] == pytest.approx(figures["std"], rel=1e-5, abs=1e-6 * abs(figures["mean"])), name


def assert_same_metrics(single: Path, double: Path) -> None:
    results = [json.loads((folder / "result.json").read_text()) for folder in (single, double)]
    for name in ("before", "after", "best", "best_kimg", "num_samples", "kimg"):
        assert results[0][name] == results[1][name]
    for path in single.glob("metric-*.jsonl"):
        one, two = lines(path), lines(double / path.name)
        assert [line["results"] for line in one] == [line["results"] for line in two]
        assert {line["num_gpus"] for line in one} == {1}
        assert {line["num_gpus"] for line in two} == {2}


def test_other_micro_batches_differ_by_rounding_alone(files: dict[str, str], tmp_path: Path, double: Path) -> None:  # noqa: F811
    """Adam turns the rounding of gradients near 0 into steps of up to its rate: after 8 steps at 1e-5, 8e-5."""
    single = whole_run(tmp_path, *small(files), "--batch-gpu=4")
    moved = {k: v for k, v in differences(single, double).items() if k.startswith(("model.", "fake_score.", "ema."))}
    assert 0 < max(moved.values()) < 8e-5


def test_a_run_goes_on_with_another_number_of_processes(files: dict[str, str], tmp_path: Path, double: Path) -> None:  # noqa: F811
    folder = Path(shutil.copytree(double, tmp_path / "copy" / double.name))
    assert invoke(f"--resume={folder}", "--kimg=0.048", "--gpus=1", "--batch-gpu=2").exit_code == 0
    single = whole_run(tmp_path / "single", *small(files), "--kimg=0.048", "--batch-gpu=2")
    assert {name: value for name, value in differences(single, folder).items() if value} == {}


def test_a_process_that_is_killed_ends_the_run_which_then_goes_on(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    process = start(*small(files), "--kimg=3", "--gpus=2", f"--outdir={tmp_path / 'killed'}")
    folder = wait_for_tick(tmp_path / "killed", 2, process)
    ranks = children(process)
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    status, _, err = finish(process)
    assert status == 5
    assert time.monotonic() - began < ENDING_SECONDS
    assert err == (
        "Error: process 1 of 2 was killed by SIGKILL; the others have been ended; go on from the last state, if one "
        "was saved, with --resume=latest"
    )
    assert all(session_is_empty(rank) for rank in ranks)
    assert "process 0 of 2 lost another one" in (folder / "log.txt").read_text()
    nimg = last_state(folder).values["state"]["cur_nimg"]
    assert 8 <= nimg < 3000
    kimg = f"--kimg={(nimg + 8) / 1000}"
    status, _, err = finish(start(f"--resume={folder}", kimg, "--gpus=2"))
    assert status == 0, err
    single = whole_run(tmp_path / "single", *small(files), kimg, "--batch-gpu=2")
    assert {name: value for name, value in differences(single, folder).items() if value} == {}


def test_a_signal_stops_all_processes_at_the_same_step(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    process = start(*small(files), "--kimg=3", "--gpus=2", f"--outdir={tmp_path}")
    folder = wait_for_tick(tmp_path, 1, process)
    ranks = children(process)
    process.terminate()
    status, out, err = finish(process)
    assert (status, err) == (75, "")
    assert out.count("the state is saved; continue with") == 1
    assert all(session_is_empty(rank) for rank in ranks)
    assert last_state(folder).values["state"]["cur_nimg"] < 3000


def test_processes_stop_when_the_one_that_started_them_is_killed(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    process = start(*small(files), "--kimg=9", "--gpus=2", f"--outdir={tmp_path}")
    folder = wait_for_tick(tmp_path, 1, process)
    ranks = children(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + ENDING_SECONDS
    while not all(session_is_empty(rank) for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert statefile.damage(statefile.complete_states(folder)[-1]) is None
    assert "stopped by SIGTERM" in (folder / "log.txt").read_text()


def test_what_does_not_fit_the_processes_is_told_once(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    status, _, err = finish(start(*small(files), "--batch=5", "--gpus=2", f"--outdir={tmp_path}"))
    assert (status, err) == (2, "Error: --batch=5 does not divide over 2 processes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fsdp=true"], "--fsdp spreads weights over several processes, and there is one"),
        (["--gpus=3"], "--gpus=3, but 1 processes were started"),
        (["--gpus=0"], "--gpus=0: accepted is a number above 0"),
    ],
)
def test_what_torchrun_cannot_have_meant_is_refused(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str  # noqa: F811
) -> None:
    monkeypatch.setattr("stylegan_di.commands.train.processes.started", lambda: True)
    result = invoke(*small(files), *arguments, f"--outdir={tmp_path}")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


def test_processes_that_disagree_are_refused(files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """As torchrun on two machines could start them."""
    port = str(29500 + os.getpid() % 1000)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    seeds = [["--seed=1"], ["--seed=2", "--lr=0.5"]]
    processes = [
        start(*small(files), *seeds[rank], f"--outdir={tmp_path}", RANK=str(rank), LOCAL_RANK="0", **shared)
        for rank in (0, 1)
    ]
    for process in processes:
        status, _, err = finish(process)
        assert status == 2
        assert "processes 0 and 1 of the run disagree: seed 1 against 2; lr 1e-05 against 0.5" in err
    assert list(tmp_path.iterdir()) == []


def test_sharded_score_networks_train_as_whole_ones(files: dict[str, str], tmp_path: Path, double: Path) -> None:  # noqa: F811
    """FSDP2 and averaged gradients: the same to rounding; and a run goes on, sharded and then whole."""
    sharded = completed(tmp_path / "fsdp", *small(files), "--gpus=2", "--fsdp=true", "--kimg=0.008")
    assert json.loads((sharded / "training_options.json").read_text())["fsdp"] is True
    status, _, err = finish(start(f"--resume={sharded}", "--kimg=0.016", "--gpus=2"))
    assert status == 0, err
    assert last_state(sharded).tensors["optimizer.fake_score.0.step"] == 4
    result = invoke(f"--resume={sharded}", "--fsdp=false", "--gpus=1", "--batch-gpu=2", "--kimg=0.032")
    assert result.exit_code == 0, result.output
    found = differences(double, sharded)
    assert max(value for name, value in found.items() if not name.startswith("optimizer")) < 8e-5


def test_sharding_belongs_to_di() -> None:
    result = invoke("--kind=edm", "--data=x", "--fsdp=true")
    assert result.exit_code == 2
    assert "--fsdp=true belongs to --kind=di" in result.output
