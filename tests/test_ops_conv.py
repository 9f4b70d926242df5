"""conv2d_resample and modulated_conv2d against the original's numbers and their definitions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_di.torch_utils.ops.conv2d_resample import conv2d_resample
from stylegan_di.torch_utils.ops.modulated_conv2d import modulated_conv2d
from tests.golden_edm import assert_near, probe
from tests.golden_sg2 import load_op

pytestmark = pytest.mark.usefixtures("kernels")  # with the reference, and with native kernels
RESAMPLE, RESAMPLE_INFO = load_op("conv2d_resample")
MODULATED, MODULATED_INFO = load_op("modulated_conv2d")


def leaf(array: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return array.to(dtype, copy=True).requires_grad_()


def modulated_case(index: int) -> dict[str, Any]:
    """The arguments of a case; whether the original fused it makes no difference."""
    case = dict(MODULATED_INFO["cases"][index])
    del case["fused_modconv"]
    case["weight"] = MODULATED[f"w{case.pop('k')}"]
    case["noise"] = None if case["noise"] is None else MODULATED[case["noise"]]
    return case


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-6)])
@pytest.mark.parametrize("index", range(len(RESAMPLE_INFO["cases"])))
def test_golden_conv2d_resample(index: int, dtype: torch.dtype, tolerance: float) -> None:
    case = dict(RESAMPLE_INFO["cases"][index])
    k, f = case.pop("k"), RESAMPLE.get(case.pop("f"))
    x, w = leaf(RESAMPLE["x"], dtype), leaf(RESAMPLE[f"w{k}" if case["groups"] == 1 else f"wg{k}"], dtype)
    y = conv2d_resample(x, w, f, **case)
    gradients = torch.autograd.grad(probe(y), [x, w])
    for actual, name in zip([y.detach(), *gradients], ["y64", "gx64", "gw64"], strict=True):
        assert_near(actual, RESAMPLE[f"{name}_{index:03}"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-6)])
@pytest.mark.parametrize("index", range(len(MODULATED_INFO["cases"])))
def test_golden_modulated_conv2d(index: int, dtype: torch.dtype, tolerance: float) -> None:
    case = modulated_case(index)
    x, styles = leaf(MODULATED["x"], dtype), leaf(MODULATED["styles"], dtype)
    weight = leaf(case.pop("weight"), dtype)
    y = modulated_conv2d(x, weight, styles, resample_filter=MODULATED["f"], **case)
    gradients = torch.autograd.grad(probe(y), [x, weight, styles])
    for actual, name in zip([y.detach(), *gradients], ["y64", "gx64", "gw64", "gs64"], strict=True):
        assert_near(actual, MODULATED[f"{name}_{index:03}"], tolerance)


@pytest.mark.parametrize("demodulate", [False, True])
def test_golden_float16(demodulate: bool) -> None:
    x, weight, styles = MODULATED["x"].half(), MODULATED["w3"], MODULATED["styles"]
    y = modulated_conv2d(x, weight, styles, padding=1, demodulate=demodulate)
    assert y.dtype == torch.float16
    assert_near(y, MODULATED["y_half_0" if demodulate else "y_half_1"], 1e-2)


def test_float16_does_not_overflow() -> None:
    """Demodulation makes the result independent of the scale of weights and styles."""
    x, weight, styles = MODULATED["x"], MODULATED["w3"], MODULATED["styles"]
    large = modulated_conv2d(x.half(), weight * 1e4, styles * 1e4, padding=1)
    assert_near(large, modulated_conv2d(x.double(), weight.double(), styles.double(), padding=1), 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_its_type_and_does_not_overflow(dtype: torch.dtype) -> None:
    x, weight, styles = MODULATED["x"], MODULATED["w3"], MODULATED["styles"]
    expected = modulated_conv2d(x, weight, styles, padding=1)
    with torch.autocast("cpu", dtype):
        y = modulated_conv2d(x, weight * 1e4, styles * 1e4, padding=1)
    assert y.dtype == dtype
    assert_near(y, expected, 2e-2)


def test_modulation_is_per_sample_weights() -> None:
    """Equations 1-3 as they are written, one sample at a time."""
    x, weight, styles = (MODULATED[name].double() for name in ("x", "w3", "styles"))
    expected = []
    for sample, style in zip(x, styles, strict=True):
        w = weight * style[:, None, None]
        w = w / (w.square().sum([1, 2, 3], keepdim=True) + 1e-8).sqrt()
        expected.append(F.conv2d(sample[None], w, padding=1))
    assert_near(modulated_conv2d(x, weight, styles, padding=1), torch.cat(expected), 1e-12)


def test_second_order() -> None:
    x, weight, styles = (MODULATED[name][:2].double() for name in ("x", "w3", "styles"))
    x, styles, weight = x[:, :, :3, :3].clone().requires_grad_(), styles.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda *args: modulated_conv2d(*args, up=2, padding=1, resample_filter=MODULATED["f"], flip_weight=False),
        (x, weight, styles),
        fast_mode=True,
    )


def test_compiles_whole() -> None:
    x, weight, styles = leaf(MODULATED["x"]), leaf(MODULATED["w3"]), leaf(MODULATED["styles"])

    def function(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
        x = modulated_conv2d(x, weight, styles, up=2, padding=1, resample_filter=MODULATED["f"])
        return conv2d_resample(x, weight.transpose(0, 1), MODULATED["f"], down=2, padding=1)

    y = torch.compile(function, fullgraph=True, backend="aot_eager")(x, weight, styles)
    torch.testing.assert_close(y, function(x, weight, styles))
