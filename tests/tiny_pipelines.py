"""Pipelines in diffusers' layout small enough to build in a test: random weights, texts of single letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.snapshots.pipelines import TeacherOptions
from stylegan_di.snapshots.teacher_files import open_teacher

diffusers = pytest.importorskip("diffusers", reason="pipelines are read by diffusers, which is not installed")

SIDE = 8
UNET: dict[str, Any] = dict(
    sample_size=SIDE, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=8,
)  # fmt: skip
TEXT_UNET: dict[str, Any] = dict(
    sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=4, cross_attention_dim=12,
)  # fmt: skip
DIT: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
    num_embeds_ada_norm=3, norm_num_groups=4,
)  # fmt: skip


def randomised(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """No layer is left at zero, where a network starts and would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def save(folder: Path, parts: dict[str, Any], **more: Any) -> Path:
    """Writes a pipeline: each part by its name, and its model_index.json."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": "DDPMPipeline", "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        part.save_pretrained(str(folder / name))
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index | more))
    return folder


def scheduler(prediction: str = "epsilon", name: str = "DDPMScheduler", **options: Any) -> Any:
    """One without clipping, for comparisons."""
    if name.startswith("FlowMatch"):
        return diffusers.FlowMatchEulerDiscreteScheduler(**options)
    clip = {} if name.startswith(("Euler", "DPM")) else {"clip_sample": False}
    return getattr(diffusers, name)(prediction_type=prediction, **clip, **options)


def save_unet(folder: Path, levels: Any = None, **options: Any) -> Path:
    """An unconditional pipeline, or a class-conditional one with num_class_embeds."""
    torch.manual_seed(0)
    unet = randomised(diffusers.UNet2DModel(**(UNET | options)))
    return save(folder, {"unet": unet, "scheduler": levels or scheduler()})


def autoencoder(tiny: bool = False, **options: Any) -> Any:
    """One of latents half the size of images."""
    torch.manual_seed(1)
    if tiny:
        widths: dict[str, Any] = dict(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), in_channels=1, out_channels=1,
        )  # fmt: skip
        return diffusers.AutoencoderTiny(**widths, **options).eval()
    blocks: dict[str, Any] = dict(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, in_channels=1,
        out_channels=1,
    )  # fmt: skip
    return diffusers.AutoencoderKL(**(blocks | options)).eval()


def save_dit(folder: Path, levels: Any = None) -> Path:
    torch.manual_seed(0)
    transformer = randomised(diffusers.DiTTransformer2DModel(**DIT))
    return save(folder, {"transformer": transformer, "vae": autoencoder(), "scheduler": levels or scheduler()})


def text_encoder(folder: Path, projection: int | None = None) -> tuple[Any, Any]:
    """A CLIP text model, with a projection of its pooled output if asked, and its tokenizer of single letters."""
    transformers = pytest.importorskip(
        "transformers", reason="texts are encoded by transformers, which is not installed"
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=6, pad_token="<|endoftext|>"
    )
    torch.manual_seed(2)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
        projection_dim=projection or 512,
    )  # fmt: skip
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return cls(config).eval(), tokenizer


def save_sdxl(folder: Path) -> Path:
    """Two text encoders, a pooled text and sizes, as SDXL has them."""
    first, second = text_encoder(folder / "made"), text_encoder(folder / "made", projection=10)
    torch.manual_seed(0)
    more: dict[str, Any] = dict(
        cross_attention_dim=24, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )  # fmt: skip
    unet = randomised(diffusers.UNet2DConditionModel(**(TEXT_UNET | more)))
    parts = {
        "unet": unet, "vae": autoencoder(), "scheduler": scheduler(name="EulerDiscreteScheduler"),
        "text_encoder": first[0], "tokenizer": first[1], "text_encoder_2": second[0], "tokenizer_2": second[1],
    }  # fmt: skip
    return save(folder, parts, _class_name="StableDiffusionXLPipeline")


def save_text_to_image(folder: Path, levels: Any = None, tiny: bool = False, **options: Any) -> Path:
    encoder, tokenizer = text_encoder(folder / "made")
    torch.manual_seed(0)
    unet = randomised(diffusers.UNet2DConditionModel(**(TEXT_UNET | options)))
    parts = {"unet": unet, "vae": autoencoder(tiny), "text_encoder": encoder, "tokenizer": tokenizer}
    return save(folder, parts | {"scheduler": levels or scheduler()}, safety_checker=[None, None])


def text(**given: Any) -> TeacherOptions:
    return TeacherOptions(**({"prompt": "a b"} | given))


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refusal:
        open_teacher(str(folder), TeacherOptions(**options))
    return str(refusal.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
