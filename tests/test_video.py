"""Moving pictures hold the frames they are given."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from stylegan_di.explore.video import save_video


def frames(channels: int, count: int = 5) -> list[torch.Tensor]:
    """A bright square that moves over a dark ground."""
    images = torch.full([count, channels, 32, 48], 20, dtype=torch.uint8)
    for index in range(count):
        images[index, :, 8:24, 4 + 6 * index : 20 + 6 * index] = 220
    return list(images)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.gif"
    given = frames(channels)
    save_video(iter(given), path, fps=25)
    with Image.open(path) as image:
        assert (image.n_frames, image.info["loop"]) == (5, 0)
        for expected, frame in zip(given, ImageSequence.Iterator(image), strict=True):
            assert frame.info["duration"] == 40
            pixels = np.asarray(frame.convert("RGB")).transpose(2, 0, 1)
            np.testing.assert_array_equal(pixels, expected.expand(3, -1, -1).numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4(tmp_path: Path, channels: int) -> None:
    """H.264 changes pixels a little: 3 of 255 on average."""
    path = tmp_path / "a.mp4"
    given = frames(channels)
    save_video(iter(given), path, fps=30)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate, stream.codec_context.name) == (48, 32, 30, "h264")
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(found) == 5
    for expected, pixels in zip(given, found, strict=True):
        difference = pixels.astype(int) - expected.expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.abs(difference).mean() < 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_frames_that_fail_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(b"precious")

    def failing() -> object:
        yield frames(1)[0]
        raise RuntimeError("no more frames")

    with pytest.raises(RuntimeError, match="no more frames"):
        save_video(failing(), path, fps=25)  # type: ignore[arg-type]
    assert path.read_bytes() == b"precious"
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]
