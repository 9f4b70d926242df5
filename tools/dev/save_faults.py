"""Makes the system calls of a training's save fail, write less, or be its last, and lets the power go between them.

    python tools/dev/save_faults.py --power-losses=2000 --seed=0

A tiny refinement with all parts (student, EMA, fake score, discriminator, ADA) trains up to its last step. Forked
children make that step with everything that follows from it: statistics, state, pictures, metric, snapshot, the best of
both, result, report. Each child meets one fault at one of its calls on files of the run's folder (`system_calls`):
every error of ERRORS, a short write, SIGKILL before it, and SIGKILL after a third of a write. Then the states and
networks there must be complete, of before or after that step, and a resumed run must take the newest.

For the power losses one child makes several steps, and what it wrote, synced, named and removed is recorded. A disk
that lost its power at a random moment has what was synced, and of everything later any part: each write in pieces of
4 KiB, each name by itself. It is held to the same, and to the lines of statistics that belong to its state.
The exit status is 0 if nothing was lost or torn, and no fault ended in a traceback.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

import train
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError, sha256_of_file
from stylegan_di.runs import statefile
from stylegan_di.runs.endings import KILL, StorageError
from stylegan_di.runs.resume import resume
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.training.trainer import Trainer
from tools.dev import kill_test
from tools.dev.power_loss import Disk
from tools.dev.system_calls import WRITES, Call, Fault, Tracee, unsupported

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EROFS", "EINTR", "EMFILE", "ENOMEM")
BATCH = 4
BEFORE = 12  # images seen by the state before the faults
RECORDED = 4  # steps between power losses
KILLED = -int(KILL)
UNSTEADY = re.compile(r".*\.jsonl|log\.txt|\.lock|\..*\.tmp")  # files that grow or are not complete yet
OPTIONS = [
    f"--kimg={(BEFORE + BATCH) / 1000}", f"--batch={BATCH}", f"--tick={BATCH / 1000}", "--snap=1", "--state=1",
    "--ref=fashion-reference.npz", "--metrics=fd_fashion", "--metric-samples=16", "--on-divergence=best",
]  # fmt: skip


@dataclass
class Tally:
    """What was tried and found; `wrong` has a line for each fault that ended as it must not."""

    calls: list[str] = field(default_factory=list)  # names of those of the step without a fault
    endings: Counter[str] = field(default_factory=Counter)
    continued: int = 0
    losses: int = 0
    unfinished: int = 0  # power losses that left the state of a save that had not ended
    wrong: list[str] = field(default_factory=list)


class _InChild(BaseException):
    """Leaves the campaign in a child."""


class Campaign:
    """Stands in for Trainer.run: trains up to BEFORE images, then tries faults from there on in children.

    Args:
        place: a folder for copies and for what the children print.
        most: try so many faults, evenly spread over all; None: every one.
        losses: number of power losses.
        every: continue the run to its end after each so many-th fault and power loss.
        seed: of the power losses.
    """

    def __init__(self, place: Path, most: int | None, losses: int, every: int, seed: int) -> None:
        self.place = place
        self.most = most
        self.losses = losses
        self.every = every
        self.random = random.Random(seed)
        self.tally = Tally()
        self.run = Trainer.run
        self.hashes: dict[int, str] = {}  # of the tensors of states, by images seen
        self.ends: dict[int, dict[str, str]] = {}  # of what runs without a fault came to, by images seen
        self.sound: set[str] = set()  # SHA-256 of networks that were inspected

    def __call__(self, trainer: Trainer) -> dict[str, Any]:
        trainer.begin()
        while trainer.state.cur_nimg < BEFORE:
            trainer.step()
            trainer.after_step()
            trainer.snapshot()
        self.trainer, self.folder = trainer, trainer.folder.path
        Trainer.run = self.run  # type: ignore[method-assign]  # of the runs that are continued
        shutil.copytree(self.folder, self.place / "before")
        try:
            self.inject()
            self.lose_power()
        except _InChild:
            return self.run(trainer)
        return {}

    def child(self, steps: int = 1, fault: Fault | None = None, record: bool = False) -> tuple[int, list[Call]]:
        """Restores the folder and makes steps in a child; returns its status and its calls."""
        refill(self.folder, self.place / "before")
        child = Tracee.fork()
        if child is None:
            output = os.open(self.place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            self.trainer.total_nimg = BEFORE + steps * BATCH
            raise _InChild
        return child.run(self.folder, fault, record)

    def inject(self) -> None:
        status, calls = self.child()
        if status:
            raise RuntimeError(f"without a fault: status {status}\n{(self.place / 'output.txt').read_text()}")
        self.hashes = {nimg: hash_of(self.folder, nimg) for nimg in (BEFORE, BEFORE + BATCH)}
        self.ends[BEFORE + BATCH] = dict(kill_test.groups(self.folder))
        self.tally.calls = [call.name for call in calls]
        every = list(faults(calls))
        count = len(every) if self.most is None else min(self.most, len(every))
        progress = Progress("Faults", count)
        for number in range(count):
            fault = every[number * len(every) // count]
            status, _ = self.child(fault=fault)
            wrong = [*self.misbehaved(fault, status), *self.misses(status == 0)]
            if number % self.every == 0 and not wrong:
                wrong = self.continued(BEFORE + BATCH)
            self.tally.endings[describe(fault, status)] += 1
            what = f"{describe(fault, status)} at {calls[fault.at].name} {calls[fault.at].paths[0]} ({fault.at})"
            self.tally.wrong += [f"{what}: {each}" for each in wrong]
            progress.update(number + 1, f"{len(self.tally.wrong)} wrong")
        progress.close()

    def misbehaved(self, fault: Fault, status: int) -> Iterator[str]:
        """Yields what a child's ending should not be."""
        output = (self.place / "output.txt").read_text(errors="replace")
        if status not in ((KILLED,) if fault.kills else (0, StorageError.status)):
            yield f"status {status}: {output[-1500:]}"
        elif "Traceback" in output or output.count("Error: ") != (status == StorageError.status):
            yield f"it said {output[-1500:]}"

    def misses(self, done: bool) -> Iterator[str]:
        """Yields what is lost or torn in the folder. done: whether the step has been completed."""
        states = statefile.complete_states(self.folder)
        for path in states:
            if torn := statefile.damage(path):
                yield f"{path.name}: {torn}"
        newest = int(states[-1].stem.rpartition("-")[2]) if states else 0
        if newest not in ((BEFORE + BATCH,) if done else self.hashes):
            yield f"the newest state is of {newest} images"
        elif hash_of(self.folder, newest) != self.hashes[newest]:
            yield f"the state of {newest} images differs"
        elif resume(str(self.folder), {}).state.path != states[-1]:
            yield "another state is resumed from"
        yield from self.networks(self.folder.iterdir())

    def networks(self, paths: Iterable[Path]) -> Iterator[str]:
        """Yields what is wrong with the networks of a folder, or the best state, or that they are missing."""
        found = {path.name: path for path in paths}
        for name in ("best-state.safetensors", "network-best.pkl", "network-snapshot-000000.pkl"):
            if name not in found:
                yield f"{name} is missing"
                continue
            try:
                sha256 = sha256_of_file(found[name])
                if sha256 not in self.sound:
                    if name.endswith(".pkl"):
                        yield from inspect_file(found[name]).warnings
                    else:
                        statefile.load_state(found[name])
                    self.sound.add(sha256)
            except UserError as error:
                yield str(error)

    def continued(self, nimg: int) -> list[str]:
        """Continues the run up to `nimg` images; returns how it differs from one that met no fault."""
        self.tally.continued += 1
        child = kill_test.launch([f"--resume={self.folder}", f"--kimg={nimg / 1000}"], fresh=False)
        child.join()
        if child.exitcode:
            return [f"the resumed run ended with status {child.exitcode}"]
        found = dict(kill_test.groups(self.folder))
        return [f"the resumed run has other {name}" for name, value in self.ends[nimg].items() if found[name] != value]

    def lose_power(self) -> None:
        status, calls = self.child(steps=RECORDED, record=True)
        if status:
            raise RuntimeError(f"the recorded run ended with status {status}")
        disk = Disk(self.place / "before", self.folder, calls)
        lines = {path.name: path.read_bytes() for path in self.folder.glob("*.jsonl")}
        end = BEFORE + RECORDED * BATCH
        self.ends[end] = dict(kill_test.groups(self.folder))
        progress = Progress("Power losses", self.losses)
        for number in range(self.losses):
            cut = self.random.choice([0, *(index + 1 for index, _ in disk.operations)])
            found = disk.after(cut, self.random)
            refill(self.folder, None)
            for name, data in found.items():
                (self.folder / name).write_bytes(data)
            wrong = [*self.lost(max(BEFORE, disk.saved(cut)), lines)]
            whole = {name for name, data in found.items() if data in disk.complete.get(name, ())}
            wrong += [f"{name} is torn" for name in found if name not in whole and not UNSTEADY.fullmatch(name)]
            if number % self.every == 0 and not wrong:
                wrong = self.continued(end)
            self.tally.losses += 1
            self.tally.wrong += [f"power loss {number} after {cut} of {len(calls)} calls: {each}" for each in wrong]
            progress.update(number + 1, f"{len(self.tally.wrong)} wrong")
        progress.close()

    def lost(self, saved: int, lines: dict[str, bytes]) -> Iterator[str]:
        """Yields what is lost in the folder after a power loss, when the state of `saved` images had been saved."""
        states = statefile.complete_states(self.folder)
        whole = [path for path in states if statefile.damage(path) is None]
        if not whole:
            yield "no state is left"
            return
        state = statefile.load_state(whole[-1])
        newest = state.values["state"]["cur_nimg"]
        self.tally.unfinished += newest > saved
        if newest not in (saved, saved + BATCH):
            yield f"the newest state is of {newest} images, and {saved} had been saved"
        for name, size in state.values["line_files"].items():
            path = self.folder / name
            if not path.is_file() or path.read_bytes()[:size] != lines[name][:size]:
                yield f"lines of {name} that belong to the state of {newest} images are lost"
        yield from self.networks(self.folder.iterdir())


