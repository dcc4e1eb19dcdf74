"""The strategies' names, without torch: the options, the command line and the tables share them."""

from __future__ import annotations

from typing import Literal

StrategyName = Literal[
    "dca", "vnet", "plain_experts", "ua_mt", "cps",
    "urpc", "ss_net", "co_bionet", "bcp", "magicnet", "abd", "beta_fft",
    "adsh", "crest", "simis", "basak", "cld", "dhc", "a_and_d", "ga", "skcdf",
]  # fmt: skip
