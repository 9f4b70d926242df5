"""The networks of StyleGAN2 with adaptive discriminator augmentation, as a network file carries them.

Karras et al. 2020 (arXiv 1912.04958 and 2006.06676). Written by the stylegan-di project, Apache-2.0. This source stands
in network files, so that they open in tools that know neither stylegan-di nor stylegan2-ada-pytorch: it needs nothing
but PyTorch, keeps to the language of Python 3.7, and computes by plain convolutions, on any device. The classes have no
constructors, because the state that a file stores has everything that a constructor would set.

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
ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": F.relu,
    "lrelu": lambda x: F.leaky_relu(x, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "swish": lambda x: x * torch.sigmoid(x),
}
GAINS = {"relu": SQRT2, "lrelu": SQRT2, "swish": SQRT2}  # of the others: 1


def bias_act(x: Tensor, bias: Tensor | None, activation: str, gain: float, clamp: float | None = None) -> Tensor:
    """activation(x + bias) * gain, then clamped to +-clamp; x is [N,C] or [N,C,H,W], bias [C]."""
    if bias is not None:
        x = x + bias.to(x.dtype).reshape([1, -1] + [1] * (x.ndim - 2))
    x = ACTIVATIONS[activation](x) * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def filtered(x: Tensor, f: Tensor, up: int, down: int, padding: list[int]) -> Tensor:
    """Inserts zeros, pads by [x0,x1,y0,y1] (negative numbers crop), convolves with f, and takes every down-th pixel.

    f is [n,n], or the taps [n] of a separable filter; upsampling keeps the mean.
    """
    n, c, height, width = x.shape
    if up > 1:
        x = F.pad(x.reshape([n, c, height, 1, width, 1]), [0, up - 1, 0, 0, 0, up - 1])
        x = x.reshape([n, c, height * up, width * up])
    f = f if f.ndim == 2 else f[:, None] * f[None, :]
    kernel = (f * up**2).flip([0, 1]).to(x.dtype)[None, None].repeat([c, 1, 1, 1])
    return F.conv2d(F.pad(x, padding), kernel, groups=c)[:, :, ::down, ::down]


def upsampled(x: Tensor, f: Tensor) -> Tensor:
    before, after = (f.shape[0] + 1) // 2, (f.shape[0] - 2) // 2
    return filtered(x, f, 2, 1, [before, after, before, after])


def downsampled(x: Tensor, f: Tensor) -> Tensor:
    before, after = (f.shape[0] - 1) // 2, (f.shape[0] - 2) // 2
    return filtered(x, f, 1, 2, [before, after, before, after])


def resampling_conv(x: Tensor, weight: Tensor, f: Tensor, up: int, down: int, padding: int) -> Tensor:
    """Upsamples, convolves, then downsamples, with all padding at the beginning; upsampling flips the weight."""
    taps, low, high = f.shape[0], padding, padding
    if up > 1:
        low, high = low + (taps + up - 1) // 2, high + (taps - up) // 2
        weight = weight.flip([2, 3])
    if down > 1:
        low, high = low + (taps - down + 1) // 2, high + (taps - down) // 2
    pads = [low, high, low, high]
    x = F.conv2d(filtered(x, f, up, 1, pads) if up > 1 else F.pad(x, pads), weight)
    return filtered(x, f, 1, down, [0, 0, 0, 0]) if down > 1 else x


def modulated_conv(
    x: Tensor, weight: Tensor, styles: Tensor, f: Tensor, up: int, padding: int, demodulate: bool
) -> Tensor:
    """Convolves with the weight [O,I,k,k] scaled by styles [N,I]; demodulated, each output's weights have length 1."""
    if demodulate and x.dtype == torch.float16:  # demodulation cancels both factors, which keep float16 in its range
        weight = weight / (math.sqrt(weight[0].numel()) * weight.abs().amax([1, 2, 3], keepdim=True))
        styles = styles / styles.abs().amax(1, keepdim=True)
    y = resampling_conv(x * styles.to(x.dtype)[:, :, None, None], weight.to(x.dtype), f, up, 1, padding)
    if demodulate:
        lengths = styles.square() @ weight.square().sum([2, 3]).t()
        y = y * (lengths + EPSILON).rsqrt().to(y.dtype)[:, :, None, None]
    return y


def normalize_2nd_moment(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


class Module(torch.nn.Module):
    """A module whose attributes are a file's: of any type, as far as Python can tell."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class FullyConnectedLayer(Module):
    """activation(x @ (weight * weight_gain)^T + bias * bias_gain)."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.weight.to(x.dtype) * self.weight_gain).t()
        bias = None if self.bias is None else self.bias * self.bias_gain
        return bias_act(y, bias, self.activation, GAINS.get(self.activation, 1.0))


class Conv2dLayer(Module):
    """Resamples and convolves, then adds bias, activates and clamps."""

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        x = resampling_conv(x, weight, self.resample_filter, self.up, self.down, self.padding)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias, self.activation, self.act_gain * gain, clamp)


class MappingNetwork(Module):
    """Maps z [N,z_dim] and c [N,c_dim] to ws [N,num_ws,w_dim]; the discriminator's maps labels alone, to [N,w_dim]."""

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
        update_emas: bool = True,
    ) -> Tensor:
        """In train mode w_avg moves, unless skip_w_avg_update (stylegan2-ada) or not update_emas (stylegan3)."""
        dtype = self.fc0.weight.dtype
        inputs = []
        if self.z_dim > 0:
            assert z is not None
            inputs.append(normalize_2nd_moment(z.to(dtype)))
        if self.c_dim > 0:
            assert c is not None
            inputs.append(normalize_2nd_moment(self.embed(c.to(dtype))))
        w = torch.cat(inputs, dim=1)
        for index in range(self.num_layers):
            w = getattr(self, f"fc{index}")(w)
        if self.num_ws is None:
            return w
        if self.w_avg_beta is not None and self.training and update_emas and not skip_w_avg_update:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = w[:, None].repeat([1, self.num_ws, 1])
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)


