"""Pipelines of diffusers as teachers: their D(x; sigma) is what diffusers' own schedulers compute."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.edm2 import LATENTS
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.snapshots.pipelines import TeacherOptions
from stylegan_di.snapshots.teacher_files import open_teacher
from stylegan_di.spaces import latents
from stylegan_di.spaces.latents import Latents
from tests import tiny_pipelines as tiny
from tests.tiny import save_teacher

TIMES = [0, 10, 500, 998]


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
    tiny.edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    tiny.edit(folder / "transformer" / "config.json", _class_name="Transformer2DModel")
    assert torch.equal(open_teacher(str(folder))(x, sigma), expected)
    tiny.edit(folder / "transformer" / "config.json", norm_type="layer_norm")
    assert "its transformer is a Transformer2DModel of diffusers" in tiny.refused(folder)


def test_older_names_of_weights_are_known(tmp_path: Path) -> None:
    """Those of the autoencoder's attention in older files, and CLIP's stored positions and prefix."""
    folder, images = tiny.save_text_to_image(tmp_path / "p"), torch.ones(1, 1, 8, 8)
    before = open_teacher(str(folder), tiny.text())
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
    after = open_teacher(str(folder), tiny.text())
    assert torch.equal(after.space.encode(images), before.space.encode(images))
    assert torch.equal(after.texts.tokens, before.texts.tokens)


def test_texts_are_encoded_as_clip_does(tmp_path: Path) -> None:
    folder = tiny.save_text_to_image(tmp_path / "p")
    teacher = open_teacher(str(folder), tiny.text())
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
    teacher = open_teacher(str(folder), tiny.text(prompt="a b", negative_prompt=negative, guidance=2.0))
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
    single = {word: open_teacher(folder, tiny.text(prompt=word)) for word in ("a", "b c", "d")}
    both = open_teacher(folder, tiny.text(prompt="a| b c"))
    assert both.label_dim == 2
    labelled = both(x, sigma, torch.eye(2)[[1, 0]])
    torch.testing.assert_close(labelled[:1], single["b c"](x, sigma)[:1])
    torch.testing.assert_close(labelled[1:], single["a"](x, sigma)[1:])
    guided = open_teacher(folder, tiny.text(prompt="a", negative_prompt="d", guidance=4.0))
    null, conditional = single["d"](x, sigma), single["a"](x, sigma)
    torch.testing.assert_close(guided(x, sigma), null + 4 * (conditional - null), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided.trainable_copy()(x, sigma), conditional)  # a fake score is not guided
    assert not torch.allclose(both(x, sigma), labelled)  # None is the null label


def test_features_are_the_down_blocks_outputs(tmp_path: Path) -> None:
    for folder, options, side, channels in (
        (tiny.save_unet(tmp_path / "u"), TeacherOptions(), 8, 1),
        (tiny.save_text_to_image(tmp_path / "t"), tiny.text(), 4, 4),
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
def test_latents_are_the_scaled_means_and_gradients_run_back(
    small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks: two images at a time, and a last one alone."""
    monkeypatch.setattr(latents, "CHUNK", 2 * 8**2)
    teacher = open_teacher(str(tiny.save_text_to_image(tmp_path / "p", tiny=small)), tiny.text())
    space, original = teacher.space, tiny.autoencoder(small)
    assert isinstance(space, Latents)
    assert (space.resolution, space.channels) == (4, 4)
    images = torch.randn([5, 1, 8, 8], generator=torch.Generator().manual_seed(0), requires_grad=True)
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
        teacher = open_teacher(str(folder), tiny.text(autoencoder=str(tmp_path / f"vae{index}")))
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
    assert len(LATENTS[0]) == len(LATENTS[1]) == 4


def test_a_fake_score_starts_as_its_teacher_and_shares_the_autoencoder(tmp_path: Path) -> None:
    teacher = open_teacher(str(tiny.save_text_to_image(tmp_path / "p")), tiny.text(checkpointing=True))
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
