"""An EDM network in the role of a Denoiser."""

import torch

from stylegan_di.teachers.edm import EDMTeacher
from tests.golden_edm import assert_near, load_network


def test_edm_teacher_is_its_network() -> None:
    network, arrays, _ = load_network("edm_adm_cond10_aug9")
    teacher = EDMTeacher(network)
    assert teacher.network is network
    assert (teacher.img_resolution, teacher.img_channels, teacher.label_dim) == (8, 3, 10)
    assert (teacher.sigma_min, teacher.sigma_max) == (0, float("inf"))
    x, sigma = arrays["x"].double(), arrays["sigma_vec"]
    with torch.no_grad():
        assert_near(teacher(x, sigma, arrays["labels"]), arrays["out64/D_sigmavec"], 1e-10)
        assert_near(teacher(x, sigma), arrays["out64/D_nolabels"], 1e-10)
        torch.testing.assert_close(teacher(x, sigma[0])[0], teacher(x, sigma)[0])
    assert torch.equal(teacher.round_sigma(sigma), sigma)


def test_edm_teacher_answers_in_its_own_precision() -> None:
    network, arrays, _ = load_network("edm_ddpmpp_uncond", torch.float32)
    with torch.no_grad():
        denoised = EDMTeacher(network)(arrays["x"].double(), arrays["sigma_vec"])
    assert denoised.dtype == torch.float32
    assert_near(denoised, arrays["out64/D_sigmavec"], 2e-5)
