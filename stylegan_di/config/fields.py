"""The options of train.py, each a field with its help, type, range, group and kinds (`options`).

--help, the checks of single values and docs/options.md come from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from stylegan_di.critics import CRITIC_SPECS
from stylegan_di.data.augment import AUGMENT_PIPES
from stylegan_di.diffusion import NOISE_LAWS
from stylegan_di.divergences import DIVERGENCES
from stylegan_di.options import option
from stylegan_di.presets import EDM_PRESETS, GAN_PRESETS, RECIPES
from stylegan_di.specs import NOT_NEGATIVE, POSITIVE, SHARE, SIZE, Range, usage
from stylegan_di.students.fresh import FRESH_STUDENTS
from stylegan_di.teachers.mixed import join_teachers

Kind = Literal["edm", "gan", "di"]
Tracker = Literal["tensorboard", "wandb", "trackio"]  # named as the packages that they need

_input = partial(option, group="Inputs", blank=False)  # a shell's variable that is not set names no file
_run = partial(option, group="The run")
_shown = partial(option, group="Metrics and snapshots")
_optim = partial(option, group="Optimisation")
_level = partial(option, group="Noise levels", kinds=("edm", "di"))
_unet = partial(option, group="Denoiser, or the teacher that is trained on the way", kinds=("edm", "di"))
_gan = partial(option, group="Generator and discriminator", kinds=("gan",))
_critic = partial(option, group="Discriminator's training", kinds=("gan", "di"))
_di = partial(option, group="Diff-Instruct", kinds=("di",))
ONLINE = "online"  # --teacher's value for one that is trained on the way
_LAW = f"a spec: {usage(NOISE_LAWS)}."


@dataclass(frozen=True)
class Fields:
    """The options of a training run, as `python train.py --help` explains them."""

    kind: Kind
    cfg: str | None = _input(
        None,
        f"Preset (docs/presets.md): {', '.join(GAN_PRESETS)} [gan]; {', '.join(EDM_PRESETS)} [edm]; "
        f"{', '.join(RECIPES)} [di].",
    )
    gan_pkl: str | None = _input(
        None,
        "The GAN to refine: known name, path, URL or hf:owner/name[/file]. Without it the teacher is distilled to one "
        "step.",
        kinds=("di",),
    )
    teacher: str | None = _input(
        None,
        "The diffusion teacher: a network file (known name, path, URL, hf:owner/name[/file]), or a pipeline in "
        "diffusers' layout (a folder or hf:owner/name, docs/teachers.md). Known GANs have a default. Given more than "
        "once, as 0.7*A.pkl and 0.3*B.pkl, or A.pkl@0-1 and B.pkl@1- (noise levels), the teachers are mixed. online: "
        "one is trained from --data beside the student.",
        kinds=("di",),
        join=join_teachers,
    )
    match: Literal["pixels", "resize"] = _input(
        "pixels",
        "How the teacher sees the GAN's images: pixels as they are, or resize: in its own size and colours.",
        kinds=("di",),
    )
    classes: str | None = _input(
        None,
        "What the teacher is told of the class where its classes are not the GAN's: null (its null label), drawn (one "
        "at random), or a JSON file, a list of its class (or null) for each of the GAN's.",
        kinds=("di",),
    )
    transfer: str | None = _input(
        None, "Denoiser to start from, an EDM network: known name, path, URL or hf:owner/name[/file].", kinds=("edm",)
    )
    autoencoder: str | None = _input(
        None,
        "Autoencoder of a denoiser that works on latents: a folder in diffusers' layout or hf:owner/name. [default: "
        "the pipeline's own]",
        kinds=("edm", "di"),
    )
    data: str | None = _input(
        None,
        "Training images: ZIP or folder (stylegan-di dataset makes them). --kind=di takes them where its losses use "
        "real images, and takes teacher:N, samples of the teacher that are drawn once and cached, or teacher:fresh, "
        "new ones at each step.",
    )
    cond: bool = _input(False, "Train a class-conditional model; the data set needs labels.")
    mirror: bool = _input(False, "Double the data set by horizontal flips.")
    subset: int | None = _input(
        None, "Use only so many images of the data set, chosen by --seed. [default: all]", POSITIVE
    )
    ref: str | None = _input(
        None, "Reference statistics (.npz, .pkl) of the metrics. Known GANs and teachers have a default, else --data."
    )
    detector_file: str | None = _input(
        None, "Weights that cannot be downloaded: FILE, or inception=FILE,vgg16=FILE of several networks."
    )
    resume: str | None = _input(
        None,
        "Continue a run: latest, its folder or --outdir's, or a training state. For --kind=gan also a GAN to start "
        "from: a .pkl, URL or known name, or ffhq256, ffhq512, ffhq1024, celebahq256, lsundog256; noresume for none.",
    )

    outdir: str = _run("runs", "Folder that gets the run's folder.")
    desc: str = _run("", "Text added to the run folder's name.")
    seed: int = _run(0, "Random seed; same seed, same run (of the same versions and number of threads).", NOT_NEGATIVE)
    device: str = _run("cpu", "cuda, cuda:N, cpu, or mps (Apple's GPUs). [default: cuda where there is one]")
    gpus: int | None = _run(
        None, "Processes to start here, one a GPU; without it, those of torchrun, or one.", POSITIVE
    )
    heartbeat: float = _run(
        30.0, "[several processes] Seconds without a sign of life after which a process counts as lost.", Range(1.0)
    )
    workers: int = _run(1, "Threads that load images ahead; 0: none.", Range(0, 256))
    batch: int = _run(64, "Images a step, over all processes.", SIZE)
    batch_gpu: int | None = _run(None, "Images at a time in a process; more are accumulated. [default: all]", SIZE)
    kimg: float = _run(25000.0, "Length of the run in thousands of images.", Range(0.001))
    tick: float = _run(50.0, "Thousands of images between lines of the log.", POSITIVE)
    amp: Literal["none", "bf16", "fp16", "auto"] = _run(
        "none",
        "Autocast of denoisers and student: none (float32), bf16, fp16, or auto: bf16 where that is faster on this "
        "machine, else none; weights and moments stay float32.",
        kinds=("edm", "di"),
    )
    winograd: bool = _di(
        False,
        "On a CPU, the teacher's convolutions of 192 channels or more take fewer products, for 4 times their memory.",
    )
    compile: bool = _run(
        False,
        "torch.compile the U-Nets: the first step takes minutes, later ones take less time, except on a GPU, where it "
        "takes the place of --cuda-graph, which is faster.",
        kinds=("edm", "di"),
    )
    cuda_graph: Literal["auto", "true", "false"] = _run(
        "auto",
        "On a GPU, repeat a step as one CUDA graph, which is faster; auto: where a step can be one.",
    )
    fsdp: bool = _run(False, "Spread the weights of teacher and fake score over the processes (FSDP2).", kinds=("di",))
    max_skips: int = _run(
        10,
        "The run ends as diverged when so many updates were skipped in ten times as many steps; an update is skipped "
        "if its gradients are not finite or exploded.",
        POSITIVE,
    )
    on_divergence: Literal["abort", "best"] = _run(
        "abort", "What then follows: abort, or best, which returns to the best snapshot, at most three times."
    )

    metrics: tuple[str, ...] = _shown(
        ("fid50k_full",), "Comma-separated, or none; the first decides which snapshot is best."
    )
    metric_samples: int = _shown(50000, "Samples the metrics are measured on.", Range(2))
    snap: int = _shown(50, "Ticks between snapshots, with metrics and grids.", POSITIVE)
    state: int = _shown(
        5, "Ticks between training states, from which --resume continues; each snapshot also writes one.", POSITIVE
    )
    snap_format: Literal["pkl", "safetensors"] = _shown("pkl", "pkl (NVlabs' tools open it) or safetensors.")
    track: tuple[Tracker, ...] = _shown(
        (), f"Also report to {', '.join(get_args(Tracker))}, comma-separated, or none (docs/watching.md)."
    )

    lr: float = _optim(1e-3, "Learning rate.", POSITIVE)
    lr_rampup: float = _optim(0.0, "Thousands of images over which learning rates rise linearly.", NOT_NEGATIVE)
    lr_decay: float | None = _optim(
        None,
        "Share of the run after which learning rates fall linearly to 3 %. [default: never]",
        Range(0, 1, open_high=True),
    )
    beta1: float = _optim(0.0, "Adam's beta1.", Range(0, 1, open_high=True))
    beta2: float = _optim(0.99, "Adam's beta2 (a discriminator's is 0.99).", Range(0, 1, open_high=True))
    ema: float = _optim(10.0, "Half-life of the weights' average in thousands of images.", NOT_NEGATIVE)
    ema_rampup: float | None = _optim(
        0.05, "While young, the half-life is at most this share of the images seen; 0: no such limit.", NOT_NEGATIVE
    )

    noise_law: str = _level("lognormal", f"Noise levels of the student's update (di) or the denoiser's (edm), {_LAW}")
    fake_noise_law: str = _level(
        "lognormal", "Noise levels of the fake score's update, a spec likewise.", kinds=("di",)
    )
    critic_noise_law: str = _level(
        "none",
        "Noise levels at which the critic sees images, a spec likewise; none: a discriminator sees them clean, "
        "--critic=features as lognormal.",
        kinds=("di",),
    )

    arch: Literal["ddpmpp", "ncsnpp", "adm"] = _unet("ddpmpp", "U-Net architecture; the same as --cfg.")
    precond: Literal["edm", "vp", "ve"] = _unet("edm", "Preconditioning, noise levels and loss.")
    augment: float = _unet(0.12, "Probability of EDM's augmentations; 0: none.", SHARE)
    model_channels: int = _unet(128, "Channels of the U-Net at full resolution, before --channel-mult.", SIZE)
    channel_mult: tuple[int, ...] = _unet(
        (2, 2, 2), "Multipliers of the channels, one a resolution, comma-separated.", Range(1, 1024)
    )
    num_blocks: int = _unet(4, "Residual blocks a resolution.", Range(1, 64))
    attn_resolutions: tuple[int, ...] = _unet(
        (16,), "Resolutions with self-attention, comma-separated.", Range(1, 8192)
    )
    dropout: float = _unet(0.13, "Dropout of the U-Net.", SHARE)
    label_dropout: float = _unet(0.0, "Probability of training without the label.", SHARE)

    cbase: int = _gan(
        16384, "Channels at resolution r are min(cbase / r, cmax), in generator and discriminator.", Range(1, 1 << 20)
    )
    cmax: int = _gan(512, "Most channels.", SIZE)
    w_dim: int = _gan(512, "Dimensions of z and w.", SIZE)
    map_depth: int = _gan(2, "Layers of the mapping network.", Range(1, 64))
    noise_inputs: bool = _gan(True, "Per-pixel noise inputs in the synthesis network.")
    d_arch: Literal["resnet", "skip", "orig"] = _gan("resnet", "Architecture of the discriminator.")
    freezed: int = _gan(
        0, "Layers of the discriminator that are not trained, from the highest resolution on.", Range(0, 1000)
    )
    fp16_res: int = _gan(
        0, "Highest resolutions computed in float16 on a GPU. [default: 4 on CUDA, else 0]", Range(0, 32)
    )
    mixing: float = _gan(0.9, "Probability of style mixing.", SHARE)
    pl_weight: float = _gan(2.0, "Weight of path length regularisation; 0: none.", NOT_NEGATIVE)
    pl_interval: int = _gan(4, "Steps between path length updates.", POSITIVE)
    blur_sigma: float = _gan(
        0.0, "Deviation, in pixels, of the blur of all that the discriminator sees at first.", NOT_NEGATIVE
    )
    blur_fade: float = _gan(0.0, "Thousands of images over which the blur fades.", NOT_NEGATIVE)
    anneal: float = _gan(
        0.0,
        "Thousands of images of R3GAN's schedules: lr falls to a quarter, gamma to a tenth, beta2 rises from 0.9, p "
        "and ema rise from 0; 0: none.",
        NOT_NEGATIVE,
    )
    mbstd_group: int = _gan(4, "Group size of the minibatch standard deviation.", SIZE)

    freeze: tuple[str, ...] = _critic(
        (), "Parts of the generator that stay as they are: mapping, b4, b8, ... (keeps w and projections valid)."
    )
    gamma: float | None = _critic(
        None, "Weight of the R1 penalty. [default: 0.0002 * resolution^2 / batch]", NOT_NEGATIVE
    )
    r1_interval: int = _critic(16, "Steps between R1 updates.", POSITIVE)
    dlr: float | None = _critic(None, "Learning rate of the discriminator. [default: --lr]", POSITIVE)
    aug: Literal["noaug", "ada", "fixed"] = _critic(
        "ada", "Discriminator augmentation: noaug, ada (p by ADA's rule) or fixed (p by --p)."
    )
    augpipe: str = _critic("bgc", "Augmentations.", choices=tuple(AUGMENT_PIPES))
    p: float = _critic(0.0, "Augmentation probability (fixed), or where ADA starts.", SHARE)
    target: float = _critic(0.6, "ADA's target for E[sign D(real)].", SHARE)
    ada_kimg: float = _critic(500.0, "Thousands of images over which ADA's p can move by 1.", POSITIVE)

    divergence: str = _di(
        "ikl",
        f"What moves the student, a spec or a weighted sum such as ikl+0.5*sid (docs/theory.md): {usage(DIVERGENCES)}; "
        "none: --adv-weight alone.",
    )
    clip: bool = _di(
        False,
        "The teacher sees images as they are shown, clipped to [-1, 1], so that what ought to be black or white can "
        "become so.",
    )
    clip_return: float = _di(
        0.1,
        "[--clip=true] The share of a gradient that counts where it leads a pixel back from beyond an end; 0 keeps "
        "what has become black or white.",
        SHARE,
    )
    whitening: float = _di(
        0.0,
        "How far the student's error is measured in whitened images, in which fine detail weighs as much as the coarse "
        "picture, at 1; beyond, more than that; 0: not at all (pixels).",
        Range(0, 1.5),
    )
    student: str = _di(
        "auto",
        "What is trained: the GAN, or without one the teacher's network in one step (auto); refiner: the GAN with the "
        f"teacher's network behind it; or a new network, a spec (docs/students.md): {usage(FRESH_STUDENTS)}.",
    )
    sigma_init: float = _di(
        2.5,
        "Noise level at which a one-step student starts, or that a refiner adds to the GAN's images. [default: 2.5, "
        "for a refiner 1]",
        POSITIVE,
    )
    student_steps: int = _di(
        1, "Denoising steps of a student that is distilled without a GAN, trained at their levels.", Range(1, 64)
    )
    fake_lr: float | None = _di(None, "Learning rate of the fake score. [default: --lr]", POSITIVE)
    fake_rank: int | None = _di(
        None,
        "Rank of low-rank adapters: the fake score shares the teacher's weights and trains these alone, which saves "
        "memory. Networks of diffusers need peft for it. [default: a whole copy]",
        Range(1, 4096),
    )
    fake_steps: int = _di(1, "Updates of the fake score in a step, which has one of the student.", Range(1, 1000))
    one_noise: bool = _di(
        False,
        "One noisy input serves both updates: the fake score is evaluated once less, a fifth of a step's work. Needs "
        "equal --noise-law and --fake-noise-law.",
    )
    fake_warmup: float = _di(
        0.0, "Thousands of images on which only the fake score learns, inside --kimg.", NOT_NEGATIVE
    )
    force: bool = _di(
        False, "Start although the teacher does not fit the GAN's samples in classes, colours or values, or is worse."
    )
    headroom: int | None = _di(
        None,
        "Samples of GAN and teacher on which the first metric that judges images is measured before the run, which is "
        "refused where the teacher's is more than twice as bad; 0: none. [default: 1000 on a GPU, else 0]",
        Range(0),
    )
    teacher_lr: float | None = _di(
        None, "Learning rate of a teacher that is trained on the way. [default: --lr]", POSITIVE
    )
    teacher_warmup: float = _di(
        0.0,
        "Thousands of images on which only a teacher that is trained on the way learns, inside --kimg.",
        NOT_NEGATIVE,
    )
    prompt: str | None = _di(
        None, "What a text-to-image teacher shall see: a text, or one a class of the GAN, as in 'a cat|a dog'."
    )
    negative_prompt: str | None = _di(None, "The text that --guidance leads away from. [default: the empty text]")
    guidance: float = _di(
        1.0, "Scale of the teacher's classifier-free guidance, away from its null label; 1: none.", POSITIVE
    )
    checkpointing: bool = _di(
        False, "Compute activations of teacher and fake score again in the backward pass: less memory, more time."
    )
    critic: str = _di(
        "none",
        f"A critic on the teacher's features beside the divergence, a spec: {usage(CRITIC_SPECS)}. It learns from "
        "--data: real images, or samples of the teacher (teacher:10000).",
    )
    teacher_samples: int | None = _di(
        None,
        "Beside the real images of --data, the critic on the teacher's features learns from so many samples of the "
        "teacher, which are drawn once and cached: every other step. [default: none]",
        Range(2, 10**9),
    )
    adv_weight: float = _di(
        0.0,
        "Weight of the adversarial loss of the GAN's own discriminator beside the divergence; needs --data.",
        NOT_NEGATIVE,
    )
