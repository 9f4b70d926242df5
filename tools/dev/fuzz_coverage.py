"""Fuzzes every reader of files from outside, guided by coverage: inputs that reach new code are kept and altered again.

    pip install atheris
    python tools/dev/fuzz_coverage.py --format=pickle --seconds=600 --report=pickle.json

Formats are pickle and safetensors (opened up to building their networks), npz (reference statistics), state (a training
state whose manifest fits it) and dataset (a zip, every image and label of it). Whatever an input is, it must be read or
refused. Counted are executions, uncaught exceptions, inputs that take over 2 s of processor time, events of an audit
hook that tell of code that runs, and the largest memory beyond what the process had before the first input; the allowed
peak is 4 times the largest input and 200 MB. Failing inputs are kept beside the report. With --corpus, inputs that
reached new code are kept too, and the next run goes on from them. libFuzzer ends the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["stylegan_di"]) if atheris else contextlib.nullcontext():
    from stylegan_di.config import TrainConfig
    from stylegan_di.data.dataset import ImageDataset
    from stylegan_di.dnnlib.util import UserError, sha256_of_file
    from stylegan_di.metrics.references import load_references
    from stylegan_di.runs import resume, statefile
    from stylegan_di.snapshots import adm
    from stylegan_di.snapshots.blueprint import build
    from stylegan_di.snapshots.formats import read_contents
    from stylegan_di.snapshots.writing import to_safetensors
    from stylegan_di.torch_utils.persistence import RefusedFileError
    from stylegan_di.torch_utils.torch_archive import read_state_dict

import numpy as np
import torch
from PIL import Image

from tools.dev.benchmark import kib_of_process
from tools.dev.fuzz_pickles import MUTATIONS, WATCHED, Base, base_files, mutate, opcode_starts, small_denoiser

MAX_LENGTH = 1 << 16  # bytes of an input
MAX_SECONDS = 2.0
MAX_MEMORY = 4 * MAX_LENGTH + (200 << 20)
REPORT_EVERY = 100  # executions
WARM_UP = 200  # executions before memory counts, in which libraries allocate what they keep
FORMATS = ("pickle", "safetensors", "archive", "npz", "state", "dataset")


# What is opened, and how.


def open_network(data: bytes, suffix: str) -> None:
    contents = read_contents(data, "input", suffix)
    for name, blueprint in contents.blueprints.items():
        if blueprint is not None:
            build(blueprint, name, "input")


def open_archive(data: bytes) -> None:
    weights = read_state_dict(data, "input")
    with contextlib.suppress(RefusedFileError):  # it is read, though hardly any is one of ADM's networks
        adm.to_blueprint(weights, "input")


def open_reference(data: bytes, folder: Path) -> None:
    (folder / "ref.npz").write_bytes(data)
    load_references(folder / "ref.npz")


def open_state(data: bytes, folder: Path) -> None:
    path = statefile.state_path(folder, 4)
    path.write_bytes(data)
    manifest = {
        "format": statefile.FORMAT, "bytes": len(data), "sha256": sha256_of_file(path), "versions": {},
        "config_sha256": resume.config_hash(TrainConfig("di", teacher="x")),
    }  # fmt: skip
    statefile.manifest_path(path).write_text(json.dumps(manifest))
    resume.changed_config(statefile.load_state(path), {})


def open_dataset(data: bytes, folder: Path) -> None:
    (folder / "data.zip").write_bytes(data)
    ImageDataset(folder / "data.zip", use_labels=True).preload()


def opener(format: str, folder: Path) -> Callable[[bytes], None]:
    return {
        "pickle": lambda data: open_network(data, ".pkl"),
        "safetensors": lambda data: open_network(data, ".safetensors"),
        "archive": open_archive,
        "npz": lambda data: open_reference(data, folder),
        "state": lambda data: open_state(data, folder),
        "dataset": lambda data: open_dataset(data, folder),
    }[format]


def seeds(format: str, folder: Path) -> list[bytes]:
    """Returns small valid files."""
    if format == "pickle":
        return [base.data for base in base_files() if len(base.data) < MAX_LENGTH]
    if format == "safetensors":
        return [to_safetensors({"ema": small_denoiser()}, {"sigma_init": 2.5}, {"a": 1.0})]
    if format == "archive":
        buffer = io.BytesIO()
        weights = {"time_embed.0.weight": torch.zeros(4, 4), "out.2.weight": torch.nn.Parameter(torch.ones(2))}
        torch.save(weights, buffer)
        return [buffer.getvalue()]
    if format == "npz":
        buffers = [io.BytesIO(), io.BytesIO()]
        x = np.random.default_rng(0).normal(size=[5, 3])
        arrays: dict[str, Any] = {"mu": x.mean(0), "sigma": np.cov(x.T), "num": 5, "features": x}
        arrays["labels"] = np.arange(5)
        np.savez(buffers[0], **arrays)
        np.savez_compressed(buffers[1], **arrays)
        return [buffer.getvalue() for buffer in buffers]
    if format == "state":
        path = statefile.state_path(folder, 4)
        config = asdict(TrainConfig("di", teacher="x"))
        statefile.save_state(path, {"a": torch.zeros(3)}, {"state": {"cur_nimg": 4}}, config, "0" * 64)
        return [path.read_bytes()]
    return [zip_of_images("PNG"), zip_of_images("JPEG")]


def zip_of_images(kind: str) -> bytes:
    buffer, labels = io.BytesIO(), []
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(2):
            picture = io.BytesIO()
            Image.new("RGB", (4, 4), (number, 50, 90)).save(picture, kind)
            archive.writestr(f"{number}.{kind.lower()}", picture.getvalue())
            labels.append([f"{number}.{kind.lower()}", number])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return buffer.getvalue()


# How inputs are altered: inside the form that they must have, so that they get past the first check.


class Mutator:
    """Alters an input of a format; half of the time, or if it lost its form, byte by byte."""

    def __init__(self, format: str, given: list[bytes]) -> None:
        self.alter = {
            "pickle": self.pickle, "safetensors": self.header, "archive": self.archive, "state": self.header,
            "npz": self.archive, "dataset": self.archive,
        }[format]  # fmt: skip
        self.bases = [Base("seed", data, opcode_starts(data)) for data in given] if format == "pickle" else []

    def __call__(self, data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            with contextlib.suppress(Exception):  # the input has lost its form
                return self.alter(data, rng)[:longest]
        return bytes(atheris.Mutate(data, longest))

    def pickle(self, data: bytes, rng: random.Random) -> bytes:
        changed = bytearray(data)
        base = Base("input", data, opcode_starts(data))
        mutate(rng.choice(MUTATIONS), changed, base, rng.choice(self.bases), rng)
        return bytes(changed)

    def header(self, data: bytes, rng: random.Random) -> bytes:
        """Alters a header of safetensors, or what is JSON in its metadata, and writes its length anew."""
        end = 8 + int.from_bytes(data[:8], "little")
        text = data[8:end]
        if rng.random() < 0.5:
            header = json.loads(text)
            name = rng.choice(list(header["__metadata__"]))
            part = header["__metadata__"][name].encode()
            header["__metadata__"][name] = bytes(atheris.Mutate(part, len(part) + 64)).decode("utf-8", "replace")
            text = json.dumps(header).encode()
        else:
            text = bytes(atheris.Mutate(text, len(text) + 64))
        return len(text).to_bytes(8, "little") + text + data[end:]

    def archive(self, data: bytes, rng: random.Random) -> bytes:
        """Alters one member of a zip, whose checksum is then right."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
            names = old.namelist()
            chosen = rng.choice(names)
            for name in names:
                member = old.read(name)
                new.writestr(name, bytes(atheris.Mutate(member, len(member) + 64)) if name == chosen else member)
        return buffer.getvalue()


