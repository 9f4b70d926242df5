"""--kind=gan --cfg=r3gan: presets, schedules, one step against its definition, starting from a file, resuming."""

from __future__ import annotations

import copy
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_di.data.augment import augment_pipe
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.networks import r3gan
from stylegan_di.snapshots.checkpoint import load_snapshot
from stylegan_di.training import trainer
from stylegan_di.training.batch import Batch
from stylegan_di.training.methods import build
from stylegan_di.training.methods import r3gan as method_file
from stylegan_di.training.methods.r3gan import R3GAN
from stylegan_di.training.schedule import annealing, ema_beta
from tests.golden_edm import GOLDEN
from tests.test_presets import config, images
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import r3gan_networks, save_dataset, save_gan

pytestmark = pytest.mark.usefixtures("small_grids")

PRESETS = json.loads(gzip.decompress((GOLDEN / "format" / "published_shapes_r3gan.json.gz").read_bytes()))
TINY: dict[str, Any] = dict(cbase=64, cmax=8, w_dim=8, batch=4, gamma=0.5, metrics=(), cond=True)
ARGUMENTS = ["--kind=gan", "--cfg=r3gan", "--cond=true", "--tick=0.016", "--metrics=none", *SHORT]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(save_dataset(tmp_path / "data"))


def open_method(data: str, **options: Any) -> R3GAN:
    method = build(config("gan", resolution=8, cfg="r3gan", data=data, **TINY | options), torch.device("cpu"))
    assert isinstance(method, R3GAN)
    return method


def step_of(nimg: int = 0) -> Batch:
    return Batch.of_step(
        seed=0, nimg=nimg, size=4, batch_gpu=4, rank=0, world_size=1, device=torch.device("cpu")
    )


# Presets and schedules.


@pytest.mark.parametrize("name", ["CIFAR10", "FFHQ-64", "FFHQ-256"])
def test_networks_of_the_preset(name: str) -> None:
    published = PRESETS[name]
    kwargs = published["G"]["init_kwargs"]
    resolved = config("gan", resolution=kwargs["img_resolution"], cfg="r3gan", device="cuda")
    with torch.device("meta"):
        networks = method_file._new_networks(resolved, images(kwargs["img_resolution"], kwargs["c_dim"]))
    ours = {"img_channels": 3} | ({} if kwargs["c_dim"] else {"ConditionEmbeddingDimension": 0})
    for network, part in zip(networks, ("G", "D", "G"), strict=True):
        assert network.init_kwargs == published[part]["init_kwargs"] | ours
        assert sum(p.numel() for p in network.parameters()) == published[part]["n_params"]


