"""What every entry of a table has to keep: students, teachers, spaces, critics, sinks. A new entry is tested unasked.

An entry that cannot be made from the small networks here gets a line in the fixture tables at the top.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.critics import CRITICS
from stylegan_di.critics.discriminator import DiscriminatorCritic
from stylegan_di.critics.features import FeatureCritic
from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Critic, Denoiser, Generator, Space
from stylegan_di.journal import SINKS
from stylegan_di.networks import edm, r3gan, stylegan2, stylegan3
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import as_denoiser, as_generator, load_snapshot, save_snapshot
from stylegan_di.spaces import SPACES
from stylegan_di.students import STUDENTS
from stylegan_di.students.fresh import DecoderSpec, DecoderStudent, FlowSpec, FlowStudent, RadianceSpec, RadianceStudent
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.r3gan import R3GANStudent
from stylegan_di.students.refiner import RefinerStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.students.stylegan3 import StyleGAN3Student
from stylegan_di.teachers import TEACHERS
from stylegan_di.teachers.discrete import DiscreteTeacher, Times
from stylegan_di.teachers.edm import EDMTeacher
from tests.tiny import edm_network, gan_networks, r3gan_networks, stylegan3_networks

CLASSES = 3
SHAPE = dict(img_resolution=8, img_channels=1, label_dim=CLASSES)


def _gan() -> stylegan2.Generator:
    network = gan_networks(c_dim=CLASSES)["G_ema"]
    assert isinstance(network, stylegan2.Generator)
    return network


def _stylegan3() -> stylegan3.Generator:
    network = stylegan3_networks(c_dim=CLASSES)["G_ema"]
    assert isinstance(network, stylegan3.Generator)
    return network


def _r3gan() -> r3gan.Generator:
    network = r3gan_networks(c_dim=CLASSES)["G_ema"]
    assert isinstance(network, r3gan.Generator)
    return network


def _edm() -> edm.Precond:
    """A network with an output: EDM's start at zero."""
    network = edm_network(label_dim=CLASSES, seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


MAKE_STUDENTS: dict[str, Callable[[], Generator]] = {
    "stylegan2": lambda: StyleGAN2Student(_gan()),
    "stylegan3": lambda: StyleGAN3Student(_stylegan3()),
    "r3gan": lambda: R3GANStudent(_r3gan()),
    "one-step": lambda: OneStepStudent(_edm(), 2.5),
    "decoder": lambda: DecoderStudent(DecoderSpec(z_dim=8, width=8).network(**SHAPE)),
    "flow": lambda: FlowStudent(FlowSpec(depth=2, width=8).network(**SHAPE)),
    "radiance": lambda: RadianceStudent(RadianceSpec(width=8, depth=4).network(**SHAPE)),
    "refiner": lambda: RefinerStudent.of(StyleGAN2Student(_gan()), EDMTeacher(_edm()), 1.0),
}
MAKE_TEACHERS: dict[str, Callable[[], Denoiser]] = {
    "edm": lambda: EDMTeacher(_edm()),
    "diffusers": lambda: _diffusers(),  # opened from a pipeline's folder, never from a snapshot
}
MAKE_CRITICS: dict[str, Callable[[], Critic]] = {
    "discriminator": lambda: DiscriminatorCritic(_discriminator()),
    "features": lambda: FeatureCritic(EDMTeacher(_edm())),
}


def _discriminator() -> torch.nn.Module:
    network = gan_networks(c_dim=CLASSES)["D"]
    assert network is not None
    return network


def _encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 4, 3, stride=2, padding=1).double()


def _diffusers() -> Denoiser:
    diffusers = pytest.importorskip("diffusers", reason="its networks are made by diffusers, which is not installed")
    torch.manual_seed(0)
    levels = torch.linspace(-4, 4, 100, dtype=torch.float64).exp()
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, num_class_embeds=CLASSES, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return DiscreteTeacher(network, Times(levels, "v_prediction"))


def rng(n: int, purpose: str = "test") -> SampleRandom:
    return SampleRandom(0, purpose, 0, range(n))


def labels_of(n: int) -> Tensor:
    return torch.eye(CLASSES)[torch.arange(n) % CLASSES]


# Students.


@pytest.fixture(params=STUDENTS)
def student(request: pytest.FixtureRequest) -> Generator:
    torch.manual_seed(0)
    made = MAKE_STUDENTS[request.param]()
    assert type(made) is STUDENTS[request.param]
    return made.eval().requires_grad_(False)


