"""ADM's U-Net as Dhariwal & Nichol (2021, arXiv 2105.05233, section 3) describe it: plain functions of a state dict.

Residual blocks take the embedding as a scale and shift after their second normalisation and resample inside, by
averaging or repeating 2x2 pixels; attention runs over heads. Tests compare the converted networks with it. Unlike in
the published networks, whose groups are always 32, small widths have a group for four channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def random_weights(
    mult: Sequence[float], channels: int, num_blocks: int, attend: Sequence[int], side: int, label_dim: int
) -> dict[str, Tensor]:
    """A state dict with guided-diffusion's names for random weights; attention at the sides in `attend`."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[:1], generator=generator)

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        weights[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    def block(name: str, cin: int, cout: int) -> None:
        norm(f"{name}.in_layers.0", cin)
        layer(f"{name}.in_layers.2", cout, cin, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * cout, 4 * channels)
        norm(f"{name}.out_layers.0", cout)
        layer(f"{name}.out_layers.3", cout, cout, 3, 3)
        if cin != cout:
            layer(f"{name}.skip_connection", cout, cin, 1, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", 4 * channels, channels)
    layer("time_embed.2", 4 * channels, 4 * channels)
    if label_dim:
        weights["label_emb.weight"] = torch.randn([label_dim, 4 * channels], generator=generator)
    widths = [int(channels * m) for m in mult]
    layer("input_blocks.0.0", widths[0], 3, 3, 3)
    outputs, width, index = [widths[0]], widths[0], 1
    for level, wanted in enumerate(widths):
        for _ in range(num_blocks):
            block(f"input_blocks.{index}.0", width, wanted)
            if side >> level in attend:
                attention(f"input_blocks.{index}.1", wanted)
            width, index = wanted, index + 1
            outputs.append(width)
        if level < len(widths) - 1:
            block(f"input_blocks.{index}.0", width, width)
            outputs.append(width)
            index += 1
    block("middle_block.0", width, width)
    attention("middle_block.1", width)
    block("middle_block.2", width, width)
    index = 0
    for level in reversed(range(len(widths))):
        for number in range(num_blocks + 1):
            block(f"output_blocks.{index}.0", width + outputs.pop(), widths[level])
            width, part = widths[level], 1
            if side >> level in attend:
                attention(f"output_blocks.{index}.{part}", width)
                part = 2
            if level and number == num_blocks:
                block(f"output_blocks.{index}.{part}", width, width)
            index += 1
    norm("out.0", width)
    layer("out.2", 6, width, 3, 3)
    return weights


def unet(
    weights: Weights, x: Tensor, time: Tensor, label: Tensor | None, levels: int, num_heads: int | None, split: bool
) -> Tensor:
    """The U-Net's output [B,6,H,W]: the noise and a variance.

    time [B]; label [B] indices; levels: number of resolutions; split: queries, keys and values are the outermost part
    of their channels (the released network for 64 pixels), else heads are.
    """
    half = weights["time_embed.0.weight"].shape[1] // 2
    angles = time[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=x.dtype) / half)
    emb = linear(weights, "time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    emb = linear(weights, "time_embed.2", F.silu(emb))
    if label is not None:
        emb = emb + weights["label_emb.weight"][label]
    outputs: list[Tensor] = []
    side = x.shape[-1]
    period = count(weights, "output_blocks") // levels  # every so manyth block of the encoder halves the image
    for index in range(count(weights, "input_blocks")):
        if index == 0:
            x = F.conv2d(x, weights["input_blocks.0.0.weight"], weights["input_blocks.0.0.bias"], padding=1)
        else:
            x = residual(weights, f"input_blocks.{index}.0", x, emb, "" if index % period else "down")
            x = maybe_attention(weights, f"input_blocks.{index}.1", x, num_heads, split)
        outputs.append(x)
    x = residual(weights, "middle_block.0", x, emb)
    x = maybe_attention(weights, "middle_block.1", x, num_heads, split)
    x = residual(weights, "middle_block.2", x, emb)
    for index in range(count(weights, "output_blocks")):
        x = residual(weights, f"output_blocks.{index}.0", torch.cat([x, outputs.pop()], dim=1), emb)
        x = maybe_attention(weights, f"output_blocks.{index}.1", x, num_heads, split)
        for part in (1, 2):
            if f"output_blocks.{index}.{part}.in_layers.0.weight" in weights:
                x = residual(weights, f"output_blocks.{index}.{part}", x, emb, "up")
    assert x.shape[-1] == side
    x = F.silu(group_norm(weights, "out.0", x))
    return F.conv2d(x, weights["out.2.weight"], weights["out.2.bias"], padding=1)


def count(weights: Weights, group: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith(group))


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def group_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, min(32, x.shape[1] // 4), weights[f"{name}.weight"], weights[f"{name}.bias"])


def residual(weights: Weights, name: str, x: Tensor, emb: Tensor, resample: str = "") -> Tensor:
    def resampled(y: Tensor) -> Tensor:
        if resample == "down":
            return F.avg_pool2d(y, 2)
        return F.interpolate(y, scale_factor=2, mode="nearest") if resample == "up" else y

    def convolved(part: str, y: Tensor) -> Tensor:
        return F.conv2d(y, weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"], padding="same")

    h = convolved("in_layers.2", resampled(F.silu(group_norm(weights, f"{name}.in_layers.0", x))))
    scale, shift = linear(weights, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None].chunk(2, dim=1)
    h = group_norm(weights, f"{name}.out_layers.0", h) * (1 + scale) + shift
    h = convolved("out_layers.3", F.silu(h))
    x = resampled(x)
    return h + (convolved("skip_connection", x) if f"{name}.skip_connection.weight" in weights else x)


def maybe_attention(weights: Weights, name: str, x: Tensor, num_heads: int | None, split: bool) -> Tensor:
    if f"{name}.qkv.weight" not in weights:
        return x
    batch, width = x.shape[:2]
    pixels = group_norm(weights, f"{name}.norm", x).flatten(2)
    qkv = F.conv1d(pixels, weights[f"{name}.qkv.weight"], weights[f"{name}.qkv.bias"])
    heads = num_heads or width // 64
    order = (3, heads) if split else (heads, 3)
    q, k, v = qkv.view(batch, *order, -1, qkv.shape[-1]).unbind(1 if split else 2)  # [B, heads, C, pixels] each
    attended = torch.softmax(torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2]), dim=-1)
    y = torch.einsum("bhts,bhcs->bhct", attended, v).reshape(batch, width, -1)
    y = F.conv1d(y, weights[f"{name}.proj_out.weight"], weights[f"{name}.proj_out.bias"])
    return x + y.view(x.shape)
