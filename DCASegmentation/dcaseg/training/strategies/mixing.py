"""Volumes put together from others: boxes, cubes, blocks, frequencies.

Pure functions of tensors (batch, channel, depth, height, width) and of a generator on the CPU. Label maps go through
them as (batch, 1, depth, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def box_mask(sides: Sequence[int], share: float, generator: torch.Generator) -> Tensor:
    """BCP's mask, booleans (depth, height, width): false in a box of ``share`` of each side at a random place."""
    mask = torch.ones(tuple(sides), dtype=torch.bool)
    lengths = [max(1, int(side * share)) for side in sides]
    starts = [
        int(torch.randint(side - length + 1, (), generator=generator))
        for side, length in zip(sides, lengths, strict=True)
    ]
    mask[tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))] = False
    return mask


def pasted(outside: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """``outside`` where ``mask`` (depth, height, width) is true, ``inside`` elsewhere."""
    return torch.where(mask, outside, inside)


def cubes(volumes: Tensor, count: int) -> Tensor:
    """The count³ cubes of volumes, (cube, batch, channel, d, h, w), the last axis counting fastest.

    ``count`` must divide each side.
    """
    batch, channels, depth, height, width = volumes.shape
    d, h, w = depth // count, height // count, width // count
    parts = volumes.reshape(batch, channels, count, d, count, h, count, w)
    return parts.permute(2, 4, 6, 0, 1, 3, 5, 7).reshape(count**3, batch, channels, d, h, w)


def assembled(parts: Tensor) -> Tensor:
    """The volumes whose ``cubes`` these are."""
    count = round(len(parts) ** (1 / 3))
    _, batch, channels, d, h, w = parts.shape
    grid = parts.reshape(count, count, count, batch, channels, d, h, w)
    return grid.permute(3, 4, 0, 5, 1, 6, 2, 7).reshape(batch, channels, count * d, count * h, count * w)


def partners(places: int, batch: int, generator: torch.Generator) -> Tensor:
    """For each place a random permutation of the batch, (place, batch)."""
    return torch.rand(places, batch, generator=generator).argsort(dim=1)


def exchanged(parts: Tensor, order: Tensor) -> Tensor:
    """Cubes (place, batch, ...) with, at each place, that of patch ``order[place, b]`` in patch b."""
    places = torch.arange(len(parts), device=parts.device)[:, None]
    return parts[places, order.to(parts.device)]


def returned(parts: Tensor, order: Tensor) -> Tensor:
    """Undo ``exchanged``: each cube back in the patch it came from."""
    return exchanged(parts, order.argsort(dim=1))


def low_frequencies(volumes: Tensor, share: float) -> Tensor:
    """The part of each volume with frequencies |k| <= ``share`` x side on each axis, in single precision."""
    axes = (2, 3, 4)
    with torch.autocast(volumes.device.type, enabled=False):
        spectrum = torch.fft.fftn(volumes.float(), dim=axes)
        for axis in axes:
            side = volumes.shape[axis]
            frequencies = (torch.fft.fftfreq(side, device=volumes.device) * side).round().abs()
            shape = [1] * volumes.dim()
            shape[axis] = side
            spectrum = spectrum * (frequencies <= round(share * side)).view(shape)
        return torch.fft.ifftn(spectrum, dim=axes).real


def frequencies_swapped(one: Tensor, other: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Both volumes, each with the low frequencies of the other."""
    low_one, low_other = low_frequencies(one, share), low_frequencies(other, share)
    return one - low_one + low_other, other - low_other + low_one


def displaced(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], candidates: int, nearest: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """ABD's displacement for unlabelled patches: the least confident block of each view, replaced by a confident one of
    the other view.

    ``one`` and ``other`` are two views of the same patches, each as blocks (block, batch, channel, d, h, w) with the
    softmax over them. Of the ``candidates`` most confident blocks of the other view, patch by patch, the one whose mean
    class distribution is nearest (KL divergence) to that of the block to be replaced; where ``nearest`` is false, the
    most confident one. Gives the blocks of both new views.
    """
    views, answers = (one[0], other[0]), (one[1], other[1])
    confidence = [answer.amax(dim=2).flatten(2).mean(dim=2) for answer in answers]
    distribution = [answer.flatten(3).mean(dim=3) for answer in answers]
    new = [views[0].clone(), views[1].clone()]
    for patch, by_distance in enumerate(nearest):
        for here, there in ((0, 1), (1, 0)):
            worst = int(confidence[here][:, patch].argmin())
            best = confidence[there][:, patch].topk(candidates).indices
            chosen = best[0]
            if by_distance:
                wanted = distribution[here][worst, patch].clamp(min=1e-8)
                found = distribution[there][best, patch].clamp(min=1e-8)
                chosen = best[(wanted * (wanted / found).log()).sum(dim=1).argmin()]
            new[here][worst, patch] = views[there][chosen, patch]
    return new[0], new[1]


def displaced_with_labels(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], labels: Tensor, chosen: Sequence[bool]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """ABD's displacement for labelled patches: the most confident block of each view, replaced by the least confident
    one of the other view, with its labels, in those patches that are ``chosen``.

    Views as in ``displaced``; ``labels`` are blocks, too. Gives for each view its new blocks and labels.
    """
    views, answers = (one[0], other[0]), (one[1], other[1])
    confidence = [answer.amax(dim=2).flatten(2).mean(dim=2) for answer in answers]
    new = [(view.clone(), labels.clone()) for view in views]
    for patch in (index for index, one_chosen in enumerate(chosen) if one_chosen):
        for here, there in ((0, 1), (1, 0)):
            best = int(confidence[here][:, patch].argmax())
            worst = int(confidence[there][:, patch].argmin())
            new[here][0][best, patch] = views[there][worst, patch]
            new[here][1][best, patch] = labels[worst, patch]
    return new[0], new[1]
