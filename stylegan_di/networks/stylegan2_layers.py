"""The layers of StyleGAN2's networks, and its mapping network.

Names of classes, arguments, attributes and parameters are those of NVlabs' file format. Every attribute of a layer is
written to its pickle, so layers have no attributes beyond the format's. Weights are drawn from N(0,1) and scaled at run
time by 1/sqrt(fan in), which equalizes learning rates (Karras et al. 2018, arXiv 1710.10196, section 4.1).

Layers cast their parameters to their input's dtype: modules made `.double()` compute in float64 throughout, and
float16 activations work with float32 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from stylegan_di.networks.checks import check_choice, check_rows
from stylegan_di.torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from stylegan_di.torch_utils.ops.conv2d_resample import conv2d_resample
from stylegan_di.torch_utils.ops.modulated_conv2d import modulated_conv2d
from stylegan_di.torch_utils.ops.upfirdn2d import setup_filter
from stylegan_di.torch_utils.persistence import PersistentModule

NoiseSource = Callable[[int, int, int], Tensor]  # (1, res, res) -> standard normal numbers [N,1,res,res]

NOISE_MODES = ("random", "const", "none")
RESAMPLE_FILTER = (1, 3, 3, 1)
EPSILON = 1e-8


def normalize_2nd_moment(x: Tensor) -> Tensor:
    """Scales each row of x [N,features] to a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON)


def random_weight(shape: Sequence[int], channels_last: bool = False) -> Tensor:
    """Draws N(0,1) numbers from torch's global generator."""
    weight = torch.randn(list(shape))
    return weight.to(memory_format=torch.channels_last) if channels_last else weight


class FullyConnectedLayer(PersistentModule):
    """x [N,in_features] -> act(x @ (weight * lr / sqrt(in))^T + bias * lr), [N,out_features]; ignores autocast."""

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = Parameter(torch.randn([out_features, in_features]) / lr_multiplier)
        self.bias = Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype).t()
        with torch.autocast(x.device.type, enabled=False):  # styles are cheap, and everything else depends on them
            if self.bias is None:
                y = (x * self.weight_gain) @ weight
            else:  # addmm applies both gains at no extra cost
                y = torch.addmm(self.bias.to(x.dtype), x, weight, beta=self.bias_gain, alpha=self.weight_gain)
        return bias_act(y, act=self.activation)


