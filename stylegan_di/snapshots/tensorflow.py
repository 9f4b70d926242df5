"""Converts TensorFlow-era StyleGAN2 networks to our blueprints, by renaming arguments and weights.

Such a file holds a triple (G, D, Gs), which corresponds to G, D and G_ema. Its layouts differ from ours: dense weights
are [in,out], convolutions are [kh,kw,in,out], upsampling convolutions are flipped in both spatial axes, a modulation's
bias is stored without the 1 that is added to it, and `fmap_base` is half of `channel_base`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_di.snapshots.blueprint import Blueprint
from stylegan_di.torch_utils.persistence import RefusedFileError, TensorFlowNetwork

NAMES = ("G", "D", "G_ema")  # our names for the triple, in its order
NOT_STORED = "resample_filter"  # the constructor sets it

# Name in the file -> (our constructor's keyword group, '' for a direct argument; our name; the default).
_Table = Mapping[str, tuple[str, str, Any]]
_GENERATOR: _Table = {
    "latent_size": ("", "z_dim", 512),
    "label_size": ("", "c_dim", 0),
    "dlatent_size": ("", "w_dim", 512),
    "resolution": ("", "img_resolution", 1024),
    "num_channels": ("", "img_channels", 3),
    "mapping_layers": ("mapping_kwargs", "num_layers", 8),
    "label_fmaps": ("mapping_kwargs", "embed_features", None),
    "mapping_fmaps": ("mapping_kwargs", "layer_features", None),
    "mapping_nonlinearity": ("mapping_kwargs", "activation", "lrelu"),
    "mapping_lrmul": ("mapping_kwargs", "lr_multiplier", 0.01),
    "w_avg_beta": ("mapping_kwargs", "w_avg_beta", 0.995),
    "fmap_base": ("synthesis_kwargs", "channel_base", 16384),
    "fmap_max": ("synthesis_kwargs", "channel_max", 512),
    "num_fp16_res": ("synthesis_kwargs", "num_fp16_res", 0),
    "conv_clamp": ("synthesis_kwargs", "conv_clamp", None),
    "architecture": ("synthesis_kwargs", "architecture", "skip"),
    "resample_kernel": ("synthesis_kwargs", "resample_filter", [1, 3, 3, 1]),
    "use_noise": ("synthesis_kwargs", "use_noise", True),
    "nonlinearity": ("synthesis_kwargs", "activation", "lrelu"),
}
_DISCRIMINATOR: _Table = {
    "label_size": ("", "c_dim", 0),
    "resolution": ("", "img_resolution", 1024),
    "num_channels": ("", "img_channels", 3),
    "architecture": ("", "architecture", "resnet"),
    "fmap_base": ("", "channel_base", 16384),
    "fmap_max": ("", "channel_max", 512),
    "num_fp16_res": ("", "num_fp16_res", 0),
    "conv_clamp": ("", "conv_clamp", None),
    "mapping_fmaps": ("", "cmap_dim", None),
    "nonlinearity": ("block_kwargs", "activation", "lrelu"),
    "resample_kernel": ("block_kwargs", "resample_filter", [1, 3, 3, 1]),
    "freeze_layers": ("block_kwargs", "freeze_layers", 0),
    "mapping_layers": ("mapping_kwargs", "num_layers", 0),
    "mapping_nonlinearity": ("mapping_kwargs", "activation", "lrelu"),
    "mapping_lrmul": ("mapping_kwargs", "lr_multiplier", 0.1),
    "mbstd_group_size": ("epilogue_kwargs", "mbstd_group_size", None),
    "mbstd_num_features": ("epilogue_kwargs", "mbstd_num_channels", 1),
}
_REMEDY = "Only StyleGAN2's networks (config E, F and ADA's) can be converted."
_OF_TRAINING = {"truncation_psi", "truncation_cutoff", "style_mixing_prob", "structure"}  # do not affect the networks

Values = Callable[[Tensor], Tensor]
_LAYER = {"weight": "weight", "bias": "bias", "noise_strength": "noise_strength"}
_MODULATION = {"mod_weight": "affine.weight", "mod_bias": "affine.bias"}


def to_blueprints(networks: tuple[TensorFlowNetwork, ...], source: str) -> dict[str, Blueprint | None]:
    """Returns G, D and G_ema of a TensorFlow-era file, and None as its augment_pipe.

    Raises:
        RefusedFileError: if the file is anything but three StyleGAN2 networks.
    """
    if len(networks) != len(NAMES):
        raise RefusedFileError(source, f"{len(networks)} TensorFlow networks, not the three (G, D, Gs) of a snapshot")
    generator, discriminator, average = networks
    return {
        "G": _blueprint("Generator", _GENERATOR, _generator_key, generator),
        "D": _blueprint("Discriminator", _DISCRIMINATOR, _discriminator_key, discriminator),
        "G_ema": _blueprint("Generator", _GENERATOR, _generator_key, average),
        "augment_pipe": None,
    }


def _blueprint(
    class_name: str, table: _Table, key_of: Callable[[str], tuple[str, Values] | None], network: TensorFlowNetwork
) -> Blueprint:
    kwargs = _arguments(network, table)
    weights: dict[str, Tensor] = {}
    variables, grown = _grown_names(_variables(network), kwargs["img_resolution"])
    if grown:
        (kwargs["synthesis_kwargs"] if class_name == "Generator" else kwargs)["architecture"] = "orig"
    for name, value in variables.items():
        found = key_of(name)
        if found is None:
            if name.rpartition("/")[2] == "lod":  # the progress of progressive growing, which StyleGAN2 does not use
                continue
            unknown = f"a TensorFlow variable {name[:80]!r} in {network.name!r}"
            raise RefusedFileError(network.source, unknown, _REMEDY)
        key, values = found
        try:
            weights[key] = values(torch.from_numpy(np.array(value, dtype=np.float32))).contiguous()
        except (IndexError, RuntimeError, TypeError, ValueError):
            misshapen = f"a TensorFlow variable {name[:80]!r} of shape {list(np.shape(value))}"
            raise RefusedFileError(network.source, misshapen, "It was altered or is damaged.") from None
    return Blueprint(class_name, (), kwargs, weights, not_stored=NOT_STORED)


def _arguments(network: TensorFlowNetwork, table: _Table) -> dict[str, Any]:
    given = network.static_kwargs
    unknown = sorted(given.keys() - table.keys() - _OF_TRAINING)
    if unknown:
        found = f"the TensorFlow argument {unknown[0][:80]!r} of {network.name!r}"
        raise RefusedFileError(network.source, found, _REMEDY)
    kwargs: dict[str, Any] = {}
    for name, (group, ours, default) in table.items():
        value = given.get(name, default)
        if name == "fmap_base" and isinstance(value, int | float):
            value = int(value * 2)
        if name == "w_avg_beta" and value is None:
            value = 1.0
        (kwargs.setdefault(group, {}) if group else kwargs)[ours] = value
    if table is _DISCRIMINATOR:
        kwargs["mapping_kwargs"] |= dict.fromkeys(("embed_features", "layer_features"), kwargs["cmap_dim"])
    if type(kwargs["img_resolution"]) is not int or not 4 <= kwargs["img_resolution"] <= 2**20:
        raise RefusedFileError(network.source, f"the resolution {str(kwargs['img_resolution'])[:20]}")
    return kwargs


def _variables(network: TensorFlowNetwork, prefix: str = "") -> dict[str, np.ndarray | float]:
    """Returns all variables of a network and its parts, by 'part/name'."""
    result = {prefix + name: value for name, value in network.variables.items()}
    for name, part in network.components.items():
        result |= _variables(part, f"{prefix}{name}/")
    return result


def _grown_names(
    variables: dict[str, np.ndarray | float], resolution: int
) -> tuple[dict[str, np.ndarray | float], bool]:
    """Renames variables of growing networks, such as FromRGB_lod2, to those of 'orig'; returns if there were any."""

    def renamed(match: re.Match[str]) -> str:
        size = resolution >> int(match[2])
        return f"{size}x{size}/{match[1]}"

    pattern = re.compile(r"\b(FromRGB|ToRGB)_lod([0-9]{1,2})\b")
    result = {pattern.sub(renamed, name): value for name, value in variables.items()}
    return result, result.keys() != variables.keys()


# Weights.


def _same(value: Tensor) -> Tensor:
    return value


def _dense(value: Tensor) -> Tensor:
    return value.permute(1, 0)


def _conv(value: Tensor) -> Tensor:
    return value.permute(3, 2, 0, 1)


def _flipped_conv(value: Tensor) -> Tensor:
    return _conv(value).flip([2, 3])


def _plus_one(value: Tensor) -> Tensor:
    return value + 1


def _first(value: Tensor) -> Tensor:
    return value[0]


def _image_of_noise(value: Tensor) -> Tensor:
    return value[0, 0]


def _dense_layer(key: str, name: str) -> tuple[str, Values]:
    return f"{key}.{name}", _dense if name == "weight" else _same


def _conv_layer(key: str, name: str, flipped: bool) -> tuple[str, Values]:
    if name in _MODULATION:
        return f"{key}.{_MODULATION[name]}", _dense if name == "mod_weight" else _plus_one
    return f"{key}.{_LAYER[name]}", (_flipped_conv if flipped else _conv) if name == "weight" else _same


_PART = r"(weight|bias|mod_weight|mod_bias|noise_strength)"


def _generator_key(name: str) -> tuple[str, Values] | None:
    """Returns our key for a generator's variable and the function that converts its layout; None if unknown."""
    if name == "dlatent_avg":
        return "mapping.w_avg", _same
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const", _first
    if match := re.fullmatch(r"mapping/(?:(LabelEmbed)|Dense([0-9]{1,3}))/(weight|bias)", name):
        return _dense_layer("mapping.embed" if match[1] else f"mapping.fc{match[2]}", match[3])
    if match := re.fullmatch(r"synthesis/noise([0-9]{1,2})", name):
        index = int(match[1])
        return f"synthesis.b{2 ** ((index + 5) // 2)}.conv{(index + 1) % 2}.noise_const", _image_of_noise
    if match := re.fullmatch(rf"synthesis/4x4/Conv/{_PART}", name):
        return _conv_layer("synthesis.b4.conv1", match[1], False)
    if match := re.fullmatch(rf"synthesis/([0-9]{{1,7}})x\1/(Conv0_up|Conv1|ToRGB|Skip)/{_PART}", name):
        layer = {"Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb", "Skip": "skip"}[match[2]]
        return _conv_layer(f"synthesis.b{match[1]}.{layer}", match[3], match[2] in ("Conv0_up", "Skip"))
    return None


def _discriminator_key(name: str) -> tuple[str, Values] | None:
    """Returns the same as `_generator_key` for a discriminator's variable."""
    if match := re.fullmatch(r"(?:(LabelEmbed)|Mapping([0-9]{1,3}))/(weight|bias)", name):
        return _dense_layer("mapping.embed" if match[1] else f"mapping.fc{match[2]}", match[3])
    if match := re.fullmatch(r"(4x4/Dense0|Output)/(weight|bias)", name):
        return _dense_layer("b4.out" if match[1] == "Output" else "b4.fc", match[2])
    if match := re.fullmatch(r"4x4/Conv/(weight|bias)", name):
        return _conv_layer("b4.conv", match[1], False)
    if match := re.fullmatch(r"([0-9]{1,7})x\1/(FromRGB|Conv0|Conv1_down|Skip)/(weight|bias)", name):
        layer = {"FromRGB": "fromrgb", "Conv0": "conv0", "Conv1_down": "conv1", "Skip": "skip"}[match[2]]
        return _conv_layer(f"b{match[1]}.{layer}", match[3], False)
    return None
