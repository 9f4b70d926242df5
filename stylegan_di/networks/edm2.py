"""EDM2's network: a magnitude-preserving U-Net in EDM's preconditioning.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024, arXiv 2312.02696; the
equation numbers below are those of its appendices. Every layer keeps the expected magnitude of its input: weights are
normalised wherever they are used, and sums and concatenations are rescaled. Names of classes, arguments and parameters
are those of NVlabs' file format; `Precond` has the same interface as EDM's preconditioners.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import ModuleDict, Parameter

from stylegan_di.diffusion import Preconditioning, edm_preconditioning
from stylegan_di.networks import edm
from stylegan_di.networks.checks import check_choice
from stylegan_di.networks.edm_layers import attention, downsample, run, upsample
from stylegan_di.networks.edm_unets import last_of_each_level, plan_decoder, plan_encoder
from stylegan_di.torch_utils.persistence import PersistentModule


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    """Scales x to unit magnitude per element over `dim`, by default all dimensions but the first (eq. 47, 66)."""
    dim = list(range(1, x.ndim)) if dim is None else [dim] if isinstance(dim, int) else dim
    norm = torch.linalg.vector_norm(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim, keepdim=True)
    return x / (eps + norm * math.sqrt(1 / math.prod(x.shape[d] for d in dim))).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps unit variance (eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """lerp(a, b, t), rescaled to keep unit variance (eq. 88)."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Concatenates channels so that b contributes the share t (eq. 103)."""
    a_channels, b_channels = a.shape[1], b.shape[1]
    scale = math.sqrt((a_channels + b_channels) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(a_channels)), b * (scale * t / math.sqrt(b_channels))], dim=1)


