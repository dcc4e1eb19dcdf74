"""What the systems for imbalanced classes count, and the weights of classes they make of it.

Vectors are (channel,), index 0 is background. Counts are in voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distributed import sum_over_processes
from ..ema import update_average

_SMALL = 1e-8


def voxels_of(labels: Tensor, n_channels: int) -> Tensor:
    """Voxels of each label in ``labels``, in all processes together, as float32."""
    return sum_over_processes(torch.bincount(labels.flatten(), minlength=n_channels).float())


def distribution_weights(voxels: Tensor) -> Tensor:
    """DHC's DistDW: C ln(n_max / n_k), divided by the largest; the most frequent class weighs nothing."""
    gaps = ((voxels.max() + _SMALL) / (voxels + _SMALL)).log()
    return len(voxels) * gaps / gaps.max().clamp(min=_SMALL)


def reversed_weights(voxels: Tensor, exponent: float = 1 / 3) -> Tensor:
    """CReST's rates: the class of rank l gets (n of the class of rank C-1-l / n_max) ** ``exponent``; the rarest 1."""
    order = voxels.argsort(descending=True, stable=True)
    weights = torch.empty_like(voxels)
    weights[order] = ((voxels[order.flip(0)] + _SMALL) / (voxels.max() + _SMALL)) ** exponent
    return weights


def lagging_weights(voxels: Tensor) -> Tensor:
    """SimiS: C (largest share - share of the class)."""
    shares = voxels / voxels.sum().clamp(min=1)
    return len(voxels) * (shares.max() - shares)


def cube_root_weights(voxels: Tensor) -> Tensor:
    """CLD: (n_max / n_k) ** 1/3."""
    return (voxels.max() / voxels.clamp(min=1)) ** (1 / 3)


def balance_ratio(voxels: Tensor) -> Tensor:
    """SKCDF: n_min / n_k, the share to keep of each class for all to be as frequent as the rarest."""
    return voxels.min() / voxels.clamp(min=1)


def hard_dice(predicted: Tensor, labels: Tensor, n_channels: int) -> tuple[Tensor, Tensor]:
    """Dice of two label maps for each class over the whole batch, and which classes ``labels`` hold."""
    overlap = voxels_of(labels[predicted == labels], n_channels)
    true = voxels_of(labels, n_channels)
    return 2 * overlap / (voxels_of(predicted, n_channels) + true).clamp(min=1), true > 0


