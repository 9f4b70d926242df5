"""A denoiser that is trained on an autoencoder's latents (--kind=edm --autoencoder), and a GAN that it refines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import calc_metrics
import generate
from stylegan_di.commands import preflight
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.images import from_uint8, to_uint8
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.snapshots.checkpoint import load_denoiser
from stylegan_di.snapshots.pipelines import TeacherOptions
from stylegan_di.snapshots.teacher_files import open_latents, open_teacher
from stylegan_di.teachers.edm import EDMTeacher
from tests import tiny_pipelines as tiny
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import save_dataset, save_gan, save_reference

pytestmark = pytest.mark.usefixtures("small_grids")

LAYERS = ["--model-channels=8", "--channel-mult=1", "--num-blocks=1", "--attn-resolutions=4", "--dropout=0"]
MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 0.7]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    options = dict(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5)
    tiny.autoencoder(**options).save_pretrained(str(folder / "vae"))
    return {"vae": str(folder / "vae"), "data": str(save_dataset(folder / "data")), "folder": str(folder)}


def command(files: dict[str, str], *extra: str) -> list[str]:
    return ["--kind=edm", f"--data={files['data']}", "--cond=true", f"--autoencoder={files['vae']}", *SHORT,
            "--tick=0.008", "--metrics=none", "--augment=0.3", *LAYERS, *extra]  # fmt: skip


def test_latents_are_decoded_to_what_the_autoencoder_makes_of_them(files: dict[str, str]) -> None:
    space, original = open_latents(files["vae"], 8), tiny.autoencoder()
    images = torch.randn([6, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        means = original.encode(images).latent_dist.mean
        expected = original.decode(means).sample
    scaled = (means - torch.tensor(MEAN).view(4, 1, 1)) / torch.tensor(STD).view(4, 1, 1) * 0.5
    torch.testing.assert_close(space.encode(images), scaled)
    torch.testing.assert_close(space.decode(space.encode(images)), expected)


def test_it_is_trained_goes_on_exactly_and_shows_images(files: dict[str, str], tmp_path: Path) -> None:
    given = command(files, "--kimg=0.016")
    whole, killed = whole_run(tmp_path / "whole", *given), killed_run(tmp_path / "killed", 3, *given)
    assert invoke(f"--resume={killed}").exit_code == 0
    assert_same_run(whole, killed)
    network = load_denoiser(whole / "network-snapshot-000000.pkl")
    assert (network.img_resolution, network.img_channels, network.label_dim) == (4, 4, 3)
    with Image.open(whole / "fakes000000.png") as grid, Image.open(whole / "reals.png") as reals:
        assert grid.size == reals.size  # images of 8x8, not their latents
        assert np.asarray(grid).std() > 0


def test_it_learns_the_latents_of_the_images(files: dict[str, str], tmp_path: Path) -> None:
    """At a high noise level the best denoiser gives their mean; training leads there from a network that gives zero."""
    learning = ["--noise-law=lognormal:P_mean=3,P_std=0.1", "--lr=1e-2", "--lr-rampup=0", "--kimg=0.4", "--tick=0.4",
                "--batch=8", "--ema=0.01", "--augment=0", "--cond=false"]  # fmt: skip
    folder = whole_run(tmp_path / "runs", *command(files, *learning))
    data = ImageDataset(files["data"])
    images = torch.stack([from_uint8(torch.from_numpy(data[index][0])) for index in range(len(data))])
    mean = open_latents(files["vae"], 8).encode(images).mean(dim=0)
    noise = 20 * torch.randn([16, 4, 4, 4], generator=torch.Generator().manual_seed(0))
    found = load_denoiser(folder / "network-snapshot-000000.pkl")(mean + noise, torch.full([16], 20.0)).mean(dim=0)
    assert (found - mean).square().mean() < 0.15 * mean.square().mean()


def test_a_gan_is_refined_in_its_latents_also_resized_and_with_a_critic(files: dict[str, str], tmp_path: Path) -> None:
    network = whole_run(tmp_path / "edm", *command(files, "--kimg=0.008")) / "network-snapshot-000000.pkl"
    teacher = open_teacher(str(network), TeacherOptions(autoencoder=files["vae"]))
    assert isinstance(teacher, EDMTeacher)
    images = torch.randn([2, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    assert teacher.space is not None
    expected = open_latents(files["vae"], 8).encode(images)  # by the autoencoder's own numbers, not EDM2's
    torch.testing.assert_close(teacher.space.encode(images), expected)
    assert teacher.trainable_copy().space is teacher.space
    gan, large = save_gan(tmp_path / "gan.pkl"), save_gan(tmp_path / "large.pkl", resolution=16)
    given = ["--kind=di", f"--teacher={network}", f"--autoencoder={files['vae']}", *SHORT, "--kimg=0.008",
             "--tick=0.008", "--metrics=none", "--force=true"]  # fmt: skip
    critic = [f"--gan-pkl={gan}", "--divergence=ikl:f=js", f"--data={files['data']}", "--cond=true"]
    whole_run(tmp_path / "critic", *given, *critic, "--critic=features")
    whole_run(tmp_path / "own", *given, f"--gan-pkl={gan}", "--critic=features", "--data=teacher:8")
    folder = whole_run(tmp_path / "resized", *given, f"--gan-pkl={large}", "--match=resize")
    assert "images of 16x16 gray to 4x4 of 4 channels for the teacher" in (folder / "log.txt").read_text()
    told = refused(*given, *critic)
    assert "asks the GAN's own discriminator, which sees pixels; add --critic=features" in told
    assert "resolution 8 against 16" in refused(*given, f"--gan-pkl={large}")


def test_its_samples_are_decoded_by_the_commands(files: dict[str, str], tmp_path: Path) -> None:
    network = whole_run(tmp_path / "edm", *command(files, "--kimg=0.008")) / "network-snapshot-000000.pkl"
    given = [f"--network={network}", f"--autoencoder={files['vae']}", "--solver=dpmpp", "--steps=3", "--device=cpu"]
    result = CliRunner().invoke(generate.main, [*given, "--seeds=1", f"--outdir={tmp_path / 'out'}", "--class=2"])
    assert result.exit_code == 0, result.output
    teacher = open_teacher(str(network), TeacherOptions(autoencoder=files["vae"]))
    sampler = DiffusionSampler(teacher, solver="dpmpp", steps=3)
    assert teacher.space is not None
    expected = to_uint8(teacher.space.decode(sampler.draw([1], class_index=2).float()))[0, 0]
    with Image.open(tmp_path / "out" / "seed0001.png") as image:
        np.testing.assert_array_equal(np.asarray(image), expected.numpy())
    measured = ["--metrics=fd_fashion", "--num=8", f"--data={files['data']}"]
    result = CliRunner().invoke(calc_metrics.main, [*given, *measured])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(calc_metrics.main, [given[0], *measured])
    assert result.exit_code == 2
    assert "its images have 4 channels, and pictures 1 or 3; a diffusion model of latents wants --autoencoder" in (
        result.output
    )
    gan = save_gan(tmp_path / "gan.pkl")
    ref = save_reference(tmp_path / "ref.npz")
    looked = [f"--gan-pkl={gan}", f"--teacher={network}", given[1], f"--ref={ref}", "--metrics=fd_fashion",
              "--headroom=8", "--steps=1", "--batch=4", "--force=true", "--device=cpu"]  # fmt: skip
    result = CliRunner().invoke(preflight.main, looked)
    assert result.exit_code == 0, result.output
    assert "drawn in 8 evaluations" in result.output
    result = CliRunner().invoke(generate.main, [f"--network={gan}", given[1], f"--outdir={tmp_path / 'none'}"])
    assert result.exit_code == 2
    assert f"--network={gan} is a StyleGAN2, which makes no latents" in result.output


def refused(*arguments: str) -> str:
    result = invoke(*arguments, "--outdir=never")
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_what_does_not_fit_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    assert "needs one divisible by 16" in refused(*command(files, "--channel-mult=1,1,1,1"))
    tiny.autoencoder(in_channels=3).save_pretrained(str(tmp_path / "vae"))
    told = refused(*command(files, f"--autoencoder={tmp_path / 'vae'}"))
    assert "has images of 1 channels, and --autoencoder=" in told
    assert "there is no such folder" in refused(*command(files, "--autoencoder=nowhere"))
    gan = save_gan(tmp_path / "gan.pkl")
    told = refused("--kind=di", f"--gan-pkl={gan}", "--teacher=online", f"--data={files['data']}", "--cond=true",
                   "--metrics=none", f"--autoencoder={files['vae']}")  # fmt: skip
    assert "has no effect with --teacher=online, a denoiser of pixels" in told
