"""--checkpointing of EDM's networks: activations inside blocks are computed again, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from tests.gaussians import GaussianDenoiser
from tests.test_adapters_edm import inputs, network_of
from tests.test_online_teacher import online
from tests.test_resume import SHORT, assert_same_run, whole_run
from tests.tiny import save_files


def gradients(denoiser: Denoiser, *, features: bool) -> tuple[list[Tensor | None], int]:
    """The gradients of the input and of all weights, and the bytes that the forward pass keeps for them."""
    x, sigma, labels = inputs()
    x.requires_grad_(True)
    denoiser.requires_grad_(True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = denoiser.features(x, sigma, labels) if features else [denoiser(x, sigma, labels)]
        size = sum(kept.values())
    sum(each.square().sum() for each in found).backward()  # type: ignore[union-attr]
    denoiser.requires_grad_(False)
    return [x.grad, *(parameter.grad for parameter in denoiser.parameters())], size


@pytest.mark.parametrize("features", [False, True], ids=["denoised", "features"])
@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "adapters"])
@pytest.mark.parametrize("kind", ["song", "adm", "edm2"])
def test_gradients_are_the_same_to_the_bit_and_less_is_kept(kind: str, rank: int | None, features: bool) -> None:
    results = []
    for checkpointing in (False, True):
        teacher = network_of(kind)
        if checkpointing:
            teacher.checkpoint_activations()
        copied = teacher.trainable_copy() if rank is None else teacher.adapted_copy(rank)
        for index, parameter in enumerate(copied.parameters()):
            if rank is not None:
                generator = torch.Generator().manual_seed(index)
                parameter.data = torch.randn(parameter.shape, generator=generator)
        results.append(gradients(copied, features=features))
    (plain, all_kept), (again, less_kept) = results
    assert sum(gradient is not None for gradient in plain) > 1
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
    assert less_kept < 0.7 * all_kept


@pytest.mark.usefixtures("small_grids")
def test_a_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    arguments = ["--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", "--divergence=sid",
                 "--critic=features", f"--data={files['data']}", "--cond=true", "--metrics=none", *SHORT]  # fmt: skip
    kept, again = (whole_run(tmp_path / flag, *arguments, f"--checkpointing={flag}") for flag in ("false", "true"))
    assert_same_run(kept, again)


@pytest.mark.usefixtures("small_grids")
def test_a_teacher_on_the_way_draws_the_same_dropout(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    kept, again = (
        whole_run(tmp_path / flag, *online(files, "--dropout=0.3", "--workers=0", f"--checkpointing={flag}"))
        for flag in ("false", "true")
    )
    assert_same_run(kept, again)


def test_a_denoiser_that_cannot_says_so() -> None:
    with pytest.raises(UserError, match="--checkpointing: a GaussianDenoiser keeps all its activations; leave it out"):
        GaussianDenoiser(0.0, 1.0).checkpoint_activations()
