"""Going on with a run: exact for every kind, from whichever state is intact, with no option changed unnoticed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import train
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.util import UserError, sha256_of_file
from stylegan_di.journal.clock import UNSTEADY
from stylegan_di.runs import statefile
from stylegan_di.runs.folder import RunFolder
from stylegan_di.runs.resume import MAY_CHANGE
from stylegan_di.snapshots.checkpoint import load_generator
from stylegan_di.training.trainer import Trainer
from tests.tiny import save_dataset, save_files, save_teacher

pytestmark = pytest.mark.usefixtures("small_grids")

SHORT = ["--device=cpu", "--batch=4", "--kimg=0.032", "--snap=2", "--state=1"]
TINY_GAN = ["--cbase=64", "--cmax=8", "--w-dim=8", "--augpipe=blit", "--p=0.1", "--aug=ada", "--ada-kimg=0.05"]
TINY_EDM = ["--model-channels=8", "--channel-mult=1", "--num-blocks=1", "--attn-resolutions=4", "--dropout=0.3"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer handles it."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def commands(files: dict[str, str]) -> dict[str, list[str]]:
    metrics = [f"--ref={files['ref']}", "--metrics=fd_fashion", "--metric-samples=32", "--tick=0.008"]
    none = ["--metrics=none", "--tick=0.016"]
    di = ["--kind=di", f"--teacher={files['teacher']}", *SHORT]
    data = [f"--data={files['data']}", "--cond=true", *SHORT]
    return {
        "gan": ["--kind=gan", *data, *none, *TINY_GAN, "--pl-interval=2", "--r1-interval=3"],
        "transfer": ["--kind=gan", *data, *none, "--aug=noaug", f"--resume={files['gan']}"],
        "edm": ["--kind=edm", *data, *none, *TINY_EDM, "--label-dropout=0.3", "--workers=2"],
        "di": [*di, *metrics, f"--gan-pkl={files['gan']}", "--fake-warmup=0.008", "--lr-decay=0.5"],
        "one-step": [*di, *none, "--lr-rampup=0.02"],
        "r3gan": [*di, *none, f"--gan-pkl={files['r3gan']}", f"--data={files['data']}", "--cond=true", "--adv-weight=1",
                  "--gamma=0.1"],
        "stylegan3": [*di, *none, f"--gan-pkl={files['stylegan3']}", f"--data={files['data']}", "--cond=true",
                      "--adv-weight=1", "--gamma=0.1", "--batch-gpu=2", "--freeze=mapping,L1"],
        "hybrid": [*di, *none, f"--gan-pkl={files['gan']}", f"--data={files['data']}", "--cond=true", "--adv-weight=1",
                   "--gamma=0.1", "--aug=ada", "--augpipe=blit", "--ada-kimg=0.05", "--batch-gpu=2"],
    }  # fmt: skip


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(train.main, list(arguments))


def whole_run(outdir: Path, *arguments: str) -> Path:
    result = invoke(*arguments, f"--outdir={outdir}")
    assert result.exit_code == 0, result.output + str(result.exception)
    (folder,) = outdir.iterdir()
    return folder


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The trainer dies at the beginning of a step."""
    original = Trainer.step

    def dies(self: Trainer) -> None:
        if self.state.cur_step == step:
            raise Killed
        original(self)

    monkeypatch.setattr(Trainer, "step", dies)


