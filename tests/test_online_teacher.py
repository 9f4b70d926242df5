"""A teacher that is trained beside the student (--teacher=online), and a denoiser that starts from another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stylegan_di.runs import statefile
from stylegan_di.snapshots.checkpoint import load_denoiser
from tests.test_resume import SHORT, TINY_EDM, assert_same_run, invoke, killed_run, last_state, whole_run
from tests.tiny import save_files, save_teacher

pytestmark = pytest.mark.usefixtures("small_grids")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    own = save_files(folder)
    own["uncond"] = str(save_teacher(folder / "uncond.pkl", label_dim=0))
    return own


def online(files: dict[str, str], *extra: str) -> list[str]:
    return ["--kind=di", "--teacher=online", f"--gan-pkl={files['gan']}", f"--data={files['data']}", "--cond=true",
            "--metrics=none", "--tick=0.016", *TINY_EDM, "--augment=0", *SHORT, *extra]  # fmt: skip


def test_it_goes_on_exactly_and_is_handed_out(files: dict[str, str], tmp_path: Path) -> None:
    arguments = online(files, "--teacher-warmup=0.02", "--teacher-lr=2e-3", "--label-dropout=0.2", "--workers=0")
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)  # goes on in the warm-up, from 16 images
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}").exit_code == 0
    assert_same_run(undisturbed, folder)
    state = last_state(folder).tensors
    handed_out = load_denoiser(folder / "teacher.pkl")
    for name, value in handed_out.state_dict().items():
        assert torch.equal(value, state[f"teacher_ema.{name}"]), name


def test_the_student_waits_for_the_warm_up_and_the_fake_score_starts_as_the_teacher(
    files: dict[str, str], tmp_path: Path
) -> None:
    """The warm-up ends at 16 images; with a learning rate of almost 0 the fake score then stays at its start."""
    folder = whole_run(tmp_path / "runs", *online(files, "--teacher-warmup=0.016", "--lr=1e-30", "--teacher-lr=1e-2",
                                                  "--tick=0.004", "--kimg=0.02"))  # fmt: skip
    states = [statefile.load_state(path) for path in statefile.complete_states(folder)]
    before, after = (next(s for s in states if s.values["state"]["cur_nimg"] == nimg) for nimg in (16, 20))
    assert fake_score_differs(before)
    assert not fake_score_differs(after)
    assert not any(name.startswith("optimizer.model") for name in before.tensors)
    assert any(name.startswith("optimizer.model") for name in after.tensors)


def fake_score_differs(state: statefile.State) -> list[str]:
    """The weights of the fake score that are not the teacher's."""
    own = {name.removeprefix("fake_score."): value for name, value in state.tensors.items() if name.startswith("fake_")}
    assert own
    gaps = {name: float((value - state.tensors[f"teacher_ema.{name}"]).abs().max()) for name, value in own.items()}
    return [name for name, gap in gaps.items() if gap > 1e-20]


def test_what_does_not_go_with_it(files: dict[str, str]) -> None:
    gan, data = f"--gan-pkl={files['gan']}", f"--data={files['data']}"
    for given, told in [
        ([data], "--teacher=online needs --gan-pkl"),
        ([gan], "--teacher=online needs --data"),
        ([gan, "--data=teacher:8"], "--teacher=online learns from real images: --data=teacher:8"),
        ([gan, data, "--match=resize"], "--match=resize does not go with --teacher=online"),
        ([gan, data, "--kimg=1", "--teacher-warmup=1"], "--teacher-warmup=1 leaves none of --kimg=1"),
    ]:
        result = invoke("--kind=di", "--teacher=online", *given)
        assert (result.exit_code, told in result.output) == (2, True), result.output
    result = invoke("--kind=di", f"--teacher={files['teacher']}", gan, "--model-channels=8")
    assert "--model-channels=8 has no effect without --teacher=online" in result.output


# --transfer.


def test_a_denoiser_starts_from_another(files: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--kind=edm", f"--data={files['data']}", "--cond=true", f"--transfer={files['teacher']}",
                 "--augment=0", "--metrics=none", "--tick=0.016", *SHORT]  # fmt: skip
    unmoved = whole_run(tmp_path / "unmoved", *arguments, "--lr=1e-30")
    start = load_denoiser(files["teacher"]).state_dict()
    for name, value in load_denoiser(unmoved / "network-snapshot-000000.pkl").state_dict().items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-20)
    whole = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}").exit_code == 0
    assert_same_run(whole, folder)


def test_what_does_not_fit_the_network_is_refused(files: dict[str, str]) -> None:
    start = ["--kind=edm", f"--data={files['data']}", "--cond=true", *SHORT, "--metrics=none"]
    own = f"--transfer={files['teacher']}"
    for given, told in [
        ([own], "is not told of augmentations; give --augment=0"),
        ([own, "--model-channels=8"], "--model-channels=8 has no effect with --transfer"),
        ([f"--transfer={files['uncond']}", "--augment=0"], "the network to start from's"),
        ([f"--transfer={files['gan']}", "--augment=0"], "gan.pkl"),
    ]:
        result = invoke(*start, *given)
        assert (result.exit_code, told in result.output) == (2, True), result.output
