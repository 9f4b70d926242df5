"""The U-Nets of EDM: DDPM++ and NCSN++ (SongUNet), and ADM (DhariwalUNet).

Song et al. 2021 (arXiv 2011.13456); Dhariwal & Nichol 2021 (arXiv 2105.05233); Karras et al. 2022 (arXiv 2206.00364).
Names of classes, arguments, attributes and parameters are those of NVlabs' file format.

Parameters are cast to the input's dtype. Dropout and label_dropout act only in train mode, where they draw from torch's
global generator.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import ModuleDict

from stylegan_di.networks.checks import check_choice
from stylegan_di.networks.edm_layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    UNetBlock,
    run,
)
from stylegan_di.torch_utils.persistence import PersistentModule

LAYOUT = torch.channels_last  # the faster activation layout for convolutions and normalisation


class LayerPlan(NamedTuple):
    """A layer of a U-Net: its resolution, what it does, and its channels."""

    res: int
    kind: str  # 'conv', 'down', 'up', 'in0', 'in1', 'block0', 'block1', ...
    cin: int
    cout: int

    @property
    def key(self) -> str:
        """The layer's name in the file format."""
        return f"{self.res}x{self.res}_{self.kind}"


def plan_encoder(
    img_resolution: int, in_channels: int, stem: int, widths: Sequence[int], num_blocks: int
) -> list[LayerPlan]:
    """Plans the encoder: a convolution to `stem` channels, then `num_blocks` blocks per level, halving in between.

    Raises:
        ValueError: if the resolution cannot be halved so often.
    """
    if img_resolution % 2 ** (len(widths) - 1):
        raise ValueError(f"a resolution of {img_resolution} with {len(widths)} levels")
    plan: list[LayerPlan] = []
    cout = stem
    for level, width in enumerate(widths):
        res = img_resolution >> level
        plan.append(LayerPlan(res, "down", cout, cout) if level else LayerPlan(res, "conv", in_channels, stem))
        for index in range(num_blocks):
            plan.append(LayerPlan(res, f"block{index}", cout, width))
            cout = width
    return plan


def plan_decoder(encoder: Sequence[LayerPlan], widths: Sequence[int], num_blocks: int) -> list[LayerPlan]:
    """Plans the decoder, whose blocks also take the outputs of the encoder's layers, the last one first."""
    plan: list[LayerPlan] = []
    skips = [layer.cout for layer in encoder]
    res, cout = encoder[-1].res, encoder[-1].cout
    for width in reversed(widths):
        if plan:
            res *= 2
            plan.append(LayerPlan(res, "up", cout, cout))
        else:
            plan += [LayerPlan(res, "in0", cout, cout), LayerPlan(res, "in1", cout, cout)]
        for index in range(num_blocks + 1):
            plan.append(LayerPlan(res, f"block{index}", cout + skips.pop(), width))
            cout = width
    return plan


def drop_labels(labels: Tensor, probability: float, batch: int) -> Tensor:
    """Zeroes each row of labels [B or 1,label_dim] with the given probability, by torch's global generator."""
    return labels * (torch.rand([batch, 1], device=labels.device) >= probability).to(labels.dtype)


