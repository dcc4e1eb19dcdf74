"""Starting a network from a trained one that may have other groups of organs or another up-sampling."""

from __future__ import annotations

from torch import Tensor, nn

from .network import DCANet


def start_from(network: DCANet, initial: DCANet) -> None:
    """Give ``network`` the weights of ``initial``.

    An expert that gets an organ it did not own keeps the fresh weights of that logit: to an expert the organs of the
    others are background, and a logit that has learned never to be the largest is slow to unlearn it. Where
    ``initial`` has transposed up-convolutions and ``network`` trilinear interpolation, the eight kernels of a
    convolution become their mean, which is what they share below the Nyquist frequency. A decoder that has become a
    correction (``residual``) starts at zero. Raises ValueError if the networks differ in anything else.
    """
    heads: list[nn.Conv3d] = [expert.head for expert in network.experts]  # type: ignore[misc]
    fresh = [[parameter.detach().clone() for parameter in head.parameters()] for head in heads]
    fitted = _fit_upsampling(initial.state_dict(), network.state_dict())
    try:
        network.load_state_dict(fitted)
    except RuntimeError:
        free = ("owners", "upsampling", "residual")
        differing = [key for key, value in network.options.items() if key not in free and value != initial.options[key]]
        raise ValueError(f"the networks differ in {', '.join(differing) or 'their experts'}") from None
    before = dict(zip(initial.expert_slots, initial.owners, strict=True))
    for slot, owned, head, values in zip(network.expert_slots, network.owners, heads, fresh, strict=True):
        new = sorted(set(owned) - set(before[slot]))
        for parameter, value in zip(head.parameters(), values, strict=True):
            parameter.data[new] = value[new]
    if network.aggregation is not None and network.residual and not initial.residual:
        network.aggregation.zero_head()


def _fit_upsampling(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the eight kernels of each transposed convolution averaged where ``wanted`` has one for all."""
    fitted = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        reduced = f"{stem}.reduce.{kind}"
        if key in wanted or reduced not in wanted:
            fitted[key] = value
        elif kind == "weight":
            fitted[reduced] = value.mean(dim=(2, 3, 4), keepdim=True).transpose(0, 1)
        else:
            fitted[reduced] = value
    return fitted
