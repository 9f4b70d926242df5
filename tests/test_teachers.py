"""An EDM network in the role of a Denoiser."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.snapshots.checkpoint import load_denoiser, save_snapshot
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.teachers.edm import EDMTeacher
from tests.golden_edm import NETWORKS, assert_near, load_network


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


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_the_encoders_from_fine_to_coarse(name: str) -> None:
    network, arrays, _ = load_network(name)
    teacher, labels = EDMTeacher(network), arrays.get("labels")
    x, sigma = arrays["x"].double().requires_grad_(True), arrays["sigma_vec"]
    features = teacher.features(x, sigma, labels)
    for found, expected in zip(features, network.features(x, sigma, labels), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    sizes = [feature.shape[2] for feature in features]
    assert sizes == [teacher.img_resolution >> level for level in range(len(sizes))]
    assert all(len(feature) == len(x) for feature in features)
    (gradient,) = torch.autograd.grad(features[-1].sum(), x)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        louder = teacher.features(x, 10 * sigma, labels)
    assert not torch.allclose(louder[0], features[0])


def test_features_heed_labels() -> None:
    network, arrays, _ = load_network("edm_adm_cond10_aug9")
    teacher, x, sigma = EDMTeacher(network), arrays["x"].double(), arrays["sigma_vec"]
    with torch.no_grad():
        labelled, null = teacher.features(x, sigma, arrays["labels"]), teacher.features(x, sigma)
        zeros = teacher.features(x, sigma, torch.zeros(len(x), 10))
    assert not torch.allclose(labelled[-1], null[-1])
    torch.testing.assert_close(null[-1], zeros[-1])


def test_a_trainable_copy_learns_by_itself() -> None:
    network, arrays, _ = load_network("edm_ddpmpp_uncond", torch.float32)
    teacher = EDMTeacher(network).requires_grad_(False)
    copied = teacher.trainable_copy()
    assert isinstance(copied, EDMTeacher)
    assert (copied.img_resolution, copied.sigma_min, copied.sigma_max) == (16, 0, float("inf"))
    x, sigma = arrays["x"].float(), arrays["sigma_vec"].float()
    torch.testing.assert_close(copied(x, sigma), teacher(x, sigma), rtol=0, atol=0)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    copied.requires_grad_(True)
    copied(x, sigma).square().mean().backward()
    torch.optim.SGD(copied.parameters(), lr=1.0).step()
    assert not torch.allclose(copied(x, sigma), teacher(x, sigma))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    for key, value in teacher.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_entries_are_what_a_snapshot_is_made_of(suffix: str, tmp_path: Path) -> None:
    network, arrays, _ = load_network("edm_adm_cond10_aug9", torch.float32)
    teacher = EDMTeacher(network)
    assert teacher.entries() == {"ema": network}
    save_snapshot(tmp_path / f"t.{suffix}", teacher.entries(), extras={}, metadata={})
    loaded = load_denoiser(tmp_path / f"t.{suffix}")
    inputs = arrays["x"].float(), arrays["sigma_vec"].float(), arrays["labels"].float()
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs), teacher(*inputs), rtol=0, atol=0)


class OtherTeacher(Denoiser):
    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x


def test_only_a_network_of_edms_form_is_distilled_to_one_step() -> None:
    network, _, _ = load_network("edm_ddpmpp_uncond", torch.float32)
    student = OneStepStudent.of_teacher(EDMTeacher(network), 2.5)
    assert student.network is not network
    assert student.entries() == {"ema": student.network}
    assert student.extras({"path": "x"}) == {"dataset_kwargs": {"path": "x"}, "sigma_init": 2.5}
    z = torch.ones(1, 3, 16, 16)
    torch.testing.assert_close(student(z), network(2.5 * z, torch.tensor([2.5])))
    with pytest.raises(UserError, match="a OtherTeacher cannot be distilled to one step; give --gan-pkl"):
        OneStepStudent.of_teacher(OtherTeacher(), 2.5)
