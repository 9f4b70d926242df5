"""Reads what a pipeline in diffusers' layout is: a folder of JSON and safetensors, here or on a hub ('hf:owner/name').

`model_index.json` names the parts. Only JSON is read here; `snapshots.diffusers_parts` builds the parts that are used.
Neither reads pickles (.bin, .ckpt) or runs code of the folder's own: both are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylegan_di import hub
from stylegan_di.dnnlib.untrusted import open_untrusted, read_json_file, safetensors_budget, untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.snapshots.blueprint import ImageShape

MAX_JSON = 1 << 20  # bytes of a config; the largest have some thousand
MAX_CLASSES = 100_000
MAX_WORDS = 1 << 24  # bytes of a tokenizer's files; CLIP's have at most 4 MB
#: What is fetched from a hub. The text file is the merges of a tokenizer.
FETCHED = ("*.json", "*diffusion_pytorch_model*.safetensors", "*/model*.safetensors", "tokenizer*/merges.txt")
NOT_FETCHED = ("*non_ema*", "*.fp16.*", "safety_checker/*")

#: Largest sample_size by class; a transformer's positions are computed for all of its pixels at once.
MAX_SIDES = {"UNet2DModel": 8192, "UNet2DConditionModel": 8192, "DiTTransformer2DModel": 256}
NETWORKS = {"unet": ("UNet2DModel", "UNet2DConditionModel"), "transformer": ("DiTTransformer2DModel",)}
OLD_NAMES = {"Transformer2DModel": "DiTTransformer2DModel"}  # of older pipelines, where their norm_type is DiT's
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
TEXT_NETWORK = "UNet2DConditionModel"
#: Arguments of a UNet2DConditionModel that ask for more than texts and a time.
MORE_CONDITIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
TEXT_AND_SIZES = "text_time"  # the addition_embed_type of SDXL, which is told a pooled text and the images' sizes
#: Text encoders and their tokenizers; SDXL has two of each.
TEXTS = (
    ("text_encoder", "tokenizer", "CLIPTextModel"),
    ("text_encoder_2", "tokenizer_2", "CLIPTextModelWithProjection"),
)


@dataclass(frozen=True)
class TeacherOptions:
    """What a teacher is given besides its file; see the options of the same names."""

    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float = 1.0
    autoencoder: str | None = None
    checkpointing: bool = False

    @property
    def prompts(self) -> list[str]:
        """The prompts, one a class where there are several."""
        return [] if self.prompt is None else [text.strip() for text in self.prompt.split("|")]


@dataclass(frozen=True)
class Part:
    """A part of a pipeline: the folder of its files, its class in diffusers or transformers, and its config."""

    folder: Path
    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Autoencoder(Part):
    """An autoencoder, and what its config says of its images and latents, or leaves to the default of its class."""

    @property
    def image_channels(self) -> int:
        return self.config.get("in_channels", 3)

    @property
    def latent_channels(self) -> int:
        return self.config.get("latent_channels", 4)

    @property
    def downsampling(self) -> int:
        """How many times smaller than images its latents are."""
        prefix = "encoder_" if self.class_name == "AutoencoderTiny" else ""
        levels = self.config.get(f"{prefix}block_out_channels")
        return int(2 ** (len(levels) - 1)) if isinstance(levels, list) and 0 < len(levels) <= 16 else 8


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as its JSON describes it; what it has no use for is None."""

    source: str
    network: Part
    scheduler: Part
    autoencoder: Autoencoder | None
    texts: tuple[tuple[Part, Part], ...]  # text encoders with their tokenizers
    zero_null: bool  # whether the embedding of no negative prompt is zero, not that of the empty text

    @property
    def reads_texts(self) -> bool:
        return self.network.class_name == TEXT_NETWORK

    @property
    def is_transformer(self) -> bool:
        return self.network.class_name in NETWORKS["transformer"]

    @property
    def told_sizes(self) -> bool:
        """Whether the network is told a pooled text and the images' sizes, as SDXL's is (arXiv 2307.01952)."""
        return _is_told_sizes(self.network)

    def shape(self, options: TeacherOptions) -> ImageShape:
        """The shape of the images that a student must make for this teacher."""
        config, autoencoder = self.network.config, self.autoencoder
        prompts = options.prompts
        classes = config.get("num_embeds_ada_norm" if "num_embeds_ada_norm" in config else "num_class_embeds") or 0
        if self.reads_texts:
            classes = len(prompts) if len(prompts) > 1 else 0
        if autoencoder is None:
            return ImageShape(config["sample_size"], config["in_channels"], classes)
        return ImageShape(config["sample_size"] * autoencoder.downsampling, autoencoder.image_channels, classes)

    def sentence(self) -> str:
        """What the run's header says of it."""
        parts = [self.network, self.scheduler, self.autoencoder, *(encoder for encoder, _ in self.texts)]
        return ", ".join(part.class_name for part in parts if part is not None) + " in diffusers' layout."


