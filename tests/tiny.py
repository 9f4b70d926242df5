"""Networks, pickles and data sets small enough to train in a test."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylegan_di.metrics.fashion import FashionClassifier
from stylegan_di.metrics.statistics import FeatureSums, save_stats
from stylegan_di.networks import edm2, r3gan
from stylegan_di.networks.edm import PRECONDITIONERS, Precond
from stylegan_di.networks.stylegan2 import Discriminator
from stylegan_di.networks.stylegan2 import Generator as StyleGAN2
from stylegan_di.networks.stylegan3 import Generator as StyleGAN3
from stylegan_di.snapshots.checkpoint import save_snapshot

RESOLUTION = 8


def edm_network(label_dim: int = 3, seed: int = 0, precond: str = "edm", img_channels: int = 1) -> Precond:
    """`precond`: one of PRECONDITIONERS, or 'edm2'."""
    torch.manual_seed(seed)
    common: dict[str, Any] = dict(
        img_resolution=RESOLUTION, img_channels=img_channels, label_dim=label_dim, model_channels=8, channel_mult=[1],
        num_blocks=1, attn_resolutions=[], dropout=0,
    )  # fmt: skip
    if precond == "edm2":
        network: Precond = edm2.Precond(channels_per_head=8, **common)
        torch.nn.init.constant_(network.unet.out_gain, 0.5)  # type: ignore[union-attr, arg-type]
    else:
        network = PRECONDITIONERS[precond](model_type="SongUNet", **common)
    return network.eval().requires_grad_(False)


def gan_networks(c_dim: int = 3, seed: int = 0, resolution: int = RESOLUTION) -> dict[str, torch.nn.Module | None]:
    torch.manual_seed(seed)
    common: dict[str, Any] = dict(c_dim=c_dim, img_resolution=resolution, img_channels=1)
    widths: dict[str, Any] = dict(channel_base=64, channel_max=8)
    kwargs: dict[str, Any] = dict(z_dim=8, w_dim=8, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=widths)
    discriminator = Discriminator(**common, **widths)
    networks = {"G": StyleGAN2(**kwargs, **common), "D": discriminator, "G_ema": StyleGAN2(**kwargs, **common)}
    networks["G_ema"].load_state_dict(networks["G"].state_dict())
    for network in networks.values():
        network.eval().requires_grad_(False)
    return {**networks, "augment_pipe": None}


def stylegan3_networks(c_dim: int = 3, seed: int = 0, resolution: int = RESOLUTION, channels: int = 1,
                       **kwargs: Any) -> dict[str, torch.nn.Module | None]:  # fmt: skip
    """Of configuration T; kwargs such as conv_kernel=1, use_radial_filters=True make it R."""
    torch.manual_seed(seed)
    common: dict[str, Any] = dict(c_dim=c_dim, img_resolution=resolution, img_channels=channels)
    widths: dict[str, Any] = dict(channel_base=64, channel_max=8)
    own: dict[str, Any] = dict(z_dim=8, w_dim=8, num_layers=4, margin_size=4) | widths | kwargs
    networks = {"G": StyleGAN3(**own, **common), "D": Discriminator(**common, **widths),
                "G_ema": StyleGAN3(**own, **common)}  # fmt: skip
    networks["G_ema"].load_state_dict(networks["G"].state_dict())
    for network in networks.values():
        network.eval().requires_grad_(False)
    return {**networks, "augment_pipe": None}


def r3gan_networks(c_dim: int = 3, seed: int = 0, resolution: int = RESOLUTION, channels: int = 1,
                   halves: int = 0) -> dict[str, torch.nn.Module | None]:  # fmt: skip
    """halves: number of stages in bfloat16, of the highest resolutions. Blocks have outputs, though they start at 0."""
    torch.manual_seed(seed)
    count = resolution.bit_length() - 2
    common: dict[str, Any] = dict(c_dim=c_dim, img_resolution=resolution, img_channels=channels,
                                  ConditionEmbeddingDimension=5 if c_dim else 0, ExpansionFactor=2)  # fmt: skip
    widths: dict[str, Any] = dict(WidthPerStage=[8, 6][:count], CardinalityPerStage=[2, 3][:count],
                                  BlocksPerStage=[1, 2][:count])  # fmt: skip
    generator = r3gan.Generator(
        NoiseDimension=8, **widths, **common, FP16Stages=[-1 - index for index in range(halves)]
    )
    reverse = {name: value[::-1] for name, value in widths.items()}
    discriminator = r3gan.Discriminator(**reverse, **common, FP16Stages=list(range(halves)))
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            if "LinearLayer3" in name:
                torch.nn.init.normal_(parameter, 0, 0.3)
        network.eval().requires_grad_(False)
    return {"G": generator, "D": discriminator, "G_ema": copy.deepcopy(generator)}


def save_gan(path: Path, networks: Any = gan_networks, **kwargs: Any) -> Path:
    save_snapshot(path, networks(**kwargs), extras={"training_set_kwargs": {}}, metadata={})
    return path


def save_teacher(path: Path, **kwargs: Any) -> Path:
    save_snapshot(path, {"ema": edm_network(**kwargs)}, extras={"dataset_kwargs": {}}, metadata={})
    return path


def save_dataset(folder: Path, count: int = 24, classes: int = 3) -> Path:
    """Gray images whose brightness tells their class, in a folder a class."""
    rng = np.random.default_rng(0)
    for index in range(count):
        label = index % classes
        pixels = rng.integers(0, 60, [RESOLUTION, RESOLUTION], dtype=np.uint8) + np.uint8(60 * label)
        path = folder / str(label) / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    labels = ", ".join(f'["{i % classes}/{i:03d}.png", {i % classes}]' for i in range(count))
    (folder / "dataset.json").write_text(f'{{"labels": [{labels}]}}')
    return folder


def save_reference(path: Path) -> Path:
    """Statistics of the Fashion classifier's features, invented."""
    sums = FeatureSums(FashionClassifier.dim, keep_features=True)
    sums.append(torch.randn([64, FashionClassifier.dim], generator=torch.Generator().manual_seed(1)))
    save_stats(path, sums.finish(extractor=FashionClassifier.name))
    return path


def save_files(folder: Path) -> dict[str, str]:
    """A GAN, a teacher, a data set and a reference that match: their paths by name."""
    return {
        "gan": str(save_gan(folder / "gan.pkl")),
        "stylegan3": str(save_gan(folder / "stylegan3.pkl", stylegan3_networks)),
        "r3gan": str(save_gan(folder / "r3gan.pkl", r3gan_networks)),
        "teacher": str(save_teacher(folder / "teacher.pkl")),
        "data": str(save_dataset(folder / "data")),
        "ref": str(save_reference(folder / "ref.npz")),
    }
