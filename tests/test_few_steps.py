"""A student of several denoising steps (--student-steps): its levels, samples, training and file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.journal.journal import Journal
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import load_generator
from stylegan_di.students.one_step import SIGMA_END, OneStepStudent
from tests.test_conformance import _edm
from tests.test_methods import Watch, make, make_batch
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import edm_network, save_files

pytestmark = pytest.mark.usefixtures("small_grids")


def rng(indices: range) -> SampleRandom:
    return SampleRandom(0, "steps", 0, indices, torch.device("cpu"))


def step(student: OneStepStudent, x: Tensor, z: Tensor, index: int, labels: Tensor) -> Tensor:
    level = student.levels[index]
    return student.network(x + level * z[:, index], torch.full([len(x)], level), labels)


def test_levels_fall_geometrically() -> None:
    for steps in (1, 2, 4):
        levels = [*OneStepStudent(_edm(), 2.5, steps).levels, SIGMA_END]
        assert levels[0] == 2.5
        ratios = [b / a for a, b in itertools.pairwise(levels)]
        assert ratios == pytest.approx([(SIGMA_END / 2.5) ** (1 / steps)] * steps)


def test_each_step_adds_noise_to_what_the_last_one_made() -> None:
    student, labels = OneStepStudent(_edm(), 2.5, 3), torch.eye(3)
    z = student.sample_latents(3, rng=rng(range(3)))
    assert z.shape == (3, 3, 1, 8, 8)
    x = torch.zeros(3, 1, 8, 8)
    for index in range(3):
        x = step(student, x, z, index, labels)
    torch.testing.assert_close(student(z, labels), x, rtol=0, atol=0)
    torch.testing.assert_close(student(z, labels, rng=rng(range(3))), x, rtol=0, atol=0)  # it is not being trained


def test_in_training_a_sample_ends_at_a_drawn_step_whose_gradient_alone_flows() -> None:
    student, labels = OneStepStudent(_edm(), 2.5, 2), torch.eye(3)[torch.arange(8) % 3]
    z = student.sample_latents(8, rng=rng(range(8)))
    last = rng(range(8)).integers(2)
    assert 0 < int(last.sum()) < 8
    student.requires_grad_(True).learns = True
    images = student(z, labels, rng=rng(range(8)))
    with torch.no_grad():
        first = step(student, torch.zeros(8, 1, 8, 8), z, 0, labels)
    both = [step(student, torch.zeros(8, 1, 8, 8), z, 0, labels), step(student, first, z, 1, labels)]
    expected = torch.where(last[:, None, None, None] == 0, *both)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)
    parameters = list(student.parameters())
    target = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    for own, other in zip(
        torch.autograd.grad((images * target).sum(), parameters),
        torch.autograd.grad((expected * target).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    halves = torch.cat([student(z[i], labels[i], rng=rng(range(i.start, i.stop))) for i in (slice(0, 4), slice(4, 8))])
    torch.testing.assert_close(halves, images, rtol=1e-5, atol=1e-6)


def test_the_fake_score_learns_from_all_steps_in_one_chunk_in_several_and_in_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the same samples each time, the last of which the student then learns from."""
    given: list[dict[str, Any]] = [{}, {}, {"fake_warmup": 1.0}]
    methods = [make(student=OneStepStudent(edm_network(), 2.5, 2), fake_steps=2, **each) for each in given]
    whole, parts, warm = (Watch(method, monkeypatch) for method in methods)
    for method, batch_gpu in zip(methods, (4, 2, 4), strict=True):
        method.step(make_batch(batch_gpu=batch_gpu), Journal())
    for other in (parts, warm):
        torch.testing.assert_close(torch.cat(other.fake), torch.cat(whole.fake), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(parts.student), whole.student[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(whole.fake[1], whole.student[0])
    assert warm.student == []
    assert not methods[0].ema.learns


def test_a_run_goes_on_exactly_and_its_file_knows_its_steps(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    arguments = [
        "--kind=di",
        f"--teacher={files['teacher']}",
        "--student-steps=2",
        "--metrics=none",
        "--tick=0.016",
        *SHORT,
    ]
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}").exit_code == 0
    assert_same_run(undisturbed, folder)
    found = load_generator(folder / "network-snapshot-000000.pkl")
    assert isinstance(found, OneStepStudent)
    assert len(found.levels) == 2
    torch.testing.assert_close(found.draw([4, 7], class_index=1)[1:], found.draw([7], class_index=1))
    refused = invoke("--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", "--student-steps=2")
    assert "--student-steps=2 has no effect with --gan-pkl" in refused.output
