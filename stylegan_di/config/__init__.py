"""What a training run is, as one validated value, filled from the options given over the presets (`presets`).

`fields` declares the options, `derived` says what follows from them, and `checks` what they refuse of each other.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from stylegan_di.config.checks import check_specs, contradictions
from stylegan_di.config.derived import Derived
from stylegan_di.dnnlib.util import UserError
from stylegan_di.options import options_of


@dataclass(frozen=True)
class TrainConfig(Derived):
    """A training run.

    Raises:
        UserError: for a value that is not accepted, or options that make no training together.
    """

    def __post_init__(self) -> None:
        for declared in options_of(TrainConfig):
            declared.check(getattr(self, declared.name))
        check_specs(self.kind, vars(self))
        for problem in contradictions(self):
            raise UserError(problem)

    def to_json(self) -> str:
        """The configuration as it is written to training_options.json."""
        return json.dumps(asdict(self), indent=2)
