"""Whether a teacher can help a GAN: what is seen of classes, colours and values, and what the tool says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from stylegan_di.commands import preflight
from stylegan_di.explore.headroom import WORSE, Figures, Headroom, look
from stylegan_di.interfaces import Generator
from stylegan_di.labels import ClassMap
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.training.methods import DiffInstruct
from stylegan_di.training.trainer import Trainer
from tests.gaussians import GaussianDenoiser
from tests.test_resume import SHORT, invoke, killed_run, whole_run
from tests.tiny import save_files, save_teacher

pytestmark = pytest.mark.usefixtures("small_grids")

ROLLED = torch.eye(10).roll(1, dims=0)


class Colours(Generator):
    """Images of one colour [3] in [-1,1], the same for all latents."""

    def __init__(self, colour: Sequence[float]) -> None:
        super().__init__()
        self.colour = torch.nn.Parameter(torch.tensor(colour)[:, None, None])
        self.img_resolution, self.img_channels, self.label_dim = 4, 3, 0

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        return rng.normal(1)[:n]

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        return self.colour.expand(len(z), -1, 4, 4)


def colour_teacher(colour: Sequence[float]) -> GaussianDenoiser:
    """The denoiser of images around a colour."""
    teacher = GaussianDenoiser(torch.tensor(colour)[:, None, None], 0.1)
    teacher.factor = torch.nn.Parameter(torch.ones(1))
    teacher.img_resolution, teacher.img_channels, teacher.label_dim = 4, 3, 0
    teacher.sigma_min, teacher.sigma_max = 0.002, 80.0
    return teacher


def test_the_shipped_networks_fit_and_another_order_of_classes_does_not() -> None:
    gan, teacher = load_generator("fashion-gan.pkl"), load_denoiser("fashion-teacher.pkl")
    found = look(gan, teacher, Pixels(16, 1), ClassMap())
    assert found.agreeing >= 8
    assert found.problem() is None
    assert found.gan == pytest.approx(found.teacher, abs=0.1)
    assert f"{found.agreeing} of 10 classes fit the teacher's" in found.sentence()
    rolled = look(gan, teacher, Pixels(16, 1), ClassMap("table", ROLLED))
    assert rolled.agreeing <= 2
    assert "in another order (told 9, fits 0, told 0, fits 1," in str(rolled.problem())
    assert look(gan, teacher, Pixels(16, 1), ClassMap("null")).taken_for == ()


def test_red_and_blue_exchanged() -> None:
    teacher = colour_teacher([0.6, 0.0, -0.4])
    assert look(Colours([0.6, 0.0, -0.4]), teacher, Pixels(4, 3), ClassMap()).problem() is None
    exchanged = look(Colours([-0.4, 0.0, 0.6]), teacher, Pixels(4, 3), ClassMap())
    assert exchanged.swapped
    assert "red and blue" in str(exchanged.problem())


def test_another_range_of_values() -> None:
    found = look(Colours([0.8, 0.8, 0.8]), colour_teacher([-0.2, -0.2, -0.2]), Pixels(4, 3), ClassMap())
    assert found.gan[0] == pytest.approx(0.8, abs=0.01)
    assert found.teacher[0] == pytest.approx(-0.2, abs=0.05)
    assert "the GAN's pixels are 0.80 in the mean" in str(found.problem())


@pytest.mark.parametrize(
    ("taken_for", "hopeless"),
    [
        (((0, 1), (1, 2), (2, 0)), False),
        (((0, 0), (1, 2), (2, 1), (3, 1)), True),
        (((0, 0), (1, 1), (2, 1), (3, 0)), False),
        ((), False),
    ],
)
def test_classes_are_judged_where_there_are_enough(taken_for: tuple[tuple[int, int], ...], hopeless: bool) -> None:
    found = Headroom(taken_for, False, (0.0, 1.0), (0.0, 1.0))
    assert (found.problem() is not None) == hopeless


@pytest.mark.parametrize("options", [[], ["--divergence=none", "--critic=features", "--data=teacher:8"]])
def test_a_hopeless_run_is_refused_unless_forced(options: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rolled.json"
    path.write_text(json.dumps([9, 0, 1, 2, 3, 4, 5, 6, 7, 8]))
    arguments = ["--kind=di", "--gan-pkl=fashion-gan.pkl", f"--classes={path}", "--metrics=none", *SHORT, *options]
    result = invoke(*arguments, f"--outdir={tmp_path / 'runs'}")
    assert result.exit_code == 2
    assert "in another order" in result.output
    assert "start all the same with --force" in result.output
    assert not (tmp_path / "runs").exists()
    folder = whole_run(tmp_path / "forced", *arguments, "--force=true")
    assert "classes fit the teacher's; pixels" in (folder / "log.txt").read_text()


# The tool.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def said(*arguments: str) -> Any:
    return CliRunner().invoke(preflight.main, ["--device=cpu", "--batch=4", "--steps=1", *arguments])


def test_the_tool_measures_both_and_the_cost(files: dict[str, str]) -> None:
    own = [f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", f"--ref={files['ref']}"]
    own += ["--metrics=fd_fashion", "--headroom=32"]
    result = said(*own, "--force=true")
    assert result.exit_code == 0, result.output
    assert re.search(r"time +[\d.]+ s/kimg: .* for [\d.]+ kimg, [\d.]+ GiB of memory, from 1 step\n", result.output)
    found = re.search(r"fd_fashion ([\d.]+) of the GAN, ([\d.]+) of the teacher drawn in 8 eval", result.output)
    assert found is not None
    gan, teacher = map(float, found.groups())
    assert min(gan, teacher) > 0
    refused = said(*own)
    assert refused.exit_code == (2 if teacher >= gan else 0)
    assert ("the teacher is no better than the GAN" in refused.output) == (teacher >= gan)


def test_a_run_says_whether_the_teacher_is_better_and_what_it_takes(tmp_path: Path) -> None:
    arguments = ["--kind=di", "--metrics=fd_fashion", "--metric-samples=16", "--headroom=200", "--device=cpu",
                 "--batch=2", "--kimg=0.022", "--tick=0.022", "--snap=1"]  # fmt: skip
    log = (whole_run(tmp_path / "runs", *arguments, "--gan-pkl=fashion-gan.pkl") / "log.txt").read_text()
    found = re.search(r"headroom +fd_fashion ([\d.]+) of the GAN, ([\d.]+) of the teacher .* on 200 samples\n", log)
    assert found is not None
    assert float(found[2]) < 0.5 * float(found[1])
    assert "\nrecipe          fashion: refinement with --batch=2 --kimg=0.022; measured here without these: docs" in log
    assert len(re.findall(r"estimate +[\d.]+ s/kimg: \d+s for 0.022 kimg, [\d.]+ GiB of memory\n", log)) == 1


def test_a_teacher_that_is_far_worse_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher of random weights, and the shipped GAN; what is seen of their samples is not to refuse it before."""
    monkeypatch.setattr(Headroom, "problem", lambda self: None)
    teacher = save_teacher(tmp_path / "noise.pkl", label_dim=10)
    arguments = ["--kind=di", "--gan-pkl=fashion-gan.pkl", f"--teacher={teacher}", "--match=resize",
                 "--metrics=fd_fashion", "--headroom=100", *SHORT]  # fmt: skip
    result = invoke(*arguments, "--classes=null", f"--outdir={tmp_path / 'runs'}")
    assert result.exit_code == 2
    assert "on 100 samples; the teacher is no better than the GAN: choose another" in result.output
    assert "start all the same with --force" in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("gan", "teachers", "higher", "factor", "hopeless"),
    [
        (10.0, (5.0,), False, 1.0, False),
        (10.0, (12.0,), False, 1.0, True),
        (10.0, (12.0,), False, WORSE, False),
        (10.0, (25.0, 30.0), False, WORSE, True),
        (10.0, (25.0, 3.0), False, WORSE, False),
        (0.5, (0.3,), True, WORSE, False),
        (0.5, (0.2,), True, WORSE, True),
        (0.0, (0.0,), True, WORSE, False),
        (-0.02, (-0.03,), False, WORSE, False),
        (-0.02, (0.01,), False, WORSE, True),
    ],
)
def test_figures_are_judged_by_the_best_teacher(
    gan: float, teachers: tuple[float, ...], higher: bool, factor: float, hopeless: bool
) -> None:
    assert (Figures("fd", gan, teachers, higher, 100).problem(factor) is not None) == hopeless


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (["--metrics=none"], "--headroom=9 has no effect with --metrics=none"),
        (["--metrics=texture,ppl2_wend"], "--headroom=9 has no effect with --metrics=texture,ppl2_wend, by which"),
        (["--divergence=none", "--adv-weight=1", "--data=teacher:9"], "has no effect with --divergence=none and no"),
        (["--metrics=fd_fashion", "--teacher=online", "--data=x"], "--headroom=9 has no effect with --teacher=online"),
    ],
)
def test_where_it_has_no_effect_it_is_refused(option: list[str], why: str) -> None:
    result = invoke("--kind=di", "--gan-pkl=fashion-gan.pkl", "--headroom=9", *option)
    assert result.exit_code == 2
    assert why in result.output


