"""From a configuration to networks, optimizers and data; what does not match is refused here, before the start."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.data import augment_edm
from stylegan_di.data.augment import AUGMENT_PIPES, AugmentPipe
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.progress import PassProgress
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.networks.edm import PRECONDITIONERS
from stylegan_di.networks.stylegan2 import Discriminator
from stylegan_di.networks.stylegan2 import Generator as StyleGAN2
from stylegan_di.random import stream
from stylegan_di.snapshots.checkpoint import Snapshot, as_denoiser, as_generator, load_snapshot
from stylegan_di.students import OneStepStudent, StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.ops import build as ops
from stylegan_di.training.state import TrainState
from stylegan_di.training.transfer import frozen, gan_to_resume

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": dict(model_type="SongUNet", embedding_type="positional", encoder_type="standard",
                   decoder_type="standard", channel_mult_noise=1, resample_filter=[1, 1]),
    "ncsnpp": dict(model_type="SongUNet", embedding_type="fourier", encoder_type="residual",
                   decoder_type="standard", channel_mult_noise=2, resample_filter=[1, 3, 3, 1]),
    "adm": dict(model_type="DhariwalUNet"),
}  # fmt: skip


@dataclass
class Job:
    """A training ready to start."""

    config: TrainConfig
    state: TrainState
    device: torch.device
    dataset: ImageDataset | None = None
    teacher: Denoiser | None = None
    inputs: dict[str, Any] = field(default_factory=dict)  # what tells whether a run goes on with the same files


def build(config: TrainConfig, device: torch.device) -> Job:
    """Opens, checks and constructs everything a run needs.

    Raises:
        UserError: a file that cannot be used, or a teacher, GAN and data set that do not match.
    """
    dataset = _open_dataset(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(config.seed, "init").integers(2**31)))
        builder = {"edm": _build_edm, "gan": _build_gan, "di": _build_di}[config.kind]
        state, teacher = builder(config, dataset)
    if config.freeze:
        _freeze(config, state)
    for module in (state.model, state.ema, state.fake_score, state.discriminator, state.augment_pipe, teacher):
        if isinstance(module, torch.nn.Module):
            module.to(device).eval().requires_grad_(False)
    state.pl_mean = state.pl_mean.to(device)
    inputs: dict[str, Any] = {}
    if dataset is not None:
        shape = [len(dataset), dataset.num_channels, dataset.resolution, dataset.label_dim]
        inputs["data"] = "{} images of {} channels, resolution {}, {} classes".format(*shape)
    if teacher is not None:
        inputs["teacher"] = f"weights with SHA-256 {weights_hash(teacher)}"
    if config.fsdp:
        for score in (teacher, state.fake_score):
            if score is not None:
                distributed.shard(score)
    if config.compile:
        _compile(state.model, state.fake_score, teacher)
    state.optimizers = _optimizers(config, state)
    return Job(config, state, device, dataset, teacher, inputs)


def _compile(*modules: torch.nn.Module | None) -> None:
    """Makes PyTorch compile U-Nets when they are first called; a StyleGAN2 draws its noise in between and stays."""
    try:
        ops.recipe("cpu")  # PyTorch wants a C++ compiler for the GPU too
    except UserError as error:
        raise UserError(f"--compile: {error}; or leave it out") from None
    for module in modules:
        if isinstance(module, EDMTeacher | OneStepStudent):
            module.network.compile()


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over a module's weights and buffers in order."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _open_dataset(config: TrainConfig) -> ImageDataset | None:
    """The training's images. Those that fit in memory are decoded now: a damaged file is met before the start."""
    if not config.needs_data or config.data is None:
        return None
    dataset = ImageDataset(
        config.data, use_labels=config.cond, max_size=config.subset, xflip=config.mirror, seed=config.seed
    )
    if dataset.is_cached:
        progress = PassProgress()
        dataset.preload(lambda done, total: progress("Reading images", done, total))
    return dataset


def _check_side(config: TrainConfig, side: int, fits: bool, needs: str) -> None:
    """Refuses a data set whose images have a side that the networks cannot halve."""
    if not fits:
        raise UserError(f"--data={config.data} has images of side {side}; {needs}: resize with tools/dataset_tool.py")


def _build_edm(config: TrainConfig, dataset: ImageDataset | None) -> tuple[TrainState, None]:
    assert dataset is not None
    levels = len(config.channel_mult)
    multiple = 2 ** (levels - 1)
    needs = f"--channel-mult of {levels} resolutions needs one divisible by {multiple}"
    _check_side(config, dataset.resolution, dataset.resolution % multiple == 0, needs)
    kwargs: dict[str, Any] = dict(
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
        label_dim=dataset.label_dim,
        **ARCHITECTURES[config.arch],
        model_channels=config.model_channels,
        channel_mult=list(config.channel_mult),
        num_blocks=config.num_blocks,
        attn_resolutions=list(config.attn_resolutions),
        dropout=config.dropout,
    )
    pipe = None
    if config.augment:
        kwargs["augment_dim"] = augment_edm.TRAINING_LABELS
        pipe = augment_edm.AugmentPipe(p=config.augment, **augment_edm.TRAINING)
    model = EDMTeacher(PRECONDITIONERS[config.precond](**kwargs))
    return TrainState(model, copy.deepcopy(model), {}, augment_pipe=pipe), None


