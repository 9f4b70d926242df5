"""What the tools for GANs share: opening a network file, and its labels."""

from __future__ import annotations

import torch
from torch import Tensor

from generate import check_class
from stylegan_di.dnnlib.util import UserError
from stylegan_di.snapshots.checkpoint import as_model, load_snapshot
from stylegan_di.students import StyleGAN2Student


def load_gan(network: str, device: str, class_index: int | None) -> StyleGAN2Student:
    """The GAN of a network file; UserError for other networks, and for a class that it does not have."""
    model = as_model(load_snapshot(network))
    if not isinstance(model, StyleGAN2Student):
        raise UserError(f"--network={network} is no GAN: it has no w. Pass a StyleGAN2 network, or use generate.py.")
    if model.img_channels not in (1, 3):
        raise UserError(f"--network={network}: its images have {model.img_channels} channels; pictures have 1 or 3")
    check_class(class_index, model.label_dim)
    return model.to(device)


def one_label(student: StyleGAN2Student, class_index: int | None, device: str) -> Tensor | None:
    """The label [1,label_dim] of one class; None for an unconditional network.

    Raises UserError where a conditional network is given no class.
    """
    if not student.label_dim:
        return None
    if class_index is None:
        raise UserError(f"this network is conditional: give --class, from 0 to {student.label_dim - 1}")
    return torch.eye(student.label_dim, device=device)[class_index : class_index + 1]
