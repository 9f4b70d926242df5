"""Writes videos: .gif with Pillow, .mp4 (H.264) with the optional package PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torch import Tensor

from stylegan_di.dnnlib.util import UserError, atomic_file, not_installed
from stylegan_di.images import to_picture

GIF_RATES = (1, 2, 4, 5, 10, 20, 25, 50)  # a frame lasts a whole number of hundredths of a second, at least two


def check_video(option: str, path: str | os.PathLike[str], fps: int) -> None:
    """Raises UserError, naming the option, if `save_video` could not write this video."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise UserError(f"{option}={path}: its name must end in .gif or .mp4")
    if suffix == ".gif" and fps not in GIF_RATES:
        raise UserError(
            f"--fps={fps}: a .gif shows {', '.join(map(str, GIF_RATES))} frames a second; choose one of these, or .mp4"
        )
    if suffix == ".mp4":
        _import_av(f"{option}={path}")


def save_video(frames: Iterable[Tensor], path: str | os.PathLike[str], fps: int) -> None:
    """Writes frames uint8 [C,H,W] atomically; C = 1 or 3, H and W must be even for .mp4, and a .gif loops forever."""
    path = Path(path)
    check_video("the file", path, fps)
    pictures = map(to_picture, frames)
    with atomic_file(path) as file:
        if path.suffix.lower() == ".gif":
            first = next(pictures)
            first.save(file, format="GIF", save_all=True, append_images=pictures, duration=1000 // fps, loop=0)
        else:
            _save_mp4(pictures, file, fps)


def _save_mp4(pictures: Iterator[Image.Image], file: IO[bytes], fps: int) -> None:
    av = _import_av("a .mp4")
    with av.open(file, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.width, stream.height = picture.size
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), "rgb24")))
        container.mux(stream.encode())


def _import_av(what: str) -> Any:
    try:
        import av
    except ImportError:
        raise UserError(f"{not_installed(what, 'av', 'video')}; or write a .gif, which needs none") from None
    return av
