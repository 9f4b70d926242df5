"""Pipelines of diffusers in use: trainings, a hub, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import generate
import train
from stylegan_di import load_generator
from stylegan_di.dnnlib.util import UserError
from stylegan_di.snapshots.pipelines import TeacherOptions, read_autoencoder, read_pipeline
from stylegan_di.snapshots.teacher_files import open_teacher
from tests import tiny_pipelines as tiny
from tests.hub import Hub, serve
from tests.test_resume import killed_run, last_state, same_bits
from tests.tiny import save_gan, save_teacher

pytestmark = pytest.mark.usefixtures("small_grids")

ROOT = Path(__file__).resolve().parent.parent
REDUCED = ["--device=cpu", "--batch=4", "--kimg=0.008", "--tick=0.004", "--snap=1", "--metrics=none"]


# In use.


def run(outdir: Path, *arguments: str) -> Path:
    result = CliRunner().invoke(train.main, ["--kind=di", *REDUCED, *arguments, f"--outdir={outdir}"])
    assert result.exit_code == 0, result.output + str(result.exception)
    return next(outdir.iterdir())


def test_a_gan_is_refined_by_an_edm2_network_of_latents(tmp_path: Path) -> None:
    network = save_teacher(tmp_path / "edm2.pkl", precond="edm2", img_channels=4)
    tiny.autoencoder().save_pretrained(str(tmp_path / "vae"))
    gan = save_gan(tmp_path / "gan.pkl", resolution=16)  # latents of 8x8
    options = [f"--teacher={network}", f"--autoencoder={tmp_path / 'vae'}"]
    folder = run(tmp_path / "runs", *options, f"--gan-pkl={gan}")
    line = json.loads((folder / "stats.jsonl").read_text().splitlines()[-1])
    assert 0 < line["Gradient/student"]["mean"] < float("inf")
    assert "resolution 16 against 8" in failed(*options, f"--gan-pkl={save_gan(tmp_path / 'small.pkl')}")


def test_a_critic_on_features_refuses_a_transformer_before_it_draws_samples(tmp_path: Path) -> None:
    teacher = tiny.save_dit(tmp_path / "p")
    for more in ([], ["--dry-run"]):
        told = failed(f"--teacher={teacher}", "--student=decoder", "--critic=features", "--data=teacher:8", *more)
        assert told.strip() == (
            f"Error: --critic=features judges by the features of a U-Net's encoder, which --teacher={teacher}, a "
            "DiTTransformer2DModel, has not: choose another teacher, or leave --critic out"
        )


@pytest.mark.parametrize("kind", ["classes", "texts", "transformer"])
def test_a_gan_is_refined_and_its_snapshot_needs_no_teacher(kind: str, tmp_path: Path) -> None:
    teacher = {
        "classes": lambda: tiny.save_unet(tmp_path / "p", num_class_embeds=3),
        "texts": lambda: tiny.save_text_to_image(tmp_path / "p"),
        "transformer": lambda: tiny.save_dit(tmp_path / "p"),
    }[kind]()
    options = {"texts": ["--prompt=a|b|c", "--guidance=2", "--checkpointing=true"], "transformer": ["--guidance=2"]}
    gan = save_gan(tmp_path / "gan.pkl")
    folder = run(tmp_path / "runs", f"--teacher={teacher}", f"--gan-pkl={gan}", *options.get(kind, []))
    shutil.rmtree(teacher)
    assert "in diffusers' layout." in (folder / "log.txt").read_text()
    snapshot = folder / "network-snapshot-000000.pkl"
    before, after = load_generator(gan), load_generator(snapshot)
    assert not torch.equal(before.network.mapping.fc0.weight, after.network.mapping.fc0.weight)
    drawn = ["--seeds=0-3", f"--outdir={tmp_path / 'out'}", f"--network={snapshot}", "--device=cpu"]
    result = CliRunner().invoke(generate.main, drawn)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    teacher, gan = tiny.save_unet(tmp_path / "p", num_class_embeds=3), save_gan(tmp_path / "gan.pkl")
    arguments = ["--kind=di", *REDUCED, f"--teacher={teacher}", f"--gan-pkl={gan}", "--state=1"]
    whole = run(tmp_path / "whole", *arguments)
    killed = killed_run(tmp_path / "killed", 1, *arguments)
    result = CliRunner().invoke(train.main, [f"--resume={killed}"])
    assert result.exit_code == 0, result.output
    tensors = last_state(killed).tensors
    assert [name for name, value in last_state(whole).tensors.items() if not same_bits(value, tensors[name])] == []


# A hub.


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one pipeline."""
    folder = tiny.save_unet(tmp_path / "served", num_class_embeds=3)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "pipeline.py").write_text("raise SystemExit\n")
    with serve() as hub:
        hub.repos["owner/name"] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        yield hub


