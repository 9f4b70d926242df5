"""Trains the shipped Fashion-MNIST classifier, whose features the metrics fd_fashion and pr_fashion use.

This takes a quarter of an hour on one CPU core; equal seeds give equal weights on equal machines.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import click
import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di import zoo
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.cli import user_errors
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.images import to_rgb
from stylegan_di.metrics.fashion import WEIGHTS, FashionClassifier
from stylegan_di.random import stream

BATCH = 128
PEAK_LR = 2e-3
WARMUP = 0.1  # fraction of the training
MAX_SHIFT = 2  # pixels; the black border is as wide, so nothing is cut off


@click.command()
@click.option("--data", default="datasets/fashion-32.zip", show_default=True, help="Training images, with labels.")
@click.option("--test", default="datasets/fashion-32-test.zip", show_default=True, help="Test images, with labels.")
@click.option("--dest", default=str(zoo.ASSETS / WEIGHTS), help="File for the weights.  [default: the shipped one]")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@user_errors
def main(data: str, test: str, dest: str, epochs: int, seed: int) -> None:
    """Train the Fashion-MNIST classifier and write it as .safetensors, with its accuracy in the metadata."""
    images, labels = load(data)
    if len(images) < BATCH:
        raise UserError(f"--data={data}: {len(images)} images; at least a batch of {BATCH} images is needed")
    test_images, test_labels = load(test)
    torch.manual_seed(seed)
    network = FashionClassifier()
    train(network, images, labels, epochs, seed)
    accuracy = measure_accuracy(network.eval(), test_images, test_labels)
    accuracy_halved = measure_accuracy(network, halved(test_images), test_labels)
    metadata = {
        "accuracy": f"{accuracy:.4f}",
        "accuracy_16x16": f"{accuracy_halved:.4f}",
        "data": f"Fashion-MNIST, {len(images)} training and {len(test_images)} test images, padded to 32x32",
        "command": f"python tools/dev/train_fashion_classifier.py --epochs={epochs} --seed={seed}",
        "date": datetime.date.today().isoformat(),
    }
    atomic_write(dest, safetensors.torch.save(network.state_dict(), metadata))
    size = Path(dest).stat().st_size / 1e3
    click.echo(f"{dest}: test accuracy {accuracy:.2%} at 32x32, {accuracy_halved:.2%} at 16x16, {size:.0f} kB")


def load(path: str) -> tuple[Tensor, Tensor]:
    """Loads images uint8 [N,3,H,W] and class indices int64 [N] from a data set."""
    dataset = ImageDataset(path, use_labels=True, cache=False)
    images, labels = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return to_rgb(torch.from_numpy(np.stack(images))), torch.from_numpy(np.stack(labels)).argmax(dim=1)


def train(network: FashionClassifier, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Trains by cross-entropy with Adam; the learning rate rises linearly, then falls to zero as half a cosine."""
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.Adam(network.parameters(), lr=PEAK_LR)
    progress = Progress("training the classifier", steps, sys.stdout)
    step = 0
    for epoch in range(epochs):
        rng = stream(seed, "classifier", epoch)
        order = torch.from_numpy(rng.permutation(len(images)))
        for chosen in order.split(BATCH)[: len(images) // BATCH]:
            shift = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, size=2).tolist()
            batch = images[chosen].roll(shift, dims=(2, 3))
            if step % 3:
                batch = halved(batch)
            loss = F.cross_entropy(network.logits(batch), labels[chosen])
            for group in optimizer.param_groups:
                group["lr"] = PEAK_LR * learning_rate(step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            progress.update(step, f"loss {loss.item():.3f}")
    progress.close()


def halved(images: Tensor) -> Tensor:
    """Halves the resolution of uint8 images, as in two of three batches, because the shipped models are 16x16."""
    size = [images.shape[2] // 2, images.shape[3] // 2]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def learning_rate(done: float) -> float:
    """Returns the factor of the learning rate when the fraction `done` of the training is over."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 + 0.5 * float(np.cos(np.pi * (done - WARMUP) / (1 - WARMUP)))


@torch.no_grad()
def measure_accuracy(network: FashionClassifier, images: Tensor, labels: Tensor) -> float:
    """Returns the fraction of images whose likeliest class is correct."""
    pairs = zip(images.split(1000), labels.split(1000), strict=True)
    return sum(int((network.logits(x).argmax(dim=1) == y).sum()) for x, y in pairs) / len(images)


if __name__ == "__main__":
    main()