def faults(calls: Sequence[Call]) -> Iterator[Fault]:
    """Yields every fault for the calls of a child that met none."""
    for at, call in enumerate(calls):
        for name in ERRORS:
            yield Fault(at, getattr(errno, name))
        yield Fault(at, kills=True)
        if call.name in WRITES:
            yield Fault(at, short=True)
            yield Fault(at, short=True, kills=True)


def describe(fault: Fault, status: int) -> str:
    """Returns 'EIO: status 4' or the like."""
    if fault.errno:
        what = errno.errorcode[fault.errno]
    elif fault.kills:
        what = "killed in a write" if fault.short else "killed"
    else:
        what = "short write"
    return f"{what}: status {status}"


def refill(folder: Path, source: Path | None) -> None:
    """Empties a folder and copies another's files into it."""
    for path in folder.iterdir():
        if path.name == "log.txt":  # the trainer has it open
            os.truncate(path, 0)
        else:
            path.unlink()
    for path in () if source is None else source.iterdir():
        shutil.copyfile(path, folder / path.name)


def hash_of(folder: Path, nimg: int) -> str:
    """Returns a hash of the tensors of a state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(statefile.load_state(statefile.state_path(folder, nimg)).tensors.items()):
        kill_test.note(digest, name, tensor)
    return digest.hexdigest()


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option("--faults", "most", type=click.IntRange(min=1), help="Try so many faults, spread.  [default: all]")
@click.option("--power-losses", type=click.IntRange(min=0), default=2000, show_default=True, help="Number of them.")
@click.option("--every", type=click.IntRange(min=1), default=20, show_default=True,
              help="Continue the run to its end after each so many-th fault and loss.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the power losses.")
@click.option("--dest", type=click.Path(path_type=Path), help="Folder to work in.  [default: a temporary one]")
def main(most: int | None, power_losses: int, every: int, seed: int, dest: Path | None) -> None:
    if why := unsupported():
        raise click.ClickException(why)
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="save-faults-", dir=dest))
    campaign = Campaign(place, most, power_losses, every, seed)
    options = [option for option in kill_test.make_files(place)["di"] if not option.startswith("--metrics")]
    parent, status = os.getpid(), 0
    Trainer.run = lambda self: campaign(self)  # type: ignore[method-assign]
    try:
        train.main.main([*options, *OPTIONS, f"--outdir={place / 'runs'}"], standalone_mode=True)
    except SystemExit as ending:
        status = int(ending.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    if os.getpid() != parent:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    status = report(campaign.tally) or status
    if status == 0:
        shutil.rmtree(place)
    raise click.exceptions.Exit(status)


def report(tally: Tally) -> int:
    """Prints what was found; returns the exit status."""
    names = ", ".join(f"{name} {count}" for name, count in Counter(tally.calls).most_common())
    click.echo(f"{len(tally.calls)} system calls: {names}")
    for ending, count in sorted(tally.endings.items()):
        click.echo(f"{ending}: {count}")
    click.echo(f"{sum(tally.endings.values())} faults")
    click.echo(f"{tally.losses} power losses, {tally.unfinished} of them kept the state of an unfinished save")
    click.echo(f"{tally.continued} of the runs continued to their end")
    for line in tally.wrong[:100]:
        click.echo(f"wrong: {line}")
    click.echo(f"{len(tally.wrong)} lost, torn or untold")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    main()