@pytest.mark.parametrize(
    ("resolution", "batch", "gamma", "p", "ema"),
    [(32, 512, 0.05, 0.55, 5000), (64, 256, 2, 0.3, 500), (256, 256, 150, 0.3, 500)],
)  # fmt: skip
def test_numbers_of_the_preset(resolution: int, batch: int, gamma: float, p: float, ema: float) -> None:
    c = config("gan", cfg="r3gan", resolution=resolution)
    assert (c.batch, c.gamma, c.p, c.ema) == (batch, gamma, p, ema)
    assert (c.lr, c.beta1, c.beta2, c.anneal, c.ema_rampup, c.w_dim) == (2e-4, 0, 0.99, 20000, None, 64)
    assert (c.aug, c.augpipe) == ("fixed", "r3gan")
    pipe = augment_pipe(c.augpipe)
    assert (pipe.brightness, pipe.contrast, pipe.lumaflip, pipe.hue, pipe.saturation, pipe.cutout) == (0.5,) * 5 + (1,)
    assert (pipe.xflip, pipe.rotate, pipe.xfrac, pipe.imgfilter, pipe.noise) == (1, 1, 1, 0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixing": 0.5}, "--mixing=0.5 has no effect with --cfg=r3gan"),
        ({"blur_sigma": 1.0, "blur_fade": 1.0}, "--blur-sigma=1 has no effect with --cfg=r3gan"),
        ({"freeze": ("b4",)}, "--freeze=b4 has no effect with --cfg=r3gan"),
        ({"aug": "ada"}, "--aug=ada goes by signs of logits"),
        ({"resolution": 128}, "knows the --gamma of 32, 64 and 256 pixels only"),
        ({"cfg": "auto", "anneal": 5.0}, "--anneal=5 has no effect without --cfg=r3gan"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        config("gan", **{"cfg": "r3gan"} | options)


def test_annealing() -> None:
    assert [annealing(nimg, 2) for nimg in (0, 500, 1000, 2000, 9000)] == pytest.approx(
        [0, (1 - math.sqrt(0.5)) / 2, 0.5, 1, 1]
    )
    assert annealing(1000, 0) == 0


def test_schedules(data: str) -> None:
    """gamma, p and beta2 in the method; without --anneal all are what the options say."""
    method = open_method(data, anneal=2.0, p=0.4, beta2=0.99)
    pipe = method.adversary.critic.augment_pipe
    assert pipe is not None
    for nimg, gamma, p, beta2 in ((0, 0.5, 0, 0.9), (1000, 0.275, 0.2, 0.945), (2000, 0.05, 0.4, 0.99)):
        method.set_schedules(nimg)
        assert method.adversary.gamma_after(nimg) == pytest.approx(gamma)
        assert float(pipe.p) == pytest.approx(p)
        betas = [group["betas"] for optimizer in method.state.optimizers.values() for group in optimizer.param_groups]
        assert betas == [pytest.approx((0, beta2))] * 2
    constant = open_method(data, anneal=0.0, p=0.4)
    constant.set_schedules(5000)
    assert constant.adversary.gamma_after(5000) == 0.5
    assert float(constant.adversary.critic.augment_pipe.p) == pytest.approx(0.4)  # type: ignore[union-attr]


# A step.


def test_a_step_is_its_definition(data: str) -> None:
    """Both networks' gradients, by plain autograd on the same images, from the losses as the paper writes them."""
    method = open_method(data, aug="noaug", anneal=0.0)
    torch.manual_seed(0)
    for network in (method.model, method.adversary.critic.network):
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))  # blocks start without an effect
    batch = step_of()
    assert method.reals is not None
    reals = method.reals.take(batch)
    x, labels = reals(batch.chunks[0])
    generator, critic = copy.deepcopy(method.model.network), copy.deepcopy(method.adversary.critic.network)
    found: dict[str, list[torch.Tensor]] = {}

    def record(role: str) -> Any:
        optimizer = method.state.optimizers[role]
        plain = optimizer.step

        def step(*args: Any) -> Any:
            found[role] = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
            return plain(*args)

        return step

    for role, optimizer in method.state.optimizers.items():
        optimizer.step = record(role)  # type: ignore[method-assign]
    method.adversary.step(
        method.state, batch, reals, lambda chunk: method.sample(batch, chunk, "discriminator", reals), Journal()
    )
    z = method.model.sample_latents(4, rng=batch.random("discriminator/z", batch.chunks[0]))
    fake = generator(z, labels).detach().requires_grad_()
    real = x.clone().requires_grad_()
    critic.requires_grad_(True)
    logits = critic(real, labels), critic(fake, labels)
    loss = -torch.log(torch.sigmoid(logits[0] - logits[1]))
    for logit, image in zip(logits, (real, fake), strict=True):
        (gradient,) = torch.autograd.grad(logit.sum(), image, create_graph=True)
        loss = loss + 0.5 / 2 * gradient.square().sum([1, 2, 3])
    expected = torch.autograd.grad(loss.mean(), list(critic.parameters()))
    for actual, gradient in zip(found["discriminator"], expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-6)
    method.generator_update(batch, reals, Journal())
    z = method.model.sample_latents(4, rng=batch.random("generator/z", batch.chunks[0]))
    generator.requires_grad_(True)
    trained = method.adversary.critic.network
    loss = -torch.log(torch.sigmoid(trained(generator(z, labels), labels) - trained(x, labels).detach()))
    expected = torch.autograd.grad(loss.mean(), list(generator.parameters()))
    for actual, gradient in zip(found["model"], expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-6)


