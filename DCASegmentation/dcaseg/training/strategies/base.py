"""The interface between the training loop and a strategy, and the supervised losses that most share.

The loop draws patches, asks the strategy for the losses of a step, one part after the other, and hands each backward
before it asks for the next, so that only one part's graph is in memory. Everything that a strategy needs beyond that
is its own: further networks (a teacher, a second student) are modules of it, numbers that change while it trains
(weights of classes, say) are buffers of it, and both go into the checkpoint by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UserError
from ...method.experts import PAPER_DILATIONS, VNET_N_STAGES
from ...method.log_gap import Partition
from ...method.losses import segmentation_loss, unsupervised_weight
from ...method.network import DCANet
from ...method.vnet import initialize_kaiming
from ..cases import Case
from ..distributed import rank
from ..options import TrainingOptions
from ..training_set import LabeledVolume
from .dca_losses import channels_of


class Facts(NamedTuple):
    """What the cases of a run hold, on the model grid.

    ``voxels`` of labels 0 to K in the labelled cases together; how many cases are ``labelled`` and ``unlabelled``;
    the names of the ``organs`` 1 to K; the first case that is labelled only in part, if there is one; and how many
    ``processes`` share a batch.
    """

    voxels: tuple[int, ...]
    labelled: int
    unlabelled: int
    organs: tuple[str, ...] = ()
    partial: str | None = None
    processes: int = 1


def facts_of(
    labelled: Sequence[LabeledVolume], unlabelled: Sequence[Case], organs: Sequence[str], processes: int = 1
) -> Facts:
    """The facts of these cases, and of label maps among ``labelled``; ``organs`` are the names of labels 1 to K."""
    voxels = sum((case.voxel_counts(len(organs)) for case in labelled), np.zeros(len(organs) + 1, np.int64))
    partial = next((case.name for case in labelled if case.unannotated), None)
    return Facts(tuple(map(int, voxels)), len(labelled), len(unlabelled), tuple(organs), partial, processes)


class StepState(NamedTuple):
    """Where a run is: the ``step`` it is about to take, that step's ``stage``, its number in the stage
    (``stage_step``), and the length of the stage (``stage_steps``)."""

    step: int
    stage: str
    stage_step: int
    stage_steps: int


class Batch(NamedTuple):
    """The patches of a step.

    ``volumes`` are (batch, 1, depth, height, width) in 0..1, ``labels`` int64 (batch, depth, height, width),
    ``unannotated`` the labels that each patch's label map does not tell of, ``unlabelled`` like ``volumes`` or None.
    ``ignored`` are booleans like ``labels``: voxels of pseudo-labelled cases that have no label; None if all have one.
    """

    volumes: Tensor
    labels: Tensor
    unannotated: Sequence[Sequence[int]]
    unlabelled: Tensor | None
    ignored: Tensor | None = None


class Pool(NamedTuple):
    """The cases of a run, for strategies that make labelled cases of unlabelled ones.

    ``predict`` gives for a case the labels (uint8) and confidences (uint16, 65535 is 1) of what the strategy answers
    now, (depth, height, width) each.
    """

    labelled: Sequence[Case]
    unlabelled: Sequence[Case]
    predict: Callable[[Case], tuple[np.ndarray, np.ndarray]]


class Loss(NamedTuple):
    """What to minimize, and the values to log, single numbers without a graph."""

    total: Tensor
    values: dict[str, Tensor]


class MeanOfNetworks(nn.Module):
    """Several networks that answer together, for validation, scores and figures.

    The mean of their logits, or with ``of`` "probabilities" the logarithm of their mean softmax.
    """

    def __init__(self, networks: Sequence[DCANet], of: Literal["logits", "probabilities"] = "logits") -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.out_channels = networks[0].out_channels
        self._of = of

    def forward(self, volume: Tensor) -> Tensor:
        """Logits (batch, channel, depth, height, width) of (batch, 1, depth, height, width)."""
        logits = torch.stack([network(volume).float() for network in self.networks])
        if self._of == "logits":
            return logits.mean(dim=0)
        return logits.softmax(dim=2).mean(dim=0).clamp(min=1e-12).log()


ScoredNetwork = DCANet | MeanOfNetworks


class ParameterGroup(NamedTuple):
    """Weights that learn at ``factor`` times the run's learning rate."""

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0


@dataclass(frozen=True)
class NoOptions:
    """A strategy without options of its own."""


def option(default: Any, explanation: str) -> Any:
    """A field of a strategy's options: its default value and what it means, for the command line."""
    return field(default=default, metadata={"help": explanation})


