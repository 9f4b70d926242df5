"""Projection finds the w of an image that the generator itself has made, and the tool writes it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

import generate
from stylegan_di import zoo
from stylegan_di.dnnlib.download import cached_path
from stylegan_di.explore.projection import (
    autocorrelation,
    multi_scale,
    perceptual,
    project,
    rate,
    render,
    w_statistics,
)
from stylegan_di.images import from_uint8, to_uint8
from stylegan_di.metrics.vgg16 import lpips_of, vgg16_of
from stylegan_di.networks.stylegan2 import Generator
from stylegan_di.snapshots.checkpoint import load_generator
from tests.tiny_vgg16 import lin_recipe, recipe, tensors
from tools import projector

GOLDEN = Path(__file__).parent / "golden" / "pickles"
SG2_COND, SG2_UNCOND, EDM_COND = (str(GOLDEN / f"{name}.pkl") for name in ("sg2-cond", "sg2-uncond", "edm-cond"))
BAG = torch.eye(10)[8:9]


def network(path: str) -> Generator:
    found = load_generator(path).network
    assert isinstance(found, Generator)
    return found


def image_of(generator: Generator, seed: int, labels: Tensor | None) -> Tensor:
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, generator.z_dim))
    with torch.no_grad():
        return to_uint8(generator(z, labels, noise_mode="const", force_fp32=True))[0]


def ws_of(generator: Generator, w: Tensor) -> Tensor:
    return w.expand(1, generator.num_ws, -1)


def test_an_image_of_the_generator_is_found_again() -> None:
    """200 steps bring the distance below a hundredth, and the w alone draws the image to 4 of 255 on average."""
    generator = network("fashion-gan.pkl")
    target = image_of(generator, 7, BAG)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    reported: list[tuple[int, float]] = []
    found = project(generator, target, labels=BAG, num_steps=200, report=lambda *step: reported.append(step))
    assert found.end < found.start / 100
    assert [done for done, _ in reported] == list(range(1, 201))
    assert reported[-1][1] < reported[0][1] / 50
    with torch.no_grad():
        image = to_uint8(render(generator, ws_of(generator, found.w), found.noises))[0]
    assert (image.float() - target.float()).abs().mean() < 4
    torch.testing.assert_close(found.path[-1], found.w)
    for name, value in generator.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    distance = (multi_scale(from_uint8(image[None])) - multi_scale(from_uint8(target[None]))).square().sum()
    assert abs(float(distance) - found.end) < 2e-4  # as measured from outside, on the rounded image


def test_noise_maps_help_and_stay_noise() -> None:
    generator = network(SG2_COND)
    labels = torch.eye(10)[:1]
    found = project(generator, image_of(generator, 7, labels), labels=labels, num_steps=60)
    assert list(found.noises) == [f"b{r}.conv{i}.noise_const" for r in (4, 8, 16) for i in (0, 1)][1:]
    assert found.end < found.start / 3
    for noise in found.noises.values():
        assert abs(float(noise.mean())) < 1e-6
        assert abs(float(noise.var(correction=0)) - 1) < 1e-5
    torch.manual_seed(0)
    fresh = {name: torch.randn_like(noise) for name, noise in found.noises.items()}
    target = multi_scale(from_uint8(image_of(generator, 7, labels)[None]))
    with torch.no_grad():
        other = (multi_scale(render(generator, ws_of(generator, found.w), fresh)) - target).square().sum()
    assert found.end < 0.8 * float(other)


def test_the_same_seed_finds_the_same() -> None:
    generator = network(SG2_UNCOND)
    target = image_of(generator, 1, None)
    first, second, other = (project(generator, target, num_steps=3, seed=seed) for seed in (5, 5, 6))
    torch.testing.assert_close(first.w, second.w, rtol=0, atol=0)
    assert not torch.equal(first.w, other.w)


def test_w_statistics() -> None:
    generator = network(SG2_UNCOND)
    mean, deviation = w_statistics(generator, None, 0, torch.device("cpu"))
    z = torch.randn(20_000, generator.z_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        w = generator.mapping(z, None)[:, 0]
    expected = float((w - w.mean(dim=0)).square().sum(dim=1).mean().sqrt())
    assert abs(deviation / expected - 1) < 0.02
    assert (mean - w.mean(dim=0)).norm() < 0.05 * expected


def test_multi_scale_distance_by_hand() -> None:
    """A checkerboard of +-1 and gray differ by 1 at the finest scale and not at all at the others."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    features = multi_scale(torch.stack([board, torch.zeros(8, 8), torch.full([8, 8], 0.5)])[:, None])
    assert features.shape == (3, 64 + 16 + 4 + 1)
    assert float((features[0] - features[1]).square().sum()) == pytest.approx(1)
    assert float((features[2] - features[1]).square().sum()) == pytest.approx(4 * 0.25)


