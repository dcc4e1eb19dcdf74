"""Training strategies refuse cases and options that they cannot train with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dcaseg.errors import UserError
from dcaseg.training.strategies.registry import adapt_options
from strategy_samples import FACTS, strategy_for
from test_strategies import options_for


@pytest.mark.parametrize("name", ["urpc", "cps", "ga", "bcp", "abd", "skcdf", "crest published"])
def test_missing_unlabeled_cases_are_rejected(name):
    with pytest.raises(UserError, match="needs unlabeled cases, but there are none"):
        strategy_for(name, FACTS._replace(unlabeled=0))


@pytest.mark.parametrize("name", ["cps", "basak", "urpc", "ua_mt"])
def test_steps_without_unlabeled_patches_are_rejected(name):
    with pytest.raises(UserError, match="needs unlabeled patches, but unlabeled_per_step is 0"):
        strategy_for(name, unlabeled_per_step=0)


def test_partially_labeled_cases_are_rejected_where_unsupported():
    part = FACTS._replace(partial="case 7")
    with pytest.raises(UserError, match="case 7 is only partially labeled"):
        strategy_for("dhc", part)
    strategy_for("cps", part)


@pytest.mark.parametrize("name", ["crest", "cld", "dhc", "skcdf"])
def test_an_organ_without_voxels_is_rejected(name):
    with pytest.raises(UserError, match="no labeled case has Small"):
        strategy_for(name, FACTS._replace(voxels=(1000, 10, 10, 0)))


@pytest.mark.parametrize("name", ["bcp", "abd", "beta_fft"])
def test_an_odd_number_of_patches_is_rejected(name):
    with pytest.raises(UserError, match="--batch 2 or a multiple"):
        strategy_for(name, labeled_per_step=1, unlabeled_per_step=1)
    with pytest.raises(UserError, match="--batch 4 or a multiple"):
        strategy_for(name, FACTS._replace(processes=2))


def test_patches_that_cannot_be_divided_are_rejected():
    with pytest.raises(UserError, match="--patch that is a multiple of 48"):
        strategy_for("magicnet", strategy_options={"cubes": 3})
    with pytest.raises(UserError, match="or --strategy-option blocks=4"):
        strategy_for("abd", strategy_options={"blocks": 5})
    with pytest.raises(UserError, match=r"into 3 parts.*multiple of 48"):
        strategy_for("abd", strategy_options={"blocks": 3})


def test_an_unknown_strategy_option_is_rejected():
    with pytest.raises(UserError, match=r"no option 'blocks'.*pseudo_weight \(0.5\)"):
        strategy_for("bcp", strategy_options={"blocks": 3})
    with pytest.raises(UserError, match="box must be a number, not 'wide'"):
        strategy_for("bcp", strategy_options={"box": "wide"})
    with pytest.raises(UserError, match="variant must be one of row, published"):
        strategy_for("crest", strategy_options={"variant": "mine"})
    assert strategy_for("bcp", strategy_options={"box": "0.5", "largest_part": "true"}).strategy_options.box == 0.5


def test_magicnet_adapts_to_small_patches():
    options = replace(options_for("magicnet"), strategy_options={}, norm="instance")
    for side, cubes in ((96, 3), (48, 3), (32, 2)):
        small = adapt_options(replace(options, patch=(side, side, side)))
        assert small.strategy_options == {"cubes": cubes} and small.norm == "instance"
    chosen = adapt_options(replace(options, patch=(96, 96, 96), strategy_options={"cubes": 6}))
    assert chosen.strategy_options == {"cubes": 6}


@pytest.mark.parametrize(
    ("name", "option", "value", "problem"),
    [
        ("co_bionet", "threshold", 7, "threshold must be a number from 0 to 1, not 7"),
        ("basak", "rate_exponent", "nan", "rate_exponent must be a number of at least 0, not nan"),
        ("ss_net", "radius", "inf", "radius must be a number, not inf"),
        ("dhc", "decay", "2", "decay must be a number from 0 to below 1, not 2"),
        ("skcdf", "decay", -1, "decay must be a number from 0 to below 1, not -1"),
        ("bcp", "pseudo_weight", -1, "pseudo_weight must be a number of at least 0"),
        ("abd", "plain", 2, "plain must be a number from 0 to 1"),
        ("magicnet", "blend_from", -5, "blend_from must be a number of at least 0"),
        ("crest published", "generations", 101, "generations is 101, but the run has only 100 steps"),
        ("simis published", "rounds", 101, "rounds is 101, but the run has only 100 steps"),
    ],
)
def test_impossible_values_of_own_options_are_rejected(name, option, value, problem):
    with pytest.raises(UserError, match=problem):
        strategy_for(name, strategy_options={option: value})