class Strategy(nn.Module):
    """One way to learn. A subclass makes its networks before anything else.

    ``network`` is what is shipped and figures look into; ``answering`` is what is validated and scored. ``own`` are
    the options of the class ``Options``. A class that follows a paper in two ways names the second in ``published``:
    the option ``variant`` chooses it.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    published: ClassVar[type[Strategy] | None] = None
    # What a run must have; see ``require``.
    needs_unlabelled: ClassVar[bool] = False
    needs_full_labels: ClassVar[bool] = False
    needs_every_organ: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    network: DCANet

    def __init__(self, options: TrainingOptions) -> None:
        super().__init__()
        self.options = options
        self.own: Any = own_options(type(self), options)
        self.facts: Facts | None = None

    @classmethod
    def require(cls, options: TrainingOptions, facts: Facts) -> None:
        """Raise UserError if the strategy cannot learn with these options from such cases, before anything is built."""
        name = f"--strategy {options.strategy}"
        cls.read(options)
        if cls.needs_unlabelled and not facts.unlabelled:
            raise UserError(
                f"{name} learns from unlabelled cases, and there is none.", "Add some, or choose --strategy vnet."
            )
        if cls.needs_full_labels and facts.partial is not None:
            raise UserError(
                f"{name} takes background at its word, and {facts.partial} is labelled only in part.",
                "Leave that case out, or choose --strategy dca, cps, ua_mt or vnet.",
            )
        if cls.needs_every_organ:
            absent = [organ for organ, count in zip(facts.organs, facts.voxels[1:], strict=True) if not count]
            if absent:
                raise UserError(
                    f"{name} weighs organs by their labelled voxels, and no labelled case has {', '.join(absent)}.",
                    "Label another case, or choose --strategy cps, ga or dca.",
                )
        if cls.needs_pairs:
            shares = [options.labelled_per_step // facts.processes, options.unlabelled_per_step // facts.processes]
            if shares[0] != shares[1] or shares[0] % 2 or not shares[0]:
                many = f" in each of {facts.processes} processes" if facts.processes > 1 else ""
                raise UserError(
                    f"{name} mixes patches with partners: it needs an even number of each kind, as many unlabelled as "
                    f"labelled, and has {shares[0]} and {shares[1]}{many}.",
                    f"Choose --batch {2 * facts.processes} or a multiple of it.",
                )

    @classmethod
    def fitted(cls, options: TrainingOptions) -> TrainingOptions:
        """The options with what this strategy must change to take patches of this size."""
        return options

    @classmethod
    def read(cls, options: TrainingOptions) -> Any:
        """The options of the class that a run gives. Raises UserError for wrong ones."""
        return own_options(cls, options)

    @classmethod
    def require_grid(cls, options: TrainingOptions, count: int, setting: str, divisor: int = 1) -> None:
        """Raise UserError if a patch cannot be cut into ``count`` parts a side, of a multiple of ``divisor`` voxels.

        ``setting`` is the strategy's option that gives the count.
        """
        if any(side % (count * divisor) for side in options.patch):
            sizes = " x ".join(map(str, options.patch))
            parts = f" of a multiple of {divisor} voxels" if divisor > 1 else ""
            raise UserError(
                f"--strategy {options.strategy} cuts a patch into {count} parts a side{parts}; {sizes} cannot be.",
                f"Choose a --patch of a multiple of {count * divisor}, or another {setting} with --strategy-option.",
            )

    def prepare(self, facts: Facts) -> None:
        """Called once, before a run's first step or its resumption: what the cases hold."""
        self.facts = facts

    def answering(self) -> ScoredNetwork:
        """What is validated, averaged and scored: ``network``, or several networks together."""
        return self.network

    @property
    def epoch_steps(self) -> int:
        """Steps in which as many unlabelled patches are drawn as there are unlabelled cases."""
        unlabelled = self.facts.unlabelled if self.facts is not None else 1
        return max(1, -(-unlabelled // self.options.unlabelled_per_step))

    def random(self, step_state: StepState, salt: int = 0) -> torch.Generator:
        """A generator on the CPU for the draws of one step, the same in a resumed run.

        ``salt`` tells several draws of a step apart; each process draws numbers of its own.
        """
        seed = np.random.SeedSequence([self.options.seed, step_state.step, salt, rank()]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0]) >> 1)

    def step_state(self, step: int) -> StepState:
        """Where a run is at ``step``. One stage, unless a strategy says otherwise."""
        return StepState(step, "joint", step, self.options.steps)

    def on_step_start(self, step_state: StepState, averaged: DCANet | None) -> bool:
        """Called before each step; true where the optimizer and the average of the weights start anew.

        ``averaged`` are the averaged weights of ``network`` so far, where the options average.
        """
        return False

    def new_cases(self, step_state: StepState, pool: Pool) -> Sequence[Case] | None:
        """Called before ``begin``: cases to learn from beside the labelled ones from this step on, in place of those
        given before; None leaves them."""
        return None

    def weight(self, step_state: StepState) -> float:
        """The weight λ of what is learned from unlabelled patches; where it is 0, none are drawn."""
        length = round(self.options.ramp_fraction * step_state.stage_steps)
        weight = unsupervised_weight(step_state.stage_step, length, self.options.unsupervised_weight)
        return weight if weight > self.options.unsup_weight_cutoff * self.options.unsupervised_weight else 0.0

    def loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """The names of the step's parts, in their order."""
        raise NotImplementedError

    def forward(self, part: str, batch: Batch, step_state: StepState) -> Loss:
        """The loss of one part, ready to be minimized (weights included)."""
        raise NotImplementedError

    def on_step_end(self, step_state: StepState) -> None:
        """Called after the optimizer's step: for teachers that follow, weights that change."""

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer changes: the weights that ask for a gradient, ``network``'s first."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def parameter_groups(self) -> list[ParameterGroup]:
        """``learning``, divided by learning rate."""
        return [ParameterGroup(list(self.trainable_parameters()))]


