"""Every command line of README.md and docs/*.md runs as it is written, on stand-ins for the files that it names.

Trainings run with --dry-run and other commands with fewer samples. What cannot run here (CUDA, Docker, package indices,
benchmarks of minutes) is parsed, and the files, extras and targets that it names are looked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from stylegan_di.commands import COMMANDS
from stylegan_di.interfaces import Classifier
from stylegan_di.metrics.extractors import EXTRACTORS
from stylegan_di.metrics.statistics import FeatureSums, save_stats
from stylegan_di.zoo import resolve
from tests import test_adm, test_edm_weights
from tests.datasets import encode, pixels, write
from tests.test_dataset_tool import IMAGES, LABELS, idx, save_cifar
from tests.test_install import EXTRAS, SCRIPTS
from tests.tiny import save_files, save_gan, save_teacher

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = r"(?:python|stylegan-di|torchrun|make|pip|conda|docker|bash|pytest|compute-sanitizer|nice|until|[A-Z_]+=\S+)"
#: Appended to a command, so that it takes less time. An option that is given twice has its last value.
SHORTER: dict[str, list[str] | None] = {
    "train": ["--dry-run"],
    "generate": [],
    "metrics": ["--num=16"],
    "dataset": [],
    "reference": [],
    "inspect": [],
    "convert": [],
    "compare": ["--num=4"],
    "interpolate": ["--frames=2", "--seeds=0-1", "--grid=1x1"],
    "style-mix": [],
    "project": ["--num-steps=1"],
    "preflight": ["--headroom=8", "--steps=1", "--batch=8", "--force=true"],
    "spectrum": ["--num=8"],
    "push": None,  # asks the hub; its own test has a server that stands in
    "view": None,  # serves until it is stopped; tests/test_view.py runs it
    "doctor": None,  # builds kernels; tests/test_doctor.py runs it
}
#: What stands for a word that the reader replaces.
WORDS = {
    r"\bFILE\b(?!\.)": "my-gan.pkl", r"\bIN OUT\b": "my-gan.pkl out/converted.safetensors",
    r"\bOLD NEW\b": "my-gan.pkl my-gan.pkl",
    r"\bSEED\b": "1", r"\b(A|B|FINE|COARSE)\.pkl": "my-edm.pkl",
    r"\bPIPELINE\b": "pipeline", r"\bAUTOENCODER\b": "autoencoder", r"\bHOST\b": "localhost",
    "/usr/share/datasets/fashion-mnist": "fashion-mnist", "training-state-000200000": "training-state-000000008",
    "--device=cuda": "--device=cpu", r"--teacher=hf:OWNER/\w+": "--teacher=my-edm.pkl",
    r"hf:OWNER/NAME(/[\w./]+)?": "my-gan.pkl",
    r"runs/00000-\.\.\./": "runs/00003-gan-di-ikl-batch64/", r"runs/00003-\.\.\./": "runs/00003-gan-di-ikl-batch64/",
    r"(train\.py(?: --gpus=8)?|stylegan-di train(?: --gpus=8)?) \.\.\.": r"\1 --kind=di --gan-pkl=fashion-gan.pkl",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A command of a page as it is written, without its comment."""

    page: str
    number: int
    text: str


def lines_of(page: Path) -> Iterator[Line]:
    """The indented commands of a page, and those in code spans, except the lineage's."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", lambda m: re.sub("[^\n]", "", m[0]), text, flags=re.MULTILINE | re.DOTALL)
    indented = re.finditer(rf"^    ({PROGRAMS} .*(?:\\\n.*)*)$", text, re.MULTILINE)
    spans = re.finditer(rf"`({PROGRAMS} [^`\n]*)`", text)
    for found in sorted([*indented, *spans], key=lambda m: m.start()):
        command = re.sub(r"\s*\\\n\s*", " ", found[1])
        if "# theirs" not in command:
            yield Line(page.name, text.count("\n", 0, found.start()) + 1, re.sub(r"\s+(#|\().*", "", command))


def added_options(page: Path) -> Iterator[Line]:
    """What README.md's table says to add to the command above it."""
    text = page.read_text(encoding="utf-8")
    for row in re.finditer(r"^\| [^|]* \| (.*) \|$", text, re.MULTILINE):
        for options in re.findall(r"`(--[^`]*=[^`]*)`", row[1]):
            yield Line(page.name, text.count("\n", 0, row.start()) + 1, f"{OWN_PICKLES} {options}")