class Difficulty(nn.Module):
    """DHC's DiffDW: how hard each class is to learn, from how its Dice on labelled patches rises and falls.

    With d a class's Dice and Δ its change, learn and unlearn are running means (49/50) of Δ ln(d / d_before) where
    Δ > 0 and where Δ <= 0. Weight = C x difficulty x distance / max, difficulty = (unlearn / learn) ** 1/5, distance
    the running mean of 1 - d. A class that a batch does not hold keeps its numbers: the published code gives it a
    Dice of 1/2 or 0, so absence looks like learning. ``bounded`` off leaves out the division, as A&D's code does.
    """

    _DECAY = 49 / 50

    def __init__(self, n_channels: int, bounded: bool = True) -> None:
        super().__init__()
        self._bounded = bounded
        self.last: Tensor
        self.learn: Tensor
        self.unlearn: Tensor
        self.distance: Tensor
        self.register_buffer("last", torch.full((n_channels,), _SMALL))
        self.register_buffer("learn", torch.zeros(n_channels))
        self.register_buffer("unlearn", torch.zeros(n_channels))
        self.register_buffer("distance", torch.ones(n_channels))

    @torch.no_grad()
    def observe(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """The weights (channel,) after this batch of label maps."""
        dice, present = hard_dice(predicted, labels, len(self.last))
        change = dice - self.last
        gain = change * ((dice + _SMALL) / (self.last + _SMALL)).log()
        for kept, new in (
            (self.learn, torch.where(change > 0, gain, 0)),
            (self.unlearn, torch.where(change > 0, 0, gain)),
            (self.distance, 1 - dice),
        ):
            kept.copy_(torch.where(present, self._DECAY * kept + (1 - self._DECAY) * new, kept))
        self.last.copy_(torch.where(present, dice, self.last))
        return self.weights()

    def weights(self) -> Tensor:
        """The weights (channel,) so far."""
        hardness = ((self.unlearn + _SMALL) / (self.learn + _SMALL)) ** 0.2 * self.distance
        scale = hardness.max().clamp(min=_SMALL) if self._bounded else 1.0
        return len(self.last) * hardness / scale


class Confidence(nn.Module):
    """CLD's bank: the mean probability of each class on its own labelled voxels, and rates that fall with it.

    Updated every ``period`` batches, by ``decay`` of the old value, the first time by the new value alone; a class
    without a voxel in the period keeps its value (in the published code it counts as not confident at all). ``rates``
    are ((1 - conf) / max (1 - conf)) ** ``exponent``, and 1 for a class never seen.
    """

    def __init__(self, n_channels: int, period: int, decay: float = 0.999, exponent: float = 0.5) -> None:
        super().__init__()
        self._period, self._decay, self._exponent = period, decay, exponent
        self.confidence: Tensor
        self.sums: Tensor
        self.voxels: Tensor
        self.batches: Tensor
        self.register_buffer("confidence", torch.full((n_channels,), -1.0))
        self.register_buffer("sums", torch.zeros(n_channels))
        self.register_buffer("voxels", torch.zeros(n_channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, probabilities: Tensor, labels: Tensor) -> None:
        """Take in a labelled batch: (batch, channel, ...) and its labels."""
        of_truth = probabilities.float().gather(1, labels[:, None]).flatten()
        found = torch.zeros_like(self.sums).scatter_add_(0, labels.flatten(), of_truth)
        self.sums.add_(sum_over_processes(found))
        self.voxels.add_(voxels_of(labels, len(self.sums)))
        self.batches.add_(1)
        if int(self.batches) % self._period:
            return
        mean = self.sums / self.voxels.clamp(min=1)
        known = self.confidence >= 0
        after = torch.where(known, self._decay * self.confidence + (1 - self._decay) * mean, mean)
        self.confidence.copy_(torch.where(self.voxels > 0, after, self.confidence))
        self.sums.zero_()
        self.voxels.zero_()

    def rates(self) -> Tensor:
        """The share of each class's voxels to keep."""
        doubt = 1 - self.confidence.clamp(min=0)
        rates = (doubt / doubt.max().clamp(min=_SMALL)) ** self._exponent
        return torch.where(self.confidence < 0, torch.ones_like(rates), rates)


class Quantiles(nn.Module):
    """For each class, how confident the voxels are that were given its label: a histogram of 0..1 in 1000 bins.

    It stands for the stored volumes of the published Adsh, exact to a thousandth.
    """

    _BINS = 1000

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.histogram: Tensor
        self.register_buffer("histogram", torch.zeros(n_channels, self._BINS))

    @torch.no_grad()
    def observe(self, confidence: Tensor, labels: Tensor) -> None:
        """Take in voxels: their confidence in 0..1, and labels of the same shape."""
        bins = (confidence.float() * self._BINS).long().clamp(0, self._BINS - 1)
        where = (labels * self._BINS + bins).flatten()
        found = torch.bincount(where, minlength=self.histogram.numel())
        self.histogram.add_(sum_over_processes(found.float()).view_as(self.histogram))

    def clear(self) -> None:
        """Forget all voxels."""
        self.histogram.zero_()

    def share_above(self, label: int, threshold: float) -> Tensor:
        """The share of the label's voxels with at least this confidence."""
        of_label = self.histogram[label]
        return of_label[round(threshold * self._BINS) :].sum() / of_label.sum().clamp(min=1)

    def thresholds(self, share: Tensor) -> Tensor:
        """For each class the confidence that ``share`` of its voxels reach; 1 for a class without voxels."""
        from_above = self.histogram.flip(1).cumsum(dim=1).flip(1)
        total = from_above[:, :1]
        enough = (from_above >= share * total) & (total > 0)
        edges = torch.arange(self._BINS, device=share.device) / self._BINS
        found = torch.where(enough, edges, torch.zeros_like(edges)).amax(dim=1)
        return torch.where(total[:, 0] > 0, found, torch.ones_like(found))


def update_weight_average(kept: Tensor, new: Tensor, decay: float) -> Tensor:
    """Weights of classes that follow ``new`` slowly, kept in place in the buffer ``kept``; a copy to compute with."""
    update_average(kept, new, decay)
    return kept.clone()
