"""Refines a GAN or distils a teacher by Diff-Instruct (--kind=di), trains a denoiser (edm) or a StyleGAN2-ADA (gan).

    python train.py --kind=di --gan-pkl=fashion-gan.pkl
    python train.py --kind=di --teacher=edm-cifar10-32x32-uncond-vp.pkl
    python train.py --kind=edm --data=datasets/fashion-32.zip --cond=true
    python train.py --kind=gan --data=datasets/cifar10.zip --cond=true --cfg=cifar
    python train.py --resume=latest
    python train.py --gpus=8 ...

Exit status: 0 complete, 2 wrong options or files, 3 diverged, 4 disk full, 5 a process lost, 75 stopped by a signal,
state saved (docs/reliability.md).
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from stylegan_di import zoo
from stylegan_di.config import GROUPS, TrainConfig, resolve
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.cli import Device, default_device, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.table import metric
from stylegan_di.presets import EDM_PRESETS, GAN_PRESETS, RECIPES
from stylegan_di.runs import processes
from stylegan_di.runs.endings import Interrupted
from stylegan_di.runs.resume import goes_on, resume
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.distributed import ProcessLost
from stylegan_di.training.build import check_augpipe
from stylegan_di.training.launch import launch

HELP: dict[str, str] = {
    "cfg": f"Preset (docs/presets.md): {', '.join(GAN_PRESETS)} [gan]; {', '.join(EDM_PRESETS)} [edm]; "
    f"{', '.join(RECIPES)} [di].",
    "outdir": "Folder that gets the run's folder.",
    "desc": "Text added to the run folder's name.",
    "data": "Training images: ZIP or folder (tools/dataset_tool.py makes them). For --kind=di only with --adv-weight.",
    "cond": "Train a class-conditional model; the data set needs labels.",
    "mirror": "Double the data set by horizontal flips.",
    "subset": "Use only so many images of the data set, chosen by --seed. [default: all]",
    "gan_pkl": "The GAN to refine: known name, path or URL. Without it the teacher is distilled to one step.",
    "teacher": "EDM teacher: known name, path or URL. Known GANs have a default.",
    "ref": "Reference statistics (.npz, .pkl) of the metrics. Known GANs and teachers have a default, else --data.",
    "detector_file": "Weights that cannot be downloaded: FILE, or inception=FILE,vgg16=FILE of several networks.",
    "resume": "Go on with a run: latest, its folder, or a training state. For --kind=gan also a GAN to train on: a "
    ".pkl, URL or known name, or ffhq256, ffhq512, ffhq1024, celebahq256, lsundog256; noresume for none.",
    "seed": "Random seed; same seed, same run (of the same versions and number of threads).",
    "device": "cuda, cuda:N or cpu. [default: cuda when there]",
    "gpus": "Processes to start here, one a GPU; without it, those of torchrun, or one.",
    "workers": "Threads that load images ahead; 0: none.",
    "batch": "Images a step, over all processes.",
    "batch_gpu": "Images at a time in a process; more are accumulated. [default: all]",
    "kimg": "Length of the run in thousands of images.",
    "tick": "Thousands of images between lines of the log.",
    "snap": "Ticks between snapshots, with metrics and grids.",
    "state": "Ticks between training states, from which --resume goes on; each snapshot also writes one.",
    "snap_format": "pkl (NVlabs' tools open it) or safetensors.",
    "metrics": "Comma-separated, or none; the first decides which snapshot is best.",
    "metric_samples": "Samples the metrics are measured on.",
    "max_skips": "Updates left out, because their gradients are not finite or exploded, at which the run has diverged "
    "(within ten times as many steps).",
    "on_divergence": "abort, or best: go back to the best snapshot, at most three times.",
    "amp": "Autocast of denoisers and student: none (float32), bf16, or fp16; weights and moments stay float32.",
    "compile": "torch.compile the U-Nets: the first step takes minutes, those after it less.",
    "lr": "Learning rate.",
    "lr_rampup": "Thousands of images over which learning rates rise linearly.",
    "lr_decay": "Share of the run after which learning rates fall linearly to 3 %. [default: never]",
    "beta1": "Adam's beta1.",
    "beta2": "Adam's beta2 (a discriminator's is 0.99).",
    "ema": "Half-life of the weights' average in thousands of images.",
    "ema_rampup": "While young, the half-life is at most this share of the images seen.",
    "P_mean": "Mean of ln sigma; for --kind=di in the student's update.",
    "P_std": "Standard deviation of ln sigma; for --kind=di in the student's update.",
    "arch": "U-Net architecture: ddpmpp, ncsnpp or adm; the same as --cfg.",
    "precond": "Preconditioning, noise levels and loss: edm, vp or ve.",
    "augment": "Probability of EDM's augmentations; 0: none.",
    "model_channels": "Channels of the U-Net at full resolution, before --channel-mult.",
    "channel_mult": "Multipliers of the channels, one a resolution, comma-separated.",
    "num_blocks": "Residual blocks a resolution.",
    "attn_resolutions": "Resolutions with self-attention, comma-separated.",
    "dropout": "Dropout of the U-Net.",
    "label_dropout": "Probability to train without the label.",
    "cbase": "Channels at resolution r are min(cbase / r, cmax), in generator and discriminator.",
    "cmax": "Most channels.",
    "w_dim": "Dimensions of z and w.",
    "map_depth": "Layers of the mapping network.",
    "noise_inputs": "Per-pixel noise inputs in the synthesis network.",
    "d_arch": "Architecture of the discriminator: resnet, skip or orig.",
    "freezed": "Layers of the discriminator that are not trained, from the highest resolution on.",
    "fp16_res": "Highest resolutions computed in float16. [default: 4 on CUDA, else 0]",
    "mixing": "Probability of style mixing.",
    "pl_weight": "Weight of path length regularisation; 0: none.",
    "pl_interval": "Steps between path length updates.",
    "gamma": "Weight of the R1 penalty. [default: 0.0002 * resolution^2 / batch]",
    "r1_interval": "Steps between R1 updates.",
    "dlr": "Learning rate of the discriminator. [default: --lr]",
    "aug": "Discriminator augmentation: noaug, ada (p by ADA's rule) or fixed (p by --p).",
    "augpipe": "Augmentations: blit, geom, color, ... and their sums such as bgc.",
    "p": "Augmentation probability (fixed), or where ADA starts.",
    "target": "ADA's target for E[sign D(real)].",
    "ada_kimg": "Thousands of images over which ADA's p can move by 1.",
    "mbstd_group": "Group size of the minibatch standard deviation.",
    "freeze": "Parts of the generator that stay as they are: mapping, b4, b8, ... (keeps w and projections valid).",
    "divergence": "ikl, ikl:weight=one, ikl:weight=dmd, sid, sid:alpha=1.2; none: --adv-weight alone.",
    "sigma_init": "Noise level at which a one-step student starts.",
    "fake_lr": "Learning rate of the fake score. [default: --lr]",
    "fake_P_mean": "Mean of ln sigma in the fake score's update.",
    "fake_P_std": "Standard deviation of ln sigma in the fake score's update.",
    "fake_warmup": "Thousands of images on which only the fake score learns, inside --kimg.",
    "adv_weight": "Weight of the adversarial loss of the GAN's own discriminator beside the divergence; needs --data.",
    "fsdp": "Spread the weights of teacher and fake score over the processes (FSDP2).",
}


class CommaList(click.ParamType):
    """'a,b' -> ('a', 'b'); 'none' -> ()."""

    name = "list"

    def __init__(self, item: type) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        try:
            return tuple(self.item(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not a comma-separated list of {self.item.__name__}", param, ctx)


def _type_of(name: str) -> Any:
    """The click type of a field of TrainConfig, from its annotation."""
    if name == "device":
        return Device()
    annotation = str(TrainConfig.__annotations__[name]).replace(" | None", "")
    if annotation.startswith("Literal["):
        return click.Choice([part.strip(" \"'") for part in annotation[8:-1].split(",")])
    if annotation.startswith("tuple["):
        return CommaList(int if "int" in annotation else str)
    return {"str": str, "int": int, "float": float, "bool": bool}[annotation]


def _options(command: Any) -> Any:
    """One option for each field of TrainConfig."""
    for name, text in reversed(HELP.items()):
        kinds = GROUPS.get(name)
        text = f"[{', '.join(kinds)}] {text}" if kinds else text
        command = click.option(f"--{name.replace('_', '-')}", name, type=_type_of(name), help=text)(command)
    return command


def new_config(kind: Any, device: str | None, **given: Any) -> TrainConfig:
    """The configuration of a run that begins."""
    if kind is None:
        raise UserError("--kind is missing: accepted are di, edm and gan; or --resume=latest to go on with a run")
    known = zoo.entry(given["gan_pkl"] or given["teacher"] or "")
    wants_teacher = kind == "di" and given["divergence"] != "none"
    if wants_teacher and known is not None and given["teacher"] is None and given["cfg"] is None:
        given["teacher"] = known.teacher
    for name in given["metrics"] or ():
        metric(name)  # refuses an unknown one
    if given["augpipe"] is not None:
        check_augpipe(given["augpipe"])
    return resolve(
        kind,
        given | {"device": device or default_device()},
        known.name if known else None,
        resolution_of=lambda path: ImageDataset(path).resolution,
        gpus=given["gpus"] or distributed.launched(),
    )


@click.command(help=__doc__.replace("\n    ", "\n\n    ") if __doc__ else None)
@click.option("--kind", type=click.Choice(["di", "edm", "gan"]), help="What to train; not needed with --resume=latest.")
@_options
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved options and exit.")
@user_errors
def main(dry_run: bool, **given: Any) -> None:
    keep_freed_memory()
    resumed = resume(given["resume"], given) if goes_on(given["resume"]) else None
    config = new_config(**given) if resumed is None else resumed.config
    if dry_run:
        click.echo(config.to_json())
        return
    if config.gpus not in (None, 1) and not processes.started():
        raise click.exceptions.Exit(processes.run(sys.orig_argv, config.gpus))
    status = 0
    try:
        launch(config, resumed)
    except Interrupted as ending:
        click.echo(str(ending))
        status = ending.status
    except ProcessLost as ending:
        if processes.has_parent():  # which tells more
            raise click.exceptions.Exit(ending.status) from None
        raise
    if processes.started():
        leave(status)
    raise click.exceptions.Exit(status)


def leave(status: int) -> NoReturn:
    """Ends a process of several at once, its work done, without taking the interpreter down.

    There, after a sharded run (FSDP2, gloo, PyTorch 2.13), a process has been seen to abort, twice in some eighty runs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
