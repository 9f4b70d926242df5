"""Checks of arguments that all networks share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Raises ValueError for a value that is not among the accepted ones."""
    if value not in accepted:
        raise ValueError(f"{name}={value!r}; accepted: {', '.join(accepted)}")


def check_rows(name: str, value: Tensor | None, *row: int) -> Tensor:
    """Returns the value; raises ValueError unless it is a tensor [N, *row]."""
    if value is None or value.shape[1:] != row:
        raise ValueError(f"{name} of shape {None if value is None else list(value.shape)}; accepted: {['N', *row]}")
    return value
