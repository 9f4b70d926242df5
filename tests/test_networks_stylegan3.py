"""StyleGAN3's generator against numbers of the original code, the published configurations and the file format."""

import gzip
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.networks import stylegan3
from stylegan_di.networks.stylegan2 import Discriminator
from stylegan_di.networks.stylegan3 import Generator
from stylegan_di.networks.stylegan3_layers import design_lowpass
from stylegan_di.torch_utils.persistence import PersistentModule
from tests.golden_edm import GOLDEN, assert_near, load_arrays, load_weights, probe
from tests.golden_sg2 import load_op
from tests.test_networks_stylegan2 import assert_summaries_near, entries, normal

GENERATORS = ["sg3g_t_uncond", "sg3g_r_cond"]
PRECISIONS = [(torch.float64, 1e-10, 1e-10), (torch.float32, 2e-5, 5e-5)]  # type, tolerance of outputs, of gradients
PUBLISHED = json.loads(gzip.decompress((GOLDEN / "format" / "published_shapes_sg3.json.gz").read_bytes()))
STATE_ATTRS = json.loads((GOLDEN / "format" / "state_attrs_sg3.json").read_text())["classes"]
FILTERS, FILTER_INFO = load_op("sg3_filters")
LAYER_SPECS = (
    "is_torgb", "is_critically_sampled", "use_fp16", "in_channels", "out_channels", "in_size", "out_size",
    "in_sampling_rate", "out_sampling_rate", "tmp_sampling_rate", "in_cutoff", "out_cutoff", "in_half_width",
    "out_half_width", "conv_kernel", "up_factor", "down_factor", "up_taps", "down_taps", "down_radial", "padding",
)  # fmt: skip

TINY: dict[str, Any] = dict(z_dim=4, w_dim=6, img_resolution=16, img_channels=2, channel_base=64, channel_max=8,
                            num_layers=4, margin_size=4)  # fmt: skip


def tiny_generator(c_dim: int = 0, **kwargs: Any) -> Generator:
    torch.manual_seed(0)
    return Generator(c_dim=c_dim, **{**TINY, **kwargs}).eval()


def load_network(name: str, dtype: torch.dtype = torch.float64) -> tuple[Generator, dict[str, Tensor], dict[str, Any]]:
    arrays, info = load_arrays(name)
    network = Generator(**info["init_kwargs"])
    load_weights(network, arrays)
    return network.to(dtype).eval(), {"c": torch.zeros(len(arrays["z"]), 0)} | arrays, info


# ---------------------------------------------------------------------------------------------------------------------
# The numbers.


@pytest.mark.parametrize("name", GENERATORS)
def test_golden_ws_and_images(name: str) -> None:
    network, arrays, info = load_network(name)
    z, c, cutoff = arrays["z"].double(), arrays["c"].double(), info["truncation_cutoff"]
    truncations = {"psi1": (1,), "psi0.5": (0.5,), f"psi0.7_cut{cutoff}": (0.7, cutoff)}
    with torch.no_grad():
        for key, truncation in truncations.items():
            assert_near(network.mapping(z, c, *truncation), arrays[f"out64/ws_{key}"], 1e-10)
            assert_near(network(z, c, *truncation), arrays[f"out64/img_{key}"], 1e-10)
        ws = network.mapping(z, c)
        mixed = torch.cat([ws[:, : info["style_mix_index"]], ws.flip(0)[:, info["style_mix_index"] :]], dim=1)
        assert_near(network.synthesis(mixed), arrays["out64/img_mix"], 1e-10)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("transform", ["", "_transform_A", "_transform_B"])
def test_golden_input(name: str, transform: str) -> None:
    """The first feature maps, of every second row and third column, and the images that come of them."""
    network, arrays, _ = load_network(name)
    if transform:
        network.synthesis.input.transform.copy_(arrays[transform.removeprefix("_")])
    with torch.no_grad():
        assert_near(network.synthesis.input(arrays["input_ws"].double())[:, :, ::2, ::3],
                    arrays[f"out64/input{transform}"], 1e-10)  # fmt: skip
        if transform:
            img = network(arrays["z"].double(), arrays["c"].double())[:1]
            assert_near(img, arrays[f"out64/img{transform}"], 1e-10)


