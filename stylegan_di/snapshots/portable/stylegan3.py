"""StyleGAN3's alias-free generator, as a network file carries it.

Karras et al. 2021 (arXiv 2106.12423). Written by the stylegan-di project, Apache-2.0. This source stands in network
files, so that they open in tools that know neither stylegan-di nor stylegan3: it needs nothing but PyTorch, keeps to
the language of Python 3.7, and computes by plain convolutions, on any device. The classes have no constructors, because
the state that a file stores has everything that a constructor would set. The discriminator beside it is StyleGAN2's.

Symbols: z is the latent, c the labels, w the mapped latent, ws one w per layer, w_avg their mean, psi the truncation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

SQRT2 = math.sqrt(2)
EPSILON = 1e-8


def filtered(x: Tensor, f: Tensor | None, up: int, down: int, padding: list[int]) -> Tensor:
    """Inserts zeros, pads by [x0,x1,y0,y1] (negative numbers crop), convolves with f, and takes every down-th pixel.

    f is [n,n], the taps [n] of a separable filter, or None for the identity; upsampling keeps the mean.
    """
    n, c, height, width = x.shape
    if up > 1:
        x = F.pad(x.reshape([n, c, height, 1, width, 1]), [0, up - 1, 0, 0, 0, up - 1])
        x = x.reshape([n, c, height * up, width * up])
    x = F.pad(x, padding)
    if f is not None and f.ndim == 1:
        taps = (f * up).flip([0]).to(x.dtype)
        x = F.conv2d(x, taps[None, None, :, None].repeat([c, 1, 1, 1]), groups=c)
        x = F.conv2d(x, taps[None, None, None, :].repeat([c, 1, 1, 1]), groups=c)
    elif f is not None:
        x = F.conv2d(x, (f * up**2).flip([0, 1]).to(x.dtype)[None, None].repeat([c, 1, 1, 1]), groups=c)
    else:
        x = x * up**2
    return x[:, :, ::down, ::down]


def modulated_conv(x: Tensor, weight: Tensor, styles: Tensor, gain: Tensor, demodulate: bool) -> Tensor:
    """Convolves with the weight [O,I,k,k] scaled by styles [N,I], padded by k - 1, and multiplies by gain []."""
    scale = gain.expand([1, len(weight)])
    if demodulate:  # the first two normalisations cancel, and keep float16 in its range
        weight = weight * weight.square().mean([1, 2, 3], keepdim=True).rsqrt()
        styles = styles * styles.square().mean().rsqrt()
        scale = scale * (styles.square() @ weight.square().sum([2, 3]).t() + EPSILON).rsqrt()
    y = F.conv2d(x * styles.to(x.dtype)[:, :, None, None], weight.to(x.dtype), padding=weight.shape[2] - 1)
    return y * scale.to(y.dtype)[:, :, None, None]


def normalize_2nd_moment(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


class Module(torch.nn.Module):
    """A module whose attributes are a file's: of any type, as far as Python can tell."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class FullyConnectedLayer(Module):
    """activation(x @ (weight * weight_gain)^T + bias * bias_gain); the activation is 'linear' or 'lrelu'."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.weight.to(x.dtype) * self.weight_gain).t()
        if self.bias is not None:
            y = y + self.bias.to(x.dtype) * self.bias_gain
        return F.leaky_relu(y, 0.2) * SQRT2 if self.activation == "lrelu" else y


class MappingNetwork(Module):
    """Maps z [N,z_dim] and c [N,c_dim] to ws [N,num_ws,w_dim]."""

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """update_emas moves w_avg towards this batch's mean, in train mode."""
        w = normalize_2nd_moment(z.to(self.w_avg.dtype))
        if self.c_dim > 0:
            assert c is not None
            w = torch.cat([w, normalize_2nd_moment(self.embed(c.to(self.w_avg.dtype)))], dim=1)
        for index in range(self.num_layers):
            w = getattr(self, f"fc{index}")(w)
        if update_emas and self.training:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = w[:, None].repeat([1, self.num_ws, 1])
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)


class SynthesisInput(Module):
    """The first feature maps: waves of fixed frequencies, which w shifts and rotates, after `transform` has."""

    def forward(self, w: Tensor) -> Tensor:
        """w [N,w_dim] -> [N,channels,size,size]."""
        t = self.affine(w)
        cos, sin, x, y = (t / t[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).reshape([-1, 3, 3])
        shift = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], dim=1).reshape([-1, 3, 3])
        moved = rotation @ shift @ self.transform
        freqs = self.freqs @ moved[:, :2, :2]  # [N,channels,2]
        phases = self.phases + (self.freqs @ moved[:, :2, 2:]).squeeze(2)
        beyond = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        across, along = self.axis(int(self.size[0]), w), self.axis(int(self.size[1]), w)
        angle = freqs[:, :, 0, None, None] * across + freqs[:, :, 1, None, None] * along[:, None]
        angle = (angle + phases[:, :, None, None]) * (2 * math.pi)
        waves = angle.sin() * (1 - beyond).clamp(0, 1)[:, :, None, None]
        weight = self.weight / math.sqrt(self.channels)
        return (weight @ waves.flatten(2)).reshape(waves.shape)

    def axis(self, size: int, like: Tensor) -> Tensor:
        """Positions of the pixels along an axis, in pictures."""
        return (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5 - size / 2) / self.sampling_rate


class SynthesisLayer(Module):
    """Modulated convolution, then a nonlinearity between two low-pass filters; ToRGB has neither."""

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", force_fp32: bool = False, update_emas: bool = False
    ) -> Tensor:
        """noise_mode has no effect: there is no noise; update_emas moves magnitude_ema, in train mode."""
        assert noise_mode in ("random", "const", "none")
        full = self.weight.dtype
        if update_emas and self.training:
            mean = x.detach().to(self.magnitude_ema.dtype).square().mean()
            self.magnitude_ema.copy_(mean.lerp(self.magnitude_ema, self.magnitude_ema_beta))
        x = x.to(torch.float16 if self.use_fp16 and not force_fp32 and x.is_cuda else full)
        styles = self.affine(w)
        if self.is_torgb:
            styles = styles / math.sqrt(self.weight[0].numel())
        x = modulated_conv(x, self.weight, styles, self.magnitude_ema.rsqrt(), not self.is_torgb)
        x = filtered(x + self.bias.to(x.dtype)[:, None, None], self.up_filter, self.up_factor, 1, list(self.padding))
        if not self.is_torgb:
            x = F.leaky_relu(x, 0.2) * SQRT2
        if self.conv_clamp is not None:
            x = x.clamp(-self.conv_clamp, self.conv_clamp)
        return filtered(x, self.down_filter, 1, self.down_factor, [0, 0, 0, 0])


class SynthesisNetwork(Module):
    """Turns ws [N,num_ws,w_dim] into images [N,img_channels,R,R], nominally in [-1,1]."""

    def forward(self, ws: Tensor, **layer_kwargs: object) -> Tensor:
        dtype = self.input.weight.dtype
        ws = ws.to(dtype)
        x = self.input(ws[:, 0])
        for index, name in enumerate(self.layer_names):
            x = getattr(self, name)(x, ws[:, index + 1], **layer_kwargs)
        return x.to(dtype) * self.output_scale


class Generator(Module):
    """images = synthesis(mapping(z, c))."""

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        **synthesis_kwargs: object,
    ) -> Tensor:
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        return self.synthesis(ws, update_emas=update_emas, **synthesis_kwargs)
