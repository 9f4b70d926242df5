"""A training step as one CUDA graph, which spares the CPU the launch of thousands of kernels (--cuda-graph).

Early steps run as usual. Then one step notes which random numbers it draws, and the next is captured. From there on the
CPU draws the same kinds of numbers for each step, loads its real images if it has any, copies both to where the
captured step reads them, and replays it. Where some updates are not in every step, such as a GAN's lazy
regularisation, each combination of updates has a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.random import SampleRandom
from stylegan_di.torch_utils import distributed
from stylegan_di.training.batch import Batch, Reals, RealSource, Samples
from stylegan_di.training.methods.base import Method

USUAL_STEPS = 2  # before the one whose draws are noted: libraries choose their algorithms, Adam makes its moments


def hindrance(method: Method) -> str:
    """Says why a method's steps cannot be one CUDA graph; '' if they can."""
    if method.device.type != "cuda":
        return f"it runs on {method.device}, not on a GPU"
    if distributed.world_size() > 1:
        return "several processes exchange gradients in it"
    if method.config.compile:
        return "--compile=true makes graphs of its own"
    return method.hinders_graph()


def wanted(method: Method) -> bool:
    """Whether steps are to be CUDA graphs, as --cuda-graph says.

    Raises:
        UserError: if they must be and cannot.
    """
    if method.config.cuda_graph == "false":
        return False
    why = hindrance(method)
    if why and method.config.cuda_graph == "true":
        raise UserError(f"--cuda-graph=true: a step cannot be one CUDA graph, because {why}; leave the option out")
    return not why


def header(method: Method) -> list[tuple[str, str]]:
    """A line of a run's header on a GPU.

    Raises:
        UserError: as `wanted`, on any device.
    """
    graph = wanted(method)
    if method.device.type != "cuda":
        return []
    if graph:
        several = "CUDA graphs, one for each combination of updates"
        return [("steps", several if method.due() else "one CUDA graph")]
    return [("steps", f"launched kernel by kernel, because {hindrance(method) or '--cuda-graph=false'}")]


@dataclass
class Draws:
    """The random numbers of a step, in tensors that stay where they are."""

    #: Purpose, chunk, and each draw: the method of SampleRandom, its arguments, and the tensor.
    streams: list[tuple[str, range, list[tuple[str, tuple[Any, ...], Tensor]]]] = field(default_factory=list)
    given: int = 0  # streams given out again in the present step; those that a step draws first are new

    def batch(self, like: Batch) -> Batch:
        """Returns a batch that gives these numbers out in the order in which they were first drawn."""
        self.given = 0
        return _DrawnBatch(like.seed, like.nimg, like.size, like.chunks, like.device, self)

    def refill(self, batch: Batch) -> None:
        """Draws all numbers anew, as a step on this batch would."""
        for purpose, chunk, draws in self.streams:
            random = batch.random(purpose, chunk)
            for name, arguments, target in draws:
                target.copy_(getattr(random, name)(*arguments))


@dataclass(frozen=True)
class _DrawnBatch(Batch):
    draws: Draws

    def random(self, purpose: str, chunk: range) -> SampleRandom:
        draws = self.draws
        if draws.given == len(draws.streams):
            draws.streams.append((purpose, chunk, []))
        known, its_chunk, drawn = draws.streams[draws.given]
        if (known, its_chunk) != (purpose, chunk):
            raise RuntimeError(f"the step draws {purpose} where it drew {known} before")
        draws.given += 1
        return _DrawnRandom(SampleRandom(self.seed, purpose, self.nimg, chunk, self.device), drawn)

    def seed_dropout(self, chunk: range) -> None:
        """Does nothing: a step with dropout is no graph."""