def own_options(kind: type[Strategy], options: TrainingOptions) -> Any:
    """The options of strategy ``kind``: its defaults, then those a run gives by name, as text or as values.

    Raises UserError for a name it does not have or a value of another type.
    """
    hints = get_type_hints(kind.Options)
    known = {item.name: item for item in fields(kind.Options)}
    for name in options.strategy_options:
        if name not in known:
            listed = "; ".join(f"{key} ({item.default}): {item.metadata['help']}" for key, item in known.items())
            raise UserError(
                f"--strategy {options.strategy} has no option '{name}'.",
                f"It has these: {listed}" if known else "It has none.",
            )
    try:
        given = {name: _value(name, value, hints[name]) for name, value in options.strategy_options.items()}
        return kind.Options(**given)
    except ValueError as error:
        raise UserError(f"--strategy {options.strategy}: {error}.", "Change it in --strategy-option.") from None


def _value(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint`` of option ``name``. Raises ValueError for another."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is one of {', '.join(get_args(hint))}, not '{value}'")
        return value
    if hint is bool:
        if str(value).lower() not in ("true", "false"):
            raise ValueError(f"{name} is true or false, not '{value}'")
        return str(value).lower() == "true"
    try:
        return hint(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a number, not '{value}'") from None


def plain_vnet(options: TrainingOptions, groups: Partition, dropout: float = 0.0) -> DCANet:
    """The backbone with a single decoder, the paper's medium one, for all organs."""
    labels = sorted(label for owned in groups.owners for label in owned)
    network = DCANet(
        owners=[labels],
        n_filters=options.n_filters,
        norm=options.norm,
        n_stages=[VNET_N_STAGES],
        dilations=[PAPER_DILATIONS[1]],
        aggregation=False,
        stitching=options.stitching,
        dropout=dropout,
        upsampling=options.upsampling,
    )
    if options.initialization == "kaiming":
        initialize_kaiming(network)
    return network


def class_balance(step_state: StepState, options: TrainingOptions) -> float:
    """How much small organs are weighed up, falling to nothing over the run; see ``segmentation_loss``."""
    return options.class_balance * (1 - step_state.stage_step / step_state.stage_steps)


def whole_label_loss(logits: Tensor, batch: Batch, options: TrainingOptions, step_state: StepState) -> Tensor:
    """L_seg of ``logits`` (batch, channel, depth, height, width) on the whole label maps of a batch."""
    n_channels = logits.shape[1]
    hidden = channels_of(batch.unannotated, n_channels, logits.device) if any(batch.unannotated) else None
    balance = class_balance(step_state, options)
    return segmentation_loss(logits.float(), batch.labels, options.dice_channels, range(1, n_channels), balance, hidden)


def pseudo_label_loss(logits: Tensor, pseudo_labels: Tensor, options: TrainingOptions) -> Tensor:
    """L_seg of ``logits`` on labels (batch, depth, height, width) that a network has made."""
    organs: Sequence[int] = range(1, logits.shape[1])
    return segmentation_loss(logits.float(), pseudo_labels, options.dice_channels, organs)
