"""A step reads nothing from its device, which on a GPU would wait for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stylegan_di.training.trainer import Trainer
from tests.test_train import EDM, GAN, di, invoke
from tests.tiny import save_files

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class CountReads(TorchDispatchMode):
    """Counts operators that give a value of a tensor to Python, or a tensor whose shape depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func._schema.name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or func._schema.name in READS:
            self.reads.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_reads_are_counted() -> None:
    x = torch.arange(3.0)
    with CountReads() as counter:
        float(x.sum())
        x[x > 1]
        bool(x[0] > 1)
    assert len(counter.reads) >= 3


@pytest.mark.parametrize("kind", ["di", "gan", "edm"])
def test_no_step_reads_from_its_device(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = save_files(tmp_path)
    arguments = {
        "di": di(files, f"--gan-pkl={files['gan']}", measured=False),
        "gan": [*GAN, f"--data={files['data']}", "--metrics=none", "--aug=ada", "--gamma=1", "--pl-weight=2"],
        "edm": [*EDM, f"--data={files['data']}", "--metrics=none"],
    }[kind]
    counts: list[list[str]] = []
    step = Trainer.step

    def counted(trainer: Trainer) -> None:
        with CountReads() as counter:
            step(trainer)
        counts.append(counter.reads)

    monkeypatch.setattr(Trainer, "step", counted)
    result = invoke(*arguments, f"--outdir={tmp_path / 'runs'}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert len(counts) >= 4
    assert counts == [[]] * len(counts)
