"""Defines the experiments: the networks that each table and figure of the paper compares, and their settings.

The settings were chosen before any result was known: the paper's proportions of Synapse at 20 % (4 labeled and 16
unlabeled people, 4 for validation, 6 for testing), our default preset, and a network, grid and number of steps small
enough for a CPU. In such short runs, a separate expert stage would leave too few steps for the aggregation decoder, so
all parts train together, as in the paper. All arms of an experiment have the same steps, patches, backbone width, data
and seeds.

With equal steps, a method that processes many patches in a step computes up to ten times as much as another.
``equalize_compute`` therefore gives each method the number of steps that costs as much as DCA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UserError
from ...method.variants import PAPER_DILATIONS, PAPER_N_STAGES, VNET_N_STAGES
from ...organs import AMOS, SYNAPSE, Vocabulary
from ...training.options import GridOptions, TrainingOptions
from ...training.strategies.copy_paste import CopyPasteOptions
from ...training.strategies.registry import OWN_OPTIONS, adapt_options
from .step_cost import StepCost

LABELED, UNLABELED, VALIDATION, TEST = 4, 16, 4, 6


@dataclass(frozen=True)
class Arm:
    """A row of a table. ``changes`` modify the common options, ``all_labels`` means full supervision.

    ``labeled_share`` is the fraction of the labeled cases that are used as labeled; the others become unlabeled cases.
    Rows with the same ``key`` in several tables share their runs.
    """

    key: str
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    all_labels: bool = False
    group: str = ""
    labeled_share: float = 1.0

    def make_options(self, common: TrainingOptions, seed: int) -> TrainingOptions:
        """The options of the run with ``seed``."""
        strategy = self.changes.get("strategy", "dca")
        return adapt_options(replace(common, **{**OWN_OPTIONS[strategy], **self.changes, "seed": seed}))


@dataclass(frozen=True)
class Experiment:
    """A table of the paper. ``by_group`` orders and colors the columns by the group of the organ."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    by_group: bool = False


def make_small_options(**changes: Any) -> TrainingOptions:
    """The default preset with a small network on a coarse grid, for a CPU."""
    small: dict[str, Any] = {
        "grid": GridOptions(spacing=(6.0, 6.0, 6.0)),
        "n_filters": 4,
        "patch": (32, 32, 32),
        "steps": 2000,
        "expert_stage_fraction": 0.0,
        # Like the runs measured so far.
        "decay": "all",
        # To get the same results on GPU and CPU. Half precision saves nothing on networks this small.
        "mixed_precision": False,
    }
    return TrainingOptions(**{**small, **changes})


def make_anatomies_options(**changes: Any) -> TrainingOptions:
    """Our default preset at 5 mm, for the benchmark on real anatomies (see ``anatomies``) with a CPU."""
    settings: dict[str, Any] = {
        "grid": GridOptions(spacing=(5.0, 5.0, 5.0)),
        "patch": (32, 32, 32),
        "steps": 6000,
        "decay": "all",
        "mixed_precision": False,
    }
    return TrainingOptions(**{**settings, **changes})


DCA_KEY = "dca"
"""Key of the row that every experiment compares the others with."""

_DCA = Arm(DCA_KEY, "DCA")
_VNET = Arm("vnet", "V-Net, labeled part", {"strategy": "vnet"})
FEWER = "-fewer"
"""Suffix of the key of a run with fewer labeled cases."""
FEWER_SHARE = 0.4
"""Share of the labeled cases in those runs: that of the paper's Table 4 (2 % of AMOS instead of 5 %)."""

# The aggregation decoder learns pseudo-labels of the stitched experts: all of them, or the confident ones.
_STITCHED = {"pseudo_label_source": "experts", "pseudo_label_confidence": 0.0}
_CONFIDENT = {"pseudo_label_source": "experts", "pseudo_label_confidence": 0.8}

_DIVISIONS = (
    Arm("average", "Average", {"partition": "average"}),
    Arm("fixed", "Fixed thresholds (1 %, 10 %)", {"partition": "fixed"}),
    Arm(DCA_KEY, "LGA"),
)


def _use_fewer_labels(arm: Arm) -> Arm:
    return replace(arm, key=arm.key + FEWER, labeled_share=FEWER_SHARE)


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
            (*_DIVISIONS, *(_use_fewer_labels(arm) for arm in _DIVISIONS)),
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
        Experiment(
            "unlabeled",
            "What unlabeled CTs add to DCA",
            (
                Arm("labeled-only", "DCA, labeled part", {"unsupervised_weight": 0.0}),
                Arm(DCA_KEY, "DCA"),
                Arm("stitched-pseudo-labels", "DCA, pseudo-labels of the stitched experts", _STITCHED),
                Arm("confident", "DCA, confident pseudo-labels of the stitched experts", _CONFIDENT),
                Arm(
                    "expert-pseudo-labels",
                    "DCA, confident pseudo-labels also for the experts",
                    {**_CONFIDENT, "expert_pseudo_labels": True},
                ),
            ),
        ),
    )
}

