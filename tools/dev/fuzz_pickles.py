"""Fuzzes the reader of network files with altered files and counts the outcomes; each must be read or refused.

    python tools/dev/fuzz_pickles.py --count=20000
    nice -n 10 python tools/dev/fuzz_pickles.py --count=1000000 --seed=1

Mutants are made from tests/golden/pickles and from networks written here at protocols 2 to 5, by swapping opcodes,
changing lengths, cutting, copying and splicing parts and inserting hostile code. Each is opened like a file given to
--network, up to building its networks. Under an audit hook and a memory limit, the run fails if a mutant imports,
opens, runs or compiles anything, raises anything but a refusal, or takes more than a second of processor time. Mutant N
of a seed is always the same: --first=N --count=1 repeats it.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import random
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.progress import Progress
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.networks.r3gan import Generator as R3GAN
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.networks.stylegan3 import Generator as StyleGAN3
from stylegan_di.snapshots.blueprint import build
from stylegan_di.snapshots.formats import read_contents
from stylegan_di.snapshots.stylegan3 import for_stylegan3
from stylegan_di.torch_utils.persistence import RefusedFileError, write_pickle
from tools.dev.benchmark import kib_of_process

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "pickles"
GOLDEN_SHARE = 0.02  # share of the mutants; golden files are a hundred times the size of ours
MEMORY = 1 << 30  # bytes of address space, of which Python and PyTorch take about 75%
ROOM = 1 << 28  # bytes to leave at least beyond what they take (a PyTorch with CUDA takes more)
MAX_SECONDS = 1.0
WATCHED = (
    "import", "exec", "compile", "open", "os.", "subprocess", "socket", "pickle", "ctypes", "marshal", "code.", "mmap",
    "shutil", "tempfile", "urllib", "cpython.run", "sys.addaudithook", "sys.set",
)  # fmt: skip
HOSTILE = (
    b"cos\nsystem\n\x8c\x04true\x85R", b"cbuiltins\nexec\n\x8c\x04pass\x85R", b"\x8c\x02os\x8c\x06system\x93",
    b"(ios\nsystem\n", b"cbuiltins\ngetattr\n\x8c\x01a\x8c\x01b\x86R", b"ctorch.hub\nload\n", b"\x82\x01", b"\x97",
    b"cbuiltins\neval\n\x8c\x011\x85R", b"cnumpy\nload\n", b"}}b", b"r\xff\xff\xff\x7f", b"((((", b"\x80\x04N.", b"Q",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"ctorch\nFloatStorage\n", b"cdnnlib.tflib.network\nNetwork\n)\x81}b",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A valid file, and the positions where its opcodes begin, including those of nested torch streams."""

    name: str
    data: bytes
    starts: tuple[int, ...]


# Base files.


def base_files() -> list[Base]:
    """Returns small files of every kind that can be read, then the golden ones."""
    torch.manual_seed(0)
    common: dict[str, Any] = dict(c_dim=2, img_resolution=4, img_channels=1)
    widths: dict[str, Any] = dict(channel_base=8, channel_max=2)
    generator = Generator(z_dim=2, w_dim=2, mapping_kwargs=dict(num_layers=1), synthesis_kwargs=widths, **common)
    discriminator = Discriminator(**common | dict(img_resolution=8), **widths, mapping_kwargs=dict(num_layers=1))
    denoiser = small_denoiser()
    gan = {"training_set_kwargs": {"path": "x"}, "G": generator, "D": discriminator, "G_ema": None}
    average = {"G_ema": generator}
    edm = {"ema": denoiser, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"path": "x", "n": [1, (2.5,)]}}
    half = {"ema": EDMPrecond(**denoiser.init_kwargs).half()}
    plain = {"a": np.float64(2), "b": np.arange(6).reshape(2, 3), "c": {"d": (1, 2, 3, 4), "e": set(), "f": 2**40}}
    files = {f"stylegan2-protocol-{p}": write_pickle(average, protocol=p) for p in (2, 3, 4, 5)}
    files["stylegan2-both"] = write_pickle(gan)
    files["edm"] = write_pickle(edm)
    files["edm-half-protocol-2"] = write_pickle(half, protocol=2)
    files |= {f"numpy-protocol-{p}": pickle.dumps(plain, p) for p in (2, 4, 5)}
    files["stylegan3"] = write_pickle({"G_ema": for_stylegan3(generator)})
    alias_free = StyleGAN3(z_dim=2, w_dim=2, num_layers=2, num_critical=1, channel_base=8, channel_max=2, **common)
    files["alias-free"] = write_pickle({"G_ema": alias_free})
    stages: dict[str, Any] = dict(WidthPerStage=[2], CardinalityPerStage=[1], BlocksPerStage=[1], ExpansionFactor=1)
    residual = R3GAN(NoiseDimension=2, FP16Stages=[0], ConditionEmbeddingDimension=2, **stages, **common)
    files |= {f"r3gan-protocol-{p}": write_pickle({"G_ema": residual}, protocol=p) for p in (2, 4)}
    files |= {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("*.pkl"))}
    return [Base(name, data, opcode_starts(data)) for name, data in files.items()]


