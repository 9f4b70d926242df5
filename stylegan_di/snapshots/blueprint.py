"""Builds networks from a file's description: a class name, constructor arguments and weights.

Nothing in a file is trusted: classes are looked up in our own table, a constructor first runs on the meta device and
within bounds, and the weights must be finite and match the resulting network exactly. One thing is repaired: a GAN's
w_avg that is not finite, which NVlabs' training writes on today's PyTorch, is estimated from its mapping network.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stylegan_di.data.augment import AugmentPipe
from stylegan_di.dnnlib.untrusted import brief, untrusted
from stylegan_di.dnnlib.util import say
from stylegan_di.networks import edm2, r3gan, stylegan3
from stylegan_di.networks.decoder import Decoder
from stylegan_di.networks.edm import PRECONDITIONERS, DDPMPrecond, Precond
from stylegan_di.networks.flow import Flow
from stylegan_di.networks.radiance import RadianceField
from stylegan_di.networks.refiner import Refiner
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.arguments import check_arguments
from stylegan_di.students.stylegan2 import W_AVG_SAMPLES, mean_w
from stylegan_di.students.stylegan3 import gan_student
from stylegan_di.torch_utils.persistence import PersistentModule, RefusedFileError

STYLEGAN3, R3GAN = "stylegan3.Generator", "r3gan."
W_AVG = "mapping.w_avg"  # the mean w of a StyleGAN, which truncation draws towards
_W_AVG_CHUNK = 256  # latents at a time, which bounds the memory that labels take

# fmt: off
#: By the names of the format, and of its modules where these have classes of the same name.
CLASSES: dict[str, type[PersistentModule]] = {
    cls.__name__: cls
    for cls in (Generator, Discriminator, AugmentPipe, *PRECONDITIONERS.values(), DDPMPrecond, edm2.Precond, Refiner,
                Decoder, Flow, RadianceField)
} | {
    STYLEGAN3: stylegan3.Generator,
    R3GAN + "Generator": r3gan.Generator,
    R3GAN + "Discriminator": r3gan.Discriminator,
}
# fmt: on
# The class that each entry of a snapshot may hold; other entries may hold any class.
ROLES: dict[str, type[PersistentModule] | tuple[type[PersistentModule], ...]] = {
    "G": (Generator, stylegan3.Generator, r3gan.Generator),
    "D": (Discriminator, r3gan.Discriminator),
    "G_ema": (Generator, stylegan3.Generator, r3gan.Generator),
    "augment_pipe": AugmentPipe,
    "ema": Precond,
    "Sg": Precond,
    "refiner": Refiner,
}

# Bounds building, so that a forged file cannot keep a constructor busy for ever.
MAX_CALLS = 20  # calls of torch per weight in the file; our constructors make up to 7


@dataclass
class Blueprint:
    """A network as a file describes it.

    `weights` is its state dict. It lacks entries whose last name is `not_stored`; these keep the constructor's values.
    """

    class_name: str
    init_args: tuple[Any, ...]
    init_kwargs: dict[str, Any]
    weights: Mapping[str, Tensor]
    not_stored: str | None = None


@dataclass(frozen=True)
class ImageShape:
    """The shape of a network's images.

    `resolution` is the height; `classes` is 0 for an unconditional network; `width` is None for square images.
    """

    resolution: int
    channels: int
    classes: int
    width: int | None = None

    @property
    def size(self) -> str:
        """Width and height, such as '24x16'."""
        return f"{self.width or self.resolution}x{self.resolution}"

    def __str__(self) -> str:
        side = self.resolution if self.width is None else self.size
        return f"({side}, {self.channels}, {self.classes})"


def class_name(network: torch.nn.Module) -> str | None:
    """Returns a network's name in CLASSES, None if it is of none of them."""
    return next((name for name, cls in CLASSES.items() if cls is type(network)), None)


