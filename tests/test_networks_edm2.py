"""EDM2's network against numbers of the original code, and its files in half precision."""

import math
from pathlib import Path

import pytest
import torch

from stylegan_di.networks.edm2 import Block, MPConv, Precond, mp_cat, mp_silu, mp_sum, normalize
from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator, save_snapshot
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.persistence import Persistent
from tests.golden_edm import assert_near, load_arrays, load_weights, probe

ARRAYS, INFO = load_arrays("edm2_precond_cond6")


def golden(dtype: torch.dtype = torch.float64) -> Precond:
    network = Precond(**INFO["init_kwargs"])
    load_weights(network, ARRAYS)
    return network.to(dtype).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
@torch.no_grad()
def test_numbers_of_the_original_code(dtype: torch.dtype, tolerance: float) -> None:
    network = golden(dtype)
    x, sigma, labels = ARRAYS["x"], ARRAYS["sigma"], ARRAYS["labels"]
    denoised = network(x, sigma, labels)
    assert denoised.dtype == dtype
    assert_near(denoised, ARRAYS["out64/D"], tolerance)
    assert_near(network(x, sigma), ARRAYS["out64/D_nolabels"], tolerance)
    assert_near(network.logvar(sigma.to(dtype)), ARRAYS["out64/logvar"], tolerance)


def test_features_are_the_encoders_outputs() -> None:
    network = golden(torch.float32)
    x, sigma, labels = ARRAYS["x"].clone().requires_grad_(), ARRAYS["sigma"], ARRAYS["labels"]
    seen: dict[int, torch.Tensor] = {}
    for layer in network.unet.enc.values():
        layer.register_forward_hook(lambda _layer, _args, y: seen.__setitem__(y.shape[-1], y.detach().clone()))
    with torch.no_grad():
        network(x, sigma, labels)
    expected = list(seen.values())  # before features fills it again
    features = network.features(x, sigma, labels)
    kwargs = INFO["init_kwargs"]
    widths = [kwargs["model_channels"] * mult for mult in kwargs["channel_mult"]]
    sides = [kwargs["img_resolution"] >> level for level in range(len(widths))]
    assert len(widths) > 1
    assert [list(feature.shape) for feature in features] == [
        [len(x), width, side, side] for width, side in zip(widths, sides, strict=True)
    ]
    for feature, output in zip(features, expected, strict=True):
        assert torch.equal(feature, output)
        (gradient,) = torch.autograd.grad(feature.square().sum(), x, retain_graph=True)
        assert (gradient.flatten(1).abs().sum(1) > 0).all()
    with torch.no_grad():
        assert not torch.equal(network.features(x, sigma)[0], features[0])  # the null label
        assert network.double().features(x, sigma, labels)[0].dtype == torch.float64


def test_training_normalises_the_weights_themselves() -> None:
    name = "unet.enc.8x8_block0.conv_res0.weight"
    network = golden().train()
    network(ARRAYS["x"], ARRAYS["sigma"], ARRAYS["labels"])
    assert_near(network.state_dict()[name], ARRAYS[f"train_forced_norm64/{name}"], 1e-10)
    norms = network.state_dict()[name].square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=2e-4, atol=0)


def test_gradients_reach_every_weight_in_evaluation_mode() -> None:
    network = golden()
    x = ARRAYS["x"].double().requires_grad_()
    probe(network(x, ARRAYS["sigma"], ARRAYS["labels"])).backward()
    silent = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert silent == {"logvar_linear.weight"}
    assert x.grad is not None
    assert x.grad.abs().min() > 0


def test_state_dict_names_and_shapes() -> None:
    state = {name: list(value.shape) for name, value in golden().state_dict().items()}
    assert state == {key.removeprefix("sd/"): list(ARRAYS[key].shape) for key in ARRAYS if key.startswith("sd/")}


def test_magnitudes_are_preserved() -> None:
    """Unit variance in, unit variance out, to the precision of 2^18 samples."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 64, 64, 64)[:, None].expand(2, 1, 64, 64, 64).flatten(0, 1).chunk(2)
    for value in (mp_silu(torch.randn(2**18)), mp_sum(a, b, 0.3), MPConv(64, 64, kernel=(3, 3))(a)[..., 1:-1, 1:-1]):
        assert value.square().mean().sqrt().item() == pytest.approx(1, rel=0.02)
    joined = mp_cat(a, b[:, :16], t=0.5)
    assert joined.square().mean().item() == pytest.approx(1, rel=0.02)
    assert joined[:, 64:].square().sum().item() == pytest.approx(joined[:, :64].square().sum().item(), rel=0.05)
    assert normalize(5 * a, dim=1).square().mean(dim=1).sqrt().sub(1).abs().max() < 1e-3


class StandardRGBEncoder(Persistent):
    """As the plain object of this name in EDM2's files, to which it is a stranger here."""

    def __init__(self) -> None:
        self.init = "rgb"


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_half_precision_files_are_teachers(suffix: str, tmp_path: Path) -> None:
    """NVlabs write EDM2's weights as float16, beside an encoder."""
    network = golden(torch.float32)
    path = tmp_path / f"edm2.{suffix}"
    extras = {"encoder": StandardRGBEncoder(), "dataset_kwargs": {}}
    save_snapshot(path, {"ema": network.half()}, extras=extras, metadata={})
    teacher = load_denoiser(path)
    assert isinstance(teacher, EDMTeacher)
    assert type(teacher.network) is Precond
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert (teacher.sigma_min, teacher.sigma_max) == (0, math.inf)
    with torch.no_grad():
        denoised = teacher(ARRAYS["x"], ARRAYS["sigma"], ARRAYS["labels"])
    assert_near(denoised, ARRAYS["out64/D"], 5e-6)  # the golden weights are exact in float16


def test_a_one_step_student_of_edm2_comes_back(tmp_path: Path) -> None:
    save_snapshot(tmp_path / "s.pkl", {"ema": golden(torch.float32)}, extras={"sigma_init": 2.5}, metadata={})
    student = load_generator(tmp_path / "s.pkl")
    z = ARRAYS["x"]
    with torch.no_grad():
        expected = golden(torch.float32)(2.5 * z, 2.5, ARRAYS["labels"])
        torch.testing.assert_close(student(z, ARRAYS["labels"]), expected)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="enc, dec"):
        Block(4, 4, 4, flavor="mid")
    with pytest.raises(ValueError, match="keep, up, down"):
        Block(4, 4, 4, resample_mode="half")


@torch.no_grad()
def test_float16_activations_with_float32_parameters() -> None:
    network = golden(torch.float32)
    x, c_noise, labels = ARRAYS["x"], torch.tensor([-0.5, 1.25]), ARRAYS["labels"]
    half, full = network.raw(x.half(), c_noise, labels), network.raw(x, c_noise, labels)
    assert half.dtype == torch.float16
    assert not torch.equal(half.float(), full)
    assert_near(half, full, 1e-2)
