"""Metrics measured by two processes together: the numbers of one process, and no process that waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics import evaluate
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.extractors import EXTRACTORS
from stylegan_di.metrics.statistics import load_stats
from stylegan_di.metrics.vgg16 import lpips_of, vgg16_of
from stylegan_di.networks import stylegan2
from stylegan_di.random import SampleRandom
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.torch_utils import distributed
from tests import conftest
from tests.tiny import gan_networks
from tests.tiny_vgg16 import lin_recipe, recipe, tensors

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "fashion-reference.npz"
METRICS = ["fd_fashion", "pr_fashion", "ppl2_wend"]
OF_DATA = ["fd_fashion", "pr_fashion", "dc_fashion", "cr_fashion", "spectrum", "texture"]
CLASSES = 2
NUM, BATCH = 13, 5  # batches of 5, 5 and 3: the second round has work for one process only
PATIENCE = 300  # seconds; the processes take some ten, on a busy machine many more


class Stopped(Exception):
    """Stands for Interrupted."""


class Gan(StyleGAN2Student):
    """A tiny GAN whose images are not finite for the samples whose indices are in `broken`."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        network = gan_networks(CLASSES, resolution=16)["G_ema"]
        assert isinstance(network, stylegan2.Generator)
        super().__init__(network)
        self.bad = [SampleRandom(0, "metrics", 0, [index]) for index in broken]
        for rng in self.bad:
            rng.integers(self.label_dim)
        self.bad_latents = [self.sample_latents(1, rng=rng)[0] for rng in self.bad]

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        is_bad = [any(torch.equal(row, bad) for bad in self.bad_latents) for row in z]
        images = super().forward(z, labels, rng=rng)
        return images.masked_fill(torch.tensor(is_bad)[:, None, None, None], torch.nan)


def use_tiny_networks(patch: Callable[[Any, str, Any], None]) -> None:
    """Narrow networks stand for VGG-16 and LPIPS."""
    vgg = vgg16_of({name: value.float() for name, value in tensors(recipe()).items()})
    lpips = lpips_of(vgg, {name: value.float() for name, value in tensors(lin_recipe()).items()})
    EXTRACTORS["vgg16"] = lambda path: vgg
    patch(evaluate, "load_lpips", lambda network, path: lpips)


