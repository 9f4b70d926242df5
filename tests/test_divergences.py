"""What every divergence of the table must fulfil; a new entry is run with its defaults, whether it has variants or not.

q, the student's distribution, is a Gaussian here, so is p, the teacher's; both denoisers and the density ratio are
exact. GRADIENTS has what each divergence is the gradient of, from quadrature and finite differences.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from stylegan_di.diffusion import add_noise
from stylegan_di.divergences import DIVERGENCES, IKL, SIM, Fisher, RealUID, SiD, Sum, parse_divergence
from stylegan_di.divergences.fisher import FisherWeight
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Critic, Denoiser
from stylegan_di.loss_di import Divergence, FDivergence, Noised, Weight, denoising_loss, f_weight
from tests.gaussians import BlendedDenoiser, Gaussian, GaussianCritic, GaussianDenoiser, draw, student_loss

TERMS: list[Divergence] = [
    *(IKL(weight) for weight in get_args(Weight)),
    *(IKL("sigma2", f) for f in get_args(FDivergence) if f != "reverse_kl"),
    *(SiD(alpha) for alpha in (0.5, 1.0, 1.2)),
    SIM(0.03),
    SIM(1.0),
    *(Fisher(weight) for weight in get_args(FisherWeight)),
    *(RealUID(alpha, beta) for alpha, beta in [(1, 1), (0.9, 0.9), (0.94, 0.96), (0.96, 0.94), (1, 0.98)]),
]
SUMS: list[Divergence] = [
    Sum(((1.0, IKL()), (0.5, SiD(1.2)))),
    Sum(((0.3, IKL("dmd", "js")), (2.0, RealUID(0.94, 0.96)), (1.0, SIM(0.5)))),
]
DEFAULTS: list[Divergence] = [cls() for cls in DIVERGENCES.values()]
ALL = list(dict.fromkeys([*TERMS, *DEFAULTS, *SUMS]))
ALONE = [divergence for divergence in ALL if not isinstance(divergence, Sum)]
every = pytest.mark.parametrize("divergence", ALL, ids=str)

P = Gaussian(0.2, 0.9)  # the teacher's distribution, and that of the real samples


def real_term(divergence: Divergence) -> RealUID | None:
    """The RealUID that trains the fake score, if one does."""
    terms = [term for _, term in divergence.terms] if isinstance(divergence, Sum) else [divergence]
    return next((term for term in terms if isinstance(term, RealUID)), None)


def exact_fake_score(divergence: Divergence, q: Gaussian, reals: Gaussian = P) -> Denoiser:
    """The minimiser of the divergence's `score_loss`."""
    if term := real_term(divergence):
        return BlendedDenoiser(term.alpha, term.beta, q, reals)
    return GaussianDenoiser(q.mean, q.std)


# (a) The fixed point.


