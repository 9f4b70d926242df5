"""EDM's networks against numbers of the original code, the published configurations and the file format."""

import gzip
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from stylegan_di.networks import edm, edm_layers
from stylegan_di.networks.edm import PRECONDITIONERS, EDMPrecond, iDDPMPrecond
from stylegan_di.networks.edm_layers import Conv2d, GroupNorm, Linear, PositionalEmbedding, UNetBlock
from stylegan_di.networks.edm_unets import DhariwalUNet, SongUNet
from tests.golden_edm import GOLDEN, NETWORKS, assert_near, load_arrays, load_network, load_weights, probe

PUBLISHED = json.loads(gzip.decompress((GOLDEN / "format" / "published_shapes_edm.json.gz").read_bytes()))
STATE_ATTRS = json.loads((GOLDEN / "format" / "state_attrs_edm.json").read_text())
BLOCKS, BLOCKS_INFO = load_arrays("edm_blocks")

TINY = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "model_type": "SongUNet",
    "model_channels": 4,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def randomize(module: torch.nn.Module) -> None:
    """Parameters that are all at work: the initial ones of the last layers are zero, or nearly."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)


def tiny(**kwargs: object) -> EDMPrecond:
    torch.manual_seed(0)
    network = EDMPrecond(**{**TINY, **kwargs})
    randomize(network)
    return network


# ---------------------------------------------------------------------------------------------------------------------
# Numbers of the original code.


@pytest.mark.parametrize("name", NETWORKS)
def test_float64_forward(name: str) -> None:
    network, arrays, info = load_network(name)
    x, labels = arrays["x"], arrays.get("labels")
    with torch.no_grad():
        for sigma in arrays["sigmas"]:
            expected = arrays[f"out64/D_sigma{float(sigma):g}"]
            assert_near(network(x.double() * max(float(sigma), 0.5), sigma, labels), expected, 1e-10)
        assert_near(network(x, arrays["sigma_vec"], labels), arrays["out64/D_sigmavec"], 1e-10)
        c_noise = torch.tensor([-0.5, 1.25], dtype=torch.float64)
        assert_near(network.model(x.double(), c_noise, labels), arrays["out64/F_noise"], 1e-10)
        assert_near(network.model.map_noise(c_noise), arrays["out64/map_noise"], 1e-10)
        if labels is not None:
            assert_near(network(x, arrays["sigma_vec"]), arrays["out64/D_nolabels"], 1e-10)
        if "augment_labels" in arrays:
            augmented = network(x, arrays["sigma_vec"], labels, augment_labels=arrays["augment_labels"])
            assert_near(augmented, arrays["out64/D_aug"], 1e-10)
    assert_near(network.round_sigma(arrays["round_in"]), arrays["round_out"], 1e-10)
    rounding = 1e-6 if name.startswith("iddpm") else 0  # of a recursion in float32
    assert (network.sigma_min, network.sigma_max) == pytest.approx((info["sigma_min"], info["sigma_max"]), rel=rounding)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_forward(name: str) -> None:
    network, arrays, _ = load_network(name, torch.float32)
    with torch.no_grad():
        denoised = network(arrays["x"], arrays["sigma_vec"], arrays.get("labels"))
    assert denoised.dtype == torch.float32
    tolerance = 1e-4 if name.startswith("vp") else 2e-5  # c_noise = 999 t magnifies rounding
    assert_near(denoised, arrays["out32/D_sigmavec"], tolerance)
    assert_near(denoised, arrays["out64/D_sigmavec"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients(name: str, dtype: torch.dtype, tolerance: float) -> None:
    network, arrays, info = load_network(name, dtype)
    if name.startswith("vp") and dtype == torch.float32:
        tolerance = 2e-4  # c_noise = 999 t magnifies rounding
    x = arrays["x"].to(dtype).requires_grad_()
    extra = {"augment_labels": arrays["augment_labels"]} if "augment_labels" in arrays else {}
    scalar = probe(network(x, arrays["sigma_vec"], arrays.get("labels"), **extra))
    scalar.backward()
    assert scalar.item() == pytest.approx(info["grad_scalar"], rel=max(tolerance, 1e-9) * 10)
    gradients = {parameter_name: parameter.grad for parameter_name, parameter in network.named_parameters()}
    assert_near(x.grad, arrays["grad64/x"], tolerance)
    for parameter_name in info["named_grads"]:
        assert_near(gradients[parameter_name], arrays[f"grad64/{parameter_name}"], tolerance)
    assert list(gradients) == list(info["grad_summary"])
    for parameter_name, summary in info["grad_summary"].items():
        gradient, norm, rounding = gradients[parameter_name], summary["l2"], max(tolerance, 1e-9)
        assert float(gradient.norm()) == pytest.approx(norm, rel=rounding)
        assert float(gradient.sum()) == pytest.approx(summary["sum"], abs=rounding * norm * math.sqrt(gradient.numel()))


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict(name: str) -> None:
    network, _, info = load_network(name)
    buffers = dict(network.named_buffers())
    entries = [
        {"name": key, "kind": "buffer" if key in buffers else "parameter", "shape": list(value.shape)}
        for key, value in network.state_dict().items()
    ]
    assert entries == info["state_dict"]
    assert network.init_kwargs == info["init_kwargs"]


@pytest.mark.parametrize("name", BLOCKS_INFO["blocks"])
def test_block(name: str) -> None:
    kwargs = BLOCKS_INFO["blocks"][name]
    block = UNetBlock(**kwargs)
    load_weights(block, BLOCKS, f"{name}/sd/")
    block.double().eval()
    x = BLOCKS["x"][:, : kwargs["in_channels"]].double().requires_grad_()
    emb = BLOCKS["emb"].double().requires_grad_()
    y = block(x, emb)
    probe(y).backward()
    assert_near(y, BLOCKS[f"{name}/y64"], 1e-10)
    assert_near(x.grad, BLOCKS[f"{name}/gx64"], 1e-10)
    assert_near(emb.grad, BLOCKS[f"{name}/gemb64"], 1e-10)
    with torch.no_grad():
        assert_near(block.float()(x.float(), emb.float()), BLOCKS[f"{name}/y64"], 3e-6)


@pytest.mark.parametrize("name", BLOCKS_INFO["convs"])
def test_conv(name: str) -> None:
    conv = Conv2d(**BLOCKS_INFO["convs"][name])
    load_weights(conv, BLOCKS, f"conv/{name}/sd/")
    x = BLOCKS["x"][:, :4]
    with torch.no_grad():
        assert_near(conv(x), BLOCKS[f"conv/{name}/y64"], 3e-6)
        assert_near(conv.double()(x.double()), BLOCKS[f"conv/{name}/y64"], 1e-10)


@pytest.mark.parametrize("name", ["16_1", "16_0", "10_1"])
def test_positional_embedding(name: str) -> None:
    channels, endpoint = name.split("_")
    embedding = PositionalEmbedding(int(channels), endpoint=endpoint == "1")
    inputs = torch.tensor(BLOCKS_INFO["posemb_inputs"], dtype=torch.float64)
    assert_near(embedding(inputs), BLOCKS[f"posemb/{name}"], 1e-10)


def test_group_norm_groups() -> None:
    for channels, groups in BLOCKS_INFO["groupnorm_groups"]:
        if groups and channels % groups == 0:
            assert GroupNorm(channels).num_groups == groups
        else:  # which the network could not run
            with pytest.raises(ValueError, match=f"{channels} channels do not divide into {groups} groups"):
                GroupNorm(channels)


def test_iddpm_knows_its_own_noise_levels_only() -> None:
    _, arrays, info = load_network("iddpm_adm_cond6")
    network = iDDPMPrecond(**info["init_kwargs"])
    torch.testing.assert_close(network.u, arrays["sd/u"], rtol=1e-6, atol=0)
    index = network._nearest(arrays["round_in"])
    assert torch.equal(index, arrays["round_idx"])
    rounded = network.round_sigma(arrays["round_in"])
    assert rounded.dtype == torch.float64
    assert torch.equal(rounded, network.u[index].double())


def test_initial_weights() -> None:
    info = json.loads((GOLDEN / "networks" / "edm_weight_init_stats.json").read_text())
    torch.manual_seed(0)
    for mode, stats in info["stats"].items():
        weight = Linear(info["fan_in"], info["fan_out"], init_mode=mode).weight.detach()
        assert list(weight.shape) == info["shape"]
        assert float(weight.std()) == pytest.approx(stats["std"], rel=0.01)
        if mode.endswith("uniform"):
            assert float(weight.abs().max()) == pytest.approx(stats["max"], rel=1e-3)
    conv = Conv2d(75, 50, kernel=2, init_mode="xavier_normal", init_weight=3, init_bias=5)
    assert conv.weight.std().item() == pytest.approx(3 * math.sqrt(2 / 500), rel=0.02)
    assert conv.bias.std().item() == pytest.approx(5 * math.sqrt(2 / 500), rel=0.4)
    with pytest.raises(ValueError, match="xavier"):
        Linear(2, 2, init_mode="zeros")


def watch_encoder(encoder: torch.nn.ModuleDict) -> dict[int, torch.Tensor]:
    """A dict that each forward pass fills with the output of the last block at each resolution."""
    seen: dict[int, torch.Tensor] = {}
    for key, layer in encoder.items():
        if "aux" not in key:
            layer.register_forward_hook(lambda _layer, _args, y: seen.__setitem__(y.shape[-1], y.detach().clone()))
    return seen


FEATURE_KINDS: list[dict[str, object]] = [
    {"augment_dim": 0},
    {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    {"encoder_type": "skip", "decoder_type": "skip"},
    {"model_type": "DhariwalUNet"},
    {"model_type": "DhariwalUNet", "label_dim": 0},
]


@pytest.mark.parametrize("kwargs", FEATURE_KINDS, ids=["ddpmpp", "ncsnpp", "skip", "adm", "adm_uncond"])
def test_features_are_the_encoders_outputs(kwargs: dict[str, object]) -> None:
    network = tiny(channel_mult=[1, 2, 3], num_blocks=2, **kwargs).eval()
    x, sigma = torch.randn(2, 1, 8, 8, requires_grad=True), torch.tensor([0.3, 3.0])
    labels = torch.eye(3)[:2] if network.label_dim else None
    seen = watch_encoder(network.model.enc)
    with torch.no_grad():
        network(x, sigma, labels)
    expected = list(seen.values())  # before features fills it again
    features = network.features(x, sigma, labels)
    assert [list(feature.shape) for feature in features] == [[2, 4, 8, 8], [2, 8, 4, 4], [2, 12, 2, 2]]
    assert len(expected) == 3
    for feature, output in zip(features, expected, strict=True):
        assert torch.equal(feature, output)
        (gradient,) = torch.autograd.grad(feature.square().sum(), x, retain_graph=True)
        assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("cls", PRECONDITIONERS.values())
def test_features_take_the_inputs_of_forward(cls: type[edm.UNetPrecond]) -> None:
    torch.manual_seed(0)
    network = cls(**TINY, use_fp16=False, augment_dim=2)
    randomize(network)
    network.eval()
    inputs: list[tuple[object, ...]] = []
    network.model.register_forward_pre_hook(lambda _model, args: inputs.append(args))
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 3.0])
    with torch.no_grad():
        for labels in (torch.eye(3)[:2], None):
            network(x, sigma, labels)
            expected = network.model.features(*inputs[-1])
            assert all(map(torch.equal, network.features(x, sigma, labels), expected))
        augmented = network.model.features(*inputs[-1], torch.ones(2, 2))
        assert not torch.equal(augmented[0], expected[0])
        assert [feature.dtype for feature in network.double().features(x, 0.5)] == [torch.float64] * 2


# ---------------------------------------------------------------------------------------------------------------------
# The published networks and the file format.


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration(name: str) -> None:
    published = PUBLISHED[name]
    with torch.device("meta"):
        network = getattr(edm, published["cls"])(**published["init_kwargs"])
    assert [[key, list(value.shape)] for key, value in network.named_parameters()] == published["params"]
    assert [[key, list(value.shape)] for key, value in network.named_buffers()] == published["buffers"]
    assert sum(parameter.numel() for parameter in network.parameters()) == published["n_params"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"label_dim": 0},
        {"augment_dim": 9, "embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
        {"encoder_type": "skip", "decoder_type": "skip"},
        {"model_type": "DhariwalUNet"},
        {"model_type": "DhariwalUNet", "label_dim": 0, "augment_dim": 9},
    ],
    ids=["ddpmpp", "ncsnpp", "skip", "adm", "adm_uncond"],
)
def test_attributes_of_every_layer(kwargs: dict[str, object]) -> None:
    internal = set(vars(torch.nn.Module()))
    for name, module in tiny(**kwargs).named_modules():
        if isinstance(module, torch.nn.ModuleDict):
            continue
        documented = STATE_ATTRS["modules"][type(module).__name__]
        attributes = {key: value for key, value in vars(module).items() if key not in internal}
        absent_layers = {key for key, value in attributes.items() if value is None}
        required = {key for key, types in documented.items() if "NoneType" not in types}
        assert required == set(attributes) - absent_layers, name
        optional = {key for key, types in documented.items() if "NoneType" in types}
        parameters = {"weight", "bias"} if isinstance(module, Conv2d) else set()
        assert absent_layers <= optional | parameters, name
        for key, value in attributes.items():
            assert type(value) in (bool, int, float, tuple, dict, type(None)), f"{name}.{key}"


@pytest.mark.parametrize("cls", PRECONDITIONERS.values())
def test_attributes_of_every_preconditioner(cls: type[edm.UNetPrecond]) -> None:
    documented = STATE_ATTRS["modules"][cls.__name__]
    network = cls(**TINY)
    internal = {*vars(torch.nn.Module())}
    attributes = {key: value for key, value in vars(network).items() if key not in internal}
    assert sorted(attributes) == sorted(documented)
    for key, value in attributes.items():
        assert type(value).__name__ in documented[key], key


# ---------------------------------------------------------------------------------------------------------------------
# What the numbers above do not reach.


def test_encoder_skip_adds_the_downsampled_image() -> None:
    model = tiny(encoder_type="skip", channel_mult=[1, 1, 1]).model.eval()
    x, emb = torch.randn(2, 1, 8, 8), torch.randn(2, 16)
    outputs: dict[str, torch.Tensor] = {}
    for key, layer in model.enc.items():
        layer.register_forward_hook(lambda _layer, _args, output, key=key: outputs.__setitem__(key, output))
    skips = model.encode(x, emb)
    for res, skip in ((4, skips[2]), (2, skips[4])):
        image = F.adaptive_avg_pool2d(x, res)
        expected = outputs[f"{res}x{res}_down"] + model.enc[f"{res}x{res}_aux_skip"](image)
        torch.testing.assert_close(skip, expected)


def test_decoder_skip_sums_the_images_of_all_levels() -> None:
    model = tiny(decoder_type="skip", channel_mult=[1, 1, 1]).model.eval()
    image = torch.randn(2, 2, 2).sum(dim=0)[None, None]
    with torch.no_grad():
        for res, value in ((2, 0.0), (4, 0.25), (8, 1.5)):
            model.dec[f"{res}x{res}_aux_conv"].weight.zero_()
            model.dec[f"{res}x{res}_aux_conv"].bias.fill_(value)
        model.dec["2x2_aux_conv"].register_forward_hook(lambda *_: image)
        output = model(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, 3))
    expected = image.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3) + 1.75
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_dropout_acts_in_train_mode_only(model_type: str) -> None:
    network = tiny(model_type=model_type, dropout=0.5)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 3.0])
    with torch.no_grad():
        torch.manual_seed(1)
        first, second = network.train()(x, sigma), network(x, sigma)
        torch.manual_seed(1)
        repeated = network(x, sigma)
        before = torch.get_rng_state()
        quiet = network.eval()(x, sigma), network(x, sigma)
    assert not torch.equal(first, second)
    assert torch.equal(first, repeated)
    assert torch.equal(*quiet)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_label_dropout_gives_the_null_label_in_train_mode_only(model_type: str) -> None:
    network = tiny(model_type=model_type, dropout=0.0, label_dropout=0.5)
    x, sigma = torch.randn(1, 1, 8, 8).expand(16, -1, -1, -1), torch.tensor(1.0)
    labels = torch.eye(3)[[1]].expand(16, -1)
    with torch.no_grad():
        given, null = network.eval()(x, sigma, labels)[0], network(x, sigma)[0]
        denoised = network.train()(x, sigma, labels)
    is_given = [torch.allclose(row, given, atol=1e-5) for row in denoised]
    is_null = [torch.allclose(row, null, atol=1e-5) for row in denoised]
    assert all(kept != dropped for kept, dropped in zip(is_given, is_null, strict=True))
    assert any(is_given)
    assert any(is_null)


def test_labels_scalar_sigma_and_types() -> None:
    network = tiny().eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        per_row = network(x, torch.full([2], 0.7), torch.zeros(2, 3))
        torch.testing.assert_close(network(x, torch.tensor(0.7)), per_row)
        torch.testing.assert_close(network(x, 0.7, torch.zeros(1, 3)), per_row)
        assert network(x.double(), torch.tensor(0.7, dtype=torch.float64)).dtype == torch.float32
        assert network.double()(x, torch.tensor(0.7)).dtype == torch.float64


def test_attention_in_half_precision_has_a_float32_softmax() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 24, 8, 8).half()
    expected = edm_layers.attention(qkv.double(), num_heads=2)
    actual = edm_layers.attention(qkv, num_heads=2)
    assert actual.dtype == torch.float16
    assert_near(actual, expected, 1e-3)


@pytest.mark.parametrize("kind", ["SongUNet", "DhariwalUNet"])
def test_a_gpu_adds_biases_later_and_gets_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny(model_type=kind, dropout=0.0, model_channels=64 if kind == "DhariwalUNet" else 4).double()
    randomize(network)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for late in (False, True):
        monkeypatch.setattr(edm_layers, "adds_late", lambda x, late=late: late)
        y = network(x, 0.5, torch.ones(2, 3))
        gradients = torch.autograd.grad(probe(y), [x, *network.parameters()], allow_unused=True)
        results.append([y.detach(), *(g for g in gradients if g is not None)])
    for expected, actual in zip(*results, strict=True):
        assert_near(actual, expected, 1e-10)


@sdpa_kernel(SDPBackend.MATH)
def test_second_backward() -> None:
    network = tiny(dropout=0.0).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(probe(network(x, 0.5)), x, create_graph=True)
    gradient.square().sum().backward()
    direction, step = torch.randn_like(x), 1e-5

    def penalty(shifted: torch.Tensor) -> torch.Tensor:
        shifted = shifted.detach().requires_grad_()
        return torch.autograd.grad(probe(network(shifted, 0.5)), shifted)[0].square().sum()

    numeric = (penalty(x + step * direction) - penalty(x - step * direction)) / (2 * step)
    torch.testing.assert_close((x.grad * direction).sum(), numeric, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model_type": "UNet"}, "SongUNet, DhariwalUNet"),
        ({"embedding_type": "linear"}, "positional, fourier"),
        ({"encoder_type": "dense"}, "standard, skip, residual"),
        ({"decoder_type": "residual"}, "standard, skip"),
        ({"resample_filter": [1, 2]}, "symmetric"),
    ],
)
def test_unknown_choices_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


def test_direct_use_of_both_models() -> None:
    for cls in (SongUNet, DhariwalUNet):
        model = cls(8, 3, 6, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
        assert model(torch.randn(2, 3, 8, 8), torch.zeros(1), None).shape == (2, 6, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_float16_activations_with_float32_parameters(name: str) -> None:
    network, arrays, _ = load_network(name, torch.float32)
    with torch.no_grad():
        output = network.model(arrays["x"].half(), torch.tensor([-0.5, 1.25]), arrays.get("labels"))
    assert output.dtype == torch.float16
    assert_near(output, arrays["out64/F_noise"], 1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_on_cuda() -> None:
    network, arrays, _ = load_network("edm_adm_cond10_aug9", torch.float32)
    network = network.cuda()
    network.use_fp16 = True
    x, sigma, labels = (arrays[key].cuda() for key in ("x", "sigma_vec", "labels"))
    with torch.no_grad():
        half, full = network(x, sigma, labels), network(x, sigma, labels, force_fp32=True)
    assert half.dtype == full.dtype == torch.float32
    assert not torch.equal(half, full)
    assert_near(half.cpu(), arrays["out64/D_sigmavec"], 1e-2)
    assert_near(full.cpu(), arrays["out64/D_sigmavec"], 1e-3)
