"""A refined GAN whose latents stay valid: frozen parts, w_avg, and the comparison with the GAN it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from stylegan_di.commands import compare
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import load_generator, load_snapshot, save_snapshot
from stylegan_di.students.stylegan2 import W_AVG_SAMPLES, StyleGAN2Student
from tests.test_train import SHORT, invoke, run
from tests.tiny import gan_networks, save_dataset, save_teacher


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    networks = gan_networks(seed=1) | {"G": gan_networks(seed=2)["G"]}
    for network in (networks["G"], networks["G_ema"]):
        network.mapping.w_avg.copy_(torch.linspace(-0.5, 0.5, 8))  # type: ignore[union-attr, operator]
    save_snapshot(folder / "gan.pkl", networks, extras={"training_set_kwargs": {}}, metadata={})
    return {
        "gan": str(folder / "gan.pkl"),
        "teacher": str(save_teacher(folder / "teacher.pkl")),
        "data": str(save_dataset(folder / "data")),
    }


def refine(files: dict[str, str], outdir: Path, *options: str) -> Path:
    short = [option for option in SHORT if not option.startswith("--workers")]
    source = [f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", "--metrics=none"]
    folder = run(outdir, "--kind=di", *source, *short, "--lr=1e-3", "--ema=0.001", *options)
    (path,) = folder.glob("network-snapshot-000000.pkl")
    return path


def weights(path: str | Path, which: str = "G_ema") -> dict[str, Tensor]:
    network = load_snapshot(path, which).networks[which]
    assert network is not None
    return network.state_dict()


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_a_frozen_mapping_keeps_its_weights_and_w_avg(files: dict[str, str], tmp_path: Path) -> None:
    after = refine(files, tmp_path, "--freeze=mapping")
    changed = moved(weights(files["gan"]), weights(after))
    assert not [key for key in changed if key.startswith("mapping.")]
    assert {"synthesis.b4.conv1.weight", "synthesis.b8.conv0.weight"} <= changed
    assert not [key for key in moved(weights(files["gan"]), weights(after, "G")) if key.startswith("mapping.")]
    z, labels = torch.randn([4, 8], generator=torch.Generator().manual_seed(0)), torch.eye(3)[[0, 1, 2, 0]]
    old, new = (load_generator(path).network for path in (files["gan"], after))
    torch.testing.assert_close(new.mapping(z, labels), old.mapping(z, labels), rtol=0, atol=0)


def test_frozen_blocks_keep_their_weights(files: dict[str, str], tmp_path: Path) -> None:
    changed = moved(weights(files["gan"]), weights(refine(files, tmp_path, "--freeze=b4")))
    assert not [key for key in changed if key.startswith("synthesis.b4.")]
    assert {"synthesis.b8.conv0.weight", "mapping.fc0.weight", "mapping.w_avg"} <= changed


def test_w_avg_is_that_of_the_refined_mapping(files: dict[str, str], tmp_path: Path) -> None:
    """Without freezing: the mean of the average's own mapping, over streams that the run's seed gives."""
    student = load_generator(refine(files, tmp_path, "--seed=5"))
    assert isinstance(student, StyleGAN2Student)
    rng = SampleRandom(5, "w_avg", 0, range(W_AVG_SAMPLES))
    labels = torch.nn.functional.one_hot(rng.integers(3), 3).float()
    mean = student.network.mapping(rng.normal(8), labels)[:, 0].mean(0)
    torch.testing.assert_close(student.network.mapping.w_avg, mean, rtol=1e-5, atol=1e-6)
    other = student.network.mapping(*latents(10_000, seed=9))[:, 0]
    error = other.std(0) * (1 / 10_000 + 1 / W_AVG_SAMPLES) ** 0.5
    assert float(((other.mean(0) - student.network.mapping.w_avg) / error).abs().max()) < 4.5


def latents(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = SampleRandom(seed, "other", 0, range(count))
    return rng.normal(8), torch.nn.functional.one_hot(rng.integers(3), 3).float()


def test_freezing_while_a_gan_trains_on(files: dict[str, str], tmp_path: Path) -> None:
    """Both generators keep the average's mapping, which is the one whose latents people have."""
    options = [f"--data={files['data']}", "--cond=true", f"--resume={files['gan']}", "--metrics=none"]
    folder = run(tmp_path, "--kind=gan", *options, *SHORT, "--freeze=mapping,b4")
    before = weights(files["gan"], "G_ema")
    for which in ("G", "G_ema"):
        changed = moved(before, weights(folder / "network-snapshot-000000.pkl", which))
        assert not [key for key in changed if key.startswith(("mapping.", "synthesis.b4."))]
    trained = weights(folder / "network-snapshot-000000.pkl", "G")
    assert "synthesis.b8.conv0.weight" in moved(weights(files["gan"], "G"), trained)