class _DrawnRandom(SampleRandom):
    def __init__(self, own: SampleRandom, drawn: list[tuple[str, tuple[Any, ...], Tensor]]) -> None:
        self.device, self.streams = own.device, own.streams
        self.drawn, self.given = drawn, 0

    def _next(self, name: str, arguments: tuple[Any, ...]) -> Tensor:
        if self.given == len(self.drawn):
            self.drawn.append((name, arguments, getattr(SampleRandom, name)(self, *arguments)))
        known, its_arguments, tensor = self.drawn[self.given]
        if (known, its_arguments) != (name, arguments):
            raise RuntimeError(f"the step draws {name}{arguments} where it drew {known}{its_arguments} before")
        self.given += 1
        return tensor

    def normal(self, *shape: int) -> Tensor:
        return self._next("normal", shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._next("uniform", shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._next("integers", (high, *shape))

    def choose(self, ends: tuple[int, ...]) -> Tensor:
        return self._next("choose", (ends,))


class HeldReals(RealSource):
    """The real images of a step, in tensors that stay where they are."""

    def __init__(self, own: RealSource) -> None:
        self.own = own
        self.held: dict[range, Samples] = {}

    def refill(self, batch: Batch) -> None:
        """Loads the images of the next step."""
        load = self.own.take(batch)
        for chunk in batch.chunks:
            if chunk not in self.held:
                self.held[chunk] = load(chunk)
                continue
            for target, source in zip(self.held[chunk], load(chunk), strict=True):
                if target is not None and source is not None:
                    target.copy_(source)

    def take(self, batch: Batch) -> Reals:
        return self.held.__getitem__


def cuda_graph(run: Callable[[], None], pool: Any = None) -> tuple[Callable[[], None], Any]:
    """Captures what `run` gives the GPU to do, which is not done yet.

    pool: memory of another graph, which the two then share, since they are never replayed at once.

    Returns a function that does it, and the graph's memory.
    """
    torch.cuda.empty_cache()  # the graph has memory of its own
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph.replay, graph.pool()


@dataclass
class Repeated:
    """Steps that do the same: how many there were, and what is kept to repeat them."""

    steps: int = 0
    replay: Callable[[], None] | None = None
    draws: Draws = field(default_factory=Draws)
    journal: Journal = field(default_factory=Journal)
    flags: list[tuple[str, Tensor]] = field(default_factory=list)  # by network, whether its update was skipped


class StepGraph:
    """A method's step that becomes a graph, one for each combination of updates, anew where a phase begins.

    capture: takes a function that runs the step, and what it returned as its second result the last time; returns a
        function that repeats the step on the same tensors.
    """

    def __init__(
        self, method: Method, capture: Callable[[Callable[[], None], Any], tuple[Callable[[], None], Any]] = cuda_graph
    ) -> None:
        self.method = method
        self.capture = capture
        self.failed = False
        self._forget(None)

    def _forget(self, phase: Any) -> None:
        self.phase = phase
        self.repeated: dict[tuple[bool, ...], Repeated] = {}
        self.held = None if self.method.reals is None else HeldReals(self.method.reals)
        self.rates: list[Tensor] = []
        self.pool: Any = None

    def step(self, batch: Batch, journal: Journal) -> None:
        """Does what the method's step does."""
        state = self.method.state
        phase = (self.method.phase(), state.returns, batch.size, batch.chunks)
        if self.failed:
            return self.method.step(batch, journal)
        if phase != self.phase:
            self._forget(phase)
        groups = [group for optimizer in state.optimizers.values() for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = float(np.float32(group["lr"]))  # a graph reads it from the GPU, in float32
        own = self.repeated.setdefault(self.method.due(), Repeated())
        own.steps += 1
        if own.steps <= USUAL_STEPS:
            return self.method.step(batch, journal)
        if self.held is not None:
            self.held.refill(batch)
        if own.steps == USUAL_STEPS + 1:
            return self._run(own.draws.batch(batch), journal)
        if own.replay is None:
            self.rates = self.rates or [torch.tensor(group["lr"], device=self.method.device) for group in groups]
            try:
                self._capture(own, batch, groups)
            except RuntimeError as error:
                if self.method.config.cuda_graph == "true":
                    raise
                self.failed = True
                journal.say(f"steps are launched kernel by kernel: capturing one failed: {str(error).splitlines()[0]}")
                return self._run(batch, journal)
        assert own.replay is not None
        for rate, group in zip(self.rates, groups, strict=True):
            rate.fill_(group["lr"])
        own.draws.refill(batch)
        own.replay()
        journal.repeat(own.journal)
        state.undecided += [(state.cur_step, role, flag.clone()) for role, flag in own.flags]

    def _run(self, batch: Batch, journal: Journal) -> None:
        """Runs the method's step on the real images that are held."""
        own = self.method.reals
        self.method.reals = self.held
        try:
            self.method.step(batch, journal)
        finally:
            self.method.reals = own

    def _capture(self, own: Repeated, batch: Batch, groups: list[dict[str, Any]]) -> None:
        undecided = self.method.state.undecided
        before = len(undecided)

        def run() -> None:
            self._run(own.draws.batch(batch), own.journal)

        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            own.replay, self.pool = self.capture(run, self.pool)
        finally:
            for group, lr in zip(groups, rates, strict=True):
                group.update(lr=lr, capturable=False)
            own.flags = [(role, flag) for _, role, flag in undecided[before:]]
            del undecided[before:]
