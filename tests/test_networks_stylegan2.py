"""StyleGAN2's networks against numbers of the original code, the published configurations and the file format."""

import gzip
import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.networks import stylegan2, stylegan2_layers
from stylegan_di.networks.stylegan2 import Discriminator, Generator, MinibatchStdLayer
from stylegan_di.networks.stylegan2_layers import MappingNetwork, normalize_2nd_moment
from stylegan_di.torch_utils.persistence import PersistentModule
from tests.golden_edm import GOLDEN, assert_near, probe
from tests.golden_sg2 import load_network, load_op

GENERATORS = ["sg2g_uncond_skip_map2", "sg2g_cond10_skip_map8", "sg2g_uncond_resnet_clamp", "sg2g_uncond_skip_fp16"]
DISCRIMINATORS = ["sg2d_uncond_resnet", "sg2d_cond10_resnet_map8"]
IN_FLOAT32 = [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 3e-5)]  # type, tolerance of outputs, of gradients
PUBLISHED = json.loads(gzip.decompress((GOLDEN / "format" / "published_shapes_sg2.json.gz").read_bytes()))
STATE_ATTRS = json.loads((GOLDEN / "format" / "state_attrs_sg2.json").read_text())["classes"]
LAYERS, _ = load_op("modulated_conv2d")

TINY: dict[str, Any] = {"img_resolution": 16, "img_channels": 2}
TINY_WIDTHS: dict[str, Any] = {"channel_base": 64, "channel_max": 8}


def tiny_generator(c_dim: int = 0, **synthesis_kwargs: Any) -> Generator:
    torch.manual_seed(0)
    mapping, synthesis = {"num_layers": 2}, {**TINY_WIDTHS, **synthesis_kwargs}
    network = Generator(z_dim=4, c_dim=c_dim, w_dim=6, mapping_kwargs=mapping, synthesis_kwargs=synthesis, **TINY)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    return network.eval()


def tiny_discriminator(c_dim: int = 0, **kwargs: Any) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(c_dim=c_dim, **TINY, **{**TINY_WIDTHS, **kwargs}).eval()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def entries(network: torch.nn.Module) -> list[tuple[str, str, list[int]]]:
    """Name, kind and shape of all in the state dict, in order."""
    parameters = dict(network.named_parameters())
    return [
        (name, "parameter" if name in parameters else "buffer", list(value.shape))
        for name, value in network.state_dict().items()
    ]


def assert_summaries_near(
    network: torch.nn.Module, gradients: Iterable[Tensor | None], expected: dict[str, dict[str, float]], rtol: float
) -> None:
    """The gradients of all parameters against recorded norms and sums; None counts as zero."""
    assert expected.keys() == dict(network.named_parameters()).keys()
    for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        norm, total = expected[name]["l2"], expected[name]["sum"]
        assert float(gradient.norm()) == pytest.approx(norm, rel=rtol), name
        assert float(gradient.sum()) == pytest.approx(total, abs=rtol * norm * math.sqrt(gradient.numel())), name


# ---------------------------------------------------------------------------------------------------------------------
# The generator's numbers.


@pytest.mark.parametrize("name", GENERATORS)
def test_golden_ws_and_images(name: str) -> None:
    network, arrays, info = load_network(Generator, name)
    z, c, cutoff = arrays["z"].double(), arrays["c"].double(), info["truncation_cutoff"]
    truncations = {"psi1": (1,), "psi0.5": (0.5,), f"psi0.7_cut{cutoff}": (0.7, cutoff)}
    with torch.no_grad():
        for key, truncation in truncations.items():
            assert_near(network.mapping(z, c, *truncation), arrays[f"out64/ws_{key}"], 1e-10)
        images = [key for key in arrays if key.startswith("out64/img_psi")]
        assert len(images) == 5
        for key in images:
            truncation, noise_mode = key.removeprefix("out64/img_").removesuffix("_unfused").rsplit("_", 1)
            fused = False if key.endswith("unfused") else None
            img = network(z, c, *truncations[truncation], noise_mode=noise_mode, fused_modconv=fused)
            assert_near(img, arrays[key], 1e-10)


