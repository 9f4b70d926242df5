"""The critic on the teacher's features, and data sets of the teacher's samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.critics.features import FeatureCritic, FeatureCriticSpec, Head
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import FRESH, samples_wanted, teacher_samples
from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import from_uint8, to_uint8
from stylegan_di.interfaces import Denoiser
from stylegan_di.labels import ClassMap, one_hot
from stylegan_di.networks import edm2
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.dpm_solver import dpm_solver
from stylegan_di.snapshots.checkpoint import load_denoiser
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.feature_adversary import FeatureAdversary
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.teacher_reals import FreshSamples
from tests.test_methods import CPU, make, make_batch
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import edm_network, save_files

pytestmark = pytest.mark.usefixtures("small_grids", "own_cache")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def teacher(precond: str = "edm", label_dim: int = 3) -> EDMTeacher:
    return EDMTeacher(edm_network(label_dim=label_dim, seed=3, precond=precond)).eval().requires_grad_(False)


# The critic.


@pytest.mark.parametrize("label_dim", [0, 3])
@pytest.mark.parametrize("precond", ["edm", "vp", "ve", "iddpm", "edm2"])
def test_the_critic_has_heads_on_every_u_net(precond: str, label_dim: int) -> None:
    network = teacher(precond, label_dim)
    assert isinstance(network.network, edm2.Precond) == (precond == "edm2")
    critic = FeatureCritic(network, scales=2, width=4)
    x = torch.randn([4, 1, 8, 8], generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.eye(3)[[0, 1, 2, 0]] if label_dim else None
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    logits = critic.logits(x, torch.zeros_like(x), sigma, labels)
    assert logits.shape == (4, 1)
    torch.testing.assert_close(logits[:1], critic.logits(x[:1], torch.zeros_like(x[:1]), sigma[:1], _first(labels)))
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.flatten(1).abs().sum(dim=1).min() > 0
    assert all(not parameter.requires_grad for parameter in network.parameters())


def _first(labels: torch.Tensor | None) -> torch.Tensor | None:
    return None if labels is None else labels[:1]


def test_a_logit_is_the_sum_of_heads_on_the_coarsest_features() -> None:
    network = teacher()
    critic = FeatureCritic(network, scales=1, width=4)
    x, noise = torch.ones(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    sigma, labels = torch.tensor([0.5, 2.0]), torch.eye(3)[:2]
    noisy = x + sigma[:, None, None, None] * noise
    (head,) = critic.heads
    expected = head(network.features(noisy, sigma, labels)[-1], labels)
    torch.testing.assert_close(critic.logits(x, noise, sigma, labels), expected)


def test_a_head_is_convolutions_their_mean_and_the_class() -> None:
    torch.manual_seed(0)
    head, y = Head(2, 4, 3).double(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    labels = torch.eye(3, dtype=torch.float64)[[1, 2]]
    hidden = head.layers(y)
    assert hidden.shape == (2, 4, 5, 5)
    plain = head.out(hidden).mean(dim=[2, 3])
    assert head.classes is not None
    projected = (head.classes.weight.T[[1, 2]] * hidden.mean(dim=[2, 3])).sum(dim=1, keepdim=True)
    torch.testing.assert_close(head(y, labels), plain + projected)
    torch.testing.assert_close(head(y, None), plain)


def test_a_teacher_without_an_encoder_is_refused_by_name() -> None:
    class Shrink(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.img_resolution, self.img_channels, self.label_dim = 8, 1, 0
            self.factor = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return x * self.factor

    with pytest.raises(UserError, match="a Shrink has no features for a critic"):
        FeatureCritic(Shrink())


@pytest.mark.parametrize(
    ("rms", "share", "weight"), [(0.05, 0.0, 1.0), (0.2, 0.0, 0.5), (0.0, 0.0, 2.0), (0.05, 0.4, 3.0)]
)
def test_its_gradient_is_scaled_to_the_rms_or_to_a_share_of_the_divergences(
    rms: float, share: float, weight: float
) -> None:
    torch.manual_seed(0)
    spec = FeatureCriticSpec(weight=weight, rms=rms, share=share, width=4)
    adversary = FeatureAdversary(spec, teacher(), LogNormalLaw(), Pixels(8, 1), ClassMap())
    batch, x = make_batch(), torch.randn(4, 1, 8, 8, requires_grad=True)
    labels, instructed = torch.eye(3)[[0, 1, 2, 0]], torch.randn(4, 1, 8, 8)
    gradient, natural = adversary.gradient(x, labels, batch, batch.chunks[0], instructed)
    logits = adversary.logits(x, labels, batch, batch.chunks[0], "critic/student")
    (expected,) = torch.autograd.grad(torch.nn.functional.softplus(-logits).sum(), x)
    torch.testing.assert_close(natural, expected)
    wanted = share * float(instructed.square().mean().sqrt()) if share else rms
    if wanted:
        assert float(gradient.square().mean().sqrt()) == pytest.approx(weight * wanted, rel=1e-5)
        expected = expected * wanted / expected.square().mean().sqrt()
    torch.testing.assert_close(gradient, weight * expected)


# The teacher's samples.


def test_samples_are_the_solvers_drawn_once_and_kept() -> None:
    network, said = teacher(), []
    path = teacher_samples(network, 70, 5, CPU, lambda *report: said.append(report))
    assert [done for _, done, _ in said] == [64, 70]
    dataset = ImageDataset(path, use_labels=True)
    assert (len(dataset), dataset.num_channels, dataset.resolution, dataset.label_dim) == (70, 1, 8, 3)
    rng = SampleRandom(5, "teacher samples", 0, range(64, 70))
    classes = rng.integers(3)
    images = dpm_solver(network, rng.normal(1, 8, 8), one_hot(classes, 3)).float()
    for index in range(6):
        pixels, label = dataset[64 + index]
        assert (pixels == to_uint8(images[index]).numpy()).all()
        assert int(label.argmax()) == int(classes[index])
    written = path.stat().st_mtime_ns
    assert teacher_samples(network, 70, 5, CPU) == path
    assert path.stat().st_mtime_ns == written
    assert teacher_samples(network, 70, 6, CPU) != path
    assert teacher_samples(teacher(label_dim=0), 70, 5, CPU) != path


def test_few_samples_have_all_of_the_teachers_classes(files: dict[str, str], tmp_path: Path) -> None:
    """Two samples of three classes: their labels are the teacher's all the same."""
    folder = whole_run(tmp_path, *critic_command(files, "--data=teacher:2", "--kimg=0.008"))
    assert "2 images" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("damage", ["half", "empty", "a byte of the last image", "labels", "another zip"])
