"""Exports models to ONNX for runtimes without PyTorch, as one graph for any batch size.

A generator's inputs are z and labels, a denoiser's are x, sigma and labels; unconditional models have no labels. The
output is `images`. The project's own operators become standard ones, so that no runtime needs an extension; per-pixel
noise is the network's fixed noise, blocks of half precision compute in float32, and truncation is part of the graph.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import brief
from stylegan_di.dnnlib.util import UserError, not_installed
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.random import SampleRandom

OPSET = 18
TRIED = "torch 2.13 with onnx 1.20 and onnxscript 0.6.2 can: install these or newer"
_NAMESPACE = "stylegan_di"  # the namespace of the project's operators
_EXAMPLES = 2  # samples the graph is traced with; it accepts any batch size


def to_onnx(
    model: torch.nn.Module,
    metadata: Mapping[str, str | float],
    *,
    inputs: Mapping[str, Tensor] | None = None,
    outputs: Sequence[str] = ("images",),
) -> bytes:
    """Returns a model as the bytes of an ONNX file.

    Args:
        model: on the CPU, in evaluation mode; its options, such as trunc, become part of the graph.
        metadata: the provenance, stored as the file's metadata.
        inputs: examples by name, of the sizes that the graph will have; None: those of a Generator or Denoiser.
        outputs: their names.

    Raises:
        UserError: if the packages that write ONNX are not installed, or too old for the model.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise not_installed("ONNX", missing[0], "onnx")
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                exported(model, inputs), output_names=list(outputs), opset_version=OPSET, dynamo=True, verbose=False
            )
    except Exception as error:  # the exporter's are of many types, and long
        found = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript"))
        raise UserError(f"ONNX: {found} cannot write this network ({brief(error)}); {TRIED}") from error
    assert program is not None
    proto = program.model_proto
    for name, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, str(value)
    return proto.SerializeToString(deterministic=True)


def exported(model: torch.nn.Module, inputs: Mapping[str, Tensor] | None = None) -> torch.export.ExportedProgram:
    """Returns the graph as PyTorch's ExportedProgram; it takes the inputs in their order, by default `_inputs`'s."""
    shapes: dict[str, Any] | None = None
    if inputs is None:
        assert isinstance(model, Generator | Denoiser)
        inputs = _inputs(model)
        batch = torch.export.Dim("batch", min=1)
        shapes = {name: {0: batch} for name in inputs}
    with torch.no_grad(), _plain_operators(), _float32(model):
        return torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes)


def _inputs(model: Generator | Denoiser) -> dict[str, Tensor]:
    """Returns example inputs, named and ordered as the arguments of the model's forward pass."""
    labels = {"labels": torch.eye(_EXAMPLES, model.label_dim)} if model.label_dim else {}
    if isinstance(model, Denoiser):
        return {"x": torch.randn(_EXAMPLES, *model.image_shape), "sigma": torch.ones([_EXAMPLES])} | labels
    return {"z": model.sample_latents(_EXAMPLES, rng=SampleRandom(0, "onnx", 0, range(_EXAMPLES)))} | labels


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """Replaces the project's operators by their definitions in terms of PyTorch's operators, while inside."""
    namespace = getattr(torch.ops, _NAMESPACE)
    definitions = {
        name.partition("::")[2]: definition
        for name, definition in torch._library.custom_ops.OPDEFS.items()
        if name.startswith(_NAMESPACE + "::")
    }
    operators = {name: getattr(namespace, name) for name in definitions}
    try:
        for name, definition in definitions.items():
            setattr(namespace, name, definition._init_fn)
        yield
    finally:
        for name, operator in operators.items():
            setattr(namespace, name, operator)


@contextlib.contextmanager
def _float32(model: torch.nn.Module) -> Iterator[None]:
    """Makes blocks in float16 (StyleGAN) and bfloat16 (R3GAN) compute in float32 while inside."""
    whole = {"use_fp16": False, "DataType": torch.float32}
    blocks = [(module, name) for module in model.modules() for name in whole if hasattr(module, name)]
    own = [(module, name, getattr(module, name)) for module, name in blocks]
    try:
        for module, name, _ in own:
            setattr(module, name, whole[name])
        yield
    finally:
        for module, name, value in own:
            setattr(module, name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's messages about optional packages and coming changes."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
