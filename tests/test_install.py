"""The command stylegan-di: what it has, and that a wheel made of the source distribution gives it in an empty place."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import stylegan_di
from stylegan_di.commands import COMMANDS, main
from stylegan_di.commands.generate import main as generate
from stylegan_di.dnnlib.util import not_installed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest requires it there

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
#: Of the source tree, what a build reads.
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile", "Dockerfile", "environment.yml",
           "train.py", "generate.py", "calc_metrics.py", "stylegan_di", "tools", "docs", "examples")  # fmt: skip
#: Scripts of a clone -> the command that they are.
SCRIPTS = {
    "train": "train", "generate": "generate", "calc_metrics": "metrics", "tools.dataset_tool": "dataset",
    "tools.make_reference": "reference", "tools.inspect_pickle": "inspect", "tools.convert": "convert",
    "tools.compare": "compare", "tools.interpolate": "interpolate", "tools.style_mixing": "style-mix",
    "tools.projector": "project", "tools.preflight": "preflight", "tools.spectrum": "spectrum",
    "tools.doctor": "doctor", "tools.view": "view",
}  # fmt: skip


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments), prog_name="stylegan-di")


# The command.


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_by_its_own_name(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: stylegan-di {name} ")
    assert f"stylegan-di {name}" in result.output.partition("\n")[2]  # an example


def test_help_lists_the_commands_without_importing_pytorch() -> None:
    script = "import sys; from stylegan_di.commands import main; main(standalone_mode=False); assert 0"
    script = script.replace("assert 0", "assert 'torch' not in sys.modules")
    output = subprocess.run([sys.executable, "-c", script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    assert all(re.search(rf"^  {name} ", output.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("trian", "train"), ("calc_metrics", "metrics"), ("style_mix", "style-mix"), ("projector", "project")],
)
def test_a_mistyped_command_is_told_the_nearest(typed: str, meant: str) -> None:
    result = invoke(typed)
    assert result.exit_code == 2
    assert f"Error: there is no command '{typed}'; did you mean {meant}?" in result.stderr


def test_an_unknown_command_is_told_where_the_commands_are_listed() -> None:
    result = invoke("xyzzy")
    assert result.exit_code == 2
    assert "Try 'stylegan-di --help' for help." in result.stderr
    assert "Error: there is no command 'xyzzy'\n" in result.stderr


@pytest.mark.parametrize(("script", "name"), SCRIPTS.items())
def test_a_script_is_the_command(script: str, name: str) -> None:
    assert importlib.import_module(script).main is main.get_command(click.Context(main), name)  # type: ignore[attr-defined]


def test_the_page_of_installation_lists_every_command_and_script() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `stylegan-di ([\w-]+)` \| (?:`python (\S+)\.py`)? \|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == [name for name in COMMANDS if name in dict(rows)]
    assert dict(rows).keys() == COMMANDS.keys()
    assert {script.replace("/", "."): name for name, script in rows if script} == SCRIPTS


def test_the_package_shows_its_public_names() -> None:
    names = {"RefusedFileError", "UserError", "load_denoiser", "load_generator"}
    assert set(dir(stylegan_di)) == names == set(stylegan_di.__all__)
    assert all(callable(getattr(stylegan_di, name)) for name in names)


@functools.cache
def parsed() -> dict[Path, ast.Module]:
    """The modules of the package."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "stylegan_di").rglob("*.py")}


def test_messages_name_commands_and_not_the_scripts_of_a_clone() -> None:
    scripts = re.compile(r"tools/|\b(calc_metrics|dataset_tool|make_reference|inspect_pickle|projector)\.py")
    for path, tree in parsed().items():
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                assert not scripts.search(node.value), f"{path}:{node.lineno}"


# What is optional.


def test_all_is_every_extra() -> None:
    assert EXTRAS["all"] == [f"stylegan-di[{','.join(name for name in EXTRAS if name not in ('all', 'dev'))}]"]