OWN_PICKLES = "stylegan-di train --kind=di --gan-pkl=my-gan.pkl --teacher=my-edm.pkl --ref=my-reference.npz"
LINES = {page.name: list(lines_of(page)) for page in PAGES}
LINES["README.md"] += added_options(ROOT / "README.md")
assert OWN_PICKLES in {line.text for line in LINES["README.md"]}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small file of each name on the pages, and the run of a training that stopped."""
    folder = tmp_path_factory.mktemp("stand-ins")
    files = save_files(folder)
    for name in ("my-edm", "sid-cifar10-uncond-alpha1.2"):
        shutil.copy(files["teacher"], folder / f"{name}.pkl")
    for name in ("my-gan", "my-pets", "ffhq", "cifar10"):
        shutil.copy(files["gan"], folder / f"{name}.pkl")
    save_gan(folder / "my-cats.pkl", c_dim=0)
    save_teacher(folder / "my-latents.pkl", img_channels=4)
    save_gan(folder / "my-256.pkl", resolution=64)
    test_adm.saved(folder / "64x64_diffusion.pt", test_adm.weights_of(test_adm.adm.LAYOUTS[0]))
    torch.save(test_edm_weights.weights(), folder / "dmd2-imagenet64-fid1.28.bin")
    sums = FeatureSums(Inception.dim)
    sums.append(torch.rand([8, 1], generator=torch.Generator().manual_seed(0)))
    for name in ("cifar10-32x32.npz", "my-reference.npz"):
        save_stats(folder / name, sums.finish(extractor="inception"))
    zipped = shutil.make_archive(str(folder / "my"), "zip", files["data"])
    for name in ("ffhq.zip", "cifar10-32x32.zip", "home/datasets/ffhq.zip", "datasets/cifar10-32x32.zip"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(zipped, folder / name)
    images = {f"{index % 10}/{index}.png": encode(pixels(index, size=32, channels=1)) for index in range(20)}
    write(folder / "datasets" / "fashion-32-test.zip", images)
    images = {f"{index % 10}/{index}.png": encode(pixels(index, size=16, channels=1)) for index in range(20)}
    write(folder / "datasets" / "fashion-16-test.zip", images)
    write(folder / "drawings", {f"{n}.png": encode(pixels(n, size=16, channels=1)) for n in range(2)})
    for place in ("out", "out/seeds"):
        write(folder / place, {f"seed007{n}.png": encode(pixels(n, size=16, channels=1)) for n in (6, 7)})
    for place in (folder, folder / "home"):
        save_cifar(place / "cifar-10-python.tar.gz")
    (folder / "fashion-mnist").mkdir()
    (folder / "fashion-mnist" / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (folder / "fashion-mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    train = ["--kind=di", "--gan-pkl=my-gan.pkl", "--teacher=my-edm.pkl", "--metrics=none", "--kimg=0.008"]
    train += ["--batch=4", "--tick=0.004", "--snap=1", "--device=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(command_of("train"), train)
    assert result.exit_code == 0, result.output
    (run,) = (folder / "runs").iterdir()
    run = run.rename(folder / "runs" / "00003-gan-di-ikl-batch64")
    shutil.copy(resolve("fashion-gan.pkl"), run / "network-best.pkl")
    return folder


class Inception(Classifier):
    """Stands for Inception: one feature, an image's brightness, and two classes, dark and light."""

    name, dim = "inception", 1

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2, 3)).unsqueeze(1) / 255

    def probabilities(self, features: Tensor) -> Tensor:
        return torch.cat([features, 1 - features], dim=1)


def command_of(name: str) -> click.Command:
    command: click.Command = importlib.import_module(f"stylegan_di.commands.{name.replace('-', '_')}").main
    return command