def test_frozen_parts_take_no_gradients_in_any_mode() -> None:
    student = StyleGAN2Student(gan_networks()["G"])  # type: ignore[arg-type]
    assert student.parts == ["mapping", "b4", "b8"]
    student.freeze(["mapping"])
    student.train().requires_grad_(True)
    assert not student.network.mapping.training
    assert student.network.synthesis.training
    wanting = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert wanting == {name for name, _ in student.named_parameters() if ".synthesis." in name}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--freeze=b16", "--freeze=b16: there is no such part; it has mapping, b4, b8"),
        ("--freeze=mapping,b8,b4", "--freeze=mapping,b8,b4 leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen(option: str, message: str, files: dict[str, str], tmp_path: Path) -> None:
    result = invoke("--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", "--metrics=none",
                    "--batch=4", f"--outdir={tmp_path}", option)  # fmt: skip
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_freezing_needs_a_gan(files: dict[str, str]) -> None:
    result = invoke("--kind=di", f"--teacher={files['teacher']}", "--metrics=none", "--freeze=mapping", "-n")
    assert result.exit_code == 2
    assert "--freeze=mapping is for the layers of a GAN: give --gan-pkl" in result.output
    result = invoke("--kind=edm", f"--data={files['data']}", "--freeze=mapping", "-n")
    assert "--freeze=mapping belongs to --kind=gan or di" in result.output


def test_the_run_says_what_it_opened(files: dict[str, str], tmp_path: Path) -> None:
    log = (refine(files, tmp_path).parent / "log.txt").read_text()
    (gan,) = [line for line in log.splitlines() if line.startswith(f"opened          {files['gan']}: ")]
    assert "G_ema (Generator 8x8x1, 3 classes, " in gan
    assert gan.endswith("; embedded source not run (1 of it).")
    assert f"opened          {files['teacher']}: ema (EDMPrecond 8x8x1, 3 classes, " in log


@pytest.mark.usefixtures("own_cache")
def test_a_published_file_shows_its_terms_once_and_every_log_names_them(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(files["gan"], "ffhq.pkl")
    shown = []
    for outdir in ("first", "second"):
        source = ["--gan-pkl=ffhq.pkl", f"--teacher={files['teacher']}", "--metrics=none", f"--outdir={outdir}"]
        result = invoke("--kind=di", *source, "--device=cpu", "--batch=4", "--kimg=0.004")
        assert result.exit_code == 0, result.output
        shown.append(result.output.count("Terms of https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/"))
        (folder,) = (tmp_path / outdir).iterdir()
        (line,) = [line for line in (folder / "log.txt").read_text().splitlines() if "ffhq.pkl: G (" in line]
        assert line.endswith("; NVIDIA Source Code License, non-commercial use only (stylegan2-ada-pytorch).")
    assert shown == [1, 0]


# The comparison.


def run_compare(*arguments: object) -> Result:
    return CliRunner().invoke(compare.main, [str(argument) for argument in arguments])


def test_a_gan_compared_with_itself(files: dict[str, str], tmp_path: Path) -> None:
    result = run_compare(files["gan"], files["gan"], f"--outdir={tmp_path}", "--num=24", "--columns=6", "--device=cpu")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "compare.json").read_text())
    assert (report["pixel_distance"], report["feature_distance"]) == (0, 0)
    with Image.open(tmp_path / "compare.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (8 * 8, 6 * 8)  # four rows of each, in turn
    np.testing.assert_array_equal(pixels[:8], pixels[8:16])
    np.testing.assert_array_equal(pixels[48:56], pixels[56:])
    assert (pixels[:8] != pixels[16:24]).any()


def test_what_the_figures_mean(files: dict[str, str], tmp_path: Path) -> None:
    """Distances by hand, at every truncation; at psi 0 no image depends on its latent."""
    other = tmp_path / "other.pkl"
    save_snapshot(other, gan_networks(seed=7), extras={}, metadata={})
    result = run_compare(files["gan"], other, f"--outdir={tmp_path}", "--num=16", "--psi=0,0.5,1", "--device=cpu")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "compare.json").read_text())
    assert [row["psi"] for row in report["truncation"]] == [0, 0.5, 1]
    old, new = (load_generator(path).network for path in (files["gan"], other))
    rng = SampleRandom(0, "compare", 0, range(16))
    labels = torch.nn.functional.one_hot(torch.arange(16) % 3, 3).float()
    z = rng.normal(8)
    for row in report["truncation"]:
        first, second = (
            network(z, labels, truncation_psi=row["psi"], noise_mode="const").clamp(-1, 1) for network in (old, new)
        )
        assert row["pixel_distance"] == pytest.approx(float((first - second).abs().mean()), rel=1e-4)
        assert row["spread_old"] == pytest.approx(float(first.std(0, correction=0).mean()), rel=1e-4, abs=1e-6)
        assert row["spread_new"] == pytest.approx(float(second.std(0, correction=0).mean()), rel=1e-4, abs=1e-6)
    assert report["truncation"][0]["spread_old"] < 1e-6
    assert report["truncation"][2]["spread_old"] > 0.01
    assert report["pixel_distance"] == report["truncation"][2]["pixel_distance"]
    assert report["feature_distance"] > 0
    assert f"{report['truncation'][1]['pixel_distance']:.4f}" in result.output


def test_what_cannot_be_compared(files: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.pkl"
    save_snapshot(other, gan_networks(resolution=16), extras={}, metadata={})
    result = run_compare(files["gan"], other, f"--outdir={tmp_path / 'out'}", "--device=cpu")
    assert result.exit_code == 2
    assert "do not match: resolution 8 against 16" in result.output
    result = run_compare(files["gan"], files["teacher"], f"--outdir={tmp_path / 'out'}", "--device=cpu")
    assert "found a diffusion teacher" in result.output
    result = run_compare(files["gan"], files["gan"], "--psi=a", f"--outdir={tmp_path / 'out'}", "--device=cpu")
    assert "--psi=a" in result.output
    assert not (tmp_path / "out").exists()


