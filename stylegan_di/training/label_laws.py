"""How often each label occurs among the images that a training generates, in its steps, its metrics and its mean w.

As often as in --data, else as the network's file says of its own data, else as in the reference statistics, else each
class equally often. A GAN's discriminator would tell generated images by labels that are rarer or more frequent.
"""

from __future__ import annotations

import dataclasses

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.inputs import reference_name
from stylegan_di.interfaces import Conditional
from stylegan_di.labels import LabelLaw
from stylegan_di.metrics.references import label_law_of


def choose(config: TrainConfig, dataset: ImageDataset | None, model: Conditional) -> tuple[LabelLaw | None, str]:
    """Returns the law of a conditional model's labels, None where it has none or nothing is known, and what it is."""
    if not model.label_dim:
        return None, ""
    known = model.known_labels
    names = () if known is None else known.names
    if samples_wanted(config.data) is not None:
        law = LabelLaw.uniform(model.label_dim, names)
        return law, f"{law}, as among the teacher's samples"
    if dataset is not None and dataset.label_dim == model.label_dim:
        law = dataset.label_law()
        return (law if law.names else dataclasses.replace(law, names=names)), f"{law}, as in --data"
    if known is not None and not known.is_guess:
        return known, f"{known}, as the network's file says of its data"
    if (reference := _of_reference(config, model.label_dim)) is not None:
        return dataclasses.replace(reference, names=names), f"{reference}, as in the reference statistics"
    return known, f"{model.label_dim} classes, equally often: how often they occur in the data is not known"


def _of_reference(config: TrainConfig, label_dim: int) -> LabelLaw | None:
    """The law of the reference statistics' labels, where they have labels of as many classes."""
    try:
        source = reference_name(config)
    except UserError:
        return None
    return label_law_of(source, label_dim) if source is not None and zoo.is_local(source) else None
