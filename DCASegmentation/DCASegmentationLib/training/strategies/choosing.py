"""The strategies by name, and the options that fit each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...method.partition import Partition
from ..options import StrategyName, TrainingOptions
from .cps import CrossPseudoSupervision
from .dca import DCA
from .plain_experts import PlainExperts
from .strategy import Strategy
from .ua_mt import UncertaintyAwareMeanTeacher
from .vnet import VNet

_MAKERS: dict[StrategyName, Callable[[TrainingOptions, Partition], Strategy]] = {
    "dca": DCA,
    "vnet": VNet,
    "plain_experts": PlainExperts,
    "ua_mt": UncertaintyAwareMeanTeacher,
    "cps": CrossPseudoSupervision,
}

# The weight that the family's repositories give their consistency, ramped over the whole run from the first step on.
_CONSISTENCY: dict[str, Any] = {"unsupervised_weight": 0.1, "negligible_weight": 0.0, "ramp_fraction": 1.0}
OWN_OPTIONS: dict[StrategyName, dict[str, Any]] = {
    "dca": {},
    "vnet": {},
    "plain_experts": {},
    "ua_mt": _CONSISTENCY,
    "cps": _CONSISTENCY,
}
"""What differs from the preset for each strategy; an option given by hand wins."""


def make_strategy(options: TrainingOptions, groups: Partition) -> Strategy:
    """The strategy of the options, with fresh weights."""
    return _MAKERS[options.strategy](options, groups)
