"""Every op in every implementation against one table of cases: reference and native, NCHW and channels_last."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stylegan_di.torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from stylegan_di.torch_utils.ops.bias_add import bias_add
from stylegan_di.torch_utils.ops.filtered_lrelu import filtered_lrelu
from stylegan_di.torch_utils.ops.group_norm_silu import group_norm_silu
from stylegan_di.torch_utils.ops.modconv_epilogue import modconv_epilogue
from stylegan_di.torch_utils.ops.reference import OPERATORS, reference_kernels
from stylegan_di.torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from tests.golden_edm import assert_near, probe

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = {"x": (2, 4, 6, 5), "b": (4,), "scale": (2, 4), "noise": (2, 1, 6, 5), "one_noise": (1, 1, 6, 5),
          "weight": (4,), "bias": (4,), "weights": (2, 4), "biases": (2, 4), "shift": (2, 4), "one_shift": (1, 4),
          "few_pixels": (1, 32, 6, 5), "more_pixels": (1, 32, 17, 16), "many_pixels": (1, 32, 33, 32), "b32": (32,),
          "other": (2, 4, 6, 5), "wide_other": (2, 40, 6, 5),
          "wide": (2, 40, 6, 5), "wide_scale": (2, 40), "wide_b": (40,), "wide_shift": (2, 40)}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A call of an op on tensors of SHAPES, named by their keys; all of them get gradients."""

    name: str
    function: Callable[..., Tensor]
    tensors: tuple[str, ...]


def fir(taps: Any) -> dict[str, Any]:
    """A filter that keeps the size."""
    f = setup_filter(taps, separable=False)
    before, after = f.shape[0] // 2, (f.shape[0] - 1) // 2
    return {"f": f, "padding": [before, after, before, after], "filter_gain": 4}