def test_a_damaged_file_of_the_cache_is_drawn_anew_and_this_is_said(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = teacher_samples(teacher(), 10, 0, CPU)
    whole = path.read_bytes()
    last, labels = whole.rindex(b"IDAT"), whole.index(b'"labels"')
    path.write_bytes({
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "a byte of the last image": whole[: last + 30] + bytes([whole[last + 30] ^ 1]) + whole[last + 31 :],
        "labels": whole[:labels] + b"'" + whole[labels + 1 :],
        "another zip": teacher_samples(teacher(), 9, 0, CPU).read_bytes(),
    }[damage])  # fmt: skip
    capsys.readouterr()
    assert teacher_samples(teacher(), 10, 0, CPU).read_bytes() == whole
    assert capsys.readouterr().err == f"{path} is damaged: the teacher's samples are drawn anew\n"
    assert teacher_samples(teacher(), 10, 0, CPU) == path
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    said: list[Any] = []
    with pytest.raises(UserError, match=r"teacher-samples cannot be written \(.*set DNNLIB_CACHE_DIR to a folder"):
        teacher_samples(teacher(), 10, 0, CPU, lambda *report: said.append(report))
    assert said == []


def test_fresh_samples_are_the_solvers_by_the_images_seen() -> None:
    network = teacher()
    source, batch = FreshSamples(network), make_batch()
    (chunk,) = batch.chunks
    images, labels = source.take(batch)(chunk)
    rng = batch.random("teacher samples", chunk)
    classes = rng.integers(3)
    assert labels is not None
    assert torch.equal(labels.argmax(dim=1), classes)
    drawn = to_uint8(dpm_solver(network, rng.normal(1, 8, 8), one_hot(classes, 3)).float())
    assert torch.equal(images, from_uint8(drawn))
    later, _ = source.take(dataclasses.replace(batch, nimg=batch.nimg + batch.size))(chunk)
    assert not torch.equal(later, images)


@pytest.mark.parametrize("data", ["teacher:", "teacher:1", "teacher:-5", "teacher:1e4", "teacher:many"])
def test_a_number_of_samples_that_is_none_is_refused(data: str) -> None:
    with pytest.raises(UserError, match="accepted is the number of samples to draw"):
        samples_wanted(data)
    assert (samples_wanted("teacher:20"), samples_wanted("teacher.zip"), samples_wanted(None)) == (20, None, None)
    assert samples_wanted("teacher:fresh") == FRESH


# In a training.


def critic_command(files: dict[str, str], *more: str) -> list[str]:
    return ["--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['gan']}", *SHORT, "--tick=0.016",
            "--metrics=none", "--critic=features:width=4,scales=1", "--data=teacher:24", *more]  # fmt: skip


def test_a_killed_run_with_a_critic_resumes_to_the_same_bits(files: dict[str, str], tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "whole", *critic_command(files))
    folder = killed_run(tmp_path / "killed", 5, *critic_command(files))
    result = invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}")
    assert result.exit_code == 0, result.output
    assert_same_run(whole, folder)
    assert "critic          features:width=4,scales=1" in (whole / "log.txt").read_text()
    statistics = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    names = {"Loss/critic", "Gradient/critic", "Gradient/critic_per_pixel", "Gradient/divergence_per_pixel/sigma<0.2"}
    assert names | {"Gradient/critic_natural_per_pixel"} <= statistics[-1].keys()


