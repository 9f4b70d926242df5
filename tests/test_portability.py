"""Windows and macOS, as far as another system shows them: locks, links, separators, what the system lacks.

That every module is imported where Python has no Unix modules, tests/test_layering.py holds.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib import safe_files
from stylegan_di.dnnlib.safe_files import lock, locked, open_plain, try_lock
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal import resources
from stylegan_di.runs.folder import run_name
from stylegan_di.torch_utils import allocator

ROOT = Path(__file__).resolve().parent.parent


def test_a_lock_holds_until_the_file_is_closed(tmp_path: Path) -> None:
    with open_plain(tmp_path / "a", "ab") as first, open_plain(tmp_path / "a", "ab") as second:
        lock(first)
        assert not try_lock(second)
        first.close()
        assert try_lock(second)
    with locked(tmp_path / "a"), open_plain(tmp_path / "a", "ab") as third:
        assert not try_lock(third)
    with open_plain(tmp_path / "a", "ab") as fourth:
        assert try_lock(fourth)


def test_a_link_is_refused_where_the_system_cannot_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_files, "_NO_LINK", 0)  # Windows has no O_NOFOLLOW
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match="this is a link"):
        open_plain(tmp_path / "link", "ab")
    with pytest.raises(UserError, match="this is a link"), locked(tmp_path / "link"):
        pass
    assert (tmp_path / "target").read_text() == "kept"


@pytest.mark.parametrize("path", ["models/cifar10.pkl", r"models\cifar10.pkl", r"C:\models\cifar10.pkl"])
def test_a_known_file_is_known_in_any_folder(path: str) -> None:
    assert zoo.entry(path) is zoo.entry("cifar10.pkl") is not None


@pytest.mark.parametrize("path", ["data/my set", "data/my set/", r"C:\data\my set", "C:\\data\\my set\\"])
def test_a_run_is_named_after_its_data_with_either_separator(path: str) -> None:
    assert run_name(TrainConfig("edm", data=path, batch=8)) == "my-set-edm-ddpmpp-edm-batch8"


def test_names_of_runs_are_names_on_windows() -> None:
    config = TrainConfig("di", teacher="a:b?.pkl", gan_pkl="g*|<>.pkl", divergence='sid:alpha=1.2+0.5*ikl', batch=8)
    assert not set(run_name(config)) & set('<>:"/\\|?*')


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_only_linux_is_asked_for_its_malloc(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(ctypes, "CDLL", None)  # CDLL(None) raises on Windows
    assert not allocator.keep_freed_memory()


def test_peak_memory_is_in_bytes_on_every_system_that_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    linux = resources.peak_memory()
    assert linux is not None
    assert 1 << 26 < linux < 1 << 40
    monkeypatch.setattr(resources, "sys", SimpleNamespace(platform="darwin"))
    darwin = resources.peak_memory()
    assert darwin is not None
    assert linux <= darwin * 1024 < 2 * linux
    monkeypatch.setitem(sys.modules, "resource", None)
    assert resources.peak_memory() is None


def test_the_clone_holds_no_names_that_windows_refuses() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=3) for line in listed.splitlines()]
    assert rows
    links = [name for mode, _, _, name in rows if mode == "120000"]
    assert links == ["stylegan_di/dnnlib", "stylegan_di/torch_utils"]  # the package does without them: see below
    assert [name for _, _, _, name in rows if set(name) & set('<>:"\\|?*')] == []
    lower = [name.lower() for _, _, _, name in rows]
    assert len(set(lower)) == len(lower)  # no two names differ by case alone


def test_a_clone_without_links_works(tmp_path: Path) -> None:
    """As Git for Windows makes it: files with the links' targets in their place."""
    for name in ("dnnlib", "torch_utils", "stylegan_di"):
        left_out = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=left_out)
    for name in ("dnnlib", "torch_utils"):
        (tmp_path / "stylegan_di" / name).unlink()
        (tmp_path / "stylegan_di" / name).write_text(f"../{name}")
    code = (
        "import stylegan_di.random, stylegan_di.dnnlib.util as util;"
        "import stylegan_di.torch_utils.copies as copies; print(util.__file__, copies.__file__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.split() == [str(tmp_path / "dnnlib/util.py"), str(tmp_path / "torch_utils/copies.py")], ran.stderr