BLUR, SKEWED = fir([1, 3, 3, 1]), fir([[0.5, 1, 0.1], [2, 3, -1], [1, 0.2, 0.7]])
EPILOGUE: list[Case] = [
    Case("epilogue whole", lambda x, s, z, b: modconv_epilogue(x, **BLUR, scale=s, noise=z, b=b, act="lrelu", clamp=1),
         ("x", "scale", "noise", "b")),
    Case("epilogue wide", lambda x, s, z, b: modconv_epilogue(x, **BLUR, scale=s, noise=z, b=b, act="lrelu"),
         ("wide", "wide_scale", "one_noise", "wide_b")),
    Case("epilogue, any filter", lambda x, s: modconv_epilogue(x, **SKEWED, scale=s, act="relu"), ("x", "scale")),
    Case("epilogue, no filter", lambda x, s, z, b: modconv_epilogue(x, scale=s, noise=z, b=b, act="lrelu", gain=0.7),
         ("x", "scale", "one_noise", "b")),
    Case("epilogue, wide, no filter", lambda x, s: modconv_epilogue(x, scale=s, act="lrelu"), ("wide", "wide_scale")),
    Case("epilogue, only a filter", lambda x: modconv_epilogue(x, **BLUR), ("x",)),
    Case("epilogue, only noise", lambda x, z: modconv_epilogue(x, noise=z, clamp=0.9), ("x", "noise")),
]  # fmt: skip
NORM: list[Case] = [
    Case("norm", lambda x, w, b: group_norm_silu(x, w, b, 2, 1e-5), ("x", "weight", "bias")),
    Case("norm, shift", lambda x, w, b, s: group_norm_silu(x, w, b, 2, 1e-5, shift=s),
         ("x", "weight", "bias", "shift")),
    Case("norm, one shift", lambda x, w, b, s: group_norm_silu(x, w, b, 2, 1e-5, shift=s),
         ("x", "weight", "bias", "one_shift")),
    Case("norm, of each sample", lambda x, w, b: group_norm_silu(x, w, b, 2, 1e-5), ("x", "weights", "biases")),
    Case("norm, mixed", lambda x, w, b: group_norm_silu(x, w, b, 4, 1e-5), ("x", "weights", "bias")),
    Case("norm, no silu", lambda x, w, b: group_norm_silu(x, w, b, 1, 1e-6, silu=False), ("x", "weight", "bias")),
    Case("norm, wide", lambda x, w, b, s: group_norm_silu(x, w, b, 10, 1e-6, shift=s),
         ("wide", "wide_b", "wide_scale", "wide_shift")),
]  # fmt: skip
NORM_OF_SIZES: list[Case] = [  # a GPU's kernel keeps few pixels in registers, more in more of them, many nowhere
    Case(f"norm, {size}", lambda x, w, b: group_norm_silu(x, w, b, 4, 1e-5), (size, "b32", "b32"))
    for size in ("few_pixels", "more_pixels", "many_pixels")
]
RESAMPLE: list[Case] = [
    Case("upfirdn up", lambda x: upfirdn2d(x, BLUR["f"], up=2, padding=[2, 1, 2, 1], gain=4), ("x",)),
    Case("upfirdn down", lambda x: upfirdn2d(x, BLUR["f"], down=2, padding=[1, 1, 2, 1]), ("x",)),
    Case("upfirdn both", lambda x: upfirdn2d(x, SKEWED["f"], up=[3, 2], down=[2, 3], padding=[4, -1, 2, 3]), ("wide",)),
    Case("upfirdn separable", lambda x: upfirdn2d(x, setup_filter(range(1, 9)), up=2, padding=5), ("x",)),
]  # fmt: skip
BIAS: list[Case] = [
    Case(f"bias_act {act}", lambda x, b, act=act: bias_act(x, b, act=act, gain=1.3, clamp=0.9), ("wide", "wide_b"))
    for act in ACTIVATIONS
] + [
    Case(f"bias_act {act}, no limit", lambda x, b, act=act: bias_act(x, b, act=act), ("wide", "wide_b"))
    for act in ("linear", "lrelu")
]  # fmt: skip
ADD: list[Case] = [
    Case("bias_add", lambda x, b, y: bias_add(x, b, y, 0.7), ("x", "b", "other")),
    Case("bias_add, wide", lambda x, b, y: bias_add(x, b, y, 1), ("wide", "wide_b", "wide_other")),
]
LRELU: list[Case] = [
    Case("filtered_lrelu", lambda x, b: filtered_lrelu(x, setup_filter(range(1, 9)), SKEWED["f"], b, up=2, down=2,
         padding=[5, 4, 3, 6], clamp=1.2), ("x", "b")),
    Case("filtered_lrelu, wide", lambda x, b: filtered_lrelu(x, BLUR["f"], setup_filter(range(1, 9)), b, up=4, down=2,
         padding=[3, 1, -2, 4]), ("wide", "wide_b")),
]  # fmt: skip
CASES = {case.name: case for case in [*EPILOGUE, *NORM, *NORM_OF_SIZES, *RESAMPLE, *BIAS, *ADD, *LRELU]}


