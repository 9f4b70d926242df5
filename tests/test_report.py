"""report.html: what it says of a run, that it needs nothing else, and that it works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_di.config import TrainConfig
from stylegan_di.images import save_grid
from stylegan_di.journal.report import Report, contents, data_url, page
from tests.browser import CHROMIUM, browser
from tests.test_resume import commands, whole_run
from tests.tiny import save_files

BEFORE, AFTER = [30.0, 12.5, 14.0], [0.2, 0.4, 0.5]  # of the metric, and of recall


def make_run(
    outdir: Path, name: str = "00003-gan-di", fd: list[float] = BEFORE, recall: list[float] = AFTER, **given: Any
) -> Path:
    """A folder as a run leaves it: figures before training and after 2 and 4 kimg, statistics of four ticks."""
    folder = outdir / name
    folder.mkdir(parents=True)
    made: dict[str, Any] = dict(gan_pkl="gan.pkl", teacher="teacher.pkl", metrics=("fd_fashion", "pr_fashion"))
    config = TrainConfig("di", kimg=4.0, **(made | given))
    (folder / "training_options.json").write_text(json.dumps(asdict(config)))
    snapshots = ["", "network-snapshot-000002.pkl", "network-snapshot-000004.pkl"]
    for index, snapshot in enumerate(snapshots[: len(fd)]):
        figures = {
            "fd_fashion": {"fd_fashion": fd[index]},
            "pr_fashion": {"pr_fashion_precision": 0.8, "pr_fashion_recall": recall[index]},
        }
        for metric in config.metrics:
            with open(folder / f"metric-{metric}.jsonl", "a") as file:
                file.write(json.dumps({"results": figures[metric], "snapshot_pkl": snapshot}) + "\n")
        grid = torch.full([20, 1, 8, 8], 40 * (index + 1), dtype=torch.uint8)
        save_grid(grid, folder / ("fakes_init.png" if not snapshot else f"fakes{2 * index:06d}.png"), 10)
    with open(folder / "stats.jsonl", "w") as file:
        for tick in range(1, 5):
            means = {
                "Progress/kimg": tick, "Timing/sec_per_kimg": 8.0, "Timing/total_sec": 60 * tick,
                "Loss/fake_score": 10 / tick, "Loss/fake_score/sigma<0.2": 3 / tick,
                "Loss/fake_score/sigma0.2-1": 2 / tick, "Loss/fake_score/sigma>1": 1 / tick, "Gradient/student": 5.0,
                "Resources/cpu_mem_gb": 0.5, "Resources/peak_gpu_mem_gb": 0.0,
            }  # fmt: skip
            line = {name: {"num": 1, "mean": mean, "std": 0.0} for name, mean in means.items()}
            file.write(json.dumps(line | {"timestamp": 1}) + "\n")
        file.write('{"Progress/ki')  # as a crash leaves it
    return folder


FELL = "fd_fashion fell from 30 to 14 (its best was 12.5, at kimg 2), pr_fashion_recall rose from 0.2 to 0.5."
ROSE = "Worse after 4 kimg: fd_fashion rose from 10 to 11"
VERDICTS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "better": ({}, "", "good", f"Better after 4 kimg: {FELL}"),
    "ended early": ({}, "the training diverged.", "bad",
                    f"Better after 4 kimg: {FELL} The run ended early: the training diverged."),
    "worse": (dict(fd=[10.0, 20.0, 11.0], metrics=("fd_fashion",)), "complete", "bad",
              f"{ROSE}."),
    "worse at the end": (dict(fd=[10.0, 8.0, 11.0], metrics=("fd_fashion",)), "complete", "bad",
                         f"{ROSE} (its best was 8, at kimg 2). Take network-best."),
    "the same": (dict(fd=[10.0, 10.0], metrics=("fd_fashion",)), "", "neutral",
                 "Measured after 2 kimg: fd_fashion stayed at 10."),
    "higher is better": (dict(recall=[0.2, 0.4, 0.5], metrics=("pr_fashion",)), "", "neutral",
                         "Measured after 4 kimg: pr_fashion_precision stayed at 0.8."),
    "no number": (dict(fd=[10.0, float("nan")], metrics=("fd_fashion",)), "", "bad",
                  "Worse after 2 kimg: fd_fashion went from 10 to nan."),
    "begun": (dict(fd=[10.0]), "", "neutral", "Training has begun; fd_fashion is measured at each snapshot."),
    "no metrics": (dict(metrics=()), "", "neutral",
                   "No metric was measured (--metrics=none): the pictures are all there is to judge by."),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict(case: str, tmp_path: Path) -> None:
    given, ending, tone, verdict = VERDICTS[case]
    found = contents(make_run(tmp_path, **given), ending)
    assert (found["tone"], found["verdict"]) == (tone, verdict)


def test_curves_are_those_of_the_run(tmp_path: Path) -> None:
    charts = {chart["title"]: chart for chart in contents(make_run(tmp_path))["charts"]}
    assert list(charts) == ["fd_fashion", "pr_fashion", "Loss by noise level: fake score", "Gradient norms", "Losses",
                            "Images a second", "Memory"]  # fmt: skip
    assert charts["fd_fashion"]["kimg"] == [0, 2, 4]
    assert charts["fd_fashion"]["curves"] == [{"name": "fd_fashion", "values": BEFORE}]
    assert charts["pr_fashion"]["curves"][1] == {"name": "pr_fashion_recall", "values": AFTER}
    levels = charts["Loss by noise level: fake score"]
    assert (levels["kimg"], levels["log"]) == ([1, 2, 3, 4], True)
    assert [curve["name"] for curve in levels["curves"]] == ["sigma < 0.2", "sigma 0.2 to 1", "sigma > 1"]
    assert levels["curves"][0]["values"] == [3, 1.5, 1, 0.75]
    assert charts["Images a second"]["curves"][0]["values"] == [125] * 4
    assert [curve["name"] for curve in charts["Memory"]["curves"]] == ["main memory"]  # none of a GPU that is not there


def test_a_long_run_has_a_page_of_bounded_size(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    lines = [{"Progress/kimg": {"mean": tick}, "Loss/loss": {"mean": tick}} for tick in range(2001)]
    (folder / "stats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (chart,) = (chart for chart in contents(folder)["charts"] if chart["title"] == "Losses")
    assert len(chart["kimg"]) <= 801
    assert chart["kimg"][-1] == chart["curves"][0]["values"][-1] == 2000
    for kimg in range(6, 106):
        save_grid(torch.zeros([20, 1, 8, 8], dtype=torch.uint8), folder / f"fakes{kimg:06d}.png", 10)
    moments = [moment["kimg"] for moment in contents(folder)["pictures"]]
    assert len(moments) == 9
    assert (moments[0], moments[1], moments[-1]) == (0, 2, 105)


def test_a_metric_that_was_asked_for_later_has_no_value_before(tmp_path: Path) -> None:
    """And lines that somebody else wrote do no harm."""
    folder = make_run(tmp_path, metrics=("fd_fashion",))
    path = folder / "metric-fd_fashion.jsonl"
    lines = [json.dumps({"results": results, "snapshot_pkl": "network-snapshot-000001.pkl"}) for results in ("x", {})]
    path.write_text("\n".join(lines + path.read_text().splitlines()[1:]))
    with open(folder / "stats.jsonl", "a") as file:
        file.write('\n{"Loss/x": 3, "Loss/y": {"mean": "z"}}\n')
    found = contents(folder)
    assert found["figures"] == [{"name": "fd_fashion", "before": None, "now": 14.0}]
    assert found["verdict"] == (
        "Worse after 4 kimg: fd_fashion rose from 12.5 to 14 since kimg 2, where it was measured first."
    )


def test_options_that_were_given_come_first(tmp_path: Path) -> None:
    options = {row["name"]: row for row in contents(make_run(tmp_path, lr=2e-3))["options"]}
    assert (options["--lr"]["value"], options["--lr"]["own"]) == ("0.002", True)
    assert (options["--batch"]["value"], options["--batch"]["own"]) == ("64", True)  # --kind=di's default is 128
    assert (options["--metrics"]["value"], options["--seed"]["own"]) == ("fd_fashion,pr_fashion", False)
    assert options["--fake-lr"]["help"].startswith("Learning rate of the fake score")
    assert "--cbase" not in options  # which --kind=gan alone has


def test_the_last_run_of_the_same_gan_is_compared_with(tmp_path: Path) -> None:
    make_run(tmp_path, "00000-gan-di", lr=1e-4)
    make_run(tmp_path, "00001-gan-di", fd=[31.0, 20.0, 18.0], lr=1e-3, seed=4, desc="x")
    make_run(tmp_path, "00002-other-di", gan_pkl="other.pkl", lr=3e-3)
    broken = make_run(tmp_path, "00003-gan-di", lr=5e-3)
    (broken / "training_options.json").write_text("{")
    folder = make_run(tmp_path, "00004-gan-di", lr=2e-3)
    make_run(tmp_path, "00005-gan-di")
    found = contents(folder)["previous"]
    assert found["name"] == "00001-gan-di"
    assert found["changes"] == [
        {"name": "--lr", "then": "0.001", "now": "0.002"},
        {"name": "--seed", "then": "4", "now": "0"},
    ]
    assert found["figures"][0] == {"name": "fd_fashion", "then": 18.0, "now": 14.0}
    assert contents(tmp_path / "00000-gan-di")["previous"] is None


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_pictures_are_kept_as_they_are_unless_they_are_large(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, [40, 3, 16, 16], dtype=torch.uint8)
    save_grid(pixels, tmp_path / "small.png", 10)
    with Image.open(tmp_path / "small.png") as small:
        assert small.size == (160, 64)
        assert decoded(data_url(tmp_path / "small.png")).tobytes() == small.tobytes()
    Image.new("L", (2600, 2000), 90).save(tmp_path / "large.png")
    assert decoded(data_url(tmp_path / "large.png")).size == (1280, 640)


def test_nothing_on_the_page_leads_elsewhere(tmp_path: Path) -> None:
    """And no text of a run can end the element that it stands in."""
    text = page(contents(make_run(tmp_path, teacher="</script><script>alert(1)</script>.pkl")))
    assert "alert(1)</script>" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(""", text)
    assert "{{" not in text.partition('id="data"')[0]


