"""The tools' page names every tool and only options that exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    python (\S+) (.*)$", PAGE, flags=re.MULTILINE)
NO_SCRIPTS = {"__init__.py", "gan_network.py"}


def test_every_tool_is_on_the_page() -> None:
    tools = {path.name for path in (ROOT / "tools").iterdir() if path.suffix in (".py", ".sh")} - NO_SCRIPTS
    assert tools == set(re.findall(r"`(\w+\.(?:py|sh))`", PAGE.partition("    python")[0])) - {
        "train.py", "generate.py", "calc_metrics.py",
    }  # fmt: skip


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_commands_on_the_page_are_understood(script: str, arguments: str) -> None:
    command = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    assert isinstance(command, click.Command)
    command.make_context(script, shlex.split(arguments))  # raises for what click refuses


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6
