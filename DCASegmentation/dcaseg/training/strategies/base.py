"""The interface between the training loop and a strategy, and losses that most strategies share.

In each step, the loop draws patches and computes the strategy's losses one after the other. It calls backward after
each loss, so that only one graph is in memory. A strategy's other networks (a teacher, a second student) are its
submodules, and values that change during training (such as class weights) are its buffers, so both are saved in
checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UserError
from ...method.ensemble import MeanOf, average_predictions
from ...method.log_gap import Partition
from ...method.losses import compute_sigmoid_rampup, segmentation_loss
from ...method.network import DCANet
from ...method.variants import PAPER_DILATIONS, VNET_N_STAGES
from ...method.vnet import initialize_kaiming
from ...option_fields import get_option
from ..cases import Case
from ..distributed import rank
from ..options import TrainingOptions
from ..training_set import LabeledVolume
from .dca_losses import make_channel_mask


class DatasetFingerprint(NamedTuple):
    """What strategies know about the cases of a run, on the model grid.

    - ``voxels``: the number of voxels of labels 0 to K in all labeled cases.
    - ``labeled``, ``unlabeled``: the number of labeled and unlabeled cases.
    - ``organs``: the names of labels 1 to K.
    - ``partial``: the name of the first partially labeled case, or None.
    - ``processes``: the number of processes that share a batch.
    """

    voxels: tuple[int, ...]
    labeled: int
    unlabeled: int
    organs: tuple[str, ...] = ()
    partial: str | None = None
    processes: int = 1


def extract_fingerprint(
    labeled: Sequence[LabeledVolume], unlabeled: Sequence[Case], organs: Sequence[str], processes: int = 1
) -> DatasetFingerprint:
    """Count the cases and their voxels. ``organs`` are the names of labels 1 to K."""
    voxels = sum((case.count_voxels(len(organs)) for case in labeled), np.zeros(len(organs) + 1, np.int64))
    partial = next((case.name for case in labeled if case.unannotated), None)
    return DatasetFingerprint(tuple(map(int, voxels)), len(labeled), len(unlabeled), tuple(organs), partial, processes)


class StepState(NamedTuple):
    """The position of a step in the run.

    ``step`` is the number of the step in the run, ``stage`` the name of its stage, ``stage_step`` its number in the
    stage, and ``stage_steps`` the length of the stage. Numbers start at 0.
    """

    step: int
    stage: str
    stage_step: int
    stage_steps: int


class Batch(NamedTuple):
    """The patches of a step.

    - ``volumes``: labeled patches (batch, 1, depth, height, width), with intensities from 0 to 1.
    - ``labels``: int64 (batch, depth, height, width).
    - ``unannotated``: for each labeled patch, the labels that its label map does not include.
    - ``unlabeled``: unlabeled patches, of the form of ``volumes``, or None.
    - ``ignored``: booleans (batch, depth, height, width), true for voxels of pseudo-labeled cases that have no label;
      None if all voxels have one.
    """

    volumes: Tensor
    labels: Tensor
    unannotated: Sequence[Sequence[int]]
    unlabeled: Tensor | None
    ignored: Tensor | None = None


class Pool(NamedTuple):
    """The cases of a run, for strategies that pseudo-label whole cases.

    ``predict`` segments a case with the current weights and returns labels (uint8) and confidences (uint16, 65535 is
    1), both (depth, height, width).
    """

    labeled: Sequence[Case]
    unlabeled: Sequence[Case]
    predict: Callable[[Case], tuple[np.ndarray, np.ndarray]]


class Loss(NamedTuple):
    """A loss: the scalar ``total`` to minimize, and detached scalar ``values`` for the log."""

    total: Tensor
    values: dict[str, Tensor]


class MeanOfNetworks(nn.Module):
    """An ensemble of networks, for validation, scores and figures.

    Its output is ``average_predictions`` of the networks' logits. Unlike ``EnsembleNet``, which bundles hold, it
    contains the networks themselves, not copies.
    """

    def __init__(self, networks: Sequence[DCANet], mean_of: MeanOf = "logits") -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.out_channels = networks[0].out_channels
        self.mean_of: MeanOf = mean_of

    def forward(self, volume: Tensor) -> Tensor:
        """Logits (batch, channel, depth, height, width) for ``volume`` (batch, 1, depth, height, width)."""
        return average_predictions([network(volume) for network in self.networks], self.mean_of)


ScoredNetwork = DCANet | MeanOfNetworks


class ParameterGroup(NamedTuple):
    """Parameters that learn at ``factor`` times the run's learning rate."""

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0