def test_lpips_leads_to_the_image_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow VGG-16: the distance projected by is LPIPS of the RGB images, and it falls."""
    lpips = lpips_of(vgg16_of(tensors(recipe())), tensors(lin_recipe())).float()
    features = perceptual(lpips)
    generator = network(SG2_UNCOND)
    target = image_of(generator, 3, None)
    found = project(generator, target, features=features, num_steps=40)
    image = render(generator, ws_of(generator, found.w), found.noises)
    with torch.no_grad():
        vectors = [lpips(x * 127.5 + 128) for x in (image, from_uint8(target[None]))]
        torch.testing.assert_close((vectors[0] - vectors[1]).square().sum().item(), found.end, rtol=1e-5, atol=0)
    assert found.end < found.start / 2
    large = torch.rand([1, 1, 512, 512], generator=torch.Generator().manual_seed(0)) * 2 - 1
    halves = torch.nn.functional.avg_pool2d(large, 2).expand(-1, 3, -1, -1)
    torch.testing.assert_close(features(large), lpips(halves * 127.5 + 128))


def test_the_tool_uses_lpips_where_its_weights_are_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lpips = lpips_of(vgg16_of(tensors(recipe())), tensors(lin_recipe())).float()
    opened: list[str | None] = []
    monkeypatch.setattr(projector, "load_vgg16", lambda file: opened.append(file))
    monkeypatch.setattr(projector, "load_lpips", lambda vgg, file: opened.append(file) or lpips)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    assert projector.open_features(None, "cpu")[0] is multi_scale
    assert projector.open_features("vgg16=a.pth,lpips=b.pth", "cpu")[1] == "LPIPS"
    for name in (projector.VGG_WEIGHTS, projector.LPIPS_WEIGHTS):
        url = zoo.ENTRIES[name].url
        assert url is not None
        cached_path(url).parent.mkdir(parents=True, exist_ok=True)
        cached_path(url).write_bytes(b"weights")
    assert projector.open_features(None, "cpu")[1] == "LPIPS"
    assert opened == ["a.pth", "b.pth", None, None]


def test_autocorrelation_by_hand() -> None:
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1).double()
    assert float(autocorrelation(board)) == pytest.approx(2)  # -1 along both axes; the halved map is 0
    assert float(autocorrelation(torch.ones(16, 16))) == pytest.approx(2 + 2 * 16)  # halved, doubled: 2 everywhere
    rows = board[:, :1].expand(16, 16)
    assert float(autocorrelation(rows)) == pytest.approx(2)
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(autocorrelation(noise)) < 0.1


def test_learning_rate() -> None:
    assert [rate(done) for done in (0, 0.025, 0.05, 0.5, 0.75)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert rate(0.875) == pytest.approx(0.5)
    assert rate(1 - 1e-9) == pytest.approx(0, abs=1e-9)


# tools/projector.py.


def run(*options: str | Path) -> Result:
    return CliRunner().invoke(projector.main, [*map(str, options), "--device=cpu"])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An oblong RGB photograph."""
    pixels = np.random.default_rng(0).integers(256, size=[20, 40, 3], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_tool_writes_what_it_found(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--num-steps=5", "--class=8", f"--target={photo}", f"--outdir={out}"]
    result = run("--network=fashion-gan.pkl", *options)
    assert result.exit_code == 0, result.output
    assert "distance: pixels at every scale (no perceptual weights)" in result.stdout
    assert {path.name for path in out.iterdir()} == {"target.png", "proj.png", "projected_w.npz", "proj.gif"}
    generator = network("fashion-gan.pkl")
    with np.load(out / "projected_w.npz") as file:
        w = torch.from_numpy(file["w"])
        noises = {name: torch.from_numpy(file[name]) for name in file.files if name != "w"}
    assert w.shape == (1, generator.num_ws, generator.w_dim)
    with torch.no_grad():
        expected = to_uint8(render(generator, w, noises))[0, 0]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "proj.png")), expected.numpy())
    with Image.open(photo) as image:
        cropped = image.convert("L").crop((10, 0, 30, 20)).resize((16, 16), Image.Resampling.LANCZOS)
    target = np.asarray(Image.open(out / "target.png"))
    np.testing.assert_array_equal(target, np.asarray(cropped))
    with Image.open(out / "proj.gif") as video:
        assert (video.n_frames, video.size) == (5, (32, 16))
        np.testing.assert_array_equal(np.asarray(video.convert("L"))[:, :16], target)
        video.seek(4)
        np.testing.assert_array_equal(np.asarray(video.convert("L"))[:, 16:], expected.numpy())


