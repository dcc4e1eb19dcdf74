"""Several tables and figures of one folder: all runs they need, made before the first of them is written."""

from __future__ import annotations

from collections.abc import Iterable

from .definitions import EXPERIMENTS
from .figures import FIGURES
from .runs import Runs


def make_runs_of(names: Iterable[str], runs: Runs) -> None:
    """Make what the tables and figures called ``names`` show and what is not there yet.

    Made for each table by itself, the last few runs of each would leave the rest of the computer waiting. Raises
    UserError if one of them needs labels that the data do not have.
    """
    jobs = []
    for name in names:
        arms = EXPERIMENTS[name].arms if name in EXPERIMENTS else FIGURES[name].arms(runs)
        every_seed = name in EXPERIMENTS or FIGURES[name].every_seed
        jobs += [(arm, seed) for seed in (runs.seeds if every_seed else runs.seeds[:1]) for arm in arms]
    runs.make_missing(jobs)