@pytest.mark.parametrize("name", GENERATORS)
def test_golden_style_mixing(name: str) -> None:
    """The recorded images take their later ws from the batch in reverse."""
    network, arrays, info = load_network(Generator, name)
    with torch.no_grad():
        ws = network.mapping(arrays["z"].double(), arrays["c"].double())
        cutoff = info["style_mix_index"]
        mixed = torch.cat([ws[:, :cutoff], ws.flip(0)[:, cutoff:]], dim=1)
        assert_near(network.synthesis(mixed, noise_mode="const"), arrays["out64/img_mix"], 1e-10)


@pytest.mark.parametrize(("dtype", "forward", "backward"), IN_FLOAT32)
@pytest.mark.parametrize("name", GENERATORS[:3])
def test_golden_gradients(name: str, dtype: torch.dtype, forward: float, backward: float) -> None:
    network, arrays, info = load_network(Generator, name, dtype)
    z = arrays["z"].to(dtype).requires_grad_()
    img = network(z, arrays["c"].to(dtype), noise_mode="const")
    assert_near(img.detach(), arrays["out64/img_psi1_const"], forward)
    if dtype == torch.float32:
        assert_near(img.detach(), arrays["out32/img_psi1_const"], forward)
    scalar, parameters = probe(img), dict(network.named_parameters())
    assert scalar.item() == pytest.approx(info["grad_scalar"], rel=backward)
    dz, *gradients = torch.autograd.grad(scalar, [z, *parameters.values()])
    assert_near(dz, arrays["grad64/z"], backward)
    for key, gradient in zip(parameters, gradients, strict=True):
        if f"grad64/{key}" in arrays:
            assert_near(gradient, arrays[f"grad64/{key}"], backward)
    assert_summaries_near(network, gradients, info["grad_summary"], backward)


@pytest.mark.parametrize(("dtype", "forward", "backward"), IN_FLOAT32)
@pytest.mark.parametrize("name", GENERATORS[:3])
def test_golden_path_length(name: str, dtype: torch.dtype, forward: float, backward: float) -> None:
    """Second order: the recorded penalty is mean((length - 0.3)^2), for images weighted by a ramp."""
    network, arrays, info = load_network(Generator, name, dtype)
    ws = network.mapping(arrays["z"].to(dtype), arrays["c"].to(dtype))
    img = network.synthesis(ws, noise_mode="const")
    (dws,) = torch.autograd.grad(probe(img) / img.shape[-1], ws, create_graph=True)
    lengths = dws.square().sum(2).mean(1).sqrt()
    assert_near(lengths.detach(), arrays["pl64/lengths"], backward)
    penalty = (lengths - 0.3).square().mean()
    assert penalty.item() == pytest.approx(info["pl_penalty"], rel=backward)
    keys = [key for key in arrays if key.startswith("pl64/grad/")]
    assert len(keys) == 4
    parameters = [network.get_parameter(key.removeprefix("pl64/grad/")) for key in keys]
    for key, gradient in zip(keys, torch.autograd.grad(penalty, parameters), strict=True):
        assert_near(gradient, arrays[key], backward)


@pytest.mark.parametrize("name", GENERATORS[:3])
def test_golden_w_avg(name: str) -> None:
    network, arrays, _ = load_network(Generator, name)
    z, c, before = arrays["z"].double(), arrays["c"].double(), network.mapping.w_avg.clone()
    network.mapping(z, c)
    assert torch.equal(network.mapping.w_avg, before)
    network.train()
    network.mapping(z, c, skip_w_avg_update=True)
    assert torch.equal(network.mapping.w_avg, before)
    network.mapping(z, c)
    assert_near(network.mapping.w_avg, arrays["w_avg_after_train_fwd64"], 1e-10)
    assert not network.mapping.w_avg.requires_grad


