"""Builds the parts of a pipeline with diffusers and transformers, from safetensors: the only place that needs both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import safetensors
import torch
from torch import Tensor

from stylegan_di.diffusion import discrete_levels
from stylegan_di.dnnlib.util import UserError, not_installed
from stylegan_di.snapshots.blueprint import Bounded
from stylegan_di.snapshots.pipelines import Autoencoder, Part, Pipeline, TeacherOptions, check_words, weights_files
from stylegan_di.spaces.latents import Latents
from stylegan_di.teachers.discrete import DiscreteTeacher, FlowTimes, Texts, Times

MAX_TIMES = 100_000  # of a scheduler; published ones have 1000
MAX_TOKENS = 1024  # of a prompt; CLIP reads 77
PREDICTIONS = ("epsilon", "v_prediction", "sample")
IMPLIED = "position_ids"  # 0, 1, 2, ...: stored by older versions of transformers


def open_pipeline(pipeline: Pipeline, options: TeacherOptions) -> DiscreteTeacher:
    """Builds the teacher of a pipeline, in evaluation mode, without gradients, on the CPU.

    Raises:
        UserError: a library is missing, or the files are not what they should be.
    """
    option = f"--teacher={pipeline.source}"
    network = _network(pipeline.network, option)
    space = None
    if (autoencoder := pipeline.autoencoder) is not None:
        space = latents_of(autoencoder, pipeline.network.config["sample_size"], option)
    times = _times(pipeline.scheduler, option)
    texts = _texts(pipeline, options, option) if pipeline.reads_texts else None
    teacher = DiscreteTeacher(network, times, texts=texts, guidance=options.guidance, space=space)
    if options.checkpointing:
        teacher.checkpoint_activations()
    return teacher.eval().requires_grad_(False)


class Encoder(torch.nn.Module):
    """The encoder of diffusers' autoencoder: images -> the mean of their latents."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Tensor:
        encoded = self.autoencoder.encode(images)
        return encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents


class Decoder(torch.nn.Module):
    """The decoder of diffusers' autoencoder: latents -> images."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample


def latents_of(
    part: Autoencoder, side: int, option: str, standard: tuple[list[float], list[float]] | None = None
) -> Latents:
    """The space of an autoencoder's latents.

    Args:
        part: the autoencoder.
        side: of the latents.
        option: what it belongs to, for messages.
        standard: shift and scale of each channel; by default those of the autoencoder's config.
    """
    config = part.config
    shift = config.get("shift_factor") or 0.0
    scale = config.get("scaling_factor", 1.0 if part.class_name == "AutoencoderTiny" else 0.18215)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift, scale = config["latents_mean"], [scale / std for std in config["latents_std"]]
    if standard is not None:
        shift, scale = standard
    network, images = _network(part, option), (side * part.downsampling, part.image_channels)
    return Latents(Encoder(network), side, part.latent_channels, shift, scale, Decoder(network), images)


@contextlib.contextmanager
def _reading(part: Part, option: str) -> Iterator[None]:
    """Turns what goes wrong in the libraries, which raise errors of many types, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise not_installed(option, error.name or "diffusers", "diffusers") from None
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{option}: {part.class_name} in {part.folder} cannot be read ({type(error).__name__}: {text})"
        ) from None


def _network(part: Part, option: str) -> Any:
    """A network of diffusers with all of its weights, which must be finite, in float32."""
    with _reading(part, option):
        import diffusers

        cls = getattr(diffusers, part.class_name)
        _check_size(lambda: cls.from_config(dict(part.config)), part, option)
        return _checked(cls.from_pretrained, part, option)


def _check_size(layout: Callable[[], torch.nn.Module], part: Part, option: str) -> None:
    """Refuses a config that calls for more than the part's files hold, before a library allocates it."""
    files = weights_files(part, option)
    count = 0
    for path in files:
        with safetensors.safe_open(path, framework="pt") as file:
            count += len(file.keys())
    with torch.device("meta"), Bounded(count):
        need = sum(value.numel() for value in layout().parameters())
    if need > sum(path.stat().st_size for path in files):  # a number takes at least one byte
        raise UserError(f"{option}: config.json in {part.folder} calls for {need} numbers, and its files hold fewer")


