"""Spectra and textures of images: waves and noise whose power is known, what blur does, the tool that draws."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor

from stylegan_di.commands import spectrum as tool
from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import to_uint8
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.spectrum import band_ratios, frequencies, radial_power
from stylegan_di.metrics.table import METRICS, is_better
from tests.datasets import encode, write
from tests.tiny import save_gan

spectrum, texture = open_extractor("spectrum"), open_extractor("texture")


def wave(rows: float, columns: float, size: int = 64, amplitude: float = 0.5) -> Tensor:
    """A cosine of so many cycles per image, uint8 [1,3,size,size]."""
    angle = 2 * math.pi / size * (rows * torch.arange(size)[:, None] + columns * torch.arange(size))
    return to_uint8(amplitude * torch.cos(angle)).expand(1, 3, -1, -1)


def noise(num: int, size: int = 32, deviation: float = 0.2) -> Tensor:
    """Gray white noise, uint8 [num,3,size,size]."""
    x = torch.randn(num, 1, size, size, generator=torch.Generator().manual_seed(size))
    return to_uint8(deviation * x).expand(-1, 3, -1, -1)


@pytest.mark.parametrize(("rows", "columns", "band"), [
    (4, 0, 0), (0, 4, 0), (0, 6, 1), (6, 0, 1), (8, 8, 2), (0, 14, 2), (18, 0, 3), (0, 31, 3), (22, 22, 3), (32, 32, 3),
])  # fmt: skip
def test_waves_fall_into_their_octaves(rows: int, columns: int, band: int) -> None:
    """64 pixels: octaves end at 4, 8, 16 cycles; the last one goes on to the corner, which is a chessboard."""
    powers = spectrum(wave(rows, columns))[0]
    assert powers.argmax() == band
    assert powers[band] > 2 * powers.sum() / 3


def test_white_noise_has_its_variance_at_all_frequencies() -> None:
    images = noise(200)
    variance = (images[:, 0].float() / 127.5).var()
    torch.testing.assert_close(spectrum(images).mean(dim=0), variance.expand(4), rtol=0.06, atol=0)
    radial = radial_power(images).mean(dim=0)
    assert radial.shape == (17,)
    torch.testing.assert_close(radial[2:], variance.expand(15), rtol=0.1, atol=0)


def test_a_wave_has_one_peak() -> None:
    """Hann's window lets a half of it over to each neighbour, a quarter in power."""
    radial = radial_power(wave(0, 20))[0]
    assert radial.argmax() == 20
    assert radial[:17].max() < 1e-3 * radial[20]


def test_levels_and_colours_do_not_count() -> None:
    x = wave(3, 5, 32, amplitude=0.3)
    torch.testing.assert_close(spectrum(x + 40), spectrum(x), rtol=1e-3, atol=1e-6)
    assert spectrum(torch.full([1, 3, 16, 16], 77, dtype=torch.uint8)).max() < 1e-9
    red_or_gray = torch.stack([x[0, 0].long() + d for d in (-20, 0, 20)])[None].to(torch.uint8)
    torch.testing.assert_close(spectrum(red_or_gray), spectrum(x), rtol=1e-3, atol=1e-6)


def test_frequencies_are_lengths() -> None:
    found = frequencies(8)
    assert found[0, :5].tolist() == [0, 1, 2, 3, 4]
    assert found[3, 4] == 5
    assert found.max() == pytest.approx(32**0.5)


def test_what_blur_does_grows_with_it() -> None:
    images = noise(50, 16)
    reals = spectrum(images).mean(dim=0).double().numpy()
    assert band_ratios(reals, reals) == (0, 1, 1, 1, 1)
    worst = [0.0]
    for share in (0.1, 0.3, 0.6):
        blurred = images.float().lerp(F.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False), share)
        figures = band_ratios(reals, spectrum(blurred.round().to(torch.uint8)).mean(dim=0).double().numpy())
        assert list(figures[1:]) == sorted(figures[1:], reverse=True)  # the finer, the weaker
        assert figures[0] == pytest.approx(-math.log2(figures[4]))
        worst.append(figures[0])
    assert worst == sorted(worst)
    assert worst[-1] > 1
    assert is_better("spectrum", worst[0], worst[1])


def test_no_power_is_no_infinity() -> None:
    assert band_ratios([0, 1, 1, 1], [0, 2, 0.5, 1]) == pytest.approx((1, 1, 2, 0.5, 1))
    assert np.isfinite(band_ratios([0, 0, 0, 0], [1, 1, 1, 1])).all()


def test_small_images_and_files_of_weights_are_refused() -> None:
    with pytest.raises(UserError, match="8x8 pixels are too small"):
        spectrum(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    for name in ("spectrum", "texture"):
        with pytest.raises(UserError, match=f"{name} has no weights"):
            open_extractor(name, "a.pth")


def test_texture_by_hand() -> None:
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert texture(image).tolist() == [[0, 1]]
    image[:, :, 1, 1] = 90  # in four of the nine 2x2 squares
    assert texture(image).tolist() == [[40, 15 / 16]]
    image[:, :2, 0, 0] = 1
    assert texture(image)[0, 1] == 14 / 16  # blue alone is 0
    edges = (torch.arange(4) % 2 * 255).to(torch.uint8).expand(1, 3, 4, 4)
    assert texture(edges).tolist() == [[0, 0.5]]
    chess = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 255
    assert texture(chess.to(torch.uint8).expand(1, 3, 4, 4)).tolist() == [[510, 0.5]]


def test_texture_does_not_judge() -> None:
    assert METRICS["texture"].higher_is_better is None
    assert is_better("texture", 1.0, 2.0)
    assert is_better("texture", 2.0, 1.0)


def draw(*arguments: str) -> Result:
    return CliRunner().invoke(tool.main, [*arguments, "--device=cpu", "--num=8"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=[6, 16, 16], dtype=np.uint8)
    return write(tmp_path / "images", {f"{index}.png": encode(image) for index, image in enumerate(images)})


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_tool_draws(folder: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    out, network = tmp_path / f"new/plot{suffix}", save_gan(tmp_path / "gan.pkl", resolution=16)
    result = draw(f"--network={network}", f"--images={folder}", f"--data={folder}", f"--out={out}")
    assert result.exit_code == 0, result.output
    assert f"{folder}: power in octaves from coarse to fine, over that of real images: 1.000  1.000" in result.output
    assert f"{network}: power in octaves" in result.output
    assert out.stat().st_size > 1000


def test_the_tool_refuses(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    network = save_gan(tmp_path / "gan.pkl", resolution=8)
    for arguments, message in (
        ([f"--data={folder}", "--out=a.png"], "--network or --images"),
        ([f"--images={folder}", f"--data={folder}", "--out=a.txt"], "--out=a.txt"),
        ([f"--network={network}", f"--data={folder}", "--out=a.png"], "images of 8x8, but --data of 16x16"),
    ):
        result = draw(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