def _build_gan(config: TrainConfig, dataset: ImageDataset | None) -> tuple[TrainState, None]:
    assert dataset is not None
    side = dataset.resolution
    fits = side >= 4 and not side & (side - 1)
    _check_side(config, side, fits, "--kind=gan needs one that is a power of two, from 4")
    pipe = _augment_pipe(config, dataset)
    if config.resume is not None:
        gan = gan_to_resume(
            config.resume,
            label_dim=dataset.label_dim,
            resolution=dataset.resolution,
            channels=dataset.num_channels,
            freezed=config.freezed,
        )
        model, ema = StyleGAN2Student(gan.generator), StyleGAN2Student(gan.ema)
        return TrainState(model, ema, {}, discriminator=gan.discriminator, augment_pipe=pipe), None
    common: dict[str, Any] = dict(
        c_dim=dataset.label_dim, img_resolution=dataset.resolution, img_channels=dataset.num_channels
    )
    widths: dict[str, Any] = dict(channel_base=config.cbase, channel_max=config.cmax)
    if config.fp16_res:
        widths |= dict(num_fp16_res=config.fp16_res, conv_clamp=256)
    synthesis = widths if config.noise_inputs else widths | dict(use_noise=False)
    generator = StyleGAN2(
        z_dim=config.w_dim,
        w_dim=config.w_dim,
        mapping_kwargs=dict(num_layers=config.map_depth),
        synthesis_kwargs=synthesis,
        **common,
    )
    epilogue = dict(mbstd_group_size=config.mbstd_group)
    discriminator = Discriminator(
        **common,
        **widths,
        architecture=config.d_arch,
        block_kwargs=frozen(config.freezed),
        mapping_kwargs={},
        epilogue_kwargs=epilogue,
    )
    model = StyleGAN2Student(generator)
    return TrainState(model, copy.deepcopy(model), {}, discriminator=discriminator, augment_pipe=pipe), None


def _build_di(config: TrainConfig, dataset: ImageDataset | None) -> tuple[TrainState, Denoiser | None]:
    teacher = None if config.teacher is None else as_denoiser(load_snapshot(config.teacher))
    discriminator: torch.nn.Module | None = None
    model: Generator
    if teacher is not None and teacher.img_channels not in (1, 3):
        raise UserError(
            f"--teacher={config.teacher}: its images have {teacher.img_channels} channels, so it works on an "
            "autoencoder's latents; a teacher of pictures, of 1 or 3 channels, is needed"
        )
    if config.gan_pkl is None:
        assert isinstance(teacher, EDMTeacher)
        model = OneStepStudent(copy.deepcopy(teacher.network), config.sigma_init)
    else:
        snapshot = load_snapshot(config.gan_pkl)
        model = as_generator(snapshot)
        if teacher is not None:
            _check_match(config, teacher, model)
        discriminator = _discriminator_of(config, snapshot)
    if dataset is not None:
        _check_dataset(config, dataset, model)
    state = TrainState(model, copy.deepcopy(model), {}, copy.deepcopy(teacher), discriminator)
    if dataset is not None:
        state.augment_pipe = _augment_pipe(config, dataset)
    return state, teacher


def check_augpipe(name: str) -> None:
    """Raises UserError for a name that no augmentations have."""
    if name not in AUGMENT_PIPES:
        raise UserError(f"--augpipe={name}: accepted are {', '.join(AUGMENT_PIPES)}")


def _augment_pipe(config: TrainConfig, dataset: ImageDataset) -> AugmentPipe | None:
    if config.aug == "noaug":
        return None
    check_augpipe(config.augpipe)
    multipliers: dict[str, Any] = AUGMENT_PIPES[config.augpipe]
    pipe = AugmentPipe(**multipliers)
    reach = pipe.Hz_fbank.shape[1] // 2
    if pipe.imgfilter and dataset.resolution <= reach:
        raise UserError(
            f"--augpipe={config.augpipe} filters frequency bands, which needs images larger than {reach} pixels, and "
            f"those of --data={config.data} have {dataset.resolution}; choose one without, such as bgc"
        )
    pipe.p.copy_(torch.as_tensor(config.p))
    return pipe


def _discriminator_of(config: TrainConfig, snapshot: Snapshot) -> torch.nn.Module | None:
    """The GAN's own discriminator: trained with --adv-weight, else handed on untouched."""
    discriminator = snapshot.networks.get("D")
    if discriminator is None and config.adv_weight:
        raise UserError(
            f"--gan-pkl={config.gan_pkl} holds no discriminator 'D', which --adv-weight needs; "
            "use the training's own .pkl, or leave --adv-weight out"
        )
    return discriminator


