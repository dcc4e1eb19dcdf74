"""Statistics of classes, and class weights derived from them, for the methods for imbalanced classes.

Vectors are (channel,); index 0 is the background. Counts are in voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distributed import sum_over_processes

_SMALL = 1e-8


def count_voxels(labels: Tensor, n_channels: int) -> Tensor:
    """The number of voxels of each label in ``labels``, summed over all processes, as float32 (channel,)."""
    return sum_over_processes(torch.bincount(labels.flatten(), minlength=n_channels).float())


def compute_distribution_weights(voxels: Tensor) -> Tensor:
    """DHC's DistDW: C ln(n_max / n_k), divided by the largest value. The most frequent class has weight 0."""
    gaps = ((voxels.max() + _SMALL) / (voxels + _SMALL)).log()
    return len(voxels) * gaps / gaps.max().clamp(min=_SMALL)


def compute_reversed_weights(voxels: Tensor, exponent: float = 1 / 3) -> Tensor:
    """CReST's rates: (n_r / n_max) ** ``exponent``, where r is the class with the reversed rank. The rarest gets 1."""
    order = voxels.argsort(descending=True, stable=True)
    weights = torch.empty_like(voxels)
    weights[order] = ((voxels[order.flip(0)] + _SMALL) / (voxels.max() + _SMALL)) ** exponent
    return weights


def compute_deficit_weights(voxels: Tensor) -> Tensor:
    """SimiS: C (largest share - share of the class), with shares of the voxels."""
    shares = voxels / voxels.sum().clamp(min=1)
    return len(voxels) * (shares.max() - shares)


def compute_cube_root_weights(voxels: Tensor) -> Tensor:
    """CLD: (n_max / n_k) ** 1/3."""
    return (voxels.max() / voxels.clamp(min=1)) ** (1 / 3)


def compute_balance_ratio(voxels: Tensor) -> Tensor:
    """SKCDF: n_min / n_k, the fraction of each class to keep so that all are as frequent as the rarest."""
    return voxels.min() / voxels.clamp(min=1)


def compute_dice(predicted: Tensor, labels: Tensor, n_channels: int) -> tuple[Tensor, Tensor]:
    """Dice of two label maps for each class over the whole batch, and which classes occur in ``labels``."""
    overlap = count_voxels(labels[predicted == labels], n_channels)
    true = count_voxels(labels, n_channels)
    return 2 * overlap / (count_voxels(predicted, n_channels) + true).clamp(min=1), true > 0