BASELINES = EXPERIMENTS["baselines"].arms
"""The methods that figures 1, 5 and 6 show."""

FUSIONS = (
    Arm("fusion-average", "Average", {"fusion": "average"}),
    Arm("fusion-concat", "Concat", {"fusion": "concat"}),
    Arm(DCA_KEY, "DFAM (DCA)"),
)
"""Figure 8."""

DEPTHS = {"shallow": PAPER_N_STAGES[0], "V-Net": VNET_N_STAGES, "deep": PAPER_N_STAGES[2]}
"""Stages of the four decoder blocks in figure 7, by name; those of the paper's head, medium and tail expert."""

DILATIONS = (1, 2)


def make_expert_variant(depth: str, dilation: int) -> Arm:
    """A run of figure 7, in which all three experts have this decoder and each is scored on its own group.

    The experts share only the encoder, so one run gives the results of all three. There is no aggregation decoder,
    since the figure shows the experts.
    """
    changes = {"aggregation": False, "n_stages": (DEPTHS[depth],) * 3, "dilations": ((dilation,) * 4,) * 3}
    return Arm(f"expert-{depth.lower()}-d{dilation}", f"{depth}, dilation {dilation}", changes)


STITCHED = EXPERIMENTS["table3"].arms[2]
"""DCA's own three experts without the aggregation decoder, the reference in figure 7."""

GENERAL, IMBALANCE = "General", "Imbalance"
"""Groups of methods in the paper's tables: without or with measures against class imbalance."""

_FULL = Arm("vnet-full", "V-Net (fully)", {"strategy": "vnet"}, all_labels=True)
METHODS = (
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
    "table1": Experiment("table1", "All methods, in the layout of Table 1", METHODS),
    "table2": Experiment("table2", "All methods, in the layout of Table 2", METHODS),
}
ALL_EXPERIMENTS: Mapping[str, Experiment] = {**TABLES, **EXPERIMENTS}
"""All tables of ``dca experiment``, by name."""

COPY_PASTE = ("bcp", "abd", "beta_fft")
"""The strategies with a first stage on labeled patches only (see ``training.strategies.copy_paste``)."""

EQUAL = "-equal"
"""Suffix of the key of a run with as much computation as DCA."""

_TABLE_OF_OTHER_DATA = {"table1": (AMOS, "table2"), "table2": (SYNAPSE, "table1")}


def remove_unsupported_rows(experiment: Experiment, labeled: int, all_labels: bool) -> Experiment:
    """The experiment without the rows that the data do not allow.

    These are the fully supervised row of Tables 1 and 2 unless the data have ``all_labels``, and the rows with fewer
    labeled cases if there are not fewer than ``labeled``.
    """
    arms = experiment.arms
    if not all_labels and experiment.name in TABLES:
        arms = tuple(arm for arm in arms if not arm.all_labels)
    arms = tuple(arm for arm in arms if arm.labeled_share == 1 or count_labeled(arm, labeled) < labeled)
    return replace(experiment, arms=arms)


def count_labeled(arm: Arm, labeled: int) -> int:
    """The number of labeled cases that ``arm`` trains on if there are ``labeled``; at least one."""
    return max(1, round(arm.labeled_share * labeled))


def require_matching_dataset(name: str, vocabulary: Vocabulary, listed: bool) -> None:
    """Raise UserError if the list is of one published dataset and the table of the other."""
    other = _TABLE_OF_OTHER_DATA.get(name)
    if listed and other is not None and vocabulary == other[0]:
        raise UserError(
            f"The list has the organs of {vocabulary.name}, but {name} is the paper's table of the other dataset.",
            f"Use {other[1]}.",
        )


def equalize_compute(experiment: Experiment, steps: int, costs: Mapping[str, StepCost]) -> Experiment:
    """The experiment with the steps of each arm set so that all compute as much as DCA does in ``steps``.

    ``costs`` maps arm keys to the cost of a step. Raises UserError for a table without DCA.
    """
    if "dca" not in costs:
        raise UserError(f"{experiment.name} has no DCA row to match the compute of.", "Leave out --equal.")
    budget = steps * costs["dca"].macs
    arms = []
    for arm in experiment.arms:
        allowed = max(1, round(budget / costs[arm.key].macs))
        changes = {**arm.changes, "steps": allowed}
        if arm.changes.get("strategy") in COPY_PASTE:
            # Their share of cheap steps depends on the number of steps; the cost was counted with this one.
            changes["strategy_options"] = {"pretraining": CopyPasteOptions().compute_first_steps(steps)[1] / steps}
        arms.append(arm if arm.key == "dca" else replace(arm, key=arm.key + EQUAL, changes=changes))
    return replace(experiment, title=f"{experiment.title}, equal compute", arms=tuple(arms))