def _check_match(config: TrainConfig, teacher: Denoiser, gan: Generator) -> None:
    """Refuses a teacher and a GAN that do not speak of the same images."""
    for what, teachers, gans in (
        ("resolution", teacher.img_resolution, gan.img_resolution),
        ("channels", teacher.img_channels, gan.img_channels),
        ("classes", teacher.label_dim, gan.label_dim),
    ):
        if teachers != gans:
            raise UserError(
                f"--teacher={config.teacher} and --gan-pkl={config.gan_pkl} do not match: "
                f"{what} {teachers} against {gans}; choose a teacher trained on images like the GAN's"
            )


def _freeze(config: TrainConfig, state: TrainState) -> None:
    """Freezes parts of the generator as they are in its average, so that the average keeps them too."""
    model, ema = state.model, state.ema
    assert isinstance(model, StyleGAN2Student)
    assert isinstance(ema, StyleGAN2Student)
    unknown = [part for part in config.freeze if part not in model.parts]
    if unknown:
        raise UserError(f"--freeze={unknown[0]}: this generator has the parts {', '.join(model.parts)}")
    if set(config.freeze) == set(model.parts):
        raise UserError(f"--freeze={','.join(config.freeze)} leaves nothing to train; leave parts out of it")
    for student in (model, ema):
        student.freeze(config.freeze)
    for module, average in zip(model.frozen_modules(), ema.frozen_modules(), strict=True):
        module.load_state_dict(average.state_dict())


def _check_dataset(config: TrainConfig, dataset: ImageDataset, gan: Generator) -> None:
    found = (dataset.resolution, dataset.num_channels, dataset.label_dim)
    expected = (gan.img_resolution, gan.img_channels, gan.label_dim)
    if found != expected:
        raise UserError(
            f"--data={config.data}: resolution, channels, classes are {found}, the GAN's {expected}; "
            "--cond=true reads the labels of the data set, tools/dataset_tool.py resizes it"
        )


def _optimizers(config: TrainConfig, state: TrainState) -> dict[str, torch.optim.Optimizer]:
    """Adam for each network that moves; lazy regularisation scales its rate and betas (arXiv 1912.04958, app. B)."""

    def adam(module: torch.nn.Module, lr: float, interval: int | None, beta2: float = config.beta2) -> torch.optim.Adam:
        ratio = 1.0 if interval is None else interval / (interval + 1)
        betas = (float(config.beta1) ** ratio, float(beta2) ** ratio)
        optimizer = torch.optim.Adam(module.parameters(), lr=lr * ratio, betas=betas, eps=1e-8, fused=True)
        for group in optimizer.param_groups:
            group["initial_lr"] = lr * ratio
        return optimizer

    path_length = config.pl_interval if config.kind == "gan" and config.pl_weight else None
    optimizers: dict[str, torch.optim.Optimizer] = {"model": adam(state.model, config.lr, path_length)}
    if state.fake_score is not None:
        optimizers["fake_score"] = adam(state.fake_score, config.fake_lr or config.lr, None)
    if state.discriminator is not None and (config.kind == "gan" or config.adv_weight):
        optimizers["discriminator"] = adam(state.discriminator, config.dlr or config.lr, config.r1_interval, 0.99)
    return optimizers


def r1_gamma(config: TrainConfig, resolution: int) -> float:
    """--gamma, or StyleGAN2-ADA's heuristic 0.0002 * resolution^2 / batch."""
    return config.gamma if config.gamma is not None else 0.0002 * resolution**2 / config.batch


def run_name(config: TrainConfig) -> str:
    """'fashion-gan-di-ikl-batch64': what a run folder is called after its number."""
    source = config.gan_pkl or config.data or config.teacher or "run"
    stem = source.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].split(".")[0]
    parts = [stem, config.kind]
    if config.kind == "di":
        parts.append(config.divergence.replace(":", "-").replace("=", "").replace(",", "-"))
        if config.adv_weight:
            parts.append(f"adv{config.adv_weight:g}")
    if config.cond:
        parts.append("cond")
    if config.mirror:
        parts.append("mirror")
    if config.subset is not None:
        parts.append(f"subset{config.subset}")
    if config.kind == "edm":
        parts += [config.arch, config.precond]
    elif config.kind == "gan" and config.cfg is not None:
        parts.append(config.cfg)
    parts.append(f"batch{config.batch}")
    if config.desc:
        parts.append(config.desc)
    return "-".join(parts)


def lr_scale(config: TrainConfig, nimg: int) -> float:
    """Factor on the learning rates: linear rise over lr_rampup kimg, linear fall to 3 % after share lr_decay."""
    scale = 1.0
    if config.lr_rampup:
        scale = min(nimg / (config.lr_rampup * 1000), 1.0)
    if config.lr_decay is not None:
        done = (nimg / (config.kimg * 1000) - config.lr_decay) / (1 - config.lr_decay)
        scale *= 1 - 0.97 * min(max(done, 0.0), 1.0)
    return scale
