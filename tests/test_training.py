"""One step of each update: who moves, who does not, and what does not depend on chunks."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.config import TrainConfig
from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.divergences import parse_divergence
from stylegan_di.journal.clock import comparison_table
from stylegan_di.journal.journal import Journal
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training import transfer
from stylegan_di.training.batch import Batch, generated
from stylegan_di.training.instruction import Instruction
from stylegan_di.training.methods.base import Method
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.methods.gan import GAN
from stylegan_di.training.optimize import apply_gradients
from stylegan_di.training.schedule import ema_beta, update_ema
from tests.tiny import edm_network, gan_networks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_batch(size: int = 4, batch_gpu: int = 4, nimg: int = 0, rank: int = 0, world_size: int = 1) -> Batch:
    return Batch.of_step(
        seed=1, nimg=nimg, size=size, batch_gpu=batch_gpu, rank=rank, world_size=world_size, device=CPU
    )


def make_di(kind: str = "gan", divergence: str = "ikl", adv_weight: float = 0.0) -> DiffInstruct:
    """A student, its fake score, teacher and discriminator, each other than the others; `kind`: gan or onestep."""
    networks = gan_networks()
    model: Any = StyleGAN2Student(networks["G"]) if kind == "gan" else OneStepStudent(edm_network(seed=1), 2.5)  # type: ignore[arg-type]
    teacher, fake_score = EDMTeacher(edm_network(seed=3)), EDMTeacher(edm_network(seed=2))
    law, parsed = LogNormalLaw(), parse_divergence(divergence)
    assert parsed is not None
    given: dict[str, Any] = dict(teacher="made here", gan_pkl="made here", data="made here", aug="noaug")
    config = TrainConfig("di", divergence=divergence, adv_weight=adv_weight, **given)
    instruction = Instruction(teacher, Pixels(8, 1), fake_score, parsed, law, law)
    return DiffInstruct(config, CPU, None, model, [instruction], networks["D"])


def make_gan(**given: Any) -> GAN:
    networks: Any = gan_networks()
    made: dict[str, Any] = dict(data="made here", aug="noaug", gamma=0.0)
    config = TrainConfig("gan", **(made | given))
    return GAN(config, CPU, None, transfer.GAN(networks["G"], networks["D"], networks["G_ema"]))


def reals(chunk: range) -> tuple[Tensor, Tensor]:
    images = torch.linspace(-1, 1, len(chunk) * 64).reshape(len(chunk), 1, 8, 8)
    return images, torch.eye(3)[[i % 3 for i in chunk]]


#: Of each update: the method it belongs to, and the network it moves.
UPDATES: dict[str, tuple[Any, str]] = {
    "fake_score": (make_di, "fake_score"),
    "student": (make_di, "model"),
    "student sid": (lambda: make_di(divergence="sid"), "model"),
    "student hybrid": (lambda: make_di(adv_weight=1.0), "model"),
    "student's discriminator": (lambda: make_di(adv_weight=1.0), "discriminator"),
    "generator": (make_gan, "model"),
    "path length": (make_gan, "model"),
    "discriminator": (make_gan, "discriminator"),
    "r1": (lambda: make_gan(gamma=1.0), "discriminator"),
}


def run(name: str, method: Any, batch: Batch) -> None:
    journal = Journal()

    def fakes(chunk: range) -> tuple[Tensor, Tensor | None]:
        return generated(method.model, batch, chunk, "discriminator")

    calls: dict[str, Any] = {
        "fake_score": lambda: method.fake_score_update(method.instructions[0], batch, journal),
        "generator": lambda: method.generator_update(batch, journal),
        "path length": lambda: method.path_length_update(batch, journal),
        "r1": lambda: method.adversary._r1_update(method.state, batch, reals, journal),
    }
    if name.endswith("discriminator"):
        method.adversary.step(method.state, batch, reals, fakes, journal)
    elif name.startswith("student"):
        method.student_update(batch, journal)
    else:
        calls[name]()


def modules_of(method: Method) -> dict[str, torch.nn.Module]:
    """Networks by role, those that do not move too."""
    own: dict[str, torch.nn.Module] = {}
    if isinstance(method, DiffInstruct):
        own["teacher"] = method.instructions[0].teacher
    return method.state.networks | own


def snapshot(method: Method) -> dict[str, dict[str, Tensor]]:
    return {name: copy.deepcopy(dict(module.named_parameters())) for name, module in modules_of(method).items()}


@pytest.mark.parametrize("name", UPDATES)
def test_each_update_moves_its_own_network_and_no_other(name: str) -> None:
    make, moves = UPDATES[name]
    method = make()
    before = snapshot(method)
    assert before.keys() == {"model", "ema", "discriminator"} | (
        {"fake_score", "teacher"} if isinstance(method, DiffInstruct) else set()
    )
    run(name, method, make_batch())
    after = snapshot(method)
    for role, old in before.items():
        moved = any(not torch.equal(old[key], after[role][key]) for key in old)
        assert moved == (role == moves), role
    assert not any(p.requires_grad or p.grad is not None for m in modules_of(method).values() for p in m.parameters())


@pytest.mark.parametrize("kind", ["gan", "onestep"])
def test_the_student_starts_still_when_fake_score_is_the_teacher(kind: str) -> None:
    """D_q = D_p: the IKL gradient is exactly zero, and Adam with zero gradients does not move."""
    method = make_di(kind)
    (instruction,) = method.instructions
    instruction.fake_score = instruction.teacher.trainable_copy()
    before = copy.deepcopy(method.model.state_dict())
    method.student_update(make_batch(), Journal())
    parameters = dict(method.model.named_parameters())
    assert all(torch.equal(before[key], parameters[key]) for key in parameters)


def test_a_one_step_student_has_no_dropout_even_when_it_is_trained() -> None:
    network = edm_network(seed=1)
    for module in network.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.9
    student = OneStepStudent(network, 2.5).train()
    batch = make_batch()
    first, second = (generated(student, batch, batch.chunks[0], "student")[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["fake_score", "student", "student sid", "generator"])
def test_gradient_accumulation_equals_the_whole_batch(name: str) -> None:
    """float64, chunks of 2 against one of 4: the same samples, noise and sigmas, hence the same step."""
    make, moves = UPDATES[name]
    results = []
    for batch_gpu in (4, 2):
        method = make()
        for module in modules_of(method).values():
            module.double()
        if name == "generator":
            discriminator = method.state.networks["discriminator"]
            discriminator.b4.mbstd = None
            discriminator.b4.conv.weight = torch.nn.Parameter(discriminator.b4.conv.weight[:, :-1].detach())
        run(name, method, make_batch(batch_gpu=batch_gpu))
        results.append(method.state.networks[moves].state_dict())
    for key, value in results[0].items():
        if "w_avg" not in key:  # follows the chunks one after the other
            torch.testing.assert_close(results[1][key], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["gan", "onestep"])
@pytest.mark.parametrize("divergence", ["ikl", "sid"])
def test_samples_made_once_for_both_updates_change_no_bit(kind: str, divergence: str) -> None:
    """Two steps, the second from networks that have moved; w_avg follows once a step in either way."""
    results = []
    for shared in (False, True):
        method, journal = make_di(kind, divergence, adv_weight=1.0), Journal()
        for nimg in (0, 4):
            batch = make_batch(nimg=nimg)
            samples = method.samples(batch) if shared else None
            method.fake_score_update(method.instructions[0], batch, journal, samples=samples)
            method.student_update(batch, journal, samples)
        assert not any(p.grad is not None or p.requires_grad for p in method.model.parameters())
        fake_score = method.instructions[0].fake_score
        results.append(method.model.state_dict() | {f"q.{k}": v for k, v in fake_score.state_dict().items()})
    start = make_di(kind).model.state_dict()
    assert any(not torch.equal(value, results[0][key]) for key, value in start.items())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_samples_of_several_chunks_are_not_kept() -> None:
    assert make_di().samples(make_batch(batch_gpu=2)) is None


def test_processes_share_out_the_samples_of_one_process() -> None:
    whole = make_batch(size=8, batch_gpu=8)
    parts = [make_batch(size=8, batch_gpu=2, rank=rank, world_size=2) for rank in (0, 1)]
    z = whole.random("z", whole.chunks[0]).normal(5)
    shared = [part.random("z", chunk).normal(5) for part in parts for chunk in part.chunks]
    assert torch.equal(z, torch.cat(shared))
    assert [part.local_size for part in parts] == [4, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_an_update_whose_gradients_are_no_numbers_or_exploded_is_left_out_and_noted(value: float) -> None:
    method = make_gan()
    state = method.state
    state.cur_step = 7
    run("generator", method, make_batch())
    before = copy.deepcopy(state.tensors())
    for parameter in method.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    next(method.model.parameters()).grad[0] = value  # type: ignore[index]
    assert apply_gradients(state, "model").isnan().all()
    assert state.skipped == []  # not yet read
    assert state.values()["skipped"] == [[7, "model"]]
    assert state.skipped == [(7, "model")]
    torch.testing.assert_close(state.tensors(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in method.model.parameters())


@pytest.mark.parametrize(("batch_gpu", "samples"), [(4, [0, 1]), (2, [0, 2])])
def test_path_lengths_are_those_of_half_of_each_chunk_and_move_their_mean_once(
    batch_gpu: int, samples: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, journal, drawn = make_gan(), Journal(), []
    lengths: list[Tensor] = []
    real, sample = loss_gan.path_lengths, method.sample

    def measured(*arguments: Tensor) -> Tensor:
        lengths.append(real(*arguments))
        return lengths[-1]

    def sampled(batch: Batch, chunk: range, purpose: str) -> Any:
        drawn.extend(chunk)
        return sample(batch, chunk, purpose)

    monkeypatch.setattr(loss_gan, "path_lengths", measured)
    monkeypatch.setattr(method, "sample", sampled)
    batch = Batch.of_step(seed=0, nimg=0, size=4, batch_gpu=batch_gpu, rank=0, world_size=1, device=CPU)
    method.path_length_update(batch, journal)
    assert drawn == samples
    assert journal.drain()["Loss/pl_penalty"]["num"] == 2
    torch.testing.assert_close(method.state.scalars["pl_mean"], 0.01 * torch.cat(lengths).detach().mean())


def test_tensors_stay_as_they_are_when_a_training_goes_on_from_them() -> None:
    method = make_gan(gamma=1.0)
    batch = Batch.of_step(seed=0, nimg=0, size=4, batch_gpu=4, rank=0, world_size=1, device=CPU)
    updates = ("generator", "path length", "discriminator", "r1")
    for name in updates:
        run(name, method, batch)
    given = {name: tensor.clone() for name, tensor in method.state.tensors().items()}
    before = {name: tensor.clone() for name, tensor in given.items()}
    method.state.load_tensors(given)
    for name in updates:
        run(name, method, batch)
    assert [name for name in given if not torch.equal(given[name], before[name])] == []
    after = method.state.tensors()
    assert {"pl_mean", "optimizer.model.0.step"} <= {n for n in given if not torch.equal(after[n], given[n])}


def test_ema_has_the_half_life_it_is_given() -> None:
    assert ema_beta(1000, halflife_kimg=1, rampup=None, nimg=0) == 0.5
    assert ema_beta(100, halflife_kimg=10, rampup=0.05, nimg=2000) == 0.5
    assert ema_beta(1000, halflife_kimg=1, rampup=0, nimg=2000) == 0.5  # as None, which no command line can say
    ema, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(ema.weight)
    torch.nn.init.ones_(model.weight)
    for _ in range(10):
        update_ema(ema, model, ema_beta(100, halflife_kimg=1, rampup=None, nimg=0))
    assert ema.weight.item() == pytest.approx(0.5, abs=1e-6)


def test_statistics_are_means_over_all_values_since_the_last_report() -> None:
    statistics = Journal()
    statistics.scalars({"a": torch.tensor([1.0, 2.0]), "b": 5.0})
    statistics.scalars({"a": torch.tensor([6.0]), "none": torch.tensor([])})
    drained = statistics.drain()
    assert drained["a"] == {"num": 3, "mean": 3.0, "std": pytest.approx((14 / 3) ** 0.5)}
    assert set(drained) == {"a", "b"}
    assert statistics.drain() == {}


def test_statistics_are_told_apart_by_noise_level() -> None:
    statistics = Journal()
    statistics.by_sigma("a", torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 0.9, 2.0]))
    drained = statistics.drain()
    assert {name: value["mean"] for name, value in drained.items()} == {
        "a/sigma<0.2": 1.0, "a/sigma0.2-1": 2.5, "a/sigma>1": 5.0
    }  # fmt: skip
    assert statistics.drain() == {}


def test_the_table_shows_before_after_and_ratio() -> None:
    table = comparison_table({"fd": 20.0}, {"fd": 15.0, "recall": 0.5}).splitlines()
    assert table[1].split() == ["fd", "20.0000", "15.0000", "0.750"]
    assert table[2].split() == ["recall", "-", "0.5000", "-"]
