"""How a training that comes apart is noticed: updates that are skipped too often, losses that leave their range."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

WINDOW = 10  # skipped updates count while they are within max_skips * WINDOW steps
EARLIER = 3  # ticks before a loss is judged


def skipped_too_often(skipped: list[tuple[int, str]], step: int, limit: int) -> str:
    """A diagnosis if `limit` updates were skipped in the last limit * WINDOW steps, else ''.

    Args:
        skipped: the step and the network of every skipped update.
        step: how many have been done; updates of later ones do not count.
        limit: --max-skips.
    """
    recent = [role for at, role in skipped if step - limit * WINDOW < at < step]
    if len(recent) < limit:
        return ""
    counts = ", ".join(f"{role} {recent.count(role)}" for role in dict.fromkeys(recent))
    return (
        f"{len(recent)} updates of the last {limit * WINDOW} steps had gradients that are not finite or exploded "
        f"({counts}) and were skipped"
    )


def out_of_range(
    history: dict[str, list[float]], values: Mapping[str, Mapping[str, float]], watched: Mapping[str, float]
) -> str:
    """A diagnosis if a watched statistic of a tick is far above the ticks before, else ''.

    Args:
        history: means of the ticks before, by name; that of this tick is added.
        values: the statistics of this tick, as `Journal.drain` gives them.
        watched: how many times its median over the ticks before a statistic may be, by name.
    """
    for name, factor in watched.items():
        if name not in values:
            continue
        mean, before = values[name]["mean"], history.setdefault(name, [])
        if len(before) >= EARLIER and mean > factor * median(before) > 0:
            return f"{name} is {mean:.4g}, over {factor:g} times its median {median(before):.4g} of the ticks before"
        before.append(mean)
    return ""