def test_a_student_makes_images_of_its_latents_and_labels(student: Generator) -> None:
    z = student.sample_latents(4, rng=rng(4))
    images = student(z, labels_of(4))
    shape = (student.img_channels, student.img_resolution, student.img_resolution)
    assert images.shape == (4, *shape)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert torch.equal(images, student(z, labels_of(4)))
    torch.testing.assert_close(images[1:2], student(z[1:2], labels_of(4)[1:2]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(images, student(z, labels_of(4).roll(1, 0)))
    with pytest.raises(ValueError, match="random streams"):
        student.sample_latents(3, rng=rng(4))


def test_gradients_reach_all_of_a_student(student: Generator) -> None:
    student.train().requires_grad_(True)
    images = student(student.sample_latents(4, rng=rng(4)), labels_of(4), rng=rng(4, "noise"))
    (images * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    missing = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0


def test_a_student_computes_in_float64_too(student: Generator) -> None:
    precise = copy.deepcopy(student).double()
    z = student.sample_latents(2, rng=rng(2))
    images = precise(z.double(), labels_of(2).double())
    assert images.dtype == torch.float64
    torch.testing.assert_close(images.float(), student(z, labels_of(2)), rtol=1e-3, atol=1e-4)


def test_seeds_of_a_student_do_not_depend_on_each_other(student: Generator) -> None:
    together = student.draw([3, 1, 4], class_index=2)
    for index, seed in enumerate([3, 1, 4]):
        torch.testing.assert_close(together[index], student.draw([seed], class_index=2)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])
    assert student.draw([3]).shape == together[:1].shape  # the class drawn from the seed


def test_a_student_comes_back_from_a_snapshot_to_the_byte(student: Generator, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pkl", tmp_path / "second.pkl"
    save_snapshot(first, student.entries(student), extras=student.extras({}), metadata={})
    again = as_generator(load_snapshot(first))
    assert type(again) is type(student)
    z = student.sample_latents(2, rng=rng(2))
    assert torch.equal(student(z, labels_of(2)), again(z, labels_of(2)))
    save_snapshot(second, again.entries(again), extras=again.extras({}), metadata={})
    assert first.read_bytes() == second.read_bytes()


def test_frozen_parts_of_a_student_stay(student: Generator) -> None:
    with pytest.raises(UserError, match="--freeze=nothing: there is no such part"):
        student.freeze(["nothing"])
    if student.parts:
        with pytest.raises(UserError, match="leaves nothing to train"):
            student.freeze(student.parts)
        student.freeze([student.parts[0]])
        student.train().requires_grad_(True)
        frozen = {id(p) for module in student.frozen_modules() for p in module.parameters()}
        assert frozen
        assert all(p.requires_grad == (id(p) not in frozen) for p in student.parameters())
        student.freeze([])
        student.requires_grad_(True)
        assert all(p.requires_grad for p in student.parameters())


def test_options_of_a_student_are_its_own(student: Generator) -> None:
    with pytest.raises(UserError, match=f"--no-such=1 is not for a {student.kind}"):
        student.with_options(no_such=1)
    assert student.with_options().draw([0], class_index=0).shape == student.draw([0], class_index=0).shape


def test_what_a_student_settles_and_averages_are_its_own_buffers(student: Generator) -> None:
    own = {id(buffer) for buffer in student.buffers()}
    assert all(id(mean) in own for mean in student.running_means())
    weights = {name: value.clone() for name, value in student.named_parameters()}
    student.settle(rng(8, "w_avg"))
    assert all(torch.equal(value, weights[name]) for name, value in student.named_parameters())


# Teachers.


@pytest.fixture(params=[*TEACHERS, "diffusers"])
def teacher(request: pytest.FixtureRequest) -> Denoiser:
    made = MAKE_TEACHERS[request.param]()
    assert type(made) is TEACHERS.get(request.param, DiscreteTeacher)
    return made.eval().requires_grad_(False)


def noisy(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.1, 0.5, 2.0, 20.0], dtype=dtype)[:n]
    return torch.randn([n, 1, 8, 8], generator=generator, dtype=dtype) * sigma[:, None, None, None], sigma


def test_a_teacher_denoises_each_sample_by_itself(teacher: Denoiser) -> None:
    x, sigma = noisy(4)
    denoised = teacher(x, sigma, labels_of(4))
    assert denoised.shape == x.shape
    assert denoised.dtype == torch.float32
    assert torch.equal(denoised, teacher(x, sigma, labels_of(4)))
    torch.testing.assert_close(denoised[2:3], teacher(x[2:3], sigma[2:3], labels_of(4)[2:3]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher(x, sigma[1]), teacher(x, sigma[1].expand(4)))
    assert not torch.allclose(denoised, teacher(x, sigma))  # without labels: the null label


def test_a_teacher_computes_in_float64_too(teacher: Denoiser) -> None:
    x, sigma = noisy(2, torch.float64)
    precise = copy.deepcopy(teacher).double()(x, sigma, labels_of(2))
    assert precise.dtype == torch.float64
    torch.testing.assert_close(precise.float(), teacher(x.float(), sigma.float(), labels_of(2)), rtol=1e-3, atol=1e-4)


def test_gradients_run_through_a_teacher_to_its_input(teacher: Denoiser) -> None:
    x, sigma = noisy(2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(teacher(x, sigma, labels_of(2)).square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_a_teachers_features_are_maps_from_fine_to_coarse(teacher: Denoiser) -> None:
    x, sigma = noisy(2)
    features = teacher.features(x, sigma, labels_of(2))
    sides = [each.shape[-1] for each in features]
    assert sides == sorted(set(sides), reverse=True)
    assert all(each.shape[0] == 2 for each in features)


def test_a_fake_score_starts_as_its_teacher_and_leaves_it_alone(teacher: Denoiser) -> None:
    x, sigma = noisy(2)
    fake_score = teacher.trainable_copy()
    before = teacher(x, sigma, labels_of(2))
    assert torch.equal(fake_score(x, sigma, labels_of(2)), before)
    for parameter in fake_score.parameters():
        parameter.data.add_(0.1)
    assert torch.equal(teacher(x, sigma, labels_of(2)), before)


def test_a_teacher_rounds_noise_levels_to_ones_that_it_keeps(teacher: Denoiser) -> None:
    sigma = torch.tensor([0.05, 1.0, 30.0])
    rounded = teacher.round_sigma(sigma)
    assert torch.equal(teacher.round_sigma(rounded), rounded)
    assert teacher.sigma_min <= teacher.sigma_max


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_comes_back_from_a_snapshot(name: str, tmp_path: Path) -> None:
    teacher = MAKE_TEACHERS[name]().eval().requires_grad_(False)
    path = tmp_path / "teacher.pkl"
    save_snapshot(path, {**teacher.entries()}, extras={"dataset_kwargs": {}}, metadata={})
    again = as_denoiser(load_snapshot(path))
    assert type(again) is type(teacher)
    x, sigma = noisy(2)
    assert torch.equal(teacher(x, sigma, labels_of(2)), again(x, sigma, labels_of(2)))


# Spaces.


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_differentiable_and_says_its_size(name: str) -> None:
    cls: Any = SPACES[name]
    space: Space = cls(_encoder(), 4, 4, shift=0.5, scale=[1, 2, 3, 4]) if name == "latents" else cls(8, 1)
    images = torch.randn([2, 1, 8, 8], dtype=torch.float64, requires_grad=True)
    x = space.encode(images)
    assert x.shape == (2, space.channels, space.resolution, space.resolution)
    assert x.dtype == images.dtype
    assert torch.autograd.gradcheck(space.encode, [images])
    torch.testing.assert_close(x[1:], space.encode(images[1:]))


# Critics.


@pytest.fixture(params=CRITICS)
def critic(request: pytest.FixtureRequest) -> Critic:
    made = MAKE_CRITICS[request.param]()
    assert type(made) is CRITICS[request.param]
    return made


def test_a_critic_gives_a_logit_a_sample_with_a_gradient(critic: Critic) -> None:
    x, sigma = noisy(4)
    x.requires_grad_()
    logits = critic.logits(x, torch.randn_like(x), sigma, labels_of(4))
    assert logits.shape == (4, 1)
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.abs().sum() > 0


def test_a_discriminator_sees_noise_only_where_it_has_a_law() -> None:
    x, sigma = noisy(2)
    noise = torch.randn_like(x)
    network = _discriminator()
    clean, noised = DiscriminatorCritic(network), DiscriminatorCritic(network, noise_law=LogNormalLaw())
    torch.testing.assert_close(clean.logits(x, noise, sigma, labels_of(2)), network(x, labels_of(2)))
    expected = network(x + sigma[:, None, None, None] * noise, labels_of(2))
    torch.testing.assert_close(noised.logits(x, noise, sigma, labels_of(2)), expected)


# Sinks.


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_takes_every_report(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = asdict(TrainConfig("edm", data="x.zip", metrics=()))
    (tmp_path / "training_options.json").write_text(json.dumps(options))
    sink = SINKS[name](tmp_path)
    sink.scalars({"Loss/a": {"num": 2, "mean": 1.0, "std": 0.5}})
    sink.images("grid", torch.zeros([4, 1, 8, 8], dtype=torch.uint8), 2)
    sink.table("metric-x", {"results": {"x": 1.0}})
    sink.text("a line")
    sink.live("a line that no log is told of")
    sink.snapshot()
    sink.close("complete")
    written = {path.name for path in tmp_path.iterdir()} - {"training_options.json"}
    said = capsys.readouterr().out
    expected: dict[str, tuple[set[str], str]] = {
        "console": (set(), "a line\n"),
        "jsonl": ({"stats.jsonl", "metric-x.jsonl"}, ""),
        "pictures": ({"grid.png"}, ""),
        "report": ({"report.html"}, ""),
    }
    assert (written, said) == expected.get(name, (written, said))
    assert written or said  # a sink that shows nothing is none
