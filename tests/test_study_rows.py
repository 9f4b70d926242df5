"""tools/dev/rows.py: which rows are run, in which order, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stylegan_di.dnnlib.util import UserError
from stylegan_di.runs import statefile
from tests.test_resume import SHORT, whole_run
from tests.tiny import save_files
from tools.dev import curves, rows, study
from tools.dev.rows import Place, Row

LINES = {
    "gan": Row(("generate.py --network=x --outdir={out}",), seeded=False),
    "refined": Row(("train.py --gan-pkl={row:gan} --seed={seed} --outdir={out}",)),
    "both": Row(("compare.py {row:refined} {row:gan} --device={device}",)),
}


def test_what_a_row_needs_runs_before_it_and_nothing_twice() -> None:
    assert LINES["both"].needs() == {"refined", "gan"}
    wanted = rows.pending(LINES, ["both", "refined"], [1, 2], [])
    assert wanted == [("gan", 0), ("refined", 1), ("both", 1), ("refined", 2), ("both", 2)]
    known = [{"row": "gan", "seed": 0}, {"row": "refined", "seed": 2}]
    assert rows.pending(LINES, ["both"], [2], known) == [("both", 2)]


def test_the_network_of_another_row_is_its_newest_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kimg in ("000010", "000020"):
        path = tmp_path / "gan-0" / "00000-run" / f"network-snapshot-{kimg}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(study, "ROWS", LINES)
    place = Place("study", tmp_path, tmp_path / "data", "cpu", True)
    line = place.filled(LINES["refined"].commands[0], tmp_path / "own", 3)
    assert line == f"train.py --gan-pkl={path} --seed=3 --outdir={tmp_path}/own"


def test_a_row_is_judged_and_kept_and_one_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = "--metrics=texture --data=fashion-16-test.zip --num=64"
    found = {
        "shipped": Row((), "fashion-gan.pkl", "--metrics=texture --num=64", seeded=False),
        "wrong": Row(("train.py --kind=no",), metrics=judge),
    }
    monkeypatch.setattr(study, "ROWS", found)
    place = Place("study", tmp_path, tmp_path, "cpu", True)
    result = rows.measured(place, "shipped", 0)
    assert result["row"] == "shipped"
    assert 10 < result["texture_detail"] < 20
    with pytest.raises(UserError, match="--kind"):
        rows.measured(place, "wrong", 1)


def test_rows_that_are_there_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(rows, "built", lambda device: f"kernels for {device}")
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps({"row": "ikl", "seed": 1}) + "\n")
    arguments = ["study", "--rows=ikl", "--seeds=1", f"--results={results}", f"--outdir={tmp_path}"]
    done = CliRunner().invoke(rows.main, arguments)
    assert (done.exit_code, done.output) == (0, "kernels for cpu\n")
    assert CliRunner().invoke(rows.main, [*arguments, "--rows=nothing"]).exit_code == 2
    assert CliRunner().invoke(rows.main, ["nothing"]).exit_code == 2


def test_a_study_is_shown_by_the_beginning_of_its_rows_with_the_columns_that_they_have(tmp_path: Path) -> None:
    kept = [{"row": "ikl", "seed": seed, "seconds": 9, "fd": seed} for seed in (1, 2)]
    kept.append({"row": "sid", "seed": 1, "seconds": 9, "kid": 0.5})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in kept))
    command = study.table_command("", "study", ["sid", "ikl"], {"FD": "fd", "KID": "kid"})
    shown = CliRunner().invoke(command, [f"--results={tmp_path / 'results.jsonl'}", "--rows=ik"])
    assert shown.output == "| row | seeds | s | FD |\n|---|---|---|---|\n| ikl | 1, 2 | 9 +- 0 | 1.5 +- 0.5 |\n"
    refused = CliRunner().invoke(command, [f"--results={tmp_path / 'results.jsonl'}", "--rows=none"])
    assert (refused.exit_code, "has no row of this study that --rows=none begins" in refused.output) == (2, True)


def test_numbers_of_the_files_that_a_row_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "called", lambda line: (tmp_path / "row-1" / "run" / "result.json").write_text(line))
    left = '{{"seconds": 9.5, "before": {{"fd": 3.5}}, "best_kimg": 8, "old": "gan.pkl"}}'
    monkeypatch.setattr(study, "ROWS", {"row": Row((left,), network="", figures=("{out}/*/result.json",))})
    monkeypatch.setattr(rows.shutil, "rmtree", lambda *arguments, **options: None)
    (tmp_path / "row-1" / "run").mkdir(parents=True)
    result = rows.measured(Place("study", tmp_path, tmp_path, "cpu", False), "row", 1)
    assert result["before_fd"] == 3.5
    assert result["seconds"] < 9.5
    assert "old" not in result


@pytest.mark.usefixtures("small_grids")
def test_the_states_of_a_run_are_points_of_a_curve(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    own = [f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", "--metrics=none", "--tick=0.008"]
    folder = whole_run(tmp_path / "row-1", "--kind=di", *own, *SHORT)
    kept = statefile.complete_states(folder)
    found = list(curves.states(tmp_path / "row-1"))
    assert [share for share, _ in found] == [0.5, 0.75]
    for path, (_, generator) in zip(kept, found, strict=False):
        tensors = statefile.load_state(path).tensors
        for name, value in generator.state_dict().items():
            assert value.equal(tensors[f"ema.{name}"])
    with pytest.raises(UserError, match="there is no snapshot"):
        list(curves.states(tmp_path))
