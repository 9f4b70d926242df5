"""The parts of tools/dev/gpu_check.sh that are written in Python; each prints what it measures and writes it as JSON.

    python tools/dev/gpu_parts.py step --json=out/step.json
    python tools/dev/gpu_parts.py step --device=cpu --tiny
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.cli import Device, help_of, user_errors
from stylegan_di.journal.journal import Journal
from stylegan_di.metrics.features import extract, generated_images
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.inception import Inception
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.torch_utils.ops import build
from stylegan_di.torch_utils.ops.bias_act import ACTIVATIONS
from stylegan_di.torch_utils.ops.reference import reference_kernels
from stylegan_di.training import transfer
from stylegan_di.training.batch import Batch, Reals, RealSource
from stylegan_di.training.graphs import USUAL_STEPS, StepGraph
from stylegan_di.training.methods.gan import GAN
from stylegan_di.training.schedule import update_ema
from tools.dev.benchmark import peak_mib, report_file, seconds, write_report
from tools.dev.benchmark_rows import Step, inputs_of, stylegan2, unet

ROUNDS = 5
TOGETHER = 12  # steps that are started without waiting: what the CPU does before the first is a twelfth of an error
REQUIREMENTS = ("torch", "numpy", "scipy", "click", "pillow", "requests", "safetensors", "pytest", "ninja", "diffusers")


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every part."""
    command = click.option("--tiny", is_flag=True, help="Small sizes: a rehearsal.")(report_file(command))
    return click.option("--device", type=Device(), default="cuda", show_default=True)(command)


def median_seconds(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS, together: int = 1) -> float:
    """Seconds of one call; `together` are started without waiting for one another, as steps of a training are."""
    work()
    several = lambda: [work() for _ in range(together)]  # noqa: E731
    return statistics.median(seconds(several, device) for _ in range(rounds)) / together


@click.group(help=help_of(__doc__))
def main() -> None:
    torch.backends.cudnn.allow_tf32 = False