@every
def test_the_student_finds_mean_and_scale_of_the_teacher(divergence: Divergence) -> None:
    """x = s z + m with its exact fake score. A fixed batch will do: at q = p each single sample's gradient is zero."""
    m = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    z, noise, sigma = draw(1024, (1,))
    steps, rate = 400, 0.03
    optimizer = torch.optim.Adam([m, s], lr=rate, betas=(0.5, 0.99))
    for step in range(steps):
        q = Gaussian(float(m.detach()), float(s.detach()))
        fake, critic = exact_fake_score(divergence, q), GaussianCritic(P, q)
        loss = student_loss(
            divergence, s * z + m, noise, sigma, GaussianDenoiser(P.mean, P.std), fake, critic=critic
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
    assert float(m.detach()) == pytest.approx(P.mean, abs=0.005)
    assert float(s.detach()) == pytest.approx(P.std, abs=0.005)


@every
def test_no_sample_moves_where_student_and_teacher_agree(divergence: Divergence) -> None:
    z, noise, sigma = draw(64, (1,))
    x = (P.std * z + P.mean).requires_grad_()
    teacher = GaussianDenoiser(P.mean, P.std)
    loss = student_loss(
        divergence, x, noise, sigma, teacher, exact_fake_score(divergence, P), None, GaussianCritic(P, P)
    )
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert float(gradient.abs().max()) < 1e-6


# (b) The gradient, against its definition.


def grid(points: int, width: float = 9.0) -> tuple[Tensor, Tensor]:
    """Nodes [points] and weights for integrals over a standard normal: the trapezoid rule, exact to rounding here.

    No node is at zero, where 1 / |x - D_p| might be infinite.
    """
    nodes = torch.linspace(-width, width, points, dtype=torch.float64) + 0.00317
    weights = (-nodes.square() / 2).exp()
    return nodes, weights / weights.sum()


def slope(value: Callable[[Gaussian], float], q: Gaussian, step: float = 1e-4) -> tuple[float, float]:
    """Central differences of a function of q in its mean and std."""
    by_mean = value(Gaussian(q.mean + step, q.std)) - value(Gaussian(q.mean - step, q.std))
    by_std = value(Gaussian(q.mean, q.std + step)) - value(Gaussian(q.mean, q.std - step))
    return by_mean / (2 * step), by_std / (2 * step)


def denoiser_distance(places: Gaussian, q: Gaussian, sigma: float, distance: Callable[[Tensor], Tensor]) -> float:
    """E distance(D_p - D_q) over x_s from `places`, which are noised too."""
    nodes, weights = grid(2001, width=12)
    noisy = places.mean + math.sqrt(places.variance(sigma)) * nodes
    return float((weights * distance(P.denoised(noisy, sigma) - q.denoised(noisy, sigma))).sum())


def ikl_slope(divergence: IKL, q: Gaussian, sigma: float) -> tuple[float, float]:
    """Of w KL(q_sigma || p_sigma), in closed form, with the weight sigma^2 where it is divided by mean|x - D_p|."""
    if divergence.f != "reverse_kl":
        return f_slope(divergence, q, sigma)

    def kl(q: Gaussian) -> float:
        ratio = q.variance(sigma) / P.variance(sigma)
        return (ratio + (q.mean - P.mean) ** 2 / P.variance(sigma) - 1 - math.log(ratio)) / 2

    w = 1 if divergence.weight == "one" else sigma**2
    return w * slope(kl, q)[0], w * slope(kl, q)[1]


#: f of the f-divergence E_q f(p / q), by name.
F: dict[str, Callable[[Tensor], Tensor]] = {
    "forward_kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
    "hellinger": lambda r: 2 * (1 - r.sqrt()) ** 2,
    "jeffreys": lambda r: (r - 1) * r.log(),
    "chi2": lambda r: (r - 1) ** 2 / 2,
}


def f_slope(divergence: IKL, q: Gaussian, sigma: float) -> tuple[float, float]:
    """Of sigma^2 E_q f(p / q), by quadrature."""

    def value(q: Gaussian) -> float:
        nodes, weights = grid(2001, width=12)
        noisy = q.mean + math.sqrt(q.variance(sigma)) * nodes
        ratio = (P.log_density(noisy, sigma) - q.log_density(noisy, sigma)).exp()
        return sigma**2 * float((weights * F[divergence.f](ratio)).sum())

    return slope(value, q)


def sid_slope(divergence: SiD, q: Gaussian, sigma: float) -> tuple[float, float]:
    """Half the slope of E |D_p - D_q|^2 in D_q, and 1 - alpha times that in the places of the samples."""
    in_score = slope(lambda other: denoiser_distance(q, other, sigma, torch.square), q)
    in_places = slope(lambda other: denoiser_distance(other, q, sigma, torch.square), q)
    mean, std = (a / 2 + (1 - divergence.alpha) * b for a, b in zip(in_score, in_places, strict=True))
    return mean, std


def sim_slope(divergence: SIM, q: Gaussian, sigma: float) -> tuple[float, float]:
    """Of Pseudo-Huber's distance in D_q, the places of the samples held constant."""
    return slope(
        lambda other: denoiser_distance(q, other, sigma, lambda d: (d**2 + divergence.c**2).sqrt() - divergence.c), q
    )


def fisher_slope(divergence: Fisher, q: Gaussian, sigma: float) -> tuple[float, float]:
    """Of w E |s_p - s_q|^2 = w ((m_q - m_p)^2 / S_p^4 + (1 / S_q - S_q / S_p^2)^2), in closed form."""
    w = {"sigma4": sigma**4, "sigma2": sigma**2, "one": 1.0}[divergence.weight]

    def value(q: Gaussian) -> float:
        spread = math.sqrt(q.variance(sigma))
        return w * ((q.mean - P.mean) ** 2 / P.variance(sigma) ** 2 + (1 / spread - spread / P.variance(sigma)) ** 2)

    return slope(value, q)


REALS = Gaussian(0.4, 0.8)  # need not be what the teacher knows


def realuid_slope(divergence: RealUID, q: Gaussian, sigma: float) -> tuple[float, float]:
    """Of half the integral of (alpha q + (1 - alpha) p) |D_p - D_q|^2, D_q the minimiser."""
    x = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    teacher = P.denoised(x, sigma)

    def value(q: Gaussian) -> float:
        fake = exact_fake_score(divergence, q, REALS)(x, torch.tensor(sigma, dtype=torch.float64))
        mixture = divergence.alpha * q.log_density(x, sigma).exp()
        mixture = mixture + (1 - divergence.alpha) * REALS.log_density(x, sigma).exp()
        return float((mixture * (teacher - fake).square()).sum()) * 0.0025 / math.sqrt(2 * math.pi) / 2

    return slope(value, q)


GRADIENTS: dict[type[Divergence], Callable[[Any, Gaussian, float], tuple[float, float]]] = {
    IKL: ikl_slope,
    SiD: sid_slope,
    SIM: sim_slope,
    Fisher: fisher_slope,
    RealUID: realuid_slope,
}


def test_every_entry_says_what_it_is_the_gradient_of() -> None:
    assert set(DIVERGENCES.values()) <= GRADIENTS.keys()


def held_constant(divergence: Divergence, at: Noised, noisy_ratio: Tensor) -> Tensor:
    """The factor [B] that a loss has beside its definition, so that it can be divided out."""
    error = (at.x - P.denoised(at.noisy, at.sigma[:, None])).detach().abs().squeeze(1)
    if isinstance(divergence, SiD | RealUID) or (isinstance(divergence, IKL) and divergence.weight == "dmd"):
        return 1 / error
    if isinstance(divergence, IKL) and divergence.needs_critic:
        ratio = noisy_ratio.clone().requires_grad_()
        (first,) = torch.autograd.grad(F[divergence.f](ratio).sum(), ratio, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), ratio)
        return 1 / (second * noisy_ratio.square()).mean().expand_as(error)
    return torch.ones_like(error)


