"""What is to be reached, and whether it is."""

from __future__ import annotations

from dataclasses import dataclass

from .rates import Rates
from .runs import Runs


@dataclass(frozen=True)
class Target:
    """A figure and its bound: at most ``limit``, or at least, where ``at_least``. ``value`` is None if not measured."""

    name: str
    limit: float
    value: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None if nothing was measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def words(self) -> str:
        """met, missed by so many per cent of the limit, or not measured."""
        if self.value is None:
            return "not measured"
        return "met" if self.met else f"missed by {abs(self.value / self.limit - 1):.0%}"


# Name, our pipeline, the one it is compared with, what of them, and the largest ratio.
_RATIOS: tuple[tuple[str, str, str, str, float], ...] = (
    ("CPU time, 1.5 mm, our defaults, against nnU-Net", "ours", "nnunet", "cpu_s", 0.15),
    ("the same at equal settings (full grid, overlap 0.5)", "ours_equal", "nnunet", "cpu_s", 0.45),
    ("CPU time, 3 mm, our defaults, against nnU-Net", "ours_coarse", "nnunet_coarse", "cpu_s", 0.15),
    ("the same against TotalSegmentator's fast settings", "ours_coarse", "totalsegmentator_fast", "cpu_s", 0.35),
    ("CPU time, 1.5 mm, against MONAI with the same network", "ours", "monai", "cpu_s", 0.15),
    ("peak memory, 1.5 mm, against nnU-Net", "ours", "nnunet", "peak_mib", 0.20),
    ("the same against TotalSegmentator's settings", "ours", "totalsegmentator", "peak_mib", 0.50),
    ("CPU time, 1.5 mm, with maps (no review: random weights), against without", "ours_maps", "ours", "cpu_s", 1.15),
    ("CPU time of the shipped model with maps and review, against without", "shipped_maps", "shipped", "cpu_s", 1.15),
)


def inference_targets(runs: Runs, rates: Rates | None) -> list[Target]:
    """The bounds on the time and memory of a whole segmentation."""
    compared = [Target(name, limit, runs.ratio(ours, to, figure)) for name, ours, to, figure, limit in _RATIOS]
    share = None if rates is None else rates.share
    return [*compared, Target("network's rate against SGEMM", 0.85, share, at_least=True)]