def test_every_message_about_a_missing_package_names_the_extra_that_has_it() -> None:
    found = []
    for path, tree in parsed().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "not_installed":
                package, extra = (a.value if isinstance(a, ast.Constant) else None for a in node.args[1:])
                assert isinstance(extra, str)
                requirements = [re.split("[>=]", requirement)[0] for requirement in EXTRAS[extra]]
                assert package is None or package in requirements, (path, package)
                found.append(extra)
    assert {"diffusers", "peft", "hub", "onnx", "video", "plot", "lmdb", "effnet"} <= set(found)
    assert str(not_installed("--x=1", "av", "video")) == (
        '--x=1 needs the package av, which is not installed: pip install ".[video]" in the clone, or pip install av'
    )


def test_the_page_of_installation_names_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(EXTRAS) - {"dev"}


# The image.


def test_the_image_is_made_by_the_steps_of_the_makefile() -> None:
    """Nothing here can run Docker: what its file names is compared with the files that are tested."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    steps = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    (torch,) = set(re.findall(r"torch==[\d.]+", steps))
    assert torch in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert torch in (ROOT / "README.md").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM (\S+) AS (\w+)$", steps, re.MULTILINE))
    assert set(stages.values()) == {"cpu", "cuda"}
    assert steps.index("ARG DEVICE=cpu") < steps.index("FROM ") < steps.index("FROM ${DEVICE}\n")
    versions = re.findall(r"python:(3\.\d+)", steps)
    assert versions
    for version in versions:
        assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", steps, re.MULTILINE)
    assert set(extras.split(",")) <= set(EXTRAS)
    order = [steps.index(step) for step in ("pip install ${TORCH}", "COPY stylegan_di", 'pip install ".[${EXTRAS}]"')]
    assert order == sorted(order)
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for names in re.findall(r"^COPY (.*) \S+$", steps, re.MULTILINE):
        for name in names.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in let_in
    (entry,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', steps, re.MULTILINE)
    assert entry in PROJECT["scripts"]
    for command in re.findall(r"^#   docker run .* stylegan-di (\w+) ", text, re.MULTILINE):
        assert command in COMMANDS


# A wheel in an empty place.


def build(kind: str, source: Path, dest: Path) -> Path:
    """Builds an 'sdist' or a 'wheel' of a source tree by the build backend that pyproject.toml names."""
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, dest], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = dest.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the source distribution of this tree."""
    version = importlib.metadata.version("setuptools")
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {version} is too old to build the project, which needs 77")
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "tree").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
    with tarfile.open(build("sdist", folder / "tree", folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    assert {"train.py", "tools", "docs", "Dockerfile"} <= set(os.listdir(unpacked))
    return build("wheel", unpacked, folder)


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    walked = os.walk(ROOT / "stylegan_di", followlinks=True)  # dnnlib and torch_utils are linked
    files = [Path(folder, name) for folder, _, names in walked for name in names if "__pycache__" not in folder]
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a new environment that holds the wheel, and sees the packages it requires."""
    if not list(importlib.metadata.distributions(name="pip")):
        pytest.skip("pip, which installs the wheel, is not installed")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--quiet", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = folder.rglob("site-packages")
    (site / "required.pth").write_text(sysconfig.get_paths()["purelib"])  # a line of a .pth runs no .pth of that folder
    return programs


def run(installed: Path, folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program = installed / command[0]
    done = subprocess.run([program, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_installed_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    assert "did you mean" not in run(installed, tmp_path, "stylegan-di", "--help")
    assert run(installed, tmp_path, "stylegan-di", "--version") == f"stylegan-di, version {PROJECT['version']}\n"
    where = run(installed, tmp_path, "python", "-c", "import stylegan_di; print(stylegan_di.__file__)")
    assert Path(where).is_relative_to(installed.parent)
    told = run(installed, tmp_path, "python", "-m", "stylegan_di", "inspect", "fashion-gan.pkl")
    assert "network     G_ema (Generator 16x16x1, 10 classes" in told
    command = ["--network=fashion-gan.pkl", "--class=8", "--seeds=0-1", "--device=cpu"]
    run(installed, tmp_path, "stylegan-di", "generate", *command, "--outdir=there")
    assert CliRunner().invoke(generate, [*command, f"--outdir={tmp_path / 'here'}"]).exit_code == 0
    for name in ("seed0000.png", "seed0001.png"):
        there, here = (np.asarray(Image.open(tmp_path / place / name), dtype=int) for place in ("there", "here"))
        assert np.abs(there - here).max() <= 1
        assert there.std() > 10
