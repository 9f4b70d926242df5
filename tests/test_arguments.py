"""Constructor arguments from files: the table of what is accepted, and what is built when a forger alters them."""

from __future__ import annotations

import copy
import math
import random
import time
from typing import Any

import pytest
import torch

from stylegan_di.networks.decoder import Decoder
from stylegan_di.networks.edm import PRECONDITIONERS, DDPMPrecond
from stylegan_di.networks.flow import Flow
from stylegan_di.networks.radiance import RadianceField
from stylegan_di.networks.refiner import Refiner
from stylegan_di.snapshots import blueprint
from stylegan_di.snapshots.arguments import ARGUMENTS, check_arguments
from stylegan_di.snapshots.blueprint import Blueprint, build, class_name
from stylegan_di.torch_utils.persistence import RefusedFileError
from tests.tiny import edm_network, gan_networks, r3gan_networks, stylegan3_networks

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 4, 5, 7, 8, 16, 2**20, 2**40, -1, -5, 0.0, 0.5, 1.0, 1e-30, 1e30, -0.1, math.nan,
    math.inf, -math.inf, "", "x", "linear", "relu", "lrelu", "skip", "resnet", "orig", "standard", "residual",
    "fourier", "positional", "SongUNet", "DhariwalUNet", [], [1], [2], [1, 1], [1, 2], [1] * 200, [0], [0, 0], [-1],
    [math.nan], ["a"], [8], [4, 8], {}, {"a": 1}, [[1]],
]  # fmt: skip


