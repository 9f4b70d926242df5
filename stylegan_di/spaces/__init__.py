"""What a teacher sees of a student's image, one space a file."""

from __future__ import annotations

from stylegan_di.interfaces import Space
from stylegan_di.spaces.latents import Latents
from stylegan_di.spaces.pixels import Pixels

#: By name.
SPACES: dict[str, type[Space]] = {"pixels": Pixels, "latents": Latents}