def _checked(from_pretrained: Callable[..., Any], part: Part, option: str) -> Any:
    network, info = from_pretrained(
        str(part.folder), use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(key for key in map(str, info[what]) if not key.endswith(IMPLIED)):
            raise UserError(f"{option}: {part.folder} has {what.replace('_', ' ')}: {', '.join(keys)[:200]}")
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{option}: NaN or infinite numbers in {name} of {part.folder}: it is damaged")
    return network.float().eval().requires_grad_(False)


def _times(part: Part, option: str) -> Times | FlowTimes:
    """The noise levels that a network was trained on, by its scheduler."""
    with _reading(part, option):
        import diffusers

        cls: Any = getattr(diffusers, part.class_name, None)
        if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
            raise UserError(f"{option}: there is no scheduler {part.class_name[:60]} in diffusers")
        times = part.config.get("num_train_timesteps", 1000)
        if type(times) is not int or not 1 <= times <= MAX_TIMES:
            raise UserError(f"{option}: num_train_timesteps={str(times)[:40]}; supported are 1 to {MAX_TIMES}")
        build: Any = cls  # for the type checker, which sees no more than a type
        scheduler = build.from_config(dict(part.config))
        if part.class_name.startswith("FlowMatch"):
            t = scheduler.sigmas[(scheduler.sigmas > 0) & (scheduler.sigmas < 1)]
            return FlowTimes(scheduler.config.num_train_timesteps, float(t.min()), float(t.max()))
        alphas = getattr(scheduler, "alphas_cumprod", None)
        prediction = scheduler.config.get("prediction_type", "epsilon")
    if alphas is None:
        raise UserError(
            f"{option}: a {part.class_name} tells no alphas_cumprod; supported are schedulers that do, such as "
            "DDPMScheduler, and FlowMatchEulerDiscreteScheduler"
        )
    if prediction not in PREDICTIONS:
        raise UserError(f"{option}: prediction_type={str(prediction)[:40]}; supported are {', '.join(PREDICTIONS)}")
    return Times(discrete_levels(alphas), prediction)


@torch.no_grad()
def _texts(pipeline: Pipeline, options: TeacherOptions, option: str) -> Texts:
    """Encodes the negative prompt and the prompts; the text encoders are not kept.

    A network that is told sizes was trained on the layers before the text encoders' last, joined, and on the pooled
    output of the second one.
    """
    texts = [options.negative_prompt or "", *options.prompts]
    outputs = [_encoded(encoder, tokenizer, texts, option) for encoder, tokenizer in pipeline.texts]
    if not pipeline.told_sizes:
        return Texts(outputs[0].last_hidden_state)
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = outputs[-1].text_embeds
    if pipeline.zero_null and options.negative_prompt is None:
        tokens[0], pooled[0] = 0, 0
    side = pipeline.shape(options).resolution
    sizes = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32)  # of the original, the crop, the target
    return Texts(tokens, pooled, sizes)


def _encoded(part: Part, words: Part, texts: list[str], option: str) -> Any:
    """What a text encoder says of texts, and of its layers."""
    check_words(words, option)
    with _reading(words, option):
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(str(words.folder), local_files_only=True)
        most = tokenizer.model_max_length
        if most > MAX_TOKENS:
            found = f"model_max_length={str(most)[:40]} in {words.folder}"
            raise UserError(f"{option}: {found}; supported are up to {MAX_TOKENS}")
        for text in texts:
            if (count := len(tokenizer(text).input_ids)) > most:
                raise UserError(f"--prompt: '{text[:40]}...' has {count} tokens; {option} reads at most {most}")
        tokens = tokenizer(texts, padding="max_length", max_length=most, return_tensors="pt")
    with _reading(part, option):
        import transformers

        cls = getattr(transformers, part.class_name)
        config = cls.config_class.from_pretrained(str(part.folder), local_files_only=True)
        _check_size(lambda: cls(config), part, option)
        encoder = _checked(cls.from_pretrained, part, option)
        return encoder(tokens.input_ids, output_hidden_states=True)
