"""CUDA kernels: compiled wherever nvcc is, and where there is a GPU compared with their references."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from stylegan_di.torch_utils.ops import build
from tests.golden_edm import assert_near
from tests.test_ops_kernels import CASES, LAYOUTS, inputs

NVCC = shutil.which("nvcc")
HEADERS = Path(torch.__file__).parent / "include" / "c10" / "cuda" / "CUDAStream.h"


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.skipif(not HEADERS.is_file(), reason="this PyTorch brings no CUDA headers")
def test_kernels_compile(tmp_path: Path) -> None:
    """For one kind of GPU, because no line of the source depends on it; what runs on the host is parsed only."""
    flags = [flag for flag in build.cuda_flags("sm_80") if flag not in ("-shared", "-O3")]
    source, target = build.SOURCES / "cuda" / "ops.cu", tmp_path / "ops.fatbin"
    assert b"__CUDA_ARCH__" not in b"".join(path.read_bytes() for path in build.SOURCES.rglob("*.*"))
    command = [str(NVCC), *flags, "-O1", "-fatbin", str(source), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert target.stat().st_size > 100_000


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_cpu(
    name: str, layout: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    """In float32 with float64; in 16 bits with the CPU's kernel, because rounding decides what is clamped.

    An approximate exponential may decide otherwise for a few numbers, so the norm is compared.
    """
    for device in ("cpu", "cuda"):
        words = build.load(device, may_build=True)
        assert words.startswith("native"), words
    results = []
    for device, kind in (("cpu", torch.float64 if dtype == torch.float32 else dtype), ("cuda", dtype)):
        leaves = [t.detach().to(dtype).to(device, kind).requires_grad_() for t in inputs(CASES[name], dtype, layout)]
        y = CASES[name].function(*leaves)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for expected, actual in zip(*results, strict=True):
        e, a = expected.detach().double(), actual.detach().cpu().double()
        if dtype == torch.float32:
            assert_near(a, e, tolerance)
        else:
            assert float((a - e).norm()) <= tolerance * float(e.norm())
