"""Mixed styles and loops of latents, and the tools that draw them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import generate
from stylegan_di.explore.latents import coarse_styles, loop, mix_styles
from stylegan_di.snapshots.checkpoint import load_generator
from stylegan_di.students.stylegan2 import StyleGAN2Student
from tools import interpolate, style_mixing

GOLDEN = Path(__file__).parent / "golden" / "pickles"
SG2_COND, SG2_UNCOND, EDM_COND = (str(GOLDEN / f"{name}.pkl") for name in ("sg2-cond", "sg2-uncond", "edm-cond"))


def gan(path: str) -> StyleGAN2Student:
    student = load_generator(path)
    assert isinstance(student, StyleGAN2Student)
    return student


def mix(*options: str | Path) -> Result:
    return CliRunner().invoke(style_mixing.main, [*map(str, options), "--device=cpu"])


def film(*options: str | Path) -> Result:
    return CliRunner().invoke(interpolate.main, [*map(str, options), "--device=cpu"])


# Latents.


def test_styles_come_from_the_column_and_all_else_from_the_row() -> None:
    rows, cols = torch.randn(2, 5, 3), torch.randn(4, 5, 3)
    mixed = mix_styles(rows, cols, [0, 3])
    assert mixed.shape == (2, 4, 5, 3)
    for r in range(2):
        for c in range(4):
            for style in range(5):
                torch.testing.assert_close(mixed[r, c, style], (cols[c] if style in (0, 3) else rows[r])[style])


def test_coarse_styles() -> None:
    assert coarse_styles(18) == [0, 1, 2, 3, 4, 5, 6]
    assert [len(coarse_styles(num_ws)) for num_ws in (14, 8, 6, 2)] == [5, 3, 2, 1]


def test_a_loop_passes_its_keyframes_and_closes_smoothly() -> None:
    keyframes = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = loop(keyframes, 400)
    torch.testing.assert_close(path[::100], keyframes)
    around = torch.cat([path, path])
    speed = (around[1:] - around[:-1]) * 100
    acceleration = (speed[1:] - speed[:-1]) * 100
    inside, seam = acceleration[150:250], acceleration[350:450]
    assert (seam[1:] - seam[:-1]).abs().max() < 2 * (inside[1:] - inside[:-1]).abs().max()
    torch.testing.assert_close(loop(keyframes[:, :1], 400), path[:, :1])


def test_a_loop_through_a_circle_is_a_circle() -> None:
    """Eight points of a circle: the cubic spline stays within 1e-3 of it (its error falls as the step to the 4th)."""
    angle = torch.arange(8, dtype=torch.float64) * (math.tau / 8)
    path = loop(torch.stack([angle.cos(), angle.sin()], dim=1), 100)
    expected = torch.arange(100, dtype=torch.float64) * (math.tau / 100)
    torch.testing.assert_close(path, torch.stack([expected.cos(), expected.sin()], dim=1), rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="1 keyframes"):
        loop(torch.zeros(1, 2), 10)


# tools/style_mixing.py.


def test_grid_of_mixed_styles(tmp_path: Path) -> None:
    result = mix(f"--network={SG2_COND}", "--rows=3,5", "--cols=1,3", "--styles=0-1,4", f"--outdir={tmp_path}")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"3-1.png", "3-3.png", "5-1.png", "5-3.png", "grid.png"}
    student = gan(SG2_COND)
    ws = {seed: student.mapped([seed]) for seed in (1, 5)}
    mixed = ws[5].clone()
    mixed[:, [0, 1, 4]] = ws[1][:, [0, 1, 4]]
    expected = (student.synthesize(mixed, [5])[0] * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "5-1.png")), expected.numpy())

    CliRunner().invoke(generate.main, [f"--network={SG2_COND}", "--seeds=1,3,5", f"--outdir={tmp_path / 'own'}"])
    own = {seed: np.asarray(Image.open(tmp_path / "own" / f"seed{seed:04d}.png")) for seed in (1, 3, 5)}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "3-3.png")), own[3])
    grid = np.asarray(Image.open(tmp_path / "grid.png")).reshape(3, 16, 3, 16, 3).swapaxes(1, 2)
    assert not grid[0, 0].any()
    for (row, column), image in {(0, 1): own[1], (0, 2): own[3], (1, 0): own[3], (2, 0): own[5]}.items():
        np.testing.assert_array_equal(grid[row, column], image)
    np.testing.assert_array_equal(grid[2, 1], expected.numpy())


def test_projections_as_rows_columns_and_keyframes(tmp_path: Path) -> None:
    """A projection of the w of seed 1 takes the place of that seed; it is w0 in names and the first keyframe."""
    student = gan(SG2_UNCOND)
    w = tmp_path / "projected_w.npz"
    np.savez(w, w=student.mapped([1]).numpy())
    assert mix(f"--network={SG2_UNCOND}", "--rows=1", "--cols=3", f"--outdir={tmp_path / 'a'}").exit_code == 0
    result = mix(f"--network={SG2_UNCOND}", f"--rows-w={w}", "--cols=3", f"--outdir={tmp_path / 'b'}")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "b" / "w0-3.png").read_bytes() == (tmp_path / "a" / "1-3.png").read_bytes()
    missing = mix(f"--network={SG2_UNCOND}", "--cols=3").stderr
    assert "--rows is missing: give seeds, or projections by --rows-w" in missing
    films = []
    for options in (["--seeds=1,3"], [f"--projected-w={w}", "--seeds=3"]):
        result = film(f"--network={SG2_UNCOND}", *options, "--frames=4", f"--output={tmp_path / 'loop.gif'}")
        assert result.exit_code == 0, result.output
        with Image.open(tmp_path / "loop.gif") as image:
            films.append(np.asarray(image.convert("RGB")).astype(int))
    assert np.abs(films[0] - films[1]).mean() < 0.5  # kernels round w of one and of two latents differently
    assert "2 seeds and projections; a grid of 2" in film(
        f"--network={SG2_UNCOND}", f"--projected-w={w}", "--seeds=3", "--grid=2x1", f"--output={tmp_path / 'l.gif'}"
    ).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([f"--network={SG2_COND}", "--styles=0-6"], "--styles: 6 is none of this network's styles, 0 to 5"),
        ([f"--network={SG2_COND}", "--class=10"], "--class=10: this network has the classes 0 to 9"),
        ([f"--network={SG2_COND}", "--rows=2-1"], "write 1-2"),
        ([f"--network={EDM_COND}"], f"--network={EDM_COND} is a diffusion teacher, which has no w."),
    ],
)
def test_what_style_mixing_refuses(options: list[str], message: str, tmp_path: Path) -> None:
    result = mix("--rows=1", "--cols=2", f"--outdir={tmp_path / 'out'}", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


# tools/interpolate.py.


def test_a_loop_of_a_grid(tmp_path: Path) -> None:
    path = tmp_path / "new" / "loop.gif"
    options = ["--seeds=0-3", "--grid=2x1", "--frames=6", "--fps=20", "--class=2", "--trunc=0.7"]
    result = film(f"--network={SG2_COND}", *options, f"--output={path}")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}: 6 frames, a loop of 0.30 s\n"
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["duration"], image.info["loop"]) == (6, (32, 16), 50, 0)
        first = np.asarray(image.convert("RGB")).astype(int)
    student = gan(SG2_COND).with_options(trunc=0.7)
    ws = student.mapped([0, 2], class_index=2)
    cells = [student.synthesize(ws[index : index + 1], [0])[0] for index in range(2)]
    expected = (torch.cat(cells, dim=2) * 127.5 + 128).clamp(0, 255).floor().permute(1, 2, 0).numpy()
    assert np.abs(first - expected).mean() < 6  # a .gif has 256 colours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds=0-4", "--grid=2x1"], "--seeds: 5 seeds; a grid of 2 takes 4, 6 or more so"),
        (["--seeds=0-1", "--grid=2x1"], "--seeds: 2 seeds; a grid of 2 takes 4, 6 or more so"),
        (["--seeds=0-1", "--grid=2"], "'2' is not a grid of columns and rows such as 4x2"),
        (["--seeds=0-1", "--fps=30"], "--fps=30: a .gif shows 1, 2, 4, 5, 10, 20, 25, 50 frames a second"),
        (["--seeds=0-1", "--output=loop.avi"], "--output=loop.avi: its name must end in .gif or .mp4"),
        (["--seeds=0-1", "--class=0"], "--class=0: this network is unconditional"),
    ],
)
def test_what_interpolation_refuses(options: list[str], message: str, tmp_path: Path) -> None:
    result = film(f"--network={SG2_UNCOND}", f"--output={tmp_path / 'out' / 'loop.gif'}", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_mp4_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = film(f"--network={SG2_UNCOND}", "--seeds=0-1", f"--output={tmp_path / 'loop.mp4'}")
    assert result.exit_code == 2
    needs = 'needs the package av: pip install "stylegan-di[video]"; or write a .gif, which needs none'
    assert f"--output={tmp_path / 'loop.mp4'} {needs}" in result.stderr
