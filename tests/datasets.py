"""Small data sets for tests."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(index: int, size: int = 8, channels: int = 3) -> np.ndarray:
    """Image number `index`, uint8 [size,size,channels]; its first pixel tells which."""
    image = np.random.default_rng(index).integers(256, size=[size, size, channels], dtype=np.uint8)
    image[0, 0] = index
    return image


def encode(image: np.ndarray, mode: str | None = None, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image.squeeze())
    (picture if mode is None else picture.convert(mode)).save(buffer, format=format)
    return buffer.getvalue()


def image_files(count: int, **kwargs: int) -> dict[str, bytes]:
    """Images named in an order other than that of the names, without labels."""
    return {f"{index % 2:05d}/img{index:08d}.png": encode(pixels(index, **kwargs)) for index in reversed(range(count))}


def labels_file(labels: object) -> bytes:
    return json.dumps({"labels": labels}).encode()


def write(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip (by its suffix) or folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path
