"""R3GAN's networks against numbers of the original code and its presets; the relativistic losses with R1 and R2."""

import gzip
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.networks.r3gan import Discriminator, Generator
from tests.golden_edm import GOLDEN, assert_near, load_arrays, load_weights, probe
from tests.test_networks_stylegan2 import assert_summaries_near, entries, normal

PRESETS = json.loads(gzip.decompress((GOLDEN / "format" / "published_shapes_r3gan.json.gz").read_bytes()))
PRECISIONS = [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 3e-5)]  # type, tolerance of outputs, of the rest
TINY: dict[str, Any] = dict(WidthPerStage=[8, 6], CardinalityPerStage=[2, 3], BlocksPerStage=[1, 2], ExpansionFactor=2,
                            FP16Stages=[], c_dim=0, img_resolution=8)  # fmt: skip


def load(cls: Any, name: str, dtype: torch.dtype, **changes: Any) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    arrays, info = load_arrays(name)
    network = cls(**info["init_kwargs"] | changes)
    load_weights(network, arrays)
    return network.to(dtype), arrays, info


@pytest.mark.parametrize(("dtype", "forward", "backward"), PRECISIONS)
def test_golden_generator(dtype: torch.dtype, forward: float, backward: float) -> None:
    network, arrays, info = load(Generator, "r3gan_g", dtype)
    z = arrays["z"].to(dtype).requires_grad_()
    img = network(z, arrays["c"].to(dtype))
    assert_near(img.detach(), arrays["out64/img"], forward)
    scalar = probe(img)
    assert scalar.item() == pytest.approx(info["grad_scalar"], abs=backward * float(img.detach().abs().sum()))
    dz, *gradients = torch.autograd.grad(scalar, [z, *network.parameters()])
    assert_near(dz, arrays["grad64/z"], backward)
    for (key, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        if f"grad64/{key}" in arrays:
            assert_near(gradient, arrays[f"grad64/{key}"], backward)
    assert_summaries_near(network, gradients, info["grad_summary"], backward)


@pytest.mark.parametrize(("dtype", "forward", "backward"), PRECISIONS)
def test_golden_discriminator_and_losses(dtype: torch.dtype, forward: float, backward: float) -> None:
    """Logits; both losses of each sample; the gradients of the discriminator's whole loss, of second order."""
    network, arrays, info = load(Discriminator, "r3gan_d", dtype)
    c, real, fake = (arrays[name].to(dtype) for name in ("c", "real", "fake"))
    real, fake = real.requires_grad_(), fake.requires_grad_()
    logits = {"real": network(real, c), "fake": network(fake, c)}
    for name, values in logits.items():
        assert_near(values.detach(), arrays[f"out64/logits_{name}"], forward)
    (gradient,) = torch.autograd.grad(logits["real"].sum(), real, retain_graph=True)
    assert_near(gradient, arrays["out64/grad_img"], forward)
    loss = loss_gan.discriminator_relativistic(logits["fake"], logits["real"])
    assert_near(loss.detach(), arrays["out64/d_loss"], backward)
    assert_near((logits["real"] - logits["fake"]).detach(), arrays["out64/d_relativistic"], backward)
    penalties = [loss_gan.r1_penalty(logits[name], x, info["gamma"]) for name, x in (("real", real), ("fake", fake))]
    for penalty, name in zip(penalties, ("r1", "r2"), strict=True):
        assert_near(penalty.detach(), arrays[f"out64/{name}"] * info["gamma"] / 2, backward)
    whole = loss + sum(penalties)
    gradients = torch.autograd.grad(whole.mean(), list(network.parameters()), retain_graph=True)
    for (key, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        if f"dgrad64/{key}" in arrays:
            assert_near(gradient, arrays[f"dgrad64/{key}"], backward)
    assert_summaries_near(network, gradients, info["grad_summary"], backward)
    loss = loss_gan.generator_relativistic(logits["fake"], logits["real"].detach())
    assert_near(loss.detach(), arrays["out64/g_loss"], backward)
    (gradient,) = torch.autograd.grad(loss.mean(), fake)
    assert_near(gradient, arrays["out64/g_grad_fake"], backward)


def test_golden_bfloat16() -> None:
    arrays, info = load_arrays("r3gan_g")
    network, _, _ = load(Generator, "r3gan_g", torch.float32, FP16Stages=info["bf16_stages"])
    img = network(arrays["z"], arrays["c"])
    assert img.dtype == torch.bfloat16
    assert_near(img.detach(), arrays["out_bf16/img"], 5e-2)
    arrays, info = load_arrays("r3gan_d")
    network, _, _ = load(Discriminator, "r3gan_d", torch.float32, FP16Stages=info["bf16_stages"])
    assert_near(network(arrays["real"], arrays["c"]).detach(), arrays["out_bf16/logits_real"], 5e-2)


@pytest.mark.parametrize(("cls", "name"), [(Generator, "r3gan_g"), (Discriminator, "r3gan_d")])
def test_golden_layout(cls: Any, name: str) -> None:
    _, info = load_arrays(name)
    expected = [(entry["name"], entry["kind"], entry["shape"]) for entry in info["state_dict"]]
    assert entries(cls(**info["init_kwargs"])) == expected


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    for cls, preset in ((Generator, PRESETS[name]["G"]), (Discriminator, PRESETS[name]["D"])):
        with torch.device("meta"):
            network = cls(**preset["init_kwargs"])
        assert [[key, list(value.shape)] for key, value in network.named_parameters()] == preset["params"]
        assert sum(parameter.numel() for parameter in network.parameters()) == preset["n_params"]


def test_initial_weights() -> None:
    """Blocks begin as the identity, and the stages keep a variance of about 1."""
    torch.manual_seed(0)
    generator = Generator(NoiseDimension=64, **TINY | {"WidthPerStage": [64, 32], "CardinalityPerStage": [8, 4]})
    block = generator.Model.MainLayers[0].Layers[1]
    x = normal(2, 64, 4, 4)
    assert torch.equal(block(x), x)
    assert float(block.LinearLayer1.Layer.weight.detach().std()) == pytest.approx(
        (2 / 1.04 / 64) ** 0.5 * 3**-0.25, rel=0.05
    )
    assert float(block.LinearLayer2.Layer.weight.detach().std()) == pytest.approx(
        (2 / 1.04 / 144) ** 0.5 * 3**-0.25, rel=0.05
    )
    assert float(generator.Model.MainLayers[0].Layers[0].Basis.detach().std()) == pytest.approx(1, rel=0.1)
    maps = generator.Model.MainLayers[0](normal(100, 64))
    assert float(maps.detach().square().mean()) == pytest.approx(1, rel=0.2)
    conditional = Discriminator(**TINY | {"c_dim": 5, "ConditionEmbeddingDimension": 400})
    weight = conditional.Model.EmbeddingLayer.weight
    assert float(weight.detach().std()) == pytest.approx((1 / 400 / 5) ** 0.5, rel=0.05)


def test_channels_and_labels() -> None:
    network = Generator(NoiseDimension=4, **TINY, img_channels=1)
    assert network(normal(2, 4), None).shape == (2, 1, 8, 8)
    critic = Discriminator(**TINY, img_channels=1)
    assert critic(normal(2, 1, 8, 8), torch.eye(2)).shape == (2,)
    with pytest.raises(ValueError, match=r"images of shape \[2, 3, 8, 8\]"):
        critic(normal(2, 3, 8, 8), None)
    with pytest.raises(ValueError, match="c of shape None"):
        Generator(NoiseDimension=4, **TINY | {"c_dim": 3, "ConditionEmbeddingDimension": 2})(normal(2, 4), None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_resolution": 16}, "accepted with 2 stages"),
        ({"BlocksPerStage": [1]}, "as many of each"),
        ({"BlocksPerStage": [1, 0]}, "as many of each"),
        ({"CardinalityPerStage": [3, 3]}, "must be multiples"),
        ({"KernelSize": 2}, "odd numbers"),
        ({"c_dim": 3}, "above 0 for both or none"),
    ],
)
def test_refused_arguments(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Discriminator(**TINY | changes)
