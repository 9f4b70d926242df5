"""What methods of training make of their options: steps of the fake score, sums, noise levels, what a critic sees."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.diffusion import KarrasLaw, add_noise
from stylegan_di.divergences import parse_divergence
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.adversary import ROLE
from stylegan_di.training.batch import Batch, generated
from stylegan_di.training.instruction import Instruction
from stylegan_di.training.methods import diff_instruct
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from tests.test_train import NO_METRICS, SHORT, run
from tests.tiny import edm_network, gan_networks, save_files

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def make_batch(nimg: int = 0, size: int = 4, batch_gpu: int = 4) -> Batch:
    return Batch.of_step(seed=1, nimg=nimg, size=size, batch_gpu=batch_gpu, rank=0, world_size=1, device=CPU)


def make(data: str = "made here", student: Generator | None = None, **given: Any) -> DiffInstruct:
    """A GAN, or another student, with the GAN's discriminator, a teacher and another network as its fake score."""
    made: dict[str, Any] = dict(teacher="made here", gan_pkl="made here", data=data, workers=0, aug="noaug", batch=4)
    config = TrainConfig("di", **(made | given))
    networks: Any = gan_networks()
    divergence = parse_divergence(config.divergence)
    assert divergence is not None
    instruction = Instruction(
        teacher=EDMTeacher(edm_network(seed=3)),
        space=Pixels(8, 1),
        fake_score=EDMTeacher(edm_network(seed=2)),
        divergence=divergence,
        student_law=config.student_law,
        fake_law=config.fake_law,
    )
    dataset = ImageDataset(data, use_labels=True) if config.needs_data else None
    student = student or StyleGAN2Student(networks["G"])
    return DiffInstruct(config, CPU, dataset, student, [instruction], networks["D"])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def di(files: dict[str, str], *extra: str) -> list[str]:
    return ["--kind=di", f"--teacher={files['teacher']}", *SHORT[:-1], *NO_METRICS, *extra]


def with_data(files: dict[str, str], *extra: str) -> list[str]:
    return di(files, f"--data={files['data']}", "--cond=true", "--workers=0", *extra)


# --fake-steps.


