"""The front door: every file that must be refused is, by its exact message, and opening any file runs nothing in it."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator
from stylegan_di.torch_utils.persistence import RefusedFileError
from tests import hostile

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "pickles"
TABLES: dict[str, dict[str, tuple[bytes, str]]] = {
    ".pkl": hostile.refused_pickles() | hostile.refused_tensorflow(),
    ".safetensors": hostile.refused_safetensors(),
}
CASES = [(name, suffix) for suffix, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_refused_with_this_message(name: str, suffix: str, tmp_path: Path) -> None:
    data, message = TABLES[suffix][name]
    path = tmp_path / f"network{suffix}"
    path.write_bytes(data)
    with pytest.raises(RefusedFileError) as caught:
        load_generator(path)
    assert str(caught.value) == f"{path}: found {message}"


def test_a_gan_as_the_teacher(tmp_path: Path) -> None:
    path = tmp_path / "gan.pkl"
    path.write_bytes(hostile.gan())
    with pytest.raises(RefusedFileError) as caught:
        load_denoiser(path)
    assert str(caught.value) == (
        f"{path}: found no diffusion model: its entries are G_ema. Pass a generator as --gan-pkl or --network "
        "(load_generator), and an EDM network as --teacher or --transfer."
    )


def test_edited_source_loads_as_data_and_is_not_run(tmp_path: Path) -> None:
    path, mark = hostile.write_edited_source(tmp_path)
    assert load_generator(path).img_resolution == 8
    assert not mark.exists()


@pytest.mark.parametrize("script", ["train.py", "generate.py", "calc_metrics.py"])
def test_no_option_turns_the_checks_off(script: str) -> None:
    source = (ROOT / script).read_text()
    assert not [word for word in ("unsafe", "trust", "weights_only", "allow_pickle", "no-check") if word in source]


# All of it again under an audit hook.

WATCH = """
import json, sys
sys.path.insert(0, sys.argv[1])
from stylegan_di.snapshots.checkpoint import load_snapshot, as_model
from stylegan_di.metrics.statistics import load_stats
from stylegan_di.torch_utils.persistence import RefusedFileError
from stylegan_di.dnnlib.util import UserError

def load(path):
    try:
        as_model(load_stats(path) if path.endswith(".npz") else load_snapshot(path))
        return "loaded"
    except UserError as error:
        return str(error)

files = json.loads(sys.argv[2])
for path in files:
    load(path)  # what the libraries import on first use
events, expected = [], set()
WATCHED = ("import", "exec", "compile", "open", "os.", "subprocess", "socket", "pickle", "ctypes", "marshal", "code.",
           "shutil", "tempfile", "urllib", "mmap")

def watch(event, arguments):
    its_file = event == "open" and str(arguments[0]) in expected
    literal = event == "compile" and arguments[1] == "<unknown>"  # ast.literal_eval, by which numpy reads headers
    if event.startswith(WATCHED) and not its_file and not literal:
        events.append(f"{event} {arguments}"[:300])

sys.addaudithook(watch)
results = {}
for path in files:
    expected = {path}
    results[path] = load(path)
print(json.dumps({"events": events, "results": results}))
"""


def watched(files: list[Path]) -> dict[str, Any]:
    """What a child process that opens these files twice reports: results, and events of an audit hook on the second."""
    command = [sys.executable, "-c", WATCH, str(ROOT), json.dumps([str(path) for path in files])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def test_nothing_is_imported_opened_or_run(tmp_path: Path) -> None:
    """Good files, files with hostile source, files to refuse, statistics with an object array: no event but open."""
    expected = hostile.write_all(tmp_path, ["TensorFlow weights missing"])
    edited, mark = hostile.write_edited_source(tmp_path)
    objects = tmp_path / "objects.npz"
    np.savez(objects, mu=np.array([1, None], dtype=object), sigma=np.eye(2))
    golden = sorted(GOLDEN.glob("*.pkl"))
    assert len(golden) == 6
    good = [*golden, edited, tmp_path / "good.safetensors", tmp_path / "good.pkl"]
    report = watched([*good, *expected, objects])
    assert report["events"] == []
    results = report["results"]
    assert [results[str(path)] for path in good] == ["loaded"] * 9
    assert "objects.npz" in results[str(objects)]
    assert results[str(objects)] != "loaded"
    teacher = next(path for path in expected if path.name.startswith("teacher"))
    assert results.pop(str(teacher)) == "loaded"  # as what it is
    for path, message in expected.items():
        if path != teacher:
            assert results[str(path)] == message
    assert not mark.exists()


def test_the_hook_notices(tmp_path: Path) -> None:
    """The same hook on a process that does open another file."""
    altered = WATCH.replace("    expected = {path}\n", "    expected = set()\n")
    assert altered != WATCH
    path = tmp_path / "gan.pkl"
    path.write_bytes(hostile.gan())
    command = [sys.executable, "-c", altered, str(ROOT), json.dumps([str(path)])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert [event.split()[0] for event in json.loads(result.stdout)["events"]] == ["open"]


WATCH_OTHERS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stylegan_di.data.cifar import read_cifar
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.metrics.dinov2 import load_dinov2
from stylegan_di.metrics.inception import load_inception
from stylegan_di.metrics.references import load_references
from stylegan_di.metrics.vgg16 import load_vgg16
from stylegan_di.dnnlib.util import UserError

OPENERS = {
    "reference": load_references, "dinov2": load_dinov2, "inception": load_inception, "vgg16": load_vgg16,
    "cifar": lambda path: read_cifar(Path(path), "test"),
    "data": lambda path: ImageDataset(path, use_labels=True).preload(),
}

def load(kind, path):
    try:
        OPENERS[kind](path)
        return "loaded"
    except UserError as error:
        return str(error)

cases = json.loads(sys.argv[2])
for kind, path in cases:
    load(kind, path)  # what the libraries import on first use
events = []
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "socket", "pickle", "import", "exec")
sys.addaudithook(lambda event, arguments: events.append(event) if event.startswith(WATCHED) else None)
results = [load(kind, path) for kind, path in cases]
print(json.dumps({"events": events, "results": results}))
"""


