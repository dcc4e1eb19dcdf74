"""Options of commands that are made from fields of dataclasses: names, limits, help and what was given."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

import pytest
import typer

from dcaseg.cli.field_options import Values, expand, fields_of
from dcaseg.cli.options import LabeledCTGroup, NetworkGroup
from dcaseg.errors import UserError
from dcaseg.inference.options import SegmentOptions
from dcaseg.option_fields import get_option
from dcaseg.training.options import TrainingOptions
from make_command_reference import commands

PARAMETERS = {name: {p.name: p for p in command.params} for name, command in commands()}


def parsed(command: Any, *arguments: str) -> Any:
    """What ``command``, which returns its parameters, gets from these arguments."""
    app = typer.Typer()
    app.command()(expand(command))
    return app(args=list(arguments), standalone_mode=False)


def schedule(
    *,
    changes: Annotated[Values, fields_of(TrainingOptions, "steps", "n_filters", "partition", "joint_statistics")],
    out: str = "run",
) -> object:
    return changes, out


def test_only_options_that_were_given_have_values():
    assert parsed(schedule) == ({}, "run")
    assert parsed(schedule, "--steps", "5", "--out", "x") == ({"steps": 5}, "x")
    given = parsed(schedule, "--filters", "4", "--partition", "balanced", "--joint-statistics")[0]
    assert given == {"n_filters": 4, "partition": "balanced", "joint_statistics": True}


def segment(
    *,
    values: Annotated[
        Values,
        fields_of(
            SegmentOptions,
            *("overlap", "output", "entropy", "review", "attention_levels", "organs"),
            base=SegmentOptions(entropy=True, attention_levels=(4,)),
        ),
    ],
) -> SegmentOptions:
    return SegmentOptions(**values)


def test_options_with_a_base_have_its_values_as_defaults():
    assert parsed(segment) == SegmentOptions(entropy=True, attention_levels=(4,))
    given = parsed(segment, "--no-entropy", "--review", "--attention-levels", "1,4", "--organs", "liver, spleen")
    assert given == SegmentOptions(review=True, attention_levels=(1, 4), organs=("liver", "spleen"))
    assert parsed(segment, "--attention-levels", "none").attention_levels == ()


@pytest.mark.parametrize(
    "arguments", [["--overlap", "1"], ["--attention-levels", "5"], ["--attention-levels", "fine"], ["--organs", ""]]
)
def test_values_outside_of_the_limits_are_refused(arguments):
    with pytest.raises(UserError) as caught:
        parsed(segment, *arguments)
    assert caught.value.remedy


def nested(*, network: NetworkGroup, own: LabeledCTGroup) -> object:
    return network.changes(), own.group


def test_groups_may_contain_groups_and_fields():
    changes, group = parsed(nested, "--filters", "4", "--patch", "32", "--spacing", "2,2,3", "--group", "validation")
    assert (changes["n_filters"], changes["patch"], changes["grid"].spacing) == (4, (32, 32, 32), (2.0, 2.0, 3.0))
    assert group == "validation"
    with pytest.raises(UserError, match="--ct and --labels only work together"):
        parsed(nested, "--ct", "a.nii")


@pytest.mark.parametrize(
    ("command", "kind", "names"),
    [
        ("train", TrainingOptions, ["steps", "n_filters", "learning_rate", "seed", "class_balance", "partition"]),
        ("experiment", TrainingOptions, ["n_filters"]),
        ("segment", SegmentOptions, ["overlap", "output", "weighting", "organs", "find_abdomen", "review"]),
        ("cohort", SegmentOptions, ["overlap", "organs", "find_abdomen"]),
        ("evaluate", SegmentOptions, ["output", "keep_islands"]),
    ],
)
def test_commands_take_help_and_limits_from_the_fields(command, kind, names):
    for name in names:
        described = get_option(kind.__dataclass_fields__[name])
        parameter = PARAMETERS[command][name]
        assert parameter.help == described.help
        if described.below is None:
            assert (parameter.min, parameter.max) == (described.minimum, described.maximum), name


def test_every_strategy_can_be_chosen():
    from dcaseg.types import StrategyName

    assert get_args(PARAMETERS["train"]["strategy"].type_descriptor.annotation) == get_args(StrategyName)


def test_the_worker_accepts_the_options_that_a_result_records():
    """``request.json`` holds the options as JSON; a request of the worker with them gives the same options."""
    from dataclasses import asdict

    from dcaseg.worker.segment_handler import _parse_options

    options = SegmentOptions(overlap=0.5, attention_levels=(1, 4), organs=("liver",), entropy=True)
    assert _parse_options(json.loads(json.dumps(asdict(options)))) == options
