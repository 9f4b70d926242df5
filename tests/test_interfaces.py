"""The roles: what must be there to fill one, and what a role does by default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di import interfaces
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import one_hot
from stylegan_di.random import SampleRandom

ABSTRACT = {
    "Denoiser": ["forward"],
    "Generator": ["forward", "sample_latents"],
    "Space": ["encode"],
    "Critic": ["logits"],
    "FeatureExtractor": ["forward"],
    "Classifier": ["forward", "probabilities"],
}


class TinyGenerator(Generator):
    """Images are the latents, ten times the class brighter; it draws by the role's own method."""

    kind = "tiny generator"
    options = ("gain",)

    def __init__(self, label_dim: int = 0) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = 2, 1, label_dim
        self.gain = torch.nn.Parameter(torch.ones([]))
        self.asked: list[Tensor | None] = []

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        assert len(rng) == n
        return rng.normal(4)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        self.asked.append(labels)
        images = self.gain * z.reshape(-1, 1, 2, 2)
        return images if labels is None else images + 10 * labels.argmax(1).reshape(-1, 1, 1, 1)


class Halving(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("role", ABSTRACT)
def test_a_role_cannot_be_filled_in_part(role: str) -> None:
    """Neither the role itself nor a subclass that lacks one of its methods can be made; one that has them all can."""
    cls: Any = getattr(interfaces, role)
    assert cls.__abstractmethods__ == set(ABSTRACT[role])
    with pytest.raises(TypeError, match="abstract"):
        cls()
    methods = {name: lambda self: None for name in ABSTRACT[role]}
    for missing in methods:
        partial = type("Partial", (cls,), {name: method for name, method in methods.items() if name != missing})
        with pytest.raises(TypeError, match=f"abstract.*{missing}"):
            partial()
    assert isinstance(type("Whole", (cls,), methods)(), cls)


# What a generator does by default.


@pytest.mark.parametrize("label_dim", [0, 5])
def test_a_seed_is_one_image_in_any_company(label_dim: int) -> None:
    generator = TinyGenerator(label_dim)
    seeds = [*range(12), 0, 2**32 - 1]
    together = generator.draw(seeds)
    assert together.shape == (14, 1, 2, 2)
    assert not together.requires_grad
    for seed, image in zip(seeds, together, strict=True):
        torch.testing.assert_close(generator.draw([seed])[0], image, rtol=0, atol=0)
    torch.testing.assert_close(generator.draw(seeds[::-1]), together.flip(0), rtol=0, atol=0)
    assert len({tuple(image.flatten().tolist()) for image in together}) == 13


def test_the_class_asked_for_is_drawn_and_the_latent_stays() -> None:
    generator = TinyGenerator(5)
    zero = generator.draw([3, 8], class_index=0)
    for class_index in range(5):
        generator.asked.clear()
        images = generator.draw([3, 8], class_index=class_index)
        torch.testing.assert_close(images, zero + 10 * class_index)
        for labels in generator.asked:
            torch.testing.assert_close(labels, torch.eye(5)[class_index : class_index + 1], rtol=0, atol=0)
    generator.asked.clear()
    generator.draw(range(100))
    classes = torch.cat([labels for labels in generator.asked if labels is not None]).sum(0)
    assert classes.sum() == 100
    assert classes.min() >= 8  # of 20 expected
    unconditional = TinyGenerator()
    unconditional.draw([0])
    assert unconditional.asked == [None]


def test_what_a_generator_cannot_do_is_said() -> None:
    generator = TinyGenerator()
    assert generator.with_options(gain=2) is generator
    for option, name in (("trunc", "--trunc"), ("sigma_min", "--sigma-min"), ("S_churn", "--S_churn")):
        with pytest.raises(UserError, match=f"^{name}=2 is not for a tiny generator, which this network is: leave it"):
            generator.with_options(**{option: 2})
    with pytest.raises(UserError, match="a TinyGenerator cannot be written to a snapshot"):
        generator.entries()
    with pytest.raises(UserError, match="--freeze=b4: there is no such part; a tiny generator has none"):
        generator.freeze(["b4"])
    generator.freeze([])
    assert (generator.frozen_modules(), generator.running_means(), generator.extras({"path": "x"})) == ([], [], {})


# What a denoiser does by default.


def test_a_denoiser_knows_all_noise_levels_and_has_no_features() -> None:
    denoiser, sigma = Halving(), torch.tensor([0.3, 7.1])
    assert denoiser.round_sigma(sigma) is sigma
    with pytest.raises(UserError, match="a Halving has no features for a critic; choose a teacher that is a U-Net"):
        denoiser.features(torch.ones(2, 1, 2, 2), sigma)
    with pytest.raises(UserError, match="a Halving cannot be written to a snapshot"):
        denoiser.entries()


def test_a_trainable_copy_is_by_itself() -> None:
    denoiser = Halving()
    copied = denoiser.trainable_copy()
    assert isinstance(copied, Halving)
    copied.factor.data.fill_(2)
    assert denoiser.factor.item() == 0.5


# Labels.


@pytest.mark.parametrize("label_dim", [1, 4])
def test_one_hot(label_dim: int) -> None:
    classes = torch.arange(9) % label_dim
    labels = one_hot(classes, label_dim)
    assert (labels.dtype, labels.device) == (torch.float32, classes.device)
    torch.testing.assert_close(labels, torch.nn.functional.one_hot(classes, label_dim).float(), rtol=0, atol=0)
    assert one_hot(classes[:0], label_dim).shape == (0, label_dim)
    assert one_hot(classes, 0).shape == (9, 0)


def test_one_hot_does_not_read_the_indices() -> None:
    """On the meta device there are none to read."""
    labels = one_hot(torch.zeros(3, dtype=torch.int64, device="meta"), 5)
    assert (labels.shape, labels.device.type) == ((3, 5), "meta")
