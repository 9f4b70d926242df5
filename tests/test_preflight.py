"""What is checked before a run begins: everything at once, by headers, before anything is built, made or downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import train
from stylegan_di import preflight, zoo
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.download import cached_path
from stylegan_di.dnnlib.util import UserError
from stylegan_di.snapshots.checkpoint import save_snapshot
from tests.tiny import gan_networks, save_files, save_gan, save_teacher

RESIZE = "choose a teacher trained on images like the GAN's, or let it see them resized: --match=resize"
URL = "https://example.com/networks/teacher.pkl"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Those of `save_files`, and others that do not match them."""
    folder = tmp_path_factory.mktemp("files")
    own = save_files(folder)
    networks = gan_networks()
    save_snapshot(folder / "no_d.pkl", {"G_ema": networks["G_ema"]}, extras={}, metadata={})
    own["no_d"] = str(folder / "no_d.pkl")
    own["large_gan"] = str(save_gan(folder / "large.pkl", resolution=16))
    own["color"] = str(save_teacher(folder / "color.pkl", img_channels=3))
    own["uncond"] = str(save_teacher(folder / "uncond.pkl", label_dim=0))
    own["latents"] = str(save_teacher(folder / "latents.pkl", precond="edm2", img_channels=4))
    for side in (6, 12, 16, 32):
        own[f"data{side}"] = str(save_images(folder / f"data{side}", side))
    return own