def test_learning_rates_and_half_lives_are_annealed(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    halflives: list[float] = []
    seen: list[int] = []
    plain = R3GAN.step

    def step(self: R3GAN, batch: Batch, journal: Journal) -> None:
        rates.append(self.state.optimizers["model"].param_groups[0]["lr"])
        plain(self, batch, journal)

    def beta(batch: int, *, halflife_kimg: float, rampup: float | None, nimg: int) -> float:
        halflives.append(halflife_kimg)
        seen.append(nimg)
        return ema_beta(batch, halflife_kimg=halflife_kimg, rampup=rampup, nimg=nimg)

    monkeypatch.setattr(R3GAN, "step", step)
    monkeypatch.setattr(trainer, "ema_beta", beta)
    whole_run(tmp_path / "runs", *ARGUMENTS, f"--data={data}", "--cbase=64", "--cmax=8", "--gamma=0.5", "--lr=0.01",
              "--anneal=0.016")  # fmt: skip
    done = [(1 - math.cos(math.pi * min(step / 4, 1))) / 2 for step in range(9)]
    assert rates == pytest.approx([0.01 * (1 - 0.75 * share) for share in done[:8]])
    assert halflives == pytest.approx([500 * share for share in done[1:]])
    assert seen == list(range(0, 32, 4))  # a ramp-up counts the images before the step


def test_a_killed_run_goes_on_as_if_it_had_never_been_killed(data: str, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, f"--data={data}", "--cbase=64", "--cmax=8", "--w-dim=8", "--gamma=0.5", "--anneal=0.02",
                 "--batch-gpu=2", "--augpipe=blit"]  # fmt: skip
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    result = invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert_same_run(undisturbed, folder)
    snapshot = load_snapshot(max(folder.glob("network-snapshot-*.pkl")))
    assert isinstance(snapshot.networks["G_ema"], r3gan.Generator)
    assert isinstance(snapshot.networks["D"], r3gan.Discriminator)
    assert list(snapshot.networks) == ["G", "D", "G_ema"]


def test_starting_from_a_file(data: str, tmp_path: Path) -> None:
    source = save_gan(tmp_path / "r.pkl", r3gan_networks)
    arguments = [*ARGUMENTS, f"--data={data}", "--gamma=0.5", "--kimg=0.004", f"--resume={source}"]
    folder = whole_run(tmp_path / "runs", *arguments)
    network: Any = load_snapshot(max(folder.glob("network-snapshot-*.pkl"))).networks["G"]
    first: Any = load_snapshot(source).networks["G"]
    assert network.init_kwargs == first.init_kwargs
    difference = torch.cat([(a - b).flatten() for a, b in zip(network.parameters(), first.parameters(), strict=True)])
    assert 0 < float(difference.abs().max()) < 1e-3  # a step of Adam at the preset's rate
    unlabelled = [argument for argument in arguments if not argument.startswith("--cond")]
    folder = whole_run(tmp_path / "plain", *unlabelled)
    assert "generator is as in the file, but for what the images or classes" in (folder / "log.txt").read_text()
    for options, words in (
        (["--cfg=auto"], "its networks are R3GAN's; give --cfg=r3gan"),
        ([f"--resume={save_gan(tmp_path / 'g.pkl')}"], "--cfg=r3gan needs R3GAN's generator and discriminator"),
    ):
        result = invoke(*[a for a in arguments if a.split("=")[0] != options[0].split("=")[0]], *options,
                        f"--outdir={tmp_path}")  # fmt: skip
        assert result.exit_code != 0
        assert words in result.output