@pytest.mark.parametrize("name", GENERATORS)
def test_golden_running_means(name: str) -> None:
    network, arrays, _ = load_network(name)
    z, c = arrays["z"].double(), arrays["c"].double()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    layers = [getattr(network.synthesis, layer) for layer in network.synthesis.layer_names]
    network.train()(z, c)
    network.eval()(z, c, update_emas=True)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.train()
    img = network(z, c, update_emas=True)
    assert_near(img[:1].detach(), arrays["out64/emas/img_1"], 1e-10)
    for call in (1, 2):
        assert_near(network.mapping.w_avg, arrays[f"out64/emas/w_avg_{call}"], 1e-10)
        magnitudes = torch.stack([layer.magnitude_ema for layer in layers])
        assert_near(magnitudes, arrays[f"out64/emas/magnitude_ema_{call}"], 1e-10)
        network(0.5 * z.flip(0), c, update_emas=True)
    assert not any(buffer.requires_grad for buffer in network.buffers())


@pytest.mark.parametrize(("dtype", "forward", "backward"), PRECISIONS)
@pytest.mark.parametrize("name", GENERATORS)
def test_golden_gradients(name: str, dtype: torch.dtype, forward: float, backward: float) -> None:
    network, arrays, info = load_network(name, dtype)
    z = arrays["z"].to(dtype).requires_grad_()
    img = network(z, arrays["c"].to(dtype))
    assert_near(img.detach(), arrays["out64/img_psi1"], forward)
    if dtype == torch.float32:
        assert_near(img.detach(), arrays["out32/img_psi1"], forward)
    scalar, parameters = probe(img), dict(network.named_parameters())
    assert scalar.item() == pytest.approx(info["grad_scalar"], rel=backward)
    dz, *gradients = torch.autograd.grad(scalar, [z, *parameters.values()], allow_unused=True)
    assert_near(dz, arrays["grad64/z"], backward)
    for key, gradient in zip(parameters, gradients, strict=True):
        if f"grad64/{key}" in arrays:
            assert_near(gradient, arrays[f"grad64/{key}"], backward)
    assert_summaries_near(network, gradients, info["grad_summary"], backward)


@pytest.mark.parametrize("index", range(len(FILTER_INFO["cases"])))
def test_golden_filters(index: int) -> None:
    case = FILTER_INFO["cases"][index]
    f = design_lowpass(*(case[name] for name in ("numtaps", "cutoff", "width", "fs", "radial")))
    if case["identity"]:
        assert f is None
    else:
        assert f is not None
        assert f.dtype == torch.float32
        assert_near(f, FILTERS[f"f{index:03}"], 2e-7)


# ---------------------------------------------------------------------------------------------------------------------
# The file format.


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str) -> None:
    published = PUBLISHED[name]
    with torch.device("meta"):
        network = Generator(**published["G"]["init_kwargs"])
        discriminator = Discriminator(**published["D"]["init_kwargs"])
    shapes = dict(published["G"]["params"]) | dict(published["G"]["buffers"])
    assert [(key, list(value.shape)) for key, value in network.state_dict().items()] == [
        (key, shapes[key]) for key in published["G"]["state_dict_order"]
    ]
    assert sum(p.numel() for p in network.parameters()) == published["G"]["n_params"]
    assert sum(p.numel() for p in discriminator.parameters()) == published["D"]["n_params"]
    assert_specs(network, published["G"]["specs"])


@pytest.mark.parametrize("name", GENERATORS)
def test_golden_layout(name: str) -> None:
    _, info = load_arrays(name)
    network = Generator(**info["init_kwargs"])
    expected = [(entry["name"], entry["kind"], entry["shape"]) for entry in info["state_dict"]]
    assert entries(network) == expected
    assert network.num_ws == info["num_ws"]
    assert network.synthesis.layer_names == info["layer_names"]
    assert_specs(network, info["specs"])


def assert_specs(network: Generator, specs: dict[str, Any]) -> None:
    """The schedule of the input and of every layer."""
    for name, value in specs["input"].items():
        assert getattr(network.synthesis.input, name) == pytest.approx(value, rel=1e-12), name
    assert [spec["name"] for spec in specs["layers"]] == network.synthesis.layer_names
    for spec in specs["layers"]:
        layer = getattr(network.synthesis, spec["name"])
        for name in LAYER_SPECS:
            assert getattr(layer, name) == pytest.approx(spec[name], rel=1e-12), (spec["name"], name)


