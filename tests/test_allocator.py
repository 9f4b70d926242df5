"""Freed memory is kept, so that steps after the first cause no page faults."""

import subprocess
import sys
from pathlib import Path

import pytest

from stylegan_di.torch_utils.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
COUNT = """
import resource, sys, torch
from stylegan_di.torch_utils.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def faults():
    for _ in range(4):
        torch.ones(1 << 23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    before = faults()
print(faults() - before)
"""


def test_page_faults_end() -> None:
    """Four blocks of 32 MiB, 8192 pages each (fewer if the system's pages are large)."""
    counts = {}
    for mode in ("system", "keep"):
        command = [sys.executable, "-c", COUNT, mode]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode == 3:
            pytest.skip("malloc is not glibc's, or the environment sets it")
        assert result.returncode == 0, result.stderr
        counts[mode] = int(result.stdout)
    assert counts["keep"] < 64 <= counts["system"], counts


def test_what_the_environment_says_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory()
