"""Mixes volumes by boxes, cubes, blocks and frequencies.

These are pure functions of tensors (batch, channel, depth, height, width) and of a CPU generator. Label maps are passed
as (batch, 1, depth, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def make_box_mask(sides: Sequence[int], share: float, generator: torch.Generator) -> Tensor:
    """BCP's mask, boolean (depth, height, width): false in a random box whose sides are the fraction ``share``."""
    mask = torch.ones(tuple(sides), dtype=torch.bool)
    lengths = [max(1, int(side * share)) for side in sides]
    starts = [
        int(torch.randint(side - length + 1, (), generator=generator))
        for side, length in zip(sides, lengths, strict=True)
    ]
    mask[tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))] = False
    return mask


def paste(outside: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """``outside`` where ``mask`` (depth, height, width) is true, ``inside`` elsewhere."""
    return torch.where(mask, outside, inside)


def split_into_cubes(volumes: Tensor, count: int) -> Tensor:
    """Divide volumes into count³ cubes (cube, batch, channel, d, h, w), numbered with the last axis fastest.

    Each side must be a multiple of ``count``.
    """
    batch, channels, depth, height, width = volumes.shape
    d, h, w = depth // count, height // count, width // count
    parts = volumes.reshape(batch, channels, count, d, count, h, count, w)
    return parts.permute(2, 4, 6, 0, 1, 3, 5, 7).reshape(count**3, batch, channels, d, h, w)


def assemble_cubes(parts: Tensor) -> Tensor:
    """Assemble volumes from their cubes: the inverse of ``split_into_cubes``."""
    count = round(len(parts) ** (1 / 3))
    _, batch, channels, d, h, w = parts.shape
    grid = parts.reshape(count, count, count, batch, channels, d, h, w)
    return grid.permute(3, 4, 0, 5, 1, 6, 2, 7).reshape(batch, channels, count * d, count * h, count * w)


def draw_permutations(positions: int, batch: int, generator: torch.Generator) -> Tensor:
    """A random permutation of the batch for each cube position, (position, batch)."""
    return torch.rand(positions, batch, generator=generator).argsort(dim=1)


def swap_cubes(parts: Tensor, order: Tensor) -> Tensor:
    """Exchange cubes (position, batch, ...) between patches: patch b gets the cube of patch ``order[position, b]``."""
    positions = torch.arange(len(parts), device=parts.device)[:, None]
    return parts[positions, order.to(parts.device)]


def swap_cubes_back(parts: Tensor, order: Tensor) -> Tensor:
    """Undo ``swap_cubes``: move each cube back to its patch."""
    return swap_cubes(parts, order.argsort(dim=1))


def filter_low_frequencies(volumes: Tensor, share: float) -> Tensor:
    """The component of each volume with frequencies |k| <= ``share`` x side on each axis, in single precision."""
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


def swap_low_frequencies(one: Tensor, other: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Swap the low frequencies (see ``filter_low_frequencies``) of two volumes."""
    low_one, low_other = filter_low_frequencies(one, share), filter_low_frequencies(other, share)
    return one - low_one + low_other, other - low_other + low_one


def displace_blocks(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], candidates: int, nearest: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """ABD's displacement for unlabeled patches.

    In each view, the least confident block is replaced by a confident block of the other view. ``one`` and ``other``
    are two views of the same patches, each with its softmax, as blocks (block, batch, channel, d, h, w). For each
    patch, the new block is one of the ``candidates`` most confident blocks of the other view: if ``nearest``, the one
    whose mean class distribution is closest (KL divergence) to that of the replaced block, otherwise the most confident
    one.

    Returns the blocks of both new views.
    """
    views, predictions = (one[0], other[0]), (one[1], other[1])
    confidence = [probabilities.amax(dim=2).flatten(2).mean(dim=2) for probabilities in predictions]
    distribution = [probabilities.flatten(3).mean(dim=3) for probabilities in predictions]
    new = [views[0].clone(), views[1].clone()]
    for patch, by_distance in enumerate(nearest):
        for target, source in ((0, 1), (1, 0)):
            worst = int(confidence[target][:, patch].argmin())
            best = confidence[source][:, patch].topk(candidates).indices
            chosen = best[0]
            if by_distance:
                replaced = distribution[target][worst, patch].clamp(min=1e-8)
                offered = distribution[source][best, patch].clamp(min=1e-8)
                chosen = best[(replaced * (replaced / offered).log()).sum(dim=1).argmin()]
            new[target][worst, patch] = views[source][chosen, patch]
    return new[0], new[1]


def displace_labeled_blocks(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], labels: Tensor, chosen: Sequence[bool]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """ABD's displacement for labeled patches.

    In the patches that are ``chosen``, the most confident block of each view is replaced by the least confident block
    of the other view and its labels. Views are as in ``displace_blocks``; ``labels`` are blocks, too.

    Returns the new blocks and labels of each view.
    """
    views, predictions = (one[0], other[0]), (one[1], other[1])
    confidence = [probabilities.amax(dim=2).flatten(2).mean(dim=2) for probabilities in predictions]
    new = [(view.clone(), labels.clone()) for view in views]
    for patch in (index for index, is_chosen in enumerate(chosen) if is_chosen):
        for target, source in ((0, 1), (1, 0)):
            best = int(confidence[target][:, patch].argmax())
            worst = int(confidence[source][:, patch].argmin())
            new[target][0][best, patch] = views[source][worst, patch]
            new[target][1][best, patch] = labels[worst, patch]
    return new[0], new[1]
