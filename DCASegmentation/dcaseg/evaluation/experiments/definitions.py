"""Which networks each table and figure of the paper compares, on which cases, with which settings.

The settings were chosen before any result of theirs was seen: the paper's proportions of Synapse at 20 % (4 labelled
and 16 unlabelled people, 4 to validate, 6 to test on), our default preset, and a network, grid and length small enough
for a CPU. In runs this short a stage of its own would leave the aggregation decoder too few steps, so all parts learn
together, as in the paper. All arms of an experiment have the same steps, patches, backbone width, data and seeds.

With equal steps a system that passes many patches in a step computes up to ten times what another does;
``equal_compute`` gives each as many steps as DCA's multiply-accumulates allow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UserError
from ...method.experts import PAPER_DILATIONS, PAPER_N_STAGES, VNET_N_STAGES
from ...organs import AMOS, SYNAPSE, Vocabulary
from ...training.options import GridOptions, TrainingOptions
from ...training.strategies.registry import OWN_OPTIONS, fitted
from .step_cost import StepCost

SEEDS = (0, 1, 2)
LABELLED, UNLABELLED, VALIDATION, TEST = 4, 16, 4, 6


@dataclass(frozen=True)
class Arm:
    """One row of a table: ``changes`` to the options of all, whether it may see all labels, and the group of rows it
    belongs to.

    Rows of several tables with the same ``key`` are one run.
    """

    key: str
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    all_labels: bool = False
    group: str = ""

    def options(self, common: TrainingOptions, seed: int) -> TrainingOptions:
        """The options of one of its runs."""
        strategy = self.changes.get("strategy", "dca")
        return fitted(replace(common, **{**OWN_OPTIONS[strategy], **self.changes, "seed": seed}))


@dataclass(frozen=True)
class Experiment:
    """A table of the paper: its rows, and whether its columns are the groups, too."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    by_group: bool = False


def small_options(**changes: Any) -> TrainingOptions:
    """The default preset with a small network on a coarse grid, for a CPU."""
    small: dict[str, Any] = {
        "grid": GridOptions(spacing=(6.0, 6.0, 6.0)),
        "n_filters": 4,
        "patch": (32, 32, 32),
        "steps": 2000,
        "expert_stage_fraction": 0.0,
        # So that a GPU computes what a CPU does; half precision saves nothing on networks this small.
        "mixed_precision": False,
    }
    return TrainingOptions(**{**small, **changes})


def anatomies_options(**changes: Any) -> TrainingOptions:
    """Our default preset at 5 mm, for the benchmark on real anatomies (see ``anatomies``) on a CPU."""
    settings: dict[str, Any] = {
        "grid": GridOptions(spacing=(5.0, 5.0, 5.0)),
        "patch": (32, 32, 32),
        "steps": 6000,
        "mixed_precision": False,
    }
    return TrainingOptions(**{**settings, **changes})


DCA_KEY = "dca"
"""The row that every experiment compares the others with."""

_DCA = Arm(DCA_KEY, "DCA")
_VNET = Arm("vnet", "V-Net, labelled part", {"strategy": "vnet"})
_PLAIN_STAGES, _PLAIN_DILATIONS = (VNET_N_STAGES,) * 3, ((1, 1, 1, 1),) * 3

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "baselines",
            "Methods in the layout of Tables 1 and 2",
            (
                Arm("vnet-full", "V-Net (fully)", {"strategy": "vnet"}, all_labels=True),
                _VNET,
                Arm("ua-mt", "UA-MT", {"strategy": "ua_mt"}),
                Arm("cps", "CPS", {"strategy": "cps"}),
                _DCA,
            ),
        ),
        Experiment(
            "table3",
            "Components (Table 3), with both readings of the row without DFAM",
            (
                _VNET,
                Arm("experts", "+ 3 experts, each on all organs, averaged", {"strategy": "plain_experts"}),
                Arm("stitched", "+ LGA, stitched experts", {"aggregation": False}),
                Arm("no-dfam", "+ LGA, aggregation decoder without DFAM", {"fusion": "none"}),
                Arm(DCA_KEY, "+ DFAM (DCA)"),
            ),
        ),
        Experiment(
            "table4",
            "Division of organs (Table 4); LGA by its two largest gaps",
            (
                Arm("average", "Average", {"partition": "average"}),
                Arm("fixed", "Fixed thresholds (1 %, 10 %)", {"partition": "fixed"}),
                Arm(DCA_KEY, "LGA"),
            ),
            by_group=True,
        ),
        Experiment(
            "table5",
            "Asymmetry of the experts (Table 5)",
            (
                Arm("v1", "V1, all alike", {"n_stages": _PLAIN_STAGES, "dilations": _PLAIN_DILATIONS}),
                Arm("v2", "V2, depth", {"n_stages": PAPER_N_STAGES, "dilations": _PLAIN_DILATIONS}),
                Arm("v3", "V3, dilation", {"n_stages": _PLAIN_STAGES, "dilations": PAPER_DILATIONS}),
                Arm(DCA_KEY, "Depth and dilation (DCA)"),
            ),
        ),
    )
}

METHODS = EXPERIMENTS["baselines"].arms
"""The methods that figures 1, 5 and 6 show."""

FUSIONS = (
    Arm("fusion-average", "Average", {"fusion": "average"}),
    Arm("fusion-concat", "Concat", {"fusion": "concat"}),
    Arm(DCA_KEY, "DFAM (DCA)"),
)
"""Figure 8."""

DEPTHS = {"shallow": PAPER_N_STAGES[0], "V-Net": VNET_N_STAGES, "deep": PAPER_N_STAGES[2]}
"""Stages of a decoder's four blocks in figure 7, by name; the paper's head, medium and tail expert have these."""

DILATIONS = (1, 2)


def variant(depth: str, dilation: int) -> Arm:
    """A run of figure 7: all three experts are this decoder, and each is looked at on its own group alone.

    The experts share the encoder and nothing else, so one run tells of all three. Without the aggregation decoder, as
    the figure is of the experts.
    """
    changes = {"aggregation": False, "n_stages": (DEPTHS[depth],) * 3, "dilations": ((dilation,) * 4,) * 3}
    return Arm(f"expert-{depth.lower()}-d{dilation}", f"{depth}, dilation {dilation}", changes)


STITCHED = EXPERIMENTS["table3"].arms[2]
"""DCA's own three experts without the aggregation decoder, which figure 7 compares the variants with."""

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
