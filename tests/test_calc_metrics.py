"""calc_metrics.py through its command line: every kind of network, a folder of images, what is printed and appended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import calc_metrics
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.snapshots.checkpoint import load_generator, save_snapshot
from tests.tiny import gan_networks, save_dataset

GOLDEN = Path(__file__).parent / "golden" / "pickles"
GAN, TEACHER = GOLDEN / "sg2-cond.pkl", GOLDEN / "edm-uncond.pkl"
METRICS = "--metrics=fd_fashion,pr_fashion"
REF = "--ref=fashion-reference.npz"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calc_metrics.main, [*map(str, arguments), "--device=cpu"])


def lines_of(result: Result) -> dict[str, dict[str, object]]:
    """The JSON lines by metric."""
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {line["metric"]: line for line in lines}


def test_a_gan(tmp_path: Path) -> None:
    result = run(f"--network={GAN}", METRICS, REF, "--num=40", "--seed=3", "--batch=16", f"--outdir={tmp_path}")
    lines = lines_of(result)
    assert list(lines) == ["fd_fashion", "pr_fashion"]
    expected = Evaluator(["fd_fashion", "pr_fashion"], "fashion-reference.npz", 40, batch=16)(load_generator(GAN), 3)
    assert {**lines["fd_fashion"]["results"], **lines["pr_fashion"]["results"]} == pytest.approx(expected, rel=1e-6)
    for name, line in lines.items():
        assert (line["num_gpus"], line["num_samples"], line["snapshot_pkl"]) == (1, 40, str(GAN))
        assert line["total_time"] > 0 < line["timestamp"]
        appended = (tmp_path / f"metric-{name}.jsonl").read_text().splitlines()
        assert [json.loads(text) for text in appended] == [line]
    for name, value in expected.items():
        assert f"{name} " in result.stdout
        assert f"{value:.5g}" in result.stdout


def test_repetition_gives_mean_and_spread(tmp_path: Path) -> None:
    arguments = [f"--network={GAN}", "--metrics=fd_fashion", REF, "--num=6"]
    result = run(*arguments, "--seed=3", "--repeat=3", f"--outdir={tmp_path}")
    line = lines_of(result)["fd_fashion"]
    single = [lines_of(run(*arguments, f"--seed={seed}"))["fd_fashion"]["results"] for seed in (3, 4, 5)]
    assert line["blocks"] == single
    figures = [block["fd_fashion"] for block in single]
    assert line["results"] == {"fd_fashion": pytest.approx(np.mean(figures), rel=1e-12)}
    assert line["spread"] == {"fd_fashion": pytest.approx(np.std(figures, ddof=1), rel=1e-9)}
    assert "mean and standard deviation of 3 sets of 6 images" in result.stdout
    assert f"{np.mean(figures):.6g} +- {np.std(figures, ddof=1):.2g}" in result.stdout
    assert len((tmp_path / "metric-fd_fashion.jsonl").read_text().splitlines()) == 1


def test_truncation_changes_a_gans_figures() -> None:
    plain, truncated = (
        lines_of(run(f"--network={GAN}", "--metrics=fd_fashion", REF, "--num=10", *more))["fd_fashion"]["results"]
        for more in ([], ["--trunc=0.1"])
    )
    assert plain != truncated


def test_16_bits_change_figures_by_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is kept in each type by itself."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    data = save_dataset(tmp_path / "data")
    arguments = [f"--network={GAN}", "--metrics=fd_fashion", f"--data={data}", "--num=40"]
    ways: list[list[str]] = [[], ["--amp=bf16"], ["--detector-amp=bf16"], ["--amp=fp16", "--detector-amp=bf16"]]
    exact, *others = (lines_of(run(*arguments, *way))["fd_fashion"]["results"]["fd_fashion"] for way in ways)
    assert len({exact, *others}) == 4
    assert others == [pytest.approx(exact, rel=2e-2)] * 3
    assert len(list((tmp_path / "cache" / "metrics").glob("*.npz"))) == 2


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    arguments = [f"--network={GAN}", "--metrics=fd_fashion", REF, "--num=13", "--batch=5"]
    command = [sys.executable, "calc_metrics.py", *arguments, "--gpus=2", "--device=cpu", f"--outdir={tmp_path}"]
    if (os.cpu_count() or 1) < 2:
        pytest.skip("this machine has one core")
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "metric-fd_fashion.jsonl").read_text().splitlines()
    assert result.stdout.count(line) == 1
    assert json.loads(line)["num_gpus"] == 2
    assert json.loads(line)["results"] == lines_of(run(*arguments))["fd_fashion"]["results"]


def test_a_teacher_goes_through_the_sampler() -> None:
    two, three = (
        lines_of(run(f"--network={TEACHER}", "--metrics=fd_fashion", REF, "--num=4", f"--steps={steps}"))
        for steps in (2, 3)
    )
    assert two["fd_fashion"]["results"] != three["fd_fashion"]["results"]


def test_results_go_into_the_run_folder(tmp_path: Path) -> None:
    shutil.copy(GAN, tmp_path / "network-snapshot-000001.pkl")
    arguments = [f"--network={tmp_path / 'network-snapshot-000001.pkl'}", "--metrics=fd_fashion", REF, "--num=4"]
    run(*arguments)
    assert not list(tmp_path.glob("*.jsonl"))  # not a run folder
    (tmp_path / "training_options.json").write_text("{}")
    for count in (1, 2):
        run(*arguments)
        assert len((tmp_path / "metric-fd_fashion.jsonl").read_text().splitlines()) == count


def test_images_against_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    images = tmp_path / "images"
    images.mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(256, size=[8, 28, 28], dtype=np.uint8)):
        Image.fromarray(pixels).save(images / f"{index}.png")
    lines = lines_of(run(f"--images={images}", f"--data={images}", METRICS))
    assert lines["fd_fashion"]["results"]["fd_fashion"] == pytest.approx(0, abs=1e-6)
    assert lines["pr_fashion"]["results"] == {"pr_fashion_precision": 1, "pr_fashion_recall": 1}
    assert lines["fd_fashion"]["num_samples"] == 8
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    for path in images.iterdir():
        Image.open(path).resize((16, 16)).save(smaller / path.name)
    told = run(f"--images={smaller}", f"--data={images}", "--metrics=spectrum").stderr
    assert "images of 16x16 pixels cannot be compared with real ones of 28x28; give real images of their size" in told


def test_a_part_of_the_images_is_chosen_by_seed(tmp_path: Path) -> None:
    """As by edm's fid.py: ImageDataset's choice, which is NVlabs' for equal arguments."""
    save_dataset(tmp_path / "data", count=12)
    arguments = [f"--images={tmp_path / 'data'}", REF, "--metrics=fd_fashion", "--num=8"]
    found = lines_of(run(*arguments, "--seed=5"))["fd_fashion"]
    assert (found["num_samples"], found["seed"]) == (8, 5)
    chosen = ImageDataset(tmp_path / "data", max_size=8, seed=5)
    expected = Evaluator(["fd_fashion"], "fashion-reference.npz", 8).measure_dataset(chosen)
    assert found["results"] == pytest.approx(expected, rel=1e-6)
    assert lines_of(run(*arguments))["fd_fashion"]["results"] != pytest.approx(expected, rel=1e-3)
    result = run(f"--images={tmp_path / 'data'}", REF, "--metrics=fd_fashion")
    assert "has 12 images, fewer than --num=50000" in result.stderr
    assert lines_of(result)["fd_fashion"]["num_samples"] == 12


