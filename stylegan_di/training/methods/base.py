"""The base class of training methods: networks, their optimizers, a step, and what is shown and saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.interfaces import Conditional, Denoiser, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.labels import LabelLaw
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.precision import AMP_TYPES, autocast
from stylegan_di.training.adversary import PIPE, ROLE
from stylegan_di.training.batch import Batch, RealImages, RealSource
from stylegan_di.training.optimize import adam
from stylegan_di.training.state import TrainState


class Method(ABC):
    """One kind of training. A subclass is constructed from its networks and passes them to `prepare`.

    dataset: the real images, None if the run needs none.
    """

    #: Watched statistics, and the largest accepted ratio of each to its median over the earlier ticks.
    watched: ClassVar[Mapping[str, float]] = {}
    #: Whether it starts from a network that makes images already, so that before and after are drawn in one picture.
    compares: ClassVar[bool] = False
    state: TrainState

    def __init__(self, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> None:
        self.config = config
        self.device = device
        self.dataset = dataset
        self.reals: RealSource | None = None if dataset is None else RealImages(dataset, config.workers)
        self.inputs: dict[str, str] = {}  # to check that a run resumes with the same files
        if dataset is not None:
            shape = [len(dataset), dataset.num_channels, dataset.resolution, dataset.label_dim]
            text = "{} images of {} channels, resolution {}, {} classes, names and sizes {}"
            self.inputs["data"] = text.format(*shape, dataset.content()[:16])
        self.labels_note = ""  # what labels generated images have

    def prepare(
        self,
        networks: dict[str, torch.nn.Module],
        *,
        helpers: Sequence[torch.nn.Module] = (),
        sharded: Sequence[torch.nn.Module] = (),
        compiled: Sequence[Denoiser | Generator] = (),
        interval: int | None = None,
    ) -> None:
        """Moves the networks to the device, and makes the state with the optimizer of 'model'.

        Args:
            networks: by role, including 'model' and 'ema'.
            helpers: networks that are never trained.
            sharded: those of both to shard over the processes with --fsdp.
            compiled: those of both to compile with --compile.
            interval: steps between lazy regularisations of the model.
        """
        config = self.config
        for module in (*networks.values(), *helpers):
            module.to(self.device).eval().requires_grad_(False)
        for module in sharded if config.fsdp else ():
            distributed.shard(module)
        for network in compiled if config.compile else ():
            network.compile_network()
        optimizer = adam(networks["model"], config.lr, beta1=config.beta1, beta2=config.beta2, interval=interval)
        self.state = TrainState(networks, {"model": optimizer})

    def set_labels(self, law: LabelLaw | None, note: str) -> None:
        """Sets how often each label occurs among generated images; `note` says it in the header."""
        self.labels_note = note
        for role in ("model", "ema"):
            self.conditional(role).known_labels = None if law is None else law.on(self.device)

    def conditional(self, role: str) -> Conditional:
        """The network of a role, which may have labels."""
        network = self.state.networks[role]
        assert isinstance(network, Conditional)
        return network

    def label_entry(self) -> dict[str, Any]:
        """A snapshot's entry 'label_law': how often each label occurs and what classes are called; {} if unknown."""
        law = self.conditional("ema").known_labels
        return {} if law is None else {"label_law": law.entry()}

    def autocast(self) -> torch.autocast:
        """Returns autocast in --amp's type; weights change between passes, so their casts are not cached."""
        return autocast(self.device, AMP_TYPES.get(self.config.amp), cached=False)

    @classmethod
    @abstractmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> Method:
        """Opens or makes the networks that the configuration names.

        Raises:
            UserError: if a file cannot be used.
        """

    def examine(self, evaluator: Evaluator | None = None) -> Iterator[tuple[str, str]]:
        """Looks at the networks before a new run; yields lines of its header.

        Args:
            evaluator: of a metric that judges images, on a few samples; None for a look without it.

        Raises:
            UserError: if the run is hopeless, and not wanted all the same (--force).
        """
        return iter(())

    @abstractmethod
    def step(self, batch: Batch, journal: Journal) -> None:
        """Updates the networks on one batch."""

    def phase(self) -> object:
        """Returns what tells steps apart that do different things; those of a phase can repeat one CUDA graph.

        False is the phase of a warm-up, by whose steps the run's length is not estimated.
        """
        return None

    def due(self) -> tuple[bool, ...]:
        """Returns which of the updates that are not in every step the next one has; each combination is a graph."""
        return ()

    def hinders_graph(self) -> str:
        """Says why a step cannot be one CUDA graph; '' if it can."""
        return f"a step of --kind={self.config.kind} depends on more than random numbers"

    @abstractmethod
    def shown(self) -> Generator:
        """Returns the averaged generator, or averaged denoiser with a sampler, which is measured, drawn and settled."""

    @abstractmethod
    def entries(self) -> dict[str, torch.nn.Module | None]:
        """Returns the networks of a snapshot, by entry."""

    @abstractmethod
    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a snapshot's other entries; `data` describes the data set as NVlabs' files do."""

    def beside(self) -> dict[str, Mapping[str, torch.nn.Module]]:
        """Returns networks that get a file of their own beside each snapshot: file name without suffix -> entries."""
        return {}

    def running_means(self) -> list[Tensor]:
        """Returns the model's buffers that track one process's samples; they are averaged over the processes."""
        return []

    def header(self) -> list[tuple[str, str]]:
        """Returns lines of the run's header, each a title and a text."""
        lines = [("kind", self.config.kind), ("model", count_parameters(self.state.networks["model"]))]
        if self.config.cfg is not None:
            lines.append(("preset", self.config.cfg))
        return lines


def drops_at_random(network: torch.nn.Module) -> str:
    """Says that a network in train mode draws random numbers of its own; '' if it does not."""
    names = ("dropout", "label_dropout")
    random = any(getattr(layer, name, 0) for layer in network.modules() for name in names)
    return "its network drops activations or labels at random" if random else ""


class GeneratorMethod(Method):
    """A method that trains a generator: its average is shown, and a snapshot holds its critic beside it."""

    model: Generator
    ema: Generator
    notes: tuple[str, ...] = ()  # what of networks from a file is new, for the header

    def running_means(self) -> list[Tensor]:
        return self.model.running_means()

    def shown(self) -> Generator:
        return self.ema

    def entries(self) -> dict[str, torch.nn.Module | None]:
        entries, networks = self.ema.entries(self.model), self.state.networks
        own = {"D": networks.get(ROLE), "augment_pipe": networks.get(PIPE)}
        return entries | {name: network for name, network in own.items() if name in entries}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return self.ema.extras(data)

    def header(self) -> list[tuple[str, str]]:
        return super().header() + [("start", note) for note in self.notes]


def count_parameters(module: torch.nn.Module) -> str:
    """Returns '1,234 parameters'."""
    return f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters"