def test_metrics_and_data_sets_run_nothing_either(tmp_path: Path) -> None:
    """The same program as references, detectors' weights, CIFAR-10's batch, in a data set: refused, and not run."""
    mark = tmp_path / "ran"
    program = hostile.Called(os.system, f"touch {mark}")
    data = pickle.dumps(program)
    for name in ("stats.pkl", "stats.npz", "plain.pth"):
        (tmp_path / name).write_bytes(data)
    torch.save(program, tmp_path / "saved.pth")
    torch.save(program, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    with tarfile.open(tmp_path / "cifar.tar", "w") as archive:
        info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    for name in ("images/a.png", "labels/dataset.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    Image.new("L", (8, 8)).save(tmp_path / "labels" / "a.png")
    weights = ("plain.pth", "saved.pth", "legacy.pth")
    cases = [("reference", "stats.pkl"), ("reference", "stats.npz"), ("cifar", "cifar.tar"), ("data", "images"),
             ("data", "labels"), *((kind, name) for kind in ("dinov2", "inception", "vgg16") for name in weights)]
    paths = [(kind, str(tmp_path / name)) for kind, name in cases]
    command = [sys.executable, "-c", WATCH_OTHERS, str(ROOT), json.dumps(paths)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout)
    assert report["events"] == []
    for (_, path), text in zip(paths, report["results"], strict=True):
        assert path in text
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists()  # it would have


# The fuzzer.


def fuzzer(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools" / "dev" / "fuzz_pickles.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, env=environment)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return json.loads(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by Linux means")
def test_mutants_are_read_or_refused_and_nothing_runs() -> None:
    report = fuzzer("--count=4000", "--seed=0")
    assert [report[kind] for kind in ("executions", "uncaught", "slow")] == [0, 0, 0]
    assert report["base_files"] >= 10
    assert report["slowest_s"] <= 1
    assert report["peak_bytes"] <= 1 << 30
    assert report["refused"] + report["read"] + report["built"] == 4000
    assert report["built"] > 40  # some mutants are as good as their base
    assert report["refused"] > 2000


MISBEHAVE = """
import sys
sys.path.insert(0, sys.argv[1])
from tools.dev import fuzz_pickles as fuzzer
calls = 0

def opened(data):
    global calls
    calls += 1
    if calls - before == 1:
        compile("1", "x", "eval")
    if calls - before == 2:
        raise KeyError("uncaught")
    if calls - before == 3:
        bytearray(1 << 30)
    if calls - before == 4:
        end = fuzzer.time.process_time() + 1.1
        while fuzzer.time.process_time() < end:
            pass
    return "read"

before = len(fuzzer.base_files()) + 200
fuzzer.open_as_a_network_file = opened
report = fuzzer.fuzz(5, 0, 0)
print(report["executions"], report["uncaught"], report["slow"], report["read"])
print([found[0] for kind in ("executions", "uncaught", "slow") for found in report["first_failures"][kind]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by Linux means")
def test_the_fuzzer_notices() -> None:
    """An execution, an exception, a gigabyte and a second, each once."""
    command = [sys.executable, "-c", MISBEHAVE, str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    counts, indices = result.stdout.splitlines()
    assert counts == "1 2 1 3"
    assert indices == "[0, 1, 2, 3]"
