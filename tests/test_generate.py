"""generate.py: a seed is one image, of whatever kind the network is, and options of another kind are refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

import generate
from stylegan_di.dnnlib.util import option_name
from stylegan_di.explore.opening import open_generator
from stylegan_di.images import to_uint8
from stylegan_di.interfaces import Generator
from stylegan_di.sampling.ablation import ablation_sampler
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.sampling.seeded import call_size, uint8_images
from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator, load_snapshot, save_snapshot
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.students.stylegan3 import StyleGAN3Student
from tests.golden_edm import load_network

GOLDEN = Path(__file__).parent / "golden" / "pickles"
SG2_COND, SG2_UNCOND, EDM_COND = (str(GOLDEN / f"{name}.pkl") for name in ("sg2-cond", "sg2-uncond", "edm-cond"))
SIGMA_INIT = 2.5


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A one-step student: the golden EDM network, run once."""
    path = tmp_path_factory.mktemp("one-step") / "student.pkl"
    networks = load_snapshot(EDM_COND).networks
    save_snapshot(path, networks, extras={"sigma_init": SIGMA_INIT}, metadata={})
    return str(path)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(generate.main, [str(argument) for argument in arguments])


def images_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def make(folder: Path, network: str, *options: str) -> dict[str, np.ndarray]:
    result = run(f"--network={network}", f"--outdir={folder}", "--device=cpu", *options)
    assert result.exit_code == 0, result.output
    return images_in(folder)


def gan(path: str) -> StyleGAN2Student:
    student = load_generator(path)
    assert isinstance(student, StyleGAN2Student)
    return student


def one_hot(index: int, classes: int = 10) -> Tensor:
    return torch.eye(classes)[index : index + 1]


def test_seeds_are_those_of_edm_by_default(one_step: str, tmp_path: Path) -> None:
    assert list(make(tmp_path, one_step)) == [f"seed{seed:04d}.png" for seed in range(64)]


def test_which_of_several_networks(tmp_path: Path) -> None:
    (chosen,) = make(tmp_path, SG2_COND, "--which=G", "--seeds=5", "--class=2").values()
    student = load_generator(SG2_COND, which="G")
    expected = uint8_images(partial(student.draw, class_index=2), [5], 1)
    np.testing.assert_array_equal(chosen, expected[0].permute(1, 2, 0).numpy())
    (default,) = make(tmp_path, SG2_COND, "--seeds=5", "--class=2").values()
    assert (default != chosen).any()
    result = run(f"--network={SG2_COND}", "--which=Sg", "--seeds=5", f"--outdir={tmp_path}", "--device=cpu")
    assert result.exit_code == 2
    assert "--which=Sg is not in it; its networks are G, D, G_ema" in result.output


# What a seed means.


@pytest.mark.parametrize(("network", "options"), [(SG2_COND, ["--class=2"]), (SG2_UNCOND, [])])
def test_a_gans_image_is_the_one_of_nvlabs_tool(network: str, options: list[str], tmp_path: Path) -> None:
    """The network's last bits may differ (1e-5 in float32, 1e-2 in float16 blocks), so a pixel may be one off."""
    image = make(tmp_path, network, "--seeds=5", "--trunc=0.8", *options)["seed0005.png"]
    with np.load(network.replace(".pkl", ".expected.npz")) as file:
        expected = file["generate_seed5_class2_trunc0.8_uint8"][0]
    difference = np.abs(image.astype(int) - expected)
    float16 = network == SG2_UNCOND
    assert difference.max() <= 1
    assert (difference > 0).mean() < (0.1 if float16 else 0.002)


def test_a_gans_class_is_drawn_from_the_seed_after_the_latent() -> None:
    student, stream = gan(SG2_COND), np.random.RandomState(3)
    stream.randn(1, 32)
    torch.testing.assert_close(student.draw([3]), student.draw([3], class_index=stream.randint(10)))


