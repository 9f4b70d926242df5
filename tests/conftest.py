"""Tests run with native kernels where there is a compiler; the ops' own tests run with the reference as well."""

from collections.abc import Iterator

import pytest

from torch_utils.ops import build
from torch_utils.ops.reference import reference_kernels

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