@pytest.mark.parametrize(("q", "sigma"), [(Gaussian(-0.3, 0.7), 0.5), (Gaussian(0.6, 1.1), 1.5)], ids=str)
@pytest.mark.parametrize("divergence", [d for d in ALONE if type(d) in GRADIENTS], ids=str)
def test_the_gradient_is_that_of_the_definition(divergence: Divergence, q: Gaussian, sigma: float) -> None:
    """Student x = std z + mean; the expectation over z and noise is an integral on a grid."""
    if isinstance(divergence, IKL) and divergence.needs_critic:
        divergence = IKL(divergence.weight, divergence.f, clip=1e60)
    nodes, weights = grid(361)
    z, noise = (side.reshape(-1, 1) for side in torch.meshgrid(nodes, nodes, indexing="ij"))
    probability = (weights[:, None] * weights).flatten()
    x = (q.std * z + q.mean).requires_grad_()
    level = torch.full([len(x)], sigma, dtype=torch.float64)
    fake, critic = exact_fake_score(divergence, q, REALS), GaussianCritic(P, q)
    teacher = GaussianDenoiser(P.mean, P.std)
    at = Noised(x, noise, level, None, teacher, fake, critic, divergence.differentiable)
    (gradient,) = torch.autograd.grad(divergence.student_loss(at).sum(), x)
    ratio = critic.logits(x.detach(), noise, level, None).squeeze(1).exp()
    gradient = probability * gradient.squeeze(1) / held_constant(divergence, at, ratio)
    expected = GRADIENTS[type(divergence)](divergence, q, sigma)
    assert float(gradient.sum()) == pytest.approx(expected[0], rel=1e-5, abs=1e-7)
    assert float((gradient * z.squeeze(1)).sum()) == pytest.approx(expected[1], rel=1e-5, abs=1e-7)
    assert max(map(abs, expected)) > 1e-3