def test_noise_modes_of_a_gan() -> None:
    student = gan(SG2_UNCOND)
    const, none, random = (student.with_options(noise_mode=mode).draw([1]) for mode in ("const", "none", "random"))
    z = torch.from_numpy(np.random.RandomState(1).randn(1, 32))
    torch.testing.assert_close(none, student.network(z, None, noise_mode="none"))
    assert not torch.equal(const, none)
    assert not torch.equal(const, random)
    torch.testing.assert_close(random, student.with_options(noise_mode="random").draw([1]), rtol=0, atol=0)
    torch.testing.assert_close(const, student.draw([1]), rtol=0, atol=0)


def test_truncation_to_zero_leaves_one_image() -> None:
    first, second = gan(SG2_UNCOND).with_options(trunc=0.0).draw([1, 2])
    torch.testing.assert_close(first, second)


def test_a_one_step_students_image_comes_from_edms_noise(one_step: str) -> None:
    """EDM draws the image first, then the label, from a generator of the seed's own."""
    student = load_generator(one_step)
    assert isinstance(student, OneStepStudent)
    generator = torch.Generator().manual_seed(7)
    z = torch.randn([1, 3, 16, 16], generator=generator)
    label = one_hot(int(torch.randint(10, [], generator=generator)))
    expected = student.network(SIGMA_INIT * z, torch.tensor([SIGMA_INIT]), label)
    torch.testing.assert_close(student.draw([7]), expected)
    fixed = student.network(SIGMA_INIT * z, torch.tensor([SIGMA_INIT]), one_hot(4))
    torch.testing.assert_close(student.draw([7], class_index=4), fixed)


def test_a_teachers_image_comes_from_edms_noise_and_sampler() -> None:
    denoiser = load_denoiser(EDM_COND)
    generator = torch.Generator().manual_seed(7)
    z = torch.randn([1, 3, 16, 16], generator=generator)
    label = one_hot(int(torch.randint(10, [], generator=generator)))

    def churn_noise(*shape: int) -> Tensor:  # continues the seed's stream
        return torch.randn([1, *shape], dtype=torch.float64, generator=generator)

    expected = heun_sampler(denoiser, z, label, num_steps=3, S_churn=1.0, noise_source=churn_noise)
    torch.testing.assert_close(DiffusionSampler(denoiser, steps=3, S_churn=1.0).draw([7]), expected)


# Company does not matter.


@pytest.mark.parametrize("noise_mode", ["const", "random"])
@pytest.mark.parametrize("network", [SG2_COND, SG2_UNCOND])
def test_a_gans_images_do_not_depend_on_the_batch(network: str, noise_mode: str, tmp_path: Path) -> None:
    options = ["--seeds=0-8", f"--noise-mode={noise_mode}"]
    single = make(tmp_path / "1", network, *options, "--batch=1")
    several = make(tmp_path / "8", network, *options, "--batch=8")
    alone = make(tmp_path / "alone", network, "--seeds=8", f"--noise-mode={noise_mode}")
    assert len(single) == 9
    for name, image in single.items():
        np.testing.assert_array_equal(image, several[name])
    np.testing.assert_array_equal(alone["seed0008.png"], single["seed0008.png"])


def test_the_ablation_samplers_options(tmp_path: Path) -> None:
    options = ["--solver=euler", "--disc=vp", "--schedule=vp", "--scaling=vp"]
    image = make(tmp_path, EDM_COND, "--seeds=3", "--class=2", "--steps=4", *options)["seed0003.png"]
    latents = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = ablation_sampler(
        load_denoiser(EDM_COND), latents, one_hot(2), num_steps=4, solver="euler", discretization="vp",
        schedule="vp", scaling="vp",
    )  # fmt: skip
    np.testing.assert_array_equal(image, to_uint8(expected)[0].permute(1, 2, 0).numpy())


def test_levels_that_the_network_does_not_know_are_refused(tmp_path: Path) -> None:
    network, _, _ = load_network("ve_ncsnpp_uncond", torch.float32)
    save_snapshot(tmp_path / "ve.pkl", {"ema": network}, extras={}, metadata={})
    result = run(f"--network={tmp_path / 've.pkl'}", "--seeds=0", "--sigma-min=0.001", "--sigma-max=0.01")
    assert result.exit_code == 2
    assert "the network knows noise levels from 0.02 to 100" in result.stderr
    images = make(tmp_path / "out", str(tmp_path / "ve.pkl"), "--seeds=0", "--steps=2")
    assert images["seed0000.png"].std() > 0