def save_images(folder: Path) -> Path:
    folder.mkdir()
    for index, image in enumerate(np.random.default_rng(0).integers(256, size=[11, 16, 16, 3], dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    labels = [[f"{index:02}.png", index % CLASSES] for index in range(11)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def measurements(images: Path) -> dict[str, Any]:
    """What both one process and two measure: of a GAN, with a data set as reference, and of the data set."""
    dataset = ImageDataset(images)
    return {
        "generator": Evaluator(METRICS, REFERENCE, NUM, batch=BATCH)(Gan(), seed=3),
        "one batch": Evaluator(METRICS, REFERENCE, NUM)(Gan(), seed=3),
        "data": Evaluator(OF_DATA, str(images), NUM, batch=3)(Gan()),
        "cached": Evaluator(METRICS[:2], dataset, NUM, batch=3)(Gan()),
        "measured data": Evaluator(METRICS[:2], REFERENCE, NUM, batch=3).measure_dataset(dataset),
    }


def endings(folder: Path) -> dict[str, Any]:
    """How the process fares where one of the two fails; it is the same pair of processes throughout."""
    found: dict[str, Any] = {}
    rank = distributed.rank()

    def note(name: str, work: Callable[[], object]) -> None:
        try:
            found[name] = work()
        except Exception as error:
            found[name] = [type(error).__name__, isinstance(error, UserError), str(error)]

    def stopper(stopped: int, at: int) -> Callable[[str, int, int], None]:
        def report(label: str, done: int, total: int) -> None:
            if rank == stopped and done >= at:
                raise Stopped("by a signal")

        return report

    evaluator = Evaluator(METRICS, REFERENCE, NUM, batch=BATCH)
    for index in (0, 6, 12):
        note(f"broken {index}", lambda index=index: evaluator(Gan((index,))))
    for stopped in (0, 1):
        for at in (1, NUM):
            evaluator.report = stopper(stopped, at)
            note(f"stopped {stopped} {at}", lambda: evaluator(Gan()))
    note("too few", lambda: Evaluator(["pr_fashion"], REFERENCE, 3, batch=2)(Gan()))
    for failing in (0, 1):
        detector = f"fashion={folder / 'none.safetensors'}" if rank == failing else None
        note(f"no file {failing}", lambda file=detector: Evaluator(METRICS, REFERENCE, NUM, detector_file=file))
    note("no reference", lambda: Evaluator(METRICS, str(folder / "none.npz"), NUM))
    if rank == 0:
        (folder / "file").touch()
    os.environ["DNNLIB_CACHE_DIR"] = str(folder / "file")
    note("no cache", lambda: Evaluator(METRICS[:1], str(folder / "images"), NUM))
    done: list[tuple[str, int, int]] = []
    evaluator.report = lambda *args: done.append(args)
    note("afterwards", lambda: evaluator(Gan(), seed=3))
    return found | {"reports": done}


def main(folder: Path) -> None:
    """One of the two processes."""
    assert conftest.KERNELS  # importing it sets threads and kernels as in the tests
    use_tiny_networks(setattr)
    distributed.init(torch.device("cpu"))
    results = {"measurements": measurements(folder / "images"), "endings": endings(folder)}
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(results))
    distributed.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, the two processes' results, and the cache that they made."""
    folder = tmp_path_factory.mktemp("processes")
    save_images(folder / "images")
    cache = conftest.cache_with_kernels(folder / "cache")
    store = distributed.meeting_point()
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
              "TORCHELASTIC_USE_AGENT_STORE": "True", "DNNLIB_CACHE_DIR": str(cache)}  # fmt: skip
    command = [sys.executable, "-m", "tests.test_metrics_processes", str(folder)]
    options: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    environments = [os.environ | common | {"RANK": str(rank)} for rank in (0, 1)]
    processes = [subprocess.Popen(command, env=environment, **options) for environment in environments]
    try:
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder


@pytest.fixture
def ended(folder: Path) -> list[dict[str, Any]]:
    """How each process fared, in order of rank."""
    return [json.loads((folder / f"{rank}.json").read_text())["endings"] for rank in (0, 1)]


def test_two_processes_measure_the_bits_of_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS, "vgg16", EXTRACTORS["vgg16"])  # to be put back
    use_tiny_networks(monkeypatch.setattr)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    single = measurements(folder / "images")
    assert all(value > 0 for name, value in single["generator"].items() if "precision" not in name)
    for rank in (0, 1):
        assert json.loads((folder / f"{rank}.json").read_text())["measurements"] == single
    ours, theirs = (sorted((path / "metrics").iterdir()) for path in (tmp_path, folder / "cache"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert len(ours) == 2
    for mine, other in zip(ours, theirs, strict=True):
        for name, value in vars(load_stats(mine)).items():
            np.testing.assert_array_equal(value, getattr(load_stats(other), name))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("broken 0", "not finite"),
        ("broken 6", "not finite"),
        ("broken 12", "not finite"),
        ("too few", "more than 3 real"),
        ("no file 0", "none.safetensors"),
        ("no file 1", "none.safetensors"),
        ("no reference", "none.npz"),
        ("no cache", "DNNLIB_CACHE_DIR"),
    ],
)
def test_an_error_in_one_process_is_told_by_both(ended: list[dict[str, Any]], case: str, message: str) -> None:
    (_, first_is_users, text), (_, second_is_users, other_text) = (results[case] for results in ended)
    assert first_is_users
    assert second_is_users
    assert message in text
    assert other_text == text


@pytest.mark.parametrize("stopped", [0, 1])
@pytest.mark.parametrize("at", [1, NUM])
def test_a_process_that_is_stopped_ends_the_measurement_of_both(
    ended: list[dict[str, Any]], stopped: int, at: int
) -> None:
    results = [results[f"stopped {stopped} {at}"] for results in ended]
    assert results[stopped] == ["Stopped", False, "by a signal"]
    text = f"process {stopped} of 2 has left the work of all (Stopped: by a signal)"
    assert results[1 - stopped] == ["Abandoned", False, text]


def test_processes_are_in_step_after_failures(folder: Path, ended: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        measured = json.loads((folder / f"{rank}.json").read_text())["measurements"]
        assert ended[rank]["afterwards"] == measured["generator"]
        assert ended[rank]["reports"] == [[label, done, NUM] for label in ("Paths", "Images") for done in (10, NUM)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
