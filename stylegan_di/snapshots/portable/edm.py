"""EDM's preconditioned networks around the U-Nets DDPM++, NCSN++ and ADM, as a network file carries them.

Karras et al. 2022 (arXiv 2206.00364), table 1. Written by the stylegan-di project, Apache-2.0. This source stands in
network files, so that they open in tools that know neither stylegan-di nor edm: it needs nothing but PyTorch, and keeps
to the language of Python 3.7. The classes have no constructors, because the state that a file stores has everything
that a constructor would set.

D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise), where F is the U-Net.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention over pixels: qkv [B, heads * C * 3, H, W], q, k and v varying fastest -> [B, heads * C, H, W]."""
    n, channels, height, width = qkv.shape
    q, k, v = qkv.reshape([n * heads, channels // (3 * heads), 3, height * width]).unbind(2)
    size = q.shape[1]
    logits = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(size))
    weights = logits.softmax(2, dtype=torch.promote_types(qkv.dtype, torch.float32)).to(qkv.dtype)
    return torch.einsum("nqk,nck->ncq", weights, v).reshape([n, heads * size, height, width])


class Module(torch.nn.Module):
    """A module whose attributes are a file's: of any type, as far as Python can tell."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Linear(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), cast(self.bias, x))


class Conv2d(Module):
    """Resamples by two or not at all, then convolves, if there is a weight.

    fused_resample pads once for both steps, which changes only the borders; when downsampling, it convolves first.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = cast(self.weight, x)
        f: Any = cast(self.resample_filter, x)
        bias = cast(self.bias, x)
        padding = 0 if weight is None else weight.shape[-1] // 2
        f_padding = 0 if f is None else (f.shape[-1] - 1) // 2
        fused = self.fused_resample and weight is not None
        if fused and self.down:
            x = F.conv2d(x, weight, padding=padding + f_padding)
            x = self.resampled(x, f, 0)
        elif self.up or self.down:
            x = self.resampled(x, f, max(f_padding - padding, 0) if fused else f_padding)
        if weight is not None and not (fused and self.down):
            x = F.conv2d(x, weight, padding=max(padding - f_padding, 0) if fused and self.up else padding)
        return x if bias is None else x + bias[:, None, None]

    def resampled(self, x: Tensor, f: Tensor, padding: int) -> Tensor:
        channels = x.shape[1]
        if self.up:
            kernel = (f * 4).repeat([channels, 1, 1, 1])
            return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, f.repeat([channels, 1, 1, 1]), stride=2, padding=padding, groups=channels)


class GroupNorm(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, cast(self.weight, x), cast(self.bias, x), self.eps)


class PositionalEmbedding(Module):
    """x [B] -> [B,num_channels]: cosines, then sines, at frequencies falling geometrically from 1."""

    def forward(self, x: Tensor) -> Tensor:
        half = self.num_channels // 2
        exponents = torch.arange(half, dtype=x.dtype, device=x.device) / (half - (1 if self.endpoint else 0))
        angles = x[:, None] * (1 / self.max_positions) ** exponents
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(Module):
    """x [B] -> [B,num_channels]: cosines, then sines, at random frequencies."""

    def forward(self, x: Tensor) -> Tensor:
        angles = x[:, None] * (2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class UNetBlock(Module):
    """Residual block, conditioned on emb [B,emb_channels], with optional resampling and self-attention."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        shift = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive_scale:
            scale, shift = shift.chunk(2, dim=1)
            h = F.silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = F.silu(self.norm1(h + shift))
        h = self.conv1(F.dropout(h, p=self.dropout, training=self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            x = (self.proj(attention(self.qkv(self.norm2(x)), self.num_heads)) + x) * self.skip_scale
        return x


class UNet(Module):
    """F(x) [B,C,H,W] of x, noise_labels [B] or [1], class_labels [B or 1,label_dim] and augment_labels, or None."""

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        if self.training and self.label_dropout and class_labels is not None:
            kept = torch.rand([len(x), 1], device=x.device) >= self.label_dropout
            class_labels = class_labels * kept.to(class_labels.dtype)
        emb = self.embed(noise_labels, class_labels, augment_labels).to(x.dtype)
        return self.decode(self.encode(x, emb), emb)

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The outputs of all layers in order; SongUNet's aux layers bring the downsampled input to each level."""
        skips: list[Tensor] = []
        aux = x
        for key, layer in self.enc.items():
            kind = key.partition("_")[2]
            if kind == "aux_down":
                aux = layer(aux)
            elif kind == "aux_skip":
                x = skips[-1] = x + layer(aux)
            elif kind == "aux_residual":
                x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x) if kind == "conv" else layer(x, emb)
                skips.append(x)
        return skips