def small_denoiser() -> EDMPrecond:
    return EDMPrecond(img_resolution=4, img_channels=1, model_type="SongUNet", model_channels=4, channel_mult=[1],
                      num_blocks=1, attn_resolutions=[])  # fmt: skip


def opcode_starts(data: bytes) -> tuple[int, ...]:
    """Finds where opcodes begin in a file and in the torch streams nested in it."""
    starts = []
    for opcode, argument, position in pickletools.genops(data):
        assert position is not None
        starts.append(position)
        if isinstance(argument, bytes) and argument[:3] == b"\x80\x02\x8a":
            inner = data.index(argument, position)
            offset = 0
            for _ in range(5):
                positions = [at for _, _, at in pickletools.genops(argument[offset:]) if at is not None]
                starts += [inner + offset + at for at in positions]
                offset += positions[-1] + 1
            starts.append(inner + offset)  # the storage's count
        del opcode
    return tuple(starts)


# Mutants.


def mutant(bases: list[Base], small: int, seed: int, index: int) -> tuple[str, bytes]:
    """Returns the name of a base and an altered copy of it; the first `small` bases of the list are the small ones."""
    rng = random.Random(f"{seed}/{index}")
    golden = small < len(bases) and rng.random() < GOLDEN_SHARE
    base = rng.choice(bases[small:] if golden else bases[:small])
    data = bytearray(base.data)
    for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 4, 16))):
        mutate(rng.choice(MUTATIONS), data, base, bases[rng.randrange(small)], rng)
        if len(data) < 3:
            break
    return base.name, bytes(data)


def mutate(kind: str, data: bytearray, base: Base, other: Base, rng: random.Random) -> None:
    """Alters one place of a mutant; `kind` is one of MUTATIONS."""

    def at_opcode() -> int:
        """Draws a position where the base has an opcode, and usually the mutant still has one."""
        return min(rng.choice(base.starts), len(data) - 1)

    match kind:
        case "set byte":
            data[rng.randrange(len(data))] = rng.randrange(256)
        case "flip bit":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "swap opcode":
            data[at_opcode()] = ord(rng.choice(pickletools.opcodes).code)
        case "change argument":  # a byte after an opcode, where lengths, counts, memo indices and numbers are
            at = min(at_opcode() + rng.randrange(1, 9), len(data) - 1)
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, (data[at] + 1) % 256, (data[at] - 1) % 256))
        case "huge length":
            at, size = at_opcode() + 1, rng.choice((1, 4, 8))
            own = len(data).to_bytes(8, "little")[:size]
            data[at : at + size] = rng.choice((b"\xff" * size, b"\x7f" * size, own))
        case "cut":
            first, second = sorted((at_opcode(), at_opcode()))
            del data[first : min(second, first + rng.choice((1, 8, 64, 1024)))]
        case "repeat":
            at = at_opcode()
            piece = data[at : at + rng.choice((1, 4, 32, 256))]
            data[at:at] = piece * rng.choice((1, 1, 2, 50))
        case "splice":  # whole opcodes of another file
            start = rng.randrange(len(other.starts) - 1)
            end = min(start + rng.randrange(1, 40), len(other.starts) - 1)
            at = at_opcode()
            data[at : at + rng.choice((0, 0, 1, 16))] = other.data[other.starts[start] : other.starts[end]]
        case "exchange":
            first, second = sorted((at_opcode(), at_opcode()))
            size = rng.choice((1, 2, 8, 32))
            if first + size <= second:
                one, two = slice(first, first + size), slice(second, second + size)
                data[one], data[two] = data[two], data[one]
        case "truncate":
            del data[rng.choice((at_opcode(), rng.randrange(2, max(len(data), 3)))) :]
        case "attack":
            at = at_opcode()
            data[at : at + rng.choice((0, 0, 1, 4))] = rng.choice(HOSTILE)
        case "append stream":
            data += rng.choice((b"\x80\x04N.", other.data[:64], b"\0"))