@pytest.mark.parametrize("options", [[], ["--S_churn=2"]])
def test_a_teachers_images_do_not_depend_on_the_batch(options: list[str], tmp_path: Path) -> None:
    single = make(tmp_path / "1", EDM_COND, "--seeds=0-8", "--steps=3", "--batch=1", *options)
    several = make(tmp_path / "8", EDM_COND, "--seeds=0-8", "--steps=3", "--batch=8", *options)
    for name, image in single.items():
        np.testing.assert_array_equal(image, several[name])


def test_a_one_step_students_images_do_not_depend_on_the_batch(one_step: str, tmp_path: Path) -> None:
    single = make(tmp_path / "1", one_step, "--seeds=0-8", "--batch=1")
    several = make(tmp_path / "8", one_step, "--seeds=0-8", "--batch=8")
    for name, image in single.items():
        np.testing.assert_array_equal(image, several[name])


def test_calls_have_one_size_and_the_last_is_filled_up() -> None:
    calls = []

    def draw(seeds: Sequence[int]) -> Tensor:
        calls.append(list(seeds))
        return torch.tensor(seeds).float().reshape(-1, 1, 1, 1) / 127.5 - 1

    images = uint8_images(draw, [5, 6, 7, 8, 9], size=3)
    assert calls == [[5, 6, 7], [8, 9, 9]]
    expected = to_uint8(torch.tensor([5.0, 6, 7, 8, 9]) / 127.5 - 1)
    torch.testing.assert_close(images.flatten(), expected)


def test_calls_are_single_on_a_cpu_and_fill_a_gpu_within_its_memory() -> None:
    cuda = torch.device("cuda")
    assert call_size(torch.device("cpu"), 32) == 1
    assert [call_size(cuda, resolution) for resolution in (32, 256, 512, 1024, 2048)] == [16, 16, 4, 1, 1]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("network", [SG2_COND, EDM_COND])
def test_images_do_not_depend_on_the_batch_on_a_gpu(network: str) -> None:
    model = open_generator(network).to("cuda")
    size = call_size(torch.device("cuda"), model.img_resolution)
    together = uint8_images(model.draw, list(range(20)), size)
    torch.testing.assert_close(uint8_images(model.draw, [18], size), together[18:19], rtol=0, atol=0)


# Files.


def test_files_are_named_by_seed_and_the_grid_holds_them_in_order(tmp_path: Path) -> None:
    grid = tmp_path / "sheets" / "grid.png"
    images = make(tmp_path / "out", SG2_COND, "--seeds=12,3-5,10000", f"--grid={grid}")
    assert set(images) == {"seed0003.png", "seed0004.png", "seed0005.png", "seed0012.png", "seed10000.png"}
    sheet = np.asarray(Image.open(grid))
    assert sheet.shape == (32, 48, 3)  # 5 images in rows of 3
    np.testing.assert_array_equal(sheet[:16, :16], images["seed0012.png"])
    np.testing.assert_array_equal(sheet[16:, 16:32], images["seed10000.png"])


