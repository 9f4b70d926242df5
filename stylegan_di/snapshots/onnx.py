"""Models as ONNX, for runtimes without PyTorch: one graph from latents, or a noisy image, to images, of any batch size.

The project's own operators become plain ones, so that no runtime needs an extension; per-pixel noise is the network's
fixed one, float16 blocks compute in float32, and truncation is part of the graph. Inputs are z and labels of a
generator, or x, sigma and labels of a denoiser; labels only where the model is conditional. The output is `images`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.random import SampleRandom

OPSET = 18
_NAMESPACE = "stylegan_di"  # of the project's operators
_EXAMPLES = 2  # samples the graph is traced with; its batch is free


def to_onnx(model: Generator | Denoiser, metadata: Mapping[str, str | float]) -> bytes:
    """An ONNX file.

    Args:
        model: on the CPU, in evaluation mode; options of its use, such as trunc, become part of the graph.
        metadata: provenance, kept as the file's metadata.

    Raises:
        UserError: if the packages that write ONNX are not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs the package {missing[0]}, which is not installed: pip install 'stylegan-di[onnx]'")
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            exported(model), output_names=["images"], opset_version=OPSET, dynamo=True, verbose=False
        )
    assert program is not None
    proto = program.model_proto
    for name, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, str(value)
    return proto.SerializeToString(deterministic=True)


def exported(model: Generator | Denoiser) -> torch.export.ExportedProgram:
    """The graph that is written, as PyTorch's own; it takes the inputs in their order."""
    inputs = _inputs(model)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), _plain_operators(), _float32(model):
        shapes = {name: {0: batch} for name in inputs}
        return torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes)


def _inputs(model: Generator | Denoiser) -> dict[str, Tensor]:
    """Examples of the inputs, by the names that the roles' forward passes give them and in that order."""
    labels = {"labels": torch.eye(_EXAMPLES, model.label_dim)} if model.label_dim else {}
    if isinstance(model, Denoiser):
        image = [_EXAMPLES, model.img_channels, model.img_resolution, model.img_resolution]
        return {"x": torch.randn(image), "sigma": torch.ones([_EXAMPLES])} | labels
    return {"z": model.sample_latents(_EXAMPLES, rng=SampleRandom(0, "onnx", 0, range(_EXAMPLES)))} | labels


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """Inside, the project's operators are called as the functions of PyTorch's operators that define them."""
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
    """Makes float16 blocks compute in float32 while inside."""
    halves: list[Any] = [module for module in model.modules() if getattr(module, "use_fp16", False)]
    try:
        for module in halves:
            module.use_fp16 = False
        yield
    finally:
        for module in halves:
            module.use_fp16 = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what PyTorch's exporter says of packages it does not need and of its own future."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