def test_the_data_set_that_the_network_names_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    data = save_dataset(tmp_path / "data")
    arguments = ["--metrics=fd_fashion", "--num=8"]

    def network(path: str) -> str:
        extras = {"training_set_kwargs": {"path": path, "xflip": True}}
        save_snapshot(tmp_path / "g.pkl", gan_networks(), extras=extras, metadata={})
        return f"--network={tmp_path / 'g.pkl'}"

    result = run(network(str(data)), *arguments)
    assert f"compared with {data}, the data set that {tmp_path / 'g.pkl'} names" in result.stderr
    assert lines_of(result)["fd_fashion"]["results"] == (
        lines_of(run(network(str(data)), f"--data={data}", *arguments))["fd_fashion"]["results"]
    )
    (data / "dataset.json").rename(tmp_path / "labels.json")  # a folder that is no data set; none at all; a server's
    for path in (str(data), str(tmp_path / "none.zip"), "//server/share/data.zip", "\\\\server\\data.zip"):
        assert "no reference is known" in run(network(path), *arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([REF], "either --network or --images"),
        ([f"--network={GAN}", "--images=x", REF], "either --network or --images"),
        ([f"--network={GAN}"], "no reference is known"),
        ([f"--network={GAN}", REF, "--data=x"], "--data and --ref"),
        ([f"--network={GAN}", REF, "--metrics=fid"], "no metric 'fid'"),
        ([f"--network={GAN}", REF, "--metrics=is50k,fd_fashion", "--detector-file=none.pth"], "none.pth"),
        ([f"--network={GAN}", REF, "--metrics=fid50k"], "choose other --metrics (fd_fashion, pr_fashion, kid_fashion"),
        ([f"--network={GAN}", REF, "--metrics=fd_fashion", "--steps=3"], "--steps=3 is not for a StyleGAN2"),
        ([f"--network={TEACHER}", REF, "--metrics=fd_fashion", "--trunc=0.5"],
         "--trunc=0.5 is not for a diffusion teacher, which this network is: leave it out"),
        (["--images=x", REF, "--trunc=0.5"], "--trunc, --trunc-mode, --steps, --solver and --repeat are for --network"),
        (["--images=x", REF, "--repeat=2"], "--trunc, --trunc-mode, --steps, --solver and --repeat are for --network"),
        ([f"--network={GAN}", REF, "--metrics=is50k"], "--metrics=is50k compares with no real images"),
        ([f"--network={GAN}", "--data=x", "--metrics=fd_fashion", "--mirror=1"], "--mirror is for"),
        ([f"--network={GAN}", REF, "--metrics=fid50k", "--mirror=1"], "--mirror is for"),
        ([f"--network={GAN}", REF, "--metrics=fid50k,pr50k3", "--detector-file=x.pth"],
         "of which network? The metrics asked for accept inception=FILE,vgg16=FILE"),
        ([f"--network={GAN}", REF, "--metrics=fid50k", "--detector-file=vgg16=x.pth"], "do not use vgg16"),
        (["--network=none.pkl", REF], "none.pkl"),
        (["--images=none.zip", REF, "--metrics=fd_fashion"], "none.zip"),
        ([f"--network={GAN}", REF, "--num=1"], "--num"),
        (["--images=x", REF, "--amp=bf16"], "--amp, --trunc, --trunc-mode"),
        ([f"--network={GAN}", "--metrics=eqt50k_int", "--amp=bf16"], "--amp: eqt50k_int are measured in float32"),
        ([f"--network={GAN}", REF, "--metrics=fd_fashion", "--gpus=999"], "--gpus=999: this machine has"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_name_is_told_before_a_folder_is_made(tmp_path: Path) -> None:
    assert run(f"--network={GAN}", REF, "--metrics=fid", f"--outdir={tmp_path / 'new'}").exit_code == 2
    assert not list(tmp_path.iterdir())
