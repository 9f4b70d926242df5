"""Images that are not square: a denoiser of 12x8 pixels is trained, continued, drawn, measured and distilled."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from stylegan_di.commands import dataset, generate, metrics, spectrum
from stylegan_di.critics.features import FeatureCritic
from stylegan_di.data.convert import convert
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sources import open_source
from stylegan_di.inputs import shape_of
from stylegan_di.interfaces import Denoiser
from stylegan_di.networks.edm import EDMPrecond, Precond
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.snapshots.blueprint import ImageShape
from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator, save_snapshot
from stylegan_di.snapshots.formats import open_contents
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.snapshots.portable import edm as portable
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.teachers.guided import Guided
from stylegan_di.teachers.mixed import MixedDenoiser, TeacherTerm
from tests.golden_edm import NETWORKS, load_network
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import save_dataset, save_gan

pytestmark = pytest.mark.usefixtures("small_grids")

WIDTH, HEIGHT = 12, 8
UNET = ["--model-channels=8", "--channel-mult=1,1", "--num-blocks=1", "--attn-resolutions=4", "--dropout=0.1"]


def edm_network(width: int | None = WIDTH, height: int = HEIGHT) -> Precond:
    torch.manual_seed(0)
    size: dict[str, Any] = dict(img_resolution=height) | ({} if width is None else dict(img_width=width))
    network = EDMPrecond(
        **size, img_channels=1, label_dim=3, model_type="SongUNet", model_channels=8, channel_mult=[1, 1],
        num_blocks=1, attn_resolutions=[4, 6], dropout=0,
    )  # fmt: skip
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rectangles")
    squares = save_dataset(folder / "squares", count=12)
    convert(open_source(squares), folder / "data.zip", size=(WIDTH, HEIGHT))
    save_snapshot(folder / "teacher.pkl", {"ema": edm_network()}, extras={"dataset_kwargs": {}}, metadata={})
    return {"squares": squares, "data": folder / "data.zip", "teacher": folder / "teacher.pkl",
            "gan": save_gan(folder / "gan.pkl")}  # fmt: skip


def said(command: Any, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def refusal(command: Any, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 2, result.output + str(result.exception)
    return result.output


# Networks.


@pytest.mark.parametrize("name", NETWORKS)
def test_the_width_changes_no_weight_and_no_number(name: str) -> None:
    """What a golden network of squares makes of a rectangle, one with its weights and a width makes to the bit."""
    square, _, info = load_network(name)
    side = square.img_resolution
    wide = type(square)(**info["init_kwargs"], img_width=side * 2).double().eval()
    wide.load_state_dict(square.state_dict())
    x = torch.linspace(-1, 1, 2 * square.img_channels * side**2, dtype=torch.float64).sin()
    x = x.reshape(1, square.img_channels, side, 2 * side)
    with torch.no_grad():
        assert torch.equal(wide(x, 0.7), square(x, 0.7))
    with pytest.raises(ValueError, match=f"images of {side}x{side} for a network of {2 * side}x{side}"):
        wide(x[..., :side], 0.7)


def test_a_network_lying_down_is_the_standing_one_with_its_kernels_transposed() -> None:
    lying, standing = edm_network(12, 8).double(), edm_network(8, 12).double()
    weights = [value.mT if value.ndim == 4 else value for value in lying.state_dict().values()]
    standing.load_state_dict(dict(zip(standing.state_dict(), weights, strict=True)))
    x = torch.randn([2, 1, 8, 12], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma, labels = torch.tensor([0.3, 3.0], dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2]
    expected = standing(x.mT, sigma, labels).mT
    torch.testing.assert_close(lying(x, sigma, labels), expected, rtol=1e-10, atol=1e-12)
    shapes = [list(found.shape[2:]) for found in lying.features(x, sigma, labels)]
    assert shapes == [[8, 12], [4, 6]]


def test_a_width_has_to_halve_as_often_as_the_height() -> None:
    with pytest.raises(ValueError, match="a width of 13, which does not halve as a height of 8 does"):
        edm_network(13)


def test_a_square_network_is_written_as_before() -> None:
    assert "img_width" not in vars(edm_network(8))
    assert "img_width" not in vars(edm_network(None)) | edm_network(None).init_kwargs
    assert vars(edm_network())["img_width"] == 12


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_a_file_keeps_the_shape(tmp_path: Path, suffix: str) -> None:
    network = edm_network()
    path = tmp_path / f"network{suffix}"
    save_snapshot(path, {"ema": network}, extras={"dataset_kwargs": {}}, metadata={})
    opened = load_denoiser(path)
    assert opened.image_shape == (1, 8, 12)
    assert shape_of(open_contents(path)) == ImageShape(8, 1, 3, 12)
    assert " 12x8x1, 3 classes" in inspect_file(path).sentence()
    x = torch.randn([2, 1, 8, 12], generator=torch.Generator().manual_seed(1))
    assert torch.equal(opened(x, torch.tensor(0.5)), network(x, 0.5))


def test_another_tool_that_draws_squares_is_told() -> None:
    network = edm_network()
    made = portable.EDMPrecond.__new__(portable.EDMPrecond)
    made.__dict__.update(vars(network))
    x = torch.randn([2, 1, 8, 12], generator=torch.Generator().manual_seed(1))
    assert torch.equal(made(x, torch.tensor(0.5)), network(x, 0.5))
    with pytest.raises(ValueError, match="images of 8x8 for a network of 12x8"):
        made(torch.randn([2, 1, 8, 8]), torch.tensor(0.5))


def test_a_critic_sees_the_features_of_rectangles() -> None:
    teacher: Denoiser = EDMTeacher(edm_network())
    noise, sigma = torch.zeros([2, 1, 8, 12]), torch.ones([2])
    assert FeatureCritic(teacher).logits(noise, noise, sigma, torch.eye(3)[:2]).shape == (2, 1)


def test_what_is_around_a_denoiser_has_its_shape() -> None:
    teacher = EDMTeacher(edm_network())
    mixed = MixedDenoiser([teacher, teacher], [TeacherTerm("a", 1, 0, math.inf), TeacherTerm("b", 1, 0, math.inf)])
    for around in (Guided(teacher, 2), mixed, Guided(mixed, 2), teacher.trainable_copy()):
        assert around.image_shape == (1, 8, 12)
        assert DiffusionSampler(around, steps=2).draw([0], class_index=1).shape == (1, 1, 8, 12)


def test_latents_of_a_student_have_the_teachers_shape() -> None:
    rng = SampleRandom(0, "rectangles", 0, range(2))
    for steps, shape in ((1, (2, 1, 8, 12)), (3, (2, 3, 1, 8, 12))):
        student = OneStepStudent.of_teacher(EDMTeacher(edm_network()), 2.5, steps)
        z = student.sample_latents(2, rng=rng)
        assert z.shape == shape
        assert student(z, torch.eye(3)[:2]).shape == student.draw([0, 1]).shape == (2, 1, 8, 12)


# Data sets.


def test_dataset_tool_makes_rectangles_where_they_are_asked_for(files: dict[str, Path], tmp_path: Path) -> None:
    source, dest = files["squares"], tmp_path / "data.zip"
    assert "12 images, 12x8 gray" in said(dataset.main, f"--source={source}", f"--dest={dest}", "--resolution=12x8")
    assert dest.read_bytes() == files["data"].read_bytes()
    found = ImageDataset(dest)
    assert (found.resolution, found.width, found[0][0].shape) == (8, 12, (1, 8, 12))
    checked = said(dataset.main, f"--source={dest}", "--check")
    assert "images of 12x8 gray are not square: a denoiser can be trained on them, but no GAN" in checked
    assert "nothing wrong" in checked
    told = refusal(dataset.main, f"--source={dest}", f"--dest={tmp_path / 'again.zip'}")
    assert "becomes 12x8 gray; images must be square" in told
    assert "or the resolution 12x8, for denoisers alone" in told


# Trainings.


def test_a_denoiser_of_rectangles_from_training_to_figures(files: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["--kind=edm", f"--data={files['data']}", "--cond=true", *SHORT, *UNET, "--tick=0.016",
                 "--augment=0.5", "--metrics=texture", "--metric-samples=4"]  # fmt: skip
    whole = whole_run(tmp_path / "whole", *arguments)
    killed = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke(f"--resume={killed}").exit_code == 0
    assert_same_run(whole, killed)
    network = whole / "network-snapshot-000000.pkl"
    assert load_denoiser(network).image_shape == (1, 8, 12)

    for options in ([], ["--solver=dpmpp"], ["--solver=euler", "--steps=3"]):
        out = tmp_path / "-".join(["out", *options])
        seeds = [f"--network={network}", f"--outdir={out}", "--seeds=0-4", "--device=cpu"]
        said(generate.main, *seeds, f"--grid={out / 'grid.png'}", *options)
        with Image.open(out / "seed0003.png") as image:
            assert image.size == (12, 8)
        with Image.open(out / "grid.png") as grid:
            assert grid.size[0] % 12 == grid.size[1] % 8 == 0
    measured = said(metrics.main, f"--network={network}", f"--data={files['data']}", "--metrics=fd_fashion",
                    "--num=4", "--device=cpu", "--solver=dpmpp")  # fmt: skip
    assert '"metric": "fd_fashion"' in measured
    said(metrics.main, f"--images={files['data']}", f"--data={files['data']}", "--metrics=fd_fashion", "--num=4")


def test_a_teacher_of_rectangles_is_distilled(files: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["--kind=di", f"--teacher={files['teacher']}", *SHORT, "--metrics=none", "--tick=0.016",
                 "--student-steps=2", "--critic=features", "--data=teacher:8"]  # fmt: skip
    whole = whole_run(tmp_path / "whole", *arguments)
    killed = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke(f"--resume={killed}").exit_code == 0
    assert_same_run(whole, killed)
    with Image.open(whole / "before_after.png") as picture:
        assert picture.size == (2 * 12, 8 * 8 + 1)
    student = load_generator(whole / "network-snapshot-000000.pkl")
    assert student.image_shape == (1, 8, 12)


# Refusals.


def test_a_gan_is_not_trained_on_rectangles(files: dict[str, Path]) -> None:
    told = invoke("--kind=gan", f"--data={files['data']}", "--device=cpu").output
    assert f"--data={files['data']} has images of 12x8; --kind=gan needs square ones" in told


def test_a_gan_and_a_teacher_of_rectangles_do_not_match(files: dict[str, Path]) -> None:
    for match in ("pixels", "resize"):
        told = invoke("--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['gan']}", f"--match={match}",
                      "--metrics=none", "--device=cpu").output  # fmt: skip
        assert "do not match: images of 12x8 against square ones" in told


def test_teachers_of_rectangles_have_one_size(files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pkl"
    save_snapshot(other, {"ema": edm_network(None)}, extras={"dataset_kwargs": {}}, metadata={})
    told = invoke("--kind=di", f"--teacher=0.5*{files['teacher']}", f"--teacher=0.5*{other}", "--metrics=none",
                  "--device=cpu").output  # fmt: skip
    assert "--teacher: images of 12x8 and 8x8; where they are not square, choose teachers of one size" in told


@pytest.mark.parametrize("student", ["decoder", "flow", "radiance"])
def test_new_networks_make_squares(files: dict[str, Path], student: str) -> None:
    told = invoke("--kind=di", f"--teacher={files['teacher']}", f"--student={student}", "--metrics=none",
                  "--device=cpu", "--outdir=unused").output  # fmt: skip
    assert f"--student={student} makes square images, and the teacher's are 12x8" in told


def test_levels_that_do_not_divide_a_side(files: dict[str, Path]) -> None:
    told = invoke("--kind=edm", f"--data={files['data']}", "--channel-mult=1,1,1,1", "--device=cpu").output
    assert "has images of 12x8; --channel-mult of 4 resolutions needs sides divisible by 8" in told


def test_an_autoencoder_is_for_squares(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests import tiny_pipelines

    tiny_pipelines.autoencoder(in_channels=1, out_channels=1).save_pretrained(str(tmp_path))
    told = invoke("--kind=edm", f"--data={files['data']}", f"--autoencoder={tmp_path}", "--device=cpu").output
    assert f"has images of 12x8; --autoencoder={tmp_path} is for square ones" in told


def test_data_of_another_shape_than_the_network_to_start_from(files: dict[str, Path]) -> None:
    told = invoke("--kind=edm", f"--data={files['squares']}", "--cond=true", f"--transfer={files['teacher']}",
                  "--augment=0", "--device=cpu").output  # fmt: skip
    assert "classes are (8, 1, 3), the network to start from's (12x8, 1, 3)" in told


def test_spectra_are_of_squares(files: dict[str, Path], tmp_path: Path) -> None:
    large = tmp_path / "large.zip"
    convert(open_source(files["squares"]), large, size=(24, 16))
    told = refusal(metrics.main, f"--images={large}", f"--data={large}", "--metrics=spectrum", "--num=4")
    assert "spectrum: images of 24x16 pixels are not square" in told
    drawn = refusal(spectrum.main, f"--images={large}", f"--data={large}", f"--out={tmp_path / 'a.svg'}")
    assert "spectrum: images of 24x16 pixels are not square" in drawn