@dataclass(frozen=True)
class NoOptions:
    """The options of a strategy that has none."""


class Strategy(nn.Module):
    """A training method. A subclass creates its networks first.

    ``network`` is exported and used in figures; ``get_validated_network()`` is validated and scored. ``Options`` is the
    dataclass of the strategy's own options, and ``own`` holds their values. If a class implements a paper in two ways,
    ``published`` is the class of the second, which the option ``variant`` selects.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    published: ClassVar[type[Strategy] | None] = None
    # Requirements on a run's cases and options; see ``require``.
    needs_unlabeled: ClassVar[bool] = False
    needs_full_labels: ClassVar[bool] = False
    needs_every_organ: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    network: DCANet

    def __init__(self, options: TrainingOptions) -> None:
        super().__init__()
        self.options = options
        self.strategy_options: Any = parse_strategy_options(type(self), options)
        self.fingerprint: DatasetFingerprint | None = None

    @classmethod
    def require(cls, options: TrainingOptions, fingerprint: DatasetFingerprint) -> None:
        """Raise UserError if the strategy does not support these options or cases. Nothing is built yet."""
        name = f"--strategy {options.strategy}"
        cls.parse_options(options)
        if cls.needs_unlabeled and not fingerprint.unlabeled:
            raise UserError(
                f"{name} needs unlabeled cases, but there are none.", "Add unlabeled cases, or choose --strategy vnet."
            )
        if cls.needs_unlabeled and not options.unlabeled_per_step:
            raise UserError(
                f"{name} needs unlabeled patches, but unlabeled_per_step is 0.",
                "Set it to 1 or more, or choose --strategy vnet.",
            )
        if cls.needs_full_labels and fingerprint.partial is not None:
            raise UserError(
                f"{name} needs completely labeled cases, but {fingerprint.partial} is only partially labeled.",
                "Leave out that case, or choose --strategy dca, cps, ua_mt or vnet.",
            )
        if cls.needs_every_organ:
            absent = [
                organ for organ, count in zip(fingerprint.organs, fingerprint.voxels[1:], strict=True) if not count
            ]
            if absent:
                raise UserError(
                    f"{name} weights organs by their labeled voxels, but no labeled case has {', '.join(absent)}.",
                    "Label another case, or choose --strategy cps, ga or dca.",
                )
        if cls.needs_pairs:
            shares = [
                options.labeled_per_step // fingerprint.processes,
                options.unlabeled_per_step // fingerprint.processes,
            ]
            if shares[0] != shares[1] or shares[0] % 2 or not shares[0]:
                per_process = f" in each of {fingerprint.processes} processes" if fingerprint.processes > 1 else ""
                raise UserError(
                    f"{name} mixes patches in pairs, so it needs equal, even numbers of labeled and unlabeled patches. "
                    f"It has {shares[0]} labeled and {shares[1]} unlabeled{per_process}.",
                    f"Choose --batch {2 * fingerprint.processes} or a multiple of it.",
                )

    @classmethod
    def adapt_options(cls, options: TrainingOptions) -> TrainingOptions:
        """The options, with the changes that this strategy needs to support their patch size.

        Raises UserError for invalid own options.
        """
        return options

    @classmethod
    def parse_options(cls, options: TrainingOptions) -> Any:
        """The values of the strategy's own options in a run. Raises UserError for invalid ones."""
        return parse_strategy_options(cls, options)

    @classmethod
    def require_grid(cls, options: TrainingOptions, count: int, setting: str, divisor: int = 1) -> None:
        """Raise UserError unless each side of a patch can be divided into ``count`` parts.

        The side of a part must be a multiple of ``divisor`` voxels. ``setting`` is the strategy's option for the count.
        """
        if any(side % (count * divisor) for side in options.patch):
            sizes = " x ".join(map(str, options.patch))
            multiple = math.lcm(count * divisor, DCANet.divisor)
            parts = f", each a multiple of {divisor} voxels" if divisor > 1 else ""
            fewer = [n for n in range(2, count) if not any(side % (n * divisor) for side in options.patch)]
            change = f"--strategy-option {setting}={fewer[-1]}" if fewer else f"another {setting} (--strategy-option)"
            raise UserError(
                f"--strategy {options.strategy} divides each side of a patch into {count} parts{parts}, which is not "
                f"possible for {sizes}.",
                f"Choose a --patch that is a multiple of {multiple}, or {change}.",
            )

    @classmethod
    def require_steps(cls, options: TrainingOptions, setting: str, count: int) -> None:
        """Raise UserError if a run is too short for ``count`` parts; ``setting`` is the strategy's option for them."""
        if count > options.steps:
            raise UserError(
                f"--strategy {options.strategy}: {setting} is {count}, but the run has only {options.steps} steps.",
                f"Choose more --steps, or fewer {setting} with --strategy-option.",
            )

    def prepare(self, fingerprint: DatasetFingerprint) -> None:
        """Called once, before a run starts or resumes, with the fingerprint of its cases."""
        self.fingerprint = fingerprint

    def resume(self, step: int, saved: TrainingOptions, stored: Mapping[str, Tensor]) -> None:
        """Called after the weights are loaded when a run continues at ``step``.

        ``saved`` are the options that it was saved with, perhaps with another number of steps, and ``stored`` the
        tensors of its checkpoint other than those of ``network``.
        """

    def get_validated_network(self) -> ScoredNetwork:
        """The network that is validated, averaged and scored: ``network`` or an ensemble."""
        return self.network

    @property
    def epoch_steps(self) -> int:
        """The number of steps in which as many unlabeled patches are drawn as there are unlabeled cases."""
        unlabeled = self.fingerprint.unlabeled if self.fingerprint is not None else 1
        return max(1, -(-unlabeled // self.options.unlabeled_per_step))

    def make_generator(self, step_state: StepState, salt: int = 0) -> torch.Generator:
        """A CPU random generator for one step, which is the same in a resumed run.

        ``salt`` distinguishes several draws in a step. Each process draws different numbers.
        """
        seed = np.random.SeedSequence([self.options.seed, step_state.step, salt, rank()]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0]) >> 1)

    def get_step_state(self, step: int) -> StepState:
        """The stage of ``step``. By default, there is only one stage."""
        return StepState(step, "joint", step, self.options.steps)

    def get_warmup_steps(self, step_state: StepState) -> int:
        """The number of steps at the beginning of the stage in which the learning rate increases."""
        return self.options.warmup_steps

    def on_step_start(self, step_state: StepState, averaged: DCANet | None) -> bool:
        """Called before each step. Returns whether the optimizer and the average of the weights must be reset.

        ``averaged`` is ``network`` with averaged weights, or None if the options do not average.
        """
        return False

    def select_new_cases(self, step_state: StepState, pool: Pool) -> Sequence[Case] | None:
        """Called before ``on_step_start``. Returns pseudo-labeled cases to train on in addition to the labeled ones.

        They are used from this step on and replace earlier ones; None changes nothing.
        """
        return None

    def get_unsupervised_weight(self, step_state: StepState) -> float:
        """The weight λ of the losses on unlabeled patches. If it is 0, no unlabeled patches are drawn."""
        ramp_steps = round(self.options.ramp_fraction * step_state.stage_steps)
        weight = compute_sigmoid_rampup(step_state.stage_step, ramp_steps, self.options.unsupervised_weight)
        return weight if weight > self.options.unsup_weight_cutoff * self.options.unsupervised_weight else 0.0

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """The names of the step's losses, in the order in which they are computed."""
        raise NotImplementedError

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """Compute the loss with this name, multiplied by its weight."""
        raise NotImplementedError

    def on_step_end(self, step_state: StepState) -> None:
        """Called after the optimizer's step, for example to update a teacher or class weights."""

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that require a gradient; those of ``network`` come first."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def get_parameter_groups(self) -> list[ParameterGroup]:
        """The trainable parameters, grouped by learning rate."""
        return [ParameterGroup(list(self.trainable_parameters()))]