# The run.


class Run:
    """Opens inputs and keeps the figures."""

    def __init__(self, format: str, report: Path, folder: Path) -> None:
        self.format, self.report = format, report
        self.open = opener(format, folder)
        self.figures = {"executions": 0, "uncaught": 0, "slow": 0, "ran code": 0, "read": 0, "refused": 0}
        self.slowest, self.memory_before, self.begin = 0.0, 0, time.monotonic()
        self.events: list[str] = []

    def one(self, data: bytes) -> None:
        self.figures["executions"] += 1
        self.events.clear()
        start = time.process_time()
        try:
            self.open(data)
            self.figures["read"] += 1
        except UserError:
            self.figures["refused"] += 1
        except Exception:
            self.fail("uncaught", data, traceback.format_exc())
        seconds = time.process_time() - start
        self.slowest = max(self.slowest, seconds)
        if seconds > MAX_SECONDS:
            self.fail("slow", data, f"{seconds:.1f} s")
        if self.events and self.format in ("pickle", "safetensors", "archive"):  # others write files
            self.fail("ran code", data, self.events[0])
        if self.figures["executions"] == WARM_UP:
            Path("/proc/self/clear_refs").write_text("5")
            self.memory_before = kib_of_process("VmHWM") * 1024
            sys.addaudithook(lambda event, _: self.events.append(event) if event.startswith(WATCHED) else None)
        if self.figures["executions"] % REPORT_EVERY == 0:
            self.write()

    def fail(self, kind: str, data: bytes, what: str) -> None:
        self.figures[kind] += 1
        if self.figures[kind] <= 5:
            self.report.with_suffix(f".{kind.replace(' ', '-')}-{self.figures[kind]}").write_bytes(data)
            self.report.with_suffix(f".{kind.replace(' ', '-')}-{self.figures[kind]}.txt").write_text(what)

    def write(self) -> None:
        memory = max(kib_of_process("VmHWM") * 1024 - self.memory_before, 0) if self.memory_before else 0
        figures = self.figures | {
            "format": self.format, "slowest_s": round(self.slowest, 3), "seconds": round(time.monotonic() - self.begin),
            "peak_bytes": memory, "over_memory": int(memory > MAX_MEMORY),
        }  # fmt: skip
        self.report.write_text(json.dumps(figures, indent=2) + "\n")


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option("--format", type=click.Choice(FORMATS), required=True, help="Which reader.")
@click.option("--seconds", type=click.IntRange(min=1), default=60, show_default=True, help="How long.")
@click.option("--seed", type=click.IntRange(min=1), default=1, show_default=True, help="Seed of the mutations.")
@click.option("--report", type=click.Path(path_type=Path), required=True, help="File for the figures.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Folder of kept inputs. [default: a new one]")
def main(format: str, seconds: int, seed: int, report: Path, corpus: Path | None) -> None:
    if atheris is None:
        raise click.ClickException("coverage-guided fuzzing needs the package atheris: pip install atheris")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = corpus or folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    run = Run(format, report, folder)
    given = seeds(format, folder)
    for number, data in enumerate(given):
        (corpus / str(number)).write_bytes(data)
        run.open(data)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", f"-seed={seed}", "-len_control=0"]
    options += ["-rss_limit_mb=0", "-timeout=60"]
    atheris.Setup([sys.argv[0], str(corpus), *options], run.one, custom_mutator=Mutator(format, given))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
