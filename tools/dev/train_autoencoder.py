"""Trains a small variational autoencoder of diffusers, whose latents a teacher can work on (docs/teachers.md).

    python tools/dev/train_autoencoder.py --data=datasets/fashion-16.zip --dest=runs/autoencoder

Gray or RGB images of side s become latents of 4 channels and side s / 4 (Kingma & Welling 2013, arXiv 1312.6114). The
config that is written brings each channel of them to a mean of 0 and a standard deviation of 0.5, as EDM's noise levels
want (docs/teachers.md). It needs the extra `diffusers`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sampler import iterate_batches
from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.util import not_installed
from stylegan_di.images import from_uint8

KL_WEIGHT = 1e-4  # beside the mean squared error of a pixel in [-1,1]
LAYOUT = dict(block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, latent_channels=4,
              mid_block_add_attention=False)  # fmt: skip


@click.command(help=help_of(__doc__))
@click.option("--data", required=True, help="Training images: ZIP or folder.")
@click.option("--dest", required=True, help="Folder that gets config.json and the weights.")
@click.option("--kimg", type=float, default=100, show_default=True, help="Thousands of images to train on.")
@click.option("--batch", type=int, default=32, show_default=True, help="Images a step.")
@click.option("--lr", type=float, default=2e-3, show_default=True, help="Learning rate; it falls linearly to 0.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@user_errors
def main(data: str, dest: str, kimg: float, batch: int, lr: float, seed: int) -> None:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise not_installed(f"--dest={dest}", "diffusers", "diffusers") from None
    torch.manual_seed(seed)
    images = ImageDataset(data)
    blocks = len(LAYOUT["block_out_channels"])  # type: ignore[arg-type]
    network = AutoencoderKL(
        in_channels=images.num_channels, out_channels=images.num_channels, sample_size=images.resolution,
        down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks, **LAYOUT,
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr)
    steps = round(kimg * 1000 / batch)
    batches = iterate_batches(images, seed=seed, nimg=0, batch=batch, rank=0, world_size=1, num_workers=1)
    for step, (raw, _) in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        x = from_uint8(raw)
        posterior = network.encode(x).latent_dist
        error = F.mse_loss(network.decode(posterior.sample()).sample, x)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        (error + KL_WEIGHT * kl).backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            click.echo(f"image {step * batch}: squared error {error:.4f}, KL {kl:.2f} nats a number")
    mean, std = _moments(network, images)
    scale = dict(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    network.register_to_config(**scale)
    network.save_pretrained(dest)
    click.echo(f"written: {dest}; latents have the means {mean} and the standard deviations {std}")


@torch.no_grad()
def _moments(network: torch.nn.Module, images: ImageDataset, count: int = 2000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of the latents' means."""
    first = next(iterate_batches(images, seed=1, nimg=0, batch=count, rank=0, world_size=1, num_workers=0))[0]
    means = torch.cat([network.encode(from_uint8(part)).latent_dist.mean for part in first.split(100)])  # type: ignore[operator]
    flat = means.transpose(0, 1).flatten(1)
    return flat.mean(dim=1).tolist(), flat.std(dim=1).tolist()


if __name__ == "__main__":
    main()
