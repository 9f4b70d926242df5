"""Compares the speed of this project's code with a plain way of computing the same numbers (tools/dev/plain.py).

    python tools/dev/benchmark.py --rows=small --json=out/benchmark.json
    python tools/dev/benchmark.py --device=cuda

The two sides of a row alternate in one process, so that a busy machine slows both alike. On the CPU, time is the
process's CPU time with one thread. A ratio is the plain side's median over ours, followed by its quartiles over the
rounds. Each row first verifies that both sides give the same numbers. Both use the same settings of the allocator.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import Device, help_of, user_errors
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.ops import build
from stylegan_di.torch_utils.precision import AMP_TYPES
from tools.dev.benchmark_rows import Row, Side, rows

AUTOCAST_TOLERANCE = 0.1  # the two sides round to 8 (bf16) or 11 (fp16) bits at different places


report_file = click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False),
                           help="Write the results here too.")  # fmt: skip

Measured = Mapping[str, Any]  # a row of a table, by column
COLUMNS = {
    "row": "{name}", "ratio": "{ratio:.2f}", "quartiles": "{quartiles[0]:.2f}-{quartiles[1]:.2f}", "target": "{target}",
    "images/s": "{images_per_second:.1f}", "GFLOP/s": "{gflops:.0f}", "plain": "{plain_gflops:.0f}",
    "MiB": "{peak_mib:.0f}", "plain's MiB": "{plain_peak_mib:.0f}", "differs": "{difference:.0e}",
}  # fmt: skip


def table(columns: Mapping[str, str], rows: Iterable[Measured]) -> list[Measured]:
    """Prints a Markdown table of rows as they come, and returns them; columns: title -> format of a row's values."""
    click.echo(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    done = []
    for row in rows:
        done.append(row)
        click.echo(f"| {' | '.join(form.format(**row) for form in columns.values())} |")
    return done


def write_report(target: Path | None, report: dict[str, Any]) -> None:
    """Writes what was measured, and with which PyTorch, as JSON where --json is given."""
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, json.dumps({"torch": torch.__version__} | report, indent=1).encode())


def seconds(side: Callable[[], object], device: torch.device) -> float:
    """Times one call: CPU time of the process on the CPU, elapsed time until the work is done on the GPU."""
    if device.type == "cpu":
        start = time.process_time()
        side()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    side()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib(side: Callable[[], object], device: torch.device) -> float:
    """Measures the peak memory of one call beyond what was held before; on the CPU by Linux's count of pages."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the largest size so far
    before = kib_of_process("VmRSS")
    side()
    return (kib_of_process("VmHWM") - before) / 2**10


def kib_of_process(name: str) -> int:
    """Returns this process's memory in KiB: VmRSS is the present, VmHWM the largest; getrusage has its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def under_autocast(side: Side, device: torch.device, dtype: torch.dtype | None) -> Side:
    """Returns the side unchanged, or with convolutions and products in dtype."""
    if dtype is None:
        return side

    def run() -> Sequence[Tensor]:
        with torch.autocast(device.type, dtype, cache_enabled=False):
            return side()

    return run


def measure(row: Row, rounds: int, device: torch.device, dtype: torch.dtype | None = None) -> Measured:
    """Verifies both sides, then times them alternately, under autocast if a dtype is given.

    Returns medians of the seconds (of CPU time on the CPU), billions of operations a second in convolutions and
    products (0 if there are none), and MiB.

    Raises:
        UserError: if the two sides do not give the same numbers.
    """
    ours, plain = (under_autocast(side, device, dtype) for side in row.make())
    tolerance = row.tolerance if dtype is None else max(row.tolerance, AUTOCAST_TOLERANCE)
    actual, expected = (torch.cat([t.detach().flatten().double() for t in side()]) for side in (ours, plain))
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        raise UserError(f"{row.name}: the two sides differ by {difference:.1e}, more than {tolerance:.0e}")
    times = [(seconds(ours, device), seconds(plain, device)) for _ in range(rounds)]
    own, other = (statistics.median(side) for side in zip(*times, strict=True))
    low, _, high = statistics.quantiles([b / a for a, b in times], n=4)
    peaks = peak_mib(ours, device), peak_mib(plain, device)
    with FlopCounterMode(display=False) as counter:
        ours()
    work = counter.get_total_flops() / 1e9  # our operations; the plain side may do more
    return {
        "name": row.name, "target": row.target, "ratio": other / own, "quartiles": (low, high), "seconds": own,
        "plain_seconds": other, "images_per_second": row.images / own, "gflops": work / own,
        "plain_gflops": work / other, "peak_mib": peaks[0], "plain_peak_mib": peaks[1], "difference": difference,
    }  # fmt: skip


def shares(side: Side, device: torch.device, most: int = 6) -> str:
    """Lists the operators that take most of a call's time, according to PyTorch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    side()
    with torch.profiler.profile(activities=activities) as profiler:
        side()
    own = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    times = {entry.key: getattr(entry, own) for entry in profiler.key_averages()}
    total = sum(times.values()) or 1
    top = sorted(times, key=times.__getitem__, reverse=True)[:most]
    return ", ".join(f"{name.removeprefix('aten::')} {times[name] / total:.0%}" for name in top)


def convolution_rate(device: torch.device) -> float:
    """Measures the GFLOP/s of a 3x3 channels_last convolution of 512 channels, a bound for networks of convolutions."""
    batch = 128 if device.type == "cuda" else 8
    x, weight = torch.randn([batch, 512, 16, 16], device=device), torch.randn([512, 512, 3, 3], device=device)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    times = [seconds(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device) for _ in range(8)]
    return 2 * x.numel() * weight[:, 0].numel() / 1e9 / min(times)


@click.command(help=help_of(__doc__))
@click.option("--rows", "names", help="Only rows whose names contain one of these, comma-separated.")
@click.option("--rounds", type=click.IntRange(min=2), default=7, show_default=True, help="Timings of each side.")
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--amp", type=click.Choice(["none", *AMP_TYPES]), default="none", help="Autocast of both sides.")
@click.option("--profile", is_flag=True, help="List the operators that take most of our side's time.")
@report_file
@user_errors
def main(names: str | None, rounds: int, device: str, amp: str, profile: bool, target: Path | None) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    where, dtype = torch.device(device), AMP_TYPES.get(amp)
    ops = build.load(where.type, may_build=where.type == "cpu")
    chosen = [row for row in rows(where) if any(name in row.name for name in (names or "").split(","))]
    if not chosen:
        raise UserError(f"--rows={names}: no such row; there are {', '.join(row.name for row in rows(where))}")
    report: dict[str, Any] = {"ops": ops, "device": device, "amp": amp, "rounds": rounds}
    report |= {"convolutions": round(convolution_rate(where))}  # GFLOP/s
    click.echo(f"{', '.join(f'{name} {value}' for name, value in report.items())} GFLOP/s")

    refused = []

    def results() -> Iterator[Measured]:
        for row in chosen:
            try:
                yield measure(row, rounds, where, dtype)
            except UserError as error:
                refused.append(str(error))
                continue
            if profile:
                click.echo(f"    {shares(under_autocast(row.make()[0], where, dtype), where)}")

    write_report(target, report | {"rows": table(COLUMNS, results()), "refused": refused})
    if refused:
        raise UserError("; ".join(refused))


if __name__ == "__main__":
    main()
