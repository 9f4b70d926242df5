"""--kind=gan of StyleGAN3: presets, the blur, what moves when, starting from a file, resuming."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.networks import stylegan3
from stylegan_di.snapshots.checkpoint import load_snapshot
from stylegan_di.students.stylegan3 import StyleGAN3Student
from stylegan_di.training.adversary import blur_sigma, blurred
from stylegan_di.training.batch import Batch
from stylegan_di.training.methods import build, gan
from tests.golden_edm import GOLDEN
from tests.test_presets import config, images
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, last_state, whole_run
from tests.tiny import save_dataset, save_gan, stylegan3_networks

pytestmark = pytest.mark.usefixtures("small_grids")

PUBLISHED = json.loads(gzip.decompress((GOLDEN / "format" / "published_shapes_sg3.json.gz").read_bytes()))
TINY = ["--cbase=64", "--cmax=8", "--w-dim=8", "--augpipe=blit", "--p=0.1", "--ada-kimg=0.05", "--metrics=none"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(save_dataset(tmp_path / "data"))


# Presets.


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.partition("@")[2] in ("1024", "512", "256")])
def test_networks_of_the_presets(name: str) -> None:
    published, cfg = PUBLISHED[name], name.partition("@")[0]
    resolution = published["G"]["init_kwargs"]["img_resolution"]
    resolved = config("gan", resolution=resolution, cfg=cfg, device="cuda")
    with torch.device("meta"):
        networks = gan._new_gan(resolved, images(resolution, 0))
    assert networks.generator.init_kwargs == networks.ema.init_kwargs == published["G"]["init_kwargs"]
    own = {"architecture": "resnet", "num_fp16_res": 4, "conv_clamp": 256, "block_kwargs": {}}
    assert networks.discriminator.init_kwargs == published["D"]["init_kwargs"] | own
    assert sum(p.numel() for p in networks.discriminator.parameters()) == published["D"]["n_params"]


def test_numbers_of_the_presets() -> None:
    t = config("gan", cfg="stylegan3-t", resolution=1024)
    assert (t.batch, t.kimg, t.lr, t.dlr, t.beta1, t.beta2) == (32, 25000, 0.0025, 0.002, 0, 0.99)
    assert (t.ema, t.ema_rampup, t.pl_weight, t.mixing, t.r1_interval) == (10, 0.05, 0, 0, 16)
    assert (t.aug, t.augpipe, t.target, t.ada_kimg, t.map_depth, t.mbstd_group) == ("ada", "bgc", 0.6, 500, 2, 4)
    assert t.gamma == pytest.approx(32.8, rel=2e-3)
    assert (t.blur_sigma, t.blur_fade) == (0, 0)
    r = config("gan", cfg="stylegan3-r", resolution=512, batch=64)
    assert (r.blur_sigma, r.blur_fade, r.ema) == (10, 400, 20)
    assert config("gan", cfg="stylegan3-t", resolution=512).gamma == pytest.approx(8.2, rel=2e-3)
    assert config("gan", cfg="stylegan3-t", resolution=256, batch=64).gamma == pytest.approx(1.0, rel=3e-2)
    resumed = config("gan", cfg="stylegan3-r", resume="x.pkl")
    assert (resumed.blur_sigma, resumed.ema_rampup, resumed.ada_kimg) == (0, None, 100)


@pytest.mark.parametrize(("cfg", "halves"), [("stylegan3-t", {"num_fp16_res": 0, "conv_clamp": None})])
def test_without_float16(cfg: str, halves: dict[str, Any]) -> None:
    with torch.device("meta"):
        networks = gan._new_gan(config("gan", cfg=cfg), images(32, 0))
    assert networks.generator.init_kwargs.items() >= halves.items()
    assert not any(getattr(module, "use_fp16", False) for module in networks.generator.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_inputs": False}, "--noise-inputs=false has no effect with --cfg=stylegan3-t, whose generator"),
        ({"blur_fade": 5.0}, "--blur-fade=5 has no effect with --blur-sigma=0"),
        ({"blur_sigma": 5.0}, "--blur-sigma=5 needs --blur-fade"),
        ({"pl_interval": 2}, "--pl-interval=2 has no effect with --pl-weight=0"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        config("gan", cfg="stylegan3-t", **options)


# The blur.


def test_how_the_blur_fades() -> None:
    r = config("gan", cfg="stylegan3-r", batch=32)
    assert [blur_sigma(r, nimg) for nimg in (0, 100_000, 200_000, 300_000)] == pytest.approx([10, 5, 0, 0])
    assert blur_sigma(config("gan"), 0) == 0


def test_the_blur_is_its_definition() -> None:
    x = torch.randn([2, 3, 9, 7], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert blurred(x, 0.33) is x
    sigma, reach = 0.8, 2
    taps = [2 ** -((i / sigma) ** 2) for i in range(-reach, reach + 1)]
    expected = torch.zeros_like(x)
    padded = torch.nn.functional.pad(x, [reach] * 4)
    for i, vertical in enumerate(taps):
        for j, horizontal in enumerate(taps):
            expected += vertical * horizontal / sum(taps) ** 2 * padded[:, :, i : i + 9, j : j + 7]
    torch.testing.assert_close(blurred(x, sigma), expected, rtol=0, atol=1e-6)  # taps are float32
    assert blurred(x, 10).shape == x.shape  # wider than the image


# Training.


def open_method(data: str, cfg: str, **options: Any) -> gan.GAN:
    tiny: dict[str, Any] = dict(cbase=64, cmax=8, w_dim=8, batch=4, aug="noaug", metrics=(), data=data, cond=True)
    method = build(config("gan", resolution=8, cfg=cfg, **tiny | options), torch.device("cpu"))
    assert isinstance(method, gan.GAN)
    return method


def step_of(method: gan.GAN) -> Batch:
    return Batch.of_step(
        seed=0, nimg=0, size=4, batch_gpu=4, rank=0, world_size=1, device=torch.device("cpu")
    )


@pytest.mark.parametrize("cfg", ["stylegan3-t", "stylegan3-r"])
def test_running_means_move_with_the_discriminators_images_only(cfg: str, data: str) -> None:
    method = open_method(data, cfg, mixing=0.5)
    assert isinstance(method.model, StyleGAN3Student)
    batch, means = step_of(method), method.running_means()
    before = [mean.clone() for mean in means]
    weights = [parameter.clone() for parameter in method.model.parameters()]
    method.generator_update(batch, Journal())
    assert all(map(torch.equal, means, before))
    assert not all(map(torch.equal, method.model.parameters(), weights))
    images, labels = method.fakes(batch, batch.chunks[0])
    assert labels is not None
    assert images.shape == (4, 1, 8, 8)
    assert not method.model.training
    assert not any(map(torch.equal, means, before))
    synthesis = method.model.network.synthesis
    layers = [synthesis.get_submodule(name) for name in synthesis.layer_names]
    assert {layer.magnitude_ema_beta for layer in layers} == {0.5 ** (4 / 20000)}


def test_the_discriminator_sees_blurred_images(data: str) -> None:
    """The first and the last logits of the same images differ by the blur alone, of real and of generated images."""
    method = open_method(data, "stylegan3-r")
    x = torch.randn([4, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    labels, batch = torch.eye(3)[[0, 1, 2, 0]], step_of(method)
    network = method.adversary.critic.network
    logits = method.adversary.logits(x, labels, batch, batch.chunks[0], "augment/reals")
    torch.testing.assert_close(logits, network(blurred(x, 10.0), labels))
    assert not torch.allclose(logits, network(x, labels))


def test_path_lengths_and_style_mixing_work_too(data: str) -> None:
    method = open_method(data, "stylegan3-t", pl_weight=2.0, mixing=1.0)
    before = [parameter.clone() for parameter in method.model.parameters()]
    method.path_length_update(step_of(method), Journal())
    assert not all(map(torch.equal, method.model.parameters(), before))
    assert method.state.scalars["pl_mean"] > 0


@pytest.mark.parametrize("cfg", ["stylegan3-t", "stylegan3-r"])
def test_a_killed_run_goes_on_as_if_it_had_never_been_killed(cfg: str, data: str, tmp_path: Path) -> None:
    arguments = ["--kind=gan", f"--cfg={cfg}", f"--data={data}", "--cond=true", "--tick=0.016", *SHORT, *TINY,
                 "--r1-interval=3", "--batch-gpu=2"]  # fmt: skip
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    result = invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert_same_run(undisturbed, folder)
    magnitudes = [v for k, v in last_state(folder).tensors.items() if k.startswith("ema") and "magnitude" in k]
    assert len(magnitudes) == 15
    assert all(math.isfinite(value) and value != 1 for value in magnitudes)


def test_starting_from_a_file(data: str, tmp_path: Path) -> None:
    source = save_gan(tmp_path / "g.pkl", stylegan3_networks, c_dim=0)
    arguments = ["--kind=gan", f"--data={data}", "--metrics=none", "--tick=0.016", "--aug=noaug", f"--resume={source}",
                 *SHORT, "--kimg=0.004", "--cond=true"]  # fmt: skip
    folder = whole_run(tmp_path / "runs", *arguments, "--cfg=stylegan3-t")
    network = load_snapshot(max(folder.glob("network-snapshot-*.pkl"))).networks["G_ema"]
    assert isinstance(network, stylegan3.Generator)
    assert network.c_dim == 3  # the layers of the labels are new
    assert network.synthesis.num_layers == 4
    result = invoke(*arguments, f"--outdir={tmp_path}")
    assert result.exit_code != 0
    assert "its generator is a StyleGAN3, which --cfg=auto does not train; give --cfg=stylegan3-t or" in result.output
    other = [f"--resume={save_gan(tmp_path / 'two.pkl')}" if "resume" in text else text for text in arguments]
    result = invoke(*other, "--cfg=stylegan3-t", f"--outdir={tmp_path}")
    assert result.exit_code != 0
    assert "is a StyleGAN2, which --cfg=stylegan3-t does not train; choose another --cfg" in result.output
