"""Images clipped as they are shown (--clip)."""

from __future__ import annotations

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.spaces.resized import Resized
from stylegan_di.spaces.shown import Shown
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.instruction import Instruction
from tests.test_methods import make_batch
from tests.tiny import edm_network


def test_values_beyond_the_ends_look_like_the_ends_and_get_a_share_of_what_leads_back() -> None:
    x = torch.tensor([-3.0, -1.0, -0.5, 0.9, 1.2]).reshape(1, 1, 1, 5).requires_grad_()
    seen = Shown(Pixels(5, 1), 0.1).encode(x)
    assert seen.flatten().tolist() == torch.tensor([-1, -1, -0.5, 0.9, 1]).tolist()
    for sign, expected in ((1.0, [0, 1, 1, 1, 0.1]), (-1.0, [-0.1, -1, -1, -1, 0])):  # descent goes the other way
        (gradient,) = torch.autograd.grad(sign * seen.sum(), x, retain_graph=True)
        torch.testing.assert_close(gradient.flatten(), torch.tensor(expected), atol=0, rtol=0)


def test_without_a_share_nothing_leads_back() -> None:
    x = torch.tensor([-3.0, -0.5, 1.2]).reshape(1, 1, 1, 3).requires_grad_()
    for sign in (1.0, -1.0):
        (gradient,) = torch.autograd.grad(sign * Shown(Pixels(3, 1)).encode(x).sum(), x)
        assert gradient.flatten().tolist() == [0, sign, 0]


def test_it_clips_before_another_space_resizes() -> None:
    images = torch.full([1, 1, 8, 8], -1.0)
    images[..., ::2] = -5.0
    torch.testing.assert_close(Shown(Resized(4, 3)).encode(images), torch.full([1, 3, 4, 4], -1.0))


def test_a_pixel_that_is_clipped_is_led_back_gently_and_never_further_out() -> None:
    torch.manual_seed(0)
    teacher = EDMTeacher(edm_network(seed=1))
    for parameter in teacher.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch, labels = make_batch(), torch.eye(3)[[0, 1, 2, 0]]
    x = torch.randn(4, 1, 8, 8).requires_grad_()
    for clip in (False, True):
        made = Instruction.configured(TrainConfig("di", gan_pkl="a", teacher="b", clip=clip), teacher, 3)
        for parameter in made.fake_score.parameters():
            parameter.data += 0.1
        gradient, _ = made.gradient(x, labels, batch, batch.chunks[0], "some", None)
        out = x.abs() > 1
        further = gradient[out].sign() != x[out].sign()
        assert bool((gradient[out][further] != 0).any()) != clip
        assert bool((gradient[out][~further] != 0).any())
        assert bool((gradient[x.abs() < 1] != 0).all())
