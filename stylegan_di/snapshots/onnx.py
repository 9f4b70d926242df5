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
from stylegan_di.students import OneStepStudent, StyleGAN2Student

OPSET = 18
_NAMESPACE = "stylegan_di"  # of the project's operators
_EXAMPLES = 2  # samples the graph is traced with; its batch is free


def to_onnx(
    model: Generator | Denoiser, metadata: Mapping[str, str | float], *, truncation_psi: float = 1.0
) -> bytes:
    """An ONNX file.

    Args:
        model: on the CPU, in evaluation mode.
        metadata: provenance, kept as the file's metadata.
        truncation_psi: of a StyleGAN2 generator.

    Raises:
        UserError: if the packages that write ONNX are not installed, or truncation is asked of another model.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs the package {missing[0]}, which is not installed: pip install 'stylegan-di[onnx]'")
    graph, inputs = _graph(model, truncation_psi)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), _quiet():
        with _plain_operators():
            shapes = {name: {0: batch} for name in inputs}
            exported = torch.export.export(graph.eval(), tuple(inputs.values()), dynamic_shapes=shapes)
        program = torch.onnx.export(exported, output_names=["images"], opset_version=OPSET, dynamo=True, verbose=False)
    assert program is not None
    proto = program.model_proto
    for name, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, str(value)
    return proto.SerializeToString(deterministic=True)


class _GAN(torch.nn.Module):
    def __init__(self, student: StyleGAN2Student, psi: float) -> None:
        super().__init__()
        self.network = student.network
        self.psi = psi

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.network(z, labels, truncation_psi=self.psi, noise_mode="const", force_fp32=True)


class _OneStep(torch.nn.Module):
    def __init__(self, student: OneStepStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.student(z, labels)


class _Denoising(torch.nn.Module):
    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, labels)


def _graph(model: Generator | Denoiser, psi: float) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """What is exported, and examples of its inputs by name."""
    if psi != 1 and not isinstance(model, StyleGAN2Student):
        raise UserError(f"--trunc={psi:g} is for a GAN, which this network is not; leave it out")
    image = [_EXAMPLES, model.img_channels, model.img_resolution, model.img_resolution]
    labels = {"labels": torch.eye(_EXAMPLES, model.label_dim)} if model.label_dim else {}
    if isinstance(model, StyleGAN2Student):
        return _GAN(model, psi), {"z": torch.randn([_EXAMPLES, model.network.z_dim])} | labels
    if isinstance(model, OneStepStudent):
        return _OneStep(model), {"z": torch.randn(image)} | labels
    assert isinstance(model, Denoiser)
    return _Denoising(model), {"x": torch.randn(image), "sigma": torch.ones([_EXAMPLES])} | labels


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
