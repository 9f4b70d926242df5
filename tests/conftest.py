"""One thread everywhere: runs that must come out the same bits are made here and in processes of their own.

Tests run with native kernels where there is a compiler; the ops' own tests run with the reference as well.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from stylegan_di.torch_utils.ops import build
from stylegan_di.torch_utils.ops.reference import reference_kernels

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
KERNELS = build.load("cpu", may_build=True)


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
