"""DCA: experts learn split labels, and an aggregation decoder learns from labels and pseudo-labels."""

from __future__ import annotations

from typing import ClassVar

import torch

from ...method.experts import ExpertDecoder
from ...method.log_gap import Partition
from ...method.network import DCANet
from ...method.variants import VNET_N_STAGES
from ...method.vnet import initialize_kaiming
from ..options import TrainingOptions
from .base import Batch, Loss, StepState, Strategy, compute_class_balance
from .dca_losses import (
    Stage,
    compute_joint_losses,
    compute_supervised_losses,
    pseudo_supervised_loss,
    unsupervised_loss,
)
from .perturbation import augment_strongly


def build_dca_network(options: TrainingOptions, groups: Partition) -> DCANet:
    """Create DCA's network for these options and groups of organs."""
    network = DCANet(
        owners=groups.owners,
        n_filters=options.n_filters,
        norm=options.norm,
        n_stages=options.n_stages,
        dilations=options.dilations,
        fusion=options.fusion,
        aggregation=options.aggregation,
        stitching=options.stitching,
        upsampling=options.upsampling,
        residual=options.residual,
    )
    if options.initialization == "kaiming":
        initialize_kaiming(network)
    return network


class DCA(Strategy):
    """The paper's training (slides "Conquer" and "Aggregate"), in one stage (the paper) or two (ours)."""

    name: ClassVar[str] = "dca"

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        self.network = build_dca_network(options, groups)
        # The network with averaged weights, which belongs to the trainer. In a tuple, so that it is not a submodule.
        self._teacher: tuple[DCANet, ...] = ()

    def get_step_state(self, step: int) -> StepState:
        """The stage of ``step``: "experts", "aggregation" or "joint" (see ``get_stage``)."""
        stage, first, length = get_stage(step, self.options)
        return StepState(step, stage, step - first, length)

    def on_step_start(self, step_state: StepState, averaged: DCANet | None) -> bool:
        """At the start of the aggregation stage, load the averaged weights, and copy the medium expert's blocks.

        The optimizer is reset, because its moments belong to weights that no longer learn.
        """
        self._teacher = () if averaged is None else (averaged,)
        if step_state.stage != "aggregation" or step_state.stage_step:
            return False
        if averaged is not None:
            self.network.load_state_dict(averaged.state_dict())
        aggregation, slots = self.network.aggregation, self.network.expert_slots
        medium = 1 in slots and tuple(self.options.n_stages[1]) == VNET_N_STAGES
        if aggregation is not None and medium and self.options.aggregation_start == "medium":
            expert = self.network.experts[slots.index(1)]
            assert isinstance(expert, ExpertDecoder)
            aggregation.copy_blocks(expert)
            if self.network.residual:
                aggregation.zero_head()
        return True

    def get_unsupervised_weight(self, step_state: StepState) -> float:
        """The weight λ; 0 in stages that do not learn from unlabeled patches."""
        aggregates = step_state.stage != "experts" and self.network.aggregation is not None
        teaches_experts = step_state.stage != "aggregation" and self.options.expert_pseudo_labels
        return super().get_unsupervised_weight(step_state) if aggregates or teaches_experts else 0.0

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        """Some of "labelled", "experts" and "unlabelled", or "all" for one graph (see ``joint_statistics``)."""
        names = []
        aggregates = step_state.stage != "experts" and self.network.aggregation is not None
        in_one_graph = self._uses_one_graph(step_state, batch)
        if in_one_graph:
            names.append("all")
        elif step_state.stage != "aggregation" or (aggregates and self.options.supervise_aggregation):
            names.append("labelled")
        if batch.unlabeled is not None:
            if step_state.stage != "aggregation" and self.options.expert_pseudo_labels:
                names.append("experts")
            if aggregates and not in_one_graph:
                names.append("unlabelled")
        return tuple(names)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        """See ``Strategy.forward`` and ``dca_losses``."""
        stage: Stage = step_state.stage  # type: ignore[assignment]  # from stage_of
        balance = compute_class_balance(step_state, self.options)
        if loss_name == "all":
            return self._compute_joint_loss(batch, step_state, balance)
        if loss_name == "labelled":
            losses = compute_supervised_losses(
                self.network, batch.volumes, batch.labels, self.options, stage, balance, batch.unannotated
            )
            return Loss(
                torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}
            )
        assert batch.unlabeled is not None
        if loss_name == "experts":
            teacher = self._teacher[0] if self._teacher else self.network
            view = augment_strongly(batch.unlabeled, self.make_generator(step_state))
            loss, agreement = pseudo_supervised_loss(
                self.network, teacher, batch.unlabeled, self.options, balance, view
            )
            values = {"experts_unsupervised": loss.detach(), "experts_agreement": agreement}
            return Loss(self.get_unsupervised_weight(step_state) * loss, values)
        learns_from_itself = self.options.pseudo_label_source == "decoder"
        own_view = augment_strongly(batch.unlabeled, self.make_generator(step_state)) if learns_from_itself else None
        loss, agreement = unsupervised_loss(self.network, batch.unlabeled, self.options, stage, own_view)
        return Loss(
            self.get_unsupervised_weight(step_state) * loss, {"unsupervised": loss.detach(), "agreement": agreement}
        )

    def _uses_one_graph(self, step_state: StepState, batch: Batch) -> bool:
        joint = self.options.joint_statistics and step_state.stage == "joint"
        return joint and batch.unlabeled is not None and self.network.aggregation is not None

    def _compute_joint_loss(self, batch: Batch, step_state: StepState, balance: float) -> Loss:
        assert batch.unlabeled is not None
        losses, agreement = compute_joint_losses(
            self.network, batch.volumes, batch.labels, batch.unlabeled, self.options, balance, batch.unannotated,
            aggregate_all=False,
        )  # fmt: skip
        weights = {"unsupervised": self.get_unsupervised_weight(step_state)}
        total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        return Loss(total, {**{name: loss.detach() for name, loss in losses.items()}, "agreement": agreement})


def get_stage(step: int, options: TrainingOptions) -> tuple[Stage, int, int]:
    """The stage of ``step``, the first step of that stage, and its length in steps."""
    stage_end = 0
    if options.aggregation:
        fraction = round(options.expert_stage_fraction * options.steps)
        stage_end = fraction if options.expert_stage_steps is None else options.expert_stage_steps
    if stage_end == 0:
        return "joint", 0, options.steps
    return ("experts", 0, stage_end) if step < stage_end else ("aggregation", stage_end, options.steps - stage_end)
