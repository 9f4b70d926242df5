"""Images between networks and files."""

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import from_uint8, save_grid, save_image, to_rgb, to_uint8


def test_to_uint8_truncates_and_clamps() -> None:
    x = torch.tensor([-2.0, -1.0, -1 / 127.5, 0.0, 0.999, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 127, 128, 255, 255, 255]
    assert to_uint8(torch.tensor([0.0078])).item() == 128  # 128.9945 is truncated, not rounded


def test_from_uint8_and_back_is_the_identity() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(values)
    assert x.dtype == torch.float32
    assert x.min() == -1
    assert x.max() == 1
    torch.testing.assert_close(to_uint8(x), values)


def test_to_rgb_repeats_gray_and_refuses_two_channels() -> None:
    gray = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    rgb = to_rgb(gray)
    assert rgb.shape == (2, 3, 2, 2)
    assert all(torch.equal(rgb[:, c], gray[:, 0]) for c in range(3))
    assert torch.equal(to_rgb(rgb), rgb)
    with pytest.raises(ValueError, match="2 channels"):
        to_rgb(gray.expand(2, 2, 2, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_image_has_the_pixels(tmp_path, channels: int) -> None:
    image = torch.randint(256, [channels, 5, 7], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_image(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        pixels = np.asarray(file).reshape(5, 7, channels)
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_suffix_decides_the_format(tmp_path) -> None:
    save_image(torch.zeros([3, 8, 8], dtype=torch.uint8), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as file:
        assert file.format == "JPEG"
    with pytest.raises(UserError, match=r"b\.docx.*\.png"):
        save_image(torch.zeros([3, 8, 8], dtype=torch.uint8), tmp_path / "b.docx")
    with pytest.raises(ValueError, match="float32"):
        save_image(torch.zeros([3, 8, 8]), tmp_path / "c.png")


def test_grid_places_images_row_by_row(tmp_path) -> None:
    images = torch.arange(1, 6, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 3)
    save_grid(images, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as file:
        grid = np.asarray(file)
    assert grid.shape == (2 * 2, 3 * 3)
    assert grid[0].tolist() == grid[1].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert grid[2].tolist() == grid[3].tolist() == [4, 4, 4, 5, 5, 5, 0, 0, 0]