@pytest.fixture
def half_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets blocks with use_fp16 compute in float16 here, as they do on a GPU."""
    monkeypatch.setattr(stylegan2, "HALF_ON", ("cpu", "cuda"))


def test_a_cpu_computes_in_float32() -> None:
    network, arrays, _ = load_network(Generator, "sg2g_uncond_skip_fp16", torch.float32)
    with torch.no_grad():
        assert_near(network(arrays["z"], arrays["c"], noise_mode="const"), arrays["img_fp32_const"], 1e-5)


@pytest.mark.usefixtures("half_on_a_cpu")
def test_golden_float16() -> None:
    network, arrays, _ = load_network(Generator, "sg2g_uncond_skip_fp16", torch.float32)
    z, c = arrays["z"], arrays["c"]
    with torch.no_grad():
        img = network(z, c, noise_mode="const")
        assert img.dtype == torch.float32
        assert_near(img, arrays["img_fp16_const"], 1e-2)
        alone = torch.cat([network(z[[i]], c[[i]], noise_mode="const") for i in range(len(z))])
        assert_near(alone, arrays["img_fp16_const_n1"], 1e-2)
        full = network(z, c, noise_mode="const", force_fp32=True)
        assert_near(full, arrays["img_fp32_const"], 1e-5)
        assert not torch.equal(img, full)


# ---------------------------------------------------------------------------------------------------------------------
# The discriminator's numbers, and single layers'.


@pytest.mark.parametrize(("dtype", "forward", "backward"), IN_FLOAT32)
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_golden_discriminator(name: str, dtype: torch.dtype, forward: float, backward: float) -> None:
    network, arrays, info = load_network(Discriminator, name, dtype)
    img, c = arrays["img"].to(dtype).requires_grad_(), arrays["c"].to(dtype)
    logits = network(img, c)
    assert_near(logits.detach(), arrays["out64/logits"], forward)
    if dtype == torch.float32:
        assert_near(logits.detach(), arrays["out32/logits"], forward)
    scalar = probe(logits) + 0.1 * logits.square().sum()
    assert scalar.item() == pytest.approx(info["grad_scalar"], rel=backward)
    dimg, *gradients = torch.autograd.grad(scalar, [img, *network.parameters()])
    assert_near(dimg, arrays["out64/grad/img"], backward)
    for (key, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        if f"out64/grad/{key}" in arrays:
            assert_near(gradient, arrays[f"out64/grad/{key}"], backward)
    assert_summaries_near(network, gradients, info["grad_summary"], backward)


@pytest.mark.parametrize(("dtype", "forward", "backward"), IN_FLOAT32)
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_golden_r1(name: str, dtype: torch.dtype, forward: float, backward: float) -> None:
    network, arrays, info = load_network(Discriminator, name, dtype)
    img = arrays["img"].to(dtype).requires_grad_()
    (dimg,) = torch.autograd.grad(network(img, arrays["c"].to(dtype)).sum(), img, create_graph=True)
    penalty = dimg.square().sum([1, 2, 3])
    assert_near(penalty.detach(), arrays["out64/r1/penalty"], backward)
    loss = (5 * penalty).mean()
    assert loss.item() == pytest.approx(info["r1_loss"], rel=backward)
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    for (key, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        if f"out64/r1/grad/{key}" in arrays:
            assert gradient is not None
            assert_near(gradient, arrays[f"out64/r1/grad/{key}"], backward)
    assert_summaries_near(network, gradients, info["r1_grad_summary"], backward)


@pytest.mark.parametrize(("key", "group_size", "channels"), [
    ("g4f1", 4, 1), ("g4f2", 4, 2), ("gNonef3", None, 3), ("g32f1", 32, 1), ("g2f6", 2, 6),
])  # fmt: skip
def test_golden_minibatch_std(key: str, group_size: int | None, channels: int) -> None:
    y = MinibatchStdLayer(group_size, channels)(LAYERS["mbstd_x"].double())
    assert_near(y, LAYERS[f"mbstd_y64_{key}"], 1e-10)


def test_golden_normalize_2nd_moment() -> None:
    assert_near(normalize_2nd_moment(LAYERS["mbstd_x"].double().flatten(1)), LAYERS["norm2_y64"], 1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# The file format.


@pytest.mark.parametrize("name", [*GENERATORS, *DISCRIMINATORS])
def test_state_dict(name: str) -> None:
    cls: type[Generator] | type[Discriminator] = Generator if name in GENERATORS else Discriminator
    network, _, info = load_network(cls, name, torch.float32)
    assert entries(network) == [(entry["name"], entry["kind"], entry["shape"]) for entry in info["state_dict"]]
    if isinstance(network, Generator):
        assert network.num_ws == info["num_ws"] == network.mapping.num_ws
        assert network.synthesis.block_resolutions == info["block_resolutions"]
    assert network.init_kwargs == info["init_kwargs"]


@pytest.mark.parametrize("config", PUBLISHED)
def test_published_shapes(config: str) -> None:
    for key, cls in (("G", Generator), ("D", Discriminator)):
        expected = PUBLISHED[config][key]
        with torch.device("meta"):
            network: torch.nn.Module = cls(**expected["init_kwargs"])
        assert [[name, list(p.shape)] for name, p in network.named_parameters()] == expected["params"]
        assert [[name, list(b.shape)] for name, b in network.named_buffers()] == expected["buffers"]
        assert sum(p.numel() for p in network.parameters()) == expected["n_params"]
        if isinstance(network, Generator):
            assert network.num_ws == expected["num_ws"]


def test_state_attributes() -> None:
    """Every class keeps the attributes that the format has, in its order, and Python's own types only."""
    networks = [
        tiny_generator(c_dim=3, conv_clamp=256, num_fp16_res=1),
        tiny_generator(architecture="resnet"),
        tiny_discriminator(c_dim=3),
        tiny_discriminator(architecture="skip", epilogue_kwargs={"mbstd_num_channels": 0}),
    ]
    internal = set(vars(torch.nn.Module()))
    seen = set()
    for module in (module for network in networks for module in network.modules()):
        assert isinstance(module, PersistentModule)
        kind = type(module).__name__
        seen.add(kind)
        own = {name: value for name, value in vars(module).items() if name not in internal}
        names = [name for name in own if not name.startswith("_init_")]
        assert names == [name for name in STATE_ATTRS[kind] if name in names]
        assert STATE_ATTRS[kind].keys() - own.keys() <= {"bias", "mbstd"}
        for value in own.values():
            assert type(value) in (int, float, bool, str, list, tuple, dict, type(None))
    assert seen == STATE_ATTRS.keys() - {"AugmentPipe"}