def mutated(kwargs: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    changed = copy.deepcopy(kwargs)
    for _ in range(rng.choice((1, 1, 1, 2))):
        groups = [changed] + [value for value in changed.values() if isinstance(value, dict)]
        target = rng.choice(groups)
        target[rng.choice(list(ARGUMENTS) if rng.random() < 0.5 else list(target) or ["x"])] = rng.choice(VALUES)
    return changed


def draws(network: Any) -> None:
    labels = torch.zeros(2, getattr(network, "c_dim", getattr(network, "label_dim", 0)))
    shape = (2, network.img_channels, network.img_resolution, network.img_resolution)
    given = labels if labels.shape[1] else None
    with torch.no_grad():
        if isinstance(network, Refiner):
            images = network.generator(torch.randn(2, network.generator.z_dim), labels)
            network.refine(images, torch.randn(shape), given)
        elif hasattr(network, "latent_shape"):
            network(torch.randn(2, *network.latent_shape), given)
        elif hasattr(network, "z_dim"):
            network(torch.randn(2, network.z_dim), labels)
        elif hasattr(network, "label_dim"):
            network(torch.randn(shape), torch.tensor([1.0, 2.0]), given)
        else:
            network(torch.randn(shape), labels)


def all_networks() -> list[tuple[str, Any]]:
    """A small network of each class that files may hold, with the name of an entry that may hold it."""
    shape: dict[str, Any] = dict(img_resolution=8, img_channels=1, label_dim=3)
    adm: dict[str, Any] = dict(model_channels=8, channel_mult=[0.5, 1], num_blocks=1, attn_resolutions=[4], num_heads=2)
    gan, residual = gan_networks(), r3gan_networks()
    found: list[tuple[str, Any]] = [("G_ema", gan["G_ema"]), ("D", gan["D"])]
    found += [("G_ema", stylegan3_networks()["G_ema"]), ("G_ema", residual["G_ema"]), ("D", residual["D"])]
    found += [("ema", edm_network(precond=name)) for name in (*PRECONDITIONERS, "edm2")]
    found += [("ema", DDPMPrecond(**shape, **adm)), ("refiner", Refiner.of(gan["G_ema"], edm_network(), 2.5))]  # type: ignore[arg-type]
    found += [("student", Decoder(**shape, z_dim=4, width=8)), ("student", Flow(**shape, depth=2, width=8))]
    return [*found, ("student", RadianceField(**shape, width=8, depth=4))]


def test_the_table_knows_every_argument_of_every_network() -> None:
    for _, network in all_networks():
        check_arguments(network.init_kwargs)
    assert {class_name(network) for _, network in all_networks()} == blueprint.CLASSES.keys() - {"AugmentPipe"}


def fitting(cls: Any, kwargs: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that fit what the arguments call for, as a forger would make them; others where they call for none."""
    try:
        check_arguments(kwargs)
        with torch.device("meta"):
            layout = cls(**kwargs).state_dict()
    except Exception:
        return weights
    result = {}
    for key, value in layout.items():
        if key in weights and weights[key].shape == value.shape:
            result[key] = weights[key]
        elif key == "orders":
            result[key] = torch.stack([torch.randperm(value.shape[1]) for _ in range(len(value))])
        elif value.numel() < 1e6:
            result[key] = torch.randn(value.shape)
    return result


def test_mutated_arguments_are_refused_or_draw() -> None:
    rng = random.Random(0)
    bases = all_networks()
    outcomes = {"refused": 0, "drawn": 0}
    for _ in range(2500):
        name, network = rng.choice(bases)
        cls, kwargs = type(network), mutated(network.init_kwargs, rng)
        weights = fitting(cls, kwargs, network.state_dict())
        try:
            built = build(Blueprint(str(class_name(network)), (), kwargs, weights), name, "file")
        except RefusedFileError:
            outcomes["refused"] += 1
            continue
        draws(built)
        outcomes["drawn"] += 1
    assert outcomes["refused"] > 1500
    assert outcomes["drawn"] > 100


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("num_blocks", {"num_blocks": 2**20}, "num_blocks=1048576; accepted is int, a number from 1 to 64"),
        ("channel_mult", {"channel_mult": [1] * 200}, "accepted is up to 16 of: int"),
        ("sigma_min", {"sigma_min": math.nan}, "sigma_min=nan; accepted is"),
        ("sigma_max", {"sigma_max": -1}, "sigma_max=-1; accepted is"),
        ("sigma_min above", {"sigma_min": 3, "sigma_max": 2}, "sigma_min=3 is not below sigma_max=2"),
        ("sigma_data", {"sigma_data": "x"}, "sigma_data=x; accepted is"),
        ("dropout", {"dropout": 1.0}, "dropout=1.0; accepted is"),
        ("M", {"M": 1}, "M=1; accepted is int, a number from 2 to 10000"),
        ("bool", {"num_blocks": True}, "num_blocks=True; accepted is"),
        ("activation", {"synthesis_kwargs": {"activation": "x"}}, "synthesis_kwargs.activation=x; accepted is one of"),
        ("conv_clamp", {"synthesis_kwargs": {"conv_clamp": -1}}, "conv_clamp=-1; accepted is int or float"),
        ("lr_multiplier", {"mapping_kwargs": {"lr_multiplier": math.nan}}, "lr_multiplier=nan; accepted is"),
        ("groups in groups", {"mapping_kwargs": {"mapping_kwargs": {}}}, "there is no argument mapping_kwargs.mapping"),
        ("group", {"mapping_kwargs": 3}, "mapping_kwargs is a int; accepted is a dict"),
        ("unknown", {"surprise": 1}, "there is no argument surprise"),
        ("cutoffs", {"first_cutoff": 3, "first_stopband": 2}, "a first_cutoff above first_stopband"),
        ("radial", {"use_radial_filters": 1}, "use_radial_filters=1; accepted is bool"),
        ("stages", {"WidthPerStage": [2**20]}, "WidthPerStage=[1048576]; accepted is up to 12 of: int"),
        ("nested", {"denoiser": {"num_blocks": 0}}, "denoiser.num_blocks=0; accepted is int, a number from 1 to 64"),
        ("in a nested group", {"generator": {"mapping_kwargs": {"num_layers": -1}}},
         "generator.mapping_kwargs.num_layers=-1; accepted is"),
        ("together", {"denoiser": {"sigma_min": 3, "sigma_max": 2}}, "sigma_min=3 is not below sigma_max=2"),
        ("no dict", {"generator": None}, "generator is a NoneType; accepted is a dict"),
        ("refiners in refiners", {"generator": {"generator": {}}}, "there is no argument generator.generator"),
        ("class", {"generator": {"class_name": "Refiner"}}, "generator.class_name=Refiner; accepted is one of"),
        ("heads", {"num_heads": 0}, "num_heads=0; accepted is"),
    ],
)  # fmt: skip
def test_the_table_of_arguments(name: str, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.").replace("[", r"\[")):
        check_arguments(kwargs)


def test_a_network_that_calls_for_far_more_layers_than_it_has_weights() -> None:
    network = edm_network()
    kwargs = network.init_kwargs | {"channel_mult": [1] * 3, "num_blocks": 64, "img_resolution": 8}
    start = time.process_time()
    with pytest.raises(RefusedFileError, match="far more layers than the file has weights"):
        build(Blueprint(type(network).__name__, (), kwargs, network.state_dict()), "ema", "file")
    assert time.process_time() - start < 2


def test_a_flow_whose_permutations_are_none_is_refused() -> None:
    flow = Flow(img_resolution=8, img_channels=1, label_dim=0, depth=2, width=8)
    weights = dict(flow.state_dict()) | {"orders": torch.full([2, 64], 64)}
    with pytest.raises(RefusedFileError, match="orders that are no permutations"):
        build(Blueprint("Flow", (), flow.init_kwargs, weights), "student", "file")


def test_a_radiance_field_allocates_no_more_than_192_MB_beyond_its_weights() -> None:
    field = RadianceField(img_resolution=8, img_channels=1, label_dim=0, width=8, depth=4)
    kwargs = field.init_kwargs | {"img_resolution": 8192, "depth": 1024}
    with pytest.raises(RefusedFileError, match=r"1024 samples on each of 8192\^2 rays; accepted are 16777216 in all"):
        build(Blueprint("RadianceField", (), kwargs, field.state_dict()), "student", "file")