def is_pipeline(source: str) -> bool:
    """Whether a --teacher is a pipeline, not a network file; asks the hub where a name says no file of it.

    Raises:
        UserError: if the hub cannot be asked.
    """
    return hub.is_pipeline(source) if source.startswith(hub.HUB) else Path(source).is_dir()


def read_pipeline(source: str, options: TeacherOptions) -> Pipeline:
    """Reads a pipeline's JSON and checks that it can be a teacher with these options; downloads one of a hub.

    Raises:
        UserError: if it cannot.
    """
    option = f"--teacher={source}"
    folder = locate(source, option)
    index = _json(folder / "model_index.json", option)
    name = next((name for name in NETWORKS if _is_there(index.get(name))), None)
    if name is None:
        raise UserError(f"{option}: model_index.json names no {' or '.join(NETWORKS)}, the network of a teacher")
    network = _part(folder, index, name, NETWORKS[name], option)
    _check_network(network, option)
    told_sizes = _is_told_sizes(network)
    texts = TEXTS[: 2 if told_sizes else 1] if network.class_name == TEXT_NETWORK else ()
    autoencoder: Autoencoder | None = None
    if options.autoencoder is not None:
        autoencoder = read_autoencoder(options.autoencoder)
    elif _is_there(index.get("vae")):
        autoencoder = Autoencoder(**vars(_part(folder, index, "vae", AUTOENCODERS, option)))
    pipeline = Pipeline(
        source=source,
        network=network,
        scheduler=_part(folder, index, "scheduler", (), option),
        autoencoder=autoencoder,
        texts=tuple(
            (
                _part(folder, index, encoder, (known,), option),
                _part(folder, index, tokenizer, ("CLIPTokenizer",), option),
            )
            for encoder, tokenizer, known in texts
        ),
        zero_null=told_sizes and index.get("force_zeros_for_empty_prompt", True) is True,
    )
    _check_latents(pipeline, index, options, option)
    _check_options(pipeline, options, option)
    return pipeline


def read_autoencoder(source: str) -> Autoencoder:
    """Reads the JSON of --autoencoder: a folder with the files of an autoencoder, or of a pipeline that has one.

    Raises:
        UserError: if it has none that can be used.
    """
    option = f"--autoencoder={source}"
    folder = locate(source, option)
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    config = _json(folder / "config.json", option)
    class_name = config.get("_class_name")
    if class_name not in AUTOENCODERS:
        raise UserError(f"{option} is a {str(class_name)[:60]}; accepted are {', '.join(AUTOENCODERS)}")
    return Autoencoder(folder, class_name, config)


def locate(source: str, option: str) -> Path:
    """The folder of a pipeline; one of a hub is downloaded, or taken from the hub's cache.

    Raises:
        UserError: there is none.
    """
    if not source.startswith(hub.HUB):
        if not Path(source).is_dir():
            raise UserError(
                f"{option}: there is no such folder; accepted are a folder in diffusers' layout and hf:owner/name"
            )
        return Path(source)
    name = hub.parse(source)
    if name.file:
        raise UserError(f"{option}: accepted is hf:owner/name or hf:owner/name@revision, without a file")
    with hub.told(f"{option} could not be downloaded") as library:
        patterns = {"allow_patterns": list(FETCHED), "ignore_patterns": list(NOT_FETCHED)}
        options = {"revision": name.revision, "force_download": hub.anew()}
        return Path(library.snapshot_download(name.repo, **options, **patterns))


def _is_told_sizes(network: Part) -> bool:
    return network.config.get("addition_embed_type") == TEXT_AND_SIZES