class MPFourier(PersistentModule):
    """x [B] -> [B,num_channels]: cosines of random frequencies and phases, buffers that are never trained."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int, bandwidth: float = 1) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels) * bandwidth)
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.outer(x, self.freqs.to(x.dtype)) + self.phases.to(x.dtype)).cos() * math.sqrt(2)


class MPConv(PersistentModule):
    """Convolution, or with kernel=() a matrix product, by normalised weights (eq. 47).

    In train mode the forward pass first normalises the stored weights in place (algorithm 1).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight))
        weight = (normalize(self.weight) * (gain / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        return x @ weight.t() if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(PersistentModule):
    """Residual block of the encoder or the decoder (fig. 21), conditioned on emb [B,emb_channels].

    Args:
        in_channels, out_channels, emb_channels: channels of the input, the output and the embedding.
        flavor: 'enc' or 'dec'.
        resample_mode: 'keep', 'up' or 'down', with the taps resample_filter.
        attention: whether self-attention ends the block, with channels_per_head channels per head.
        dropout: probability, used in train mode only.
        res_balance, attn_balance: shares of the residual branch and of the attention.
        clip_act: magnitude to which the output is clipped, None for no clipping.
    """

    conv_skip: MPConv | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        flavor: str = "enc",
        resample_mode: str = "keep",
        resample_filter: Sequence[float] = (1, 1),
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        check_choice("flavor", flavor, ("enc", "dec"))
        check_choice("resample_mode", resample_mode, ("keep", "up", "down"))
        self.out_channels = out_channels
        self.flavor = flavor
        self.resample_filter = list(resample_filter)
        self.resample_mode = resample_mode
        self.num_heads = out_channels // channels_per_head if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels, which do not divide into {self.num_heads} heads")
        self.dropout = dropout
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.clip_act = clip_act
        self.emb_gain = Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, kernel=(3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels, kernel=())
        self.conv_res1 = MPConv(out_channels, out_channels, kernel=(3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, kernel=(1, 1)) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, out_channels * 3, kernel=(1, 1))
            self.attn_proj = MPConv(out_channels, out_channels, kernel=(1, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self._resample(x)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=1)
            x = mp_sum(x, self._residual(x, emb), self.res_balance)
        else:
            residual = self._residual(x, emb)
            x = mp_sum(x if self.conv_skip is None else self.conv_skip(x), residual, self.res_balance)
        if self.num_heads:
            x = mp_sum(x, self._attention(x), self.attn_balance)
        return x if self.clip_act is None else x.clip(-self.clip_act, self.clip_act)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample_mode == "keep":
            return x
        taps = torch.tensor(self.resample_filter, dtype=torch.float32, device=x.device)
        taps = torch.outer(taps, taps)[None, None] / taps.sum().square()
        resample = upsample if self.resample_mode == "up" else downsample
        return resample(x, taps, (len(self.resample_filter) - 1) // 2)

    def _residual(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        return self.conv_res1(F.dropout(y, p=self.dropout, training=self.training))

    def _attention(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values are normalised over their channels."""
        qkv = self.attn_qkv(x)
        parts = qkv.unflatten(1, [self.num_heads, -1, 3])
        return self.attn_proj(attention(normalize(parts, dim=2).reshape(qkv.shape), self.num_heads))


class UNet(PersistentModule):
    """The U-Net (fig. 21); the channels of level i are model_channels * channel_mult[i].

    Args:
        img_resolution, img_channels, label_dim: shape of the images, and length of their labels (0 for none).
        model_channels, channel_mult, num_blocks, attn_resolutions: as SongUNet's.
        channel_mult_noise, channel_mult_emb: channels of the noise embedding and of the whole embedding, times
            model_channels; by default as many as the first level has, and as many as the widest level has.
        label_balance, concat_balance: shares of the class labels and of the skip connections.
        block_kwargs: arguments for `Block`.
    """

    emb_label: MPConv | None

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        widths = [model_channels * mult for mult in channel_mult]
        noise_channels = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        emb_channels = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        block: Callable[..., Block] = partial(Block, emb_channels=emb_channels, **block_kwargs)
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.out_gain = Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels, kernel=())
        self.emb_label = MPConv(label_dim, emb_channels, kernel=()) if label_dim else None

        encoder = plan_encoder(img_resolution, img_channels + 1, widths[0], widths, num_blocks)
        self.enc = ModuleDict()
        for layer in encoder:
            if layer.kind == "conv":
                self.enc[layer.key] = MPConv(layer.cin, layer.cout, kernel=(3, 3))
            else:
                down = layer.kind == "down"
                attend = not down and layer.res in attn_resolutions
                mode = "down" if down else "keep"
                self.enc[layer.key] = block(layer.cin, layer.cout, flavor="enc", resample_mode=mode, attention=attend)
        self.dec = ModuleDict()
        for layer in plan_decoder(encoder, widths, num_blocks):
            attend = layer.kind == "in0" or (layer.kind.startswith("block") and layer.res in attn_resolutions)
            mode = "up" if layer.kind == "up" else "keep"
            self.dec[layer.key] = block(layer.cin, layer.cout, flavor="dec", resample_mode=mode, attention=attend)
        self.out_conv = MPConv(widths[0], img_channels, kernel=(3, 3))

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, recompute: bool = False
    ) -> Tensor:
        """Returns F(x) [B,C,H,W]; arguments as those of `edm_unets.UNet.forward`."""
        skips, emb = self._embed_and_encode(x, noise_labels, class_labels, recompute)
        x = skips[-1]
        for key, layer in self.dec.items():
            x = mp_cat(x, skips.pop(), self.concat_balance) if "block" in key else x
            x = run(layer, x, emb, recompute)
        return self.out_conv(x, gain=self.out_gain)

    def features(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, recompute: bool = False
    ) -> list[Tensor]:
        """Runs the encoder alone; see `edm_unets.UNet.features`. Arguments as forward's."""
        return last_of_each_level(self._embed_and_encode(x, noise_labels, class_labels, recompute)[0])

    def _embed_and_encode(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, recompute: bool
    ) -> tuple[list[Tensor], Tensor]:
        """The outputs of the encoder's layers, in their order, and the embedding."""
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_label is not None:
            assert class_labels is not None
            labels = self.emb_label(class_labels.to(emb.dtype) * math.sqrt(class_labels.shape[1]))
            emb = mp_sum(emb, labels, self.label_balance)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        outputs: list[Tensor] = []
        for key, layer in self.enc.items():
            x = layer(x) if key.endswith("conv") else run(layer, x, emb, recompute)
            outputs.append(x)
        return outputs, emb


#: Shift and scale of the latents that the networks work on (arXiv 2312.02696), by channel: those of Stable Diffusion's
#: autoencoder (stabilityai/sd-vae-ft-mse), brought to a mean of 0 and a standard deviation of 0.5.
LATENTS = [5.81, 3.25, 0.12, -2.15], [0.5 / std for std in (4.17, 4.62, 3.71, 3.28)]


class Precond(edm.Precond):
    """EDM's preconditioning around `UNet`(**unet_kwargs), with an estimate of the log loss for training."""

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    latents = LATENTS

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16)
        self.sigma_data = sigma_data
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet_kwargs)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1, kernel=())

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return edm_preconditioning(sigma, self.sigma_data)

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> Tensor:
        return self.unet(x, c_noise, labels, **kwargs)

    def raw_features(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> list[Tensor]:
        return self.unet.features(x, c_noise, labels, **kwargs)

    def logvar(self, sigma: Tensor) -> Tensor:
        """u(sigma), the logarithm of the expected loss at noise levels sigma [B]: [B,1,1,1] (eq. 21)."""
        c_noise = self.coefficients(sigma).c_noise.flatten()
        return self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)
