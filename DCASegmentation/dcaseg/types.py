"""Types used by several packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

StrategyName = Literal[
    "dca", "vnet", "plain_experts", "ua_mt", "cps",
    "urpc", "ss_net", "co_bionet", "bcp", "magicnet", "abd", "beta_fft",
    "adsh", "crest", "simis", "basak", "cld", "dhc", "a_and_d", "ga", "skcdf",
]  # fmt: skip
"""The names of the training strategies: DCA and the methods it is compared with."""

ProgressCallback = Callable[[float, str], None]
"""Called with the fraction of the work done (0 to 1) and the current step in words."""

Box = tuple[slice, slice, slice]
"""A block of an array: slices along (z, y, x)."""