def test_a_run_leaves_its_page(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    folder = whole_run(tmp_path / "runs", *commands(save_files(tmp_path / "files"))["di"])
    text = (folder / "report.html").read_text()
    found = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert (found["state"], found["name"]) == ("complete", folder.name)
    assert re.match(r"(Better|Worse) after 0\.\d+ kimg: fd_fashion (fell|rose) from", found["verdict"])
    assert [moment["start"] for moment in found["pictures"]] == [True, False]
    assert {"fd_fashion", "Loss by noise level: fake score", "Gradient norms", "Memory", "Images a second"} <= {
        chart["title"] for chart in found["charts"]
    }


def test_the_page_is_refreshed_at_snapshots(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    report = Report(folder)
    for refresh, state in ((report.snapshot, "running"), (lambda: report.close("stopped by SIGTERM"), "ended early")):
        refresh()
        assert f'"state": "{state}"' in (folder / "report.html").read_text()


needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome is installed")


@needs_browser
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    """By the keyboard, on a phone, in the dark; without a message on the console or a request to anyone."""
    make_run(tmp_path, "00001-gan-di", lr=5e-3)
    folder = make_run(tmp_path)
    Report(folder).close("complete")
    with browser(tmp_path) as page:
        page.resize(390, 800, dark=True)
        page.open((folder / "report.html").as_uri())
        assert page.run("document.querySelector('h1').textContent") == f"Better after 4 kimg: {FELL}"
        assert page.run("document.querySelectorAll('canvas').length") == 7
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("[...document.querySelectorAll('section')].every((each) => !each.hidden)")
        assert page.run("document.getElementById('left-out').hidden")
        legend = page.run("document.querySelector('.u-legend').innerText")
        assert "14" in legend  # the newest value, as no pointer is on the chart
        changes = page.run("document.querySelector('.changes').innerText")
        assert changes.split() == ["option", "then", "now", "--lr", "0.005", "0.001"]
        newest = page.run("document.getElementById('after').src")
        page.press("Tab")
        page.press("Home")
        assert page.run("getComputedStyle(document.getElementById('before')).clipPath") == "inset(0px 100% 0px 0px)"
        page.press("Tab")
        page.press("ArrowLeft")
        assert page.run("document.getElementById('when').textContent") == "kimg 2"
        assert page.run("document.getElementById('after').src") != newest
        assert page.problems == []
        fetched = page.run("performance.getEntriesByType('resource').map((each) => each.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []


@needs_browser
def test_an_open_page_keeps_up_with_the_run(tmp_path: Path) -> None:
    """After a minute in which nobody has touched it."""
    folder = make_run(tmp_path)
    report = Report(folder)
    report.snapshot()
    with browser(tmp_path) as page:
        minute = "const wait = setTimeout, due = []; setTimeout = (f, ms) => ms < 60000 ? wait(f, ms) : due.push(f);"
        page.send("Page.addScriptToEvaluateOnNewDocument", source=minute)
        page.open((folder / "report.html").as_uri())
        assert page.run("document.getElementById('state').textContent") == "running"
        report.close("complete")
        page.run("document.getElementById('split').value = 20")
        page.run("document.getElementById('split').dispatchEvent(new Event('input'))")
        page.run("dispatchEvent(new Event('pointermove'))")
        page.run("due.shift()()")
        assert page.run("document.getElementById('state').textContent") == "running"
        page.run("wait(due.shift(), 100)")
        time.sleep(1)  # while it loads, it has no answers
        page.settle()
        assert page.run("document.getElementById('state').textContent") == "complete"
        assert page.run("document.querySelector('.stage').style.getPropertyValue('--at')") == "20%"
        assert page.run("due.length") == 0
        assert page.problems == []


@pytest.mark.parametrize(
    ("name", "found"),
    [("stats.jsonl", "1073741824 bytes; up to 33554432 are read"),
     ("metric-fd_fashion.jsonl", "far more bytes than a file of its size has"),
     ("fakes000002.png", "more than 89 million pixels"),
     ("fakes_init.png", "no picture that can be shown (UnidentifiedImageError")],
)  # fmt: skip
def test_what_would_take_too_much_memory_is_left_out_and_told(name: str, found: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    whole = contents(folder)
    if name == "stats.jsonl":
        with open(folder / name, "r+b") as file:
            file.truncate(1 << 30)  # sparse
    elif name.startswith("metric"):
        (folder / name).write_bytes(b"[" + b"[]," * 1_500_000 + b"[]]")
    elif name == "fakes_init.png":
        (folder / name).write_bytes(b"none")
    else:
        Image.new("1", (13_000, 13_000)).save(folder / name)
    page_of = contents(folder)
    (sentence,) = page_of["left_out"]
    assert sentence.startswith(f"{folder.name}/{name} is not on this page: {found}")
    assert whole["left_out"] == []
    kept = [moment["kimg"] for moment in page_of["pictures"]]
    assert kept == {"fakes000002.png": [0, 4], "fakes_init.png": []}.get(name, [0, 2, 4])
    titles = {chart["title"] for chart in page_of["charts"]}
    assert ("Losses" in titles, "fd_fashion" in titles) == (name != "stats.jsonl", not name.startswith("metric"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("fakes\u00b2.png", b"no number"), ("fakes_init.png", b"no picture"), ("stats.jsonl", b"[" * 200_000),
     ("stats.jsonl", b'{"Progress/kimg": {"mean": 1%s}}\n' % (b"0" * 400)),
     ("stats.jsonl", b'{"Progress/kimg": {"mean": NaN}}\n')],
)  # fmt: skip
def test_no_file_of_the_folder_ends_a_training(name: str, content: bytes, tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / name).write_bytes(content)
    Report(folder).snapshot()
    assert "<title>" in (folder / "report.html").read_text()