def test_names_of_the_format_are_found_in_one_place() -> None:
    for name in STATE_ATTRS.keys() - {"AugmentPipe"}:
        assert issubclass(getattr(stylegan2, name), PersistentModule)


# ---------------------------------------------------------------------------------------------------------------------
# Options.


def test_noise_source() -> None:
    network = tiny_generator()
    ws = network.mapping(normal(3, 4), None)
    asked = []

    def source(*shape: int) -> Tensor:
        asked.append(shape)
        return torch.zeros(3, *shape)

    img = network.synthesis(ws, noise_mode="random", noise_source=source)
    assert asked == [(1, res, res) for res in (4, 8, 8, 16, 16)]
    torch.testing.assert_close(img, network.synthesis(ws, noise_mode="none"))
    per_sample = network.synthesis(ws, noise_source=lambda *shape: normal(3, *shape))
    single = network.synthesis(ws[1:2], noise_source=lambda *shape: normal(3, *shape)[1:2])
    torch.testing.assert_close(per_sample[1:2], single)


def test_noise_modes() -> None:
    network = tiny_generator()
    z = normal(2, 4)
    assert torch.equal(network(z, None, noise_mode="const"), network(z, None, noise_mode="const"))
    torch.manual_seed(0)
    first = network(z, None)
    assert not torch.equal(first, network(z, None))
    torch.manual_seed(0)
    assert torch.equal(first, network(z, None))