def killed_run(outdir: Path, step: int, *arguments: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            train.main.main([*arguments, f"--outdir={outdir}"], standalone_mode=False)
    (folder,) = outdir.iterdir()
    return folder


def last_state(folder: Path) -> statefile.State:
    path = statefile.complete_states(folder)[-1]
    assert statefile.damage(path) is None
    return statefile.load_state(path)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file without what tells the time or the memory."""
    own = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(UNSTEADY)} for line in own]


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit: every tensor of the last state, the lines written, the result and the pictures."""
    a, b = last_state(first), last_state(second)
    assert a.tensors.keys() == b.tensors.keys()
    assert [name for name, value in a.tensors.items() if not same_bits(value, b.tensors[name])] == []
    assert a.values["state"] == b.values["state"]
    assert a.values["evaluation"] == b.values["evaluation"]
    for path in first.glob("*.jsonl"):
        assert lines(path) == lines(second / path.name)
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    pictures = [path.name for path in first.glob("*.png")]
    assert [name for name in pictures if (first / name).read_bytes() != (second / name).read_bytes()] == []


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


@pytest.mark.parametrize("kind", ["gan", "transfer", "edm", "di", "one-step", "hybrid", "stylegan3", "r3gan"])
def test_a_killed_run_goes_on_as_if_it_had_never_been_killed(files: dict[str, str], tmp_path: Path, kind: str) -> None:
    """Killed in step 6 of 8 and, gone on with, in step 7: weights, averages, moments, p, statistics, metrics are the
    same bits as without."""
    arguments = commands(files)[kind]
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    killed_run(tmp_path / "killed", 7, "--resume=latest")
    result = invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "continues from" in (folder / "log.txt").read_text()
    assert_same_run(undisturbed, folder)
    names = {name.split(".")[0] for name in last_state(folder).tensors}
    assert names >= {"model", "ema", "optimizer", "evaluation"}
    assert ("pl_mean" in names) == (kind in ("gan", "transfer"))
    assert ("real_signs" in names) == (kind in ("gan", "transfer", "hybrid", "stylegan3", "r3gan"))
    assert ("discriminator" in names) == (kind not in ("edm", "one-step"))
    assert ("fake_score" in names) == (kind in ("di", "one-step", "hybrid", "stylegan3", "r3gan"))
    assert ("augment_pipe" in names) == (kind in ("gan", "hybrid"))


# Which state, and with which options.


@pytest.fixture(scope="module")
def finished(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of eight steps with states at 16, 24 and 32 images; copy it before changing it."""
    return whole_run(tmp_path_factory.mktemp("finished"), *small(files))


def small(files: dict[str, str]) -> list[str]:
    return ["--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['gan']}", *SHORT, "--tick=0.008",
            "--metrics=none"]  # fmt: skip


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name))


def refused(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output + str(result.exception)
    return " ".join(result.output.split())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_three_states_are_kept_each_with_its_manifest(finished: Path) -> None:
    names = [path.name for path in sorted(finished.glob("training-state-*"))]
    stems = [f"training-state-{nimg:09d}" for nimg in (16, 24, 32)]
    assert names == [stem + suffix for stem in stems for suffix in (".json", ".safetensors")]
    manifest = json.loads((finished / f"{stems[-1]}.json").read_text())
    assert manifest["bytes"] == (finished / manifest["file"]).stat().st_size
    assert manifest["versions"]["torch"] == torch.__version__
    assert len(manifest["config_sha256"]) == len(manifest["sha256"]) == 64


def damage_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "bytes, not"),
        (damage_file, "its SHA-256 is"),
        (lambda path: statefile.manifest_path(path).write_text("{"), ".json: found contents that cannot be read"),
        (lambda path: statefile.manifest_path(path).write_text('{"format": 99}'), "its format is 99"),
    ],
    ids=["truncated", "one bit", "manifest", "format"],
)
def test_a_damaged_state_is_passed_over_and_the_run_says_so(run: Path, finished: Path, harm: Any, reason: str) -> None:
    newest = statefile.complete_states(run)[-1]
    harm(newest)
    result = invoke(f"--resume={run}")
    assert result.exit_code == 0, result.output
    said = " ".join((run / "log.txt").read_text().split())
    assert f"{newest}: damaged (" in said
    assert reason in said
    assert f"continues from {run / 'training-state-000000024.safetensors'}" in said
    assert_same_run(finished, run)


def test_a_state_without_a_manifest_was_never_finished(run: Path, finished: Path) -> None:
    newest = statefile.complete_states(run)[-1]
    statefile.manifest_path(newest).unlink()
    assert invoke(f"--resume={run}").exit_code == 0
    assert_same_run(finished, run)


def test_where_no_state_is_intact_that_is_said(run: Path) -> None:
    for path in statefile.complete_states(run):
        truncate(path)
    output = refused(f"--resume={run}")
    assert "holds no intact training state" in output
    assert output.count("damaged") == 3


def test_a_damaged_state_asked_for_by_name_is_refused(run: Path) -> None:
    path = statefile.complete_states(run)[0]
    truncate(path)
    assert "pass its folder to use the one before" in refused(f"--resume={path}")


def test_a_run_goes_on_from_a_state_by_name(run: Path, finished: Path) -> None:
    assert invoke(f"--resume={statefile.complete_states(run)[0]}").exit_code == 0
    assert_same_run(finished, run)


def test_a_training_state_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training-state-000000001.safetensors"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    statefile.manifest_path(path).write_text(
        json.dumps({"format": 1, "bytes": 13, "sha256": sha256_of_file(path)})
    )
    assert "cannot be read ('config_sha256'" in refused(f"--resume={path}").replace("KeyError: ", "")


def test_a_training_state_is_no_network_and_says_what_is(finished: Path) -> None:
    state = statefile.complete_states(finished)[-1]
    with pytest.raises(UserError, match=r"a training state, from which a run goes on\. Pass a network-snapshot-\*"):
        load_generator(state)


def test_latest_is_the_run_of_the_highest_number_with_a_state(run: Path, tmp_path: Path) -> None:
    """By content: neither the clock, nor links, nor a folder that cannot be read change it."""
    older = Path(shutil.copytree(run, run.parent / "00007-older"))
    run = run.rename(run.parent / "00012-newer")
    for path in run.glob("training-state-*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"written": 1.0}))
    (run.parent / "00013-none").mkdir()
    (run.parent / "00014-link").symlink_to(older)
    (run.parent / "00015-no-folder").write_text("")
    result = invoke("--resume=latest", f"--outdir={run.parent}", "--kimg=0.04")
    assert result.exit_code == 0, result.output
    assert last_state(run).values["state"]["cur_nimg"] == 40
    assert last_state(older).values["state"]["cur_nimg"] == 32
    assert "no run in --outdir=" in refused("--resume=latest", f"--outdir={tmp_path / 'none'}")


def test_a_longer_run_equals_one_that_was_longer_from_the_start(run: Path, files: dict[str, str]) -> None:
    assert invoke(f"--resume={run}", "--kimg=0.048").exit_code == 0
    whole = whole_run(run.parent.parent / "whole", *small(files), "--kimg=0.048")
    a, b = last_state(whole).tensors, last_state(run).tensors
    assert [name for name in a if not same_bits(a[name], b[name])] == []
    assert json.loads((run / "training_options.json").read_text())["kimg"] == 0.048


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch=8", "--batch=8 was 4"),
        ("--lr=0.5", "--lr=0.5 was 1e-05"),
        ("--seed=3", "--seed=3 was 0"),
        ("--divergence=sid", "--divergence=sid was ikl"),
        ("--teacher=other.pkl", "--teacher=other.pkl was"),
        ("--tick=3", "--tick=3 was 0.008"),
        ("--freeze=mapping,b4", "--freeze=mapping,b4 was none"),
        ("--clip=true", "--clip=true was false"),
        ("--fake-lr=0.1", "--fake-lr=0.1 was not given"),
        ("--kind=edm", "--kind=edm was di"),
    ],
)
def test_an_option_that_must_stay_is_named_and_refused(finished: Path, option: str, message: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    output = refused(f"--resume={finished}", option)
    assert message in output
    assert "may change: --outdir, --data, --device" in output
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_all_differing_options_are_named_at_once_and_equal_ones_pass(finished: Path) -> None:
    output = refused(f"--resume={finished}", "--seed=1", "--ema=3", "--batch=4", "--kimg=9")
    assert "--seed=1 was 0; --ema=3 was 500. Leave them out" in output


def test_options_that_may_change_do_change(finished: Path) -> None:
    changed = {"device": "cpu", "kimg": 0.5, "snap": 7, "state": 3, "snap_format": "safetensors", "batch_gpu": 2,
               "max_skips": 4, "workers": 3, "metric_samples": 40}  # fmt: skip
    options = [f"--{name.replace('_', '-')}={value}" for name, value in changed.items()]
    result = invoke(f"--resume={finished}", *options, "--metrics=is50k", "--on-divergence=best", "--dry-run")
    assert result.exit_code == 0, result.output
    config = json.loads(result.output)
    assert {name: config[name] for name in changed} == changed
    assert (config["metrics"], config["on_divergence"]) == (["is50k"], "best")
    others = {"outdir", "data", "gpus", "metrics", "detector_file", "on_divergence", "fsdp", "heartbeat",
              "track"}
    assert changed.keys() | others == set(MAY_CHANGE)


def test_another_teacher_or_data_set_under_the_same_name_is_refused(
    files: dict[str, str], run: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.pkl"
    shutil.copy(files["teacher"], teacher)
    folder = whole_run(tmp_path / "taught", *small({**files, "teacher": str(teacher)}))
    save_teacher(teacher, seed=5)
    assert "--teacher is not what the run began with" in refused(f"--resume={folder}", "--kimg=1")
    data = save_dataset(tmp_path / "data")
    edm = ["--kind=edm", f"--data={data}", *SHORT, *TINY_EDM, "--kimg=0.004", "--metrics=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stylegan_di.training.evaluation.GRID_COLUMNS", 1)
        folder = whole_run(tmp_path / "edm", *edm)
        moved = data.rename(tmp_path / "moved")
        assert f"--data={data}" not in refused(f"--resume={folder}", f"--data={tmp_path / 'none'}")
        result = invoke(f"--resume={tmp_path / 'edm'}", f"--data={moved}", "--kimg=0.008")  # the folder of its folder
    assert result.exit_code == 0, result.output
    assert last_state(folder).values["state"]["cur_nimg"] == 8
    picture = next(moved.glob("0/*.png"))
    picture.write_bytes(picture.read_bytes() + b" ")
    assert "--data is not what the run began with: then 24 images" in refused(f"--resume={folder}", "--kimg=1")


def test_only_a_gan_trains_on_from_a_file(files: dict[str, str], tmp_path: Path) -> None:
    output = refused("--kind=di", f"--teacher={files['teacher']}", f"--resume={files['gan']}")
    assert "belongs to --kind=gan" in output
    assert "--kind is missing" in refused("--seed=1")
    assert "--resume=lastest: there is no such file or folder; did you mean latest?" in refused("--resume=lastest")
    assert "holds no training state, nor a run's folder that does" in refused(f"--resume={tmp_path}")
    assert "there is no such file" in refused(f"--resume={tmp_path / 'training-state-000000001.safetensors'}")


def test_two_processes_cannot_go_on_with_one_run(run: Path) -> None:
    with RunFolder.reopen(run, TrainConfig("di", teacher="x")):
        assert "another process is training in this folder" in refused(f"--resume={run}")
    assert invoke(f"--resume={run}").exit_code == 0


def test_what_a_killed_save_left_behind_is_removed(run: Path) -> None:
    left = [run / ".training-state-000000040.safetensors.0123.tmp", run / "training-state-000000040.safetensors"]
    for path in left:
        path.write_bytes(b"half")
    assert invoke(f"--resume={run}", "--kimg=0.048").exit_code == 0
    assert not left[0].exists()
    assert statefile.damage(left[1]) is None


def test_other_versions_are_told(run: Path) -> None:
    manifest = statefile.manifest_path(statefile.complete_states(run)[-1])
    content = json.loads(manifest.read_text())
    content["versions"]["torch"] = "1.0"
    manifest.write_text(json.dumps(content))
    assert invoke(f"--resume={run}").exit_code == 0
    assert f"torch 1.0, now {torch.__version__}" in (run / "log.txt").read_text()


def test_another_number_of_threads_is_told(run: Path) -> None:
    manifest = statefile.manifest_path(statefile.complete_states(run)[-1])
    content = json.loads(manifest.read_text())
    threads = torch.get_num_threads()
    assert content["threads"] == threads
    manifest.write_text(json.dumps(content | {"threads": threads + 1}))
    assert invoke(f"--resume={run}", "--kimg=0.04").exit_code == 0
    said = f"so sums may round differently: {threads + 1}, now {threads} (OMP_NUM_THREADS)"
    assert said in (run / "log.txt").read_text()
    assert invoke(f"--resume={run}", "--kimg=0.048").exit_code == 0
    assert (run / "log.txt").read_text().count("the number of threads has changed") == 1


def test_states_of_half_precision_and_of_any_shape_come_back(tmp_path: Path) -> None:
    path = tmp_path / "training-state-000000007.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): torch.randint(0, 2, [3, 5], generator=generator).to(dtype) for dtype in statefile.DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "turned": torch.arange(6.0).view(2, 3).T}
    # Strides as of what processes have gathered.
    tensors |= {"empty vector": torch.zeros(0).as_strided([0], [0]), "one number": torch.tensor(3.5).expand(1)}
    tensors |= {"inner": torch.arange(9.0).view(3, 3)[1]}
    statefile.save_state(path, tensors, {"a": [1, None]}, {"kind": "di"}, "0" * 64)
    assert statefile.damage(path) is None
    state = statefile.load_state(path)
    assert (state.values, state.config) == ({"a": [1, None]}, {"kind": "di"})
    torch.testing.assert_close(state.tensors, tensors, rtol=0, atol=0)
