"""Converts the networks of ADM (guided-diffusion's .pt files) to ours.

Dhariwal & Nichol 2021, arXiv 2105.05233. A file is a state dict of weights alone: what it does not say, its layout
tells, which is one of four published ones. In EDM's terms (arXiv 2206.00364, table 1) the networks are of iDDPM's form,
D(x; u_j) = x - u_j F(x / sqrt(u_j^2 + 1); M - 1 - j), at M = 1000 noise levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stylegan_di.diffusion import iddpm_levels, linear_levels
from stylegan_di.networks.edm_unets import LayerPlan, plan_decoder, plan_encoder
from stylegan_di.snapshots.blueprint import Blueprint
from stylegan_di.torch_utils.persistence import RefusedFileError

HEAD_CHANNELS = 64
M = 1000
LABELS = "label_emb.weight"
KNOWN = "Known are guided-diffusion's denoisers for 64, 128, 256 and 512 pixels, and EDM's network of ADM's form."
#: Our names of a residual block's and an attention's layers -> ADM's.
RESIDUAL = {
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
    "conv1": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


@dataclass(frozen=True)
class Layout:
    """A published network: its resolution and channel multipliers, and what the weights do not tell.

    `cosine`: iDDPM's noise levels, else DDPM's linear betas; `num_heads`: of every attention, None for one for 64
    channels; `split_first`: whether queries, keys and values are the outermost part of their channels, else heads are.
    """

    resolution: int
    channel_mult: tuple[float, ...]
    cosine: bool = False
    num_heads: int | None = None
    split_first: bool = False


LAYOUTS = (
    Layout(64, (1, 2, 3, 4), cosine=True, split_first=True),
    Layout(128, (1, 1, 2, 3, 4), num_heads=4),
    Layout(256, (1, 1, 2, 2, 4, 4)),
    Layout(512, (0.5, 1, 1, 2, 2, 4, 4)),
)


def to_blueprint(weights: Mapping[str, Tensor], source: str) -> Blueprint:
    """Describes the network of an ADM file, given its state dict.

    Raises:
        RefusedFileError: it is another network than ADM's denoisers.
    """
    try:
        return _blueprint(weights, source)
    except (KeyError, IndexError, RuntimeError) as error:
        found = f"weights of other shapes than guided-diffusion's ({type(error).__name__}: {str(error)[:100]})"
        raise RefusedFileError(source, found, KNOWN) from None


def _blueprint(weights: Mapping[str, Tensor], source: str) -> Blueprint:
    if "time_embed.0.weight" not in weights or "out.2.weight" not in weights:
        raise RefusedFileError(source, "a state dict of another network than a denoiser of guided-diffusion", KNOWN)
    channels = weights["time_embed.0.weight"].shape[1]
    image_channels = weights["input_blocks.0.0.weight"].shape[1]
    if weights["out.2.weight"].shape[0] != 2 * image_channels:
        raise RefusedFileError(source, f"a network of {image_channels} input channels, such as an upsampler", KNOWN)
    outputs = _encoder_channels(weights)
    for layout in LAYOUTS:
        widths, num_blocks = [int(channels * mult) for mult in layout.channel_mult], _num_blocks(layout, len(outputs))
        encoder = plan_encoder(layout.resolution, image_channels, widths[0], widths, num_blocks)
        if outputs == [layer.cout for layer in encoder]:
            return _converted(weights, source, layout, encoder, plan_decoder(encoder, widths, num_blocks))
    raise RefusedFileError(source, f"an encoder of {len(outputs)} layers with {str(outputs)[:150]} channels", KNOWN)


def _encoder_channels(weights: Mapping[str, Tensor]) -> list[int]:
    """The output channels of the encoder's layers."""
    found = [weights["input_blocks.0.0.weight"].shape[0]]
    while (conv := weights.get(f"input_blocks.{len(found)}.0.in_layers.2.weight")) is not None:
        found.append(conv.shape[0])
    return found


def _num_blocks(layout: Layout, layers: int) -> int:
    """The residual blocks a level; with the first convolution or the resampling they make up a level of the encoder."""
    return layers // len(layout.channel_mult) - 1


