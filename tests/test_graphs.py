"""Steps as CUDA graphs: the numbers that a graph is given are those of its step, and training stays the same."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from stylegan_di.config import TrainConfig
from stylegan_di.critics.features import FeatureCriticSpec
from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.labels import LabelLaw, class_map
from stylegan_di.random import SampleRandom
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training import graphs, transfer
from stylegan_di.training.batch import Batch, RealImages, Samples
from stylegan_di.training.feature_adversary import FeatureAdversary
from stylegan_di.training.graphs import USUAL_STEPS, Draws, StepGraph
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.methods.edm import EDM
from stylegan_di.training.methods.gan import GAN
from tests.tiny import RESOLUTION, edm_network, gan_networks
from tools.dev.benchmark_rows import step_of

CPU = torch.device("cpu")
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def batch_at(nimg: int, device: torch.device = CPU) -> Batch:
    return Batch.of_step(seed=3, nimg=nimg, size=4, batch_gpu=4, rank=0, world_size=1, device=device)


def method_of(kind: str, device: torch.device = CPU) -> DiffInstruct:
    student: Any = OneStepStudent(edm_network(seed=1), 2.5, steps=3 if kind == "steps" else 1)
    if kind in ("gan", "critic", "hybrid"):
        student = StyleGAN2Student(gan_networks()["G"])  # type: ignore[arg-type]
        student.known_labels = LabelLaw.of_counts([3, 0, 1])  # chosen by other draws than classes that are as frequent
    teacher, fake_score = EDMTeacher(edm_network(seed=2)), EDMTeacher(edm_network(seed=3))
    for module in (student, teacher, fake_score):
        for parameter in module.parameters():
            if parameter.abs().max() < 1e-3:  # a new network's last layers are zero, and hide all the others
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    method = step_of(student, teacher, fake_score, device)
    if kind == "hybrid":
        config = replace(method.config, gan_pkl="made here", data="made here", adv_weight=0.5, r1_interval=2)
        discriminator = gan_networks()["D"]
        method = DiffInstruct(config, device, None, student, method.instructions, discriminator=discriminator)
        method.reals = FiveImages(classes=3)
    if kind != "critic":
        return method
    space, law = method.instructions[0].space, LogNormalLaw()
    adversary = FeatureAdversary(FeatureCriticSpec(), teacher, law, space, class_map("null", 0, 0))
    with_critic = DiffInstruct(method.config, device, None, student, method.instructions, feature_adversary=adversary)
    with_critic.reals = FiveImages()
    return with_critic


class FiveImages(RealImages):
    """Images and classes that follow from the position in the training."""

    def __init__(self, classes: int = 10) -> None:
        self.taken, self.classes = 0, classes

    def take(self, batch: Batch) -> Any:
        assert batch.nimg == self.taken  # steps come one after the other, and none is left out
        self.taken += batch.size

        def load(chunk: range) -> Samples:
            images = SampleRandom(0, "reals", batch.nimg, chunk).normal(1, RESOLUTION, RESOLUTION).tanh()
            return images.to(batch.device), torch.eye(self.classes)[[i % self.classes for i in chunk]].to(batch.device)

        return load


def denoising_method(device: torch.device = CPU) -> EDM:
    config = TrainConfig("edm", data="made here", lr=1e-3, augment=0, label_dropout=0.2)
    network = edm_network(seed=2, label_dim=10)
    method = EDM(config, device, None, EDMTeacher(network))
    method.reals = FiveImages()
    return method


def adversarial_method(device: torch.device = CPU, **options: Any) -> GAN:
    """StyleGAN2 with all that its steps do by turns: path lengths, R1, and the sum of signs that is begun anew."""
    config = TrainConfig("gan", data="made here", lr=1e-3, aug="noaug", pl_interval=3, r1_interval=2, **options)
    networks: Any = gan_networks(c_dim=10)
    method = GAN(config, device, None, transfer.GAN(networks["G"], networks["D"], networks["G_ema"]))
    method.reals = FiveImages()
    return method


def trained(method: DiffInstruct | EDM | GAN, step: Any, steps: int) -> list[torch.Tensor]:
    """All trained weights after some steps at a falling rate."""
    for index in range(steps):
        for optimizer in method.state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = float(torch.tensor(1e-3 / (1 + index)))
        step(batch_at(method.state.cur_nimg, method.device), Journal((), method.device))
        method.state.cur_nimg += 4
        method.state.cur_step += 1
    return [p.detach().cpu() for network in method.state.networks.values() for p in network.parameters()]


def again(run: Any, pool: Any) -> Any:
    """In place of a CUDA graph: the step's own code, on the tensors that it drew first."""
    return run, pool


def repeats(graph: StepGraph) -> bool:
    """Whether every combination of updates is a graph by now."""
    return all(own.replay is not None for own in graph.repeated.values())


@pytest.mark.parametrize("kind", ["gan", "onestep", "steps", "critic", "hybrid"])
def test_a_repeated_step_trains_as_usual_steps_do(kind: str) -> None:
    usual, repeated, steps = method_of(kind), method_of(kind), 17 if kind == "hybrid" else 6
    graph = StepGraph(repeated, again)
    expected, found = trained(usual, usual.step, steps), trained(repeated, graph.step, steps)
    assert repeats(graph)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_repeated_step_sees_each_steps_real_images() -> None:
    usual, repeated = denoising_method(), denoising_method()
    graph = StepGraph(repeated, again)
    expected, found = trained(usual, usual.step, 6), trained(repeated, graph.step, 6)
    assert repeats(graph)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert isinstance(repeated.reals, FiveImages)


