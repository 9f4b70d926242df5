"""The augmentation pipe against the numbers of NVlabs' own (golden/augment), and its gradients."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_di.data import augment_ops
from stylegan_di.data.augment import AUGMENT_PIPES, AugmentPipe
from stylegan_di.data.augment_ops import SYM2, SYM6, frequency_bands
from stylegan_di.dnnlib.util import UserError
from stylegan_di.random import SampleRandom

FOLDER = Path(__file__).parent / "golden"
with np.load(FOLDER / "augment" / "sg2_augment.npz") as _file:
    GOLDEN = dict(_file)
COMBOS = json.loads((FOLDER / "augment" / "sg2_augment.json").read_text())["combos"]
CASES = [name.removeprefix("y64/") for name in GOLDEN if name.startswith("y64/")]


class Replay:
    """Gives recorded draws in the order of their recording."""

    def __init__(self) -> None:
        self.left = sorted(name for name in GOLDEN if name.startswith("random_draw"))

    def normal(self, *shape: int) -> Tensor:
        return self._next("_randn", shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._next("_rand", shape)

    def _next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        name = self.left.pop(0)
        assert name.endswith(kind)
        return torch.from_numpy(GOLDEN[name]).reshape(-1, *shape)


def images(n: int, size: int = 16, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn([n, channels, size, size], generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_every_transform_at_percentiles(case: str, dtype: torch.dtype, tolerance: float) -> None:
    combo, percentile = case.removesuffix("_gray").rsplit("_", 1)
    x = torch.from_numpy(GOLDEN["xgray" if case.endswith("_gray") else "x"]).to(dtype)
    y = AugmentPipe(**COMBOS[combo]).to(dtype)(x, debug_percentile=float(percentile))
    expected = torch.from_numpy(GOLDEN[f"y64/{case}"]).to(dtype)
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_random_draws_in_the_original_order() -> None:
    x = torch.from_numpy(GOLDEN["x"])
    pipe, replay = AugmentPipe(**AUGMENT_PIPES["bgcfnc"]), Replay()
    pipe.p.fill_(0.8)
    y = pipe(torch.cat([x, x.flip(3)]), rng=replay)
    expected = torch.from_numpy(GOLDEN["random_p0.8_y32"])
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    assert not replay.left


def test_filters() -> None:
    pipe = AugmentPipe()
    assert torch.equal(pipe.Hz_geom, torch.from_numpy(GOLDEN["Hz_geom"]))
    torch.testing.assert_close(pipe.Hz_fbank, torch.from_numpy(GOLDEN["Hz_fbank"]), rtol=0, atol=1e-7)
    impulse = np.eye(1, 43, 21)[0]
    np.testing.assert_allclose(frequency_bands().sum(axis=0), impulse, atol=1e-14)  # equal gains change nothing


@pytest.mark.parametrize("taps", [SYM6, SYM2])
def test_wavelets_are_orthonormal_to_their_even_shifts(taps: tuple[float, ...]) -> None:
    h = np.array(taps)
    assert h.sum() == pytest.approx(2**0.5, abs=1e-12)
    products = [h[shift:] @ h[: h.size - shift] for shift in range(0, h.size, 2)]
    np.testing.assert_allclose(products, np.eye(1, len(products))[0], atol=1e-12)


def test_attributes_are_those_of_the_format() -> None:
    names = json.loads((FOLDER / "format" / "state_attrs_sg2.json").read_text())["classes"]["AugmentPipe"]
    pipe = AugmentPipe(**AUGMENT_PIPES["bgc"])
    ours = {name: value for name, value in vars(pipe).items() if name not in vars(torch.nn.Module())}
    assert set(ours) == set(names)
    assert all(type(value).__name__ in names[name] for name, value in ours.items())
    assert pipe.init_kwargs == AUGMENT_PIPES["bgc"]
    shapes = {name: list(tensor.shape) for name, tensor in pipe.state_dict().items()}
    assert shapes == {"p": [], "Hz_geom": [12], "Hz_fbank": [4, 43]}


@pytest.mark.parametrize("name", list(AUGMENT_PIPES))
def test_probability_zero_is_the_identity(name: str) -> None:
    """Exactly for colours, noise and cutout; smooth images only, and nearly, where pixels are resampled."""
    pipe = AugmentPipe(**AUGMENT_PIPES[name])
    pipe.p.zero_()
    smooth = torch.nn.functional.interpolate(images(4, size=4), size=32, mode="bicubic", align_corners=False)
    tolerance = 0.02 if {"xflip", "scale"} & set(AUGMENT_PIPES[name]) else 2e-6
    torch.testing.assert_close(pipe(smooth, rng=SampleRandom(0, "a", 0, range(4))), smooth, rtol=0, atol=tolerance)


def test_probability_is_that_of_applying() -> None:
    pipe = AugmentPipe(brightness=0.5)
    pipe.p.fill_(0.6)
    n = 4000
    y = pipe(torch.zeros([n, 1, 1, 1]), rng=SampleRandom(3, "a", 0, range(n))).flatten()
    assert (y != 0).float().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / n))
    assert y[y != 0].std().item() == pytest.approx(0.2, rel=0.1)


def test_a_sample_depends_on_its_own_stream_only() -> None:
    pipe = AugmentPipe(**AUGMENT_PIPES["bgcfnc"])
    x = images(6, size=24, dtype=torch.float64)
    whole = pipe(x, rng=SampleRandom(0, "augment", 64, range(6)))
    halves = [pipe(x[part], rng=SampleRandom(0, "augment", 64, range(6)[part])) for part in (slice(4), slice(4, 6))]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-10)
    other = pipe(x, rng=SampleRandom(0, "augment", 128, range(6)))
    assert (other - whole).abs().mean() > 0.1


def test_without_a_source_the_global_generator_is_drawn_from() -> None:
    pipe = AugmentPipe(**AUGMENT_PIPES["bgc"])
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(pipe(images(4)))
    assert torch.equal(*outputs)
    assert not torch.equal(pipe(images(4)), outputs[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_of_first_and_second_order(channels: int) -> None:
    pipe = AugmentPipe(**AUGMENT_PIPES["bgc"]).double()
    x = images(2, size=6, channels=channels, dtype=torch.float64).requires_grad_()

    def augmented(x: Tensor) -> Tensor:
        return pipe(x, rng=SampleRandom(0, "augment", 0, range(2))).square()

    assert torch.autograd.gradcheck(augmented, [x], fast_mode=True)
    assert torch.autograd.gradgradcheck(augmented, [x], fast_mode=True)


def test_sampling_without_grid_sample_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for F.grid_sample on PyTorch before 2.12, in values and in gradients of both orders."""
    x = images(2, size=6, channels=3, dtype=torch.float64).requires_grad_()
    grid = 2.4 * torch.rand([2, 5, 7, 2], generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1.2
    expected = augment_ops.sample_bilinear(x, grid)
    (slope,) = torch.autograd.grad(expected.square().sum(), x)
    monkeypatch.setattr(augment_ops, "TWICE_DIFFERENTIABLE", False)
    found = augment_ops.sample_bilinear(x, grid)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], slope, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: augment_ops.sample_bilinear(x, grid).square(), [x], fast_mode=True)


def test_gradient_penalty_through_all_transforms() -> None:
    """R1's gradient by autograd equals the derivative of R1 along a direction by differences."""
    pipe = AugmentPipe(**AUGMENT_PIPES["bgcfnc"]).double()
    x = images(2, size=24, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def penalty(at: Tensor) -> Tensor:
        logits = pipe(at, rng=SampleRandom(1, "augment", 0, range(2))).tanh().sum()
        return torch.autograd.grad(logits, at, create_graph=True)[0].square().sum()

    x.requires_grad_()
    (slope,) = torch.autograd.grad(penalty(x), x)
    step = 1e-5
    ends = [penalty((x + sign * step * direction).detach().requires_grad_()) for sign in (1, -1)]
    torch.testing.assert_close((slope * direction).sum(), (ends[0] - ends[1]).detach() / (2 * step), rtol=1e-6, atol=0)


def test_images_too_small_for_the_filter_are_refused() -> None:
    with pytest.raises(UserError, match="larger than 21 pixels, not 16x16"):
        AugmentPipe(imgfilter=1)(images(1))
