"""The table of what a network's constructor may be given by a file: the type and range of every argument.

Constructors trust their callers. What a file gives is checked here first, so that it can neither keep a constructor
busy nor build a network that fails when it draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stylegan_di.networks.edm import MODELS
from stylegan_di.networks.refiner import DENOISERS, GENERATORS
from stylegan_di.networks.stylegan2 import ARCHITECTURES
from stylegan_di.specs import FINITE, SHARE, Range
from stylegan_di.torch_utils.ops.bias_act import ACTIVATIONS


@dataclass(frozen=True)
class Accepted:
    """The values that an argument accepts: of one of these types and, for numbers, in this range or among `others`.

    With `longest`, the argument is a list of up to that many of them, at least one unless `may_be_empty`.
    """

    types: tuple[type, ...]
    range: Range = FINITE
    others: tuple[Any, ...] = ()
    longest: int = 0
    may_be_empty: bool = False

    def __contains__(self, value: Any) -> bool:
        if not self.longest:
            return any(value is other or value == other for other in self.others) or self._is_plain(value)
        if not isinstance(value, list | tuple) or len(value) > self.longest:
            return False
        return (bool(value) or self.may_be_empty) and all(self._is_plain(item) for item in value)

    def _is_plain(self, value: Any) -> bool:
        if type(value) not in self.types:
            return False
        return not isinstance(value, int | float) or value in self.range

    def __str__(self) -> str:
        kind = " or ".join(kind.__name__ for kind in self.types)
        numbers = f", {self.range}" if {int, float} & set(self.types) else ""
        others = f", or one of {', '.join(map(str, self.others))}" if self.others else ""
        return (f"up to {self.longest} of: " if self.longest else "") + (kind + numbers + others).removeprefix(", or ")


def _int(low: int, high: int, *others: Any) -> Accepted:
    return Accepted((int,), Range(low, high), others)


def _number(accepted: Range, *others: Any) -> Accepted:
    return Accepted((int, float), accepted, others)


def _ints(low: int, high: int, longest: int, may_be_empty: bool = False) -> Accepted:
    return Accepted((int,), Range(low, high), (), longest, may_be_empty)


def _choice(*others: str) -> Accepted:
    return Accepted((), others=others)


_FLAG = Accepted((bool,))
_WIDTH = _int(1, 1 << 16)
_SIZE = Range(0, 1e6)  # no sensible number is larger, and float32 still holds its square
_ABOVE_0 = Range(1e-9, 1e6)

GROUPS = ("mapping_kwargs", "synthesis_kwargs", "block_kwargs", "epilogue_kwargs")  # dicts of further arguments
NETWORKS = ("generator", "denoiser")  # of a refiner: dicts of a class's name and the arguments of its constructor

#: Argument -> what is accepted, for the constructors of all networks.
ARGUMENTS: dict[str, Accepted] = {
    # All networks.
    "img_resolution": _int(1, 8192), "img_channels": _int(1, 1024), "use_fp16": _FLAG,
    "img_width": _int(1, 8192, None),
    "c_dim": _int(0, 100_000), "label_dim": _int(0, 100_000),
    "resample_filter": Accepted((int, float), Range(-1e3, 1e3), longest=64),
    # StyleGAN2.
    "z_dim": _WIDTH, "w_dim": _WIDTH, "channel_base": _int(1, 1 << 20), "channel_max": _WIDTH,
    "num_fp16_res": _int(0, 32), "num_layers": _int(0, 64), "embed_features": _int(1, 1 << 16, None),
    "layer_features": _int(1, 1 << 16, None), "activation": _choice(*ACTIVATIONS), "lr_multiplier": _number(_ABOVE_0),
    "w_avg_beta": _number(SHARE, None), "architecture": _choice(*ARCHITECTURES), "conv_clamp": _number(_ABOVE_0, None),
    "use_noise": _FLAG, "fp16_channels_last": _FLAG, "kernel_size": Accepted((), others=(1, 3, 5, 7)),
    "freeze_layers": _int(0, 1000), "cmap_dim": _int(0, 1 << 16, None), "mbstd_group_size": _int(1, 1 << 16, None),
    "mbstd_num_channels": _int(0, 1 << 16),
    # StyleGAN3.
    "num_critical": _int(1, 64), "first_cutoff": _number(Range(0.1, 4096)), "first_stopband": _number(Range(0.1, 8192)),
    "last_stopband_rel": _number(Range(1, 8)), "margin_size": _int(0, 1024), "output_scale": _number(_SIZE),
    "conv_kernel": Accepted((), others=(1, 3, 5, 7)), "filter_size": _int(1, 64), "lrelu_upsampling": _int(1, 16),
    "use_radial_filters": _FLAG, "magnitude_ema_beta": _number(SHARE),
    # R3GAN.
    "NoiseDimension": _WIDTH, "WidthPerStage": _ints(1, 1 << 16, 12), "CardinalityPerStage": _ints(1, 1 << 16, 12),
    "BlocksPerStage": _ints(1, 64, 12), "ExpansionFactor": _int(1, 64),
    "FP16Stages": _ints(-12, 11, 12, may_be_empty=True), "ConditionEmbeddingDimension": _int(0, 1 << 16),
    "KernelSize": Accepted((), others=(1, 3, 5, 7)),
    "ResamplingFilter": Accepted((int, float), Range(-1e3, 1e3), longest=64),
    # EDM, EDM2 and ADM.
    "model_type": _choice(*MODELS), "model_channels": _WIDTH, "num_heads": _int(1, 1024, None),
    "channel_mult": Accepted((int, float), Range(0.125, 1024), longest=16),
    "channel_mult_emb": _int(1, 1024, None), "channel_mult_noise": _int(1, 1024, None), "num_blocks": _int(1, 64),
    "attn_resolutions": _ints(0, 8192, 64, may_be_empty=True), "augment_dim": _int(0, 1024),
    "dropout": _number(Range(0, 1, open_high=True)), "label_dropout": _number(Range(0, 1, open_high=True)),
    "embedding_type": _choice("positional", "fourier"), "encoder_type": _choice("standard", "skip", "residual"),
    "decoder_type": _choice("standard", "skip"), "sigma_min": _number(_SIZE), "sigma_max": _number(_ABOVE_0, math.inf),
    "sigma_data": _number(_ABOVE_0), "beta_d": _number(_ABOVE_0), "beta_min": _number(_ABOVE_0),
    "M": _int(2, 10_000), "epsilon_t": _number(Range(1e-9, 1, open_high=True)), "C_1": _number(_ABOVE_0),
    "C_2": _number(_ABOVE_0), "logvar_channels": _WIDTH, "label_balance": _number(SHARE),
    "concat_balance": _number(SHARE), "res_balance": _number(SHARE), "attn_balance": _number(SHARE),
    "clip_act": _number(_ABOVE_0, None), "channels_per_head": _WIDTH,
    # Refiner, and students that start from nothing.
    "class_name": _choice(*GENERATORS, *DENOISERS), "sigma_init": _number(_ABOVE_0), "width": _WIDTH,
    "depth": _int(1, 1024), "angle": _number(Range(0, 180)),
    # AugmentPipe: probability multipliers, and the strength of each transform.
    **dict.fromkeys((
        "xflip", "rotate90", "xint", "xint_max", "scale", "rotate", "aniso", "xfrac", "scale_std", "rotate_max",
        "aniso_std", "xfrac_std", "brightness", "contrast", "lumaflip", "hue", "saturation", "brightness_std",
        "contrast_std", "hue_max", "saturation_std", "imgfilter", "imgfilter_std", "noise", "cutout", "noise_std",
        "cutout_size",
    ), _number(Range(0, 1e3))),
    "imgfilter_bands": Accepted((int, float), Range(0, 1e3), longest=4),
}  # fmt: skip


def check_arguments(arguments: Mapping[str, Any], names: tuple[str, ...] = ()) -> None:
    """Checks what a file gives a constructor.

    Args:
        arguments: by name; the groups hold dicts of further arguments, or None, and a refiner's networks hold all of
            theirs.
        names: the networks and groups in which they are.

    Raises:
        ValueError: for a value that is not accepted, or an unknown name.
    """
    of_network = not names or names[-1] in NETWORKS
    for name, value in arguments.items():
        where = ".".join([*names, str(name)])[:80]
        if (name in GROUPS and of_network) or (name in NETWORKS and not names):
            if not isinstance(value, Mapping) and (value is not None or name in NETWORKS):
                raise ValueError(f"{where} is a {type(value).__name__}; accepted is a dict")
            check_arguments(value or {}, (*names, name))
        elif name not in ARGUMENTS:
            raise ValueError(f"there is no argument {where}")
        elif value not in ARGUMENTS[name]:
            raise ValueError(f"{where}={str(value)[:40]}; accepted is {ARGUMENTS[name]}")
    if of_network:
        _check_together(arguments)


def _check_together(arguments: Mapping[str, Any]) -> None:
    """Checks arguments that limit each other."""
    low, high = arguments.get("sigma_min"), arguments.get("sigma_max")
    if low is not None and high is not None and low >= high:
        raise ValueError(f"sigma_min={low} is not below sigma_max={high}")
    if "z_dim" in arguments and (arguments.get("mapping_kwargs") or {}).get("num_layers") == 0:
        raise ValueError("a generator without mapping layers")
    is_r3gan = "WidthPerStage" in arguments
    if "c_dim" in arguments and "z_dim" not in arguments and not is_r3gan and arguments["img_resolution"] < 8:
        raise ValueError("a discriminator of images below 8x8")
    if arguments.get("first_cutoff", 2) > arguments.get("first_stopband", 2**2.1):
        raise ValueError("a first_cutoff above first_stopband")
    channels, mult = arguments.get("model_channels", 128), arguments.get("channel_mult", (1,))
    if channels % 2:
        raise ValueError(f"model_channels={channels} is odd")
    for width in (int(channels * factor) for factor in mult):
        if width < 4 or width % min(32, width // 4):
            raise ValueError(f"{width} channels, which do not divide into groups of at least 4")