def inputs(case: Case, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    """Leaves [-2,2] whose values lie apart, so that none is near a kink."""
    tensors = []
    for index, name in enumerate(case.tensors):
        generator = torch.Generator().manual_seed(index)
        shape = SHAPES[name]
        values = torch.randperm(torch.Size(shape).numel(), generator=generator).double()
        values = (values + 0.37) / len(values) * 4 - 2
        tensor = values.reshape(shape).to(dtype)
        if tensor.ndim == 4 and tensor.shape[1] > 1:
            tensor = tensor.to(memory_format=layout)
        tensors.append(tensor.requires_grad_())
    return tensors


def value_and_gradients(case: Case, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """The result; gradients of the probe; gradients of the sum of their squares."""
    leaves = inputs(case, dtype, layout)
    y = case.function(*leaves)
    first = torch.autograd.grad(probe(y * y), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)
    return [t.detach() for t in (y, *first, *second)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", [case.name for case in [*EPILOGUE, *NORM]])
def test_gradients(name: str) -> None:
    case = CASES[name]
    for layout in LAYOUTS:
        leaves = inputs(case, torch.float64, layout)
        assert gradcheck(case.function, leaves, fast_mode=True)
        assert gradgradcheck(lambda *t: case.function(*t).square(), leaves, fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_implementations_agree(name: str, layout: torch.memory_format) -> None:
    """With the reference in float64 and NCHW: native kernels, if there are any, and the reference in float32."""
    case = CASES[name]
    with reference_kernels():
        expected = value_and_gradients(case, torch.float64, torch.contiguous_format)
        single = value_and_gradients(case, torch.float32, layout)
    others = [
        (value_and_gradients(case, torch.float64, layout), 1e-11),
        (value_and_gradients(case, torch.float32, layout), 1e-5),
        (single, 1e-5),
    ]
    for actual, tolerance in others:
        assert actual[0].is_contiguous(memory_format=layout)
        for a, e in zip(actual, expected, strict=True):
            assert_near(a.double(), e, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [EPILOGUE[0].name, NORM[3].name, RESAMPLE[0].name])
def test_half_precision(name: str, dtype: torch.dtype, kernels: str) -> None:
    case = CASES[name]
    y = case.function(*[t.detach() for t in inputs(case, dtype)])
    exact = case.function(*[t.detach().double() for t in inputs(case, dtype)])
    assert y.dtype == dtype
    assert_near(y, exact.to(dtype), 2e-2 if dtype == torch.bfloat16 else 5e-3)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("name", "layout"), [(EPILOGUE[0].name, LAYOUTS[1]), (NORM[3].name, LAYOUTS[0])])
def test_operators(name: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.library asks of the op and of its gradient, as they are called here."""
    case, calls = CASES[name], []
    for operator in OPERATORS.keys() - {"bias_act", "bias_act_grad", "upfirdn2d", "filtered_lrelu_tangent"}:
        overload = getattr(torch.ops.stylegan_di, operator)

        def record(*args: Any, overload: Any = overload) -> Any:
            calls.append((overload.default, args))
            return overload(*args)

        monkeypatch.setattr(torch.ops.stylegan_di, operator, record)
    y = case.function(*inputs(case, torch.float32, layout))
    y.square().sum().backward()
    monkeypatch.undo()
    checked: dict[Any, Any] = {}
    for overload, args in calls:
        checked[overload] = [
            a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args
        ]
    assert len(checked) == 2
    for overload, args in checked.items():
        torch.library.opcheck(overload, tuple(args))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", [EPILOGUE[0].name, NORM[1].name, NORM[3].name])
def test_compiles_whole(name: str) -> None:
    case = CASES[name]
    leaves = inputs(case, torch.float32)
    y = torch.compile(case.function, fullgraph=True, backend="aot_eager")(*leaves)
    expected = case.function(*leaves)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(probe(y), leaves), torch.autograd.grad(probe(expected), leaves))


def test_threads_change_nothing() -> None:
    """The sums of a gradient are taken in one order."""
    case, before = CASES["norm, wide"], torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(value_and_gradients(case, torch.float32, torch.channels_last))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_mean_far_from_zero_keeps_its_precision() -> None:
    x = torch.randn([2, 8, 16, 16], generator=torch.Generator().manual_seed(0))
    for layout in LAYOUTS:
        far = (x + 100).to(memory_format=layout)
        expected = group_norm_silu(far.double(), torch.ones(8).double(), torch.zeros(8).double(), 2, 1e-5)
        assert_near(group_norm_silu(far, torch.ones(8), torch.zeros(8), 2, 1e-5).double(), expected, 1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"act": "tanh"}, "accepted: linear, relu, lrelu"), ({"f": torch.ones(3)}, "accepted: .fh")],
)
def test_epilogue_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        modconv_epilogue(torch.zeros(1, 1, 4, 4), **arguments)
