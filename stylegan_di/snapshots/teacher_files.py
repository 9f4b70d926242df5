"""Opens a --teacher, whatever it is: a network file (`checkpoint`) or a pipeline in diffusers' layout (`pipelines`)."""

from __future__ import annotations

from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.snapshots import diffusers_parts
from stylegan_di.snapshots.blueprint import ImageShape
from stylegan_di.snapshots.checkpoint import as_denoiser, load_snapshot
from stylegan_di.snapshots.pipelines import TeacherOptions, is_pipeline, read_autoencoder, read_pipeline, refuse_texts
from stylegan_di.spaces.latents import Latents
from stylegan_di.teachers.guided import Guided


def open_teacher(source: str, options: TeacherOptions | None = None) -> Denoiser:
    """Opens a teacher, in evaluation mode, without gradients, on the CPU.

    Args:
        source: a network file's path, URL, known name or name of the hub; or a pipeline, as a folder or of the hub.
        options: what it is given besides.

    Raises:
        UserError: if it cannot be opened, or has no use for an option.
    """
    options = options or TeacherOptions()
    if is_pipeline(source):
        with untrusted(f"--teacher={source}"):
            return diffusers_parts.open_pipeline(read_pipeline(source, options), options)
    teacher = as_denoiser(load_snapshot(source))
    shape = ImageShape(teacher.img_resolution, teacher.img_channels, teacher.label_dim)
    student_shape(source, shape, options)
    if options.autoencoder is not None:
        teacher.space = open_latents(options.autoencoder, teacher)
    if options.checkpointing:
        teacher.checkpoint_activations()
    return teacher if options.guidance == 1 else Guided(teacher, options.guidance)


def open_latents(source: str, of: Denoiser | int) -> Latents:
    """Opens the autoencoder in whose latents a denoiser works.

    Some networks, as EDM2's, have their own shift and scale, others those of the autoencoder's config.

    Args:
        source: the value of --autoencoder.
        of: the denoiser of a network file; for a new one, the resolution of the images.

    Raises:
        UserError: if it cannot be opened, or the denoiser has other channels.
    """
    option = f"--autoencoder={source}"
    part = read_autoencoder(source)
    side = of // part.downsampling if isinstance(of, int) else of.img_resolution
    with untrusted(option):
        latents = diffusers_parts.latents_of(part, side, option, None if isinstance(of, int) else of.latents)
    if not isinstance(of, int) and of.img_channels != latents.channels:
        raise UserError(f"{option}: the network has {of.img_channels} channels, and its latents {latents.channels}")
    return latents


def student_shape(source: str, shape: ImageShape, options: TeacherOptions) -> ImageShape:
    """The shape of the images that a student must make for the network of a file, whose own shape is given.

    Raises:
        UserError: an option has no use, or --autoencoder is missing.
    """
    option = f"--teacher={source}"
    refuse_texts(options, option)
    if options.guidance != 1 and not shape.classes:
        raise UserError(
            f"--guidance={options.guidance:g}: {option} has no classes, so no null label to be guided away from; leave "
            "it out"
        )
    if options.autoencoder is None:
        if shape.channels not in (1, 3):
            raise UserError(
                f"{option}: its images have {shape.channels} channels, so it works on an autoencoder's latents: give "
                "--autoencoder, for EDM2's networks hf:stabilityai/sd-vae-ft-mse"
            )
        return shape
    part = read_autoencoder(options.autoencoder)
    if part.latent_channels != shape.channels:
        raise UserError(
            f"--autoencoder={options.autoencoder}: {option} has {shape.channels} channels, not those of its latents; "
            "leave it out, or give another"
        )
    return ImageShape(shape.resolution * part.downsampling, part.image_channels, shape.classes)