def parse_strategy_options(strategy_class: type[Strategy], options: TrainingOptions) -> Any:
    """The own options of a strategy: the values in ``options.strategy_options`` (or strings of them), and defaults.

    Raises UserError for an unknown name or an invalid value.
    """
    hints = get_type_hints(strategy_class.Options)
    known = {item.name: item for item in fields(strategy_class.Options)}
    for name in options.strategy_options:
        if name not in known:
            listed = "; ".join(
                f"{key} ({'automatic' if item.default is None else item.default}): {get_option(item).help}"
                for key, item in known.items()
            )
            raise UserError(
                f"--strategy {options.strategy} has no option '{name}'.",
                f"Its options are: {listed}" if known else "It has no options.",
            )
    try:
        values = {name: _convert(name, value, hints[name]) for name, value in options.strategy_options.items()}
        for name, value in values.items():
            if isinstance(value, int | float) and not (math.isfinite(value) and get_option(known[name]).allows(value)):
                raise ValueError(
                    f"{name} must be a number {get_option(known[name]).limits}".rstrip() + f", not {value:g}"
                )
        return strategy_class.Options(**values)
    except ValueError as error:
        raise UserError(f"--strategy {options.strategy}: {error}.", "Correct the --strategy-option.") from None


def _convert(name: str, value: Any, hint: Any) -> Any:
    """Convert the ``value`` of option ``name`` to the type ``hint``. Raises ValueError if that is not possible."""
    if get_origin(hint) is UnionType:
        # An automatic default is None.
        if value is None:
            return None
        hint = next(each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}, not '{value}'")
        return value
    if hint is bool:
        if str(value).lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, not '{value}'")
        return str(value).lower() == "true"
    try:
        return hint(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, not '{value}'") from None


def build_vnet(options: TrainingOptions, groups: Partition, dropout: float = 0.0) -> DCANet:
    """The V-Net backbone: one encoder and one decoder (the paper's medium one) for all organs."""
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


def get_published_dropout(options: TrainingOptions, *, needed: bool = False) -> float:
    """The dropout of methods whose authors use 1/2 in front of the head, in networks with 16 filters or more.

    With 8 filters, a V-Net has no organ left after 700 steps with it (mean Dice 0.146 without dropout, 0.115 with 0.1,
    0.077 with 0.25, and 0 with 0.5, on synthetic CTs). So narrower networks have none, or 0.1 if the method ``needed``
    it as its source of uncertainty.
    """
    if options.n_filters >= 16:
        return 0.5
    return 0.1 if needed else 0.0


def choose_ema_decay(decay: float | None, options: TrainingOptions) -> float:
    """The decay with which weights that also learn follow others: ``decay``, or .99 with SGD, and .999 with AdamW.

    With SGD, weights move away from those they follow until the gradient is as large as the pull. Each step of AdamW
    is about as large as the learning rate, whatever the gradient. With .99, weights are at most 100 learning rates
    away, and at the end of a run equal to those they follow.
    """
    if decay is not None:
        return decay
    return 0.99 if options.optimizer == "sgd" else 0.999


def limit_warmup_steps(step_state: StepState, options: TrainingOptions) -> int:
    """The warm-up of methods whose stages may be short: that of the options, but at most a tenth of the stage."""
    return min(options.warmup_steps, step_state.stage_steps // 10)


def compute_class_balance(step_state: StepState, options: TrainingOptions) -> float:
    """The ``class_balance`` of ``segmentation_loss`` at this step; it decreases to 0 over the stage."""
    return options.class_balance * (1 - step_state.stage_step / step_state.stage_steps)


def whole_label_loss(logits: Tensor, batch: Batch, options: TrainingOptions, step_state: StepState) -> Tensor:
    """L_seg of ``logits`` (batch, channel, depth, height, width) with all labels of the batch that are not ignored."""
    n_channels = logits.shape[1]
    unannotated = make_channel_mask(batch.unannotated, n_channels, logits.device) if any(batch.unannotated) else None
    balance = compute_class_balance(step_state, options)
    return segmentation_loss(
        logits.float(), batch.labels, options.dice_channels, range(1, n_channels), balance, unannotated, batch.ignored
    )


def pseudo_label_loss(logits: Tensor, pseudo_labels: Tensor, options: TrainingOptions) -> Tensor:
    """L_seg of ``logits`` (batch, channel, depth, height, width) with pseudo-labels (batch, depth, height, width)."""
    organs: Sequence[int] = range(1, logits.shape[1])
    return segmentation_loss(logits.float(), pseudo_labels, options.dice_channels, organs)
