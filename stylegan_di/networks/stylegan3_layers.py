"""The layers of StyleGAN3's generator, its filters, and its mapping network.

Karras et al. 2021 (arXiv 2106.12423). Names of classes, arguments, attributes and parameters are those of NVlabs' file
format. Every attribute of a layer is written to its pickle, so layers have no attributes beyond the format's.

Frequencies are in cycles per picture, positions in pictures: [-0.5,0.5]^2 is the picture, around which feature maps
have a margin. Layers cast their parameters to their input's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from stylegan_di.networks import stylegan2_layers
from stylegan_di.networks.checks import check_choice, check_rows
from stylegan_di.networks.stylegan2_layers import EPSILON, NOISE_MODES, normalize_2nd_moment
from stylegan_di.torch_utils.ops.filtered_lrelu import filtered_lrelu
from stylegan_di.torch_utils.persistence import PersistentModule

MAX_TAPS = 512


def design_lowpass(numtaps: int, cutoff: float, width: float, fs: float, radial: bool = False) -> Tensor | None:
    """Designs a low-pass filter with a Kaiser window (arXiv 2106.12423, appendix C).

    Args:
        numtaps: number of taps; 1 for no filter.
        cutoff: the frequency at half height.
        width: of the transition between pass and stop band.
        fs: sampling rate.
        radial: whether its response is the same in all directions (a jinc) instead of separable.

    Returns float32 [numtaps], or [numtaps,numtaps] if radial, of sum 1; None for no filter.
    """
    if not 1 <= numtaps <= MAX_TAPS:
        raise ValueError(f"a filter of {numtaps} taps; accepted: 1 to {MAX_TAPS}")
    if numtaps == 1:
        return None
    window = np.kaiser(numtaps, _kaiser_beta(2.285 * (numtaps - 1) * math.pi * width / (fs / 2) + 7.95))
    position = (np.arange(numtaps) - (numtaps - 1) / 2) / fs
    if radial:
        radius = np.hypot(position, position[:, None])
        taps = scipy.special.j1(2 * math.pi * cutoff * radius) / (math.pi * radius) * np.outer(window, window)
    else:
        taps = np.sinc(2 * cutoff * position) * window
    return torch.as_tensor((taps / taps.sum()).astype(np.float32))


def _kaiser_beta(attenuation: float) -> float:
    """The window's parameter for an attenuation in dB (Kaiser 1974)."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


class FullyConnectedLayer(stylegan2_layers.FullyConnectedLayer):
    """StyleGAN2's layer with the attributes of StyleGAN3's format.

    Args:
        weight_init: standard deviation of the initial weights.
        bias_init: initial bias, a number or [out_features].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        bias: bool = True,
        lr_multiplier: float = 1,
        weight_init: float = 1,
        bias_init: float | Sequence[float] = 0,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, activation=activation, lr_multiplier=lr_multiplier)
        self.in_features = in_features
        self.out_features = out_features
        with torch.no_grad():
            self.weight.mul_(weight_init)
            if self.bias is not None:
                self.bias.copy_(torch.as_tensor(bias_init, dtype=torch.float32) / lr_multiplier)


class MappingNetwork(PersistentModule):
    """Maps latents and labels to ws.

    Args:
        z_dim, c_dim: lengths of latents and labels (0: unconditional).
        w_dim: length of w.
        num_ws: number of copies of w to return.
        num_layers: number of fully connected layers.
        lr_multiplier: learning rate of these layers, relative to the rest of the network.
        w_avg_beta: decay of the running mean of w, which moves with update_emas in train mode only.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        self.embed = FullyConnectedLayer(c_dim, w_dim) if c_dim > 0 else None
        sizes = [z_dim + (w_dim if c_dim > 0 else 0), *[w_dim] * num_layers]
        for index in range(num_layers):
            layer = FullyConnectedLayer(sizes[index], sizes[index + 1], activation="lrelu", lr_multiplier=lr_multiplier)
            setattr(self, f"fc{index}", layer)
        self.register_buffer("w_avg", torch.zeros([w_dim]))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """z [N,z_dim]; c [N,c_dim] (ignored if c_dim is 0) -> ws [N,num_ws,w_dim].

        truncation_psi moves the first truncation_cutoff ws (None: all) towards their mean w_avg; 1 does not move them.
        update_emas moves w_avg towards this batch's mean, in train mode.
        """
        dtype = self.w_avg.dtype
        w = normalize_2nd_moment(check_rows("z", z, self.z_dim).to(dtype))
        if self.embed is not None:
            labels = check_rows("c", c, self.c_dim).to(dtype)
            w = torch.cat([w, normalize_2nd_moment(self.embed(labels))], dim=1)
        for index in range(self.num_layers):
            w = getattr(self, f"fc{index}")(w)
        if update_emas and self.training:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)