def save_images(folder: Path, side: int) -> Path:
    folder.mkdir()
    for index in range(4):
        Image.fromarray(np.full([side, side], 60 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def config(kind: Any, files: dict[str, str], **given: Any) -> TrainConfig:
    """A run on these files; a value that names one of them stands for its path."""
    options: dict[str, Any] = dict(metrics=(), batch=4)
    options |= {name: files.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    return TrainConfig(kind, **options)


def refine(files: dict[str, str], **given: Any) -> TrainConfig:
    return config("di", files, **(dict(gan_pkl="gan", teacher="teacher") | given))


def hybrid(files: dict[str, str], **given: Any) -> TrainConfig:
    return refine(files, **(dict(data="data", cond=True, adv_weight=1.0, aug="noaug") | given))


def problem(config: TrainConfig, *, processes: int = 1, fetch: bool = True) -> str:
    with pytest.raises(UserError) as refusal:
        preflight.check(config, processes=processes, fetch=fetch)
    return str(refusal.value)


def test_what_fits_passes(files: dict[str, str]) -> None:
    for fits in (
        refine(files),
        hybrid(files),
        hybrid(files, aug="ada", augpipe="bgc", batch=8),
        config("di", files, teacher="teacher"),
        config("di", files, teacher="color"),
        config("di", files, teacher="teacher", data="data", cond=True, divergence="realuid"),
        config("di", files, gan_pkl="gan", divergence="none", adv_weight=1.0, data="data", cond=True),
        config("gan", files, data="data", aug="noaug"),
        config("edm", files, data="data12", metrics=("fd_fashion",)),
        refine(files, ref="ref", metrics=("fd_fashion",)),
        refine(files, metrics=("is50k",)),
    ):
        preflight.check(fits, processes=1, fetch=True)


# Teacher and GAN.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(gan_pkl="large_gan"), f"resolution 8 against 16; {RESIZE}"),
        (dict(teacher="color"), f"channels 3 against 1; {RESIZE}"),
        (
            dict(teacher="uncond"),
            "classes 0 against 3; choose a teacher trained on classes like the GAN's, or say what the teacher is told: "
            "--classes=null, drawn, or a JSON list of its class for each of the GAN's",
        ),
    ],
)
def test_a_teacher_of_other_images_than_the_gans(files: dict[str, str], given: dict[str, str], message: str) -> None:
    refused = refine(files, **given)
    assert problem(refused) == f"--teacher={refused.teacher} and --gan-pkl={refused.gan_pkl} do not match: {message}"


@pytest.mark.parametrize(
    "given",
    [
        dict(gan_pkl="large_gan", match="resize"),
        dict(teacher="color", match="resize"),
        dict(teacher="uncond", classes="null"),
        dict(gan_pkl="large_gan", teacher="uncond", match="resize", classes="null"),
        dict(classes="drawn"),
    ],
)
def test_what_differs_passes_with_the_option_that_converts_it(files: dict[str, str], given: dict[str, Any]) -> None:
    preflight.check(refine(files, **given), processes=1, fetch=True)


def test_each_of_several_teachers_is_checked(files: dict[str, str]) -> None:
    mixed = refine(files, teacher=f"0.5*{files['teacher']}+0.5*{files['color']}")
    assert problem(mixed).startswith(f"--teacher={files['color']} and --gan-pkl={files['gan']} do not match: channels")


def test_a_discriminator_does_not_learn_from_images_of_another_size(files: dict[str, str]) -> None:
    told = problem(hybrid(files, gan_pkl="large_gan", match="resize", data="teacher:8", cond=False))
    assert "the discriminator cannot learn from --data=teacher:8" in told


def test_a_teacher_of_latents(files: dict[str, str]) -> None:
    told = problem(config("di", files, teacher="latents"))
    assert told.startswith(f"--teacher={files['latents']}: its images have 4 channels, so it works on an autoencoder's")


@pytest.mark.parametrize(
    ("given", "who"),
    [
        (dict(), "--adv-weight=1"),
        (dict(critic="features"), "--adv-weight=1"),
        (dict(teacher="online"), "--adv-weight=1"),
        (dict(adv_weight=0.0, divergence="ikl:f=js"), "--divergence=ikl:f=js"),
    ],
)
def test_a_gan_without_its_discriminator(files: dict[str, str], given: dict[str, Any], who: str) -> None:
    told = problem(hybrid(files, gan_pkl="no_d", **given))
    assert told.startswith(f"--gan-pkl={files['no_d']} holds no discriminator 'D', which {who} needs")
    preflight.check(refine(files, gan_pkl="no_d"), processes=1, fetch=True)


# Data.


@pytest.mark.parametrize("given", [dict(kind="edm"), dict(kind="di", gan_pkl="gan", teacher="teacher", adv_weight=1.0)])
def test_data_that_do_not_exist_are_told_by_their_option(files: dict[str, str], given: dict[str, Any]) -> None:
    told = problem(config(files=files, data="no.zip", **given))
    assert told == "--data=no.zip does not exist; give a folder or a .zip file of images"


def test_data_that_do_not_exist_where_a_preset_asks_for_their_size() -> None:
    result = CliRunner().invoke(train.main, ["--kind=gan", "--data=no.zip", "--dry-run"])
    assert (result.exit_code, "Error: --data=no.zip does not exist" in result.stderr) == (2, True)


def test_data_of_other_images_than_the_gans(files: dict[str, str]) -> None:
    told = problem(hybrid(files, data="data16", cond=False))
    expected = "resolution, channels, classes are (16, 1, 0), the GAN's (8, 1, 3); --cond=true reads the labels"
    assert told.startswith(f"--data={files['data16']}: {expected}")
    assert "(8, 1, 0), the GAN's (8, 1, 3)" in problem(hybrid(files, cond=False))


def test_data_of_other_images_than_the_teachers_where_there_is_no_gan(files: dict[str, str]) -> None:
    told = problem(config("di", files, teacher="teacher", data="data16", divergence="realuid"))
    assert "are (16, 1, 0), the teacher's (8, 1, 3)" in told


def test_the_side_of_images_of_a_gan(files: dict[str, str]) -> None:
    told = problem(config("gan", files, data="data12", aug="noaug"))
    assert told == (
        f"--data={files['data12']} has images of side 12; --kind=gan needs one that is a power of two, from 4: resize "
        "with stylegan-di dataset"
    )


def test_widths_and_subsets_that_the_images_do_not_allow(files: dict[str, str]) -> None:
    told = problem(config("gan", files, data="data", cbase=3, subset=1000, aug="noaug"))
    assert told == (
        "2 problems: --cbase=3 leaves no channels at 8 pixels: give 8 or more; --subset=1000: "
        f"--data={files['data']} holds 24 images; leave it out to use all"
    )


def test_the_side_of_images_of_a_denoiser(files: dict[str, str]) -> None:
    told = problem(config("edm", files, data="data6", channel_mult=(1, 2, 2)))
    expected = "has images of side 6; --channel-mult of 3 resolutions needs one divisible by 4"
    assert told.startswith(f"--data={files['data6']} {expected}")
    preflight.check(config("edm", files, data="data6", channel_mult=(1, 2)), processes=1, fetch=True)


@pytest.mark.parametrize("kind", ["gan", "di"])
def test_augmentations_that_reach_further_than_the_images(files: dict[str, str], kind: str) -> None:
    given: dict[str, Any] = dict(aug="ada", augpipe="bgcf")
    run = hybrid(files, **given) if kind == "di" else config("gan", files, data="data", **given)
    assert problem(run) == (
        "--augpipe=bgcf filters frequency bands, which needs images larger than 21 pixels, and those of "
        f"--data={files['data']} have 8; choose one without, such as bgc"
    )


def test_augmentations_that_images_are_large_enough_for_or_that_are_off(files: dict[str, str]) -> None:
    preflight.check(config("gan", files, data="data32", aug="ada", augpipe="bgcf"), processes=1, fetch=True)
    preflight.check(config("gan", files, data="data", aug="noaug", augpipe="bgcf"), processes=1, fetch=True)


def test_a_data_set_that_cannot_be_read(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in problem(config("edm", files, data=str(tmp_path / "empty")))
    assert "labels" in problem(config("edm", files, data="data12", cond=True))


# The batch.


@pytest.mark.parametrize(
    ("given", "processes", "size", "group"),
    [
        (dict(batch=6), 1, 6, 4),
        (dict(batch=12), 2, 6, 4),
        (dict(batch=16, batch_gpu=6), 1, 6, 4),
        (dict(batch=22, batch_gpu=16), 1, 6, 4),  # what remains after one of 16
        (dict(batch=32, mbstd_group=12), 1, 32, 12),
    ],
)
def test_groups_of_the_minibatch_standard_deviation(
    files: dict[str, str], given: dict[str, Any], processes: int, size: int, group: int
) -> None:
    told = problem(config("gan", files, data="data", aug="noaug", **given), processes=processes)
    wanted = given.get("mbstd_group", 4)
    assert told == (
        f"--mbstd-group={wanted}: {size} images at a time do not divide into groups of {group}; choose --batch or "
        "--batch-gpu as its multiple, or another --mbstd-group"
    )


@pytest.mark.parametrize("given", [dict(batch=2), dict(batch=6, batch_gpu=3), dict(batch=6, batch_gpu=4)])
def test_groups_are_no_larger_than_what_is_computed_at_once(files: dict[str, str], given: dict[str, Any]) -> None:
    preflight.check(config("gan", files, data="data", aug="noaug", **given), processes=1, fetch=True)
    preflight.check(hybrid(files, **given), processes=1, fetch=True)


def test_groups_of_a_gans_own_discriminator(files: dict[str, str]) -> None:
    told = problem(hybrid(files, batch=6))
    assert told.startswith(f"--gan-pkl={files['gan']}: the minibatch standard deviation of its discriminator: 6 images")
    preflight.check(refine(files, batch=6), processes=1, fetch=True)  # it is not trained


def test_a_batch_that_does_not_divide_over_the_processes(files: dict[str, str]) -> None:
    assert problem(refine(files, batch=5), processes=2) == "--batch=5 does not divide over 2 processes"
    assert "does not divide over 8 processes" in problem(hybrid(files, batch=4), processes=8)


def test_weights_of_one_image_at_a_time(files: dict[str, str]) -> None:
    given: dict[str, Any] = dict(divergence="ikl:f=js", data="data", cond=True, critic="features", batch=4)
    assert problem(refine(files, **given, batch_gpu=1)) == (
        "--divergence=ikl:f=js weighs the images that are computed together against each other, and --batch-gpu=1 "
        "leaves one: give 2 or more"
    )
    preflight.check(refine(files, **given, batch_gpu=1), processes=2, fetch=True)
    preflight.check(refine(files, **given, batch_gpu=2), processes=1, fetch=True)


def test_sharding_over_one_process(files: dict[str, str]) -> None:
    assert problem(refine(files, fsdp=True)).startswith("--fsdp spreads weights over several processes")
    preflight.check(refine(files, fsdp=True), processes=2, fetch=True)


def test_a_graph_of_a_cpu(files: dict[str, str]) -> None:
    told = problem(refine(files, cuda_graph="true"))
    assert told == "--cuda-graph=true is for a GPU, and this runs on cpu: leave it out"
    preflight.check(refine(files, cuda_graph="auto"), processes=1, fetch=True)


# The reference.


def test_a_reference_that_is_missing(files: dict[str, str]) -> None:
    told = problem(refine(files, metrics=("fid50k_full", "fd_fashion")))
    assert told.startswith("--metrics=fid50k_full,fd_fashion needs --ref=NPZ, reference statistics")
    assert files["gan"] in told


def test_a_reference_that_no_metric_uses(files: dict[str, str]) -> None:
    told = problem(refine(files, metrics=("is50k",), ref="ref"))
    assert told == f"--ref={files['ref']}: --metrics=is50k compares with no real images; leave it out"


# All at once, and before anything else.


def test_a_reference_of_other_features_or_without_them(files: dict[str, str], tmp_path: Path) -> None:
    told = problem(refine(files, metrics=("fid50k_full",), ref="fashion-reference.npz"), fetch=False)
    assert told.startswith("--ref=fashion-reference.npz holds fashion features of 64 dimensions; the metrics asked for")
    assert "need inception features" in told
    np.savez(tmp_path / "edm.npz", mu=np.zeros(4), sigma=np.eye(4))
    told = problem(refine(files, metrics=("fid50k_full", "kid50k_full"), ref=str(tmp_path / "edm.npz")))
    assert "holds no features, only their mean and covariance" in told


def test_problems_are_told_together(files: dict[str, str], tmp_path: Path) -> None:
    run = hybrid(files, teacher="uncond", batch=6, cond=False, data="data16")
    told = problem(run, processes=4)
    assert told.startswith("3 problems: --batch=6 does not divide over 4 processes; --teacher=")
    for part in ("classes 0 against 3", "; --data=", "the GAN's (8, 1, 3)"):
        assert part in told
    missing = refine(files, teacher=str(tmp_path / "none.pkl"), gan_pkl=str(tmp_path / "neither.pkl"), batch=3)
    told = problem(missing, processes=2)
    assert told.startswith("3 problems: --batch=3 does not divide over 2 processes; ")
    assert "none.pkl" in told
    assert "neither.pkl" in told


@pytest.mark.parametrize("dry", [True, False])
def test_a_run_is_refused_before_kernels_networks_and_folders(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("too early")

    for name in ("build", "load_kernels", "make_evaluator", "RunFolder.create"):
        monkeypatch.setattr(f"stylegan_di.training.launch.{name}", never)
    arguments = ["--kind=di", f"--teacher={files['uncond']}", f"--gan-pkl={files['large_gan']}", "--device=cpu"]
    result = CliRunner().invoke(train.main, [*arguments, f"--outdir={tmp_path / 'runs'}", *["--dry-run"] * dry])
    assert result.exit_code == 2, result.output + str(result.exception)
    head, *lines = result.stderr.splitlines()
    assert head == "Error: 3 problems:"
    assert [line[:18] for line in lines] == ["  --metrics=fid50k", *2 * ["  --teacher=" + files["uncond"][:6]]]
    assert "classes 0 against 3" in lines[2]
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_downloads_nothing(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A URL that is not in the cache is not looked at, and what there is is checked all the same."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    asked: list[str] = []
    resolve = zoo.resolve

    def watched(source: str) -> Path:
        asked.append(source)
        if source == URL:
            raise UserError("downloaded")
        return resolve(source)

    monkeypatch.setattr(zoo, "resolve", watched)
    run = refine(files, teacher=URL)
    preflight.check(run, processes=1, fetch=False)
    assert asked == [files["gan"]]
    assert problem(run) == "downloaded"
    assert "does not divide" in problem(refine(files, teacher=URL, batch=3), processes=2, fetch=False)
    known = refine(files, teacher="edm-cifar10-32x32-cond-vp.pkl")
    preflight.check(known, processes=1, fetch=False)
    arguments = ["--kind=di", f"--teacher={URL}", f"--gan-pkl={files['gan']}", "--metrics=none", "--dry-run"]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    assert URL in result.output
    assert set(asked) == {files["gan"], URL}
    assert asked.count(URL) == 1  # by the check that may fetch


def test_a_file_that_is_in_the_cache_is_looked_at_in_a_dry_run(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    cached_path(URL).parent.mkdir(parents=True, exist_ok=True)
    cached_path(URL).write_bytes(Path(files["uncond"]).read_bytes())
    assert "classes 0 against 3" in problem(refine(files, teacher=URL), fetch=False)
