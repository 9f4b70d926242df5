"""bias_act against the original's numbers, finite differences and what torch.library asks of an operator."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stylegan_di.torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from tests.golden_edm import assert_near, probe
from tests.golden_sg2 import load_op

pytestmark = pytest.mark.usefixtures("kernels")  # with the reference, and with native kernels
ARRAYS, INFO = load_op("bias_act")


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x [2,3,4,2] and b [3], nowhere near a kink."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn([2, 3, 4, 2], generator=generator, dtype=torch.float64) * 2
    b = torch.tensor([0.5, -0.25, 0.1], dtype=torch.float64)
    return x.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


@pytest.mark.parametrize("index", range(len(INFO["cases"])))
def test_golden(index: int) -> None:
    case = dict(INFO["cases"][index])
    single, has_bias = ARRAYS[case.pop("x")], case.pop("b")
    x = single.double().requires_grad_()
    b = ARRAYS["b"].double().requires_grad_() if has_bias else None
    y = bias_act(x, b, **case)
    assert_near(y.detach(), ARRAYS[f"y64_{index:03}"], 1e-10)
    dx, *db = torch.autograd.grad(probe(y), [x] if b is None else [x, b], create_graph=True)
    assert_near(dx.detach(), ARRAYS[f"gx64_{index:03}"], 1e-10)
    if db:
        assert_near(db[0].detach(), ARRAYS[f"gb64_{index:03}"], 1e-10)
    if f"g2x64_{index:03}" in ARRAYS:
        (second,) = torch.autograd.grad(dx.square().sum(), x)
        assert_near(second, ARRAYS[f"g2x64_{index:03}"], 1e-10)
    y32 = bias_act(single, ARRAYS["b"] if has_bias else None, **case)
    assert_near(y32, ARRAYS[f"y{index:03}"], 3e-6)


@pytest.mark.parametrize("act", INFO["defaults"])
def test_defaults(act: str) -> None:
    expected = INFO["defaults"][act]
    assert ACTIVATIONS[act].default_alpha == pytest.approx(expected["def_alpha"])
    assert ACTIVATIONS[act].default_gain == pytest.approx(expected["def_gain"])


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.9])
def test_gradients(act: str, clamp: float | None) -> None:
    def function(x: Tensor, b: Tensor) -> Tensor:
        return bias_act(x, b, act=act, gain=1.3, clamp=clamp)

    x, b = inputs()
    assert gradcheck(function, (x, b))
    assert gradgradcheck(lambda x, b: function(x, b).square(), (x, b), fast_mode=True)


@pytest.mark.parametrize("act", ["tanh", "swish"])
def test_third_derivatives(act: str) -> None:
    """Of act itself; plain autograd gives the numbers."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
    plain = {"tanh": torch.tanh, "swish": lambda u: u * torch.sigmoid(u)}[act]
    derivatives = []
    for y in (bias_act(x, act=act, gain=1.5), plain(x) * 1.5):
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        derivatives.append(y.detach())
    torch.testing.assert_close(*derivatives, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("act", "clamp", "layout"),
    [
        ("lrelu", None, torch.channels_last),
        ("linear", 0.9, torch.contiguous_format),
        ("sigmoid", 0.9, torch.contiguous_format),
        ("swish", 0.9, torch.channels_last),
    ],
)
def test_operators(act: str, clamp: float | None, layout: torch.memory_format) -> None:
    x, b = inputs(torch.float32)
    x = x.detach().to(memory_format=layout).requires_grad_()
    options = (1, act, 0.2, 1.3, clamp)
    torch.library.opcheck(torch.ops.stylegan_di.bias_act.default, (x, b, *options))
    y = torch.ops.stylegan_di.bias_act(x, b, *options).detach()
    assert y.is_contiguous(memory_format=layout)
    ref, bias = (x.detach(), b.detach()) if ACTIVATIONS[act].needs_input else (y, None)
    dy = torch.ones_like(y).requires_grad_()
    torch.library.opcheck(torch.ops.stylegan_di.bias_act_grad.default, (dy, ref, bias, *options))


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_compiles_whole(act: str) -> None:
    def function(x: Tensor, b: Tensor) -> Tensor:
        return bias_act(bias_act(x, b, act=act, clamp=2), None, act="linear", gain=0.5)

    x, b = inputs(torch.float32)
    y = torch.compile(function, fullgraph=True, backend="aot_eager")(x, b)
    torch.testing.assert_close(y, function(x, b))
    actual, expected = torch.autograd.grad(probe(y), [x, b]), torch.autograd.grad(probe(function(x, b)), [x, b])
    torch.testing.assert_close(actual, expected)


def test_float16() -> None:
    x, b = inputs()
    for act in ACTIVATIONS:
        y = bias_act(x.half(), b.half(), act=act, clamp=3)
        assert y.dtype == torch.float16
        assert_near(y.detach(), bias_act(x, b, act=act, clamp=3).detach(), 5e-3)


def test_nothing_to_do_is_free() -> None:
    x, _ = inputs()
    assert bias_act(x) is x


def test_input_is_left_alone() -> None:
    x, b = inputs()
    before = x.detach().clone()
    for act in ACTIVATIONS:
        bias_act(x, act=act)
        bias_act(x, b, act=act, clamp=0.1)
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"act": "gelu"}, "accepted: linear, relu"),
        ({"gain": 0}, "accepted: gain > 0"),
        ({"clamp": -1}, "clamp >= 0"),
        ({"dim": 2}, "a bias of shape"),
    ],
)
def test_refused(arguments: dict, words: str) -> None:
    x, b = inputs()
    with pytest.raises(ValueError, match=words):
        bias_act(x, b, **arguments)