@main.command(help="Says what the machine is, and how fast it multiplies matrices and copies memory.")
@options
@user_errors
def machine(device: str, tiny: bool, target: Path | None) -> None:
    where, size = torch.device(device), 256 if tiny else 8192
    installed = {}
    for name in REQUIREMENTS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    found: dict[str, Any] = {"device": device, "python": sys.version.split()[0], "packages": installed}
    if where.type == "cuda":
        properties = torch.cuda.get_device_properties(where)
        found |= {"name": properties.name, "multiprocessors": properties.multi_processor_count,
                  "GiB": round(properties.total_memory / 2**30), "GPUs": torch.cuda.device_count(),
                  "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}  # fmt: skip
    for dtype in (torch.bfloat16, torch.float32):
        square = torch.randn([size, size], device=where).to(dtype)
        took = median_seconds(partial(torch.matmul, square, square), where, 10)
        found[f"TFLOP/s {dtype}".replace("torch.", "")] = 2 * size**3 / 1e12 / took
    source = torch.randn([size**2 * 8], device=where)
    into = torch.empty_like(source)
    found["copy GB/s"] = 2 * source.nbytes / 1e9 / median_seconds(lambda: into.copy_(source), where, 10)
    click.echo(json.dumps(found, indent=1))
    write_report(target, found)


@main.command(help="Runs every op forward and backward on its smallest cases: for compute-sanitizer.")
@options
@user_errors
def ops(device: str, tiny: bool, target: Path | None) -> None:
    from tests.test_ops_kernels import CASES, LAYOUTS, inputs

    words = build.load(torch.device(device).type, may_build=True)
    click.echo(words)
    for case in CASES.values():
        for layout in LAYOUTS:
            leaves = [t.detach().to(device).requires_grad_() for t in inputs(case, torch.float32, layout)]
            y = case.function(*leaves)
            torch.autograd.grad(y.square().sum(), leaves)
    click.echo(f"{len(CASES)} cases in {len(LAYOUTS)} layouts ran")
    write_report(target, {"ops": words, "cases": len(CASES)})


@main.command(help="Compares every op's values and gradients with the reference, in float64 or in the same 16 bits.")
@options
@user_errors
def agree(device: str, tiny: bool, target: Path | None) -> None:
    from tests.test_ops_kernels import CASES, LAYOUTS, inputs

    where = torch.device(device)
    words = build.load(where.type, may_build=True)
    limits = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
    found: dict[str, Any] = {"ops": words, "wrong": []}
    for name, case in CASES.items():
        for dtype, limit in limits.items():
            if dtype != torch.float32 and name in [f"bias_act {act}" for act in ACTIVATIONS]:
                continue  # rounding decides what is clamped
            for layout in LAYOUTS:
                results = []
                for exact in (True, False):
                    kind = torch.float64 if exact and dtype == torch.float32 else dtype
                    leaves = [t.detach().to(where, kind).requires_grad_() for t in inputs(case, dtype, layout)]
                    with reference_kernels(where.type) if exact else contextlib.nullcontext():
                        y = case.function(*leaves)
                        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
                off = max(float((a - e).norm() / e.norm()) for e, a in zip(*results, strict=True))
                found[str(dtype)[6:]] = max(off, found.get(str(dtype)[6:], 0.0))
                if not off <= limit:
                    found["wrong"].append(f"{name}, {layout}, {dtype}: {off:.2g}")
    sides = []
    for place, kind in ((torch.device("cpu"), torch.float64), (where, torch.float32)):
        network = unet("small", place).to(kind).requires_grad_(True)
        (x, sigma, labels), _ = inputs_of(network, 4, place)
        y = network(x.to(kind), sigma.to(kind), None if labels is None else labels.to(kind))
        gradients = torch.autograd.grad(y.square().sum(), list(network.parameters()))
        sides.append([t.detach().double().cpu() for t in (y, *gradients)])
    found["U-Net"] = max(float((a - e).norm() / e.norm()) for e, a in zip(*sides, strict=True))
    click.echo(json.dumps(found, indent=1))
    write_report(target, found)
    if found["wrong"] or not found["U-Net"] <= 1e-3:
        raise SystemExit(1)


@main.command(help="Measures whole Diff-Instruct steps at CIFAR-10's configuration in every way to run them.")
@click.option("--machine", "rates", type=click.Path(path_type=Path), help="The results of the part `machine`.")
@click.option("--graphs", is_flag=True, help="Only the steps that are one CUDA graph.")
@click.option("--compiled", is_flag=True, help="Only the StyleGAN2's, with a frozen teacher that is compiled or not.")
@options
@user_errors
def step(
    device: str, tiny: bool, target: Path | None, rates: Path | None, graphs: bool, compiled: bool
) -> None:
    where = torch.device(device)
    ops = build.load(where.type, may_build=True)
    peak = json.loads(rates.read_text())["TFLOP/s bfloat16"] if rates is not None and rates.exists() else None
    size, batch = ("small", 2) if tiny else ("cifar", 128)
    report: dict[str, Any] = {"ops": ops, "batch": batch, "peak": peak, "rows": []}

    def row(name: str, make: Callable[[], Callable[[], object]], work: float, rounds: int = 3) -> None:
        if (graphs or compiled) and "graph" not in name and "compiled" not in name:
            return
        try:
            run = make()
            took = median_seconds(run, where, rounds, together=1 if tiny else TOGETHER if "graph" in name else 4)
            found = {"row": name, "work": work, "images/s": batch / took, "ms": took * 1e3,
                     "TFLOP/s": work / took / 1e12, "MiB": peak_mib(run, where)}  # fmt: skip
            if peak is not None:
                found["share of bf16 peak"] = work / took / 1e12 / peak
        except Exception as error:  # a way that does not work here leaves the others alone
            found = {"row": name, "error": f"{type(error).__name__}: {error}"[:500]}
        report["rows"].append(found)
        click.echo(json.dumps(found))
        write_report(target, report)

    autocast = torch.autocast(where.type, torch.bfloat16, cache_enabled=False)
    def rows_of(kind: str) -> None:
        ours = Step(kind, batch, where, False, size)
        with FlopCounterMode(display=False) as counter:
            ours()
        work = float(counter.get_total_flops())
        bf16 = autocast(ours)
        row(f"{kind}, bf16", lambda: bf16, work)
        if where.type == "cuda":
            report[f"kernels of {kind}"] = kernels_of(bf16)
            row(f"{kind}, bf16, one CUDA graph", partial(graphed, ours), work)
            if kind == "StyleGAN2" and not compiled:
                torch.backends.cudnn.benchmark = True
                row(f"{kind}, bf16, one CUDA graph, cudnn.benchmark", partial(graphed, ours), work)
                torch.backends.cudnn.benchmark = False
        row(f"{kind}, bf16, plain", lambda: autocast(Step(kind, batch, where, True, size)), work, 2)
        if kind == "StyleGAN2" and not tiny:
            with reference_kernels(where.type):
                row(f"{kind}, bf16, ops by reference", lambda: bf16, work)
            row(f"{kind}, float32", lambda: ours, work, 1)
    rows_of("StyleGAN2")
    if not compiled:
        rows_of("EDM student")
    if compiled or not (tiny or graphs):
        work = report["rows"][0].get("work", 0.0) if report["rows"] else 0.0
        step = Step("StyleGAN2", batch, where, False, size)
        report["teacher, images/s"] = teachers_rate(step, autocast)
        step.method.instructions[0].teacher.compile_network()
        report["teacher compiled, images/s"] = teachers_rate(step, autocast)
        row("StyleGAN2, bf16, teacher compiled", lambda: autocast(step), work)
        if where.type == "cuda":
            row("StyleGAN2, bf16, teacher compiled, one CUDA graph", partial(graphed, step), work)


def teachers_rate(step: Step, autocast: torch.autocast) -> float:
    """Images a second of a forward pass of a step's teacher."""
    teacher, size = step.method.instructions[0].teacher, step.batch.size
    shape = [size, teacher.img_channels, teacher.img_resolution, teacher.img_resolution]
    x, sigma = torch.randn(shape, device=step.method.device), torch.ones([size], device=step.method.device)
    run = torch.no_grad()(autocast(lambda: teacher(x, sigma)))
    return size / median_seconds(run, step.method.device, 3, TOGETHER)


def kernels_of(run: Callable[[], object], most: int = 25) -> dict[str, float]:
    """Milliseconds of the GPU's kernels in one call, by name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    times = {entry.key: entry.self_device_time_total / 1e3 for entry in profiler.key_averages()}
    dearest = sorted(times, key=times.__getitem__, reverse=True)[:most]
    return {"all of them": sum(times.values())} | {name[:120]: times[name] for name in dearest}


def graphed(step: Step) -> Callable[[], object]:
    """A step as --cuda-graph runs it in a training with --amp=bf16, its random numbers drawn anew each time."""
    step.method.config = replace(step.method.config, amp="bf16", cuda_graph="true")
    graph = StepGraph(step.method)

    def run() -> None:
        graph.step(step.batch, Journal())
        update_ema(step.method.ema, step.method.model, 0.99)

    for _ in range(USUAL_STEPS + 2):
        run()
    return run


class OneBatch(RealSource):
    """The same real images in every step."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def take(self, batch: Batch) -> Reals:
        return lambda chunk: (self.images[chunk.start : chunk.stop], None)


@main.command(help="Measures a StyleGAN2's training at CIFAR-10's size, kernel by kernel and as CUDA graphs.")
@options
@user_errors
def gan(device: str, tiny: bool, target: Path | None) -> None:
    where, batch, cycle = torch.device(device), 4 if tiny else 64, 16  # steps until the same updates are due again
    build.load(where.type, may_build=True)
    config = TrainConfig("gan", data="made here", aug="noaug", r1_interval=cycle, pl_interval=cycle // 4)
    report = []
    for fp16_res in (0,) if tiny else (4, 0):
        layers: dict[str, Any] = dict(num_fp16_res=fp16_res, conv_clamp=256 if fp16_res else None)
        layers |= dict(channel_base=64, channel_max=8) if tiny else {}
        for name in ("kernel by kernel", *(["CUDA graphs"] if where.type == "cuda" else [])):
            networks = [Generator(512, 0, 512, 32, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=layers)
                        for _ in range(2)]  # fmt: skip
            discriminator = Discriminator(c_dim=0, img_resolution=32, img_channels=3, **layers)
            method = GAN(config, where, None, transfer.GAN(networks[0], discriminator, networks[1]))
            method.reals = OneBatch(torch.rand([batch, 3, 32, 32], device=where) * 2 - 1)
            step = StepGraph(method).step if name == "CUDA graphs" else method.step

            def run(method: GAN = method, step: Callable[[Batch, Journal], None] = step) -> None:
                state = method.state
                for _ in range(cycle):
                    step(Batch.of_step(seed=0, nimg=state.cur_nimg, size=batch, batch_gpu=batch, rank=0, world_size=1,
                                       device=where), Journal((), where))  # fmt: skip
                    state.cur_nimg, state.cur_step = state.cur_nimg + batch, state.cur_step + 1
                    update_ema(method.ema, method.model, 0.99)

            for _ in range(0 if tiny else USUAL_STEPS + 2):
                run()
            took = median_seconds(run, where, 1 if tiny else 3) / cycle
            report.append({"row": f"{'float16' if fp16_res else 'float32'}, {name}", "images/s": batch / took,
                           "ms": took * 1e3, "MiB": peak_mib(run, where)})  # fmt: skip
            click.echo(json.dumps(report[-1]))
            write_report(target, {"batch": batch, "rows": report})


@main.command(help="Measures Inception alone, in float32 and bf16, and in a metric of a StyleGAN2's images.")
@options
@user_errors
def metrics(device: str, tiny: bool, target: Path | None) -> None:
    where = torch.device(device)
    size, batch, num = ("small", 2, 4) if tiny else ("cifar", 256, 5120)
    build.load(where.type, may_build=True)
    torch.manual_seed(0)
    network = Inception().to(where).eval().requires_grad_(False).optimized()
    images = torch.randint(0, 256, [batch, 3, 32, 32], dtype=torch.uint8, device=where)
    half = torch.autocast(where.type, torch.bfloat16)(network)
    exact, near = network(images), half(images).float()
    found = {"images/s float32": batch / median_seconds(lambda: network(images), where),
             "images/s bf16": batch / median_seconds(lambda: half(images), where),
             "bf16 differs": float((near - exact).norm() / exact.norm())}  # fmt: skip
    generator = StyleGAN2Student(stylegan2(size, where))
    for each, amp, detector_amp in (
        (64, None, None), (batch, None, None), (batch, torch.bfloat16, None), (batch, torch.float16, None),
        (batch, torch.bfloat16, torch.bfloat16),
    ):  # fmt: skip
        made = generated_images(generator, num=num, batch=min(each, num), device=where, amp=amp)
        work = partial(extract, made, [network], device=where, amp=detector_amp)
        types = "/".join("float32" if dtype is None else str(dtype)[6:] for dtype in (amp, detector_amp))
        found[f"images/s in a metric, batch {each}, {types}"] = num / median_seconds(work, where, 1)
    made = generated_images(generator, num=num, batch=batch, device=where)
    found["images/s of the generator"] = num / median_seconds(lambda: list(made), where, 1)
    exact = extract(made, [network], device=where)[network.name]
    for name, amp, detector_amp in (("generator", torch.bfloat16, None), ("Inception", None, torch.bfloat16)):
        made = generated_images(generator, num=num, batch=batch, device=where, amp=amp)
        near_stats = extract(made, [network], device=where, amp=detector_amp)[network.name]
        found[f"FD of one in bf16 from float32, {name}"] = frechet_distance(
            exact.mean, exact.cov, near_stats.mean, near_stats.cov
        )
    click.echo(json.dumps(found))
    write_report(target, found)


@main.command(help="Refines the shipped GAN for a few steps with one process, and with two if there are two GPUs.")
@options
@user_errors
def processes(device: str, tiny: bool, target: Path | None) -> None:
    found: dict[str, Any] = {"GPUs": torch.cuda.device_count()}
    length, batch = (0.016, 8) if tiny else (12.8, 256)
    for count in (1, 2):
        if count > 1 and (device != "cuda" or torch.cuda.device_count() < count):
            found[str(count)] = "not run: there is one device"
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train.py", "--kind=di", "--gan-pkl=fashion-gan.pkl", "--metrics=none",
                       f"--device={device}", f"--gpus={count}", f"--kimg={length}", f"--tick={length / 2}", "--snap=2",
                       f"--batch={batch}", f"--outdir={folder}"]  # fmt: skip
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            found[str(count)] = {"seconds": time.perf_counter() - start, "status": done.returncode,
                                 "output": (done.stdout + done.stderr)[-3000:]}  # fmt: skip
    click.echo(json.dumps(found))
    write_report(target, found)
    if any(isinstance(result, dict) and result["status"] for result in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
