"""The build of native kernels: once, under a key of all it depends on, and never in a run's way."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils.ops import build

ROOT = Path(__file__).resolve().parent.parent
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo fake 1.0; exit; fi
echo called >> "{calls}"
{body}
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a compiler that notes its calls in the file returned."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    install_compiler(tmp_path, monkeypatch, "sleep 0.5")
    return tmp_path / "calls"


def install_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    path = folder / "compiler"
    path.write_text(COMPILER.format(calls=folder / "calls", body=body))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_one_of_many_processes_builds(calls: Path) -> None:
    code = "from stylegan_di.torch_utils.ops.build import build, recipe; print(build(recipe('cpu')))"
    command = [sys.executable, "-W", "error", "-c", code]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert paths == {str(build.recipe("cpu").library)}
    assert count(calls) == 1
    assert build.recipe("cpu").library.read_text() == "library\n"


def test_what_is_built_is_kept(calls: Path) -> None:
    plan = build.recipe("cpu")
    assert build.build(plan) == build.build(plan) == plan.library
    assert count(calls) == 1
    assert {path.suffix for path in plan.library.parent.iterdir()} == {".so", ".lock", ".sha256"}


def test_key_covers_all_that_matters(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [build.recipe("cpu").key]
    monkeypatch.setattr(torch, "__version__", "2.99")
    keys.append(build.recipe("cpu").key)
    compiler = Path(os.environ["CXX"])
    compiler.write_text(compiler.read_text().replace("fake 1.0", "fake 1.1"))
    keys.append(build.recipe("cpu").key)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    keys.append(build.recipe("cpu").key)
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    for header in ("cpu/common.h", "kernels.h"):
        (sources / header).write_text("// changed")
        keys.append(build.recipe("cpu").key)
    assert len(set(keys)) == len(keys)
    assert build.recipe("cpu").key == keys[-1]


def test_no_compiler_means_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    words = build.load("cpu", may_build=True)
    assert words.startswith("reference (there is no compiler (c++, g++, clang++): install one")


def test_broken_compiler_is_told_in_full_and_tried_once(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compiler(tmp_path, monkeypatch, "echo first line >&2; echo 'error: second line' >&2; exit 3")
    assert build.load("cpu", may_build=True) == (
        "reference (building native kernels failed: stylegan-di doctor says why)"
    )
    assert build.load("cpu", may_build=True).startswith("reference")
    assert count(calls) == 1
    plan = build.recipe("cpu")
    with pytest.raises(build.BuildError, match=r"(?s)ops\.cpp.*exit status 3\nfirst line\nerror: second line"):
        build.build(plan, again=True)
    assert count(calls) == 2
    assert not plan.library.exists()
    install_compiler(tmp_path, monkeypatch, ":")
    build.build(plan, again=True)
    assert not plan.failure.exists()


def test_only_what_is_built_is_loaded_unless_asked(calls: Path) -> None:
    assert build.load("cpu", may_build=False).startswith("reference (native kernels are not built")
    assert count(calls) == 0


def planted(path: Path, what: str, tmp_path: Path) -> None:
    """Puts something else in the place of a library or of its folder."""
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:3])
    elif what == "changed":
        path.write_bytes(b"Library\n")
    elif what == "writable by all":
        path.chmod(0o666)
    elif what == "link":
        (tmp_path / "planted.so").write_text("library\n")
        path.unlink()
        path.symlink_to(tmp_path / "planted.so")
    elif what == "without checksum":
        path.with_suffix(".sha256").unlink()
    elif what == "other owner":
        os.chown(path, 12345, -1)
    elif what == "folder writable by all":
        path.parent.chmod(0o777)
    elif what == "folder of another":
        os.chown(path.parent, 12345, -1)
    elif what == "folder is a link":
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.symlink_to(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("truncated", "has another SHA-256 than its build"),
        ("changed", "has another SHA-256 than its build"),
        ("writable by all", "can be written by others"),
        ("link", "is a link"),
        ("without checksum", "has no SHA-256 beside it"),
        ("other owner", "belongs to another user"),
        ("folder writable by all", "can be written by others"),
        ("folder of another", "belongs to another user"),
        ("folder is a link", "is a link"),
    ],
)
def test_what_was_planted_is_not_loaded_but_built_again(
    calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture, what: str, words: str
) -> None:
    if os.geteuid() and ("owner" in what or "another" in what):
        pytest.skip("only root can give files away")
    library = build.build(build.recipe("cpu"))
    planted(library, what, tmp_path)
    assert not build.is_built("cpu")
    assert build.load("cpu", may_build=False).startswith("reference (native kernels are not built")
    assert words in capsys.readouterr().err
    assert build.build(build.recipe("cpu")) == library
    assert words in capsys.readouterr().err
    assert library.read_text() == "library\n"
    assert count(calls) == 2
    assert not library.is_symlink()
    assert library.parent.lstat().st_mode & 0o7777 == 0o700
    assert {path.lstat().st_mode & 0o777 for path in (library, library.with_suffix(".sha256"))} == {0o600}
    assert build.is_built("cpu")


def test_the_umask_does_not_matter(calls: Path) -> None:
    before = os.umask(0)
    try:
        build.build(build.recipe("cpu"))
        assert build.is_built("cpu")
    finally:
        os.umask(before)


def test_a_library_that_does_not_load_is_no_end(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a text file."""
    monkeypatch.setattr(build, "attached", lambda device: False)
    assert build.load("cpu", may_build=True).startswith("reference (Could not load this library")


def test_cuda_kernels_are_for_the_gpu_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch finds none"):
        build.recipe("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert "-arch=sm_90" in build.recipe("cuda").flags


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="on Linux only, not on win32"):
        build.recipe("cpu")


def test_command_line(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    build.main(["--device=cpu"])
    assert capsys.readouterr().out == f"{build.recipe('cpu').library}\n"
    install_compiler(tmp_path, monkeypatch, "echo broken >&2; exit 1")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "other"))
    with pytest.raises(SystemExit) as end:
        build.main([])
    assert end.value.code == 1
    assert "broken" in capsys.readouterr().err
