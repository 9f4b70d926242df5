"""Kills trainings with SIGKILL at random moments, resumes them, and compares them with undisturbed trainings.

    python tools/dev/kill_test.py --kills=200 --fresh=20 --torn=1000 --seed=0

Two tiny trainings, a refinement with all parts (student, EMA, fake score, discriminator, ADA) and a GAN, are run
undisturbed, then repeatedly with kills, half of which are aimed at a save. Of the --kills, --fresh run a new
`python train.py`. The others run the same entry point in a child forked from a process that has already imported it and
what PyTorch imports at an optimizer's first step. --torn kills a process that only saves, that many times; after each
kill, every state with a manifest must be complete.
The exit status is 0 if all bits are equal and no state is torn.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

import train
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.journal.clock import UNSTEADY
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.runs import statefile
from stylegan_di.snapshots.checkpoint import save_snapshot

ROOT = Path(__file__).resolve().parents[2]
RESOLUTION = 8
STEPS = 24
TORN_SECONDS = 0.1  # a process that only saves is killed within this time
SAVE_SECONDS = 3.0  # how long a kill that is aimed at a save waits for one


@dataclass
class Tally:
    """How many kills are wanted, and counts of what was done and found."""

    wanted: int
    wanted_fresh: int
    kills: int = 0
    fresh: int = 0
    in_save: int = 0
    before_any_state: int = 0
    runs: int = 0
    differing: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.wanted - self.kills

    def next_is_fresh(self) -> bool:
        """Whether the next kill is of a fresh process; these are spread evenly over all."""
        fresh = self.wanted_fresh - self.fresh
        return fresh > 0 and self.left > 0 and self.left % max(self.left // fresh, 1) == 0


def make_files(folder: Path) -> dict[str, list[str]]:
    """Writes networks and images that train at milliseconds per step; returns the options of the two trainings."""
    torch.manual_seed(0)
    common: dict[str, Any] = dict(img_resolution=RESOLUTION, img_channels=1)
    widths: dict[str, Any] = dict(channel_base=64, channel_max=8)
    generator = Generator(
        z_dim=8, w_dim=8, c_dim=0, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=widths, **common
    )
    gan = {"G": generator, "D": Discriminator(c_dim=0, **common, **widths), "G_ema": generator, "augment_pipe": None}
    save_snapshot(folder / "gan.pkl", gan, extras={"training_set_kwargs": {}}, metadata={})
    teacher = EDMPrecond(
        label_dim=0, model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[],
        **common,
    )  # fmt: skip
    save_snapshot(folder / "teacher.pkl", {"ema": teacher}, extras={"dataset_kwargs": {}}, metadata={})
    (folder / "data").mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, [24, RESOLUTION, RESOLUTION], np.uint8)):
        Image.fromarray(pixels).save(folder / "data" / f"{index}.png")
    shared = [
        "--device=cpu", "--batch=4", f"--kimg={STEPS * 4 / 1000}", "--tick=0.008", "--snap=4", "--state=1",
        "--metrics=none", "--workers=0", f"--data={folder / 'data'}", "--aug=ada", "--augpipe=blit", "--ada-kimg=0.05",
    ]  # fmt: skip
    return {
        "di": ["--kind=di", f"--gan-pkl={folder / 'gan.pkl'}", f"--teacher={folder / 'teacher.pkl'}",
               "--adv-weight=1", "--gamma=0.1", *shared],
        "gan": ["--kind=gan", "--cbase=64", "--cmax=8", "--w-dim=8", "--pl-interval=2", "--r1-interval=3", *shared],
    }  # fmt: skip


def launch(arguments: Sequence[str], fresh: bool) -> ForkProcess:
    """Starts train.py, in a new interpreter or in a child forked from this process."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    if fresh:
        return fork(lambda: os.execve(command[0], command, os.environ | {"OMP_NUM_THREADS": "1"}))
    return fork(lambda: train.main.main(list(arguments), standalone_mode=True))


def fork(function: Callable[[], object]) -> ForkProcess:
    """Runs a function in a forked child without output, which ends with the function's exit status."""

    def run() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        function()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def saving(folder: Path) -> bool:
    """Whether a state is being written, so that there is a temporary file or a state without its manifest."""
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    states = {name[: -len(".safetensors")] for name in names if statefile.NAME.fullmatch(name)}
    return any(n.startswith(".training-state") for n in names) or any(f"{state}.json" not in names for state in states)


