"""Guidance of networks of classes (--guidance): exact on a mixture of Gaussians, whose scores are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.diffusion import per_sample
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.snapshots.pipelines import TeacherOptions
from stylegan_di.snapshots.teacher_files import open_teacher
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.teachers.guided import Guided
from stylegan_di.torch_utils.hashing import weights_hash
from tests.test_resume import SHORT, invoke, whole_run
from tests.tiny import edm_network, save_files, save_teacher

MEANS, STDS, SHARES = (-0.8, 0.1, 0.9), (0.3, 0.5, 0.2), (0.5, 0.3, 0.2)


def log_densities(x: Tensor, sigma: Tensor) -> Tensor:
    """ln N(x; mean, std^2 + sigma^2) of whole samples x [B,...] under each class, [B,classes]."""
    found = []
    for mean, std in zip(MEANS, STDS, strict=True):
        variance = per_sample(std**2 + sigma**2, x)
        density = -((x - mean) ** 2) / (2 * variance) - (2 * math.pi * variance).log() / 2
        found.append(density.flatten(1).sum(dim=1))
    return torch.stack(found, dim=1)


class Mixture(Denoiser):
    """The exact denoiser of a Gaussian a class; of their mixture for the null label."""

    img_resolution, img_channels, label_dim, sigma_min, sigma_max = 2, 1, 3, 0.002, 80.0

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        level = per_sample(sigma, x)
        means = torch.stack(
            [(x * std**2 + mean * level**2) / (std**2 + level**2) for mean, std in zip(MEANS, STDS, strict=True)], dim=1
        )
        posterior = (log_densities(x, sigma) + torch.tensor(SHARES, dtype=x.dtype).log()).softmax(dim=1)
        if labels is not None:
            posterior = torch.where(labels.any(dim=1, keepdim=True), labels.to(x.dtype), posterior)
        return (posterior[:, :, None, None, None] * means).sum(dim=1)


@pytest.mark.parametrize("guidance", [0.5, 1.0, 1.5, 4.0])
def test_the_score_is_that_of_null_and_class_to_their_powers(guidance: float) -> None:
    """D = x + sigma^2 grad ln (p_null^(1 - w) p_class^w), the gradient taken of the known densities."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn([12, 1, 2, 2], generator=generator, dtype=torch.float64, requires_grad=True)
    sigma = torch.logspace(-2, 1, 12, dtype=torch.float64)
    labels = torch.eye(3, dtype=torch.float64)[torch.arange(12) % 3]
    log_class = log_densities(x, sigma)
    log_null = (log_class + torch.tensor(SHARES, dtype=torch.float64).log()).logsumexp(dim=1)
    log_power = (1 - guidance) * log_null + guidance * (log_class * labels).sum(dim=1)
    (score,) = torch.autograd.grad(log_power.sum(), x)
    expected = x + per_sample(sigma, x) ** 2 * score
    found = Guided(Mixture(), guidance)(x, sigma, labels)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    null = Guided(Mixture(), guidance)(x, sigma, None)
    torch.testing.assert_close(null, Mixture()(x, sigma), rtol=0, atol=0)


def test_a_network_with_classes_is_guided_and_its_fake_score_is_not(tmp_path: Path) -> None:
    path = str(save_teacher(tmp_path / "teacher.pkl"))
    teacher = open_teacher(path, TeacherOptions(guidance=3.0))
    network = edm_network()
    x, sigma = torch.randn([2, 1, 8, 8], generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 4.0])
    labels = torch.eye(3)[:2]
    null, told = network(x, sigma, torch.zeros(2, 3)), network(x, sigma, labels)
    torch.testing.assert_close(teacher(x, sigma, labels), null + 3 * (told - null))
    torch.testing.assert_close(teacher(x, torch.tensor(0.5), labels)[:1], teacher(x, sigma, labels)[:1])
    assert torch.equal(teacher.trainable_copy()(x, sigma, labels), told)
    adapted = teacher.adapted_copy(2)
    torch.testing.assert_close(adapted(x, sigma, labels), told)
    other = open_teacher(path, TeacherOptions(guidance=2.0))
    assert weights_hash(other) != weights_hash(teacher)  # a run does not go on with another scale
    torch.testing.assert_close(teacher.features(x, sigma, labels), EDMTeacher(network).features(x, sigma, labels))


@pytest.mark.usefixtures("small_grids")
def test_a_gan_is_refined_by_a_guided_network(tmp_path: Path) -> None:
    """The guided teacher moves the student elsewhere than the plain one."""
    files = save_files(tmp_path)
    given = ["--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", *SHORT, "--tick=0.016",
             "--kimg=0.008", "--metrics=none"]  # fmt: skip
    weights = []
    for name, extra in {"plain": [], "guided": ["--guidance=3"]}.items():
        folder = whole_run(tmp_path / name, *given, *extra)
        weights.append((folder / "network-snapshot-000000.pkl").read_bytes())
    assert weights[0] != weights[1]
    result = invoke(*given, "--guidance=3", "--classes=null", f"--outdir={tmp_path / 'runs'}")
    assert result.exit_code == 2
    assert "--guidance=3 leads away from the null label, the only one that --classes=null tells" in " ".join(
        result.output.split()
    )


@pytest.mark.parametrize("given", [dict(guidance=3.0)])
def test_a_network_without_classes_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    path = str(save_teacher(tmp_path / "teacher.pkl", label_dim=0))
    with pytest.raises(UserError, match=r"--guidance=3: .* has no classes, so no null label to be guided away from"):
        open_teacher(path, TeacherOptions(**given))
