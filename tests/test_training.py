"""One step of each update: who moves, who does not, and what does not depend on chunks."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.loss_di import IKL, SiD
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training import updates
from stylegan_di.training.ema import ema_beta, update_ema
from stylegan_di.training.report import Statistics, comparison_table
from stylegan_di.training.state import Batch, TrainState
from tests.tiny import edm_network, gan_networks


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_batch(size: int = 4, batch_gpu: int = 4, nimg: int = 0, rank: int = 0, world_size: int = 1) -> Batch:
    device = torch.device("cpu")
    return Batch.of_step(
        seed=1, nimg=nimg, size=size, batch_gpu=batch_gpu, rank=rank, world_size=world_size, device=device
    )


def make_state(kind: str = "gan") -> TrainState:
    """A student, its fake score and discriminator; `kind`: gan or onestep."""
    networks = gan_networks()
    model = StyleGAN2Student(networks["G"]) if kind == "gan" else OneStepStudent(edm_network(seed=1), 2.5)  # type: ignore[arg-type]
    state = TrainState(model, copy.deepcopy(model), {}, EDMTeacher(edm_network(seed=2)), networks["D"])
    for name, module in (("model", model), ("fake_score", state.fake_score), ("discriminator", state.discriminator)):
        assert module is not None
        state.optimizers[name] = torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.0, 0.99), fused=True)
    return state


def reals(chunk: range) -> tuple[Tensor, Tensor]:
    images = torch.linspace(-1, 1, len(chunk) * 64).reshape(len(chunk), 1, 8, 8)
    return images, torch.eye(3)[[i % 3 for i in chunk]]


def run(name: str, state: TrainState, batch: Batch, teacher: EDMTeacher, report: Statistics) -> None:
    law = LogNormalLaw()

    def fakes(chunk: range) -> tuple[Tensor, Tensor | None]:
        return updates.student_images(state.model, batch, chunk, "discriminator")  # type: ignore[arg-type]

    calls: dict[str, Any] = {
        "fake_score": lambda: updates.fake_score_update(state, batch, law, report),
        "student": lambda: updates.student_update(state, batch, teacher, IKL(), law, 0.0, report),
        "student sid": lambda: updates.student_update(state, batch, teacher, SiD(), law, 0.0, report),
        "student hybrid": lambda: updates.student_update(state, batch, teacher, IKL(), law, 1.0, report),
        "generator": lambda: updates.generator_update(state, batch, 0.9, report),
        "path length": lambda: updates.path_length_update(state, batch, 0.9, 2.0, 0.01, 4, report),
        "discriminator": lambda: updates.discriminator_update(state, batch, reals, fakes, report, Statistics()),
        "r1": lambda: updates.r1_update(state, batch, reals, 1.0, 16, report),
    }
    calls[name]()


MOVES = {
    "fake_score": "fake_score", "student": "model", "student sid": "model", "student hybrid": "model",
    "generator": "model", "path length": "model", "discriminator": "discriminator", "r1": "discriminator",
}  # fmt: skip


def snapshot(state: TrainState, teacher: EDMTeacher) -> dict[str, dict[str, Tensor]]:
    modules = {
        "model": state.model, "ema": state.ema, "fake_score": state.fake_score, "discriminator": state.discriminator,
        "teacher": teacher,
    }  # fmt: skip
    return {name: copy.deepcopy(dict(m.named_parameters())) for name, m in modules.items() if m is not None}


@pytest.mark.parametrize("name", MOVES)
def test_each_update_moves_its_own_network_and_no_other(name: str) -> None:
    state, teacher = make_state(), EDMTeacher(edm_network(seed=3))
    before = snapshot(state, teacher)
    run(name, state, make_batch(), teacher, Statistics())
    after = snapshot(state, teacher)
    for role, old in before.items():
        moved = any(not torch.equal(old[key], after[role][key]) for key in old)
        assert moved == (role == MOVES[name]), role
    modules = [state.model, state.fake_score, state.discriminator]
    assert not any(p.requires_grad or p.grad is not None for m in modules if m is not None for p in m.parameters())


@pytest.mark.parametrize("kind", ["gan", "onestep"])
def test_the_student_starts_still_when_fake_score_is_the_teacher(kind: str) -> None:
    """D_q = D_p: the IKL gradient is exactly zero, and Adam with zero gradients does not move."""
    state = make_state(kind)
    teacher = EDMTeacher(edm_network(seed=3))
    state.fake_score = copy.deepcopy(teacher)
    before = copy.deepcopy(state.model.state_dict())
    updates.student_update(state, make_batch(), teacher, IKL(), LogNormalLaw(), 0.0, Statistics())
    parameters = dict(state.model.named_parameters())
    assert all(torch.equal(before[key], parameters[key]) for key in parameters)


def test_a_one_step_student_has_no_dropout_even_when_it_is_trained() -> None:
    network = edm_network(seed=1)
    for module in network.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.9
    student = OneStepStudent(network, 2.5).train()
    batch = make_batch()
    first, second = (updates.student_images(student, batch, batch.chunks[0], "student")[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["fake_score", "student", "student sid", "generator"])
def test_gradient_accumulation_equals_the_whole_batch(name: str) -> None:
    """float64, chunks of 2 against one of 4: the same samples, noise and sigmas, hence the same step."""
    results = []
    for batch_gpu in (4, 2):
        state, teacher = make_state(), EDMTeacher(edm_network(seed=3))
        for module in (state.model, state.fake_score, teacher, state.discriminator):
            assert module is not None
            module.double()
        if name == "generator":
            state.discriminator.b4.mbstd = None  # type: ignore[union-attr, assignment]
            state.discriminator.b4.conv.weight = torch.nn.Parameter(  # type: ignore[union-attr]
                state.discriminator.b4.conv.weight[:, :-1].detach()  # type: ignore[union-attr, index]
            )
        run(name, state, make_batch(batch_gpu=batch_gpu), teacher, Statistics())
        role = MOVES[name]
        results.append(getattr(state, role).state_dict())
    for key, value in results[0].items():
        if "w_avg" not in key:  # follows the chunks one after the other
            torch.testing.assert_close(results[1][key], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["gan", "onestep"])
@pytest.mark.parametrize("divergence", [IKL(), SiD()])
def test_samples_made_once_for_both_updates_change_no_bit(kind: str, divergence: IKL | SiD) -> None:
    """Two steps, the second from networks that have moved; w_avg follows once a step in either way."""
    results = []
    for shared in (False, True):
        state, teacher, law = make_state(kind), EDMTeacher(edm_network(seed=3)), LogNormalLaw()
        for nimg in (0, 4):
            batch = make_batch(nimg=nimg)
            samples = updates.student_samples(state, batch) if shared else None
            updates.fake_score_update(state, batch, law, Statistics(), samples)
            updates.student_update(state, batch, teacher, divergence, law, 1.0, Statistics(), samples)
        assert not any(p.grad is not None or p.requires_grad for p in state.model.parameters())
        assert state.fake_score is not None
        results.append(state.model.state_dict() | {f"q.{k}": v for k, v in state.fake_score.state_dict().items()})
    start = make_state(kind).model.state_dict()
    assert any(not torch.equal(value, results[0][key]) for key, value in start.items())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_samples_of_several_chunks_are_not_kept() -> None:
    assert updates.student_samples(make_state(), make_batch(batch_gpu=2)) is None


def test_processes_share_out_the_samples_of_one_process() -> None:
    whole = make_batch(size=8, batch_gpu=8)
    parts = [make_batch(size=8, batch_gpu=2, rank=rank, world_size=2) for rank in (0, 1)]
    z = whole.random("z", whole.chunks[0]).normal(5)
    shared = [part.random("z", chunk).normal(5) for part in parts for chunk in part.chunks]
    assert torch.equal(z, torch.cat(shared))
    assert [part.local_size for part in parts] == [4, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_an_update_whose_gradients_are_no_numbers_or_exploded_is_left_out_and_noted(value: float) -> None:
    state = make_state()
    state.cur_step = 7
    run("generator", state, make_batch(), EDMTeacher(edm_network(seed=3)), Statistics())
    before = copy.deepcopy(state.tensors())
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    next(state.model.parameters()).grad[0] = value  # type: ignore[index]
    assert updates.apply_gradients(state, "model").isnan().all()
    assert state.skipped == []  # not yet read
    assert state.values()["skipped"] == [[7, "model"]]
    assert state.skipped == [(7, "model")]
    torch.testing.assert_close(state.tensors(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_ema_has_the_half_life_it_is_given() -> None:
    assert ema_beta(1000, halflife_kimg=1, rampup=None, nimg=0) == 0.5
    assert ema_beta(100, halflife_kimg=10, rampup=0.05, nimg=2000) == 0.5
    ema, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(ema.weight)
    torch.nn.init.ones_(model.weight)
    for _ in range(10):
        update_ema(ema, model, ema_beta(100, halflife_kimg=1, rampup=None, nimg=0))
    assert ema.weight.item() == pytest.approx(0.5, abs=1e-6)


def test_statistics_are_means_over_all_values_since_the_last_report() -> None:
    statistics = Statistics()
    statistics.add({"a": torch.tensor([1.0, 2.0]), "b": 5.0})
    statistics.add({"a": torch.tensor([6.0]), "none": torch.tensor([])})
    drained = statistics.drain()
    assert drained["a"] == {"num": 3, "mean": 3.0, "std": pytest.approx((14 / 3) ** 0.5)}
    assert set(drained) == {"a", "b"}
    assert statistics.drain() == {}


def test_statistics_are_told_apart_by_noise_level() -> None:
    statistics = Statistics()
    statistics.add_by_sigma("a", torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 0.9, 2.0]))
    drained = statistics.drain()
    assert {name: value["mean"] for name, value in drained.items()} == {
        "a/sigma<0.2": 1.0, "a/sigma0.2-1": 2.5, "a/sigma>1": 5.0
    }  # fmt: skip
    assert statistics.drain() == {}


def test_the_table_shows_before_after_and_ratio() -> None:
    table = comparison_table({"fd": 20.0}, {"fd": 15.0, "recall": 0.5}).splitlines()
    assert table[1].split() == ["fd", "20.0000", "15.0000", "0.750"]
    assert table[2].split() == ["recall", "-", "0.5000", "-"]