@pytest.mark.parametrize("c_dim", [0, 3])
def test_attributes(c_dim: int) -> None:
    """Every attribute is one of the format's, and a plain value."""
    hidden, seen = set(vars(torch.nn.Module())), set()
    for module in tiny_generator(c_dim, conv_kernel=1, use_radial_filters=True).modules():
        expected = STATE_ATTRS[type(module).__name__]
        own = {name: value for name, value in vars(module).items() if name not in hidden}
        embed = {"embed"} if isinstance(module, stylegan3.MappingNetwork) and c_dim else set()
        assert own.keys() == expected.keys() - {"_buffers", "_parameters"} - embed
        assert {name.removesuffix(" None") for name in expected["_buffers"]} == set(module._buffers)
        assert set(expected["_parameters"]) == set(module._parameters)
        for value in own.values():
            assert type(value) in (int, float, bool, str, list, tuple, dict, type(None))
        seen.add(type(module).__name__)
    assert seen == STATE_ATTRS.keys()
    assert all(issubclass(getattr(stylegan3, name), PersistentModule) for name in seen)


# ---------------------------------------------------------------------------------------------------------------------
# Behaviour.


def test_initial_waves_are_in_the_band() -> None:
    torch.manual_seed(0)
    module = stylegan3.SynthesisInput(4, channels=1000, size=8, sampling_rate=8.0, bandwidth=2.0)
    lengths = module.freqs.norm(dim=1)
    assert lengths.max() <= 2
    assert lengths.square().mean() == pytest.approx(2, rel=0.1)  # of a disc of radius 2
    assert module.phases.min() < -0.45
    assert 0.45 < module.phases.max() <= 0.5


def test_translation_moves_the_picture() -> None:
    """An integer shift of T moves pixels, apart from what the borders and the last layer's band add."""
    network = tiny_generator(img_resolution=32, channel_base=256, num_layers=6, margin_size=10).double()
    z = normal(2, 4).double()
    with torch.no_grad():
        img = network(z, None)
        network.synthesis.input.transform[0, 2] = -4 / 32
        moved = network(z, None)
    difference = (moved[:, :, :, 4:] - img[:, :, :, :-4]).square().mean()
    assert difference < 1e-3 * img.var()
    assert (moved - img).square().mean() > 100 * difference


@pytest.mark.parametrize("c_dim", [0, 3])
def test_trains(c_dim: int) -> None:
    """Everything trainable gets a gradient, and a batch does not change its samples' images."""
    network, z = tiny_generator(c_dim).train(), normal(4, 4)
    c = torch.eye(3)[[0, 2, 1, 0]] if c_dim else None
    img = network(z, c)
    assert img.shape == (4, 2, 16, 16)
    probe(img).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    alone = network(z[1:2], None if c is None else c[1:2])
    assert_near(alone, img[1:2].detach(), 1e-5)


def test_options() -> None:
    network, z = tiny_generator(), normal(2, 4)
    img = network(z, None)
    assert torch.equal(img, network(z, None, noise_mode="none", force_fp32=True))
    assert_near(tiny_generator(output_scale=0.5)(z, None), 2 * img.detach(), 1e-6)
    clamped = tiny_generator(conv_clamp=0.01, output_scale=1)(z, None)
    assert float(clamped.detach().abs().max()) == pytest.approx(0.01)
    assert tiny_generator(conv_clamp=None)(z, None).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(network(z, None), img.detach(), 0.1)


def test_compiles_whole() -> None:
    network, z = tiny_generator(), normal(2, 4)
    torch.testing.assert_close(torch.compile(network, fullgraph=True, backend="eager")(z, None), network(z, None))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"img_resolution": 24}, "powers of two"),
        ({"num_critical": 0}, "num_critical < num_layers"),
        ({"num_critical": 4}, "num_critical < num_layers"),
        ({"filter_size": 10**6}, "accepted: 1 to 512"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        tiny_generator(**arguments)


def test_refused_inputs() -> None:
    network = tiny_generator(c_dim=3)
    with pytest.raises(ValueError, match="noise_mode='fixed'; accepted: random, const, none"):
        network(normal(2, 4), torch.eye(3)[:2], noise_mode="fixed")
    with pytest.raises(ValueError, match="c of shape None"):
        network(normal(2, 4), None)
    with pytest.raises(ValueError, match=r"ws of shape \[2, 6\]"):
        network.synthesis(normal(2, 6))