class SynthesisInput(PersistentModule):
    """The first feature maps: waves of fixed frequencies, which w shifts and rotates (section 3.1 of the paper).

    Args:
        w_dim: length of w.
        channels: number of waves and of feature maps.
        size: side of the feature maps in pixels, with their margin.
        sampling_rate: pixels per picture.
        bandwidth: the highest frequency at first.
    """

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_dim: int, channels: int, size: int, sampling_rate: float, bandwidth: float) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.channels = channels
        self.size = [size, size]
        self.sampling_rate = sampling_rate
        self.bandwidth = bandwidth
        direction = torch.randn([channels, 2])
        length = direction.square().sum(dim=1, keepdim=True).sqrt()
        self.weight = Parameter(torch.randn([channels, channels]))
        self.affine = FullyConnectedLayer(w_dim, 4, weight_init=0, bias_init=[1, 0, 0, 0])
        self.register_buffer("transform", torch.eye(3))  # of positions in the result to positions in the picture
        self.register_buffer("freqs", direction / length * torch.exp(-length.square() / 4) * bandwidth)  # in a disc
        self.register_buffer("phases", torch.rand([channels]) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        """w [N,w_dim] -> [N,channels,size,size]."""
        moved = self._moved(w)
        freqs = self.freqs @ moved[:, :2, :2]  # [N,channels,2]
        phases = self.phases + (self.freqs @ moved[:, :2, 2:]).squeeze(2)
        beyond = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        amplitudes = (1 - beyond).clamp(0, 1)  # a transform must not take waves beyond what the pixels can hold
        angle = (
            freqs[:, :, 0, None, None] * self._axis(self.size[0], w)
            + freqs[:, :, 1, None, None] * self._axis(self.size[1], w)[:, None]
            + phases[:, :, None, None]
        )
        x = torch.sin(angle * (2 * math.pi)) * amplitudes[:, :, None, None]
        weight = self.weight / math.sqrt(self.channels)
        return (weight @ x.flatten(2)).unflatten(2, [self.size[1], self.size[0]])

    def _moved(self, w: Tensor) -> Tensor:
        """The map of positions, [N,3,3]: `transform`, then the shift of w, then its rotation."""
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin, x, y = t.unbind(dim=1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).unflatten(1, [3, 3])
        shift = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], dim=1).unflatten(1, [3, 3])
        return rotation @ shift @ self.transform

    def _axis(self, size: int, like: Tensor) -> Tensor:
        """Positions of the pixels along an axis, [size]."""
        return (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5 - size / 2) / self.sampling_rate