def test_without_a_video(photo: Path, tmp_path: Path) -> None:
    options = ["--num-steps=1", "--save-video=false", f"--target={photo}", f"--outdir={tmp_path / 'out'}"]
    result = run(f"--network={SG2_UNCOND}", *options)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"target.png", "proj.png", "projected_w.npz"}
    with np.load(tmp_path / "out" / "projected_w.npz") as file:
        assert {name for name in file.files if name.endswith("noise_const")} == set(file.files) - {"w"} != set()


def test_a_folder_of_targets(photo: Path, tmp_path: Path) -> None:
    targets = tmp_path / "targets"
    targets.mkdir()
    for name in ("a.png", "b.png"):
        (targets / name).write_bytes(photo.read_bytes())
    options = ["--num-steps=2", "--save-video=false", f"--outdir={tmp_path / 'out'}"]
    result = run(f"--network={SG2_UNCOND}", f"--target={targets}", *options)
    assert result.exit_code == 0, result.output
    assert run(f"--network={SG2_UNCOND}", f"--target={photo}", *options).exit_code == 0
    for folder in (tmp_path / "out" / "a", tmp_path / "out" / "b"):
        assert (folder / "proj.png").read_bytes() == (tmp_path / "out" / "proj.png").read_bytes()
    (targets / "b.jpg").write_bytes(photo.read_bytes())
    assert "differ by their suffix only" in run(f"--network={SG2_UNCOND}", f"--target={targets}", *options).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([f"--network={SG2_COND}"], "this network is conditional: give --class, from 0 to 9"),
        ([f"--network={SG2_UNCOND}", "--class=1"], "--class=1: this network is unconditional; leave it out"),
        ([f"--network={EDM_COND}"], f"--network={EDM_COND} is a diffusion teacher, which has no w."),
        ([f"--network={SG2_UNCOND}", "--target=absent.png"], "absent.png cannot be read: No such file or directory."),
        ([f"--network={SG2_UNCOND}", f"--target={__file__}"], "is not an image of PNG, JPEG"),
        ([f"--network={SG2_UNCOND}", "--num-steps=0"], "--num-steps"),
    ],
)
def test_what_the_tool_refuses(options: list[str], message: str, photo: Path, tmp_path: Path) -> None:
    result = run(f"--target={photo}", f"--outdir={tmp_path / 'out'}", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


# generate.py --projected-w.


def again(*options: str | Path) -> Result:
    return CliRunner().invoke(generate.main, [*map(str, options), "--device=cpu"])


def test_a_projection_is_drawn_again(photo: Path, tmp_path: Path) -> None:
    options = ["--num-steps=2", "--save-video=false", f"--target={photo}", f"--outdir={tmp_path}"]
    assert run(f"--network={SG2_UNCOND}", *options).exit_code == 0
    npz = tmp_path / "projected_w.npz"
    result = again(f"--network={SG2_UNCOND}", f"--projected-w={npz}", f"--outdir={tmp_path / 'out'}")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["proj00.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "proj00.png")),
                                  np.asarray(Image.open(tmp_path / "proj.png")))  # fmt: skip


def test_w_alone_is_drawn_with_the_networks_own_noise(tmp_path: Path) -> None:
    """As NVlabs' projector writes it; several images."""
    generator = network(SG2_UNCOND)
    ws = torch.randn(2, generator.num_ws, generator.w_dim, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "w.npz", w=ws.numpy())
    result = again(f"--network={SG2_UNCOND}", f"--projected-w={tmp_path / 'w.npz'}", f"--outdir={tmp_path / 'out'}")
    assert result.exit_code == 0, result.output
    for index in range(2):
        with torch.no_grad():
            image = generator.synthesis(ws[index : index + 1], noise_mode="const", force_fp32=True)
        found = np.asarray(Image.open(tmp_path / "out" / f"proj{index:02d}.png"))
        np.testing.assert_array_equal(found, to_uint8(image)[0].permute(1, 2, 0).numpy())


def test_w_is_drawn_without_noise_or_with_any(tmp_path: Path) -> None:
    generator = network(SG2_UNCOND)
    ws = torch.randn(1, generator.num_ws, generator.w_dim, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "w.npz", w=ws.numpy())
    arguments = [f"--network={SG2_UNCOND}", f"--projected-w={tmp_path / 'w.npz'}"]
    found = {}
    for mode in ("none", "random", "const"):
        result = again(*arguments, f"--outdir={tmp_path / mode}", f"--noise-mode={mode}")
        assert result.exit_code == 0, result.output
        found[mode] = np.asarray(Image.open(tmp_path / mode / "proj00.png")).astype(int)
    with torch.no_grad():
        plain = to_uint8(generator.synthesis(ws, noise_mode="none"))[0].permute(1, 2, 0).numpy()
    assert np.abs(found["none"] - plain).max() <= 1
    assert (found["random"] != found["const"]).any()


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"w": np.zeros([1, 6, 32])}, ["--seeds=0"], "--seeds is for images of seeds; leave it out with --projected-w"),
        ({"w": np.zeros([1, 6, 32])}, ["--trunc=1"], "--trunc is for images of seeds; leave it out with --projected-w"),
        ({"w": np.zeros([1, 6, 64])}, [], "w.npz has w of shape [1, 6, 64]; this network needs w of shape [N, 6, 32]."),
        ({"z": np.zeros([1, 6, 32])}, [], "w.npz has no w; this network needs w of shape [N, 6, 32]."),
        ({"w": np.zeros([1, 6, 32]), "b4.conv1.noise_const": np.zeros([8, 8])}, [], "this network does not have."),
        ({"w": np.array([None])}, [], "w.npz: found contents that cannot be read"),
        (None, [], "w.npz: found contents that cannot be read"),
    ],
)
def test_projections_that_are_refused(
    arrays: dict[str, Any] | None, options: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.npz"
    path.write_bytes(b"<html>") if arrays is None else np.savez(path, **arrays)
    result = again(f"--network={SG2_UNCOND}", f"--projected-w={path}", f"--outdir={tmp_path / 'out'}", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_projections_are_of_gans(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.zeros([1, 6, 32]))
    result = again(f"--network={EDM_COND}", f"--projected-w={tmp_path / 'w.npz'}")
    assert f"--network={EDM_COND} is a diffusion teacher, which has no w" in result.stderr
    assert result.exit_code == 2
