"""tools/dev/benchmark.py: the plain side gives the same numbers, and a row that does not is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.stylegan2 import Generator
from tests.golden_edm import assert_near
from tests.golden_edm import load_network as load_unet
from tests.golden_sg2 import load_network as load_gan
from tools.dev import benchmark, benchmark_rows
from tools.dev.plain import plain_networks

CPU = torch.device("cpu")


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", ["sg2g_uncond_skip_map2", "sg2g_uncond_resnet_clamp"])
def test_plain_stylegan2_is_the_same_function(name: str, grouped: bool) -> None:
    network = load_gan(Generator, name)[0].requires_grad_(True)
    z = torch.randn([3, network.z_dim], generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def images_and_gradients() -> list[torch.Tensor]:
        images = network(z, None, noise_mode="const")
        return [images.detach(), *torch.autograd.grad(images.square().mean(), list(network.parameters()))]

    expected = images_and_gradients()
    with plain_networks(grouped=grouped):
        for actual, value in zip(images_and_gradients(), expected, strict=True):
            assert_near(actual, value, 1e-10)


@pytest.mark.parametrize("name", ["edm_ddpmpp_uncond", "edm_ncsnpp_cond10_aug9", "edm_adm_cond10_aug9"])
def test_plain_unets_are_the_same_function(name: str) -> None:
    network = load_unet(name)[0]
    shape = [2, network.img_channels, network.img_resolution, network.img_resolution]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = network(x, torch.tensor([0.5, 2.0])).detach()
    with plain_networks(grouped=False):
        assert_near(network(x, torch.tensor([0.5, 2.0])).detach(), expected, 1e-10)


def test_a_row_is_printed_and_written(tmp_path: Path) -> None:
    target = tmp_path / "results" / "benchmark.json"
    result = CliRunner().invoke(benchmark.main, ["--rows=FIR chain forward", "--rounds=2", f"--json={target}"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(target.read_text())["rows"]
    assert row["name"] == "fused FIR chain forward"
    assert row["target"] == 6
    assert row["ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"])
    assert row["difference"] < 2e-5
    assert row["peak_mib"] > 0
    assert f"| {row['ratio']:.2f} |" in result.output


def test_sides_that_differ_are_refused() -> None:
    sides = lambda: (lambda: [torch.tensor([1.0])], lambda: [torch.tensor([1.001])])  # noqa: E731
    with pytest.raises(UserError, match=r"odd: the two sides differ by 1\.0e-03, more than 2e-05"):
        benchmark.measure(benchmark_rows.Row("odd", None, 1, sides), 2, CPU)


def test_both_steps_have_the_same_gradients() -> None:
    steps = (benchmark_rows.Step("StyleGAN2", 2, CPU, plain) for plain in (False, True))
    ours, plain = (torch.cat([moment.flatten() for moment in step()]) for step in steps)
    assert_near(ours, plain, 1e-3)
    assert float(plain.abs().max()) > 0


def test_the_profile_names_operators_and_their_shares() -> None:
    x = torch.randn(64, 64)
    text = benchmark.shares(lambda: [x @ x], CPU)
    assert text.startswith("mm ")
    assert sum(int(share) for share in re.findall(r" (\d+)%", text)) == pytest.approx(100, abs=3)


def test_unknown_rows_are_refused() -> None:
    result = CliRunner().invoke(benchmark.main, ["--rows=nothing"])
    assert result.exit_code == 2
    assert "no such row; there are StyleGAN2 cifar forward" in result.output
