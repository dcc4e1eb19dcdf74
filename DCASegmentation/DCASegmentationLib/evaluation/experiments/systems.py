"""Tables 1 and 2 of the paper with all their rows, each system in its group, on the same data, backbone and budget.

With equal steps a system that passes many patches in a step computes up to ten times what another does;
``equal_compute`` gives each as many steps as DCA's multiply-accumulates allow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import UserError
from ...organs import AMOS, SYNAPSE, Vocabulary
from .cost import StepCost
from .definitions import EXPERIMENTS, Arm, Experiment

GENERAL, IMBALANCE = "General", "Imbalance"
"""Whether a system considers that classes differ in size, as the paper's tables group them."""

_FULL = Arm("vnet-full", "V-Net (fully)", {"strategy": "vnet"}, all_labels=True)
SYSTEMS = (
    _FULL,
    *(
        Arm(key, title, {"strategy": key.replace("-", "_")}, group=GENERAL)
        for key, title in (
            ("ua-mt", "UA-MT"),
            ("urpc", "URPC"),
            ("cps", "CPS"),
            ("ss-net", "SS-Net"),
            ("co-bionet", "Co-BioNet"),
            ("bcp", "BCP"),
            ("magicnet", "MagicNet"),
            ("abd", "ABD"),
            ("beta-fft", "β-FFT"),
        )
    ),
    *(
        Arm(key, title, {"strategy": key.replace("-", "_")}, group=IMBALANCE)
        for key, title in (
            ("adsh", "Adsh"),
            ("crest", "CReST"),
            ("simis", "SimiS"),
            ("basak", "Basak et al."),
            ("cld", "CLD"),
            ("dhc", "DHC"),
            ("a-and-d", "A&D"),
            ("ga", "GA"),
            ("skcdf", "SKCDF"),
        )
    ),
    Arm("dca", "DCA", group=IMBALANCE),
)
"""The twenty rows of Tables 1 and 2."""

TABLES = {
    "table1": Experiment("table1", "All systems (Table 1, Synapse 20 %)", SYSTEMS),
    "table2": Experiment("table2", "All systems (Table 2, AMOS 5 %)", SYSTEMS),
}
ALL_EXPERIMENTS: Mapping[str, Experiment] = {**TABLES, **EXPERIMENTS}
"""Every table that ``dca experiment`` makes, by name."""

EQUAL = "-equal"
"""What the key of a run with as much computation as DCA ends with."""

_OTHER = {"table1": (AMOS, "table2"), "table2": (SYNAPSE, "table1")}


def without_rows_that_need_labels(experiment: Experiment, all_labels: bool) -> Experiment:
    """The experiment as it can be made of data whose unlabelled cases have labels or not: without them Tables 1 and 2
    lose their fully supervised row."""
    if all_labels or experiment.name not in TABLES:
        return experiment
    return replace(experiment, arms=tuple(arm for arm in experiment.arms if not arm.all_labels))


def require_data(name: str, vocabulary: Vocabulary, listed: bool) -> None:
    """Raise UserError where a list of one published data set is given for the other's table."""
    other = _OTHER.get(name)
    if listed and other is not None and vocabulary == other[0]:
        raise UserError(
            f"The list has the organs of {vocabulary.name}; {name} is the paper's table of the other data set.",
            f"Call {other[1]}.",
        )


def equal_compute(experiment: Experiment, steps: int, costs: Mapping[str, StepCost]) -> Experiment:
    """The experiment with so many steps for each arm that all compute what DCA does in ``steps``.

    ``costs`` are those of a step, by the arm's key. Raises UserError for a table without DCA.
    """
    if "dca" not in costs:
        raise UserError(f"{experiment.name} has no row of DCA to be equal to.", "Leave out --equal.")
    budget = steps * costs["dca"].macs
    arms = []
    for arm in experiment.arms:
        allowed = max(1, round(budget / costs[arm.key].macs))
        own = arm if arm.key == "dca" else replace(arm, key=arm.key + EQUAL, changes={**arm.changes, "steps": allowed})
        arms.append(own)
    return replace(experiment, title=f"{experiment.title}, equal compute", arms=tuple(arms))
