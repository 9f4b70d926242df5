"""The tools' page names every tool, the migration page every option of the lineage; options that are named exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from stylegan_di.commands.train import NVLABS
from tools.dev import options_page

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
NO_SCRIPTS = {"__init__.py"}


def test_every_tool_is_on_the_page() -> None:
    tools = {path.name for path in (ROOT / "tools").rglob("*.*") if path.suffix in (".py", ".sh")} - NO_SCRIPTS
    assert tools == set(re.findall(r"`(?:dev/)?(\w+\.(?:py|sh))`", PAGE.partition("    python")[0])) - {
        "train.py", "generate.py", "calc_metrics.py",
    }  # fmt: skip


def test_the_page_of_options_is_the_declarations() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == options_page.page(), "write it anew: python tools/dev/options_page.py"


def test_every_tool_finds_the_project_from_wherever_it_is_run() -> None:
    for path in (ROOT / "tools").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        own = re.search(r"^(from|import) (stylegan_di|tools|train|generate)\b", text, re.MULTILINE)
        if own and "__main__" in text:
            assert 0 < text.find("sys.path.insert(0, ") < own.start(), path.name


# The lineage's options, by the page's heading: each must be named in its section, beside ours or as missing.
LINEAGE = {
    "stylegan2-ada-pytorch: `train.py`": (
        "outdir gpus snap metrics seed dry-run data cond subset mirror cfg gamma kimg batch aug p target augpipe "
        "resume freezed fp32 nhwc nobench allow-tf32 workers"
    ),
    "stylegan3: `train.py`": (
        "cfg outdir data gpus batch gamma cond mirror aug resume freezed p target batch-gpu cbase cmax glr dlr "
        "map-depth mbstd-group desc metrics kimg tick snap seed fp32 nobench workers"
    ),
    "edm: `train.py`": (
        "outdir data cond arch precond duration batch batch-gpu cbase cres lr ema dropout augment xflip fp16 ls bench "
        "cache workers desc nosubdir tick snap dump seed transfer resume dry-run"
    ),
    "`generate.py` (stylegan2-ada)": "network seeds trunc class noise-mode projected-w outdir translate rotate",
    "`generate.py` (edm)": (
        "network outdir seeds subdirs class batch steps sigma_min sigma_max rho S_churn S_min S_max S_noise solver "
        "disc schedule scaling"
    ),
    "`calc_metrics.py`": "network metrics data mirror gpus verbose images ref num seed batch dest",
    "`dataset_tool.py`": "source dest max-images resize-filter transform width height resolution",
    "`projector.py`": (
        "network target num-steps seed save-video outdir rows cols styles trunc noise-mode seeds shuffle-seed grid "
        "num-keyframes w-frames output"
    ),
}
MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in MIGRATION.split("\n## ")[1:]}
SCRIPTS = {
    "stylegan2": ["train"], "stylegan3": ["train"], "edm: ": ["train"], "`generate": ["generate"],
    "`calc_metrics": ["calc_metrics", "tools.make_reference"], "`dataset_tool": ["tools.dataset_tool"],
    "`projector": ["tools.projector", "tools.style_mixing", "tools.interpolate"],
}  # fmt: skip


def section(heading: str) -> str:
    (found,) = (text for title, text in SECTIONS.items() if title.startswith(heading))
    return found


def options_in(text: str) -> set[str]:
    """Options in the code spans of a text: `--a --b` and `--c=3`."""
    return {name for span in re.findall(r"`([^`]+)`", text) for name in re.findall(r"--([\w-]+)", span)}


def options_of(*modules: str) -> set[str]:
    """What the programs accept, without the dashes."""
    commands = (importlib.import_module(module).main for module in modules)
    return {name.lstrip("-") for c in commands for p in c.params for name in [*p.opts, *p.secondary_opts]}


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the rows of a section's table; \\| is no border."""
    lines = re.findall(r"^\| (.*) \|$", section(heading), flags=re.MULTILINE)
    return [re.split(r" \| ?", line) for line in lines if not line.startswith("theirs")]


@pytest.mark.parametrize("heading", LINEAGE)
def test_every_option_of_the_lineage_has_its_row(heading: str) -> None:
    theirs = {name for row in rows_of(heading) for name in options_in(row[0])}
    if "`-n`" in section(heading):
        theirs.add("dry-run")
    assert set(LINEAGE[heading].split()) - theirs == set()


def test_what_is_said_of_options_of_the_lineage_is_on_the_page_too() -> None:
    pages = "".join(section(heading) for heading in ("stylegan3: `train", "edm: ", "Not here"))
    assert not {name.lstrip("-") for name in NVLABS} & options_of("train")
    assert {name for name in NVLABS if f"`{name}" not in pages} == set()


@pytest.mark.parametrize("heading", LINEAGE)
def test_what_the_migration_page_says_of_ours_exists(heading: str) -> None:
    (modules,) = (names for start, names in SCRIPTS.items() if heading.startswith(start))
    accepted = options_of(*modules)
    for theirs, ours, *_ in rows_of(heading):
        if ours.startswith(("not here", "not needed")):
            assert not options_in(theirs) & accepted, theirs
        else:
            named = options_in(ours) | (options_in(theirs) if "same" in ours else set())
            assert named <= accepted, (theirs, named - accepted)


def test_what_is_not_here_is_refused_by_every_program() -> None:
    missing = {name for row in rows_of("Not here") for name in options_in(row[0])}
    assert len(missing) >= 8
    assert not missing & options_of("train", "generate", "calc_metrics")