def test_without_noise() -> None:
    network = tiny_generator(use_noise=False)
    assert not [name for name, _, _ in entries(network) if "noise" in name]
    z = normal(2, 4)
    assert torch.equal(network(z, None), network(z, None, noise_mode="none"))


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_architectures_train(architecture: str, c_dim: int) -> None:
    """Everything trainable gets a gradient, from images and logits of the right shape."""
    generator = tiny_generator(c_dim, architecture=architecture).train()
    discriminator = tiny_discriminator(c_dim, architecture=architecture).train()
    c = torch.eye(3)[[0, 2, 1, 0]] if c_dim else None
    img = generator(normal(4, 4), c)
    logits = discriminator(img, c)
    assert img.shape == (4, 2, 16, 16)
    assert logits.shape == (4, 1)
    probe(logits).backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()


def test_conditional_networks_see_labels() -> None:
    generator, discriminator = tiny_generator(c_dim=3), tiny_discriminator(c_dim=3)
    z, c = normal(1, 4).expand(3, -1), torch.eye(3)
    img = generator(z, c, noise_mode="const")
    assert not torch.allclose(img[0], img[1])
    logits = discriminator(img[:1].expand(3, -1, -1, -1), c)
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.usefixtures("half_on_a_cpu")
@pytest.mark.parametrize("channels_last", [False, True])
def test_float16_blocks(channels_last: bool) -> None:
    """Close to float32, of both networks, forward and backward; parameters and results stay float32."""
    half = {"num_fp16_res": 2, "conv_clamp": 256}
    generator = tiny_generator(fp16_channels_last=channels_last, **half)
    discriminator = tiny_discriminator(block_kwargs={"fp16_channels_last": channels_last}, **half)
    assert generator.synthesis.b16.channels_last == channels_last
    z = normal(4, 4)
    results = []
    for force_fp32 in (False, True):
        img = generator(z, None, noise_mode="const", force_fp32=force_fp32)
        logits = discriminator(img, None, force_fp32=force_fp32)
        (gradient,) = torch.autograd.grad(logits.sum(), generator.synthesis.b16.conv0.weight)
        results.append([img.detach(), logits.detach(), gradient])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == torch.float32
        assert not torch.equal(actual, expected)
        assert_near(actual, expected, 2e-2)


def test_float64_throughout() -> None:
    """Networks made double compute in float64 even in blocks for float16, and from float32 latents and images."""
    generator, discriminator = tiny_generator(num_fp16_res=2).double(), tiny_discriminator(num_fp16_res=2).double()
    z = normal(2, 4)
    img = generator(z, None, noise_mode="const")
    torch.testing.assert_close(img, generator(z, None, noise_mode="const", force_fp32=True), rtol=0, atol=0)
    for noise_mode in ("random", "none"):
        assert generator(z, None, noise_mode=noise_mode).dtype == torch.float64
    assert generator(z, None, noise_source=lambda *shape: normal(2, *shape)).dtype == torch.float64
    logits = discriminator(img.float(), None)
    assert logits.dtype == torch.float64
    assert torch.equal(logits, discriminator(img.float().double(), None))