def last_of_each_level(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Picks the last tensor [B,C,H,W] of each resolution from an encoder's outputs, which are in the layers' order."""
    return list({output.shape[-1]: output for output in outputs}.values())


SONG_INIT: dict[str, Any] = {"init_mode": "xavier_uniform"}
SONG_INIT_ZERO: dict[str, Any] = {"init_mode": "xavier_uniform", "init_weight": 1e-5}
SONG_BLOCK: dict[str, Any] = {
    "num_heads": 1,
    "skip_scale": math.sqrt(0.5),
    "eps": 1e-6,
    "resample_proj": True,
    "adaptive_scale": False,
    "init": SONG_INIT,
    "init_zero": SONG_INIT_ZERO,
    "init_attn": {"init_mode": "xavier_uniform", "init_weight": math.sqrt(0.2)},
}


def build_encoder(
    plan: Sequence[LayerPlan],
    block: Callable[..., UNetBlock],
    attn_resolutions: Sequence[int],
    init: dict[str, Any],
    encoder_type: str = "standard",
    resample_filter: Sequence[float] = (1, 1),
) -> ModuleDict:
    """Builds an encoder; SongUNet's auxiliary layers downsample the input image for each level."""
    layers = ModuleDict()
    caux = plan[0].cin
    for layer in plan:
        res, kind, cin, cout = layer
        if kind == "conv":
            layers[layer.key] = Conv2d(cin, cout, kernel=3, **init)
            continue
        down = kind == "down"
        layers[layer.key] = block(cin, cout, down=down, attention=not down and res in attn_resolutions)
        if down and encoder_type == "skip":
            layers[f"{res}x{res}_aux_down"] = Conv2d(caux, caux, kernel=0, down=True, resample_filter=resample_filter)
            layers[f"{res}x{res}_aux_skip"] = Conv2d(caux, cout, kernel=1, **init)
        if down and encoder_type == "residual":
            layers[f"{res}x{res}_aux_residual"] = Conv2d(
                caux, cout, kernel=3, down=True, resample_filter=resample_filter, fused_resample=True, **init
            )
            caux = cout
    return layers


def song_decoder(
    plan: Sequence[LayerPlan],
    block: Callable[..., UNetBlock],
    attn_resolutions: Sequence[int],
    decoder_type: str,
    resample_filter: Sequence[float],
    out_channels: int,
) -> ModuleDict:
    """Builds SongUNet's decoder; its auxiliary layers make output images, at the last level or at every level."""
    layers = ModuleDict()
    last = plan[-1].kind  # the kind of each level's last block, the only one with attention
    for layer in plan:
        res, kind, cin, cout = layer
        attend = kind == "in0" or (kind == last and res in attn_resolutions)
        layers[layer.key] = block(cin, cout, up=kind == "up", attention=attend)
        if kind != last or (decoder_type == "standard" and res != plan[-1].res):
            continue
        if decoder_type == "skip" and res != plan[0].res:
            layers[f"{res}x{res}_aux_up"] = Conv2d(
                out_channels, out_channels, kernel=0, up=True, resample_filter=resample_filter
            )
        layers[f"{res}x{res}_aux_norm"] = GroupNorm(cout, eps=1e-6)
        layers[f"{res}x{res}_aux_conv"] = Conv2d(cout, out_channels, kernel=3, **SONG_INIT_ZERO)
    return layers


class UNet(PersistentModule):
    """What both U-Nets share: the embedding conditions the encoder, and the decoder takes the encoder's outputs."""

    enc: ModuleDict
    dec: ModuleDict

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Returns F(x) [B,out_channels,H,W].

        Args:
            x: [B,in_channels,H,W].
            noise_labels: [B] or [1].
            class_labels: [B or 1,label_dim]; None without label_dim.
            augment_labels: [B,augment_dim], None for no augmentation.
            recompute: whether the backward pass computes the activations inside blocks again.
        """
        emb = self.embed(noise_labels, class_labels, augment_labels, batch=x.shape[0])
        return self.decode(self.encode(x, emb, recompute), emb, recompute)

    def features(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None = None,
        recompute: bool = False,
    ) -> list[Tensor]:
        """Runs the encoder alone and returns its last output at each level, from the highest resolution to the lowest.

        Element i is [B,C_i,H/2^i,W/2^i] with C_i = model_channels * channel_mult[i]. Arguments as forward's.
        """
        emb = self.embed(noise_labels, class_labels, augment_labels, batch=x.shape[0])
        return last_of_each_level(self.encode(x, emb, recompute))

    @abstractmethod
    def embed(
        self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None, batch: int
    ) -> Tensor:
        """The embedding [B or 1,emb_channels] that conditions every block."""

    def encode(self, x: Tensor, emb: Tensor, recompute: bool = False) -> list[Tensor]:
        """Returns the outputs of all layers in order; the last one is the deepest level's."""
        x = x.to(memory_format=LAYOUT)
        skips: list[Tensor] = []
        aux = x
        for key, layer in self.enc.items():
            match key.partition("_")[2]:
                case "aux_down":
                    aux = layer(aux)
                case "aux_skip":
                    x = skips[-1] = x + layer(aux)
                case "aux_residual":
                    x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
                case kind:
                    x = layer(x).to(memory_format=LAYOUT) if kind == "conv" else run(layer, x, emb, recompute)
                    skips.append(x)
        return skips

    @abstractmethod
    def decode(self, skips: list[Tensor], emb: Tensor, recompute: bool = False) -> Tensor:
        """Returns the output image from the encoder's outputs, which it uses up."""


class SongUNet(UNet):
    """DDPM++ (positional, standard, standard) and NCSN++ (fourier, residual, standard) of Song et al.

    Args:
        img_resolution: side of the images, divisible by 2 ** (levels - 1).
        in_channels, out_channels: channels of the images.
        label_dim: length of the class labels, 0 for none.
        augment_dim: length of the augmentation labels, 0 for none.
        model_channels, channel_mult: level i has model_channels * channel_mult[i] channels.
        channel_mult_emb, channel_mult_noise: channels of the embedding and of its noise input, times model_channels.
        num_blocks: residual blocks per level.
        attn_resolutions: resolutions with self-attention.
        dropout, label_dropout: probabilities, used in train mode only.
        embedding_type: 'positional' or 'fourier'.
        encoder_type: 'standard', 'skip' or 'residual'; decoder_type: 'standard' or 'skip'.
        resample_filter: taps of the resampling filter, [1, 1] for DDPM++ and [1, 3, 3, 1] for NCSN++.
    """

    map_label: Linear | None
    map_augment: Linear | None

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        check_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        check_choice("decoder_type", decoder_type, ("standard", "skip"))
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        widths = [model_channels * mult for mult in channel_mult]
        block = partial(
            UNetBlock, emb_channels=emb_channels, dropout=dropout, resample_filter=resample_filter, **SONG_BLOCK
        )

        positional = embedding_type == "positional"
        self.map_noise = (
            PositionalEmbedding(noise_channels, endpoint=True) if positional else FourierEmbedding(noise_channels)
        )
        self.map_label = Linear(label_dim, noise_channels, **SONG_INIT) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, **SONG_INIT) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, **SONG_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, **SONG_INIT)

        encoder = plan_encoder(img_resolution, in_channels, model_channels, widths, num_blocks)
        decoder = plan_decoder(encoder, widths, num_blocks)
        self.enc = build_encoder(encoder, block, attn_resolutions, SONG_INIT, encoder_type, resample_filter)
        self.dec = song_decoder(decoder, block, attn_resolutions, decoder_type, resample_filter, out_channels)

    def embed(
        self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None, batch: int
    ) -> Tensor:
        cos, sin = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.map_label is not None:
            assert class_labels is not None
            if self.training and self.label_dropout:
                class_labels = drop_labels(class_labels, self.label_dropout, batch)
            emb = emb + self.map_label(class_labels.to(emb.dtype) * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def decode(self, skips: list[Tensor], emb: Tensor, recompute: bool = False) -> Tensor:
        """See `UNet.decode`; decoder_type 'skip' sums the image from upsampled images of all levels."""
        x, image = skips[-1], None
        for key, layer in self.dec.items():
            match key.partition("_")[2]:
                case "aux_up":
                    image = layer(image)
                case "aux_norm":
                    features = layer(x, silu=True)
                case "aux_conv":
                    image = layer(features) if image is None else image + layer(features)
                case kind:
                    x = torch.cat([x, skips.pop()], dim=1) if kind.startswith("block") else x
                    x = run(layer, x, emb, recompute)
        assert image is not None
        return image


class DhariwalUNet(UNet):
    """ADM of Dhariwal & Nichol. Arguments as SongUNet's, with one more than the file format has.

    channel_mult may have halves, as ADM's network for 512 pixels; `num_heads` is the number of heads of every
    attention, by default one for 64 channels.
    """

    map_label: Linear | None
    map_augment: Linear | None

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0,
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        widths = [int(model_channels * mult) for mult in channel_mult]
        third = math.sqrt(1 / 3)
        init: dict[str, Any] = {"init_mode": "kaiming_uniform", "init_weight": third, "init_bias": third}
        init_zero: dict[str, Any] = {"init_mode": "kaiming_uniform", "init_weight": 0, "init_bias": 0}
        init_label: dict[str, Any] = {"init_mode": "kaiming_normal", "init_weight": math.sqrt(label_dim)}
        block = partial(
            UNetBlock, emb_channels=emb_channels, dropout=dropout, num_heads=num_heads, init=init, init_zero=init_zero
        )

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, **init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, **init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **init)
        self.map_label = Linear(label_dim, emb_channels, bias=False, **init_label) if label_dim else None

        encoder = plan_encoder(img_resolution, in_channels, widths[0], widths, num_blocks)
        self.enc = build_encoder(encoder, block, attn_resolutions, init)
        self.dec = ModuleDict()
        for layer in plan_decoder(encoder, widths, num_blocks):
            res, kind, cin, cout = layer
            attend = kind == "in0" or (kind.startswith("block") and res in attn_resolutions)
            self.dec[layer.key] = block(cin, cout, up=kind == "up", attention=attend)
        self.out_norm = GroupNorm(widths[0])
        self.out_conv = Conv2d(widths[0], out_channels, kernel=3, **init_zero)

    def decode(self, skips: list[Tensor], emb: Tensor, recompute: bool = False) -> Tensor:
        x = skips[-1]
        for key, layer in self.dec.items():
            x = torch.cat([x, skips.pop()], dim=1) if "_block" in key else x
            x = run(layer, x, emb, recompute)
        return self.out_conv(self.out_norm.then_silu(x))

    def embed(
        self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None, batch: int
    ) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            assert class_labels is not None
            if self.training and self.label_dropout:
                class_labels = drop_labels(class_labels, self.label_dropout, batch)
            emb = emb + self.map_label(class_labels.to(emb.dtype))
        return F.silu(emb)
