"""The family of divergences, one a file, by the names of the command line; docs/theory.md says when to choose which."""

from __future__ import annotations

from stylegan_di.divergences.fisher import Fisher
from stylegan_di.divergences.realuid import RealUID
from stylegan_di.divergences.sid import SiD
from stylegan_di.divergences.sim import SIM
from stylegan_di.divergences.weighted_sum import Sum
from stylegan_di.loss_di import IKL, Divergence
from stylegan_di.specs import parse_sum

__all__ = ["DIVERGENCES", "IKL", "SIM", "Divergence", "Fisher", "RealUID", "SiD", "Sum", "parse_divergence"]

DIVERGENCES: dict[str, type[Divergence]] = {"ikl": IKL, "sid": SiD, "sim": SIM, "fisher": Fisher, "realuid": RealUID}


def parse_divergence(text: str) -> Divergence | None:
    """'ikl', 'sid:alpha=1.2' or a sum such as 'ikl+0.5*sid' -> a Divergence; 'none' -> None.

    Raises:
        UserError: an unknown name, field or value; the message lists what is accepted.
    """
    if text == "none":
        return None
    terms = parse_sum(text, DIVERGENCES, "--divergence")
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return Sum(tuple(terms))
