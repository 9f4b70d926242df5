"""The golden numbers of EDM's networks, computed with the original code: loading and comparing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_di.networks import edm
from stylegan_di.networks.edm import Precond

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = [
    "edm_ddpmpp_uncond", "edm_ncsnpp_cond10_aug9", "edm_adm_cond10_aug9", "vp_ddpmpp_cond4_aug9", "ve_ncsnpp_uncond",
    "iddpm_adm_cond6",
]  # fmt: skip


def load_arrays(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of networks/<name>.npz and the description beside it."""
    with np.load(GOLDEN / "networks" / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    return arrays, json.loads((GOLDEN / "networks" / f"{name}.json").read_text())


def load_weights(module: torch.nn.Module, arrays: dict[str, Tensor], prefix: str = "sd/") -> None:
    """Strictly loads the arrays under a prefix."""
    module.load_state_dict({key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)})


def load_network(name: str, dtype: torch.dtype = torch.float64) -> tuple[Precond, dict[str, Tensor], dict[str, Any]]:
    """A golden network in eval mode of the given type, its arrays and its description."""
    arrays, info = load_arrays(name)
    network = getattr(edm, info["cls"])(**info["init_kwargs"])
    load_weights(network, arrays)
    return network.to(dtype).eval(), arrays, info


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal within a tolerance relative to the largest magnitude expected."""
    atol = tolerance * float(expected.abs().max())
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=0, atol=atol)


def probe(y: Tensor) -> Tensor:
    """The scalar whose gradients are recorded: sum(y * ramp), the ramp going from -1 to 1 over the elements."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()
