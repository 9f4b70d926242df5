"""Converts StyleGAN2 networks from and to the form of stylegan3's repository (its training.networks_stylegan2).

Weights and their names are the same as in stylegan2-ada. The differences: the synthesis network's arguments are among
the generator's own; the defaults of w_avg's decay (0.998), num_fp16_res (4) and conv_clamp (256) are others; and some
layers have further attributes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch

from stylegan_di.networks.stylegan2 import Discriminator, Generator, SynthesisBlock, SynthesisNetwork
from stylegan_di.networks.stylegan2_layers import Conv2dLayer, FullyConnectedLayer, SynthesisLayer, ToRGBLayer
from stylegan_di.torch_utils.persistence import PersistentModule, PersistentObject

W_AVG_BETA = 0.998  # stylegan3's default

_GENERATOR = {"z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"}
_FUSED = "fused_modconv_default"  # selects one of two implementations; ours has only one
_FUSED_VALUE = "inference_only"  # what stylegan3's training writes
_PLAIN = {"num_fp16_res": 0, "conv_clamp": None}  # our defaults, which differ from stylegan3's


def is_stylegan3s(module: PersistentObject) -> bool:
    """Returns whether a generator was written by stylegan3: its synthesis network has the attribute num_fp16_res."""
    synthesis = _child(module, "synthesis")
    return module.class_name == "Generator" and synthesis is not None and "num_fp16_res" in synthesis.state


def is_alias_free(module: PersistentObject) -> bool:
    """Returns whether it is a StyleGAN3 generator, whose arguments are ours."""
    synthesis = _child(module, "synthesis")
    return module.class_name == "Generator" and synthesis is not None and "margin_size" in synthesis.state


def our_arguments(module: PersistentObject, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the constructor arguments of a stylegan3-era StyleGAN2 generator to those of our Generator."""
    synthesis = _child(module, "synthesis")
    result = {name: value for name, value in kwargs.items() if name in _GENERATOR}
    blocks = {name: value for name, value in kwargs.items() if name not in _GENERATOR and name != _FUSED}
    mapping = result.get("mapping_kwargs", {})
    if isinstance(mapping, dict):  # otherwise our constructor rejects it
        result["mapping_kwargs"] = {"w_avg_beta": W_AVG_BETA} | mapping
    return result | {"synthesis_kwargs": (stored_arguments(synthesis) if synthesis is not None else {}) | blocks}


def stored_arguments(network: PersistentObject) -> dict[str, Any]:
    """Returns num_fp16_res and conv_clamp as stored in a network's blocks, where they differ from our defaults.

    A file that relies on its repository's defaults thus keeps those instead of ours.
    """
    children = network.state.get("_modules")
    names = [name for name in children if re.fullmatch(r"b[0-9]+", name)] if isinstance(children, dict) else []
    blocks = [block for name in names if (block := _child(network, name)) is not None]
    halves = sum(block.state.get("use_fp16") is True for block in blocks)
    layers = [layer for block in blocks if (layer := _child(block, "conv1")) is not None]
    clamps = [clamp for layer in layers if (clamp := layer.state.get("conv_clamp")) is not None]
    return ({"num_fp16_res": halves} if halves else {}) | ({"conv_clamp": clamps[0]} if clamps else {})


def for_stylegan3(network: torch.nn.Module) -> torch.nn.Module:
    """Returns a copy of a StyleGAN2 network with stylegan3's arguments and attributes; other networks as they are."""
    if not isinstance(network, Generator | Discriminator):
        return network
    result = copy.deepcopy(network)
    for module in result.modules():
        for name, value in _further_attributes(module).items():
            module.__dict__[name] = value
    if isinstance(result, Generator):
        arguments = _keyword_arguments(result)
        synthesis = arguments.pop("synthesis_kwargs", None) or {}
        mapping = {"w_avg_beta": result.mapping.w_avg_beta} | (arguments.pop("mapping_kwargs", None) or {})
        synthesis = {_FUSED: _FUSED_VALUE} | _PLAIN | synthesis
        _remember(result, arguments | {"mapping_kwargs": mapping} | synthesis)
    elif not result._init_args:
        _remember(result, _PLAIN | result.init_kwargs)
    return result


def _child(module: PersistentObject, name: str) -> PersistentObject | None:
    children = module.state.get("_modules")
    child = children.get(name) if isinstance(children, dict) else None
    return child if isinstance(child, PersistentObject) else None


def _keyword_arguments(network: PersistentModule) -> dict[str, Any]:
    """Returns all arguments a generator was built with, by name."""
    names = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs")
    return dict(zip(names, network._init_args, strict=False)) | network.init_kwargs


def _remember(network: PersistentModule, kwargs: dict[str, Any]) -> None:
    network.__dict__["_init_args"] = ()
    network.__dict__["_init_kwargs"] = kwargs


def _further_attributes(module: torch.nn.Module) -> dict[str, Any]:
    if isinstance(module, FullyConnectedLayer):
        return dict(zip(("out_features", "in_features"), module.weight.shape, strict=True))
    if isinstance(module, Conv2dLayer):
        return {"out_channels": module.weight.shape[0], "in_channels": module.weight.shape[1]}
    if isinstance(module, SynthesisLayer | ToRGBLayer):
        w_dim = module.affine.weight.shape[1]
        return {"out_channels": module.weight.shape[0], "in_channels": module.weight.shape[1], "w_dim": w_dim}
    if isinstance(module, SynthesisBlock):
        return {_FUSED: _FUSED_VALUE}
    if isinstance(module, SynthesisNetwork):
        return {"num_fp16_res": module.init_kwargs.get("num_fp16_res", 0)}
    return {}
