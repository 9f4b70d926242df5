"""Winograd's convolutions of frozen filters against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks import edm_layers
from stylegan_di.networks.edm_layers import Conv2d, prepare_convolutions
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.ops import winograd
from tests.golden_edm import assert_near
from tests.test_methods import make
from tests.tiny import edm_network


def layer(**kwargs: object) -> Conv2d:
    torch.manual_seed(0)
    made: dict[str, object] = dict(in_channels=192, out_channels=200, kernel=3)
    return Conv2d(**(made | kwargs)).eval().requires_grad_(False)  # type: ignore[arg-type]


def image(size: tuple[int, int] = (16, 20), batch: int = 2, channels: int = 192) -> torch.Tensor:
    x = torch.randn([batch, channels, *size], generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kwargs", [{}, {"up": True}, {"down": True}, {"kernel": 1}, {"kernel": 1, "up": True}])
@pytest.mark.parametrize("size", [(16, 20), (32, 32)])
def test_it_is_the_convolution(
    kwargs: dict[str, object], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = layer(**kwargs, init_bias=1.0), image(size)
    with torch.no_grad():
        expected = conv.double()(x.double(), 0.7)
        conv.float()
        assert prepare_convolutions(conv) == 1
        used = winograd.prepared(conv.weight, x if not kwargs.get("down") else x[:, :, ::2, ::2])
        assert (used is not None) == (kwargs != {"down": True} or size == (32, 32))
        if used is not None:
            monkeypatch.setattr(edm_layers, "convolve", lambda *args, **kwargs: pytest.fail("PyTorch's"))
        y = conv(x, 0.7)
    assert float((y - expected).norm()) <= 1e-5 * float(expected.norm())
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_who_is_not_prepared_is_computed_as_ever() -> None:
    conv, x = layer(), image()
    assert prepare_convolutions(conv) == 1
    assert winograd.prepared(conv.weight, x) is None  # gradients are wanted
    with torch.no_grad():
        assert winograd.prepared(conv.weight, x) is not None
        assert winograd.prepared(conv.weight, x.double()) is None
        assert winograd.prepared(conv.weight, image((18, 16))) is None
        assert winograd.prepared(layer().weight, x) is None  # another filter
        with torch.autocast("cpu", torch.bfloat16):
            assert winograd.prepared(conv.weight, x) is None
        conv.weight.mul_(2)
        assert winograd.prepared(conv.weight, x) is None  # it has changed
    assert prepare_convolutions(layer(in_channels=64)) == 0
    assert prepare_convolutions(layer(down=True, fused_resample=True)) == 0


def test_a_filter_is_forgotten_with_its_layer() -> None:
    before = len(winograd._PREPARED)
    conv = layer()
    prepare_convolutions(conv)
    assert len(winograd._PREPARED) == before + 1
    del conv
    assert len(winograd._PREPARED) == before


def test_a_teacher_is_prepared_and_says_the_same() -> None:
    teacher = EDMTeacher(edm_network(seed=3))
    assert prepare_convolutions(teacher) == sum(
        isinstance(m, Conv2d) and m.weight is not None and m.weight.shape[2] == 1 for m in teacher.modules()
    )
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        y = teacher(x, sigma)
    assert_near(y, teacher(x, sigma).detach(), 1e-5)


def test_the_option_prepares_the_teacher_alone() -> None:
    method = make(winograd=True, device="cpu")
    assert ("winograd", f"{method.prepared} convolutions of the teacher") in method.header()
    (to,) = method.instructions
    with torch.no_grad():
        found = {
            name: sum(winograd.prepared(p, torch.zeros(1, 1, 8, 8)) is not None for p in network.parameters())
            for name, network in (("teacher", to.teacher), ("fake", to.fake_score), ("student", method.model))
        }
    assert found == {"teacher": method.prepared, "fake": 0, "student": 0}
    assert make().prepared == 0
    with pytest.raises(UserError, match="--winograd is for a teacher in float32 on a CPU"):
        make(winograd=True, device="cuda")
    with pytest.raises(UserError, match="leave it or --amp, --compile, --fsdp out"):
        make(winograd=True, device="cpu", compile=True)