def _converted(
    weights: Mapping[str, Tensor],
    source: str,
    layout: Layout,
    encoder: Sequence[LayerPlan],
    decoder: Sequence[LayerPlan],
) -> Blueprint:
    renamed = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "out_norm": "out.0", "out_conv": "out.2"}
    renamed[f"enc.{encoder[0].key}"] = "input_blocks.0.0"
    for index, layer in enumerate(encoder[1:], start=1):
        renamed |= _block(f"enc.{layer.key}", f"input_blocks.{index}.0", f"input_blocks.{index}.1", weights)
    for layer, (block, attention) in zip(decoder, _decoder_layers(weights, decoder), strict=True):
        renamed |= _block(f"dec.{layer.key}", block, attention, weights)
    pairs = {
        f"{ours}.{name}": f"{theirs}.{name}"
        for ours, theirs in renamed.items()
        for name in ("weight", "bias")
        if f"{theirs}.{name}" in weights
    }
    if extra := sorted(weights.keys() - set(pairs.values()) - {LABELS}):
        raise RefusedFileError(source, f"weights that guided-diffusion's have not: {', '.join(extra)[:150]}", KNOWN)
    found = {f"model.{ours}": _weight(weights[theirs], ours, layout) for ours, theirs in pairs.items()}
    if LABELS in weights:
        found["model.map_label.weight"] = weights[LABELS].t()
    found["u"] = iddpm_levels(M, 0.001, 0.008) if layout.cosine else linear_levels(M)
    attended = {layer.res for i, layer in enumerate(encoder) if f"input_blocks.{i}.1.qkv.weight" in weights}
    arguments: dict[str, Any] = {
        "img_resolution": layout.resolution,
        "img_channels": encoder[0].cin,
        "label_dim": len(weights[LABELS]) if LABELS in weights else 0,
        "model_channels": weights["time_embed.0.weight"].shape[1],
        "channel_mult": list(layout.channel_mult),
        "num_blocks": _num_blocks(layout, len(encoder)),
        "attn_resolutions": sorted(attended, reverse=True),
    } | ({} if layout.num_heads is None else {"num_heads": layout.num_heads})
    class_name = "iDDPMPrecond" if layout.cosine else "DDPMPrecond"
    return Blueprint(class_name, (), arguments, found, not_stored="resample_filter")


def _block(ours: str, block: str, attention: str, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names of the layers of one residual block, with its attention if it has one, -> ADM's."""
    names = {f"{ours}.{name}": f"{block}.{part}" for name, part in RESIDUAL.items()}
    if f"{attention}.qkv.weight" in weights:
        names |= {f"{ours}.{name}": f"{attention}.{part}" for name, part in ATTENTION.items()}
    return names


def _decoder_layers(weights: Mapping[str, Tensor], decoder: Sequence[LayerPlan]) -> Iterator[tuple[str, str]]:
    """ADM's names of the decoder's blocks and attentions; upsampling to a level ends the last sequence before it."""
    index = -1
    for layer in decoder:
        if layer.kind == "in0":
            yield "middle_block.0", "middle_block.1"
        elif layer.kind == "in1":
            yield "middle_block.2", ""
        elif layer.kind == "up":
            last = 2 if f"output_blocks.{index}.1.qkv.weight" in weights else 1
            yield f"output_blocks.{index}.{last}", ""
        else:
            index += 1
            yield f"output_blocks.{index}.0", f"output_blocks.{index}.1"


def _weight(value: Tensor, ours: str, layout: Layout) -> Tensor:
    """ADM's attention convolves pixels in a row, and orders the channels of queries, keys and values otherwise."""
    layer, _, name = ours.rpartition(".")
    if layer.endswith((".qkv", ".proj")) and name == "weight":
        value = value[..., None]
    if not layer.endswith(".qkv"):
        return value
    heads = layout.num_heads or max(len(value) // 3 // HEAD_CHANNELS, 1)
    if layout.split_first:  # [3, heads, C] -> [heads, C, 3]
        return value.unflatten(0, [3, heads, -1]).movedim(0, 2).flatten(0, 2)
    return value.unflatten(0, [heads, 3, -1]).transpose(1, 2).flatten(0, 2)  # [heads, 3, C] -> [heads, C, 3]