def test_none_may_be_asked_for_where_there_is_none() -> None:
    result = invoke("--kind=di", "--gan-pkl=fashion-gan.pkl", "--metrics=none", "--headroom=0", "--dry-run")
    assert (result.exit_code, '"headroom": 0' in result.output) == (0, True)


def test_the_first_metric_that_judges_images_compares_them_and_one_that_wants_more_samples_says_so(
    files: dict[str, str], tmp_path: Path
) -> None:
    own = ["--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", f"--ref={files['ref']}", *SHORT,
           "--metric-samples=8", "--force=true", "--tick=0.032"]  # fmt: skip
    folder = whole_run(tmp_path / "runs", *own, "--metrics=texture,fd_fashion", "--headroom=8")
    assert re.search(r"headroom +fd_fashion [\d.]+ of the GAN", (folder / "log.txt").read_text())
    few = invoke(*own, "--metrics=pr_fashion", "--headroom=3", f"--outdir={tmp_path / 'few'}")
    assert (few.exit_code, "--headroom=3: precision and recall need more than 3" in few.output) == (2, True)
    one = invoke(*own, "--metrics=fd_fashion", "--headroom=1")
    assert (one.exit_code, "--headroom=1: nothing is measured on one sample" in one.output) == (2, True)


def test_the_estimate_is_of_steps_like_the_rest(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the warm-up's, and not of the time that snapshots take; a run that goes on has one of its own."""
    monkeypatch.setattr(Trainer, "snapshot", snapshot_of_minutes)
    arguments = ["--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", "--metrics=none",
                 "--device=cpu", "--batch=4", "--kimg=0.064", "--fake-warmup=0.008", "--tick=0.008", "--snap=1",
                 "--state=1"]  # fmt: skip
    folder = killed_run(tmp_path / "runs", 6, *arguments)
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'runs'}").exit_code == 0
    assert estimates(folder)[0][1] == pytest.approx(0.064 - 0.024)
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    ((seconds, kimg),) = estimates(undisturbed)
    assert kimg == pytest.approx(0.056)
    assert seconds < 5000  # the two snapshots in these steps would add 10000


