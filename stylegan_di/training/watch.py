"""Detects divergence: updates that are skipped too often, and losses that leave their range."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

WINDOW = 10  # skipped updates are counted over max_skips * WINDOW steps
EARLIER = 3  # number of ticks before a loss is checked


def skipped_too_often(skipped: list[tuple[int, str]], step: int, limit: int) -> str:
    """Returns a diagnosis if `limit` updates were skipped in the last limit * WINDOW steps, else ''.

    Args:
        skipped: the step and the network of every skipped update.
        step: the number of steps done; updates of later steps do not count.
        limit: --max-skips.
    """
    recent = [role for at, role in skipped if step - limit * WINDOW < at < step]
    if len(recent) < limit:
        return ""
    counts = ", ".join(f"{role} {recent.count(role)}" for role in dict.fromkeys(recent))
    return (
        f"{len(recent)} updates of the last {limit * WINDOW} steps were skipped because their gradients were not "
        f"finite or exploded ({counts})"
    )


def out_of_range(
    history: dict[str, list[float]], values: Mapping[str, Mapping[str, float]], watched: Mapping[str, float]
) -> str:
    """Returns a diagnosis if a watched statistic is far above its values at earlier ticks, else ''.

    Args:
        history: the means at earlier ticks, by name; this tick's is added.
        values: this tick's statistics, as `Journal.drain` returns them.
        watched: the largest ratio of each statistic to its median over the earlier ticks, by name.
    """
    for name, factor in watched.items():
        if name not in values:
            continue
        mean, before = values[name]["mean"], history.setdefault(name, [])
        if len(before) >= EARLIER and mean > factor * median(before) > 0:
            return f"{name} is {mean:.4g}, over {factor:g} times its median {median(before):.4g} at earlier ticks"
        before.append(mean)
    return ""