@pytest.mark.parametrize("weight", get_args(FisherWeight))
def test_the_mean_of_fishers_loss_is_the_divergence(weight: FisherWeight) -> None:
    q, sigma = Gaussian(-0.3, 0.6), 0.5
    nodes, weights = grid(361)
    z, noise = (side.reshape(-1, 1) for side in torch.meshgrid(nodes, nodes, indexing="ij"))
    level = torch.full([len(z)], sigma, dtype=torch.float64)
    fake, teacher = GaussianDenoiser(q.mean, q.std), GaussianDenoiser(P.mean, P.std)
    loss = student_loss(Fisher(weight), q.std * z + q.mean, noise, level, teacher, fake)
    w = {"sigma4": sigma**4, "sigma2": sigma**2, "one": 1.0}[weight]
    expected = w / sigma**4 * denoiser_distance(q, q, sigma, torch.square)
    assert float(((weights[:, None] * weights).flatten() * loss).sum()) == pytest.approx(expected, rel=1e-6)


@every
def test_the_fake_scores_loss_is_least_at_what_the_student_needs(divergence: Divergence) -> None:
    """The derivative of the mean of `score_loss` at the exact fake score, toward other functions, is zero."""
    q, sigma = Gaussian(-0.3, 0.6), 0.5
    nodes, weights = grid(361)
    z, noise = (side.reshape(-1, 1) for side in torch.meshgrid(nodes, nodes, indexing="ij"))
    probability = (weights[:, None] * weights).flatten()
    level = torch.full([len(z)], sigma, dtype=torch.float64)
    exact = exact_fake_score(divergence, q, REALS)

    def loss(away: Tensor) -> Tensor:
        def denoiser(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            return exact(x, sigma) + away[0] + away[1] * x + away[2] * x.square() + away[3] * x.sin()

        x, reals = q.std * z + q.mean, REALS.std * z + REALS.mean
        seen = Noised(reals, noise, level, None)
        return (probability * divergence.score_loss(denoiser, Noised(x, noise, level, None), reals=seen)).sum()

    away = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(away), away)
    assert float(gradient.abs().max()) < 1e-6
    further = [float(loss(torch.tensor(step, dtype=torch.float64))) for step in ([0.1, 0, 0, 0], [0, -0.1, 0, 0.05])]
    assert min(further) > float(loss(away).detach()) + 1e-3


# (c) to (h): how it is used.