class SongUNet(UNet):
    """DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456)."""

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.map_label is not None:
            assert class_labels is not None
            emb = emb + self.map_label(class_labels.to(emb.dtype) * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        image: Any = None
        x = skips[-1]
        for key, layer in self.dec.items():
            kind = key.partition("_")[2]
            if kind == "aux_up":
                image = layer(image)
            elif kind == "aux_norm":
                features = F.silu(layer(x))
            elif kind == "aux_conv":
                image = layer(features) if image is None else image + layer(features)
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if kind.startswith("block") else x, emb)
        return image


class DhariwalUNet(UNet):
    """ADM (Dhariwal & Nichol 2021, arXiv 2105.05233)."""

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            assert class_labels is not None
            emb = emb + self.map_label(class_labels.to(emb.dtype))
        return F.silu(emb)

    def decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        x = skips[-1]
        for key, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in key else x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


class Precond(Module):
    """D(x; sigma); subclasses have the coefficients c_skip, c_out, c_in and c_noise."""

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: object,
    ) -> Tensor:
        """Denoises x [B,C,H,W] of noise levels sigma, [B] or scalar; class_labels [B,label_dim], None for zeros."""
        width = vars(self).get("img_width")  # of images that are not square
        if width is not None and list(x.shape[2:]) != [self.img_resolution, width]:
            raise ValueError(f"images of {x.shape[3]}x{x.shape[2]} for a network of {width}x{self.img_resolution}")
        full = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        half = self.use_fp16 and not force_fp32 and x.is_cuda and full == torch.float32
        x = x.to(full)
        c_skip, c_out, c_in, c_noise = self.coefficients(torch.as_tensor(sigma).to(x).reshape([-1, 1, 1, 1]))
        labels = None
        if self.label_dim:
            labels = x.new_zeros([1, self.label_dim]) if class_labels is None else class_labels.to(full)
            labels = labels.reshape([-1, self.label_dim])
        scaled = (c_in * x).to(torch.float16 if half else full)
        y = self.model(scaled, c_noise.flatten(), labels, **model_kwargs)[:, : self.img_channels]
        return c_skip * x + c_out * y.to(full)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma)


class VPPrecond(Precond):
    """Variance preserving."""

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log = (1 + sigma.square()).log()
        t = ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d
        return torch.ones_like(sigma), -sigma, (sigma.square() + 1).rsqrt(), (self.M - 1) * t


class VEPrecond(Precond):
    """Variance exploding."""

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(sigma)
        return one, sigma, one, (sigma / 2).log()


class iDDPMPrecond(Precond):
    """iDDPM, which knows the M noise levels u only."""

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c_noise = (self.M - 1 - self.nearest(sigma)).to(sigma.dtype)
        return torch.ones_like(sigma), -sigma, (sigma.square() + 1).rsqrt(), c_noise

    def round_sigma(self, sigma: Tensor, return_index: bool = False) -> Tensor:
        sigma = torch.as_tensor(sigma)
        index = self.nearest(sigma)
        return index if return_index else self.u[index].to(sigma)

    def nearest(self, sigma: Tensor) -> Tensor:
        return (sigma.to(self.u)[..., None] - self.u).abs().argmin(dim=-1)


class DDPMPrecond(iDDPMPrecond):
    """iDDPM at the noise levels of DDPM's linear betas."""


class EDMPrecond(Precond):
    """EDM's own."""

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        both = sigma.square() + self.sigma_data**2
        return self.sigma_data**2 / both, sigma * self.sigma_data / both.sqrt(), both.rsqrt(), sigma.log() / 4


class AugmentPipe:
    """The settings of the augmentations that a denoiser was trained with.

    It tells what was done and augments nothing: trainings make a pipe of their own.
    """