def snapshot_of_minutes(self: Trainer) -> None:
    self.clock._start -= 100.0
    self.clock._all_maintenance += 100.0
    self.state.snapshot_due = False


def estimates(folder: Path) -> list[tuple[float, float]]:
    """Seconds a kimg, and of how many kimg, as a run's log has them."""
    found = re.findall(r"estimate +([\d.]+) s/kimg: \S+ for ([\d.]+) kimg", (folder / "log.txt").read_text())
    return [(float(seconds), float(kimg)) for seconds, kimg in found]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--gpus=2"], "--gpus=2: the preflight measures in one process; leave it out"),
        (["--amp=auto"], ": a pass of 4 images takes"),
        (["--divergence=none", "--critic=features", "--data=teacher:8"], "time "),
    ],
)
def test_the_tool_takes_what_a_run_takes_or_says_so(files: dict[str, str], option: list[str], told: str) -> None:
    both = f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}"
    result = said(*both, "--metrics=none", *option)
    assert told in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_the_tool_times_steps_in_which_the_student_moves(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    monkeypatch.setattr(DiffInstruct, "student_update", lambda *_: moved.append(True))
    result = said(f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", "--metrics=none", "--fake-warmup=0.005")
    assert result.exit_code == 0, result.output
    assert len(moved) == 2


def test_latents_are_called_so() -> None:
    far = ((), False, (0.0, 1.0), (9.0, 1.0))
    assert Headroom(*far).problem() is not None
    assert Headroom(*far, values="latents").problem() is None
    assert Headroom(*far, values="latents").sentence().startswith("latents 0.00")


def test_the_tool_wants_a_gan_and_a_teacher(files: dict[str, str]) -> None:
    result = said(f"--teacher={files['teacher']}", "--metrics=none")
    assert result.exit_code == 2
    assert "give --gan-pkl, the GAN to refine" in result.output