class Small(Denoiser):
    """A denoiser with parameters and labels, for samples of any shape; `seen` are the labels of its calls."""

    def __init__(self, dim: int, label_dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = torch.nn.Linear(dim + 1 + label_dim, dim).double()
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        self.requires_grad_(False)
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(labels)
        inputs = [x.flatten(1), sigma.log()[:, None], *([] if labels is None else [labels])]
        return (x + self.layer(torch.cat(inputs, dim=1)).tanh().reshape(x.shape)) / (
            1 + sigma.reshape(-1, *[1] * (x.ndim - 1))
        )


class SmallCritic(Critic):
    """A critic whose logit is the sample's mean and its label's place."""

    def __init__(self) -> None:
        self.seen: list[Tensor | None] = []

    def logits(self, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append(labels)
        return x.flatten(1).mean(dim=1, keepdim=True)


POINTS, IMAGES = (2,), (3, 4, 4)


def case(
    divergence: Divergence, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> Noised:
    """Six samples of three classes, which are a leaf."""
    x, noise, sigma = (tensor.to(device, dtype) for tensor in draw(6, shape))
    labels = torch.eye(3, dtype=dtype, device=device).repeat(2, 1)
    teacher, fake = (Small(math.prod(shape), 3, seed).to(device, dtype) for seed in (1, 2))
    return Noised(x.requires_grad_(), noise, sigma, labels, teacher, fake, SmallCritic(), divergence.differentiable)


def value_and_gradient(divergence: Divergence, at: Noised) -> tuple[Tensor, Tensor]:
    loss = divergence.student_loss(at)
    return loss.detach(), torch.autograd.grad(loss.sum(), at.x)[0]


def detached(at: Noised) -> Noised:
    """The same samples as the fake score's loss takes them."""
    return dataclasses.replace(at, x=at.x.detach())


def reals_beside(at: Noised) -> Noised:
    """Real samples and labels at the same noise."""
    labels = None if at.labels is None else at.labels.flip(0)
    return Noised(at.x.detach().flip(0) + 0.1, at.noise, at.sigma, labels)


def score_loss(divergence: Divergence, at: Noised) -> Tensor:
    assert at.fake_score is not None
    return divergence.score_loss(at.fake_score, detached(at), reals=reals_beside(at))


@every
def test_samples_do_not_depend_on_each_other(divergence: Divergence) -> None:
    """But for the density ratio's weights, whose mean over the batch is one."""
    whole = value_and_gradient(divergence, case(divergence, IMAGES))
    at = case(divergence, IMAGES)
    assert at.labels is not None
    parts = [
        value_and_gradient(
            divergence,
            Noised(
                at.x.detach()[i : i + 1].clone().requires_grad_(), at.noise[i : i + 1], at.sigma[i : i + 1],
                at.labels[i : i + 1], at.teacher, at.fake_score, at.critic, divergence.differentiable,
            ),
        )
        for i in range(6)
    ]  # fmt: skip
    values, gradients = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if divergence.needs_critic:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(gradients, whole[1])
    else:
        torch.testing.assert_close(values, whole[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients, whole[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("f", [f for f in get_args(FDivergence) if f != "reverse_kl"])
@pytest.mark.parametrize("weight", get_args(Weight))
def test_weights_of_the_density_ratio_have_mean_one(f: FDivergence, weight: Weight) -> None:
    _, plain = value_and_gradient(IKL(weight), case(IKL(weight), IMAGES))
    _, weighted = value_and_gradient(IKL(weight, f), case(IKL(weight, f), IMAGES))
    ratio = (weighted / plain).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert float(ratio[:, 0].mean()) == pytest.approx(1)
    assert float(ratio[:, 0].std()) > 0.01


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [POINTS, IMAGES], ids=["points", "images"])
def test_losses_are_one_number_a_sample_in_the_samples_precision(
    divergence: Divergence, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    at = case(divergence, shape, dtype)
    value, gradient = value_and_gradient(divergence, at)
    learned = score_loss(divergence, at)
    assert value.shape == learned.shape == (6,)
    assert value.dtype == gradient.dtype == learned.dtype == dtype
    assert gradient.shape == at.x.shape
    assert float(gradient.flatten(1).abs().sum(dim=1).min()) > 0


@every
def test_float32_is_near_float64(divergence: Divergence) -> None:
    """In float64 the samples and networks of float32 give nearly the same."""
    at = case(divergence, IMAGES, torch.float32)
    _, gradient = value_and_gradient(divergence, at)
    exact = Noised(
        at.x.detach().double().requires_grad_(), at.noise.double(), at.sigma.double(),
        None if at.labels is None else at.labels.double(), copy.deepcopy(at.teacher).double(),
        copy.deepcopy(at.fake_score).double(), at.critic, divergence.differentiable,
    )  # fmt: skip
    _, expected = value_and_gradient(divergence, exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every
def test_the_device_is_kept(divergence: Divergence) -> None:
    at = case(divergence, IMAGES, torch.float32, "cuda")
    value, gradient = value_and_gradient(divergence, at)
    assert value.device == gradient.device == score_loss(divergence, at).device == at.x.device
    expected = value_and_gradient(divergence, case(divergence, IMAGES, torch.float32))[1]
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@every
def test_a_second_call_gives_the_same_bits(divergence: Divergence) -> None:
    first = value_and_gradient(divergence, case(divergence, IMAGES))
    second = value_and_gradient(divergence, case(divergence, IMAGES))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(
        score_loss(divergence, case(divergence, IMAGES)), score_loss(divergence, case(divergence, IMAGES))
    )


@every
def test_the_students_loss_moves_no_network(divergence: Divergence) -> None:
    """Frozen networks have no gradient afterwards; those that could learn have none either where none flows through."""
    at = case(divergence, IMAGES)
    networks = torch.nn.ModuleList([at.teacher, at.fake_score])
    before = copy.deepcopy(networks.state_dict())
    networks.requires_grad_(not divergence.differentiable)
    divergence.student_loss(at).sum().backward()
    assert at.x.grad is not None
    assert all(parameter.grad is None for parameter in networks.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in networks.state_dict().items())


@every
def test_each_network_is_asked_once_and_told_the_labels(divergence: Divergence) -> None:
    at = case(divergence, POINTS)
    divergence.student_loss(at)
    assert isinstance(at.teacher, Small)
    assert isinstance(at.fake_score, Small)
    assert isinstance(at.critic, SmallCritic)
    assert [id(labels) for labels in at.teacher.seen] == [id(at.labels)]
    assert [id(labels) for labels in at.fake_score.seen] == [id(at.labels)]
    assert [id(labels) for labels in at.critic.seen] == [id(at.labels)] * divergence.needs_critic


@every
def test_the_fake_score_is_told_the_labels_of_what_it_sees(divergence: Divergence) -> None:
    at = case(divergence, POINTS)
    score_loss(divergence, at)
    assert isinstance(at.fake_score, Small)
    assert at.labels is not None
    expected = [at.labels, at.labels.flip(0)][: 1 + divergence.needs_reals]
    assert len(at.fake_score.seen) == len(expected)
    for seen, wanted in zip(at.fake_score.seen, expected, strict=True):
        assert seen is not None
        assert torch.equal(seen, wanted)


@every
def test_the_fake_scores_loss_takes_a_weight(divergence: Divergence) -> None:
    at = case(divergence, POINTS)
    reals = Noised(at.x.detach().flip(0), at.noise, at.sigma, at.labels)

    def loss(weight: Callable[[Tensor], Tensor]) -> Tensor:
        return divergence.score_loss(at.fake_score, detached(at), weight, reals)

    torch.testing.assert_close(loss(lambda sigma: sigma.square()), at.sigma.square() * loss(torch.ones_like))


# Single entries.


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_sid_has_the_bits_that_it_had(alpha: float) -> None:
    """The formula as it was first written here, for images in float32."""
    at = case(SiD(alpha), IMAGES, torch.float32)
    value, gradient = value_and_gradient(SiD(alpha), at)
    x = at.x.detach().clone().requires_grad_()
    noisy = add_noise(x, at.noise, at.sigma)
    teacher = at.teacher(noisy, at.sigma, at.labels)
    difference = teacher - at.fake_score(noisy, at.sigma, at.labels)
    k = 1 / (x - teacher).detach().abs().mean(dim=(1, 2, 3), keepdim=True).add(1e-8)
    loss = (k * (difference * ((teacher - x) - alpha * difference))).sum(dim=(1, 2, 3))
    assert torch.equal(value, loss.detach())
    assert torch.equal(gradient, torch.autograd.grad(loss.sum(), x)[0])


def test_sim_is_sid_with_another_factor() -> None:
    """<D_p - D_q, D_q - x> is SiD's for alpha = 1; the factors of both are divided out."""
    at = case(SIM(), IMAGES)
    sid = SiD(1.0).student_loss(at) / at.inverse_teacher_error.flatten()
    length = (at.teacher_x0 - at.fake_x0).flatten(1).square().sum(dim=1)
    torch.testing.assert_close(SIM(0.7).student_loss(at), sid / (length + 0.49).sqrt())


def test_realuid_without_real_samples_is_sid_and_denoising() -> None:
    plain = RealUID(1.0, 1.0)
    at = case(plain, IMAGES)
    assert not plain.needs_reals
    torch.testing.assert_close(plain.student_loss(at), SiD(0.5).student_loss(at))
    x = at.x.detach()
    loss = plain.score_loss(at.fake_score, detached(at))
    assert torch.equal(loss, denoising_loss(at.fake_score, x, at.noise, at.sigma, at.labels))


def test_realuids_fake_score_has_the_loss_of_scaled_targets() -> None:
    """Up to a constant: alpha |f(x_s) - beta/alpha x|^2 + (1 - alpha) |f(y_s) - (1 - beta)/(1 - alpha) y|^2."""
    alpha, beta = 0.94, 0.96
    at = case(RealUID(), IMAGES)
    x, y = at.x.detach(), at.x.detach().flip(0) + 0.1

    def difference(loss: Callable[[Denoiser], Tensor]) -> Tensor:
        return loss(at.fake_score) - loss(at.teacher)  # without what does not depend on the network

    def ours(f: Denoiser) -> Tensor:
        seen = Noised(y, at.noise, at.sigma, at.labels)
        return RealUID(alpha, beta).score_loss(f, detached(at), torch.ones_like, seen)

    def scaled(f: Denoiser) -> Tensor:
        fakes = f(add_noise(x, at.noise, at.sigma), at.sigma, at.labels) - beta / alpha * x
        reals = f(add_noise(y, at.noise, at.sigma), at.sigma, at.labels) - (1 - beta) / (1 - alpha) * y
        return alpha * fakes.square().flatten(1).sum(dim=1) + (1 - alpha) * reals.square().flatten(1).sum(dim=1)

    torch.testing.assert_close(difference(ours), difference(scaled))


def test_realuid_cannot_do_without_the_samples_that_it_needs() -> None:
    at = case(RealUID(), POINTS)
    with pytest.raises(ValueError, match="real samples, and there are none"):
        RealUID().score_loss(at.fake_score, detached(at))


# Sums.


@pytest.mark.parametrize("divergence", SUMS, ids=str)
def test_a_sum_adds_its_terms(divergence: Sum) -> None:
    _, gradient = value_and_gradient(divergence, case(divergence, IMAGES))
    parts = [weight * value_and_gradient(term, case(term, IMAGES))[1] for weight, term in divergence.terms]
    torch.testing.assert_close(gradient, torch.stack(parts).sum(dim=0))


def test_a_sum_needs_what_its_terms_need() -> None:
    plain = Sum(((1.0, IKL()), (2.0, IKL("one"))))
    assert (plain.differentiable, plain.needs_critic, plain.needs_reals) == (False, False, False)
    assert Sum(((1.0, IKL()), (2.0, SIM()))).differentiable
    assert Sum(((1.0, IKL()), (2.0, IKL(f="js")))).needs_critic
    assert Sum(((1.0, IKL()), (2.0, RealUID()))).needs_reals


def test_a_sums_fake_score_is_trained_as_the_term_with_its_own_loss_wants() -> None:
    at = case(RealUID(), POINTS)
    assert torch.equal(
        score_loss(Sum(((1.0, SiD()), (0.1, RealUID(0.9, 0.95)))), at), score_loss(RealUID(0.9, 0.95), at)
    )
    assert torch.equal(score_loss(Sum(((0.1, SiD()), (0.1, IKL()))), at), score_loss(IKL(), at))


def test_a_sum_of_terms_that_train_the_fake_score_differently_is_refused() -> None:
    with pytest.raises(UserError, match=r"beta=0.9\) and .*beta=0.96\) train the one fake score differently"):
        parse_divergence("realuid:beta=0.96+ikl+realuid:beta=0.9")
    assert parse_divergence("realuid+0.5*realuid") == Sum(((1.0, RealUID()), (0.5, RealUID())))


def test_divergences_are_parsed_from_the_command_line() -> None:
    assert parse_divergence("none") is None
    assert parse_divergence("ikl:weight=dmd,f=js") == IKL("dmd", "js")
    assert parse_divergence("sid:alpha=1.2") == SiD(1.2)
    assert parse_divergence("0.5*sid") == Sum(((0.5, SiD()),))
    assert parse_divergence("ikl+0.5*sid:alpha=1.2") == Sum(((1.0, IKL()), (0.5, SiD(1.2))))
    with pytest.raises(UserError, match=r"--divergence=sidd: there is no 'sidd'; .*did you mean sid\?"):
        parse_divergence("sidd")


# The density ratio's weights.


@pytest.mark.parametrize(
    ("f", "values"),
    [
        ("reverse_kl", [1, 1, 1]),
        ("forward_kl", [0.25, 1, 4]),
        ("js", [0.2, 0.5, 0.8]),
        ("hellinger", [0.5, 1, 2]),
        ("jeffreys", [1.25, 2, 5]),
        ("chi2", [0.0625, 1, 16]),
    ],
)
def test_f_weights_are_exact(f: FDivergence, values: list[float]) -> None:
    """h at r = 1/4, 1 and 4, over its mean."""
    log_ratio = torch.tensor([0.25, 1, 4], dtype=torch.float64).log()
    expected = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(f_weight(log_ratio, f, clip=10), expected / expected.mean())
    with pytest.MonkeyPatch.context() as patch:  # another process, whose samples have three times the weight
        patch.setattr("stylegan_di.torch_utils.distributed.average", lambda means: means[0].mul_(2))
        torch.testing.assert_close(f_weight(log_ratio, f, clip=10), expected / expected.mean() / 2)


@pytest.mark.parametrize("f", get_args(FDivergence))
def test_the_density_ratio_is_kept_within_bounds(f: FDivergence) -> None:
    log_ratio = torch.tensor([-1000.0, -1.0, 0.5, 1000.0], dtype=torch.float64)
    bounded = torch.tensor([-math.log(3), -1.0, 0.5, math.log(3)], dtype=torch.float64)
    torch.testing.assert_close(f_weight(log_ratio, f, clip=3), f_weight(bounded, f, clip=100))


def test_the_density_ratio_comes_from_logits_that_are_positive_for_the_teacher() -> None:
    """Forward KL weighs a sample more the more the teacher's it looks."""
    at = case(IKL(), POINTS)
    assert isinstance(at.critic, SmallCritic)
    torch.testing.assert_close(at.log_ratio, at.x.detach().mean(dim=1))
    plain, weighted = IKL(), IKL(f="forward_kl", clip=1e6)
    ratio = value_and_gradient(weighted, case(weighted, POINTS))[1] / value_and_gradient(plain, at)[1]
    r = at.x.detach().mean(dim=1).exp()
    torch.testing.assert_close(ratio[:, 0], r / r.mean())


def test_without_a_critic_there_is_no_density_ratio() -> None:
    at = case(IKL(), POINTS)
    alone = Noised(at.x, at.noise, at.sigma, at.labels, at.teacher, at.fake_score)
    with pytest.raises(ValueError, match="there is none"):
        IKL(f="js").student_loss(alone)
