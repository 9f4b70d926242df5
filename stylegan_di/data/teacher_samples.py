"""`--data=teacher:10000`: a data set of a teacher's samples, drawn once and kept, for training without real images."""

from __future__ import annotations

import hashlib
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from stylegan_di.data.convert import convert
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sources import Source
from stylegan_di.dnnlib.util import UserError, cache_errors, cache_folder, say
from stylegan_di.images import to_uint8
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import LabelLaw
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.decoded import image_sampler
from stylegan_di.sampling.diffusion_sampler import DPM_SOLVER
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.hashing import weights_hash

BATCH = 64  # samples at a time
PREFIX = "teacher:"
FRESH = 0  # the number of --data=teacher:fresh


def samples_wanted(data: str | None) -> int | None:
    """The number of --data=teacher:N, FRESH for teacher:fresh, None for data that are files.

    Raises:
        UserError: N is neither a number from 2 on nor fresh.
    """
    if data is None or not data.startswith(PREFIX):
        return None
    count = data.removeprefix(PREFIX)
    if count == "fresh":
        return FRESH
    if not re.fullmatch(r"[0-9]{1,9}", count) or int(count) < 2:
        raise UserError(
            f"--data={data}: accepted is the number of samples to draw, from 2 on, such as teacher:10000, or "
            "teacher:fresh, for new ones at each step"
        )
    return int(count)


def teacher_samples(
    teacher: Denoiser,
    num: int,
    seed: int,
    device: torch.device,
    report: Callable[[str, int, int], None] | None = None,
    given: str = "",
) -> Path:
    """A .zip data set of `num` samples with their labels, drawn by all processes where it is not in the cache yet.

    The cache is the folder 'teacher-samples' beside the downloads. A file's name is a hash of the teacher's weights,
    the sampler (DPM-Solver++(2M) with 8 evaluations), the number and the seed. Labels are uniform over the classes. A
    file that is damaged is drawn anew, and a line on stderr says so.

    Args:
        teacher: on the CPU, in evaluation mode; it is there again afterwards.
        num: samples.
        seed: of latents and labels.
        device: where they are drawn.
        report: told how far the drawing is.
        given: what the samples depend on besides the teacher's weights, such as a prompt.

    Raises:
        UserError: the cache cannot be written.
    """
    own = f"{weights_hash(teacher)}/{DPM_SOLVER}-8/{num}/{seed}/1{given}"
    key = hashlib.sha256(own.encode()).hexdigest()[:32]
    path = cache_folder().parent / "teacher-samples" / f"{key}.zip"
    if distributed.any_process(not _is_whole(path, num)):
        if path.exists() and distributed.rank() == 0:
            say(f"{path} is damaged: the teacher's samples are drawn anew")
        _draw(image_sampler(teacher, solver=DPM_SOLVER).to(device), num, seed, device, path, report)
        teacher.to("cpu")
    return path


def _is_whole(path: Path, num: int) -> bool:
    """Whether a file of the cache is a data set of so many images, each byte of which is as it was written."""
    try:
        if not path.is_file() or len(ImageDataset(path)) != num:
            return False
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (UserError, OSError, zipfile.BadZipFile):
        return False


def _check_writable(folder: Path) -> None:
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@torch.no_grad()
def draw_samples(sampler: Generator, rng: SampleRandom) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draws images [n,C,H,W] in uint8 and labels [n,label_dim], each class equally often; None for no classes."""
    labels = LabelLaw.uniform(sampler.label_dim).draw(rng) if sampler.label_dim else None
    return to_uint8(sampler(sampler.sample_latents(len(rng), rng=rng), labels)), labels


@torch.no_grad()
def _draw(
    sampler: Generator,
    num: int,
    seed: int,
    device: torch.device,
    path: Path,
    report: Callable[[str, int, int], None] | None,
) -> None:
    """Draws the samples, each keyed by its index, and writes them in the first process."""
    images: list[torch.Tensor] = []
    classes: list[torch.Tensor] = []

    def batch(indices: range) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = draw_samples(sampler, SampleRandom(seed, "teacher samples", 0, indices, device))
        drawn = torch.zeros(len(indices), dtype=torch.int64) if labels is None else labels.argmax(dim=1)
        return images.cpu(), drawn.cpu()

    def keep(results: Sequence[torch.Tensor]) -> None:
        images.append(results[0])
        classes.append(results[1])

    def done(samples: int) -> None:
        if report is not None:
            report("Teacher's samples", samples, num)

    with distributed.together():
        if distributed.rank() == 0:
            _check_writable(path.parent)  # before the work of drawing, not after it
        distributed.meet()
        distributed.share_out(num, BATCH, batch, keep, done)
        if distributed.rank() == 0:
            stacked, labels = torch.cat(images).permute(0, 2, 3, 1), torch.cat(classes).tolist()
            pixels = (stacked[..., 0] if stacked.shape[3] == 1 else stacked).numpy()
            source = Source(
                where=[f"sample {index}" for index in range(num)],
                load=lambda index: Image.fromarray(pixels[index]),
                labels=labels if sampler.label_dim else None,
            )
            convert(source, path, size=(pixels.shape[2], pixels.shape[1]))
