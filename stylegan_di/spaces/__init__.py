"""What a teacher sees of a student's image, one space a file."""

from __future__ import annotations

from stylegan_di.interfaces import Space
from stylegan_di.spaces.latents import Latents
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.spaces.resized import Resized

#: By name: --match takes the first two, the teacher brings the others.
SPACES: dict[str, type[Space]] = {"pixels": Pixels, "resize": Resized, "latents": Latents}
