"""A network of discrete-time diffusion or of flow matching as a Denoiser: the U-Nets and transformers of diffusers.

Nothing here needs diffusers itself: a network is a module with its calling convention and its `config`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from stylegan_di.diffusion import (
    Preconditioning,
    Prediction,
    discrete_preconditioning,
    discrete_time,
    flow_preconditioning,
    per_sample,
)
from stylegan_di.interfaces import Denoiser, Space
from stylegan_di.networks.edm_unets import last_of_each_level
from stylegan_di.teachers.adapters import Adapted, AdaptedRows, add_adapters, sharing_copy
from stylegan_di.torch_utils.precision import moved

MOST_JOINED = 4  # images up to which one pass of a joined batch is faster (docs/measurements/adapters.md)


class Times(torch.nn.Module):
    """What a network is told of a noise level: the times 0, 1, ... of DDPM, at which it is `levels`.

    Times between these are interpolated (`discrete_time`), so that every sigma between the ends is supported as it is:
    a rounded one would tell the network of another amount of noise than its input has.

    Args:
        levels: noise levels [T] float64, rising.
        prediction: what the network estimates.
    """

    levels: Tensor

    def __init__(self, levels: Tensor, prediction: Prediction) -> None:
        super().__init__()
        self.register_buffer("levels", levels, persistent=False)
        self.prediction = prediction
        self.sigma_min, self.sigma_max = float(levels[0]), float(levels[-1])

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        time = discrete_time(sigma, self.levels).to(sigma.dtype)
        return discrete_preconditioning(sigma, time, self.prediction)

    def _apply(self, fn: Any, recurse: bool = True) -> Times:
        """Moves the levels to the parameters' device but keeps them in float64, where it has that."""
        self.levels = moved(self.levels, fn(self.levels.float()).device)
        return self


class FlowTimes(torch.nn.Module):
    """The times of flow matching: M t for t = sigma / (1 + sigma).

    Args:
        M: the time of pure noise.
        t_min, t_max: the first and last t of the schedule, inside (0, 1).
    """

    def __init__(self, M: float, t_min: float, t_max: float) -> None:
        super().__init__()
        self.M = M
        self.sigma_min, self.sigma_max = t_min / (1 - t_min), t_max / (1 - t_max)

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return flow_preconditioning(sigma, self.M)


class ClassRows(torch.nn.Module):
    """An embedding of classes that takes one-hot rows [B,classes]; zeros, the null label, add nothing."""

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, rows: Tensor) -> Tensor:
        return rows.to(self.weight.dtype) @ self.weight