MUTATIONS = (
    "set byte", "flip bit", "swap opcode", "change argument", "huge length", "cut", "repeat", "splice", "exchange",
    "truncate", "attack", "append stream", "swap opcode", "change argument",
)  # fmt: skip


# The run.


def open_as_a_network_file(data: bytes) -> str:
    """Opens a file; returns whether it was 'read' up to values, 'built' into networks, or 'refused'."""
    try:
        contents = read_contents(data, "mutant.pkl")
        blueprints = [(name, blueprint) for name, blueprint in contents.blueprints.items() if blueprint is not None]
        for name, blueprint in blueprints:
            build(blueprint, name, "mutant.pkl")
    except RefusedFileError:
        return "refused"
    return "built" if blueprints else "read"


def fuzz(count: int, seed: int, first: int) -> dict[str, Any]:
    """Opens `count` mutants; returns the counts, and the first few failures of each kind as (index, base, what)."""
    bases = base_files()
    small = sum(not (GOLDEN / f"{base.name}.pkl").is_file() for base in bases)
    for base in bases:  # makes the libraries import now what they import on first use
        open_as_a_network_file(base.data)
    for index in range(200):
        open_as_a_network_file(mutant(bases, small, -1, index)[1])
    events: list[str] = []
    progress = Progress("Mutants", count)
    import resource  # not on Windows

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = max(MEMORY, pages * resource.getpagesize() + ROOM)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(lambda event, arguments: events.append(event) if event.startswith(WATCHED) else None)
    outcomes: Counter[str] = Counter()
    failures: dict[str, list[tuple[int, str, str]]] = {"executions": [], "uncaught": [], "slow": []}
    slowest, begin = 0.0, time.monotonic()
    for index in range(first, first + count):
        name, data = mutant(bases, small, seed, index)
        events.clear()
        start = time.process_time()
        try:
            outcomes[open_as_a_network_file(data)] += 1
        except BaseException:
            if events:
                failures["executions"].append((index, name, events[0]))
            failures["uncaught"].append((index, name, traceback.format_exc()[-2000:]))
            continue
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        if events:
            failures["executions"].append((index, name, events[0]))
        if seconds > MAX_SECONDS:
            failures["slow"].append((index, name, f"{seconds:.2f} s"))
        if index % 256 == 0:
            progress.update(index - first)
    progress.close()
    return {
        "mutants": count, "seed": seed, "base_files": len(bases), **outcomes,
        **{kind: len(found) for kind, found in failures.items()},
        "slowest_s": round(slowest, 3), "seconds": round(time.monotonic() - begin, 1),
        "limit_bytes": limit, "peak_bytes": kib_of_process("VmHWM") * 1024,
        "first_failures": {kind: found[:3] for kind, found in failures.items() if found},
    }  # fmt: skip


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option("--count", type=click.IntRange(min=1), default=20000, show_default=True, help="Number of mutants.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the mutants.")
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the first mutant.")
def main(count: int, seed: int, first: int) -> None:
    results = fuzz(count, seed, first)
    click.echo(json.dumps(results, indent=2))
    if results["first_failures"]:
        raise click.ClickException("the reader failed, see first_failures; --first=N --count=1 repeats mutant N")


if __name__ == "__main__":
    main()
