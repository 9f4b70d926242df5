"""upfirdn2d against the original's numbers, finite differences and what torch.library asks of an operator."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stylegan_di.torch_utils.ops import upfirdn2d as ops
from stylegan_di.torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from tests.golden_edm import assert_near, probe
from tests.golden_sg2 import load_op

pytestmark = pytest.mark.usefixtures("kernels")  # with the reference, and with native kernels
ARRAYS, INFO = load_op("upfirdn2d")
TAPS = INFO["filters"]

# filter, up, down, padding, flip_filter, gain: 2-D and separable, asymmetric, with crops, with a remainder when down.
SMALL = [
    ("f_1331", 1, 1, [1, 2, 0, 3], False, 1.0),
    ("f_1331", 2, 1, [2, 1, 2, 1], False, 4.0),
    ("f_1331", 1, 2, [1, 1, 2, 1], True, 1.0),
    ("f_2d_3x4", [3, 2], [2, 1], [4, -1, -2, 5], False, 0.5),
    ("f_sep8", 2, 3, [5, 4, 6, 3], False, 2.0),
]


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def golden_case(index: int, x: Tensor) -> Tensor:
    case = dict(INFO["cases"][index])
    function = getattr(ops, case.pop("fn"))
    return function(x, ARRAYS[f"setup_{case.pop('f')}"], **case)


@pytest.mark.parametrize("index", range(len(INFO["cases"])))
def test_golden(index: int) -> None:
    x = ARRAYS["x"].double().requires_grad_()
    y = golden_case(index, x)
    (gradient,) = torch.autograd.grad(probe(y), x)
    assert_near(y.detach(), ARRAYS[f"y64_{index:03}"], 1e-10)
    assert_near(gradient, ARRAYS[f"gx64_{index:03}"], 1e-10)
    assert_near(golden_case(index, ARRAYS["x"]), ARRAYS[f"y{index:03}"], 3e-6)


@pytest.mark.parametrize(
    ("key", "taps", "options"),
    [(key, taps, {}) for key, taps in TAPS.items()]
    + [
        ("f_1331_gain4", TAPS["f_1331"], {"gain": 4}),
        ("f_1331_nonorm", TAPS["f_1331"], {"normalize": False}),
        ("f_12345_flip", TAPS["f_12345"], {"flip_filter": True}),
        ("f_1331_sep", TAPS["f_1331"], {"separable": True}),
        ("f_sep8_nonsep", TAPS["f_sep8"], {"separable": False}),
    ],
)
def test_setup_filter(key: str, taps: list[float] | None, options: dict[str, float]) -> None:
    f = setup_filter(taps, **options)
    assert f.dtype == torch.float32
    torch.testing.assert_close(f, ARRAYS[f"setup_{key}"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", SMALL)
def test_definition(options: tuple) -> None:
    """Zeros in between, padding, convolution, subsampling, one after the other."""
    name, up, down, padding, flip, gain = options
    x = image(2, 3, 5, 6)
    (upx, upy), (downx, downy) = ops.parse_factors(up), ops.parse_factors(down)
    stuffed = x.new_zeros(2, 3, 5 * upy, 6 * upx)
    stuffed[:, :, ::upy, ::upx] = x
    f = ARRAYS[f"setup_{name}"].double()
    f = torch.outer(f, f) if f.ndim == 1 else f
    f = f if flip else f.flip([0, 1])
    y = F.conv2d(F.pad(stuffed, padding), f.expand(3, 1, -1, -1), groups=3)[:, :, ::downy, ::downx] * gain
    torch.testing.assert_close(upfirdn2d(x, ARRAYS[f"setup_{name}"], *options[1:]), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", SMALL)
def test_gradients(options: tuple) -> None:
    name, *rest = options
    x = image(1, 2, 4, 5).requires_grad_()
    f = ARRAYS[f"setup_{name}"]
    assert gradcheck(lambda x: upfirdn2d(x, f, *rest), x)
    assert gradgradcheck(lambda x: upfirdn2d(x, f, *rest).square(), x, fast_mode=True)


@pytest.mark.parametrize("options", SMALL[1:])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_kept(options: tuple, layout: torch.memory_format) -> None:
    name, *rest = options
    x = image(2, 3, 6, 7).to(memory_format=layout).requires_grad_()
    y = upfirdn2d(x, ARRAYS[f"setup_{name}"], *rest)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=layout)
    assert dx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("options", "layout"),
    [(SMALL[1], torch.contiguous_format), (SMALL[3], torch.channels_last), (SMALL[4], torch.contiguous_format)],
)
def test_operator(options: tuple, layout: torch.memory_format) -> None:
    name, up, down, padding, flip, gain = options
    x = image(2, 3, 6, 7, dtype=torch.float32).to(memory_format=layout).requires_grad_()
    factors = ops.parse_factors(up), ops.parse_factors(down)
    torch.library.opcheck(
        torch.ops.stylegan_di.upfirdn2d.default, (x, ARRAYS[f"setup_{name}"], *factors, padding, flip, gain)
    )


def test_compiles_whole() -> None:
    x, f = image(2, 3, 6, 6, dtype=torch.float32).requires_grad_(), setup_filter([1, 3, 3, 1])

    def function(x: Tensor) -> Tensor:
        return ops.downsample2d(ops.upsample2d(x, f).square(), f)

    y = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, function(x))
    (actual,), (expected,) = torch.autograd.grad(probe(y), x), torch.autograd.grad(probe(function(x)), x)
    torch.testing.assert_close(actual, expected)


def test_float16() -> None:
    x, f = image(2, 3, 6, 6), setup_filter([1, 3, 3, 1])
    for function in (ops.filter2d, ops.upsample2d, ops.downsample2d):
        y = function(x.half(), f)
        assert y.dtype == torch.float16
        assert_near(y, function(x, f), 2e-3)


def test_identity_filter() -> None:
    x = image(1, 2, 3, 3)
    assert torch.equal(upfirdn2d(x, None), x)
    assert torch.equal(ops.upsample2d(x, None)[:, :, 1::2, 1::2], x * 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"up": 0}, "accepted: 1 or more"),
        ({"down": [1, -2]}, "accepted: 1 or more"),
        ({"padding": [1, 2, 3]}, "accepted: one number"),
        ({"padding": -2}, "too small"),
    ],
)
def test_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        upfirdn2d(image(1, 1, 4, 4), setup_filter([1, 2, 1]), **arguments)


@pytest.mark.parametrize("taps", [[], [[[1.0]]]])
def test_refused_filter(taps: list) -> None:
    with pytest.raises(ValueError, match="1-D or 2-D"):
        setup_filter(taps)
