"""One thread everywhere: runs that must come out the same bits are made here and in processes of their own.

Tests run with native kernels where there is a compiler; the ops' own tests run with the reference as well.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stylegan_di.torch_utils.ops import build
from stylegan_di.torch_utils.ops.reference import reference_kernels

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
KERNELS = build.load("cpu", may_build=True)
PLAN = build.recipe("cpu") if KERNELS.startswith("native") else None
BUILT = () if PLAN is None else (PLAN.library, PLAN.checksum)  # where they are, whatever a test makes the cache


def pytest_report_header() -> str:
    return f"ops: {KERNELS}"


@pytest.fixture(params=["reference", "native"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with each implementation of the ops."""
    if request.param == "reference":
        with reference_kernels():
            yield request.param
    else:
        if not KERNELS.startswith("native"):
            pytest.skip(f"ops: {KERNELS}")
        yield request.param


def cache_with_kernels(folder: Path) -> Path:
    """Makes a cache that has the native kernels, which take long to build, and nothing else."""
    (folder / "ops").mkdir(mode=0o700, parents=True)
    for path in BUILT:
        shutil.copy2(path, folder / "ops")
    return folder


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the test a cache of its own."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(cache_with_kernels(tmp_path_factory.mktemp("cache"))))


@pytest.fixture(scope="module")
def small_grids() -> Iterator[None]:
    """Two columns of images instead of ten in the pictures of runs, which take longer to draw than tiny runs to train.

    Not for modules that compare with runs in processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stylegan_di.training.evaluation.GRID_COLUMNS", 2)
        yield