class Conv2dLayer(PersistentModule):
    """Resamples and convolves x [N,in_channels,H,W], then adds bias, activates and clamps; [N,out_channels,H',W'].

    With trainable=False the weight and bias are buffers of the same names.
    """

    weight: Tensor
    bias: Tensor | None
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = RESAMPLE_FILTER,
        conv_clamp: float | None = None,
        channels_last: bool = False,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = up
        self.down = down
        self.conv_clamp = conv_clamp
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = ACTIVATIONS[activation].default_gain
        weight = random_weight([out_channels, in_channels, kernel_size, kernel_size], channels_last)
        if trainable:
            self.weight = Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        if not bias:
            self.bias = None
        elif trainable:
            self.bias = Parameter(torch.zeros([out_channels]))
        else:
            self.register_buffer("bias", torch.zeros([out_channels]))

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = conv2d_resample(
            x, weight, self.resample_filter, up=self.up, down=self.down, padding=self.padding, flip_weight=self.up == 1
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class MappingNetwork(PersistentModule):
    """Maps latents and labels to ws (arXiv 1812.04948, section 2); the discriminator's maps labels to a vector.

    Args:
        z_dim, c_dim: lengths of latents and labels, 0 for none.
        w_dim: length of w.
        num_ws: number of copies of w to return; None returns w itself, without that axis.
        num_layers: number of fully connected layers.
        embed_features: length of the embedded labels, default w_dim.
        layer_features: width of the hidden layers, default w_dim.
        lr_multiplier: learning rate of these layers, relative to the rest of the network.
        w_avg_beta: decay of the running mean of w, updated in train mode; None keeps no mean.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        embedded = 0
        if c_dim > 0:
            embedded = w_dim if embed_features is None else embed_features
            self.embed = FullyConnectedLayer(c_dim, embedded)
        between = w_dim if layer_features is None else layer_features
        sizes = [z_dim + embedded, *[between] * (num_layers - 1), w_dim]
        for index in range(num_layers):
            layer = FullyConnectedLayer(
                sizes[index], sizes[index + 1], activation=activation, lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{index}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim]))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> Tensor:
        """z [N,z_dim] (None if z_dim is 0); c [N,c_dim] (ignored if c_dim is 0) -> ws [N,num_ws,w_dim].

        truncation_psi moves the first truncation_cutoff ws (None: all) towards their mean w_avg; 1 does not move them.
        """
        dtype = next(self.parameters()).dtype
        inputs = []
        if self.z_dim > 0:
            inputs.append(normalize_2nd_moment(check_rows("z", z, self.z_dim).to(dtype)))
        if self.c_dim > 0:
            inputs.append(normalize_2nd_moment(self.embed(check_rows("c", c, self.c_dim).to(dtype))))
        w = torch.cat(inputs, dim=1)
        for index in range(self.num_layers):
            w = getattr(self, f"fc{index}")(w)
        if self.num_ws is None:
            return w
        if self.w_avg_beta is not None and self.training and not skip_w_avg_update:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi == 1:
            return ws
        if self.w_avg_beta is None:
            raise ValueError(f"{truncation_psi=} with a mapping network that keeps no mean of w; accepted: 1")
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)


class SynthesisLayer(PersistentModule):
    """Modulated convolution, noise, bias, activation and clamp: x [N,Cin,H,W], w [N,w_dim] -> [N,Cout,res,res]."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = RESAMPLE_FILTER,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.conv_clamp = conv_clamp
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.padding = kernel_size // 2
        self.act_gain = ACTIVATIONS[activation].default_gain
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = Parameter(random_weight([out_channels, in_channels, kernel_size, kernel_size], channels_last))
        if use_noise:
            self.register_buffer("noise_const", torch.randn([resolution, resolution]))
            self.noise_strength = Parameter(torch.zeros([]))
        self.bias = Parameter(torch.zeros([out_channels]))

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise_mode: str = "random",
        fused_modconv: bool = True,
        gain: float = 1,
        noise_source: NoiseSource | None = None,
    ) -> Tensor:
        """See `SynthesisNetwork.forward`; gain scales the result and the clamp; fused_modconv has no effect."""
        return modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise=self.noise(x.shape[0], noise_mode, noise_source),
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            b=self.bias,
            act=self.activation,
            gain=self.act_gain * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
        )

    def noise(self, batch: int, noise_mode: str, noise_source: NoiseSource | None) -> Tensor | None:
        """The noise to add to every feature map: [N,1,res,res], [res,res] or None."""
        check_choice("noise_mode", noise_mode, NOISE_MODES)
        if not self.use_noise or noise_mode == "none":
            return None
        strength = self.noise_strength
        if noise_mode == "const":
            return self.noise_const * strength
        if noise_source is not None:
            return noise_source(1, self.resolution, self.resolution).to(strength) * strength
        shape = [batch, 1, self.resolution, self.resolution]
        return torch.randn(shape, device=strength.device, dtype=strength.dtype) * strength


class ToRGBLayer(PersistentModule):
    """Modulated convolution without demodulation: x [N,Cin,H,W] and w [N,w_dim] -> [N,img_channels,H,W]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = Parameter(random_weight([out_channels, in_channels, kernel_size, kernel_size], channels_last))
        self.bias = Parameter(torch.zeros([out_channels]))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        """fused_modconv has no effect, see `SynthesisNetwork.forward`."""
        styles = self.affine(w) * self.weight_gain
        padding = self.weight.shape[2] // 2
        return modulated_conv2d(
            x, self.weight, styles, padding=padding, demodulate=False, b=self.bias, clamp=self.conv_clamp
        )


class MinibatchStdLayer(PersistentModule):
    """Appends the standard deviation over groups of samples as extra channels (arXiv 1710.10196, section 3).

    Args:
        group_size: samples per group, which must divide the batch; None makes the whole batch one group.
        num_channels: number of extra channels, each computed from an equal share of the input channels.
    """

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """x [N,C,H,W] -> [N,C+num_channels,H,W]."""
        batch, _, height, width = x.shape
        size = batch if self.group_size is None else min(self.group_size, batch)
        if batch % size:
            raise ValueError(f"a batch of {batch} in groups of {self.group_size}; it must be a multiple")
        groups = x.unflatten(0, [size, -1]).unflatten(2, [self.num_channels, -1])  # [G,N/G,F,C/F,H,W]
        std = (groups.var(0, correction=0) + EPSILON).sqrt().mean([2, 3, 4])  # [N/G,F]
        std = std.repeat(size, 1)[:, :, None, None].expand(-1, -1, height, width)
        return torch.cat([x, std], dim=1)