class Watch:
    """Notes the optimizers' steps by role, and the samples that the fake score and the student learn from."""

    def __init__(self, method: DiffInstruct, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.purposes: list[str] = []
        self.fake: list[Tensor] = []
        self.student: list[Tensor] = []
        (instruction,) = method.instructions
        for role, optimizer in method.state.optimizers.items():
            optimizer.register_step_post_hook(lambda *_, role=role: self.steps.append(role))
        score_loss, gradient = instruction.score_loss, instruction.gradient

        def watched_loss(samples: Any, *args: Any) -> Any:
            self.fake.append(samples[0])
            return score_loss(samples, *args)

        def watched_gradient(images: Tensor, *args: Any) -> Any:
            self.student.append(images.detach())
            return gradient(images, *args)

        def watched_generated(generator: Any, batch: Batch, chunk: range, purpose: str) -> Any:
            self.purposes.append(purpose)
            return generated(generator, batch, chunk, purpose)

        patch.setattr(instruction, "score_loss", watched_loss)
        patch.setattr(instruction, "gradient", watched_gradient)
        patch.setattr(diff_instruct, "generated", watched_generated)


@pytest.mark.parametrize("batch_gpu", [4, 2])
def test_one_noise_serves_both_updates(batch_gpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake score is asked once a chunk; the student's gradient is D_q - D_p there, before the fake score moves."""
    method = make(one_noise=True)
    (to,), batch = method.instructions, make_batch(batch_gpu=batch_gpu)
    before, asked, gradients = copy.deepcopy(to.fake_score), [], []
    gradient = to.gradient
    to.fake_score.register_forward_pre_hook(lambda _, args: asked.append(args))

    def noted(*args: Any) -> Any:
        gradients.append(gradient(*args))
        return gradients[-1]

    monkeypatch.setattr(to, "gradient", noted)
    method.step(batch, Journal())
    assert len(asked) == len(batch.chunks)
    for (noisy, sigma, labels), (found, levels) in zip(asked, gradients, strict=True):
        with torch.no_grad():
            expected = before(noisy, sigma, labels) - to.teacher(noisy, sigma, labels)
        assert torch.equal(levels, sigma)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("given", "teacher", "fake_score", "discriminator"),
    [
        ({}, 1, 2, 0),
        ({"divergence": "sid"}, 1, 2, 0),
        ({"divergence": "ikl+0.5*sid"}, 1, 2, 0),
        ({"one_noise": True}, 1, 1, 0),
        ({"fake_steps": 3}, 1, 4, 0),
        ({"fake_warmup": 1.0}, 0, 1, 0),
        ({"adv_weight": 0.1}, 1, 2, 4),  # by the student, and for its own loss on both kinds of images, and R1
        ({"divergence": "ikl:f=js"}, 1, 2, 4),  # no adversarial gradient, but the density ratio
        ({"divergence": "ikl:f=js", "adv_weight": 0.1}, 1, 2, 5),
    ],
)
def test_a_step_evaluates_no_network_in_vain(
    given: dict[str, Any], teacher: int, fake_score: int, discriminator: int, files: dict[str, str]
) -> None:
    method = make(data=files["data"], **given)
    asked = {"teacher": 0, "fake_score": 0, "D": 0}
    networks = {"teacher": method.instructions[0].teacher, "fake_score": method.instructions[0].fake_score}
    for role, network in (networks | {"D": method.state.networks[ROLE]}).items():
        network.register_forward_pre_hook(lambda *_, role=role: asked.update({role: asked[role] + 1}))
    method.step(make_batch(), Journal())
    assert asked == {"teacher": teacher, "fake_score": fake_score, "D": discriminator}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"divergence": "sid"}, "need no gradient of the fake score, such as ikl; this is --divergence=sid"),
        ({"fake_noise_law": "lognormal:P_mean=0"}, "and --fake-noise-law=lognormal:P_mean=0 differ"),
    ],
)
def test_where_one_noise_cannot_serve_both(options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(one_noise=True, **options)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_fake_steps_come_before_one_of_the_student_and_the_last_shares_its_samples(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(fake_steps=steps)
    watch = Watch(method, monkeypatch)
    method.step(make_batch(), Journal())
    assert watch.steps == ["fake_score"] * steps + ["model"]
    assert len(watch.purposes) == len(set(watch.purposes)) == steps  # the shared samples are made once
    assert torch.equal(watch.fake[-1], watch.student[0])
    for index, images in enumerate(watch.fake):
        assert not any(torch.equal(images, other) for other in watch.fake[:index])


def test_fake_steps_of_several_chunks_see_the_same_samples_as_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = make(fake_steps=2), make(fake_steps=2)
    seen = [Watch(method, monkeypatch) for method in (whole, parts)]
    whole.step(make_batch(), Journal())
    parts.step(make_batch(batch_gpu=2), Journal())
    assert seen[1].steps == seen[0].steps == ["fake_score", "fake_score", "model"]
    torch.testing.assert_close(torch.cat(seen[1].fake), torch.cat(seen[0].fake))
    torch.testing.assert_close(torch.cat(seen[1].student), torch.cat(seen[0].student))


def test_fake_steps_through_the_command_line(files: dict[str, str], tmp_path: Path) -> None:
    """Three losses a step at different samples; and only the fake score learns during the warm-up."""
    folder = run(tmp_path, *di(files, f"--gan-pkl={files['gan']}", "--fake-steps=3", "--fake-warmup=0.008"))
    first, second = lines(folder)
    assert [line["Loss/fake_score"]["num"] for line in (first, second)] == [24, 24]
    assert [line["Gradient/fake_score"]["num"] for line in (first, second)] == [6, 6]
    assert "Gradient/student" not in first
    assert second["Gradient/student"]["num"] == 2


# Sums of divergences.


def gradient_of(divergence: str, method: DiffInstruct) -> Tensor:
    """A divergence's gradient in the same images, at the same noise."""
    (instruction,) = method.instructions
    parsed = parse_divergence(divergence)
    assert parsed is not None
    instruction.divergence = parsed
    batch = make_batch()
    images, labels = generated(method.model, batch, batch.chunks[0], "student")
    critic = None if method.adversary is None else method.adversary.critic
    x = images.detach().requires_grad_()
    return instruction.gradient(x, labels, batch, batch.chunks[0], "divergence", critic)[0]


@pytest.mark.parametrize(
    "terms",
    [{"ikl": 1.0, "sid": 0.5}, {"ikl:weight=dmd": 0.25, "sim": 2.0, "fisher": 1.0}, {"sid:alpha=1.2": 3.0},
     {"ikl:f=js": 0.7, "sid": 1.0}],
)  # fmt: skip
def test_a_sum_has_the_weighted_sum_of_gradients(terms: dict[str, float], files: dict[str, str]) -> None:
    method = make(files["data"], adv_weight=1.0)
    whole = gradient_of("+".join(f"{weight:g}*{spec}" for spec, weight in terms.items()), method)
    parts = [weight * gradient_of(spec, method) for spec, weight in terms.items()]
    torch.testing.assert_close(whole, torch.stack(parts).sum(dim=0))
    assert all(float(part.abs().max()) > 0 for part in parts)
    if len(parts) > 1:
        assert not torch.allclose(whole, parts[0])


def test_a_weight_of_one_need_not_be_written(files: dict[str, str]) -> None:
    method = make()
    assert torch.equal(gradient_of("ikl+sid", method), gradient_of("1*ikl+1.0*sid", method))
    assert torch.equal(gradient_of("1*ikl", method), gradient_of("ikl", method))


@pytest.mark.parametrize(
    ("divergence", "name", "extra"),
    [
        ("ikl+0.5*sid", "gan-di-ikl+0.5-sid-batch4", []),
        ("ikl:f=js", "gan-di-ikl-fjs-cond-batch4", ["--gamma=0.1"]),
        ("realuid", "gan-di-realuid-cond-batch4", []),
        ("realuid+0.1*ikl:f=forward_kl", "gan-di-realuid+0.1-ikl-fforward_kl-cond-batch4", ["--critic-noise-law=vp"]),
    ],
)
def test_divergences_run(divergence: str, name: str, extra: list[str], files: dict[str, str], tmp_path: Path) -> None:
    arguments = with_data(files, *extra) if "cond" in name else di(files, *extra)
    folder = run(tmp_path, *arguments, f"--gan-pkl={files['gan']}", f"--divergence={divergence}", "--fake-lr=1e-3")
    assert folder.name == f"00000-{name}"
    last = lines(folder)[-1]
    assert last["Gradient/student"]["mean"] > 0
    assert last["Loss/fake_score"]["num"] == 8
    trains_critic = ":f=" in divergence
    assert ("Loss/D/loss" in last) == trains_critic
    assert "Gradient/adversarial_per_pixel" not in last
    assert last["Progress/skipped_updates"]["mean"] == 0


def test_realuid_distils_a_teacher_with_real_images(files: dict[str, str], tmp_path: Path) -> None:
    folder = run(tmp_path, *with_data(files, "--divergence=realuid"))
    assert (folder / "reals.png").is_file()
    alone = run(tmp_path, *di(files, "--divergence=realuid:alpha=1,beta=1"))
    assert lines(folder)[-1]["Loss/fake_score"] != lines(alone)[-1]["Loss/fake_score"]


def test_the_fake_score_of_realuid_learns_from_the_real_images_of_its_step(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the student's, each once a step, and the discriminator is given the same."""
    method = make(files["data"], divergence="realuid", adv_weight=1.0, fake_steps=2)
    (instruction,) = method.instructions
    assert method.adversary is not None
    seen: list[Any] = []
    original, logits = instruction.score_loss, method.adversary.logits

    def watched(samples: Any, batch: Batch, chunk: range, purpose: str, reals: Any) -> Any:
        seen.append(reals[0])
        return original(samples, batch, chunk, purpose, reals)

    def watched_logits(images: Tensor, labels: Any, batch: Batch, chunk: range, purpose: str) -> Tensor:
        if purpose == "augment/reals":
            seen.append(images)
        return logits(images, labels, batch, chunk, purpose)

    monkeypatch.setattr(instruction, "score_loss", watched)
    monkeypatch.setattr(method.adversary, "logits", watched_logits)
    for nimg in (0, 4):
        method.step(make_batch(nimg), Journal())
    assert len(seen) == 6
    assert all(torch.equal(seen[0], images) for images in seen[1:3])
    assert all(torch.equal(seen[3], images) for images in seen[4:])
    assert not torch.equal(seen[0], seen[3])
    assert seen[0].shape == (4, 1, 8, 8)


# Noise levels.


class Recorder(torch.nn.Module):
    """A discriminator that notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append(images.detach())
        return images.mean(dim=[1, 2, 3])[:, None]


def test_a_critics_noise_law_changes_what_the_discriminator_sees(files: dict[str, str]) -> None:
    images, batch = torch.linspace(-1, 1, 256).reshape(4, 1, 8, 8), make_batch()
    law = "karras:sigma_min=1,sigma_max=2"
    for text in ("none", law):
        method = make(files["data"], adv_weight=1.0, critic_noise_law=text)
        assert method.adversary is not None
        recorder = Recorder()
        method.adversary.critic.network = recorder
        method.adversary.logits(images, None, batch, batch.chunks[0], "augment/reals")
        (seen,) = recorder.seen
        if text == "none":
            assert torch.equal(seen, images)
        else:
            expected = KarrasLaw(sigma_min=1, sigma_max=2)
            noise, sigma = batch.noise(expected, "augment/reals/noise", batch.chunks[0], images)
            assert 1 <= float(sigma.min()) < float(sigma.max()) <= 2
            torch.testing.assert_close(seen, add_noise(images, noise, sigma))


def test_a_noisy_critic_is_asked_at_the_students_noise_level(files: dict[str, str]) -> None:
    """For the density ratio of an f-divergence: at the noise that teacher and fake score see."""
    law = "loguniform:sigma_min=0.5,sigma_max=1"
    method = make(files["data"], divergence="ikl:f=js", noise_law=law, critic_noise_law=law)
    recorder = Recorder()
    assert method.adversary is not None
    method.adversary.critic.network = recorder
    method.student_update(make_batch(), Journal())
    (seen,) = recorder.seen
    (instruction,) = method.instructions
    batch = make_batch()
    images, _ = generated(make().model.train(), batch, batch.chunks[0], "student")
    noise, sigma = batch.noise(
        instruction.student_law, "divergence", batch.chunks[0], images, within=instruction.teacher
    )
    torch.testing.assert_close(seen, add_noise(images, noise, sigma).detach())


def test_a_critics_noise_law_through_the_command_line(files: dict[str, str], tmp_path: Path) -> None:
    arguments = with_data(files, f"--gan-pkl={files['gan']}", "--adv-weight=1", "--gamma=0.1")
    clean, noisy = (
        run(tmp_path, *arguments, f"--critic-noise-law={law}") for law in ("none", "lognormal:P_mean=0.5")
    )
    losses = [lines(folder)[0]["Loss/D/loss"]["mean"] for folder in (clean, noisy)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("which", ["student", "fake_score"])
def test_noise_levels_are_those_that_the_teacher_knows(which: str) -> None:
    method = make(noise_law="loguniform:sigma_min=1e-6,sigma_max=1e6", fake_noise_law="karras:sigma_max=1e4")
    (instruction,) = method.instructions
    instruction.teacher.sigma_min, instruction.teacher.sigma_max = 0.1, 3.0
    batch = make_batch(size=64, batch_gpu=64)
    images, labels = generated(method.model, batch, batch.chunks[0], "student")
    if which == "student":
        _, sigma = instruction.gradient(images.requires_grad_(), labels, batch, batch.chunks[0], "divergence", None)
    else:
        sigma = instruction.score_loss((images, labels), batch, batch.chunks[0], "fake_score", None).sigma
    assert float(sigma.min()) == pytest.approx(0.1)
    assert float(sigma.max()) == pytest.approx(3.0)
    assert ((sigma > 0.1) & (sigma < 3)).any()


def test_the_laws_of_student_and_fake_score_are_their_own(files: dict[str, str], tmp_path: Path) -> None:
    high, low = "loguniform:sigma_min=2,sigma_max=3", "loguniform:sigma_min=0.05,sigma_max=0.1"
    last = lines(run(tmp_path, *di(files, f"--noise-law={high}", f"--fake-noise-law={low}")))[-1]
    assert {name for name in last if "sigma" in name} == {
        "Gradient/divergence_per_pixel/sigma>1", "Loss/fake_score/sigma<0.2"
    }  # fmt: skip


@pytest.mark.parametrize("precond", ["vp", "ve"])
def test_a_denoiser_learns_at_the_noise_levels_given(precond: str, files: dict[str, str], tmp_path: Path) -> None:
    small = ["--model-channels=8", "--channel-mult=1", "--num-blocks=1", "--attn-resolutions=4"]
    arguments = ["--kind=edm", f"--data={files['data']}", f"--precond={precond}", *SHORT, *NO_METRICS, *small]
    default, given = run(tmp_path, *arguments), run(tmp_path, *arguments, "--noise-law=karras:sigma_min=5")
    bins = [{name for line in lines(folder) for name in line if "sigma" in name} for folder in (default, given)]
    assert bins[1] == {"Loss/loss/sigma>1"} < bins[0]
