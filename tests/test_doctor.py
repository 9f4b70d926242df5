"""stylegan-di doctor on this machine, on one without a compiler, and on one with a broken one."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stylegan_di.commands import doctor
from tests.test_ops_build import install_compiler


def test_all_is_well(kernels: str) -> None:
    if kernels != "native":
        pytest.skip("looks at native kernels")
    result = CliRunner().invoke(doctor.main)
    assert result.exit_code == 0, result.output
    assert result.output.count("differs from its reference by") == 10
    assert "all is well" in result.output


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "difference", lambda op, x: 2e-5)
    lines = list(doctor.kernel_report("cpu"))
    if not lines[0][0]:
        pytest.skip("no native kernels here")
    assert all(not well and line.endswith("WRONG") for well, line in lines[1:])


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    result = CliRunner().invoke(doctor.main)
    assert result.exit_code == 1
    assert "apt install g++" in result.output


def test_a_broken_compiler_is_quoted_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    install_compiler(tmp_path, monkeypatch, "echo one >&2; echo two >&2; exit 1")
    result = CliRunner().invoke(doctor.main)
    assert result.exit_code == 1
    assert "exit status 1\none\ntwo\n" in result.output


def test_difference_is_between_values_and_gradients() -> None:
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    assert doctor.difference(lambda x: x * 2, x) == 0
