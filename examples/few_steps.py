"""The teacher, distilled to one step, to two and to four.

    python examples/few_steps.py
    python examples/few_steps.py --kimg=48

Further options go to train.py. Draws few_steps.png: two rows of one step, then of two, then of four, from the same
first noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from examples.training import draw, example, trained


@example(__doc__)
def main(outdir: Path, options: tuple[str, ...]) -> None:
    rows: list[Tensor] = []
    for steps in (1, 2, 4):
        student = trained(outdir, "--teacher=fashion-teacher.pkl", f"--student-steps={steps}", *options)
        rows += student.draw(range(24)).split(12)
    draw(outdir / "few_steps.png", *rows)


if __name__ == "__main__":
    main()
