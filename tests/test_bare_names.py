"""dnnlib and torch_utils are NVlabs' names too: this project leaves them free for those who have NVlabs' code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

OURS = """
import stylegan_di
path = {path!r}
generator = stylegan_di.load_generator(path)
assert generator.draw([0]).shape == (1, 3, 16, 16)
from stylegan_di.snapshots.checkpoint import load_snapshot, save_snapshot
save_snapshot("again.pkl", load_snapshot(path).networks, extras={{"training_set_kwargs": {{}}}}, metadata={{}})
stylegan_di.load_generator("again.pkl")
stylegan_di.load_denoiser({teacher!r})
"""
FREE = """
import sys
taken = [name for name in sys.modules if name.partition(".")[0] in ("dnnlib", "torch_utils")]
assert not taken, taken
"""
THEIRS = """
import dnnlib, torch_utils
assert (dnnlib.mark, torch_utils.mark) == ("their dnnlib", "their torch_utils")
import torch_utils.persistence
assert torch_utils.persistence.mark == "their persistence"
"""
APART = """
import stylegan_di.dnnlib.util, stylegan_di.torch_utils.persistence
assert stylegan_di.dnnlib is not dnnlib and stylegan_di.torch_utils is not torch_utils
assert not hasattr(dnnlib, "util") and not hasattr(torch_utils.persistence, "read_pickle")
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with packages of these names, as NVlabs' repositories have them."""
    for name in ("dnnlib", "torch_utils"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"mark = 'their {name}'\n")
    (tmp_path / "torch_utils" / "persistence.py").write_text("mark = 'their persistence'\n")
    return tmp_path


def run(script: str, folder: Path) -> None:
    golden = ROOT / "tests" / "golden" / "pickles"
    script = script.replace(
        "OURS", OURS.format(path=str(golden / "sg2-cond.pkl"), teacher=str(golden / "edm-cond.pkl"))
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


def test_loading_networks_takes_neither_name(tmp_path: Path) -> None:
    run("import stylegan_di" + FREE + "OURS" + FREE, tmp_path)


def test_their_packages_after_ours(theirs: Path) -> None:
    run("OURS" + FREE + THEIRS + APART, theirs)


def test_their_packages_before_ours(theirs: Path) -> None:
    run(THEIRS + "OURS" + THEIRS + APART, theirs)
