"""Cross pseudo supervision (Chen et al., CVPR 2021): two networks, each taught by the other's labels."""

from __future__ import annotations

from typing import ClassVar

import torch

from ...method.partition import Partition
from ..options import TrainingOptions
from .strategy import Batch, Loss, Moment, Strategy, plain_vnet
from .supervised import pseudo_label_loss, whole_label_loss


class CrossPseudoSupervision(Strategy):
    """Both learn from the labels and, on all patches, from the other's argmax. The first is validated and shipped."""

    name: ClassVar[str] = "cps"

    def __init__(self, options: TrainingOptions, groups: Partition) -> None:
        super().__init__(options)
        # The second draws other weights than the first: the method lives on their difference.
        self.network = plain_vnet(options, groups)
        self.second = plain_vnet(options, groups)

    def parts(self, moment: Moment, batch: Batch) -> tuple[str, ...]:
        return ("all",)

    def forward(self, part: str, batch: Batch, moment: Moment) -> Loss:
        labelled = len(batch.volumes)
        volumes = batch.volumes if batch.unlabelled is None else torch.cat([batch.volumes, batch.unlabelled])
        answers = [network(volumes) for network in (self.network, self.second)]
        supervised = [whole_label_loss(answer[:labelled], batch, self.options, moment) for answer in answers]
        total = supervised[0] + supervised[1]
        values = {"supervised": total.detach() / 2}
        if batch.unlabelled is not None:
            labels = [answer.detach().argmax(dim=1) for answer in answers]
            crossed = pseudo_label_loss(answers[0], labels[1], self.options) + pseudo_label_loss(
                answers[1], labels[0], self.options
            )
            total = total + self.weight(moment) * crossed
            agreement = (labels[0][labelled:] == labels[1][labelled:]).float().mean()
            values |= {"unsupervised": crossed.detach(), "agreement": agreement}
        return Loss(total, values)
