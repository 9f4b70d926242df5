"""The model card of a network: what it is, what it was made from, under which terms, and how good it is.

It is filled from the provenance in the file and, where the file lies in a run's folder, from that run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stylegan_di import zoo
from stylegan_di.dnnlib.progress import counted
from stylegan_di.dnnlib.untrusted import read_json_file, untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.hub import HUB, NETWORK, parse
from stylegan_di.interfaces import Denoiser
from stylegan_di.snapshots.checkpoint import Snapshot, as_model
from stylegan_di.snapshots.inspection import is_whole
from stylegan_di.teachers.mixed import parse_teachers

METRIC = "metric/"  # what names of metrics in the provenance begin with
MAX_RESULT = 1 << 20  # bytes of result.json
MAX_TEXT = 2000  # characters of a text on the card
PICTURE = "before_after.png"
TAGS = {"di": ("gan", "diff-instruct"), "edm": ("diffusion", "edm"), "gan": ("gan", "stylegan2")}  # by --kind
SHIPPED = "apache-2.0"  # the licence of networks that are made from the shipped ones alone


def card(repo: str, snapshot: Snapshot, licence: str, before: Mapping[str, float], picture: str) -> str:
    """Returns the README.md of a repository with one network.

    Args:
        repo: 'owner/name'.
        snapshot: the network, with its provenance.
        licence: an identifier of the hub.
        before: its metrics before the training, by name; empty where they are not known.
        picture: the name of a picture beside it, '' for none.
    """
    told = snapshot.metadata
    front = ["---", "library_name: stylegan-di", "pipeline_tag: unconditional-image-generation", f"license: {licence}"]
    with contextlib.suppress(UserError):  # it is no name of the hub
        front.append(f"base_model: {parse(str(told.get('gan_pkl'))).repo}")
    front += ["tags:", *(f"- {tag}" for tag in TAGS.get(str(told.get("kind")), ("gan",))), "---"]
    lines = [*front, "", f"# {repo.rpartition('/')[2]}", "", _what(snapshot), ""]
    if picture:
        shown = "Before training above, at its end below, at the same latents" if picture == PICTURE else "Samples"
        lines += [f"![{shown}]({picture})", "", f"*{shown}.*", ""]
    if metrics := _metrics(told, before):
        lines += ["## Metrics", "", *metrics, ""]
    lines += ["## Where it comes from", "", *_provenance(told), ""]
    lines += [
        "## Use", "",
        "With stylegan-di:", "",
        f"    stylegan-di generate --network={HUB}{repo} --seeds=0-63 --grid=grid.png", "",
        "```python", "import stylegan_di", "",
        f'network = stylegan_di.{_loader(snapshot)}("{HUB}{repo}")  # a PyTorch module', "```", "",
        f"`{NETWORK}` holds weights and their description; no code is in it.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def licence_of(metadata: Mapping[str, Any]) -> str:
    """Returns the licence of a network that follows from what it was made from: the hub's identifier, or 'other'.

    Raises:
        UserError: the terms of something are not known.
    """
    made_from = list(sources(metadata))
    published = [source for role, source in made_from if role == "file"]  # whose own terms say all
    terms = {source: zoo.terms_of(source) for source in published or (source for _, source in made_from)}
    if unknown := [source for source, text in terms.items() if not text]:
        raise UserError(
            f"--licence is missing: the terms of {', '.join(unknown)[:200]} are not known; give an identifier of the "
            "hub, such as mit, cc-by-nc-4.0 or other"
        )
    if not terms:
        raise UserError("--licence is missing: the file does not say what it was made from; give one such as mit")
    return SHIPPED if set(terms.values()) == {zoo.SHIPPED} else "other"


def sources(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a network was made from: ('file', a published one), ('GAN', its name), then teachers and images."""
    converted = str(metadata.get("converted_from", ""))
    if zoo.terms_of(converted):
        yield "file", converted
    if gan := metadata.get("gan_pkl"):
        yield "GAN", str(gan)
    teachers = str(metadata.get("teacher", ""))
    try:
        yield from (("teacher", term.source) for term in (parse_teachers(teachers) if teachers else ()))
    except UserError:  # not as this project writes it
        yield "teacher", teachers
    if data := metadata.get("data"):
        yield "images", str(data)


def cell(value: Any) -> str:
    """Returns a value of a provenance, which may hold anything, as a cell of a table: a number, a word, or code."""
    if is_whole(value):
        return f"{value:.0f}"
    if isinstance(value, int | float):
        return f"{value:.4g}"
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    text = " ".join(without_folders(text).split())
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "..."
    if re.fullmatch(r"[\w.-]*", text):
        return text
    fence = max(re.findall("`*", text), key=len) + "`"  # code ends at a fence of the length of that which began it
    space = " " if "`" in text else ""
    return re.sub(r"\\*\|", r"\\|", f"{fence}{space}{text}{space}{fence}")  # a bar ends a cell, in code too


def without_folders(text: str) -> str:
    """Returns a text whose paths of this machine are shortened to the names of their files."""
    text = text.replace("file:///", "/")
    return re.sub(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\=,+*]+[/\\])*(?=[^\s/\\])", "", text)


def metrics_before(folder: Path) -> dict[str, float]:
    """Returns a run's metrics before training, from its result.json; none where it has none yet."""
    path = folder / "result.json"
    if not path.is_file():
        return {}
    with untrusted(str(path)):
        return {str(name): float(value) for name, value in read_json_file(path, MAX_RESULT)["before"].items()}


def _what(snapshot: Snapshot) -> str:
    model = as_model(snapshot)
    kind = "diffusion model" if isinstance(model, Denoiser) else model.kind
    channels, height, width = model.image_shape
    shape = f"{width}x{height} pixels, {counted(channels, 'channel')}"
    classes = f", {counted(model.label_dim, 'class', 'classes')}" if model.label_dim else ""
    made = ""
    if snapshot.metadata.get("kind") == "di":
        images = "real images and a diffusion teacher" if "data" in snapshot.metadata else "a diffusion teacher alone"
        made = f" It learned from {images}, by Diff-Instruct ([arXiv 2305.18455](https://arxiv.org/abs/2305.18455))."
    return f"A {kind} of {shape}{classes}.{made}"


def _loader(snapshot: Snapshot) -> str:
    return "load_denoiser" if isinstance(as_model(snapshot), Denoiser) else "load_generator"


def _metrics(told: Mapping[str, Any], before: Mapping[str, float]) -> list[str]:
    found = {name.removeprefix(METRIC): value for name, value in told.items() if name.startswith(METRIC)}
    if not found:
        return []
    head = ["| metric | before | after |", "|---|---|---|"] if before else ["| metric | |", "|---|---|"]
    rows = []
    for name, value in found.items():
        old = f" {cell(before[name])} |" if name in before else " |" if before else ""
        rows.append(f"| {cell(name)} |{old} {cell(value)} |")
    return [*head, *rows]


def _provenance(told: Mapping[str, Any]) -> list[str]:
    rows = []
    for role, source in sources(told):
        terms = zoo.terms_of(source) or "terms not known"
        rows.append(f"| {role} | {cell(source)}: {terms} |")
    names = {"kimg": "thousands of images", "seed": "seed", "date": "date", "command": "command"}
    rows += [f"| {title} | {cell(told[name])} |" for name, title in names.items() if name in told]
    return ["| | |", "|---|---|", *rows] if rows else ["The file does not say."]


def published(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a provenance for the public: texts without the folders of this machine."""
    return {name: without_folders(value) if isinstance(value, str) else value for name, value in metadata.items()}
