"""Networks that tell the samples of p from the student's, one kind a file."""

from __future__ import annotations

from stylegan_di.critics.discriminator import DiscriminatorCritic
from stylegan_di.critics.features import FeatureCritic, FeatureCriticSpec
from stylegan_di.interfaces import Critic

#: By name.
CRITICS: dict[str, type[Critic]] = {"discriminator": DiscriminatorCritic, "features": FeatureCritic}

#: Those of --critic, by name: what their spec says.
CRITIC_SPECS: dict[str, type[FeatureCriticSpec]] = {"features": FeatureCriticSpec}