def test_each_combination_of_a_gans_updates_is_repeated() -> None:
    usual, repeated, captured = adversarial_method(), adversarial_method(), []

    def capture(run: Any, pool: Any) -> Any:
        captured.append((repeated.state.cur_step, pool))
        return run, "memory"

    graph = StepGraph(repeated, capture)
    expected, found = trained(usual, usual.step, 53), trained(repeated, graph.step, 53)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(repeated.state.scalars["pl_mean"], usual.state.scalars["pl_mean"])
    # Combinations come back after 12 steps, and are captured when they are met for the fourth time.
    dues = [(step % 3 == 0, step % 2 == 0, step % 4 == 3) for step in range(53)]
    fourth = [step for step, due in enumerate(dues) if dues[:step].count(due) == 3]
    assert captured == [(step, "memory" if index else None) for index, step in enumerate(fourth)]
    assert len(fourth) == 6
    assert repeats(graph)


def test_what_hinders_a_gans_graph() -> None:
    assert adversarial_method().hinders_graph() == ""
    assert "--blur-sigma" in adversarial_method(blur_sigma=2.0, blur_fade=1.0).hinders_graph()
    method = adversarial_method()
    method.adversary.critic.augment_pipe = torch.nn.Identity()
    assert "--aug=noaug" in method.hinders_graph()
    method = adversarial_method()
    method.device = torch.device("cuda")
    assert graphs.header(method) == [("steps", "CUDA graphs, one for each combination of updates")]
    assert "a discriminator" in method_of("hybrid").hinders_graph()
    assert method_of("hybrid").due() == (True, False)


@pytest.mark.parametrize("kind", ["gan", "onestep", "steps", "critic", "edm", "adversarial"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
def test_a_cuda_graph_trains_as_usual_steps_do(kind: str, device: str) -> None:
    where = torch.device(device)
    make: Any = {"edm": denoising_method, "adversarial": adversarial_method}.get(kind, partial(method_of, kind))
    usual, repeated, fresh = (make(where) for _ in range(3))
    graph, steps = StepGraph(repeated), 53 if kind == "adversarial" else 8
    expected, found = trained(usual, usual.step, steps), trained(repeated, graph.step, steps)
    assert repeats(graph)
    start = trained(fresh, fresh.step, 0)
    for a, b, c in zip(found, expected, start, strict=True):
        assert float((a - b).norm()) <= 1e-3 * float((b - c).norm()) + 1e-9


def test_refilled_draws_are_those_of_the_step() -> None:
    draws = Draws()

    def drawn(batch: Batch) -> list[torch.Tensor]:
        first, second = batch.random("z", range(2)), batch.random("noise", range(2, 4))
        return [first.normal(3), second.uniform(), first.integers(9, 2), first.normal(3)]

    recorded = drawn(draws.batch(batch_at(0)))
    assert all(torch.equal(a, b) for a, b in zip(recorded, drawn(batch_at(0)), strict=True))
    draws.refill(batch_at(64))
    for tensor, kept, expected in zip(drawn(draws.batch(batch_at(64))), recorded, drawn(batch_at(64)), strict=True):
        assert tensor is kept
        assert torch.equal(tensor, expected)
    with pytest.raises(RuntimeError, match="draws other where it drew z before"):
        draws.batch(batch_at(0)).random("other", range(2))
    with pytest.raises(RuntimeError, match=r"draws uniform\(\) where it drew normal\(3,\) before"):
        draws.batch(batch_at(0)).random("z", range(2)).uniform()
    assert isinstance(draws.batch(batch_at(0)).random("z", range(2)).of(2), SampleRandom)


def test_a_new_phase_is_captured_anew() -> None:
    method, captured = method_of("gan"), []

    def capture(run: Any, pool: Any) -> Any:
        captured.append(method.state.cur_nimg)
        return run, pool

    graph = StepGraph(method, capture)
    trained(method, graph.step, USUAL_STEPS + 3)
    method.state.returns = 1  # the optimizers' tensors are others after a return to the best snapshot
    trained(method, graph.step, USUAL_STEPS + 3)
    assert captured == [4 * (USUAL_STEPS + 1), 4 * (2 * USUAL_STEPS + 4)]


def test_a_failed_capture_leaves_usual_steps_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Journal, "say", lambda self, text: said.append(text))

    def capture(run: Any, pool: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    usual, method = method_of("gan"), method_of("gan")
    expected, found = trained(usual, usual.step, 5), trained(method, StepGraph(method, capture).step, 5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert said == [
        "steps are launched kernel by kernel: capturing one failed: operation not permitted when stream is capturing"
    ]


def test_where_steps_can_be_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of("gan")
    assert not graphs.wanted(method)
    assert graphs.header(method) == []
    method.config = TrainConfig("di", teacher="made here", cuda_graph="true")
    with pytest.raises(UserError, match="it runs on cpu, not on a GPU; leave the option out"):
        graphs.wanted(method)
    method.device = torch.device("cuda")
    assert graphs.wanted(method)
    assert graphs.header(method) == [("steps", "one CUDA graph")]
    method.config = TrainConfig("di", teacher="made here", compile=True)
    assert graphs.header(method) == [
        ("steps", "launched kernel by kernel, because --compile=true makes graphs of its own")
    ]
    method.model.network.dropout = 0.1  # type: ignore[assignment]
    assert method.hinders_graph() == "its network drops activations or labels at random"
