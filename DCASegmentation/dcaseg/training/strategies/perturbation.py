"""Perturbations of a volume that do not change its labels: noise, strong views, and adversarial perturbations.

They are computed on the device from the loop's patches, so all views of a patch are aligned. Random numbers come from a
CPU generator (``Strategy.random``), so they are the same in a resumed run and on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from .losses import soft_dice_loss


def sample_normal(shape: tuple[int, ...] | torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers of ``shape`` on the device of ``like``."""
    return torch.randn(shape, generator=generator).to(like.device)


def add_clipped_noise(
    volumes: Tensor, generator: torch.Generator, deviation: float = 0.1, limit: float = 0.2
) -> Tensor:
    """Add Gaussian noise with this standard deviation, clipped at ± ``limit``."""
    return volumes + (sample_normal(volumes.shape, generator, volumes) * deviation).clamp(-limit, limit)


def smooth(volumes: Tensor, share: float) -> Tensor:
    """Smooth (batch, channel, depth, height, width): along each axis, move the fraction ``share`` to the neighbors."""
    for axis in (2, 3, 4):
        sides = [0] * 6
        sides[2 * (4 - axis)] = sides[2 * (4 - axis) + 1] = 1
        padded = functional.pad(volumes, sides, mode="replicate")
        size = volumes.shape[axis]
        around = padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size)
        volumes = (1 - share) * volumes + share / 2 * around
    return volumes


def augment_strongly(volumes: Tensor, generator: torch.Generator, box: float = 0.5) -> Tensor:
    """Strongly augment the intensities of patches (batch, 1, depth, height, width).

    Contrast, brightness, gamma, blur and noise vary more than in the loop's augmentation, and with probability ``box``
    a box is filled with noise. Changes are relative to the range of each patch. There is no rotation or scaling, so
    labels stay aligned.
    """
    changed = []
    for volume in volumes:
        low, high = volume.amin(), volume.amax()
        reach = (high - low).clamp(min=1e-6)
        draw = torch.rand(11, generator=generator).tolist()
        patch = (volume - low) / reach
        patch = (patch - 0.5) * (0.6 + 0.8 * draw[0]) + 0.5 + 0.4 * (draw[1] - 0.5)
        patch = patch.clamp(0, 1)
        if draw[2] < 0.5:
            patch = patch ** (0.6 + draw[3])
        if draw[4] < 0.5:
            patch = smooth(patch[None], 0.6 * draw[5])[0]
        patch = patch + sample_normal(patch.shape, generator, patch) * (0.1 * draw[6])
        if draw[7] < box:
            sides = [
                max(1, round((0.2 + 0.2 * share) * side)) for share, side in zip(draw[8:], patch.shape[1:], strict=True)
            ]
            starts = [
                int(torch.randint(whole - side + 1, (), generator=generator))
                for side, whole in zip(sides, patch.shape[1:], strict=True)
            ]
            inside = (slice(None), *(slice(a, a + n) for a, n in zip(starts, sides, strict=True)))
            patch[inside] = torch.rand(patch[inside].shape, generator=generator).to(patch)
        changed.append(patch.clamp(0, 1) * reach + low)
    return torch.stack(changed).to(volumes.dtype)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """A context in which batch norm does not update its running statistics, for perturbed input."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """A context without dropout, to compare two passes whose difference must come from their input."""
    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training
    ]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def normalize_l2(direction: Tensor) -> Tensor:
    """Normalize ``direction`` (batch, ...) to L2 norm 1 for each patch."""
    flat = direction.flatten(1)
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).view_as(direction)


def compute_adversarial_direction(
    predict: Callable[[Tensor], Tensor], volumes: Tensor, clean: Tensor, radius: float, generator: torch.Generator
) -> Tensor:
    """The direction (norm 1 for each patch) in which the prediction changes most, by one step of power iteration.

    ``predict`` returns probabilities; ``clean`` are those of ``volumes``, without a graph. The direction is the
    gradient, at a random direction d, of the Dice distance between the predictions for ``volumes`` + ``radius`` d and
    ``volumes``. Gradients of parameters are not changed. It is computed in single precision.
    """
    start = normalize_l2(torch.rand(volumes.shape, generator=generator).to(volumes.device) - 0.5)
    with torch.enable_grad(), torch.autocast(volumes.device.type, enabled=False):
        direction = start.requires_grad_(True)
        distance = soft_dice_loss(predict(volumes.float() + radius * direction), clean)
        (gradient,) = torch.autograd.grad(distance, direction)
    return normalize_l2(gradient)
