"""EDM2's magnitude-preserving network, as a network file carries it.

Karras et al. 2024 (arXiv 2312.02696). Written by the stylegan-di project, Apache-2.0. This source stands in network
files, so that they open in tools that know neither stylegan-di nor edm2: it needs nothing but PyTorch, and keeps to the
language of Python 3.7. The classes have no constructors, because the state that a file stores has everything that a
constructor would set.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(x: Tensor, dim: list[int] | None = None) -> Tensor:
    """Scales x to unit magnitude per element over `dim`, by default all dimensions but the first."""
    dim = list(range(1, x.ndim)) if dim is None else dim
    norm = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(dim, keepdim=True).sqrt()
    size = x.numel() // norm.numel()
    return x / (1e-4 + norm / math.sqrt(size)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(na)), b * (scale * t / math.sqrt(nb))], dim=1)


class Module(torch.nn.Module):
    """A module whose attributes are a file's: of any type, as far as Python can tell."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class MPFourier(Module):
    """x [B] -> [B,num_channels]: cosines of random frequencies and phases."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.freqs.to(x.dtype) + self.phases.to(x.dtype)).cos() * math.sqrt(2)


class MPConv(Module):
    """Convolution, or for a weight [out,in] a product, by normalised weights; in train mode they are stored so."""

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight))
        weight = (normalize(self.weight) * (gain / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        return x @ weight.t() if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(Module):
    """Residual block of the encoder or the decoder, conditioned on emb [B,emb_channels]."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resampled(x)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), [1])
            x = mp_sum(x, self.residual(x, emb), self.res_balance)
        else:
            residual = self.residual(x, emb)
            x = mp_sum(x if self.conv_skip is None else self.conv_skip(x), residual, self.res_balance)
        if self.num_heads:
            x = mp_sum(x, self.attention(x), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample_mode == "keep":
            return x
        taps = torch.tensor(self.resample_filter, dtype=torch.float32, device=x.device)
        f = (taps[:, None] * taps / taps.sum().square()).to(x.dtype).repeat([x.shape[1], 1, 1, 1])
        f, channels, padding = f.reshape([x.shape[1], 1, len(taps), len(taps)]), x.shape[1], (len(taps) - 1) // 2
        if self.resample_mode == "down":
            return F.conv2d(x, f, stride=2, padding=padding, groups=channels)
        return F.conv_transpose2d(x, f * 4, stride=2, padding=padding, groups=channels)

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        return self.conv_res1(F.dropout(y, p=self.dropout, training=self.training))

    def attention(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values are normalised over their channels."""
        n, _, height, width = x.shape
        parts = self.attn_qkv(x).reshape([n, self.num_heads, -1, 3, height * width])
        q, k, v = normalize(parts, [2]).unbind(3)
        logits = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2]))
        y = torch.einsum("nhqk,nhck->nhcq", logits.softmax(3), v)
        return self.attn_proj(y.reshape([n, -1, height, width]))


class UNet(Module):
    """F(x) [B,C,H,W] of x, noise_labels [B] or [1], and class_labels [B or 1,label_dim] or None."""

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_label is not None:
            assert class_labels is not None
            labels = self.emb_label(class_labels.to(emb.dtype) * math.sqrt(class_labels.shape[1]))
            emb = mp_sum(emb.expand([len(labels), -1]) if len(emb) == 1 else emb, labels, self.label_balance)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for key, layer in self.enc.items():
            x = layer(x) if key.endswith("conv") else layer(x, emb)
            skips.append(x)
        for key, layer in self.dec.items():
            x = layer(mp_cat(x, skips.pop(), self.concat_balance) if "block" in key else x, emb)
        return self.out_conv(x, gain=self.out_gain)


class Precond(Module):
    """EDM's preconditioning: D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise)."""

    sigma_min = 0.0
    sigma_max = math.inf

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        return_logvar: bool = False,
        **unet_kwargs: object,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Denoises x [B,C,H,W] of noise levels sigma, [B] or scalar; class_labels [B,label_dim], None for zeros."""
        full = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        half = self.use_fp16 and not force_fp32 and x.is_cuda and full == torch.float32
        x = x.to(full)
        sigma = torch.as_tensor(sigma).to(x).reshape([-1, 1, 1, 1])
        labels = None
        if self.label_dim:
            labels = x.new_zeros([1, self.label_dim]) if class_labels is None else class_labels.to(full)
            labels = labels.reshape([-1, self.label_dim])
        both, c_noise = sigma.square() + self.sigma_data**2, sigma.flatten().log() / 4
        y = self.unet((both.rsqrt() * x).to(torch.float16 if half else full), c_noise, labels, **unet_kwargs)
        denoised = self.sigma_data**2 / both * x + sigma * self.sigma_data / both.sqrt() * y.to(full)
        if return_logvar:
            return denoised, self.logvar_linear(self.logvar_fourier(c_noise)).reshape([-1, 1, 1, 1])
        return denoised

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma)