@pytest.mark.parametrize(("architecture", "first"), [("orig", 3), ("resnet", 4), ("skip", 3)])
def test_freeze_layers(architecture: str, first: int) -> None:
    """Frozen layers are buffers of the same names and count from the highest resolution, skips included."""
    free = tiny_discriminator(architecture=architecture)
    frozen = tiny_discriminator(architecture=architecture, block_kwargs={"freeze_layers": first + 1})
    assert frozen.state_dict().keys() == free.state_dict().keys()
    trainable = {name.rpartition(".")[0] for name, _ in frozen.named_parameters()}
    assert not {name for name in trainable if name.startswith("b16.")}
    second = "fromrgb" if architecture == "skip" else "conv0"
    assert f"b8.{second}" not in trainable
    assert {"b8.conv1", "b4.conv", "b4.out"} <= trainable
    frozen.load_state_dict(free.state_dict())
    img = normal(4, 2, 16, 16)
    assert torch.equal(frozen(img, None), free(img, None))


def test_mapping_without_layers() -> None:
    """As in discriminators converted from TensorFlow: labels are embedded and normalized, nothing else."""
    network = MappingNetwork(z_dim=0, c_dim=3, w_dim=5, num_ws=None, num_layers=0, w_avg_beta=None)
    c = torch.eye(3)
    torch.testing.assert_close(network(None, c), normalize_2nd_moment(network.embed(c)))
    assert [name for name, _ in network.named_buffers()] == []


def test_truncation() -> None:
    network = tiny_generator()
    network.mapping.w_avg.normal_()
    z = normal(3, 4)
    ws, mean = network.mapping(z, None), network.mapping.w_avg
    torch.testing.assert_close(network.mapping(z, None, truncation_psi=0), mean.expand_as(ws))
    cut = network.mapping(z, None, truncation_psi=0.5, truncation_cutoff=2)
    torch.testing.assert_close(cut[:, :2], (ws[:, :2] + mean) / 2)
    assert torch.equal(cut[:, 2:], ws[:, 2:])


def test_compiles_whole() -> None:
    generator, discriminator = tiny_generator(c_dim=3), tiny_discriminator(c_dim=3)
    z, c = normal(4, 4), torch.eye(3)[[0, 1, 2, 0]]

    def logits(z: Tensor) -> Tensor:
        return discriminator(generator(z, c, noise_mode="const"), c)

    actual = torch.compile(logits, fullgraph=True, backend="eager")(z)
    torch.testing.assert_close(actual, logits(z))


# ---------------------------------------------------------------------------------------------------------------------
# What is refused.


@pytest.mark.parametrize(
    ("cls", "kwargs", "words"),
    [
        (Generator, {"img_resolution": 24}, "powers of two"),
        (Discriminator, {"img_resolution": 2}, "powers of two"),
        (Generator, {"synthesis_kwargs": {"architecture": "unet"}}, "accepted: orig, skip, resnet"),
        (Discriminator, {"architecture": "unet"}, "accepted: orig, skip, resnet"),
    ],
)
def test_refused_arguments(cls: type, kwargs: dict[str, Any], words: str) -> None:
    common = {"c_dim": 0, "img_resolution": 8, "img_channels": 1}
    common |= {"z_dim": 4, "w_dim": 4} if cls is Generator else {}
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        cls(**{**common, **kwargs})


def test_refused_inputs() -> None:
    generator, z = tiny_generator(c_dim=3), normal(2, 4)
    with pytest.raises(ValueError, match="noise_mode='fixed'; accepted: random, const, none"):
        generator(z, torch.eye(3)[:2], noise_mode="fixed")
    for latents, labels, words in ((z, None, "c of shape None"), (normal(2, 5), torch.eye(3)[:2], r"\['N', 4\]")):
        with pytest.raises(ValueError, match=words):
            generator(latents, labels)
    with pytest.raises(ValueError, match=r"ws of shape \[2, 6\]"):
        generator.synthesis(normal(2, 6))
    with pytest.raises(ValueError, match="a batch of 6 in groups of 4"):
        tiny_discriminator()(normal(6, 2, 16, 16), None)
    mapping = stylegan2_layers.MappingNetwork(z_dim=4, c_dim=0, w_dim=4, num_ws=2, w_avg_beta=None)
    with pytest.raises(ValueError, match="keeps no mean"):
        mapping(z, None, truncation_psi=0.5)