class SynthesisLayer(Module):
    """Modulated convolution, noise, bias, activation and clamp."""

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", fused_modconv: bool = True, gain: float = 1
    ) -> Tensor:
        """noise_mode: 'random', 'const' or 'none'; fused_modconv has no effect: there is one implementation."""
        assert noise_mode in ("random", "const", "none")
        x = modulated_conv(x, self.weight, self.affine(w), self.resample_filter, self.up, self.padding, True)
        if self.use_noise and noise_mode != "none":
            noise = self.noise_const
            if noise_mode == "random":
                noise = torch.randn([len(x), 1, self.resolution, self.resolution], device=x.device, dtype=noise.dtype)
            x = x + (noise * self.noise_strength).to(x.dtype)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias, self.activation, self.act_gain * gain, clamp)


class ToRGBLayer(Module):
    """Modulated convolution without demodulation."""

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        styles, padding = self.affine(w) * self.weight_gain, self.weight.shape[2] // 2
        x = modulated_conv(x, self.weight, styles, self.weight.new_ones([1, 1]), 1, padding, False)
        return bias_act(x, self.bias, "linear", 1.0, self.conv_clamp)


class SynthesisBlock(Module):
    """The generator's layers at one resolution; on CUDA those of use_fp16 compute in float16."""

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        update_emas: bool = False,
        **layer_kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """x at half the resolution, None in the first block; img likewise or None; ws [N,num_conv+num_torgb,w_dim]."""
        full = self.conv1.weight.dtype
        dtype = torch.float16 if self.use_fp16 and not force_fp32 and ws.is_cuda else full
        if self.in_channels == 0:
            x = self.conv1(self.const.to(dtype)[None].repeat([len(ws), 1, 1, 1]), ws[:, 0], **layer_kwargs)
        else:
            assert x is not None
            x, skip = x.to(dtype), self.architecture == "resnet"
            y = self.skip(x, gain=math.sqrt(0.5)) if skip else 0
            x = self.conv0(x, ws[:, 0], **layer_kwargs)
            x = y + self.conv1(x, ws[:, 1], gain=math.sqrt(0.5) if skip else 1, **layer_kwargs)
        if img is not None:
            img = upsampled(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(x, ws[:, self.num_conv]).to(full)
            img = rgb if img is None else img + rgb
        return x, img


class SynthesisNetwork(Module):
    """Turns ws [N,num_ws,w_dim] into images [N,img_channels,R,R], nominally in [-1,1]."""

    def forward(self, ws: Tensor, **block_kwargs: object) -> Tensor:
        x: Any = None
        img: Any = None
        index, ws = 0, ws.to(self.b4.conv1.weight.dtype)
        for resolution in self.block_resolutions:
            block = getattr(self, f"b{resolution}")
            own = ws[:, index : index + block.num_conv + block.num_torgb]
            x, img = block(x, img, own, **block_kwargs)
            index += block.num_conv
        return img


class Generator(Module):
    """images = synthesis(mapping(z, c))."""

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = True,
        **synthesis_kwargs: object,
    ) -> Tensor:
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas=update_emas)
        return self.synthesis(ws, **synthesis_kwargs)


class DiscriminatorBlock(Module):
    """The discriminator's layers at one resolution, which they halve."""

    def forward(self, x: Tensor | None, img: Tensor | None, force_fp32: bool = False) -> tuple[Tensor, Tensor | None]:
        weight = self.conv0.weight
        dtype = torch.float16 if self.use_fp16 and not force_fp32 and weight.is_cuda else weight.dtype
        x = None if x is None else x.to(dtype)
        if self.in_channels == 0 or self.architecture == "skip":
            assert img is not None
            img = img.to(dtype)
            y = self.fromrgb(img)
            x = y if x is None else x + y
            img = downsampled(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture != "resnet":
            return self.conv1(self.conv0(x)), img
        y = self.skip(x, gain=math.sqrt(0.5))
        return y + self.conv1(self.conv0(x), gain=math.sqrt(0.5)), img


class MinibatchStdLayer(Module):
    """Appends the standard deviation over groups of samples as num_channels extra channels."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        size = n if self.group_size is None else min(self.group_size, n)
        groups = x.reshape([size, n // size, self.num_channels, c // self.num_channels, height, width])
        std = ((groups - groups.mean(0)).square().mean(0) + EPSILON).sqrt().mean([2, 3, 4])
        return torch.cat([x, std.repeat([size, 1])[:, :, None, None].repeat([1, 1, height, width])], dim=1)


class DiscriminatorEpilogue(Module):
    """Turns the last feature maps into logits [N,1]."""

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None, force_fp32: bool = False) -> Tensor:
        dtype = self.fc.weight.dtype
        x = x.to(dtype)
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.to(dtype))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        return x if cmap is None else (x * cmap).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)


class Discriminator(Module):
    """Turns images [N,img_channels,R,R] and labels c [N,c_dim] into logits [N,1]."""

    def forward(self, img: Tensor, c: Tensor | None, update_emas: bool = False, **block_kwargs: object) -> Tensor:
        x = None
        for resolution in self.block_resolutions:
            x, img = getattr(self, f"b{resolution}")(x, img, **block_kwargs)
        return self.b4(x, img, self.mapping(None, c) if self.c_dim > 0 else None)


class AugmentPipe(Module):
    """The settings and the probability p of the augmentations that a discriminator was trained with.

    It tells what was done and augments nothing: trainings make a pipe of their own.
    """
