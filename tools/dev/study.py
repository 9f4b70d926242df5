"""The study of refinement (docs/measurements/study.md): its rows, and the table of what they gave.

    python tools/dev/rows.py study --rows=before,ikl,ikl-mended --seeds=1,2,3
    python tools/dev/study.py

A row is a training with the recipe of the demo but for its own options, judged by both judges at 10,000 samples.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import help_of
from tools.dev.rows import ROOT, Row, read_results

FEATURES = "--critic=features --data=teacher:10000"
IKL = "--divergence=ikl"
REAL = "--cond=true --data={datasets}/fashion-16.zip"
PLAIN = "--whitening=0 --clip=false"
MENDED = "--whitening=1 --clip=true"
AT_32 = Row.metrics.replace("fashion-16", "fashion-32")


def trained(options: str, metrics: str = Row.metrics) -> Row:
    """A training, of which the last snapshot is judged."""
    fixed = "train.py --metrics=none --snap=100 --device={device} --seed={seed} --outdir={out}"
    return Row((f"{fixed} {options}",), metrics=metrics)


def refined(options: str) -> Row:
    """The shipped GAN, refined by the recipe with these options."""
    return trained(f"--kind=di --gan-pkl=fashion-gan.pkl {options}")


ROWS = {
    "recipe": refined(""),
    "recipe-long": refined("--kimg=90"),
    "sid-whitened-more": refined("--kimg=28 --whitening=1.45"),
    "before": Row((), "fashion-gan.pkl", seeded=False),
    "teacher": Row((), "fashion-teacher.pkl", f"--solver=dpmpp {Row.metrics}", seeded=False),
    "ikl": refined(f"{IKL} --kimg=44 {PLAIN}"),
    "ikl-whitened": refined(f"{IKL} --kimg=44 --whitening=1 --clip=false"),
    "ikl-clipped": refined(f"{IKL} --kimg=44 --whitening=0 --clip=true"),
    "ikl-mended": refined(f"{IKL} --kimg=44 {MENDED}"),
    "ikl-mended-one-noise": refined(f"{IKL} --kimg=44 --one-noise=true {MENDED}"),
    "sid": refined(f"--kimg=26 --divergence=sid {PLAIN}"),
    "sid-mended": refined(f"--kimg=26 --divergence=sid {MENDED}"),
    "sid-mended-33": refined(f"--kimg=33 --divergence=sid {MENDED}"),
    "critic": refined(f"{IKL} --kimg=28 {FEATURES} {PLAIN}"),
    "critic-mended": refined(f"{IKL} --kimg=22 {FEATURES} {MENDED}"),
    "critic-alone": refined(f"--kimg=60 --divergence=none {FEATURES} {PLAIN}"),
    "critic-alone-mended": refined(f"--kimg=58 --divergence=none {FEATURES} {MENDED}"),
    "refiner": refined("--student=refiner --kimg=21"),
    "refiner-long": refined("--student=refiner --kimg=63"),
    "ikl-mended-long": refined(f"{IKL} --kimg=132 {MENDED}"),
    # What does which part, with the recipe's two options and at about equal processor time.
    "ikl-one": refined(f"--kimg=44 --divergence=ikl:weight=one {MENDED}"),
    "ikl-dmd": refined(f"--kimg=44 --divergence=ikl:weight=dmd {MENDED}"),
    "sim": refined(f"--kimg=30 --divergence=sim {MENDED}"),
    "ikl-js": refined(f"--kimg=22 --divergence=ikl:f=js {FEATURES} {MENDED}"),
    "sid-critic": refined(f"--kimg=17 --divergence=sid {FEATURES} {MENDED}"),
    "critic-5000": refined(f"{IKL} --kimg=26 --critic=features --data=teacher:5000 {MENDED}"),
    "critic-20000": refined(f"{IKL} --kimg=14 --critic=features --data=teacher:20000 {MENDED}"),
    "critic-fresh": refined(f"{IKL} --kimg=17 --critic=features --data=teacher:fresh {MENDED}"),
    "critic-both": refined(f"{IKL} --kimg=22 --critic=features --teacher-samples=10000 {REAL} {MENDED}"),
    "critic-share": refined(f"{IKL} --kimg=22 --critic=features:share=1 --data=teacher:10000 {MENDED}"),
    "critic-real": refined(f"{IKL} --kimg=30 --critic=features {REAL} {MENDED}"),
    "own-d": refined(f"{IKL} --kimg=20 --adv-weight=1 --data=teacher:10000 {MENDED}"),
    "hybrid-real": refined(f"{IKL} --kimg=28 --adv-weight=1 {REAL} {MENDED}"),
    "own-d-alone-real": refined(f"--kimg=58 --adv-weight=1 --divergence=none {REAL} {PLAIN}"),
    "gan-continued": trained(
        f"--kind=gan --resume=fashion-gan.pkl --kimg=53 {REAL} --batch=32 --mixing=0 --pl-weight=0 --aug=noaug "
        "--gamma=0.05 --lr=2e-3 --ema=5"
    ),
    "one-step": trained("--kind=di --teacher=fashion-teacher.pkl --kimg=29 --clip=false"),
    "one-step-clipped": trained("--kind=di --teacher=fashion-teacher.pkl --kimg=29 --clip=true --clip-return=0"),
    "recipe-bf16": refined("--amp=bf16"),
    # At 32x32.
    "before-32": Row((), "fashion-32-gan.pkl", AT_32, seeded=False),
    "teacher-32": Row((), "fashion-32-teacher.pkl", f"--solver=dpmpp {AT_32}", seeded=False),
    "recipe-32": trained("--kind=di --gan-pkl=fashion-32-gan.pkl", AT_32),
}
COLUMNS = {
    "FD": "fd_fashion", "precision": "pr_fashion_precision", "recall": "pr_fashion_recall",
    "coverage": "dc_fashion_coverage", "FD (2)": "fd_effnet", "precision (2)": "pr_effnet_precision",
    "recall (2)": "pr_effnet_recall", "coverage (2)": "dc_effnet_coverage", "KID (2)": "kid_effnet",
    "octave 3": "spectrum_3", "octave 4": "spectrum_4", "detail": "texture_detail", "black": "texture_black",
}  # fmt: skip


def table(results: list[dict[str, Any]], rows: Iterable[str], columns: Mapping[str, str]) -> str:
    """A line of Markdown a row: the mean over its seeds, +- half the range where there are several."""
    lines = ["| row | seeds | s | " + " | ".join(columns) + " |", "|---" * (len(columns) + 3) + "|"]
    for row in rows:
        own = [result for result in results if result["row"] == row]
        if not own:
            continue
        cells = [row, ", ".join(str(result["seed"]) for result in own), _cell([r.get("seconds") for r in own], 0)]
        cells += [_cell([result.get(name) for result in own], 1 if "FD" in title or title == "detail" else 3)
                  for title, name in columns.items()]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" +- {(max(known) - min(known)) / 2:.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def table_command(doc: str | None, study: str, rows: Collection[str], columns: Mapping[str, str]) -> click.Command:
    """The command that prints what tools/dev/rows.py kept of a study as a table, without the columns that are empty."""
    kept = f"docs/measurements/{study}.jsonl"

    @click.command(help=help_of(doc))
    @click.option("--results", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=ROOT / kept,
                  help=f"The results.  [default: {kept}]")
    @click.option("--rows", "prefix", default="", metavar="PREFIX", help="Rows whose names begin so.  [default: all]")
    def main(results: Path, prefix: str) -> None:
        own = [result for result in read_results(results) if result["row"] in rows]
        shown = [result for result in own if result["row"].startswith(prefix)]
        if not shown:
            raise click.UsageError(f"--results={results} has no row of this study that --rows={prefix} begins")
        known = {title: name for title, name in columns.items() if any(name in result for result in shown)}
        click.echo(table(shown, rows, known))

    return main


main = table_command(__doc__, "study", ROWS, COLUMNS)

if __name__ == "__main__":
    main()