def begun(outdir: Path) -> int:
    """Returns when a run last took its folder and wrote its options file there, in nanoseconds; 0 if never."""
    return max((path.stat().st_mtime_ns for path in outdir.glob("0*/training_options.json")), default=0)


def kill_at_random(
    child: ForkProcess, outdir: Path, random: np.random.Generator, seconds: float, before: int | None = None
) -> bool:
    """Kills at a random moment within `seconds`, or half of the time in the next save after it; False if it has ended.

    The seconds count from the call, or from when `begun` is no longer `before`, because killing a process that is
    importing PyTorch tests nothing.
    """

    def reaches(event: Callable[[], bool]) -> bool:
        """Waits for an event; False if the child ends first."""
        while child.is_alive():
            if event():
                return True
            time.sleep(0.0005)
        return False

    if before is not None and not reaches(lambda: begun(outdir) != before):
        return False
    moment = time.monotonic() + random.uniform(0, seconds)
    aimed = bool(random.integers(2))
    if not reaches(lambda: time.monotonic() >= moment):
        return False
    late = moment + SAVE_SECONDS
    if aimed and not reaches(lambda: time.monotonic() >= late or any(map(saving, outdir.glob("0*")))):
        return False
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


def disturbed_run(
    arguments: list[str], outdir: Path, random: np.random.Generator, seconds: float, tally: Tally
) -> Path:
    """Kills and resumes a run until it is complete or no kills are left; returns its folder."""
    while True:
        folders = list(outdir.glob("0*"))
        if folders and not statefile.complete_states(folders[0]):
            shutil.rmtree(folders[0])
            tally.before_any_state += 1
            folders = []
        command = [f"--resume={folders[0]}"] if folders else [*arguments, f"--outdir={outdir}"]
        fresh = tally.next_is_fresh()
        before = begun(outdir) if fresh else None
        child = launch(command, fresh)
        if tally.left and kill_at_random(child, outdir, random, seconds, before):
            tally.kills += 1
            tally.fresh += fresh
            tally.in_save += any(map(saving, outdir.glob("0*")))
            continue
        child.join()
        (folder,) = outdir.glob("0*")
        if child.exitcode or not (folder / "result.json").is_file():
            raise RuntimeError(f"{folder}: the run ended with status {child.exitcode} and without a result")
        return folder