IN_ONE_PROCESS = """
import json, sys
from click.testing import CliRunner
import train
results = [CliRunner().invoke(train.main, command) for command in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.output] for result in results]))
"""


def test_a_pipeline_of_a_hub_is_fetched_without_pickles_and_code(hub: Hub, tmp_path: Path) -> None:
    gan = save_gan(tmp_path / "gan.pkl")
    places = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    arguments = ["--kind=di", *REDUCED, f"--gan-pkl={gan}", f"--outdir={tmp_path / 'runs'}"]
    commands = [[*arguments, f"--teacher=hf:owner/{name}"] for name in ("name", "other")]
    process = [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(commands)]
    done = subprocess.run(process, capture_output=True, text=True, check=False, env=os.environ | places, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    trained, refused = json.loads(done.stdout)
    assert trained[0] == 0, trained
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert set(hub.given) == {"model_index.json", "unet/config.json", weights, "scheduler/scheduler_config.json"}
    assert refused[0] == 2
    assert "hf:owner/other could not be downloaded" in refused[1]
    assert "Traceback" not in refused[1]


# Refusals.


def test_pickles_and_foreign_code_are_refused_by_name(tmp_path: Path) -> None:
    folder = tiny.save_unet(tmp_path / "p")
    tiny.edit(folder / "model_index.json", unet=["my_unet", "MyUNet"])
    assert "its unet is a MyUNet of my_unet" in tiny.refused(folder)
    tiny.edit(folder / "model_index.json", unet=["diffusers", "AutoencoderKL"])
    assert "its unet is a AutoencoderKL of diffusers" in tiny.refused(folder)
    tiny.edit(folder / "model_index.json", unet=["diffusers", "UNet2DModel"], scheduler=["diffusers", "UNet2DModel"])
    assert "there is no scheduler UNet2DModel in diffusers" in tiny.refused(folder)
    tiny.edit(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    (folder / "unet" / "adapter_config.json").write_text("{}")
    assert "holds adapters of another model" in tiny.refused(folder)
    (folder / "unet" / "adapter_config.json").unlink()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "diffusion_pytorch_model.bin, a pickle, which can run code when it is opened" in tiny.refused(folder)
    weights.with_suffix(".bin").unlink()
    assert "no .safetensors in" in tiny.refused(folder)


@pytest.mark.parametrize("missing", ["diffusers", "transformers"])
def test_a_missing_library_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_text_to_image(tmp_path / "p")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f'needs the package {missing}, which is not installed: pip install "'):
        open_teacher(str(folder), tiny.text())


def test_damaged_pipelines_are_refused(tmp_path: Path) -> None:
    folder = tiny.save_unet(tmp_path / "p")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    good = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({**good, "conv_in.bias": torch.full([8], float("nan"))}, weights)
    assert "NaN or infinite numbers in conv_in.bias" in tiny.refused(folder)
    safetensors.torch.save_file({k: v for k, v in good.items() if k != "conv_in.bias"}, weights)
    assert "has missing keys: conv_in.bias" in tiny.refused(folder)
    weights.write_bytes(b"nothing")
    assert "UNet2DModel in" in tiny.refused(folder)
    tiny.edit(folder / "unet" / "config.json", block_out_channels=[2**14, 2**15])
    safetensors.torch.save_file(good, weights)
    assert re.search(r"unet calls for \d+ numbers, and its files hold fewer", tiny.refused(folder))
    tiny.edit(folder / "unet" / "config.json", block_out_channels=[8, 16], layers_per_block=10**9)
    assert "they call for far more layers than the file has weights" in tiny.refused(folder)
    tiny.edit(folder / "unet" / "config.json", sample_size=10**6)
    assert "sample_size is 1000000 in its config.json; a number from 1 to 8192 is needed" in tiny.refused(folder)
    tiny.edit(folder / "unet" / "config.json", sample_size=None)
    assert "sample_size is None in its config.json" in tiny.refused(folder)
    (folder / "unet" / "config.json").write_text("[]")
    assert "holds no JSON object" in tiny.refused(folder)
    (folder / "unet" / "config.json").write_text(f'{{"x": [{"0, " * 2**19}0]}}')
    assert "bytes; up to 1048576 are read" in tiny.refused(folder)
    (folder / "model_index.json").write_text("{")
    assert "cannot be read (JSONDecodeError" in tiny.refused(folder)
    (folder / "model_index.json").unlink()
    assert "no model_index.json in" in tiny.refused(folder)
    with pytest.raises(UserError, match="--autoencoder=nowhere: there is no such folder"):
        read_autoencoder("nowhere")


def test_schedulers_without_levels_and_unknown_predictions_are_refused(tmp_path: Path) -> None:
    folder = tiny.save_unet(tmp_path / "p")
    config = folder / "scheduler" / "scheduler_config.json"
    tiny.edit(config, num_train_timesteps=10**12)
    assert "num_train_timesteps=1000000000000; supported are 1 to 100000" in tiny.refused(folder)
    tiny.edit(config, num_train_timesteps=1000)
    tiny.edit(config, prediction_type="flow")
    assert "prediction_type=flow; supported are epsilon, v_prediction, sample" in tiny.refused(folder)
    tiny.edit(folder / "model_index.json", scheduler=["diffusers", "ScoreSdeVeScheduler"])
    assert "a ScoreSdeVeScheduler tells no alphas_cumprod" in tiny.refused(folder)


def test_options_that_a_pipeline_has_no_use_for_are_refused(tmp_path: Path) -> None:
    plain, texts = tiny.save_unet(tmp_path / "u"), tiny.save_text_to_image(tmp_path / "t")
    assert "--prompt=a is for a text-to-image pipeline" in tiny.refused(plain, prompt="a")
    assert "--negative-prompt=a is for a text-to-image pipeline" in tiny.refused(plain, negative_prompt="a")
    assert "--guidance=2: " in tiny.refused(plain, guidance=2.0)
    assert "is a text-to-image pipeline: give --prompt" in tiny.refused(texts)
    assert "a prompt is empty" in tiny.refused(texts, prompt="a||b")
    assert "has no effect without --guidance" in tiny.refused(texts, prompt="a", negative_prompt="b")
    assert "has 7 tokens" in tiny.refused(texts, prompt="a b c d e")
    tiny.autoencoder().save_pretrained(str(tmp_path / "vae"))
    assert "has 1 channels and" in tiny.refused(plain, autoencoder=str(tmp_path / "vae"))
    assert "is a UNet2DModel; accepted are" in tiny.refused(plain, autoencoder=str(plain / "unet"))
    tiny.edit(texts / "unet" / "config.json", addition_embed_type="text_time")
    assert "model_index.json names no text_encoder_2" in tiny.refused(texts, prompt="a")
    tiny.edit(texts / "unet" / "config.json", addition_embed_type="image")
    assert "wants more than a text (addition_embed_type=image)" in tiny.refused(texts, prompt="a")
    network = save_teacher(tmp_path / "edm.pkl")
    assert "--prompt=a is for a text-to-image pipeline" in tiny.refused(network, prompt="a")
    assert "has 1 channels, not those of its latents" in tiny.refused(network, autoencoder=str(tmp_path / "vae"))


def failed(*arguments: str) -> str:
    result = CliRunner().invoke(train.main, ["--kind=di", *REDUCED, *arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    teacher, gan = tiny.save_unet(tmp_path / "u"), f"--gan-pkl={save_gan(tmp_path / 'gan.pkl')}"
    outdir = f"--outdir={tmp_path / 'runs'}"
    assert "do not match: classes 0 against 3" in failed(f"--teacher={teacher}", gan, outdir)
    assert "cannot be distilled to one step; give --gan-pkl" in failed(f"--teacher={teacher}", outdir)
    latents = [f"--teacher={tiny.save_dit(tmp_path / 'd')}", outdir]
    assert "give --gan-pkl, a GAN to refine" in failed(*latents)
    assert "accepted is hf:owner/name" in failed("--teacher=hf:name", gan, outdir)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_fetches_nothing(tmp_path: Path) -> None:
    arguments = ["--kind=di", *REDUCED, "--teacher=hf:owner/name", f"--gan-pkl={save_gan(tmp_path / 'gan.pkl')}"]
    result = CliRunner().invoke(train.main, [*arguments, "--prompt=a cat", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["prompt"] == "a cat"


def test_a_pipelines_shape_is_that_of_the_students_images(tmp_path: Path) -> None:
    shape = read_pipeline(str(tiny.save_text_to_image(tmp_path / "t")), tiny.text(prompt="a|b")).shape(
        tiny.text(prompt="a|b")
    )
    assert (shape.resolution, shape.channels, shape.classes) == (8, 1, 2)
    shape = read_pipeline(str(tiny.save_dit(tmp_path / "d")), TeacherOptions()).shape(TeacherOptions())
    assert (shape.resolution, shape.channels, shape.classes) == (8, 1, 3)
