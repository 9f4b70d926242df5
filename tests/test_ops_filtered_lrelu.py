"""filtered_lrelu against the original's numbers, its definition and what torch.library asks of an operator."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stylegan_di.torch_utils.ops.bias_act import bias_act
from stylegan_di.torch_utils.ops.filtered_lrelu import filtered_lrelu
from stylegan_di.torch_utils.ops.upfirdn2d import upfirdn2d
from tests.golden_edm import assert_near, probe
from tests.golden_sg2 import load_op

pytestmark = pytest.mark.usefixtures("kernels")  # with the reference, and with native kernels
ARRAYS, INFO = load_op("filtered_lrelu")
CASES = INFO["cases"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SECOND = [index for index, case in enumerate(CASES) if case["second"]]


def golden_case(index: int, x: Tensor, b: Tensor) -> Tensor:
    case = CASES[index]
    options = {name: case[name] for name in ("up", "down", "padding", "gain", "slope", "clamp", "flip_filter")}
    return filtered_lrelu(x, ARRAYS.get(f"f_{case['fu']}"), ARRAYS.get(f"f_{case['fd']}"), b if case["bias"] else None,
                          **options)  # fmt: skip


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_golden(index: int) -> None:
    for dtype, tolerances in ((torch.float64, (1e-10, 1e-10)), (torch.float32, (3e-6, 2e-5))):
        x, b = (ARRAYS[name].to(dtype).requires_grad_() for name in "xb")
        y = golden_case(index, x, b)
        assert list(y.shape) == CASES[index]["out_shape"]
        dx, db = torch.autograd.grad(probe(y), [x, b], materialize_grads=True)
        assert_near(y.detach(), ARRAYS[f"y64_{index:03}"], tolerances[0])
        assert_near(dx, ARRAYS[f"gx64_{index:03}"], tolerances[0])
        if CASES[index]["bias"]:
            assert_near(db, ARRAYS[f"gb64_{index:03}"], tolerances[1])


@pytest.mark.parametrize("index", SECOND)
def test_golden_second_order(index: int) -> None:
    x, b = (ARRAYS[name].double().requires_grad_() for name in "xb")
    y = golden_case(index, x, b)
    scalar = 0.5 * probe(y.square())
    (dx,) = torch.autograd.grad(scalar, x, create_graph=True)
    total = (dx * torch.linspace(1, -0.5, x.numel(), dtype=x.dtype).reshape(x.shape)).sum()
    second = torch.autograd.grad(total, [x, b])
    for actual, name in zip(second, ("g2x64", "g2b64"), strict=True):
        assert_near(actual, ARRAYS[f"{name}_{index:03}"], 1e-10)


@pytest.mark.parametrize("index", [4, 6, 8, 14])
def test_definition_and_layout(index: int) -> None:
    """The four steps one after the other, of 35 channels, which are more than the kernel takes at a time."""
    case = CASES[index]
    x, b = image(2, 35, 7, 6), image(35)
    fu, fd, flip = ARRAYS.get(f"f_{case['fu']}"), ARRAYS.get(f"f_{case['fd']}"), case["flip_filter"]
    u = upfirdn2d(x + b[:, None, None], fu, up=case["up"], padding=case["padding"], flip_filter=flip,
                  gain=case["up"] ** 2)  # fmt: skip
    u = bias_act(u, None, act="lrelu", alpha=case["slope"], gain=case["gain"], clamp=case["clamp"])
    expected = upfirdn2d(u, fd, down=case["down"], flip_filter=flip)
    for layout in LAYOUTS:
        leaf = x.to(memory_format=layout).requires_grad_()
        y = golden_case(index, leaf, b)
        (dx,) = torch.autograd.grad(y.square().sum(), leaf)
        assert_near(y.detach(), expected, 1e-12)
        assert y.is_contiguous(memory_format=layout)
        assert dx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("index", [1, 4, 6, 14])
def test_gradients(index: int) -> None:
    x, b = image(2, 3, 7, 6).requires_grad_(), image(3).requires_grad_()
    assert gradcheck(lambda x, b: golden_case(index, x, b), (x, b), fast_mode=True)
    assert gradgradcheck(lambda x, b: golden_case(index, x, b).square(), (x, b), fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators(layout: torch.memory_format) -> None:
    """What torch.library asks of the operator and of its two linear parts."""
    x = image(2, 3, 7, 6).float().to(memory_format=layout).requires_grad_()
    fu, fd, b = ARRAYS["f_sep12"], ARRAYS["f_rad12"], image(3).float().requires_grad_()
    rest = (fu, fd, b, 2, 2, [11, 10, 11, 10], 1.3, 0.2, 0.9, False)
    y = torch.ops.stylegan_di.filtered_lrelu(x, *rest).detach().requires_grad_()
    inputs = x.detach(), fu, fd, b.detach(), *rest[3:]
    torch.library.opcheck(torch.ops.stylegan_di.filtered_lrelu.default, (x, *rest))
    torch.library.opcheck(torch.ops.stylegan_di.filtered_lrelu_grad.default, (y, *inputs))
    torch.library.opcheck(torch.ops.stylegan_di.filtered_lrelu_tangent.default, (x, *inputs))


def test_compiles_whole() -> None:
    x = image(2, 3, 7, 6).float().requires_grad_()

    def function(x: Tensor) -> Tensor:
        return golden_case(4, x, ARRAYS["b"])

    y = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, function(x))
    (actual,), (expected,) = torch.autograd.grad(probe(y), x), torch.autograd.grad(probe(function(x)), x)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    x, b = image(2, 3, 7, 6).to(dtype).requires_grad_(), image(3).to(dtype)
    y = golden_case(4, x, b)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == dx.dtype == dtype
    assert_near(y.detach(), golden_case(4, x.detach().double(), b.double()), tolerance)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"up": 0}, "factors from 1"),
        ({"gain": 0.0}, "gain > 0"),
        ({"clamp": -1.0}, "clamp >= 0"),
        ({"padding": [1, 2, 3]}, "accepted: one number"),
        ({"padding": -2}, "too small"),
        ({"fd": torch.ones(9)}, "too small"),
        ({"b": torch.ones(2)}, "a bias of shape"),
    ],
)
def test_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        filtered_lrelu(image(1, 1, 4, 4), **arguments)