def note(digest: Any, name: str, tensor: torch.Tensor) -> None:
    """Adds a tensor with its name to a hash."""
    digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def groups(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields (name, hash) for what is compared: weights, EMA, moments, the other tensors, counters, statistics."""
    path = statefile.complete_states(folder)[-1]
    if wrong := statefile.damage(path):
        raise RuntimeError(f"{path}: {wrong}")
    state = statefile.load_state(path)
    kinds = {"ema": "EMA", "optimizer": "Adam moments", "model": "weights", "fake_score": "weights",
             "discriminator": "weights"}  # fmt: skip
    digests: dict[str, Any] = {}
    for name, tensor in sorted(state.tensors.items()):
        note(digests.setdefault(kinds.get(name.split(".")[0], "ADA p and statistics"), hashlib.sha256()), name, tensor)
    digests["counters"] = hashlib.sha256(json.dumps(state.values["state"]).encode())
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if not name.startswith(UNSTEADY)} for line in lines]
    digests["stats.jsonl"] = hashlib.sha256(json.dumps(lines).encode())
    for name, digest in digests.items():
        yield name, digest.hexdigest()


def kill_runs(folder: Path, kills: int, fresh: int, random: np.random.Generator, seed: int) -> Tally:
    """Kills trainings `kills` times in total, and compares each one that completes with the undisturbed one."""
    trainings = {kind: [*options, f"--seed={seed}"] for kind, options in make_files(folder).items()}
    undisturbed, seconds = {}, 0.0
    for kind, options in trainings.items():
        start = time.monotonic()
        child = launch([*options, f"--outdir={folder / kind}"], fresh=False)
        child.join()
        if child.exitcode:
            raise RuntimeError(f"the undisturbed run of --kind={kind} failed")
        seconds = max(seconds, time.monotonic() - start)
        (run,) = (folder / kind).iterdir()
        undisturbed[kind] = dict(groups(run))
        for name, digest in undisturbed[kind].items():
            click.echo(f"undisturbed {kind}: {name} {digest[:16]}")
    tally = Tally(kills, fresh)
    progress = Progress("Kills", kills)
    while tally.left:
        kind = list(trainings)[tally.runs % len(trainings)]
        outdir = folder / f"killed-{tally.runs}"
        found = dict(groups(disturbed_run(trainings[kind], outdir, random, seconds / 3, tally)))
        tally.runs += 1
        wrong = [name for name, digest in undisturbed[kind].items() if found.get(name) != digest]
        tally.differing += [f"{outdir}: {name}" for name in wrong]
        if not wrong:
            shutil.rmtree(outdir)
        progress.update(tally.kills, f"{tally.runs} runs compared, {len(tally.differing)} differences")
    progress.close()
    return tally


def torn_saves(folder: Path, count: int, random: np.random.Generator) -> tuple[int, int, int]:
    """Kills an endlessly saving process `count` times; returns the kills inside a save, torn states and saves."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    base = {f"t{index}": torch.randn([20000], generator=generator) for index in range(10)}

    def save(nimg: int) -> None:
        path = statefile.state_path(folder, nimg)
        values = {"nimg": nimg}
        statefile.save_state(path, {name: t + nimg for name, t in base.items()}, values, {}, "0" * 64)
        statefile.prune(folder, path)

    def save_for_ever(nimg: int) -> None:
        while True:
            nimg += 1
            save(nimg)

    save(1)
    in_save = torn = 0
    newest = 1
    progress = Progress("Torn", count)
    for done in range(count):
        child = fork(lambda first=newest: save_for_ever(first))  # type: ignore[misc]
        time.sleep(random.uniform(0, TORN_SECONDS))
        child.kill()
        child.join()
        in_save += saving(folder)
        states = statefile.complete_states(folder)
        newest = int(states[-1].name[15:24])
        wrong = [path for path in states if statefile.damage(path)]
        loaded = statefile.load_state(states[-1])
        exact = all(torch.equal(tensor, base[name] + newest) for name, tensor in loaded.tensors.items())
        torn += bool(wrong) or not exact or loaded.values["nimg"] != newest
        statefile.remove_temporary_files(folder)
        progress.update(done + 1, f"{torn} torn")
    progress.close()
    return in_save, torn, newest


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option("--kills", type=click.IntRange(min=0), default=200, show_default=True, help="Kills of trainings.")
@click.option("--fresh", type=click.IntRange(min=0), default=20, show_default=True, help="Those of new processes.")
@click.option("--torn", type=click.IntRange(min=0), default=1000, show_default=True, help="Kills of a saving loop.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of kills and runs.")
@click.option("--dest", type=click.Path(path_type=Path), help="Folder to work in.  [default: a temporary one]")
def main(kills: int, fresh: int, torn: int, seed: int, dest: Path | None) -> None:
    torch.set_num_threads(1)  # like the fresh processes, because rounding depends on the number of threads
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter], fused=True).step()  # PyTorch imports here, once, what trainings would at first
    random = np.random.default_rng(seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-test-", dir=dest))
    ok = True
    if torn:
        in_save, broken, saves = torn_saves(folder / "torn", torn, random)
        ok &= broken == 0
        click.echo(f"torn states: {broken} after {torn} kills, {in_save} of them inside a save; {saves} saves")
    if kills:
        tally = kill_runs(folder, kills, fresh, random, seed)
        ok &= not tally.differing
        click.echo(
            f"kills: {tally.kills}, of them {tally.fresh} of fresh processes, {tally.in_save} inside a save, "
            f"{tally.before_any_state} before the first state; {tally.runs} runs compared, "
            f"{len(tally.differing)} differences"
        )
        for line in tally.differing:
            click.echo(f"differs: {line}")
    if ok:
        shutil.rmtree(folder)
    raise click.exceptions.Exit(0 if ok else 1)


if __name__ == "__main__":
    main()