def image_shape(blueprint: Blueprint) -> ImageShape | None:
    """Returns the image shape that a blueprint's arguments give; None if they give none or the class is unknown."""
    cls = CLASSES.get(blueprint.class_name)
    if cls is None:
        return None
    try:
        bound = inspect.signature(cls).bind(*blueprint.init_args, **blueprint.init_kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    found = _by_name(bound)
    classes = found.get("c_dim", found.get("label_dim"))
    resolution, width = found.get("img_resolution"), found.get("img_width")
    sizes: list[Any] = [resolution, found.get("img_channels"), classes]
    if width not in (None, resolution):
        sizes.append(width)
    return ImageShape(*sizes) if all(type(size) is int for size in sizes) else None


def build(blueprint: Blueprint, name: str, source: str) -> torch.nn.Module:
    """Builds the network of a blueprint, in evaluation mode, without gradients, on the CPU.

    It is first built on the meta device, so that no more memory is allocated than the file stores. Weights stored as
    float16 are converted to float32. A StyleGAN's w_avg that is not finite is estimated anew, and a line says so.

    Args:
        blueprint: from the file.
        name: the name of its entry in the file, such as 'G_ema'.
        source: the file's name.

    Raises:
        RefusedFileError: if it is not one of our networks, or its weights do not match.
    """
    cls = CLASSES.get(blueprint.class_name)
    if cls is None or not issubclass(cls, ROLES.get(name, PersistentModule)):
        known = ", ".join(known for known, cls in CLASSES.items() if issubclass(cls, ROLES.get(name, PersistentModule)))
        remedy = f"Known for {name!r} are {known}."
        raise RefusedFileError(source, f"a {blueprint.class_name[:80]!r} as {name!r}", remedy)
    taken = f"constructor arguments that {blueprint.class_name} does not take"
    try:
        bound = inspect.signature(cls).bind(*blueprint.init_args, **blueprint.init_kwargs)
        check_arguments(_by_name(bound))
        with torch.device("meta"), Bounded(len(blueprint.weights)):
            layout = cls(*blueprint.init_args, **blueprint.init_kwargs)
    except Exception as error:  # the arguments are arbitrary, and so are the errors
        raise RefusedFileError(source, f"{taken} ({brief(error)})") from error
    with untrusted(source):
        stored = {key: value for key, value in layout.state_dict().items() if not _is_implied(key, blueprint)}
        weights = _checked_weights(stored, blueprint.weights, name, source)
        with torch.random.fork_rng(devices=[]):  # loading must not advance the caller's random numbers
            network = cls(*blueprint.init_args, **blueprint.init_kwargs)
        network.load_state_dict(network.state_dict() | weights)
        if isinstance(network, Flow):
            network.check()
        network.eval().requires_grad_(False)
        if isinstance(network, Generator | stylegan3.Generator):
            _repair_w_avg(network, name, source)
        return network


def _repair_w_avg(network: Generator | stylegan3.Generator, name: str, source: str) -> None:
    """Sets a w_avg that is not finite to the mean over latents of seed 0, with labels drawn evenly.

    Raises:
        RefusedFileError: if that is not finite either.
    """
    mapping = network.mapping
    if mapping.w_avg_beta is None or bool(torch.isfinite(mapping.w_avg).all()):
        return
    student = gan_student(network)
    chunks = (range(first, first + _W_AVG_CHUNK) for first in range(0, W_AVG_SAMPLES, _W_AVG_CHUNK))
    means = [mean_w(student, SampleRandom(0, "w_avg", 0, chunk)) for chunk in chunks]
    mapping.w_avg.copy_(torch.stack(means).mean(0))
    if not bool(torch.isfinite(mapping.w_avg).all()):
        raise _not_finite(f"{name}.{W_AVG}", source)
    say(
        f"{source}: {name}.{W_AVG} holds NaN or infinite numbers, which NVlabs' training writes on today's PyTorch; it "
        f"is estimated from {W_AVG_SAMPLES} latents here, and what is written from this file has it so"
    )


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Returns a constructor's arguments by name, whether given by position, by name, or passed on by **kwargs."""
    kinds = bound.signature.parameters
    result: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        result |= value if kinds[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return result


class Bounded(TorchFunctionMode):
    """Stops a constructor that calls torch more often than MAX_CALLS for each of the file's weights."""

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.calls = MAX_CALLS * (weights + 10)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("they call for far more layers than the file has weights")
        return func(*args, **(kwargs or {}))


def _is_implied(key: str, blueprint: Blueprint) -> bool:
    return blueprint.not_stored is not None and key.rpartition(".")[2] == blueprint.not_stored


def _checked_weights(
    layout: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str, source: str
) -> dict[str, Tensor]:
    """Returns the weights after checking that names, shapes and types match the layout and every number is finite."""
    missing, extra = sorted(layout.keys() - weights.keys()), sorted(weights.keys() - layout.keys())
    if missing or extra:
        listed = [f"{kind} {', '.join(keys[:3])}" for kind, keys in (("without", missing), ("with", extra)) if keys]
        found = f"{name!r} {' and '.join(listed)} ({len(missing)} weights missing, {len(extra)} too many)"
        raise RefusedFileError(source, found[:400], "It was altered, or made by a different network code.")
    checked = {}
    for key, expected in layout.items():
        value = weights[key]
        if (value.dtype, expected.dtype) == (torch.float16, torch.float32):  # EDM2's files are float16
            value = value.float()
        if value.shape != expected.shape or value.dtype != expected.dtype:
            found = f"{name}.{key} as {list(value.shape)} {value.dtype}"
            remedy = f"Its constructor arguments call for {list(expected.shape)} {expected.dtype}: it was altered."
            raise RefusedFileError(source, found, remedy)
        if value.is_floating_point() and key != W_AVG and not bool(torch.isfinite(value).all()):
            raise _not_finite(f"{name}.{key}", source)
        checked[key] = value
    return checked


def _not_finite(weight: str, source: str) -> RefusedFileError:
    remedy = "Its training diverged or it is damaged; use an earlier snapshot."
    return RefusedFileError(source, f"NaN or infinite numbers in {weight}", remedy)
