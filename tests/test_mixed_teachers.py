"""Several teachers: one mixed denoiser for those of one space, a sum of instructions for others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.snapshots.teachers import open_teachers
from stylegan_di.teachers.mixed import MixedDenoiser, TeacherTerm, join_teachers, parse_teachers
from stylegan_di.torch_utils.hashing import weights_hash
from tests.gaussians import Gaussian, GaussianDenoiser
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, last_state, whole_run
from tests.tiny import save_files, save_teacher

pytestmark = pytest.mark.usefixtures("small_grids")


class Normal(GaussianDenoiser):
    """A GaussianDenoiser with the attributes of a network."""

    def __init__(self, mean: float, std: float, low: float = 0.002, high: float = 80.0) -> None:
        super().__init__(mean, std)
        self.img_resolution, self.img_channels, self.label_dim = 4, 1, 0
        self.sigma_min, self.sigma_max = low, high
        self.asked: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.asked.append(len(x))
        return super().forward(x, sigma, labels)


def mixed(text: str, *denoisers: Denoiser) -> MixedDenoiser:
    return MixedDenoiser(denoisers, parse_teachers(text))


def noisy(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn([n, 1, 4, 4], generator=generator, dtype=torch.float64), torch.logspace(
        -2, 1, n, dtype=torch.float64
    )


# What is written.


def test_terms_have_weights_and_noise_levels() -> None:
    assert parse_teachers("a.pkl") == (TeacherTerm("a.pkl"),)
    assert parse_teachers("https://host/a+b.pkl?x=1") == (TeacherTerm("https://host/a+b.pkl?x=1"),)
    assert parse_teachers("0.7*a.pkl+.3*b.pkl") == (TeacherTerm("a.pkl", 0.7), TeacherTerm("b.pkl", 0.3))
    assert parse_teachers("a.pkl@0-1+1*b.pkl@1-") == (
        TeacherTerm("a.pkl", 1, 0, 1),
        TeacherTerm("b.pkl", 1, 1, math.inf),
    )
    assert join_teachers(()) is None
    assert join_teachers(("a+b.pkl",)) == "a+b.pkl"
    assert join_teachers(("a.pkl@0-1", "b.pkl@1-", "2*c.pkl")) == "a.pkl@0-1+1*b.pkl@1-+2*c.pkl"


@pytest.mark.parametrize("text", ["0*a.pkl", "a.pkl@1-1", "0.5*a.pkl+0.5*b.pkl@2-1"])
def test_terms_that_take_no_part_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"has no part in it; accepted are weights above 0, and noise levels that rise"):
        parse_teachers(text)


# What it computes.


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (2.0, 6.0)])
def test_the_score_is_that_of_the_product_of_powers(weights: tuple[float, float]) -> None:
    """At every noise level prod N(m_i, v_i)^(w_i / sum w) is a Gaussian of precision sum w_i / v_i / sum w."""
    own = [Gaussian(0.4, 0.3), Gaussian(-0.2, 0.8)]
    x, sigma = noisy()
    level = sigma[:, None, None, None]
    text = "+".join(f"{weight}*{name}" for weight, name in zip(weights, "ab", strict=True))
    denoised = mixed(text, *(Normal(each.mean, each.std) for each in own)).double()(x, sigma)
    shares = [weight / sum(weights) for weight in weights]
    precision = sum(share / each.variance(level) for share, each in zip(shares, own, strict=True))
    mean = sum(share * each.mean / each.variance(level) for share, each in zip(shares, own, strict=True)) / precision
    torch.testing.assert_close((denoised - x) / level**2, -(x - mean) * precision, rtol=1e-6, atol=1e-6)


def test_one_for_coarse_and_one_for_fine_and_both_between() -> None:
    fine, coarse = Normal(0.4, 0.3), Normal(-0.2, 0.8)
    x, sigma = noisy(7)
    denoised = mixed("a@0-1+3*b@0.3-", fine, coarse)(x, sigma)
    expected = torch.stack([
        (fine(x, sigma) if s < 0.3 else coarse(x, sigma) if s > 1 else (fine(x, sigma) + 3 * coarse(x, sigma)) / 4)[i]
        for i, s in enumerate(sigma.tolist())
    ])  # fmt: skip
    torch.testing.assert_close(denoised, expected)
    assert (fine.asked[0], coarse.asked[0]) == (int((sigma <= 1).sum()), int((sigma >= 0.3).sum()))


def test_its_noise_levels_are_those_of_the_teachers_without_gaps() -> None:
    both = mixed("a@0-1+1*b@1-", Normal(0, 1, low=0.01), Normal(0, 1, high=50.0))
    assert (both.sigma_min, both.sigma_max) == (0.01, 50.0)
    with pytest.raises(UserError, match=r"none of a\+b takes part at noise levels from 1 to 2"):
        mixed("a@0-1+1*b@2-", Normal(0, 1), Normal(0, 1))


def test_the_fake_score_starts_as_the_weightiest_and_the_hash_knows_the_weights(tmp_path: Path) -> None:
    paths = [save_teacher(tmp_path / f"{seed}.pkl", seed=seed) for seed in (1, 2)]
    ((weight, found),) = open_teachers(f"0.4*{paths[0]}+0.6*{paths[1]}")
    ((_, other),) = open_teachers(f"0.3*{paths[0]}+0.7*{paths[1]}")
    assert weight == 1
    assert weights_hash(found) != weights_hash(other)
    ((_, second),) = open_teachers(str(paths[1]))
    assert weights_hash(found.trainable_copy()) == weights_hash(second)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    for a, b in zip(found.features(x, sigma), second.features(x, sigma), strict=True):
        assert torch.equal(a, b)


# Runs.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    own = save_files(folder)
    own["second"] = str(save_teacher(folder / "second.pkl", seed=5))
    own["uncond"] = str(save_teacher(folder / "uncond.pkl", label_dim=0))
    return own


def test_teachers_of_one_space_are_mixed_and_go_on_exactly(files: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}@0-1",
                 f"--teacher=0.5*{files['second']}@0.5-", "--metrics=none", "--tick=0.016", *SHORT]  # fmt: skip
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}").exit_code == 0
    assert_same_run(undisturbed, folder)


def test_teachers_of_other_spaces_have_a_fake_score_each(files: dict[str, str], tmp_path: Path) -> None:
    folder = whole_run(
        tmp_path / "runs",
        "--kind=di",
        f"--gan-pkl={files['gan']}",
        f"--teacher=0.75*{files['teacher']}",
        f"--teacher=0.25*{files['uncond']}",
        "--classes=null",
        "--metrics=none",
        "--tick=0.016",
        *SHORT,
    )
    header = (folder / "log.txt").read_text()
    assert header.count("parameters, weight 0.75") == 1
    assert header.count("parameters, weight 0.25") == 1
    roles = {name.split(".")[0] for name in last_state(folder).tensors}
    assert {"fake_score", "fake_score2"} <= roles
