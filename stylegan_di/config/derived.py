"""What follows from the options of a run: which networks and images take part in it, and their specs as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stylegan_di.config.fields import ONLINE, Fields
from stylegan_di.critics import CRITIC_SPECS
from stylegan_di.critics.features import FeatureCriticSpec
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.diffusion import NOISE_LAWS, NoiseLaw
from stylegan_di.divergences import parse_divergence
from stylegan_di.presets import NEW_NETWORK, use_of
from stylegan_di.snapshots.pipelines import TeacherOptions
from stylegan_di.specs import parse

HEADROOM = 1000  # samples on which GAN and teacher are compared on a GPU


def uses_teacher(values: Mapping[str, Any]) -> bool:
    """Whether options of --kind=di leave a use for a teacher; None or missing where they are not given."""
    if values.get("divergence") != "none" or values.get("critic") not in (None, "none"):
        return True
    return samples_wanted(values.get("data")) is not None


@dataclass(frozen=True)
class Derived(Fields):
    """The options, and what follows from them."""

    @property
    def student_law(self) -> NoiseLaw:
        """Noise levels of the student's update, or of the denoiser's."""
        return parse(self.noise_law, NOISE_LAWS, "--noise-law")

    @property
    def fake_law(self) -> NoiseLaw:
        """Noise levels of the fake score's update."""
        return parse(self.fake_noise_law, NOISE_LAWS, "--fake-noise-law")

    @property
    def critic_law(self) -> NoiseLaw | None:
        """Noise levels at which the critic sees images; None: by its own default."""
        law = self.critic_noise_law
        return None if law == "none" else parse(law, NOISE_LAWS, "--critic-noise-law")

    @property
    def critic_spec(self) -> FeatureCriticSpec | None:
        """The critic on the teacher's features, if there is one."""
        return None if self.critic == "none" else parse(self.critic, CRITIC_SPECS, "--critic")

    @property
    def weighs_samples(self) -> bool:
        """Whether the divergence weighs samples by the density ratio that a critic gives."""
        divergence = parse_divergence(self.divergence)
        return divergence is not None and divergence.needs_critic

    @property
    def asks_discriminator(self) -> bool:
        """Whether that critic is the GAN's own discriminator, for want of another."""
        return self.weighs_samples and self.critic == "none"

    @property
    def trains_critic(self) -> bool:
        """Whether a GAN's discriminator is trained."""
        return self.kind == "gan" or (self.kind == "di" and (self.adv_weight > 0 or self.asks_discriminator))

    @property
    def needs_data(self) -> bool:
        """Whether real images take part in the training."""
        divergence = parse_divergence(self.divergence)
        wanted = self.critic != "none" or (divergence is not None and divergence.needs_reals)
        return self.kind != "di" or self.trains_critic or wanted or self.trains_teacher

    @property
    def image_files(self) -> str | None:
        """The folder or zip of --data; None where no real images take part, or a teacher's samples do for them."""
        return self.data if self.needs_data and samples_wanted(self.data) is None else None

    @property
    def use(self) -> str:
        """What --kind=di is for, as the recipes say it."""
        return use_of(self.student, self.gan_pkl)

    @property
    def makes_student(self) -> bool:
        """Whether the student is a new network."""
        return self.use == NEW_NETWORK

    @property
    def trains_teacher(self) -> bool:
        """Whether --kind=di trains its teacher on the way."""
        return self.teacher == ONLINE

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher takes part in --kind=di."""
        return uses_teacher(vars(self))

    @property
    def shows_teacher(self) -> bool:
        """Whether the teacher of --kind=di looks at the student's images."""
        return self.divergence != "none" or self.critic != "none"

    @property
    def headroom_samples(self) -> int:
        """Samples on which GAN and teacher are compared before a run; 0 where there are not both."""
        both = self.gan_pkl is not None and self.shows_teacher and not self.trains_teacher
        if self.kind != "di" or not both:
            return 0
        if self.headroom is not None:
            return self.headroom
        return HEADROOM if self.device.startswith("cuda") else 0

    @property
    def teacher_options(self) -> TeacherOptions:
        """What the teacher is given besides its file."""
        return TeacherOptions(self.prompt, self.negative_prompt, self.guidance, self.autoencoder, self.checkpointing)

    @property
    def wants_reals(self) -> str:
        """The option of --kind=di for which real images are there, for messages."""
        if self.critic != "none":
            return f"--critic={self.critic}"
        if self.trains_teacher:
            return "--teacher=online"
        return self.wants_discriminator

    @property
    def wants_discriminator(self) -> str:
        """The option of --kind=di for which a GAN's discriminator is there, for messages."""
        return f"--adv-weight={self.adv_weight:g}" if self.adv_weight else f"--divergence={self.divergence}"
