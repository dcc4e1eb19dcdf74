"""The strategies by name, and their default options."""

from __future__ import annotations

from typing import Any

from ...method.log_gap import Partition
from ..options import StrategyName, TrainingOptions
from .a_and_d import AggregatingAndDecoupling
from .abd import ABD
from .adsh import Adsh
from .basak import Basak
from .base import DatasetFingerprint, Strategy
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

_STRATEGIES: dict[StrategyName, type[Strategy]] = {
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


def _make_consistency_options(weight: float, ramp: float = 1.0) -> dict[str, Any]:
    """Options for a weight of unlabeled patches that grows over the fraction ``ramp`` of the run."""
    return {"unsupervised_weight": weight, "unsup_weight_cutoff": 0.0, "ramp_fraction": ramp}


OWN_OPTIONS: dict[StrategyName, dict[str, Any]] = {
    "dca": {},
    "vnet": {},
    "plain_experts": {},
    # The consistency weight of the repositories of these methods, with a ramp over the whole run.
    **dict.fromkeys(
        ("ua_mt", "cps", "urpc", "magicnet", "adsh", "crest", "simis", "basak", "cld", "dhc", "ga"),
        _make_consistency_options(0.1),
    ),
    "ss_net": _make_consistency_options(1.0, 0.4),
    "co_bionet": _make_consistency_options(1.0, 0.4),
    "bcp": _make_consistency_options(1.0),
    "abd": _make_consistency_options(1.0),
    "beta_fft": _make_consistency_options(0.5),
    "a_and_d": _make_consistency_options(10.0),
    "skcdf": _make_consistency_options(10.0),
}
"""For each strategy, options that differ from the preset. Options given by the user take precedence."""


def get_strategy_class(options: TrainingOptions) -> type[Strategy]:
    """The class of a run's strategy; if there are two for a paper, the option ``variant`` selects one."""
    cls = _STRATEGIES[options.strategy]
    published: type[Strategy] | None = getattr(cls, "published", None)
    return published if published is not None and options.strategy_options.get("variant") == "published" else cls


def require(options: TrainingOptions, fingerprint: DatasetFingerprint) -> None:
    """Raise UserError if the strategy does not support these options or cases. Nothing is built yet."""
    get_strategy_class(options).require(options, fingerprint)


def make_strategy(
    options: TrainingOptions, groups: Partition, fingerprint: DatasetFingerprint | None = None
) -> Strategy:
    """Create the strategy of the options, with initial weights.

    ``fingerprint`` is that of its training cases; without them, only its networks can be used. Raises UserError as
    ``require`` does.
    """
    if fingerprint is not None:
        require(options, fingerprint)
    strategy = get_strategy_class(options)(options, groups)  # type: ignore[call-arg]  # strategies take the groups, too
    if fingerprint is not None:
        strategy.prepare(fingerprint)
    return strategy


def adapt_options(options: TrainingOptions) -> TrainingOptions:
    """The options, with the changes that the strategy needs to support their patch size (for tables of all methods)."""
    return get_strategy_class(options).adapt_options(options)
