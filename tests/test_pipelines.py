"""Pipelines of diffusers as teachers: their D(x; sigma) is what diffusers' own schedulers compute."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import generate
import train
from stylegan_di import load_generator
from stylegan_di.dnnlib.util import UserError
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.snapshots.pipelines import TeacherOptions, read_autoencoder, read_pipeline
from stylegan_di.snapshots.teacher_files import EDM2_LATENTS, open_teacher
from stylegan_di.spaces.latents import CHUNK, Latents
from tests import tiny_pipelines as tiny
from tests.test_resume import killed_run, last_state, same_bits
from tests.tiny import save_gan, save_teacher

ROOT = Path(__file__).resolve().parent.parent
TIMES = [0, 10, 500, 998]
REDUCED = ["--device=cpu", "--batch=4", "--kimg=0.008", "--tick=0.004", "--snap=1", "--metrics=none"]


def text(**given: Any) -> TeacherOptions:
    return TeacherOptions(**({"prompt": "a b"} | given))


# D(x; sigma) against the schedulers.


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_d_is_the_schedulers_prediction_of_the_clean_image(name: str, prediction: str, tmp_path: Path) -> None:
    scheduler = tiny.scheduler(prediction, name)
    teacher = open_teacher(str(tiny.save_unet(tmp_path / "p", scheduler))).double()
    scheduler.set_timesteps(1000)
    x_t = torch.randn([1, 1, tiny.SIDE, tiny.SIDE], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for time in TIMES:
        a = scheduler.alphas_cumprod[time].double()
        sigma = ((1 - a) / a).sqrt()
        raw = teacher.network(x_t, time).sample
        expected = scheduler.step(raw, time, x_t).pred_original_sample
        found = teacher(x_t / a.sqrt(), sigma)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(sigma)))


def test_each_sample_has_its_own_noise_level_and_times_between_two_are_interpolated(tmp_path: Path) -> None:
    teacher = open_teacher(str(tiny.save_unet(tmp_path / "p")))
    levels = teacher.times.levels
    between = (levels[499] * levels[500]).sqrt().float()  # half way in ln sigma
    coefficients = teacher.times.coefficients(torch.stack([levels[0].float(), between, levels[-1].float()]))
    torch.testing.assert_close(coefficients.c_noise, torch.tensor([0.0, 499.5, 999.0]), rtol=0, atol=1e-3)
    assert (teacher.sigma_min, teacher.sigma_max) == (float(levels[0]), float(levels[-1]))
    x = torch.randn([2, 1, tiny.SIDE, tiny.SIDE], generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 7.0])
    together = teacher(x, sigma)
    for index in range(2):
        torch.testing.assert_close(
            together[index : index + 1], teacher(x[index : index + 1], sigma[index]), rtol=1e-4, atol=1e-4
        )
    assert torch.equal(teacher.round_sigma(sigma), sigma)


def test_flow_matching_is_the_last_euler_step(tmp_path: Path) -> None:
    scheduler = tiny.scheduler(name="FlowMatchEulerDiscreteScheduler", shift=2.0)
    teacher = open_teacher(str(tiny.save_unet(tmp_path / "p", scheduler))).double()
    x_t = torch.randn([1, 1, tiny.SIDE, tiny.SIDE], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        scheduler.set_timesteps(sigmas=[t])
        (time,), t_used = scheduler.timesteps, scheduler.sigmas[0].double()  # after the shift
        raw = teacher.network(x_t, time[None].double()).sample
        expected = scheduler.step(raw, time, x_t).prev_sample  # to t = 0, the clean image
        found = teacher(x_t / (1 - t_used), t_used / (1 - t_used))
        torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)
    first, last = 2 * 0.001 / 1.001, 2 * 0.999 / 1.999
    assert teacher.sigma_min == pytest.approx(first / (1 - first), rel=1e-4)
    assert teacher.sigma_max == pytest.approx(last / (1 - last), rel=1e-2)


def test_a_teacher_of_zero_terminal_snr_has_finite_levels(tmp_path: Path) -> None:
    scheduler = tiny.scheduler("v_prediction", "DDIMScheduler", rescale_betas_zero_snr=True)
    teacher = open_teacher(str(tiny.save_unet(tmp_path / "p", scheduler)))
    assert len(teacher.times.levels) == 999
    assert 1e3 < teacher.sigma_max < float("inf")


# Labels, texts, guidance.


def test_classes_are_labels_and_the_null_label_adds_nothing(tmp_path: Path) -> None:
    teacher = open_teacher(str(tiny.save_unet(tmp_path / "p", num_class_embeds=3)))
    original = tiny.diffusers.UNet2DModel.from_pretrained(str(tmp_path / "p" / "unet"))
    assert teacher.label_dim == 3
    x, sigma = torch.randn([3, 1, 8, 8], generator=torch.Generator().manual_seed(0)), torch.full([3], 2.0)
    c_skip, c_out, c_in, time = teacher.times.coefficients(sigma[:1])
    raw = original(c_in * x, time.expand(3), class_labels=torch.tensor([2, 0, 1])).sample
    labels = torch.eye(3)[[2, 0, 1]]
    torch.testing.assert_close(teacher(x, sigma, labels), c_skip * x + c_out * raw)
    original.class_embedding.weight.data.zero_()
    raw = original(c_in * x, time.expand(3), class_labels=torch.tensor([0, 0, 0])).sample
    torch.testing.assert_close(teacher(x, sigma), c_skip * x + c_out * raw)


def test_a_transformer_has_its_own_null_class_and_drops_its_variance(tmp_path: Path) -> None:
    folder = str(tiny.save_dit(tmp_path / "p"))
    teacher, guided = open_teacher(folder), open_teacher(folder, TeacherOptions(guidance=3.0))
    original = tiny.diffusers.DiTTransformer2DModel.from_pretrained(str(tmp_path / "p" / "transformer")).eval()
    x, sigma = torch.randn([2, 4, 4, 4], generator=torch.Generator().manual_seed(0)), torch.full([2], 2.0)
    c_skip, c_out, c_in, time = teacher.times.coefficients(sigma[:1])
    found, expected = [], []
    for labels, indices in ((torch.eye(3)[[2, 0]], [2, 0]), (None, [3, 3])):
        raw = original(c_in * x, time.expand(2), class_labels=torch.tensor(indices)).sample[:, :4]
        found.append(teacher(x, sigma, labels))
        expected.append(c_skip * x + c_out * raw)
    torch.testing.assert_close(found, expected)
    conditional, null = found
    torch.testing.assert_close(guided(x, sigma, torch.eye(3)[[2, 0]]), null + 3 * (conditional - null))
    with pytest.raises(UserError, match="has no features for a critic"):
        teacher.features(x, sigma)


def test_older_layouts_and_names_are_known(tmp_path: Path) -> None:
    x, sigma = torch.randn([1, 1, 8, 8], generator=torch.Generator().manual_seed(0)), torch.ones(1)
    folder = tiny.save_unet(tmp_path / "u")
    expected = open_teacher(str(folder))(x, sigma)
    for name in ("unet", "scheduler"):
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()
    assert torch.equal(open_teacher(str(folder))(x, sigma), expected)
    folder = tiny.save_dit(tmp_path / "d")
    x = torch.randn([1, 4, 4, 4], generator=torch.Generator().manual_seed(0))
    expected = open_teacher(str(folder))(x, sigma)
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(folder / "transformer" / "config.json", _class_name="Transformer2DModel")
    assert torch.equal(open_teacher(str(folder))(x, sigma), expected)
    edit(folder / "transformer" / "config.json", norm_type="layer_norm")
    assert "its transformer is a Transformer2DModel of diffusers" in refused(folder)


def test_older_names_of_weights_are_known(tmp_path: Path) -> None:
    """Those of the autoencoder's attention in older files, and CLIP's stored positions and prefix."""
    folder, images = tiny.save_text_to_image(tmp_path / "p"), torch.ones(1, 1, 8, 8)
    before = open_teacher(str(folder), text())
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    renamed = {}
    for name, value in weights.items():
        for new, former in old.items():
            name = name.replace(new, former)
        renamed[name] = value
    assert len(renamed.keys() - weights.keys()) == 16
    safetensors.torch.save_file(renamed, path)
    path = folder / "text_encoder" / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": v for name, v in safetensors.torch.load_file(path).items()
    }
    weights["text_model.embeddings.position_ids"] = torch.arange(6)[None]
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    after = open_teacher(str(folder), text())
    assert torch.equal(after.space.encode(images), before.space.encode(images))
    assert torch.equal(after.texts.tokens, before.texts.tokens)


def test_texts_are_encoded_as_clip_does(tmp_path: Path) -> None:
    folder = tiny.save_text_to_image(tmp_path / "p")
    teacher = open_teacher(str(folder), text())
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    encoder = CLIPTextModel.from_pretrained(str(folder / "text_encoder")).eval()
    tokens = tokenizer(["", "a b"], padding="max_length", max_length=6, return_tensors="pt").input_ids
    assert tokens[1].tolist() == [52, 26, 27, 53, 53, 53]  # start, a</w>, b</w>, end, and the end as padding
    with torch.no_grad():
        torch.testing.assert_close(teacher.texts.tokens, encoder(tokens).last_hidden_state)
    original = tiny.diffusers.UNet2DConditionModel.from_pretrained(str(folder / "unet"))
    x, sigma = torch.randn([2, 4, 4, 4], generator=torch.Generator().manual_seed(0)), torch.full([2], 2.0)
    c_skip, c_out, c_in, time = teacher.times.coefficients(sigma[:1])
    raw = original(c_in * x, time.expand(2), encoder_hidden_states=teacher.texts.tokens[1:].expand(2, -1, -1)).sample
    torch.testing.assert_close(teacher(x, sigma), c_skip * x + c_out * raw)
    assert teacher.label_dim == 0


@pytest.mark.parametrize("negative", [None, "d"])
def test_sdxls_two_encoders_and_sizes_are_those_of_its_pipeline(negative: str | None, tmp_path: Path) -> None:
    folder = tiny.save_sdxl(tmp_path / "p")
    teacher = open_teacher(str(folder), text(prompt="a b", negative_prompt=negative, guidance=2.0))
    pipeline = tiny.diffusers.StableDiffusionXLPipeline.from_pretrained(str(folder))
    with torch.no_grad():
        tokens, null, pooled, null_pooled = pipeline.encode_prompt(
            "a b", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negative
        )
    x, sigma = torch.randn([2, 4, 4, 4], generator=torch.Generator().manual_seed(0)), torch.full([2], 2.0)
    c_skip, c_out, c_in, time = teacher.times.coefficients(sigma[:1])
    sizes = pipeline._get_add_time_ids((8, 8), (0, 0), (8, 8), torch.float32, text_encoder_projection_dim=10)
    assert sizes.tolist() == [[8, 8, 0, 0, 8, 8]]
    denoised = []
    for hidden, embedded in ((tokens, pooled), (null, null_pooled)):
        added = {"text_embeds": embedded.expand(2, -1), "time_ids": sizes.expand(2, -1)}
        hidden = hidden.expand(2, -1, -1)
        raw = pipeline.unet(
            c_in * x, time.expand(2), encoder_hidden_states=hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        denoised.append(c_skip * x + c_out * raw)
    conditional, unconditional = denoised
    torch.testing.assert_close(teacher(x, sigma), unconditional + 2 * (conditional - unconditional))
    assert not torch.allclose(conditional, unconditional)
    torch.testing.assert_close(teacher.trainable_copy()(x, sigma), conditional)


def test_prompts_are_classes_and_guidance_leads_away_from_the_negative_one(tmp_path: Path) -> None:
    folder = str(tiny.save_text_to_image(tmp_path / "p"))
    x, sigma = torch.randn([2, 4, 4, 4], generator=torch.Generator().manual_seed(0)), torch.full([2], 2.0)
    single = {word: open_teacher(folder, text(prompt=word)) for word in ("a", "b c", "d")}
    both = open_teacher(folder, text(prompt="a| b c"))
    assert both.label_dim == 2
    labelled = both(x, sigma, torch.eye(2)[[1, 0]])
    torch.testing.assert_close(labelled[:1], single["b c"](x, sigma)[:1])
    torch.testing.assert_close(labelled[1:], single["a"](x, sigma)[1:])
    guided = open_teacher(folder, text(prompt="a", negative_prompt="d", guidance=4.0))
    null, conditional = single["d"](x, sigma), single["a"](x, sigma)
    torch.testing.assert_close(guided(x, sigma), null + 4 * (conditional - null), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided.trainable_copy()(x, sigma), conditional)  # a fake score is not guided
    assert not torch.allclose(both(x, sigma), labelled)  # None is the null label


def test_features_are_the_down_blocks_outputs(tmp_path: Path) -> None:
    for folder, options, side, channels in (
        (tiny.save_unet(tmp_path / "u"), TeacherOptions(), 8, 1),
        (tiny.save_text_to_image(tmp_path / "t"), text(), 4, 4),
    ):
        teacher = open_teacher(str(folder), options)
        x = torch.randn([2, channels, side, side], generator=torch.Generator().manual_seed(0), requires_grad=True)
        with mock.patch.object(teacher.network.mid_block, "forward", wraps=teacher.network.mid_block.forward) as middle:
            teacher(x, torch.ones(2))
        found = teacher.features(x, torch.ones(2))
        assert [tuple(each.shape[1:]) for each in found] == [(8, side, side), (16, side // 2, side // 2)]
        torch.testing.assert_close(found[-1], middle.call_args.args[0])
        (gradient,) = torch.autograd.grad(found[-1].sum(), x)
        assert gradient.abs().max() > 0


# Latents.


@pytest.mark.parametrize("small", [False, True], ids=["AutoencoderKL", "AutoencoderTiny"])
def test_latents_are_the_scaled_means_and_gradients_run_back(small: bool, tmp_path: Path) -> None:
    teacher = open_teacher(str(tiny.save_text_to_image(tmp_path / "p", tiny=small)), text())
    space, original = teacher.space, tiny.autoencoder(small)
    assert isinstance(space, Latents)
    assert (space.resolution, space.channels) == (4, 4)
    images = torch.randn([CHUNK + 2, 1, 8, 8], generator=torch.Generator().manual_seed(0), requires_grad=True)
    encoded = original.encode(images)
    expected = encoded.latents if small else encoded.latent_dist.mean * 0.18215
    found = space.encode(images)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((found * weights).sum(), images)
    (plain,) = torch.autograd.grad((expected * weights).sum(), images)
    torch.testing.assert_close(gradient, plain)
    with torch.no_grad():
        torch.testing.assert_close(space.encode(images), found)


def test_latents_are_shifted_by_what_the_autoencoder_says(tmp_path: Path) -> None:
    images = torch.randn([1, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    raw = tiny.autoencoder().encode(images).latent_dist.mean.detach()
    folder = tiny.save_text_to_image(tmp_path / "p")
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    per_channel = (raw - torch.tensor(mean).view(4, 1, 1)) / torch.tensor(std).view(4, 1, 1)
    for index, (options, expected) in enumerate(
        [
            (dict(scaling_factor=0.5, shift_factor=0.25), (raw - 0.25) * 0.5),
            (dict(scaling_factor=1.0, latents_mean=mean, latents_std=std), per_channel),
        ]
    ):
        tiny.autoencoder(**options).save_pretrained(str(tmp_path / f"vae{index}"))
        teacher = open_teacher(str(folder), text(autoencoder=str(tmp_path / f"vae{index}")))
        assert teacher.space is not None
        torch.testing.assert_close(teacher.space.encode(images), expected)


def test_edm2s_networks_of_latents_take_an_autoencoder(tmp_path: Path) -> None:
    network = save_teacher(tmp_path / "edm2.pkl", precond="edm2", img_channels=4, label_dim=0)
    tiny.autoencoder().save_pretrained(str(tmp_path / "vae"))
    teacher = open_teacher(str(network), TeacherOptions(autoencoder=str(tmp_path / "vae")))
    assert teacher.space is not None
    images = torch.randn([1, 1, 16, 16], generator=torch.Generator().manual_seed(0))
    raw = tiny.autoencoder().encode(images).latent_dist.mean.detach()
    shift, std = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    expected = (raw - shift.view(4, 1, 1)) / std.view(4, 1, 1) * 0.5
    torch.testing.assert_close(teacher.space.encode(images), expected)
    assert teacher(expected, torch.ones(1)).shape == expected.shape
    assert len(EDM2_LATENTS[0]) == len(EDM2_LATENTS[1]) == 4


# In use.


def test_a_fake_score_starts_as_its_teacher_and_shares_the_autoencoder(tmp_path: Path) -> None:
    teacher = open_teacher(str(tiny.save_text_to_image(tmp_path / "p")), text(checkpointing=True))
    copied = teacher.trainable_copy().requires_grad_(True)
    x, sigma = torch.randn([2, 4, 4, 4], generator=torch.Generator().manual_seed(0)), torch.ones(2)
    assert torch.equal(copied(x, sigma), teacher(x, sigma))
    assert copied.space is teacher.space
    assert copied.network.is_gradient_checkpointing
    copied(x, sigma).square().sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    moved = [parameter for parameter in copied.parameters() if parameter.grad is not None]
    assert len(moved) == len(list(copied.parameters()))


def test_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    folder = str(tiny.save_unet(tmp_path / "p"))
    x = torch.randn([2, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        network = open_teacher(folder, TeacherOptions(checkpointing=checkpointing)).requires_grad_(True)
        network(x, torch.ones(2)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_sampler_runs_on_a_pipeline(tmp_path: Path) -> None:
    teacher = open_teacher(str(tiny.save_unet(tmp_path / "p")))
    images = heun_sampler(teacher, torch.randn([2, 1, 8, 8], generator=torch.Generator().manual_seed(0)), num_steps=3)
    assert images.isfinite().all()


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
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as a hub does, with one pipeline: its address, and the names of the files it gave."""
    folder = tiny.save_unet(tmp_path / "served", num_class_embeds=3)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "pipeline.py").write_text("raise SystemExit\n")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    given: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bytes, **headers: str) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/owner/name/revision/main"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": "owner/name", "sha": "0" * 40, "siblings": siblings, "private": False, "tags": []}
                self.answer(json.dumps(info).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/owner/name/tree/"):
                tree = [{"type": "file", "path": n, "size": len(data), "oid": n} for n, data in files.items()]
                self.answer(json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith("/owner/name/resolve/") and path.split("/", 5)[5] in files:
                name = path.split("/", 5)[5]
                given.append(name)
                self.answer(files[name], ETag=f'"{hash(name)}"', X_Repo_Commit="0" * 40)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", given
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pipeline_of_a_hub_is_fetched_without_pickles_and_code(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, given = hub
    gan = save_gan(tmp_path / "gan.pkl")
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    arguments = ["--kind=di", *REDUCED, f"--gan-pkl={gan}", f"--outdir={tmp_path / 'runs'}"]

    def start(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *arguments, f"--teacher={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    done = start("hf:owner/name")
    assert done.returncode == 0, done.stderr
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert set(given) == {"model_index.json", "unet/config.json", weights, "scheduler/scheduler_config.json"}
    refused = start("hf:owner/other")
    assert refused.returncode == 2
    assert "--teacher=hf:owner/other could not be downloaded" in refused.stderr
    assert "Traceback" not in refused.stderr


# Refusals.


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refusal:
        open_teacher(str(folder), TeacherOptions(**options))
    return str(refusal.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_pickles_and_foreign_code_are_refused_by_name(tmp_path: Path) -> None:
    folder = tiny.save_unet(tmp_path / "p")
    edit(folder / "model_index.json", unet=["my_unet", "MyUNet"])
    assert "its unet is a MyUNet of my_unet" in refused(folder)
    edit(folder / "model_index.json", unet=["diffusers", "AutoencoderKL"])
    assert "its unet is a AutoencoderKL of diffusers" in refused(folder)
    edit(folder / "model_index.json", unet=["diffusers", "UNet2DModel"], scheduler=["diffusers", "UNet2DModel"])
    assert "there is no scheduler UNet2DModel in diffusers" in refused(folder)
    edit(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    (folder / "unet" / "adapter_config.json").write_text("{}")
    assert "holds adapters of another model" in refused(folder)
    (folder / "unet" / "adapter_config.json").unlink()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "diffusion_pytorch_model.bin, a pickle, which can run code when it is opened" in refused(folder)
    weights.with_suffix(".bin").unlink()
    assert "no .safetensors in" in refused(folder)


@pytest.mark.parametrize("missing", ["diffusers", "transformers", "huggingface_hub"])
def test_a_missing_library_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_text_to_image(tmp_path / "p")
    monkeypatch.setitem(sys.modules, missing, None)
    source = "hf:owner/name" if missing == "huggingface_hub" else str(folder)
    with pytest.raises(UserError, match=f"{missing}, which is not installed: pip install diffusers transformers"):
        open_teacher(source, text())


def test_damaged_pipelines_are_refused(tmp_path: Path) -> None:
    folder = tiny.save_unet(tmp_path / "p")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    good = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({**good, "conv_in.bias": torch.full([8], float("nan"))}, weights)
    assert "NaN or infinite numbers in conv_in.bias" in refused(folder)
    safetensors.torch.save_file({k: v for k, v in good.items() if k != "conv_in.bias"}, weights)
    assert "has missing keys: conv_in.bias" in refused(folder)
    weights.write_bytes(b"nothing")
    assert "UNet2DModel in" in refused(folder)
    edit(folder / "unet" / "config.json", sample_size=None)
    assert "sample_size is None in its config.json" in refused(folder)
    (folder / "unet" / "config.json").write_text("[]")
    assert "holds no JSON object" in refused(folder)
    (folder / "model_index.json").write_text("{")
    assert "cannot be read as JSON" in refused(folder)
    (folder / "model_index.json").unlink()
    assert "no model_index.json in" in refused(folder)
    with pytest.raises(UserError, match="--autoencoder=nowhere: there is no such folder"):
        read_autoencoder("nowhere")


def test_schedulers_without_levels_and_unknown_predictions_are_refused(tmp_path: Path) -> None:
    folder = tiny.save_unet(tmp_path / "p")
    config = folder / "scheduler" / "scheduler_config.json"
    edit(config, prediction_type="flow")
    assert "prediction_type=flow; supported are epsilon, v_prediction, sample" in refused(folder)
    edit(folder / "model_index.json", scheduler=["diffusers", "ScoreSdeVeScheduler"])
    assert "a ScoreSdeVeScheduler tells no alphas_cumprod" in refused(folder)


def test_options_that_a_pipeline_has_no_use_for_are_refused(tmp_path: Path) -> None:
    plain, texts = tiny.save_unet(tmp_path / "u"), tiny.save_text_to_image(tmp_path / "t")
    assert "--prompt=a is for a text-to-image pipeline" in refused(plain, prompt="a")
    assert "--negative-prompt=a is for a text-to-image pipeline" in refused(plain, negative_prompt="a")
    assert "--guidance=2: " in refused(plain, guidance=2.0)
    assert "is a text-to-image pipeline: give --prompt" in refused(texts)
    assert "a prompt is empty" in refused(texts, prompt="a||b")
    assert "has no effect without --guidance" in refused(texts, prompt="a", negative_prompt="b")
    assert "has 7 tokens" in refused(texts, prompt="a b c d e")
    tiny.autoencoder().save_pretrained(str(tmp_path / "vae"))
    assert "has 1 channels and" in refused(plain, autoencoder=str(tmp_path / "vae"))
    assert "is a UNet2DModel; accepted are" in refused(plain, autoencoder=str(plain / "unet"))
    edit(texts / "unet" / "config.json", addition_embed_type="text_time")
    assert "model_index.json names no text_encoder_2" in refused(texts, prompt="a")
    edit(texts / "unet" / "config.json", addition_embed_type="image")
    assert "wants more than a text (addition_embed_type=image)" in refused(texts, prompt="a")
    network = save_teacher(tmp_path / "edm.pkl")
    assert "--prompt=a is for a text-to-image pipeline" in refused(network, prompt="a")
    assert "--guidance=2 is for pipelines" in refused(network, guidance=2.0)
    assert "--checkpointing is for pipelines" in refused(network, checkpointing=True)
    assert "has 1 channels, not those of its latents" in refused(network, autoencoder=str(tmp_path / "vae"))


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
    told = failed(*latents, gan, "--critic=features", "--data=teacher:10")
    assert "so its samples are no images" in told
    assert "accepted is hf:owner/name" in failed("--teacher=hf:name", gan, outdir)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_fetches_nothing(tmp_path: Path) -> None:
    arguments = ["--kind=di", *REDUCED, "--teacher=hf:owner/name", f"--gan-pkl={save_gan(tmp_path / 'gan.pkl')}"]
    result = CliRunner().invoke(train.main, [*arguments, "--prompt=a cat", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["prompt"] == "a cat"


def test_a_pipelines_shape_is_that_of_the_students_images(tmp_path: Path) -> None:
    shape = read_pipeline(str(tiny.save_text_to_image(tmp_path / "t")), text(prompt="a|b")).shape(text(prompt="a|b"))
    assert (shape.resolution, shape.channels, shape.classes) == (8, 1, 2)
    shape = read_pipeline(str(tiny.save_dit(tmp_path / "d")), TeacherOptions()).shape(TeacherOptions())
    assert (shape.resolution, shape.channels, shape.classes) == (8, 1, 3)