# Refusals.


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (SG2_COND, ["--steps=9"], "--steps=9 is not for a StyleGAN2, which this network is: leave it out"),
        (SG2_COND, ["--S_churn=0"], "--S_churn=0.0 is not for a StyleGAN2"),
        (EDM_COND, ["--trunc=1"], "--trunc=1.0 is not for a diffusion teacher, which this network is"),
        (EDM_COND, ["--noise-mode=const"], "--noise-mode=const is not for a diffusion teacher"),
        (EDM_COND, ["--sigma-min=3", "--sigma-max=2"], "--sigma-min=3 is not below --sigma-max=2"),
        (EDM_COND, ["--sigma-min=90"], "--sigma-min=90 is not below --sigma-max=80"),
        (EDM_COND, ["--disc=ve", "--sigma-min=100"], "--sigma-min=100 is not below --sigma-max=100"),
        (EDM_COND, ["--disc=ve", "--rho=5"], "--rho=5 is for --disc=edm, not ve: leave it out"),
        (EDM_COND, ["--solver=rk4"], "--solver"),
        (SG2_COND, ["--solver=euler"], "--solver=euler is not for a StyleGAN2"),
        (EDM_COND, ["--S_noise=1.01"], "--S_noise=1.01 needs --S_churn above 0"),
        (EDM_COND, ["--rho=nan"], "--rho=nan: accepted are finite numbers"),
        (EDM_COND, ["--sigma-max=inf"], "--sigma-max=inf: accepted are finite numbers"),
        (SG2_COND, ["--class=10"], "--class=10: this network has the classes 0 to 9"),
        (SG2_UNCOND, ["--class=0"], "--class=0: this network is unconditional; leave it out"),
        (SG2_COND, ["--grid=grid.mp4"], "--grid=grid.mp4: its name must end in .png, .jpg, .jpeg"),
        (SG2_COND, ["--seeds=5-3"], "write 3-5"),
        (SG2_COND, ["--class=-1"], "--class"),
        (EDM_COND, ["--steps=0"], "--steps"),
        (EDM_COND, ["--sigma-min=0"], "--sigma-min"),
        (EDM_COND, ["--batch=0"], "--batch"),
        (EDM_COND, ["--device=tpu"], "--device"),
        ("no-such-network.pkl", [], "no-such-network.pkl: there is no such file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    network: str, options: list[str], message: str, tmp_path: Path
) -> None:
    result = run(f"--network={network}", "--seeds=0", f"--outdir={tmp_path / 'out'}", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--outdir={file}", "--outdir={file}/out", "--grid={file}/grid.png"])
def test_folders_that_cannot_be_written_are_refused_before_images_are_made(option: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = run(f"--network={SG2_COND}", "--seeds=0", f"--outdir={tmp_path / 'out'}", option.format(file=file))
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.stderr
    assert str(file) in result.stderr
    assert not list(tmp_path.rglob("*.png"))


def test_options_of_other_kinds_are_refused_for_a_one_step_student(one_step: str, tmp_path: Path) -> None:
    for option in ("--trunc=1.0", "--steps=18"):
        result = run(f"--network={one_step}", "--seeds=0", f"--outdir={tmp_path / 'out'}", option)
        assert result.exit_code == 2
        assert f"{option} is not for a one-step student, which this network is: leave it out" in result.stderr
        assert not (tmp_path / "out").exists()


def test_several_classes_get_a_folder_and_a_grid_each(tmp_path: Path) -> None:
    result = run("--network=fashion-gan.pkl", "--seeds=3", "--class=bag,1", f"--outdir={tmp_path / 'out'}",
                 f"--grid={tmp_path / 'grid.png'}")  # fmt: skip
    assert result.exit_code == 0, result.output
    for index in (8, 1):
        expected = to_uint8(gan("fashion-gan.pkl").draw([3], class_index=index))[0, 0].numpy()
        for path in (tmp_path / "out" / f"class{index}" / "seed0003.png", tmp_path / f"grid-class{index}.png"):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


def test_every_option_of_a_kind_is_on_the_command_line_under_its_name() -> None:
    general = {"network", "seeds", "projected_w", "classes", "label", "outdir", "grid", "device", "batch"}
    general |= {"which", "autoencoder", "debug"}
    options = {parameter.name: parameter.opts for parameter in generate.main.params}
    kinds: list[type[Generator]] = [StyleGAN2Student, StyleGAN3Student, OneStepStudent, DiffusionSampler]
    of_kinds = {name: [option_name(name)] for kind in kinds for name in kind.options}
    assert {name: opts for name, opts in options.items() if name not in general} == of_kinds
    help_texts = {parameter.name: getattr(parameter, "help", "") for parameter in generate.main.params}
    own = set(StyleGAN3Student.options) - set(StyleGAN2Student.options)
    for names, label in (
        (StyleGAN2Student.options, "[GAN] "), (own, "[StyleGAN3] "), (DiffusionSampler.options, "[teacher] "),
    ):  # fmt: skip
        assert all(help_texts[name].startswith(label) for name in names)


def test_help_tells_what_happens_without_a_class() -> None:
    assert "drawn from the seed" in " ".join(run("--help").output.split())
