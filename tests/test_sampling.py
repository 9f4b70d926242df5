"""Heun's sampler against the original code and an exactly solvable flow; a denoiser with it as a generator."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from stylegan_di.diffusion import per_sample
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.ablation import ablation_sampler
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.sampling.heun import heun_sampler, sigma_steps
from stylegan_di.teachers.edm import EDMTeacher
from tests.golden_edm import assert_near, load_network
from tests.tiny import edm_network

STD = 0.5  # of the images of the Gaussian below


class GaussianDenoiser(Denoiser):
    """The exact denoiser of images ~ N(0, STD^2); it remembers the noise levels it was called with."""

    def __init__(self, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = 2, 1, 0
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.calls: list[float] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append(float(sigma))
        return x * STD**2 / (STD**2 + per_sample(sigma, x).square())


class WholeLevels(GaussianDenoiser):
    """Knows whole noise levels only."""

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma.round()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 2e-5)])
@pytest.mark.parametrize("run", ["edm_det6", "edm_churn6"])
def test_runs_of_the_original_code(run: str, dtype: torch.dtype, tolerance: float) -> None:
    network, arrays, info = load_network("edm_ddpmpp_uncond", dtype)
    recorded = iter(arrays["churn_noise"])
    images = heun_sampler(
        EDMTeacher(network),
        arrays["latents"],
        noise_source=lambda *shape: next(recorded),
        **info["samplers"][run]["kwargs"],
    )
    assert images.dtype == torch.float64
    assert_near(images, arrays[f"sample64/{run}"], tolerance)


def test_second_order_convergence_to_the_exact_flow() -> None:
    """The flow of N(0, s^2) scales x by sqrt((s^2 + sigma^2) / (s^2 + sigma_max^2)); the error falls as 1 / steps^2."""
    latents = torch.ones(1, 1, 1, 1)
    exact = 10.0 * STD / math.sqrt(STD**2 + 10.0**2)
    errors = [
        abs(float(heun_sampler(GaussianDenoiser(), latents, num_steps=n, sigma_max=10.0, sigma_min=1e-5)) - exact)
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


def test_noise_levels() -> None:
    steps = sigma_steps(4, 0.002, 80.0, 7.0)
    root = [(80 ** (1 / 7) * (3 - i) + 0.002 ** (1 / 7) * i) / 3 for i in range(4)]
    torch.testing.assert_close(steps, torch.tensor([r**7 for r in root], dtype=torch.float64))
    denoiser = GaussianDenoiser()
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=4)
    expected = [steps[0], steps[1], steps[1], steps[2], steps[2], steps[3], steps[3]]
    assert denoiser.calls == pytest.approx([float(step) for step in expected])


def test_range_is_clipped_to_the_denoisers() -> None:
    denoiser = GaussianDenoiser(sigma_min=0.1, sigma_max=20.0)
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=5)
    assert (denoiser.calls[0], denoiser.calls[-1]) == pytest.approx((20.0, 0.1))


def test_one_step_is_one_evaluation() -> None:
    denoiser = GaussianDenoiser()
    images = heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=1, sigma_max=2.0)
    assert denoiser.calls == pytest.approx([2.0])
    torch.testing.assert_close(float(images), 2.0 * STD**2 / (STD**2 + 4.0))


def test_round_sigma_is_applied() -> None:
    denoiser = WholeLevels()
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=5, sigma_min=1.0)
    assert all(call == round(call) for call in denoiser.calls)
    unrounded = GaussianDenoiser()
    heun_sampler(unrounded, torch.ones(1, 1, 1, 1), num_steps=5, sigma_min=1.0)
    assert len(unrounded.calls) == len(denoiser.calls)
    assert any(call != round(call) for call in unrounded.calls)


def test_round_sigma_is_applied_to_the_level_that_churn_raises() -> None:
    denoiser = WholeLevels()
    noise = SampleRandom(0, "churn", 0, [0]).normal
    heun_sampler(denoiser, torch.ones(1, 1, 1, 1), num_steps=5, sigma_min=1.0, S_churn=1.0, noise_source=noise)
    assert all(call == round(call) for call in denoiser.calls)
    assert denoiser.calls[0] > 80


def test_churn_noise_is_drawn_each_step_and_acts_within_bounds() -> None:
    def sample(seed: int, **kwargs: float) -> tuple[Tensor, int]:
        drawn = []
        rng = SampleRandom(seed, "churn", 0, range(3))

        def noise_source(*shape: int) -> Tensor:
            drawn.append(rng.normal(*shape))
            return drawn[-1]

        latents = SampleRandom(0, "z", 0, range(3)).normal(1, 2, 2)
        images = heun_sampler(
            GaussianDenoiser(), latents, num_steps=6, S_churn=10, S_noise=1.01, noise_source=noise_source, **kwargs
        )
        return images, len(drawn)

    (everywhere, count), (other, _) = sample(1), sample(2)
    assert count == 6
    assert everywhere.shape == (3, 1, 2, 2)
    assert not torch.allclose(everywhere, other)
    (nowhere, count), (other, _) = sample(1, S_min=100.0), sample(2, S_min=100.0)
    assert count == 6
    assert torch.equal(nowhere, other)


def test_churn_keeps_the_distribution() -> None:
    rng = SampleRandom(0, "churn", 0, range(4))
    latents = SampleRandom(0, "z", 0, range(4)).normal(1, 64, 64)
    images = heun_sampler(GaussianDenoiser(), latents, num_steps=160, S_churn=20, noise_source=rng.normal)
    assert float(images.std()) == pytest.approx(STD, rel=0.02)  # 16384 values: 0.6 %


def test_churn_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_source"):
        heun_sampler(GaussianDenoiser(), torch.ones(1, 1, 1, 1), S_churn=1)


# A denoiser with a sampler as a generator.


def tiny_teacher(label_dim: int = 3, precond: str = "edm") -> EDMTeacher:
    """Its weights are not those of a new network, which would do without labels."""
    network, generator = edm_network(label_dim, precond=precond), torch.Generator().manual_seed(0)
    for weights in network.parameters():
        weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
    return EDMTeacher(network).eval()


def test_a_sampler_is_a_generator_of_its_denoisers_images() -> None:
    teacher = tiny_teacher()
    generator = DiffusionSampler(teacher, steps=3)
    assert generator.network is teacher
    assert (generator.img_resolution, generator.img_channels, generator.label_dim) == (8, 1, 3)
    z = generator.sample_latents(2, rng=SampleRandom(5, "z", 0, range(2)))
    torch.testing.assert_close(z, SampleRandom(5, "z", 0, range(2)).normal(1, 8, 8), rtol=0, atol=0)
    with pytest.raises(ValueError, match="2 latents from 3 random streams"):
        generator.sample_latents(2, rng=SampleRandom(5, "z", 0, range(3)))
    for labels in (None, torch.eye(3)[[2, 0]]):
        images = generator(z, labels)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, heun_sampler(teacher, z, labels, num_steps=3).float(), rtol=0, atol=0)
    assert not torch.allclose(generator(z), generator(z, torch.eye(3)[[2, 0]]))


def test_a_sampler_takes_18_steps_unless_told_otherwise() -> None:
    teacher, calls = tiny_teacher(), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for options, evaluations in (({}, 2 * 18 - 1), ({"steps": 4}, 7), ({"steps": 4, "solver": "euler"}, 4)):
        calls.clear()
        DiffusionSampler(teacher, **options)(torch.ones(1, 1, 8, 8))
        assert len(calls) == evaluations


def test_churn_of_a_sampler_comes_from_the_random_numbers_given() -> None:
    teacher = tiny_teacher()
    generator = DiffusionSampler(teacher, steps=3, S_churn=2, S_noise=1.01)
    z = SampleRandom(0, "z", 0, range(2)).normal(1, 8, 8)

    def rng(seed: int = 1) -> SampleRandom:
        return SampleRandom(seed, "noise", 0, range(2))

    expected = heun_sampler(teacher, z, num_steps=3, S_churn=2, S_noise=1.01, noise_source=rng().normal).float()
    torch.testing.assert_close(generator(z, rng=rng()), expected, rtol=0, atol=0)
    assert not torch.allclose(generator(z, rng=rng(2)), expected)
    with pytest.raises(ValueError, match="S_churn=2 adds noise"):
        generator(z)


def test_the_samplers_options_go_by_their_names_on_the_command_line() -> None:
    teacher, z = tiny_teacher(), SampleRandom(0, "z", 0, [0]).normal(1, 8, 8)
    options = dict(steps=4, sigma_min=0.01, sigma_max=50.0, solver="heun", disc="vp", schedule="vp", scaling="vp")
    expected = ablation_sampler(
        teacher, z, num_steps=4, sigma_min=0.01, sigma_max=50.0, solver="heun", discretization="vp", schedule="vp",
        scaling="vp",
    )  # fmt: skip
    images = DiffusionSampler(teacher).with_options(**options)(z)
    torch.testing.assert_close(images, expected.float(), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"--trunc=0\.5 is not for a diffusion teacher"):
        DiffusionSampler(teacher).with_options(trunc=0.5)
    for refused in (dict(rho=5, disc="ve"), dict(S_noise=1.01), dict(sigma_min=3, sigma_max=2), dict(sigma_min=90)):
        with pytest.raises(UserError):
            DiffusionSampler(teacher, **refused)


@pytest.mark.parametrize("options", [{}, {"S_churn": 2}, {"solver": "euler", "disc": "ve"}])
@pytest.mark.parametrize("label_dim", [0, 3])
def test_draws_by_seed_do_not_depend_on_company(label_dim: int, options: dict[str, object]) -> None:
    generator = DiffusionSampler(tiny_teacher(label_dim), steps=2, **options)
    together = generator.draw([4, 9, 4])
    assert_near(together[0], together[2], 1e-4)
    for index, seed in enumerate((4, 9)):
        assert_near(together[index], generator.draw([seed])[0], 1e-4)  # kernels round by the size of a batch
    assert not torch.allclose(together[0], together[1])


def test_a_draw_begins_at_the_seeds_noise_and_takes_the_class_asked_for() -> None:
    teacher = tiny_teacher()
    generator = DiffusionSampler(teacher, steps=2)
    streams = [torch.Generator().manual_seed(seed) for seed in (6, 7)]
    z = torch.stack([torch.randn([1, 8, 8], generator=stream) for stream in streams])
    drawn = torch.eye(3)[torch.stack([torch.randint(3, [], generator=stream) for stream in streams])]
    for class_index, labels in ((None, drawn), (1, torch.eye(3)[[1, 1]])):
        expected = heun_sampler(teacher, z, labels, num_steps=2)
        torch.testing.assert_close(generator.draw([6, 7], class_index=class_index), expected, rtol=0, atol=0)
    assert not torch.allclose(generator.draw([6]), generator.draw([6], class_index=(int(drawn[0].argmax()) + 1) % 3))


def test_a_sampler_asks_its_denoiser_for_the_levels_it_knows() -> None:
    """iDDPM's network knows 1000 levels: the sampler steps on these alone."""
    teacher, levels = tiny_teacher(0, "iddpm"), []
    teacher.register_forward_pre_hook(lambda _, inputs: levels.append(inputs[1].double().reshape(())))
    DiffusionSampler(teacher, steps=5).draw([0])
    assert len(levels) == 9
    found = torch.stack(levels)
    torch.testing.assert_close(teacher.round_sigma(found), found)
    assert not torch.allclose(found[0], torch.tensor(80.0, dtype=torch.float64), rtol=1e-6, atol=0)
