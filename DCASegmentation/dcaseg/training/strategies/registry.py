"""The strategies by name, and the options that fit each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...method.log_gap import Partition
from ..options import StrategyName, TrainingOptions
from .a_and_d import AggregatingAndDecoupling
from .abd import ABD
from .adsh import Adsh
from .basak import Basak
from .base import Facts, Strategy
from .bcp import BCP
from .beta_fft import BetaFFT
from .cld import CLD
from .co_bionet import CoBioNet
from .cps import CrossPseudoSupervision
from .crest import CReST
from .dca import DCA
from .dhc import DHC
from .ga import GradientAware
from .magicnet import MagicNet
from .plain_experts import PlainExperts
from .simis import SimiS
from .skcdf import SKCDF
from .ss_net import SSNet
from .ua_mt import UncertaintyAwareMeanTeacher
from .urpc import URPC
from .vnet import VNet

_MAKERS: dict[StrategyName, Callable[[TrainingOptions, Partition], Strategy]] = {
    "dca": DCA,
    "vnet": VNet,
    "plain_experts": PlainExperts,
    "ua_mt": UncertaintyAwareMeanTeacher,
    "cps": CrossPseudoSupervision,
    "urpc": URPC,
    "ss_net": SSNet,
    "co_bionet": CoBioNet,
    "bcp": BCP,
    "magicnet": MagicNet,
    "abd": ABD,
    "beta_fft": BetaFFT,
    "adsh": Adsh,
    "crest": CReST,
    "simis": SimiS,
    "basak": Basak,
    "cld": CLD,
    "dhc": DHC,
    "a_and_d": AggregatingAndDecoupling,
    "ga": GradientAware,
    "skcdf": SKCDF,
}


def _consistency(weight: float, ramp: float = 1.0) -> dict[str, Any]:
    """A weight of unlabelled patches that is there from the first step on and grows over this share of the run."""
    return {"unsupervised_weight": weight, "unsup_weight_cutoff": 0.0, "ramp_fraction": ramp}


OWN_OPTIONS: dict[StrategyName, dict[str, Any]] = {
    "dca": {},
    "vnet": {},
    "plain_experts": {},
    # The weight that the family's repositories give their consistency, ramped over the whole run.
    **dict.fromkeys(
        ("ua_mt", "cps", "urpc", "magicnet", "adsh", "crest", "simis", "basak", "cld", "dhc", "ga"), _consistency(0.1)
    ),
    "ss_net": _consistency(1.0, 0.4),
    "co_bionet": _consistency(1.0, 0.4),
    "bcp": _consistency(1.0),
    "abd": _consistency(1.0),
    "beta_fft": _consistency(0.5),
    "a_and_d": _consistency(10.0),
    "skcdf": _consistency(10.0),
}
"""What differs from the preset for each strategy; an option given by hand wins."""


def strategy_class(options: TrainingOptions) -> Callable[[TrainingOptions, Partition], Strategy]:
    """The class that a run's options name; of a paper followed in two ways, that of the option ``variant``."""
    kind = _MAKERS[options.strategy]
    published: type[Strategy] | None = getattr(kind, "published", None)
    return published if published is not None and options.strategy_options.get("variant") == "published" else kind


def require(options: TrainingOptions, facts: Facts) -> None:
    """Raise UserError if the strategy of the options cannot learn from such cases; nothing is built."""
    kind = strategy_class(options)
    if isinstance(kind, type) and issubclass(kind, Strategy):
        kind.require(options, facts)


def make_strategy(options: TrainingOptions, groups: Partition, facts: Facts | None = None) -> Strategy:
    """The strategy of the options, with fresh weights.

    ``facts`` are those of the cases it will learn from; without them only its networks are of use. Raises UserError as
    ``require``.
    """
    if facts is not None:
        require(options, facts)
    strategy = strategy_class(options)(options, groups)
    if facts is not None:
        strategy.prepare(facts)
    return strategy


def fitted(options: TrainingOptions) -> TrainingOptions:
    """The options with what the strategy must change to take patches of this size, for a table of all systems."""
    kind = strategy_class(options)
    return kind.fitted(options) if isinstance(kind, type) and issubclass(kind, Strategy) else options