def single_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a line of shell: what is joined by && and ||, without variables, loops and nice."""
    for pattern, word in WORDS.items():
        text = re.sub(pattern, word, text)
    for part in re.split(r"&&|\|\||;", text):
        words = shlex.split(part)
        while words and (words[0] in ("until", "do", "done") or "=" in words[0]):
            words = words[1:]
        if words[:2] == ["nice", "-n"]:
            words = words[3:]
        if words and words[0] != "[":
            yield words


def run(words: list[str]) -> str:
    """Runs or looks through one command; returns what is wrong with it, or ''."""
    program, *rest = words
    if program == "torchrun":
        rest = rest[next(index for index, word in enumerate(rest) if word.endswith(".py")) :]
        program = "python"
    if program == "python" and rest[0].endswith(".py"):
        module = rest[0].removesuffix(".py").replace("/", ".")
        if module not in SCRIPTS:  # a demo, a developer's tool: minutes
            return parsed(importlib.import_module(module).main, rest)
        program, rest = "stylegan-di", [SCRIPTS[module], *rest[1:]]
    if program == "stylegan-di" and len(rest) > 1 and SHORTER.get(rest[0]) is not None:
        arguments = [*rest[1:], *(SHORTER[rest[0]] or [])]
        result = CliRunner().invoke(command_of(rest[0]), arguments, catch_exceptions=False)
        fine = result.exit_code == 0 or "which is not installed: pip install" in result.stderr
        return "" if fine else result.output[-600:]
    return looked_through(program, rest)


def parsed(command: click.Command, words: list[str]) -> str:
    try:
        command.make_context(words[0], words[1:])
    except click.ClickException as error:
        return error.format_message()
    return ""


def looked_through(program: str, rest: list[str]) -> str:
    """What is wrong with a command that only names files, targets, extras and modules."""
    named: list[bool] = []
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        named = [word in targets for word in rest]
    elif program == "pip":
        extras = [extra for word in rest for found in re.findall(r"\[(.*)\]", word) for extra in found.split(",")]
        named = [rest[0] in ("install", "wheel"), *(extra in EXTRAS for extra in extras)]
    elif program == "stylegan-di":
        named = [rest[0] in COMMANDS or rest[0].startswith("--")]
    elif program == "python" and rest[0] == "-m":
        named = [importlib.util.find_spec(rest[1]) is not None]
        named += [(ROOT / word).exists() for word in rest if word.startswith("tests/")]
    elif program in ("bash", "conda", "pytest", "compute-sanitizer"):
        named = [(ROOT / word).exists() for word in rest if re.search(r"^tools/|^tests/|[.]yml$", word)]
    elif program == "docker":
        named = [(ROOT / "Dockerfile").is_file(), "stylegan-di" in rest]
    return "" if all(named) else "it names something that is not there"


@pytest.mark.parametrize("page", [name for name, lines in LINES.items() if lines])
def test_every_command_of_a_page_runs(
    page: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stand_ins, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here" / "home"))
    if any("PIPELINE" in line.text for line in LINES[page]) and importlib.util.find_spec("diffusers") is not None:
        pipelines = importlib.import_module("tests.tiny_pipelines")
        pipelines.save_text_to_image(tmp_path / "here" / "pipeline")
        one_level = dict(down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",))
        pipelines.autoencoder(**one_level, block_out_channels=(8,)).save_pretrained(tmp_path / "here" / "autoencoder")
    monkeypatch.setitem(EXTRACTORS, "inception", lambda path: Inception())
    wrong = []
    for line in LINES[page]:
        for words in single_commands(line.text):
            if said := run(words):
                wrong.append(f"{page}:{line.number}: {line.text}\n    {said}")
    assert not wrong, "\n".join(wrong)


def test_the_commands_of_the_pages_are_found() -> None:
    assert sum(map(len, LINES.values())) > 130
    assert {name for name, found in LINES.items() if len(found) > 5} >= {"README.md", "migration.md", "tools.md"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stylegan-di train --kind=di --gan-pkl=my-gan.pkl --teacher=my-edm.pkl", "needs --ref=NPZ"),
        ("OMP_NUM_THREADS=1 python train.py --kind=di --teacher=missing.pkl --ref=my-reference.npz", "no such file"),
        ("torchrun --nproc_per_node=2 train.py --kimgs=1", "No such option"),
        ("until python generate.py --seeds=0 || [ $? -lt 5 ]; do :; done", "Missing option '--network'"),
        ("python tools/demo.py --sed=0", "No such option"),
        ("make demos && pip install '.[vidoe]'", "not there"),
        ("pytest -m cuda tests/test_ops_cude.py", "not there"),
    ],
)
def test_a_command_that_fails_is_noticed(
    text: str, said: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_ins)
    assert any(said in run(words) for words in single_commands(text))