def both(files: dict[str, str]) -> list[str]:
    return critic_command(files, f"--data={files['data']}", "--cond=true", "--teacher-samples=24")


def test_fresh_samples_and_both_kinds_resume_to_the_same_bits(files: dict[str, str], tmp_path: Path) -> None:
    for name, command in (("fresh", critic_command(files, "--data=teacher:fresh")), ("both", both(files))):
        whole = whole_run(tmp_path / f"{name}-whole", *command)
        folder = killed_run(tmp_path / name, 5, *command)
        result = invoke("--resume=latest", f"--outdir={tmp_path / name}")
        assert result.exit_code == 0, result.output
        assert_same_run(whole, folder)
    assert f"against {files['data']} and 24 samples of the teacher" in (whole / "log.txt").read_text()


def test_real_images_and_the_teachers_samples_take_turns(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, Tensor]] = []
    logits = FeatureAdversary.logits

    def noted(self: FeatureAdversary, images: Tensor, *args: Any, own: bool = False) -> Tensor:
        if args[-1].endswith("/reals"):
            seen.append((own, images.clone()))
        return logits(self, images, *args, own=own)

    monkeypatch.setattr(FeatureAdversary, "logits", noted)
    whole_run(tmp_path, *both(files), "--kimg=0.016")
    assert [own for own, _ in seen] == [False, True, False, True]
    drawn = ImageDataset(teacher_samples(load_denoiser(files["teacher"]), 24, 0, CPU))
    known = torch.stack([from_uint8(torch.from_numpy(drawn[index][0])) for index in range(24)])
    among = [bool((image == known).flatten(1).all(dim=1).any()) for _, images in seen for image in images]
    assert among == [own for own, images in seen for _ in images]


@pytest.mark.parametrize(
    ("classes", "asked"),
    [(ClassMap(), [1, 2, 0, 1]), (ClassMap("null"), None), (ClassMap("drawn", label_dim=3), [1, 2, 0, 1]),
     (ClassMap("table", torch.eye(3)[[2, 0, 1]]), [1, 2, 0, 1])],
    ids=lambda value: value.rule if isinstance(value, ClassMap) else "",
)  # fmt: skip
def test_the_teachers_samples_keep_their_classes_unless_it_is_told_none(
    classes: ClassMap, asked: list[int] | None, files: dict[str, str]
) -> None:
    """Those of --classes are the GAN's; by a label that only one kind of samples has they would be told apart."""
    own, batch, x = torch.eye(3)[[1, 2, 0, 1]], make_batch(), torch.zeros(4, 1, 8, 8)
    adversary = FeatureAdversary(FeatureCriticSpec(width=4), teacher(), LogNormalLaw(), Pixels(8, 1), classes, True)
    told: list[Any] = []
    adversary.critic.logits = lambda *given: told.append(given[-1]) or given[0]  # type: ignore[method-assign, func-returns-value, return-value]
    adversary.logits(x, own, batch, batch.chunks[0], "critic/reals", own=True)
    method = make(files["data"], divergence="realuid")
    (to,) = method.instructions
    to.classes, to.teachers_own = classes, True
    to.fake_score.register_forward_pre_hook(lambda _, given: told.append(given[-1]))
    to.score_loss((x, own), batch, batch.chunks[0], "fake_score", (x, own))
    for found in (told[0], told[2]):
        assert (None if found is None else found.argmax(dim=1).tolist()) == asked


