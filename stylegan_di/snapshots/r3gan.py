"""Makes the constructor's arguments of R3GAN's networks, whose files keep none, from their weights.

A file holds plain modules: a wrapper with z_dim, c_dim, img_resolution, and in it the network proper. The stages keep
their precision as DataType.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stylegan_di.dnnlib.untrusted import Budget
from stylegan_di.networks.r3gan import BASE, RESAMPLING_FILTER
from stylegan_di.torch_utils.persistence import PersistentObject, RefusedFileError, flatten_state

PREFIX = "training.networks."
CLASSES = {PREFIX + name: name for name in ("Generator", "Discriminator")}
MAX_STAGES = 12  # from 4 to 8192 pixels
_STAGE, _BLOCK = "Model.MainLayers.{}.Layers.", "LinearLayer2.Layer.weight"


def is_r3gans(module: PersistentObject) -> bool:
    """Returns whether a module is one of R3GAN's wrappers."""
    return module.class_name in CLASSES


def arguments(module: PersistentObject, budget: Budget) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the arguments of our Generator or Discriminator, and the weights; the names are taken from the budget.

    Raises:
        RefusedFileError: if it has no such layers.
    """
    weights, is_generator = dict(flatten_state(module, budget)), module.class_name == PREFIX + "Generator"
    try:
        return _arguments(module, weights, is_generator), weights
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        found = f"a {module.class_name} without the layers of R3GAN ({type(error).__name__}: {error})"
        raise RefusedFileError(module.source, found[:200], "It was altered, or made by other code.") from None


def _arguments(module: PersistentObject, weights: Mapping[str, Tensor], is_generator: bool) -> dict[str, Any]:
    stages = [_stage(weights, index) for index in range(_count(weights, "Model.MainLayers."))]
    image = weights[f"Model.{'Aggregation' if is_generator else 'Extraction'}Layer.Layer.weight"]
    embedding = weights.get("Model.EmbeddingLayer.weight")
    found: dict[str, Any] = {"NoiseDimension": module.state["z_dim"]} if is_generator else {}
    found |= {
        "WidthPerStage": [width for width, _, _ in stages],
        "CardinalityPerStage": [block.shape[0] // block.shape[1] for _, block, _ in stages],
        "BlocksPerStage": [count for _, _, count in stages],
        "ExpansionFactor": stages[0][1].shape[0] // stages[0][0],
        "FP16Stages": _halves(module, len(stages)),
        "c_dim": module.state["c_dim"],
        "img_resolution": BASE * 2 ** (len(stages) - 1),
        "KernelSize": stages[0][1].shape[2],
        "ResamplingFilter": _taps(weights),
        "img_channels": image.shape[0] if is_generator else image.shape[1],
    }
    if embedding is not None:
        found["ConditionEmbeddingDimension"] = embedding.shape[0]
    return found


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """The number of a ModuleList's members, which are numbered from 0."""
    numbers = {int(key.removeprefix(prefix).partition(".")[0]) for key in weights if key.startswith(prefix)}
    if numbers != set(range(len(numbers))) or len(numbers) > MAX_STAGES:
        raise ValueError(f"{prefix} lacks members, or has more than {MAX_STAGES}")
    return len(numbers)


def _stage(weights: Mapping[str, Tensor], index: int) -> tuple[int, Tensor, int]:
    """A stage's width, the grouped weight of one of its blocks, and the number of blocks."""
    prefix = _STAGE.format(index)
    blocks = [key for key in weights if key.startswith(prefix) and key.endswith(_BLOCK)]
    block = weights[blocks[0]]
    width = weights[blocks[0].replace("LinearLayer2", "LinearLayer1")].shape[1]
    return width, block, len(blocks)


def _halves(module: PersistentObject, count: int) -> list[int]:
    """The stages that compute in bfloat16."""
    model = module.state["_modules"]["Model"]
    stages = model.state["_modules"]["MainLayers"].state["_modules"]
    return [index for index in range(count) if stages[str(index)].state["DataType"] != "float32"]


def _taps(weights: Mapping[str, Tensor]) -> list[float]:
    """The filter between resolutions, whose stored form is convolved with two equal taps."""
    kernel = next((value for key, value in weights.items() if key.endswith("Resampler.Kernel")), None)
    if kernel is None:
        return list(RESAMPLING_FILTER)
    taps: list[float] = []
    for value in kernel.double().sum(dim=0).tolist()[:-1]:
        taps.append(value - (taps[-1] if taps else 0))
    return [round(tap / taps[0], 4) for tap in taps]
