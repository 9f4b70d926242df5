"""Puts the viewer's page together: one file of HTML with its style, its scripts and what it has to know inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"


def page(described: Mapping[str, Any], *, engine: str, data: str = "") -> str:
    """Returns the page.

    Args:
        described: what the viewer shows (`Viewer.described`).
        engine: who draws: 'server', or 'onnx' in the browser.
        data: further elements, which hold the engine's files.
    """
    told = json.dumps(described).replace("<", "\\u003c")  # so that no name ends the element
    parts = {
        "style": asset("page.css"),
        "described": told,
        "data": data,
        "script": asset(f"{engine}.js") + asset("page.js"),
    }
    before, *rest = asset("page.html").split("{{")
    for piece in rest:
        name, _, after = piece.partition("}}")
        before += parts[name] + after
    return before


def asset(name: str) -> str:
    """Returns the text of a file of the page."""
    return (ASSETS / name).read_text(encoding="utf-8")