class SynthesisLayer(PersistentModule):
    """Modulated convolution, then a nonlinearity between two low-pass filters; the last layer (ToRGB) has neither.

    Args:
        w_dim: length of w.
        is_torgb: whether this is the last layer.
        is_critically_sampled: whether it uses the whole band up to half the sampling rate.
        use_fp16: whether to compute in float16 on CUDA.
        in_channels, out_channels, in_size, out_size, in_sampling_rate, out_sampling_rate: of the feature maps.
        in_cutoff, out_cutoff, in_half_width, out_half_width: of their bands, and of the transitions.
        conv_kernel: size of the convolution kernel, 1 for ToRGB.
        filter_size: taps of a filter per pixel of the lower of its two rates.
        lrelu_upsampling: the nonlinearity's rate, relative to the higher of the layer's rates.
        use_radial_filters: whether the second filter is radial, except where critically sampled.
        conv_clamp: limit on the absolute value of the nonlinearity's result, None for no limit.
        magnitude_ema_beta: decay of the running mean square of the input, by which it is normalised.
    """

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(
        self,
        w_dim: int,
        is_torgb: bool,
        is_critically_sampled: bool,
        use_fp16: bool,
        in_channels: int,
        out_channels: int,
        in_size: int,
        out_size: int,
        in_sampling_rate: int,
        out_sampling_rate: int,
        in_cutoff: float,
        out_cutoff: float,
        in_half_width: float,
        out_half_width: float,
        conv_kernel: int = 3,
        filter_size: int = 6,
        lrelu_upsampling: int = 2,
        use_radial_filters: bool = False,
        conv_clamp: float | None = 256,
        magnitude_ema_beta: float = 0.999,
    ) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.is_torgb = is_torgb
        self.is_critically_sampled = is_critically_sampled
        self.use_fp16 = use_fp16
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.in_size = [in_size, in_size]
        self.out_size = [out_size, out_size]
        self.in_sampling_rate = in_sampling_rate
        self.out_sampling_rate = out_sampling_rate
        self.tmp_sampling_rate = max(in_sampling_rate, out_sampling_rate) * (1 if is_torgb else lrelu_upsampling)
        self.in_cutoff = in_cutoff
        self.out_cutoff = out_cutoff
        self.in_half_width = in_half_width
        self.out_half_width = out_half_width
        self.conv_kernel = 1 if is_torgb else conv_kernel
        self.conv_clamp = conv_clamp
        self.magnitude_ema_beta = magnitude_ema_beta
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = Parameter(torch.randn([out_channels, in_channels, self.conv_kernel, self.conv_kernel]))
        self.bias = Parameter(torch.zeros([out_channels]))
        self.register_buffer("magnitude_ema", torch.ones([]))
        self._set_filters(filter_size, use_radial_filters)

    def _set_filters(self, filter_size: int, use_radial_filters: bool) -> None:
        """Designs the filters, and the padding that centres the result."""
        rate = self.tmp_sampling_rate
        self.up_factor, up_rest = divmod(rate, self.in_sampling_rate)
        self.down_factor, down_rest = divmod(rate, self.out_sampling_rate)
        if up_rest or down_rest:
            raise ValueError(f"{self.in_sampling_rate} to {self.out_sampling_rate} by {rate}; accepted: multiples")
        self.up_taps = filter_size * self.up_factor if self.up_factor > 1 and not self.is_torgb else 1
        self.register_buffer("up_filter", design_lowpass(self.up_taps, self.in_cutoff, 2 * self.in_half_width, rate))
        self.down_taps = filter_size * self.down_factor if self.down_factor > 1 and not self.is_torgb else 1
        self.down_radial = use_radial_filters and not self.is_critically_sampled
        self.register_buffer(
            "down_filter",
            design_lowpass(self.down_taps, self.out_cutoff, 2 * self.out_half_width, rate, self.down_radial),
        )
        self.padding = []
        for in_size, out_size in zip(self.in_size, self.out_size, strict=True):
            total = (out_size - 1) * self.down_factor + 1 + self.up_taps + self.down_taps - 2
            total -= (in_size + self.conv_kernel - 1) * self.up_factor
            low = (total + self.up_factor) // 2
            self.padding += [low, total - low]

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", force_fp32: bool = False, update_emas: bool = False
    ) -> Tensor:
        """x [N,in_channels,in_size,in_size], w [N,w_dim] -> [N,out_channels,out_size,out_size].

        noise_mode is checked and has no effect: there is no noise; see `SynthesisNetwork.forward`.
        """
        check_choice("noise_mode", noise_mode, NOISE_MODES)
        if update_emas and self.training:
            mean = x.detach().to(self.magnitude_ema.dtype).square().mean()
            self.magnitude_ema.copy_(mean.lerp(self.magnitude_ema, self.magnitude_ema_beta))
        half = self.use_fp16 and not force_fp32 and x.device.type == "cuda" and self.weight.dtype == torch.float32
        x = x.to(torch.float16 if half else self.weight.dtype)
        x = modulated_conv2d(x, self.weight, self.affine(w), self.magnitude_ema.rsqrt(), demodulate=not self.is_torgb)
        return filtered_lrelu(
            x,
            self.up_filter,
            self.down_filter,
            self.bias.to(x.dtype),
            up=self.up_factor,
            down=self.down_factor,
            padding=self.padding,
            gain=1 if self.is_torgb else math.sqrt(2),
            slope=1 if self.is_torgb else 0.2,
            clamp=self.conv_clamp,
        )


def modulated_conv2d(x: Tensor, weight: Tensor, styles: Tensor, gain: Tensor, *, demodulate: bool) -> Tensor:
    """Convolves x [N,I,H,W], scaled by styles [N,I], with weight [O,I,k,k], padded by k-1; [N,O,H+k-1,W+k-1].

    With demodulation, each output channel's scaled weights have unit length; else they are divided by the root of
    their number. The result is multiplied by gain [].
    """
    kernel, scale = weight.shape[2], gain.expand(1, weight.shape[0])
    with torch.autocast(x.device.type, enabled=False):
        if demodulate:  # the two normalisations cancel, but keep float16 within its range
            weight = weight * weight.square().mean([1, 2, 3], keepdim=True).rsqrt()
            styles = styles * styles.square().mean().rsqrt()
            scale = scale * (styles.square() @ weight.square().sum([2, 3]).t() + EPSILON).rsqrt()
        else:
            styles = styles / math.sqrt(weight[0].numel())
    x = x * styles.to(x.dtype)[:, :, None, None]
    y = F.conv2d(x, weight.to(x.dtype), padding=kernel - 1)
    return y * scale.to(y.dtype)[:, :, None, None]
