"""Types that several packages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

StrategyName = Literal[
    "dca", "vnet", "plain_experts", "ua_mt", "cps",
    "urpc", "ss_net", "co_bionet", "bcp", "magicnet", "abd", "beta_fft",
    "adsh", "crest", "simis", "basak", "cld", "dhc", "a_and_d", "ga", "skcdf",
]  # fmt: skip

# Share of the work that is done (0 to 1), and what is being done, in words.
ProgressCallback = Callable[[float, str], None]

Box = tuple[slice, slice, slice]
"""A block of an array: slices along (z, y, x)."""