class ClassDifficulty(nn.Module):
    """DHC's DiffDW: how difficult each class is to learn, from the changes of its Dice on labeled patches.

    d is the Dice of a class and Δ its change. "Learn" and "unlearn" are running means (49/50) of Δ ln(d / d_before) for
    Δ > 0 and for Δ <= 0. The weight is C x difficulty x distance / max, where difficulty = (unlearn / learn) ** 1/5,
    and distance is the running mean of 1 - d. A class that is absent from a batch keeps its values; the published code
    assigns it a Dice of 1/2 or 0, so that absence looks like learning. Without ``bounded``, the weights are not divided
    by the maximum, as in A&D's code.
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
        """Add a batch of label maps, and return the new weights (channel,)."""
        dice, present = compute_dice(predicted, labels, len(self.last))
        change = dice - self.last
        gain = change * ((dice + _SMALL) / (self.last + _SMALL)).log()
        for average, new in (
            (self.learn, torch.where(change > 0, gain, 0)),
            (self.unlearn, torch.where(change > 0, 0, gain)),
            (self.distance, 1 - dice),
        ):
            average.copy_(torch.where(present, self._DECAY * average + (1 - self._DECAY) * new, average))
        self.last.copy_(torch.where(present, dice, self.last))
        return self.compute_weights()

    def compute_weights(self) -> Tensor:
        """The current weights (channel,)."""
        hardness = ((self.unlearn + _SMALL) / (self.learn + _SMALL)) ** 0.2 * self.distance
        scale = hardness.max().clamp(min=_SMALL) if self._bounded else 1.0
        return len(self.last) * hardness / scale


class ClassConfidence(nn.Module):
    """CLD's bank: the mean probability of each class on its labeled voxels, and sampling rates that decrease with it.

    It is updated every ``period`` batches; the first value is used as it is. After n updates the decay is 1 - 1 / (n +
    1), so that the bank is the mean of all values, up to ``decay``. In the published code and in DHC's port, the decay
    is constant: in a short run, the bank then hardly moves away from the first steps. A class without voxels in the
    period keeps its value (in the published code, its confidence is then 0). ``compute_sampling_rates`` returns ((1 -
    conf) / max (1 - conf)) ** ``exponent``, and 1 for a class that has not occurred yet.
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
        """Add a labeled batch: probabilities (batch, channel, ...) and labels (batch, ...)."""
        of_truth = probabilities.float().gather(1, labels[:, None]).flatten()
        sums = torch.zeros_like(self.sums).scatter_add_(0, labels.flatten(), of_truth)
        self.sums.add_(sum_over_processes(sums))
        self.voxels.add_(count_voxels(labels, len(self.sums)))
        self.batches.add_(1)
        if int(self.batches) % self._period:
            return
        mean = self.sums / self.voxels.clamp(min=1)
        known = self.confidence >= 0
        updates = int(self.batches) // self._period - 1
        decay = min(1 - 1 / (updates + 1), self._decay)
        after = torch.where(known, decay * self.confidence + (1 - decay) * mean, mean)
        self.confidence.copy_(torch.where(self.voxels > 0, after, self.confidence))
        self.sums.zero_()
        self.voxels.zero_()

    def compute_sampling_rates(self) -> Tensor:
        """The fraction of each class's voxels to keep (channel,)."""
        doubt = 1 - self.confidence.clamp(min=0)
        rates = (doubt / doubt.max().clamp(min=_SMALL)) ** self._exponent
        return torch.where(self.confidence < 0, torch.ones_like(rates), rates)


class ConfidenceHistogram(nn.Module):
    """The distribution of the confidence of each class's pseudo-labels, as a histogram with 1000 bins from 0 to 1.

    It replaces the stored volumes of the published Adsh, with a precision of 1/1000.
    """

    _BINS = 1000

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.histogram: Tensor
        self.register_buffer("histogram", torch.zeros(n_channels, self._BINS))

    @torch.no_grad()
    def observe(self, confidence: Tensor, labels: Tensor) -> None:
        """Add voxels: their confidence (0 to 1), and their labels, of the same shape."""
        bins = (confidence.float() * self._BINS).long().clamp(0, self._BINS - 1)
        indices = (labels * self._BINS + bins).flatten()
        counts = torch.bincount(indices, minlength=self.histogram.numel())
        self.histogram.add_(sum_over_processes(counts.float()).view_as(self.histogram))

    def clear(self) -> None:
        """Remove all voxels."""
        self.histogram.zero_()

    def compute_fraction_above(self, label: int, threshold: float) -> Tensor:
        """The fraction of the label's voxels with at least this confidence."""
        of_label = self.histogram[label]
        return of_label[round(threshold * self._BINS) :].sum() / of_label.sum().clamp(min=1)

    def compute_thresholds(self, share: Tensor) -> Tensor:
        """The confidence (channel,) that the fraction ``share`` of each class's voxels reaches; 1 without voxels."""
        from_above = self.histogram.flip(1).cumsum(dim=1).flip(1)
        total = from_above[:, :1]
        enough = (from_above >= share * total) & (total > 0)
        edges = torch.arange(self._BINS, device=share.device) / self._BINS
        thresholds = torch.where(enough, edges, torch.zeros_like(edges)).amax(dim=1)
        return torch.where(total[:, 0] > 0, thresholds, torch.ones_like(thresholds))
