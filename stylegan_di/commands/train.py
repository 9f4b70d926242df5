"""Refines a GAN or distils a teacher by Diff-Instruct (--kind=di), trains a denoiser (edm) or a StyleGAN2-ADA (gan).

    stylegan-di train --kind=di --gan-pkl=fashion-gan.pkl
    stylegan-di train --kind=di --teacher=edm-cifar10-32x32-uncond-vp.pkl
    stylegan-di train --kind=edm --data=datasets/fashion-32.zip --cond=true
    stylegan-di train --kind=gan --data=datasets/cifar10.zip --cond=true --cfg=cifar
    stylegan-di train --resume=latest
    stylegan-di train --gpus=8 ...

Exit status: 0 complete, 2 wrong options or files, 3 diverged, 4 disk full, 5 a process lost, 75 stopped by a signal
with the state saved (docs/reliability.md).
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from stylegan_di import preflight, zoo
from stylegan_di.config import TrainConfig
from stylegan_di.config.derived import uses_teacher
from stylegan_di.config.fields import ONLINE
from stylegan_di.dnnlib.cli import (
    Choice,
    GroupedCommand,
    declared_options,
    default_device,
    help_of,
    message_of,
    user_errors,
)
from stylegan_di.dnnlib.util import UserError, did_you_mean
from stylegan_di.inputs import open_data
from stylegan_di.options import Option, options_of
from stylegan_di.presets import KIND_DEFAULTS
from stylegan_di.resolve import resolve
from stylegan_di.runs import processes
from stylegan_di.runs.endings import Interrupted
from stylegan_di.runs.resume import goes_on, resume
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.distributed import ProcessLost
from stylegan_di.training.launch import launch

_ALWAYS = "leave it out, as the fast way is always chosen"
#: Options of stylegan2-ada-pytorch's, stylegan3's and edm's train.py that are not here (docs/migration.md).
NVLABS = {
    "--fp32": "give --fp16-res=0",
    "--fp16": "give --amp=fp16",
    "--glr": "the generator's learning rate is --lr",
    "--duration": "give --kimg, in thousands of images",
    "--cres": "give --channel-mult",
    "--xflip": "give --mirror",
    "--dump": "leave it out, as each snapshot comes with a state",
    "--nosubdir": "leave it out, as two runs never share a folder",
    "--cache": "leave it out, as a data set of up to 1 GiB is always kept in memory",
    **dict.fromkeys(["--nhwc", "--nobench", "--bench", "--allow-tf32", "--ls"], _ALWAYS),
}


def default_of(declared: Option, kind: str | None) -> str:
    """Returns an option's default as --help shows it, for one kind if --kind is given."""
    own = [KIND_DEFAULTS[each].get(declared.name, declared.default) for each in declared.kinds or KIND_DEFAULTS]
    value = KIND_DEFAULTS[kind].get(declared.name, declared.default) if kind else own[0]
    if "[default" in declared.help or value in (None, ""):
        return ""
    if kind is None and any(other != value for other in own):
        return "by --kind"
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def new_config(kind: Any, device: str | None, **given: Any) -> TrainConfig:
    if kind is None and given["resume"] is not None:
        if os.path.isfile(given["resume"]):
            raise UserError(
                f"--resume={given['resume']} is no training state; to continue a run, give latest, its folder, or one "
                "of its training states; to start from the GAN in this file, give --kind=gan"
            )
        hint = did_you_mean(given["resume"], ["latest"])
        raise UserError(f"--resume={given['resume']}: there is no such file or folder{hint}")
    if kind is None:
        raise UserError("--kind is missing: accepted are di, edm and gan; or --resume=latest to continue a run")
    teacher = given["teacher"] or ONLINE
    is_word = teacher != ONLINE and not {":", "*", "@"} & set(teacher)  # which URLs, the hub's names and mixtures have
    if kind == "di" and is_word and did_you_mean(teacher.lower(), [ONLINE]) and not os.path.exists(teacher):
        raise UserError(
            f"--teacher={teacher}: there is no such file; accepted are {ONLINE}, for one that is trained on the way, a "
            "known name such as edm-cifar10-32x32-cond-vp.pkl, a path, a URL, or hf:owner/name"
        )
    known = zoo.entry(given["gan_pkl"] or given["teacher"] or "")
    has_own = given["teacher"] is not None or given["cfg"] is not None
    if kind == "di" and uses_teacher(given) and not has_own:
        if known is not None:
            given["teacher"] = known.teacher
        elif given["gan_pkl"] and zoo.is_local(given["gan_pkl"]):
            zoo.resolve(given["gan_pkl"])  # a mistyped name has no known teacher: tell of the name, not of --teacher
    return resolve(
        kind,
        given | {"device": device or default_device()},
        known.name if known else None,
        resolution_of=lambda path: open_data(path).resolution,
        gpus=given["gpus"] or distributed.launched(),
    )


@click.command(
    cls=GroupedCommand,
    elsewhere=NVLABS,
    help=help_of(__doc__),
    epilog="--kind=di --help shows only the options of --kind=di, with its defaults.",
)
@click.option("--kind", type=Choice(["di", "edm", "gan"]), help="What to train; not needed with --resume=latest.")
@declared_options(options_of(TrainConfig), default_of)
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved options and exit.")
@user_errors
def main(dry_run: bool, **given: Any) -> None:
    keep_freed_memory()
    resumed = resume(given["resume"], given) if goes_on(given["resume"]) else None
    config = new_config(**given) if resumed is None else resumed.config
    if dry_run:
        preflight.check(config, processes=config.gpus or distributed.launched(), fetch=False)
        click.echo(config.to_json())
        return
    if config.gpus not in (None, 1) and not processes.started():
        processes.check_count(config.gpus, config.device)
        raise click.exceptions.Exit(processes.run(sys.orig_argv, config.gpus))
    status = 0
    try:
        with distributed.heartbeats(config.heartbeat, lost):
            launch(config, resumed)
    except Interrupted as ending:
        click.echo(str(ending))
        status = ending.status
    except ProcessLost as ending:
        if processes.has_parent():  # its message says more
            raise click.exceptions.Exit(ending.status) from None
        raise
    except UserError as error:
        if not processes.has_parent():
            raise
        click.echo(f"Error: {message_of(error)}", err=True)
        status = error.status
    if processes.started():
        leave(status)
    raise click.exceptions.Exit(status)


def lost(message: str) -> NoReturn:
    """Ends this process at once because another one hangs."""
    click.echo(f"Error: {message}; go on from the last state, if one was saved, with --resume=latest", err=True)
    leave(ProcessLost.status)


def leave(status: int) -> NoReturn:
    """Exits one of several processes immediately when its work is done, without shutting the interpreter down.

    The shutdown after a sharded run (FSDP2, gloo, PyTorch 2.13) aborted the process in two of some eighty runs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