class Texts(torch.nn.Module):
    """Encoded texts of a text-to-image network: the negative one, which is the null label, and n prompts.

    Args:
        tokens: [1+n,tokens,width], which the network attends to.
        pooled, sizes: [1+n,width] and [6], of networks that are told these too.
    """

    tokens: Tensor
    pooled: Tensor | None
    sizes: Tensor | None

    def __init__(self, tokens: Tensor, pooled: Tensor | None = None, sizes: Tensor | None = None) -> None:
        super().__init__()
        for name, value in (("tokens", tokens), ("pooled", pooled), ("sizes", sizes)):
            self.register_buffer(name, value, persistent=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def conditions(self, index: Tensor) -> dict[str, Any]:
        """The network's arguments for the texts of numbers index [B]."""
        found: dict[str, Any] = {"encoder_hidden_states": self.tokens[index]}
        if self.pooled is not None and self.sizes is not None:
            sizes = self.sizes.expand(len(index), -1)
            found["added_cond_kwargs"] = {"text_embeds": self.pooled[index], "time_ids": sizes}
        return found


class DiscreteTeacher(Denoiser):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), with the coefficients of `Times` or `FlowTimes`.

    F's input has the variance-preserving scale that its project trained it on; `diffusion.discrete_preconditioning`
    and `diffusion.flow_preconditioning` derive the formulas. Where F also estimates a variance, in further channels, it
    is dropped. With guidance w, D = D_null + w (D_label - D_null) (Ho & Salimans 2022, arXiv 2207.12598).

    Args:
        network: F, a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel of diffusers.
        times: the noise levels that it knows.
        texts: of a text-to-image network. One prompt is the label of all images; of several, each is that of a class.
        guidance: w; 1 is none.
        space: the latents that the network works on; None for pixels.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        times: Times | FlowTimes,
        *,
        texts: Texts | None = None,
        guidance: float = 1.0,
        space: Space | None = None,
    ) -> None:
        super().__init__()
        config: Any = network.config
        self.network = network
        self.times = times
        self.guidance = guidance
        self.space = space
        self.texts = texts
        self.training = network.training
        self.img_resolution = config.sample_size
        self.img_channels = config.in_channels
        self.sigma_min, self.sigma_max = times.sigma_min, times.sigma_max
        self.is_transformer = hasattr(network, "transformer_blocks")
        self.label_dim = 0
        if texts is not None:
            self.label_dim = len(texts) - 1 if len(texts) > 2 else 0
        elif self.is_transformer:
            self.label_dim = config.num_embeds_ada_norm
        elif isinstance(embedding := getattr(network, "class_embedding", None), torch.nn.Embedding):
            self.label_dim = embedding.num_embeddings
            network.class_embedding = ClassRows(embedding)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        denoised = self._denoise(x, sigma, self._conditions(labels, len(x)))
        if self.guidance == 1:
            return denoised
        return self._guided(denoised, self._denoise(x, sigma, self._null(len(x))))

    def _guided(self, denoised: Tensor, null: Tensor) -> Tensor:
        return null + self.guidance * (denoised - null)

    def _denoise(self, x: Tensor, sigma: Tensor, conditions: dict[str, Any]) -> Tensor:
        dtype = torch.promote_types(next(self.network.parameters()).dtype, torch.float32)
        x = x.to(dtype)
        sigma = per_sample(torch.as_tensor(sigma, device=x.device).to(dtype), x)
        c_skip, c_out, c_in, c_noise = self.times.coefficients(sigma)
        times = c_noise.flatten().expand(len(x))
        raw = self.network(c_in * x, times, **conditions, return_dict=False)[0]
        return c_skip * x + c_out * raw[:, : self.img_channels].to(dtype)

    def _conditions(self, labels: Tensor | None, batch: int) -> dict[str, Any]:
        """What the network is told besides time: texts, or classes as rows or, to a transformer, as indices."""
        if self.label_dim == 0 and self.texts is None:
            return {}
        if self.label_dim == 0 and self.texts is not None:
            return self.texts.conditions(torch.ones([batch], dtype=torch.long, device=self.texts.tokens.device))
        if labels is None:
            return self._null(batch)
        if self.texts is None and not self.is_transformer:
            return {"class_labels": labels}
        known, index = labels.any(dim=1), labels.argmax(dim=1)
        if self.texts is not None:
            return self.texts.conditions(torch.where(known, index + 1, 0))
        return {"class_labels": torch.where(known, index, self.label_dim)}

    def _null(self, batch: int) -> dict[str, Any]:
        """What the network is told of the null label."""
        if self.texts is not None:
            return self.texts.conditions(torch.zeros([batch], dtype=torch.long, device=self.texts.tokens.device))
        parameter = next(self.network.parameters())
        if self.is_transformer:
            return {"class_labels": torch.full([batch], self.label_dim, device=parameter.device)}
        return {"class_labels": parameter.new_zeros([batch, self.label_dim])}

    def features(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        if self.is_transformer:
            return super().features(x, sigma, labels)
        outputs: list[Tensor] = []

        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            outputs.extend(output[1] if isinstance(output, tuple) else [output])

        def stop(module: torch.nn.Module, inputs: Any) -> None:
            raise _EncoderDone  # the decoder's work would be thrown away

        network: Any = self.network
        with ExitStack() as hooks:
            for module in (network.conv_in, *network.down_blocks):
                hooks.callback(module.register_forward_hook(keep).remove)
            if network.mid_block is not None:
                hooks.callback(network.mid_block.register_forward_pre_hook(stop).remove)
            try:
                self._denoise(x, sigma, self._conditions(labels, len(x)))
            except _EncoderDone:
                return last_of_each_level(outputs)
        return last_of_each_level(outputs)

    def trainable_copy(self) -> DiscreteTeacher:
        """A fake score has no guidance: the student's distribution is learned as it is, not sharpened."""
        copied = copy.deepcopy(self, {id(self.space): self.space})
        copied.guidance = 1.0
        return copied

    def adapted_copy(self, rank: int) -> Denoiser:
        copied = sharing_copy(self)
        copied.guidance = 1.0
        return AdaptedRowwise(copied, self, add_adapters(copied.network, rank))

    def denoised_beside(
        self, teacher: DiscreteTeacher, rows: AdaptedRows, x: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns what the teacher and this network, which is the teacher's with adapters, say of x, in one pass.

        It has a part of the batch for the teacher, a second one for its null label if it is guided, and the last one
        for the adapters.
        """
        conditions = [self._conditions(labels, len(x))] * 2
        if teacher.guidance != 1:
            conditions.insert(1, self._null(len(x)))
        parts = len(conditions)
        with rows.last(len(x)):
            everything = self._denoise(
                x.repeat(parts, 1, 1, 1), sigma.expand(len(x)).repeat(parts), joined(conditions)
            )
        denoised, *null, own = everything.chunk(parts)
        return teacher._guided(denoised, *null) if null else denoised, own

    def checkpoint_activations(self) -> None:
        network: Any = self.network
        network.enable_gradient_checkpointing()

    def compile_network(self) -> None:
        self.network.compile()


class AdaptedRowwise(Adapted):
    """Adapters that can be restricted to some samples of a batch, so that one pass also says what the teacher says.

    Args:
        denoiser: as Adapted's.
        teacher: the one that it shares its weights with.
        rows: what `add_adapters` returned.
    """

    denoiser: DiscreteTeacher

    def __init__(self, denoiser: DiscreteTeacher, teacher: DiscreteTeacher, rows: AdaptedRows) -> None:
        super().__init__(denoiser)
        self._shares = (teacher, rows)  # in a tuple, so that the teacher is no part of this module

    def beside(
        self, teacher: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        shared, rows = self._shares
        if teacher is not shared or len(x) > MOST_JOINED:
            return None
        return self.denoiser.denoised_beside(shared, rows, x, sigma, labels)


def joined(conditions: Sequence[Any]) -> Any:
    """Several batches' arguments of a network, in nested dicts, as those of one batch."""
    first = conditions[0]
    if isinstance(first, Mapping):
        return {name: joined([each[name] for each in conditions]) for name in first}
    return torch.cat(list(conditions))


class _EncoderDone(Exception):
    """Ends a network's forward pass where its decoder would begin."""