def test_a_discriminator_takes_no_samples_of_other_classes(files: dict[str, str]) -> None:
    common = ["--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['gan']}", "--metrics=none"]
    for option in ("--adv-weight=1", "--divergence=ikl:f=js"):
        result: Any = invoke(*common, option, "--data=teacher:9", "--classes=null", "--dry-run")
        assert result.exit_code == 2, result.output
        assert (
            f"{option}: the discriminator takes the GAN's classes, and --data=teacher:9 has the teacher's, which are "
            "others with --classes=null; give --critic=features in its place, or real images"
        ) in " ".join(result.output.split())


def test_the_critic_alone_and_beside_an_f_divergence(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    forward, step = EDMTeacher.forward, DiffInstruct.step

    def counted_step(*args: Any) -> None:
        asked.append(0)
        step(*args)

    def counted_forward(*args: Any) -> Any:
        asked[-1:] = [count + 1 for count in asked[-1:]]
        return forward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(DiffInstruct, "step", counted_step)
        patch.setattr(EDMTeacher, "forward", counted_forward)
        alone = whole_run(tmp_path / "alone", *critic_command(files, "--divergence=none", "--kimg=0.008"))
    assert asked == [0, 0]  # no denoiser in any step: the critic's features are an encoder's
    assert "fake_score" not in (alone / "stats.jsonl").read_text()
    weighted = whole_run(tmp_path / "f", *critic_command(files, "--divergence=ikl:f=js", "--kimg=0.008"))
    assert "Loss/critic" in (weighted / "stats.jsonl").read_text()
    reals = [f"--data={files['data']}", "--cond=true", "--kimg=0.008"]
    whole_run(tmp_path / "reals", *critic_command(files, *reals))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--critic=feature"], "there is no 'feature'; accepted: none, features; did you mean features?"),
        (["--critic="], "--critic=: there is no ''; accepted: none, features"),
        (["--critic=none:x"], "--critic=none:x: 'none' has no field 'x'; it has no fields"),
        (["--divergence="], "--divergence=: accepted: none, ikl, sid, sim, fisher, realuid, or a sum such as"),
        (["--student=auto:x"], "--student=auto:x: 'auto' has no field 'x'; it has no fields"),
        (["--critic=features", "--data=Teacher:9"],
         "--data=Teacher:9 does not exist; give a folder or a .zip file of images; did you mean teacher:9?"),
        (["--critic=features", "--data=techer"], "did you mean teacher:10000?"),
        (["--critic=features:rms=-1"], "rms=-1; accepted: a number from 0 on"),
        (["--critic=features"], "--critic=features needs --data: real images, or teacher:N"),
        (["--critic=features", "--data=teacher:x"], "accepted is the number of samples to draw"),
        (["--critic=features", "--data=teacher:9", "--cond=true"], "--cond=true has no effect with --data=teacher:N"),
        (["--data=teacher:9"], "has no effect without --adv-weight"),
        (["--teacher-samples=9"], "--teacher-samples=9 has no effect without --critic=features"),
        (["--critic=features", "--data=teacher:9", "--teacher-samples=9"], "leave it or --data=teacher:9 out"),
        (["--critic=features", "--data=teacher:fresh", "--mirror=true"], "which is no data set"),
        (["--critic=features:share=1", "--divergence=none", "--data=teacher:9"], "has none; give rms instead"),
        (["--critic-noise-law=karras"], "has no effect without a critic"),
        (["--critic=features", "--data=teacher:9", "--fsdp=true"], "--fsdp spreads the teacher"),
        (["--fake-warmup=2", "--kimg=1"], "--fake-warmup=2 leaves none of --kimg=1 to the student"),
        (["--noise-law=karras:sigma_min=90"], "sigma_min=90 is not below sigma_max=80"),
        (["--divergence=ikl:clip=5"], "clip=5 has no effect with f=reverse_kl"),
        (["--beta1=1"], "--beta1=1.0: accepted is a number from 0 to below 1"),
        (["--desc=a/b"], "--desc=a/b: accepted is a text without /"),
        (["--freeze=b64"], "--freeze=b64: there is no such part; it has mapping, b4, b8"),
        (["--freeze="], "is not a comma-separated list"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    files: dict[str, str], tmp_path: Path, given: list[str], message: str
) -> None:
    common = ["--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['gan']}", "--metrics=none"]
    result: Any = invoke(*common, *given, f"--outdir={tmp_path / 'runs'}")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "runs").exists()
