"""Several tables and figures of one folder: all runs they need, made before the first of them is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .definitions import Experiment
from .figures import FIGURES, Also
from .runs import Runs
from .systems import ALL_EXPERIMENTS


def make_runs_of(
    names: Iterable[str],
    runs: Runs,
    experiments: Mapping[str, Experiment] = ALL_EXPERIMENTS,
    also: Also | None = None,
) -> None:
    """Make what the tables (of ``experiments``) and figures called ``names`` show and what is not there yet.

    Made for each table by itself, the last few runs of each would leave the rest of the computer waiting. Raises
    UserError if one of them needs labels that the data do not have.
    """
    jobs = []
    for name in names:
        arms = experiments[name].arms if name in experiments else FIGURES[name].arms(runs, also or Also())
        every_seed = name in experiments or FIGURES[name].every_seed
        jobs += [(arm, seed) for seed in (runs.seeds if every_seed else runs.seeds[:1]) for arm in arms]
    runs.make_missing(jobs)