def _is_there(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


def _part(folder: Path, index: Mapping[str, Any], name: str, accepted: Sequence[str], option: str) -> Part:
    """A part that model_index.json names; of a class in `accepted`, or any of diffusers where that is empty."""
    entry: Any = index.get(name)
    if not _is_there(entry):
        raise UserError(f"{option}: model_index.json names no {name}")
    library, class_name = entry
    own = folder / name if (folder / name).is_dir() else folder  # older pipelines have the network's files at the top
    kind = name.removesuffix("_2")
    config = _json(own / (f"{kind}_config.json" if kind in ("scheduler", "tokenizer") else "config.json"), option)
    if config.get("norm_type") == "ada_norm_zero":
        class_name = OLD_NAMES.get(class_name, class_name)
    if library not in ("diffusers", "transformers") or (accepted and class_name not in accepted):
        raise UserError(
            f"{option}: its {name} is a {class_name[:60]} of {library[:60]}; read are "
            f"{', '.join(accepted) or 'the classes of diffusers'}, and no code of the pipeline's own is run"
        )
    return Part(own, class_name, config)


def _json(path: Path, option: str) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{option}: no {path.name} in {path.parent}, which a pipeline in diffusers' layout has")
    with untrusted(f"{option}: {path}", remedy="Copy it again."):
        content = read_json_file(path, MAX_JSON)
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        return content


def weights_files(part: Part, option: str) -> list[Path]:
    """The safetensors of a part.

    Raises:
        UserError: if there are none, and pickles that lie there instead are named; if another model belongs to them.
    """
    if (part.folder / "adapter_config.json").exists():
        raise UserError(f"{option}: {part.folder} holds adapters of another model; merge them into it first")
    if found := sorted(part.folder.glob("*.safetensors")):
        for path in found:
            with untrusted(f"{option}: {path}"), open_untrusted(path) as (file, size):
                safetensors_budget(file, size)
        return found
    pickles = sorted(path.name for suffix in ("bin", "ckpt", "pt") for path in part.folder.glob(f"*.{suffix}"))
    if pickles:
        raise UserError(
            f"{option}: {part.folder} holds {pickles[0]}, a pickle, which can run code when it is opened, and no "
            ".safetensors: it is not read. Get the model as safetensors"
        )
    raise UserError(f"{option}: no .safetensors in {part.folder}")


def check_words(part: Part, option: str) -> None:
    """Raises UserError for files of a tokenizer that are far too large."""
    for path in sorted(part.folder.iterdir()):
        if path.suffix in (".json", ".txt"):
            with untrusted(f"{option}: {path}"), open_untrusted(path, MAX_WORDS):
                continue


# Checks.


def _check_network(network: Part, option: str) -> None:
    config = network.config
    for name, most in (("sample_size", MAX_SIDES[network.class_name]), ("in_channels", 1024)):
        if type(config.get(name)) is not int or not 0 < config[name] <= most:
            found = f"{name} is {str(config.get(name))[:40]} in its config.json"
            raise UserError(f"{option}: {found}; a number from 1 to {most} is needed")
    for name in ("num_embeds_ada_norm", "num_class_embeds"):
        if (classes := config.get(name)) is not None and (type(classes) is not int or not 0 <= classes <= MAX_CLASSES):
            raise UserError(f"{option}: {name} is {str(classes)[:40]} in its config.json; up to {MAX_CLASSES} are read")
    more = [name for name in MORE_CONDITIONS if config.get(name) and config[name] != TEXT_AND_SIZES]
    if network.class_name == TEXT_NETWORK and more:
        raise UserError(
            f"{option}: its network wants more than a text ({more[0]}={config[more[0]]}), which is not supported"
        )
    if config.get("class_embed_type") is not None:
        raise UserError(
            f"{option}: class_embed_type={config['class_embed_type']}; supported are classes by their number"
        )


def _check_latents(pipeline: Pipeline, index: Mapping[str, Any], options: TeacherOptions, option: str) -> None:
    channels, autoencoder = pipeline.network.config["in_channels"], pipeline.autoencoder
    if autoencoder is None:
        other = next((name for name in ("vae", "vqvae", "movq") if _is_there(index.get(name))), None)
        if pipeline.reads_texts or other is not None or channels not in (1, 3):
            found = f" ({other}: {index[other][1]} is none)" if other is not None else ""
            raise UserError(f"{option} works on an autoencoder's latents{found}: give --autoencoder=DIR|hf:owner/name")
    elif (latent := autoencoder.latent_channels) != channels:
        given = f"--autoencoder={options.autoencoder}" if options.autoencoder else "its autoencoder"
        raise UserError(f"{option} has {channels} channels and {given} has latents of {latent}: they do not fit")


def _check_options(pipeline: Pipeline, options: TeacherOptions, option: str) -> None:
    if pipeline.reads_texts and options.prompt is None:
        raise UserError(f"{option} is a text-to-image pipeline: give --prompt")
    if any(not text for text in options.prompts):
        raise UserError(f"--prompt={options.prompt}: a prompt is empty; give one, or one a class: 'a cat|a dog'")
    if not pipeline.reads_texts:
        refuse_texts(options, option)
    has_null = pipeline.reads_texts or pipeline.is_transformer
    if options.guidance != 1 and not has_null:
        raise UserError(
            f"--guidance={options.guidance:g}: {option} has no null label to be guided away from; leave it out"
        )
    if options.negative_prompt is not None and options.guidance == 1:
        raise UserError(f"--negative-prompt={options.negative_prompt} has no effect without --guidance above 1")


def refuse_texts(options: TeacherOptions, option: str) -> None:
    """Raises UserError for texts given to a teacher that reads none."""
    for name, value in (("--prompt", options.prompt), ("--negative-prompt", options.negative_prompt)):
        if value is not None:
            raise UserError(f"{name}={value} is for a text-to-image pipeline, which {option} is not: leave it out")
