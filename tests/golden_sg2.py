"""The golden numbers of StyleGAN2's ops and networks, computed with the original code: loading."""

import json
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from stylegan_di.networks.stylegan2 import Discriminator, Generator
from tests.golden_edm import GOLDEN, load_arrays, load_weights

Network = TypeVar("Network", Generator, Discriminator)


def load_op(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of ops/<name>.npz and the description beside it."""
    with np.load(GOLDEN / "ops" / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    return arrays, json.loads((GOLDEN / "ops" / f"{name}.json").read_text())


def load_network(
    cls: type[Network], name: str, dtype: torch.dtype = torch.float64
) -> tuple[Network, dict[str, Tensor], dict[str, Any]]:
    """A golden network in eval mode of the given type, its arrays and its description."""
    arrays, info = load_arrays(name)
    network = cls(**info["init_kwargs"])
    load_weights(network, arrays)
    return network.to(dtype).eval(), arrays, info
