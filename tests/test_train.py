"""Tiny runs of every kind through train.py: what they write, that they repeat, and what they refuse."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import train
from stylegan_di import load_denoiser, load_generator
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.download import cached_path
from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.edm import PRECONDITIONERS, EDMPrecond, VEPrecond, VPPrecond
from stylegan_di.snapshots.checkpoint import load_snapshot
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.persistence import read_pickle
from stylegan_di.training import launch
from stylegan_di.training.methods import build
from stylegan_di.training.transfer import gan_to_resume
from tests.tiny import save_files, save_gan, save_teacher, stylegan3_networks

pytestmark = pytest.mark.usefixtures("small_grids")

ROOT = Path(__file__).resolve().parent.parent
METRICS = ["--metrics=fd_fashion,pr_fashion", "--metric-samples=32"]
NO_METRICS = ["--metrics=none"]
SHORT = ["--device=cpu", "--batch=4", "--kimg=0.016", "--tick=0.008", "--snap=1", "--workers=0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(train.main, list(arguments))


def run(outdir: Path, *arguments: str) -> Path:
    """A run in this process, which must succeed; returns its folder."""
    before = set(outdir.glob("*"))
    result = invoke(*arguments, f"--outdir={outdir}")
    assert result.exit_code == 0, result.output + str(result.exception)
    (folder,) = set(outdir.glob("*")) - before
    return folder


def di(files: dict[str, str], *extra: str, measured: bool = True) -> list[str]:
    shared = [option for option in SHORT if not option.startswith("--workers")]
    metrics = [f"--ref={files['ref']}", *METRICS] if measured else NO_METRICS
    return ["--kind=di", f"--teacher={files['teacher']}", *metrics, *shared, *extra]


def weights_hash(path: Path) -> str:
    digest = hashlib.sha256()
    for network in load_snapshot(path).networks.values():
        for value in network.state_dict().values() if network is not None else ():
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_di_refines_a_gan_through_the_real_command_line(files: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *di(files, f"--gan-pkl={files['gan']}"), f"--outdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name == "00000-gan-di-ikl-batch4"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "training_options.json", "log.txt", "stats.jsonl", "metric-fd_fashion.jsonl", "metric-pr_fashion.jsonl",
        "fakes_init.png", "fakes000000.png", "network-best.pkl", "network-snapshot-000000.pkl",
        "before_after.png", "result.json",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert set(result["before"]) == set(result["after"]) == {
        "fd_fashion", "pr_fashion_precision", "pr_fashion_recall",
    }  # fmt: skip
    assert (result["seed"], result["num_samples"], result["kimg"], result["device"]) == (0, 32, 0.016, "cpu")
    assert "fd_fashion" in done.stdout
    assert "left" in (folder / "log.txt").read_text()
    old, new = load_generator(files["gan"]), load_generator(folder / "network-snapshot-000000.pkl")
    assert isinstance(new, StyleGAN2Student)
    assert not torch.equal(old.network.mapping.fc0.weight, new.network.mapping.fc0.weight)
    snapshot = load_snapshot(folder / "network-snapshot-000000.pkl")
    assert snapshot.metadata["teacher"] == files["teacher"]
    assert snapshot.metadata["kimg"] == 0.016
    assert snapshot.extras["training_set_kwargs"] is None  # where NVlabs' tools would look for one without a path


@pytest.mark.parametrize(
    "extra",
    [
        ["--divergence=sid:alpha=1.2", "--snap-format=safetensors"],
        ["--divergence=ikl:weight=dmd", "--fake-warmup=0.008", "--batch-gpu=2", "--lr-decay=0.5"],
    ],
    ids=["sid", "dmd"],
)
def test_di_options(files: dict[str, str], tmp_path: Path, extra: list[str]) -> None:
    folder = run(tmp_path, *di(files, f"--gan-pkl={files['gan']}", *extra))
    (path,) = folder.glob("network-snapshot-000000.*")
    assert isinstance(load_generator(path), StyleGAN2Student)


def test_di_without_a_gan_distils_the_teacher_to_one_step(files: dict[str, str], tmp_path: Path) -> None:
    folder = run(tmp_path, *di(files, "--sigma-init=1.5"))
    student = load_generator(folder / "network-best.pkl")
    assert isinstance(student, OneStepStudent)
    assert student.sigma_init == 1.5


@pytest.mark.parametrize("precond", [*PRECONDITIONERS, "edm2"])
def test_every_kind_of_teacher_refines_and_distils(files: dict[str, str], tmp_path: Path, precond: str) -> None:
    teacher = str(save_teacher(tmp_path / "teacher.pkl", precond=precond))
    for extra in ([f"--gan-pkl={files['gan']}"], ["--sigma-init=1"]):
        folder = run(tmp_path / "runs", *di({**files, "teacher": teacher}, *extra, measured=False))
        load_generator(folder / "network-snapshot-000000.pkl")
        lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
        for name in ("Gradient/student", "Gradient/fake_score"):
            assert 0 < lines[-1][name]["mean"] < float("inf")


def test_a_teacher_of_latents_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    latents = str(save_teacher(tmp_path / "latents.pkl", precond="edm2", img_channels=4))
    assert "works on an autoencoder's latents" in refused(*di({**files, "teacher": latents}))


def test_hybrid_trains_the_gans_own_discriminator(files: dict[str, str], tmp_path: Path) -> None:
    hybrid = [f"--gan-pkl={files['gan']}", f"--data={files['data']}", "--cond=true", "--adv-weight=1", "--gamma=0.1"]
    folder = run(tmp_path, *di(files, *hybrid))
    old, new = load_snapshot(files["gan"]).networks["D"], load_snapshot(folder / "network-best.pkl").networks["D"]
    assert old is not None
    assert new is not None
    assert not torch.equal(old.b4.fc.weight, new.b4.fc.weight)


def test_the_adversarial_loss_alone_needs_no_teacher(files: dict[str, str], tmp_path: Path) -> None:
    alone = [f"--gan-pkl={files['gan']}", f"--data={files['data']}", "--cond=true", "--adv-weight=1", "--gamma=0.1"]
    arguments = ["--kind=di", "--divergence=none", f"--ref={files['ref']}", *METRICS, *SHORT, *alone]
    folder = run(tmp_path, *arguments)
    old, new = load_snapshot(files["gan"]).networks, load_snapshot(folder / "network-best.pkl").networks
    for name, key in (("G", "mapping.fc0.weight"), ("D", "b4.fc.weight")):
        before, after = old[name], new[name]
        assert before is not None
        assert after is not None
        assert not torch.equal(before.state_dict()[key], after.state_dict()[key])
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert "Gradient/adversarial_per_pixel" in lines[-1]
    assert not any("fake_score" in name or "divergence" in name for name in lines[-1])


GAN = ["--kind=gan", "--cond=true", "--cbase=64", "--cmax=8", "--w-dim=8", *SHORT]
EDM = ["--kind=edm", "--cond=true", "--model-channels=8", "--channel-mult=1", "--num-blocks=1",
       "--attn-resolutions=4", "--label-dropout=0.2", *SHORT]  # fmt: skip


#: Names in stylegan2-ada's and stylegan3's stats.jsonl; EDM's are Loss/loss and those that do not begin with Loss.
LINEAGE = {
    "Loss/scores/fake", "Loss/signs/fake", "Loss/G/loss", "Loss/pl_penalty", "Loss/G/reg",
    "Loss/scores/real", "Loss/signs/real", "Loss/D/loss", "Loss/r1_penalty", "Loss/D/reg",
    "Progress/tick", "Progress/kimg", "Timing/total_sec", "Timing/total_hours", "Timing/total_days",
    "Timing/sec_per_tick", "Timing/sec_per_kimg", "Timing/maintenance_sec",
    "Resources/cpu_mem_gb", "Resources/peak_gpu_mem_gb", "Resources/peak_gpu_mem_reserved_gb", "timestamp",
}  # fmt: skip


def test_gan_training_writes_what_nvlabs_tools_expect(files: dict[str, str], tmp_path: Path) -> None:
    options = ["--augpipe=blit", "--pl-interval=1", "--r1-interval=2"]
    folder = run(tmp_path, *GAN, *METRICS, f"--data={files['data']}", *options)
    networks = load_snapshot(folder / "network-best.pkl").networks
    assert list(networks) == ["G", "D", "G_ema", "augment_pipe"]
    assert (folder / "reals.png").is_file()
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert LINEAGE | {"Progress/augment"} <= set(lines[1])
    assert lines[1]["Loss/G/reg"]["mean"] == pytest.approx(2 * lines[1]["Loss/pl_penalty"]["mean"])  # --pl-weight
    gamma = 0.0002 * 8**2 / 4  # the heuristic's, of 8x8 images in batches of 4
    assert lines[1]["Loss/D/reg"]["mean"] == pytest.approx(gamma / 2 * lines[1]["Loss/r1_penalty"]["mean"])


def test_metrics_compare_with_the_whole_data_set_whatever_subset_is_trained_on(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    original = launch.make_evaluator

    def make(method: Any, reference: Any, *rest: Any) -> Any:
        compared.append((len(method.dataset), len(reference)))
        return original(method, reference, *rest)

    monkeypatch.setattr(launch, "make_evaluator", make)
    metrics = ["--metrics=fd_fashion", "--metric-samples=4"]
    data = f"--data={files['data']}"
    run(tmp_path, *GAN, *metrics, data, "--mirror=true")
    run(tmp_path, *GAN, *metrics, data, "--mirror=true", "--subset=9")
    whole = compared[0][0]
    assert whole > 18
    assert compared == [(whole, whole), (18, whole)]


def test_an_unknown_metric_is_refused_in_a_dry_run(files: dict[str, str]) -> None:
    result = invoke("--kind=gan", f"--data={files['data']}", "--metrics=fid50k_full,nope", "--dry-run")
    assert result.exit_code == 2
    assert "there is no metric 'nope'" in result.output


def test_fixed_augmentation_frozen_layers_and_a_subset(files: dict[str, str], tmp_path: Path) -> None:
    augmentation = ["--aug=fixed", "--p=0.3", "--augpipe=bgc"]
    options = [*augmentation, "--freezed=2", "--subset=9", "--mirror=true", "--metrics=none"]
    folder = run(tmp_path, *GAN, f"--data={files['data']}", *options)
    assert "-cond-mirror-subset9-auto-batch4" in folder.name
    assert ", 18 images" in (folder / "log.txt").read_text()
    snapshot = load_snapshot(folder / "network-snapshot-000000.pkl")
    assert snapshot.extras["training_set_kwargs"]["max_size"] == 9
    pipe, discriminator = snapshot.networks["augment_pipe"], snapshot.networks["D"]
    assert pipe is not None
    assert discriminator is not None
    assert float(pipe.p) == pytest.approx(0.3)  # type: ignore[arg-type]
    frozen = {name for name, _ in discriminator.named_buffers() if name.endswith("weight")}
    assert frozen == {"b8.fromrgb.weight", "b8.conv0.weight"}
    start = build(config_of(folder), torch.device("cpu")).state.networks["discriminator"]
    before, after = start.state_dict(), discriminator.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not moved & {"b8.fromrgb.weight", "b8.fromrgb.bias", "b8.conv0.weight", "b8.conv0.bias"}


def config_of(folder: Path) -> TrainConfig:
    options = json.loads((folder / "training_options.json").read_text())
    return TrainConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


@pytest.mark.parametrize(("precond", "network", "augment"), [("edm", EDMPrecond, "0"), ("vp", VPPrecond, "0.5")])
def test_edm_training_writes_what_nvlabs_tools_expect(
    files: dict[str, str], tmp_path: Path, precond: str, network: type[torch.nn.Module], augment: str
) -> None:
    options = [f"--precond={precond}", f"--augment={augment}", "--metrics=none"]
    folder = run(tmp_path, *EDM, f"--data={files['data']}", *options)
    assert f"-cond-ddpmpp-{precond}-batch4" in folder.name
    path = folder / "network-snapshot-000000.pkl"
    teacher = load_denoiser(path)
    assert isinstance(teacher, EDMTeacher)
    assert type(teacher.network) is network
    assert (teacher.network.model.map_augment is None) == (augment == "0")  # type: ignore[union-attr]
    content = read_pickle(path.read_bytes(), str(path))
    assert list(content)[:4] == ["ema", "loss_fn", "augment_pipe", "dataset_kwargs"]
    if (pipe := content["augment_pipe"]) is not None:
        assert (pipe.class_name, pipe.state["p"], pipe.state["aniso"]) == ("AugmentPipe", 0.5, 1.0)
    assert (pipe is None) == (augment == "0")


def test_edm_training_to_safetensors_keeps_the_augmentations_arguments(files: dict[str, str], tmp_path: Path) -> None:
    options = ["--precond=ve", "--metrics=none", "--snap-format=safetensors"]
    folder = run(tmp_path, *EDM, f"--data={files['data']}", *options)
    path = folder / "network-snapshot-000000.safetensors"
    assert type(load_snapshot(path).networks["ema"]) is VEPrecond
    assert load_snapshot(path).extras["augment_pipe"]["p"] == 0.12


RESUME = ["--kind=gan", *SHORT, "--metrics=none", "--aug=noaug"]


def test_a_gan_trains_on_from_its_pickle(files: dict[str, str], tmp_path: Path) -> None:
    """At learning rate 1e-12 what comes out is what went in, in all three networks."""
    resumed = [*RESUME, "--cond=true", f"--data={files['data']}", f"--resume={files['gan']}", "--lr=1e-12"]
    folder = run(tmp_path, *resumed)
    old = load_snapshot(files["gan"]).networks
    new = load_snapshot(folder / "network-snapshot-000000.pkl").networks
    for name in ("G", "D", "G_ema"):
        before, after = old[name], new[name]
        assert before is not None
        assert after is not None
        for key, value in before.named_parameters():
            torch.testing.assert_close(after.get_parameter(key), value, rtol=0, atol=1e-9)


def test_transfer_to_other_classes_keeps_every_weight_that_fits(files: dict[str, str]) -> None:
    gan = gan_to_resume(files["gan"], ImageDataset(files["data"]))
    old = load_snapshot(files["gan"]).networks["G"]
    assert old is not None
    assert gan.generator.c_dim == gan.discriminator.c_dim == gan.ema.c_dim == 0
    new, weights = gan.generator.state_dict(), old.state_dict()
    assert all(torch.equal(new[key], weights[key]) for key in new if key != "mapping.fc0.weight")
    assert new["mapping.fc0.weight"].shape != weights["mapping.fc0.weight"].shape
    gan.discriminator(gan.generator(torch.zeros(2, 8), None), None)


def test_transfer_to_other_sizes_and_colours_says_what_is_new(files: dict[str, str], tmp_path: Path) -> None:
    old = load_snapshot(files["gan"]).networks["G"]
    assert old is not None
    for side, mode, new in (
        (16, "L", "synthesis.b16, mapping.embed"), (8, "RGB", "synthesis.b4, synthesis.b8, mapping.embed"),
    ):  # fmt: skip
        data = tmp_path / f"{side}{mode}"
        data.mkdir()
        for index in range(2):
            Image.new(mode, (side, side)).save(data / f"{index}.png")
        pairs = [[f"{index}.png", index] for index in range(2)]  # two classes, where the file has three
        (data / "dataset.json").write_text(json.dumps({"labels": pairs}))
        gan = gan_to_resume(files["gan"], ImageDataset(data, use_labels=True))
        assert gan.notes[0].startswith("generator is as in the file, but for")
        assert new in gan.notes[0]
        assert gan.notes[1].startswith("discriminator is as in the file")
        own, weights = gan.generator.state_dict(), old.state_dict()
        same = [name for name in own if name.startswith(("mapping.fc", "synthesis.b4.conv", "synthesis.b8.conv"))]
        assert all(torch.equal(own[name], weights[name]) for name in same)
        images = gan.generator(torch.zeros(2, 8), torch.eye(2))
        assert images.shape == (2, len(mode) if mode == "RGB" else 1, side, side)
        gan.discriminator(images, torch.eye(2))
    stylegan3 = files["stylegan3"]
    with pytest.raises(UserError, match=r"images have 8 pixels a side, those of --data 16, and a StyleGAN3's layers"):
        gan_to_resume(stylegan3, ImageDataset(tmp_path / "16L"))


@pytest.mark.parametrize("options", [["--model-channels=1"], ["--model-channels=6", "--channel-mult=1,2"]])
def test_widths_that_make_no_network_are_refused(files: dict[str, str], tmp_path: Path, options: list[str]) -> None:
    arguments = ["--kind=edm", f"--data={files['data']}", "--metrics=none", f"--outdir={tmp_path / 'runs'}"]
    assert "a U-Net cannot have so many channels" in refused(*arguments, "--device=cpu", *options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("option", "message"), [
    ("--augpipe=bgx", "'bgx' is not one of 'blit', 'geom', 'color', 'filter', 'noise', 'cutout', 'bg', 'bgc', 'bgcf', "
     "'bgcfn', 'bgcfnc'"),
    ("--p=1.5", "--p=1.5: accepted is a number from 0 to 1"),
    ("--target=-0.1", "--target=-0.1: accepted is a number from 0 to 1"),
])  # fmt: skip
def test_augmentations_that_are_none_are_refused_in_a_dry_run(
    files: dict[str, str], option: str, message: str
) -> None:
    assert message in refused("--kind=gan", f"--data={files['data']}", option, "--dry-run")


def test_an_augmentation_that_needs_larger_images_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    arguments = [*GAN, f"--data={files['data']}", f"--outdir={tmp_path / 'runs'}", *METRICS, "--augpipe=bgcf"]
    assert "needs images larger than 21 pixels, and those of --data" in refused(*arguments)
    assert not (tmp_path / "runs").exists()


def test_layers_of_a_resumed_discriminator_can_be_frozen(files: dict[str, str]) -> None:
    old = load_snapshot(files["gan"]).networks["D"]
    assert old is not None
    gan = gan_to_resume(files["gan"], ImageDataset(files["data"], use_labels=True), freezed=1)
    assert {name for name, _ in gan.discriminator.named_buffers()} >= {"b8.fromrgb.weight", "b8.fromrgb.bias"}
    assert "b8.conv0.weight" in dict(gan.discriminator.named_parameters())
    new = gan.discriminator.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.state_dict().items())


def test_a_resumed_gan_has_adas_settings_for_transfer(files: dict[str, str], tmp_path: Path) -> None:
    result = invoke("--kind=gan", f"--data={files['data']}", f"--resume={files['gan']}", "--dry-run")
    options = json.loads(result.output)
    assert (options["ada_kimg"], options["ema_rampup"]) == (100.0, None)


def test_noresume_is_as_without_the_option(files: dict[str, str]) -> None:
    arguments = ["--kind=gan", f"--data={files['data']}", "--dry-run"]
    assert invoke(*arguments, "--resume=noresume", "--cbase=64").output == invoke(*arguments, "--cbase=64").output


@pytest.mark.parametrize(("name", "file"), [
    ("ffhq256", "ffhq-res256-mirror-paper256-noaug.pkl"),
    ("ffhq512", "ffhq-res512-mirror-stylegan2-noaug.pkl"),
    ("ffhq1024", "ffhq-res1024-mirror-stylegan2-noaug.pkl"),
    ("celebahq256", "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl"),
    ("lsundog256", "lsundog-res256-paper256-kimg100000-noaug.pkl"),
])  # fmt: skip
def test_short_names_are_stylegan2_adas_files(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    """The file is looked for where its published address has its place in the cache."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    folder = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
    path = cached_path(folder + file)
    path.parent.mkdir(parents=True)
    shutil.copy(files["gan"], path)
    gan = gan_to_resume(name, ImageDataset(files["data"], use_labels=True))
    expected = load_snapshot(files["gan"]).networks["G"]
    assert expected is not None
    torch.testing.assert_close(gan.generator.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_what_cannot_be_resumed_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    arguments = [*RESUME, f"--data={files['data']}", f"--outdir={tmp_path / 'runs'}"]
    coloured = save_gan(tmp_path / "coloured.pkl", stylegan3_networks, channels=3)
    assert "its images have 3 channels, those of --data 1" in refused(*arguments, f"--resume={coloured}")
    assert "no effect with --resume" in refused(*arguments, f"--resume={files['gan']}", "--cbase=64")
    assert "entries are ema" in refused(*arguments, f"--resume={files['teacher']}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("before", "after", "new"), [(8, 16, "synthesis.b16."), (16, 8, "")])
def test_a_gan_of_another_resolution_gives_the_weights_of_the_same_name(
    before: int, after: int, new: str, tmp_path: Path
) -> None:
    source = save_gan(tmp_path / "other.pkl", resolution=before)
    dataset: Any = SimpleNamespace(resolution=after, num_channels=1, label_dim=3)
    gan, other = gan_to_resume(str(source), dataset), load_snapshot(source).networks
    for network, name in ((gan.generator, "G"), (gan.ema, "G_ema"), (gan.discriminator, "D")):
        assert network.img_resolution == after
        own, theirs = network.state_dict(), other[name].state_dict()  # type: ignore[union-attr]
        assert all(torch.equal(value, theirs[key]) for key, value in own.items() if key in theirs)
        begins = f"b{after}." if name == "D" else new or "nothing"
        unknown = own.keys() - theirs.keys()
        assert unknown == {key for key in own if key.startswith(begins)} - theirs.keys()
    said = "generator is as in the file, but for what the images or classes of --data ask for, which is new: "
    assert (said + "synthesis.b16" in gan.notes) == bool(new)


def test_edm_training_gives_a_teacher_that_di_accepts(files: dict[str, str], tmp_path: Path) -> None:
    folder = run(tmp_path, *EDM, *METRICS, f"--data={files['data']}")
    assert load_denoiser(folder / "network-best.pkl").label_dim == 3
    taught = {**files, "teacher": str(folder / "network-best.pkl")}
    run(tmp_path, *di(taught, f"--gan-pkl={files['gan']}"))


@pytest.mark.parametrize("kind", ["di", "gan", "edm"])
def test_same_seed_same_weights_and_another_seed_others(files: dict[str, str], tmp_path: Path, kind: str) -> None:
    arguments = {
        "di": di(files, f"--gan-pkl={files['gan']}", measured=False),
        "gan": [*GAN, *NO_METRICS, f"--data={files['data']}"],
        "edm": [*EDM, *NO_METRICS, f"--data={files['data']}"],
    }[kind]
    hashes = []
    for seed in (1, 1, 2):
        folder = run(tmp_path, *arguments, f"--seed={seed}")
        hashes.append(weights_hash(folder / "network-snapshot-000000.pkl"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_two_processes_train_as_one_does(files: dict[str, str], tmp_path: Path) -> None:
    """Same samples, noises and sigmas: after four steps the parameters agree to float32 rounding through Adam."""
    arguments = di(files, f"--gan-pkl={files['gan']}", "--lr=1e-4", measured=False)
    single = run(tmp_path / "one", *arguments, "--batch-gpu=2")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py"),
        *arguments, f"--outdir={tmp_path / 'two'}",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    (double,) = (tmp_path / "two").iterdir()
    first, second = (load_snapshot(path / "network-snapshot-000000.pkl").networks["G"] for path in (single, double))
    assert first is not None
    assert second is not None
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_dry_run_prints_the_configuration_and_writes_nothing(files: dict[str, str], tmp_path: Path) -> None:
    result = invoke(*di(files, f"--gan-pkl={files['gan']}"), f"--outdir={tmp_path / 'runs'}", "--dry-run")
    assert json.loads(result.output)["divergence"] == "ikl"
    assert not (tmp_path / "runs").exists()


def refused(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_what_does_not_match_is_refused_before_anything_is_written(files: dict[str, str], tmp_path: Path) -> None:
    runs = f"--outdir={tmp_path / 'runs'}"
    large = str(save_gan(tmp_path / "large.pkl", resolution=16))
    uncond = str(save_teacher(tmp_path / "uncond.pkl", label_dim=0))
    assert "resolution 8 against 16" in refused(*di(files, f"--gan-pkl={large}"), runs)
    assert "classes 0 against 3" in refused(*di({**files, "teacher": uncond}, f"--gan-pkl={files['gan']}"), runs)
    color = str(save_teacher(tmp_path / "color.pkl", img_channels=3))
    assert "channels 3 against 1" in refused(*di({**files, "teacher": color}, f"--gan-pkl={files['gan']}"), runs)
    assert files["gan"] in refused(*di({**files, "teacher": files["gan"]}), runs)
    assert files["teacher"] in refused(*di(files, f"--gan-pkl={files['teacher']}"), runs)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind=di"], "needs --teacher"),
        (["--kind=gan"], "--kind=gan needs --data"),
        (["--kind=gan", "--data=x", "--divergence=ikl"], "--divergence=ikl belongs to --kind=di"),
        (["--kind=edm", "--data=x", "--gamma=1"], "belongs to --kind=gan or di"),
        (["--kind=di", "--teacher=x", "--gamma=1"], "no effect without --adv-weight"),
        (["--kind=di", "--teacher=x", "--gan-pkl=y", "--sigma-init=1"], "leave it out"),
        (["--kind=di", "--teacher=x", "--adv-weight=1"], "--adv-weight=1 needs --data"),
        (["--kind=di", "--teacher=x", "--adv-weight=1", "--data=z"], "needs --gan-pkl"),
        (["--kind=di", "--teacher=x", "--divergence=ikl:f=js"], "--divergence=ikl:f=js needs --data"),
        (["--kind=di", "--teacher=x", "--divergence=ikl:f=js", "--data=z"], "needs --gan-pkl"),
        (["--kind=di", "--teacher=x", "--divergence=realuid"], "--divergence=realuid needs --data"),
        (["--kind=di", "--gan-pkl=x", "--divergence=none"], "leaves nothing to train by"),
        (["--kind=di", "--gan-pkl=x", "--divergence=none", "--adv-weight=1", "--data=z", "--teacher=y"],
         "--teacher=y has no effect with --divergence=none"),
        (["--kind=di", "--gan-pkl=x", "--divergence=none", "--adv-weight=1", "--data=z", "--fsdp=true"],
         "--fsdp=true has no effect with --divergence=none"),
        (["--kind=di", "--teacher=x", "--metrics=none", "--ref=y"], "--ref=y has no effect without metrics"),
        (["--kind=di", "--teacher=x", "--metrics=none", "--metric-samples=9"], "--metric-samples=9 has no effect"),
        (["--kind=di", "--teacher=x", "--metrics=none", "--detector-file=y"], "--detector-file=y has no effect"),
        (["--kind=gan", "--data=x", "--cfg=paper256", "--pl-weight=0", "--pl-interval=2"],
         "--pl-interval=2 has no effect with --pl-weight=0"),
        (["--kind=di", "--teacher=x", "--resume=y"], "belongs to --kind=gan"),
        (["--resume=training-state-000100.pt"], "--transfer=network-snapshot-NNN.pkl"),
        (["--kind=edm", "--data=x", "--duration=200"], "No such option '--duration': give --kimg"),
        ([f"--resume={__file__}"], "is no training state; to continue a run, give latest"),
        (["--kind=di", "--gan-pkl=fashon-gan.pkl"], "fashon-gan.pkl: there is no such file; known names like it: fa"),
        (["--kind=di", "--gan-pkl=x", "--teacher=Onlin", "--data=y"],
         "--teacher=Onlin: there is no such file; accepted are online, for one that is trained on the way, a known"),
        (["--kind=di", "--teacher=hf:online/net", "--data=y"], "--data=y has no effect without --adv-weight"),
        (["--kind=di", "--teacher=1*online.pkl", "--batch=0"], "--batch=0: accepted is"),
        (["--kind=di", "--gan-pkl="], "--gan-pkl= names nothing: give a value, or leave it out"),
        (["--kind=gan", "--data="], "--data= names nothing: give a value, or leave it out"),
        (["--kind=gan", "--data=x", "--ref="], "--ref= names nothing: give a value, or leave it out"),
        (["--kind=di", "--gan-pkl=fashion-gan.pkl", "--cfg=fashon"], "did you mean fashion?"),
        (["--kind=di", "--teacher=x", "--batch=0"], "--batch=0: accepted is"),
        (["--kind=di", "--teacher=x", "--lr-decay=1"], "--lr-decay=1.0: accepted is"),
        (["--kind=di", "--teacher=no-such.pkl", "--metrics=none"], "no-such.pkl"),
        (["--kind=edm", "--data=x", "--channel-mult=none"], "--channel-mult=none leaves the U-Net no resolution"),
        (["--kind=edm", "--data=x", "--channel-mult=a,b"], "comma-separated list of int"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_with_the_remedy(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(*arguments, f"--outdir={tmp_path}")


def test_a_teacher_on_the_way_asks_for_real_images_alone(tmp_path: Path) -> None:
    told = refused("--kind=di", "--gan-pkl=x", "--teacher=online", f"--outdir={tmp_path}")
    assert told.endswith("--teacher=online needs --data: real images")


def test_a_reference_that_no_metric_uses_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    output = refused(*di(files, f"--gan-pkl={files['gan']}", "--metrics=is50k"), f"--outdir={tmp_path}")
    assert "--metrics=is50k compares with no real images" in output


def test_an_outdir_that_cannot_be_written_is_named_before_anything_is_drawn(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delattr("stylegan_di.training.launch.build")
    output = refused(*di(files, f"--gan-pkl={files['gan']}"), f"--outdir={tmp_path / 'file'}")
    assert "choose another folder" in output
