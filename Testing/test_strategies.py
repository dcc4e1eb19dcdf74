"""All strategies in the training loop: DCA, the baselines, and a made-up strategy that uses all hooks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional

from dcaseg.errors import UserError
from dcaseg.training.cases import Case, read_pseudo_cases, write_pseudo_cases
from dcaseg.training.options import StrategyName, TrainingOptions
from dcaseg.training.run_folder import LOG
from dcaseg.training.strategies.base import Batch, Loss, StepState, Strategy, build_vnet
from dcaseg.training.strategies.dca_losses import unsupervised_loss
from dcaseg.training.strategies.registry import OWN_OPTIONS, make_strategy
from dcaseg.training.trainer import Trainer
from test_training import OPTIONS, THREE_BALLS, case_of_balls

BASELINES = tuple(name for name in get_args(StrategyName) if name != "dca")
# Small networks, patches and cases, so that all strategies together take less than a minute on one core.
# Second variants of a paper, and strategies whose default is too large for a test.
VARIANTS = {
    "adsh published": {"strategy_options": {"variant": "published"}},
    "crest published": {"strategy_options": {"variant": "published", "generations": 2}},
    "simis published": {"strategy_options": {"variant": "published", "rounds": 3}},
    "basak published": {"strategy_options": {"variant": "published"}},
    "cld published": {"strategy_options": {"variant": "published"}},
    "abd cross": {"strategy_options": {"base": "cross"}},
    "magicnet gradient_aware": {"strategy_options": {"losses": "gradient_aware", "blend_from": 1}},
}
SMALL = {
    "a_and_d": {"strategy_options": {"denoising_steps": 2}},
    "magicnet": {"patch": (32, 32, 32), "strategy_options": {"cubes": 2}},
    # With seed 0, the first four patches become more difficult, and the loss increases.
    "skcdf": {"seed": 1},
}
LABELS_ALONE = ("vnet", "plain_experts", "bcp")


def options_for(name: str, **changes) -> TrainingOptions:
    """Options of the strategy or variant ``name``, reduced for a test, with ``changes``."""
    strategy = name.split()[0]
    made = {"strategy": strategy, **OWN_OPTIONS[strategy], **SMALL.get(strategy, {})}  # type: ignore[index]
    own = {}
    for given in (made, VARIANTS.get(name, {}), changes):
        own.update(given.get("strategy_options", {}))
    return replace(OPTIONS, **{"patch": (16, 16, 32), **made, **changes, "strategy_options": own})


def trainer_for(folder: Path, options: TrainingOptions) -> Trainer:
    return Trainer(
        folder, options, THREE_BALLS,
        labeled=[case_of_balls(1), case_of_balls(2)], unlabeled=[case_of_balls(3, labeled=False)],
        validation=[case_of_balls(4)],
    )  # fmt: skip


# These take different paths through the trainer: one network, two networks, class statistics, mixed patches.
_ALWAYS = ("dca", "dca joint", "ua_mt", "cps", "dhc", "magicnet")


def mostly_slow(*names: str) -> list:
    """Parameters of a test for all ``names``: slow, except for one of each kind."""
    return [name if name in _ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", mostly_slow(*BASELINES, *VARIANTS))
def test_every_strategy_learns_and_resumes_bit_for_bit(tmp_path, name):
    options = options_for(name, steps=4, ramp_fraction=0.1, warmup_steps=0)
    whole = trainer_for(tmp_path / "whole", options)
    fresh = [parameter.clone() for parameter in whole.strategy.trainable_parameters()]
    whole.run(validate_every=4)
    assert (
        sum(torch.equal(a, b) for a, b in zip(fresh, whole.strategy.trainable_parameters(), strict=True))
        < len(fresh) / 2
    )
    lines = [json.loads(line) for line in (tmp_path / "whole" / LOG).read_text().splitlines()]
    assert not any("skipped" in line for line in lines) and 0 <= lines[-1]["dice"]["mean"] <= 1
    # Separate stages, changing pseudo-labels, or strong dropout make these losses incomparable.
    if options.strategy not in ("bcp", "abd", "beta_fft", "ua_mt") and "published" not in name:
        assert min(line["supervised"] for line in lines[1:]) < lines[0]["supervised"]
    assert ("unsupervised" in lines[-1]) == (options.strategy not in LABELS_ALONE)

    first = trainer_for(tmp_path / "parts", options)
    while first.step < 2:
        first._advance()
    first.folder.mkdir(exist_ok=True)
    first.save()
    second = trainer_for(tmp_path / "parts", options)
    second.resume()
    second.run(validate_every=99)
    for key, value in whole.strategy.state_dict().items():
        assert torch.equal(value, second.strategy.state_dict()[key]), key
    assert whole.averaged is not None and second.averaged is not None
    for one, other in zip(whole.averaged.network.parameters(), second.averaged.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_two_networks_of_cps_are_initialized_differently(tmp_path):
    strategy = trainer_for(tmp_path, options_for("cps")).strategy
    pairs = zip(strategy.network.parameters(), strategy.second.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_the_teacher_of_ua_mt_follows_the_student_and_gets_no_gradient(tmp_path):
    trainer = trainer_for(tmp_path, options_for("ua_mt", learning_rate=0.1, warmup_steps=0))
    before = [parameter.clone() for parameter in trainer.strategy.teacher.parameters()]
    for _ in range(3):
        trainer._advance()
    teacher, student = trainer.strategy.teacher, trainer.strategy.network
    assert all(parameter.grad is None for parameter in teacher.parameters())
    gaps = [(t - s).norm() for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    moved = [(t - b).norm() for t, b in zip(teacher.parameters(), before, strict=True)]
    assert sum(moved) > 0 and 0 < sum(gaps) < sum(
        (s - b).norm() for s, b in zip(student.parameters(), before, strict=True)
    )


def test_the_vnet_has_one_decoder_and_ignores_unlabeled_patches(tmp_path):
    trainer = trainer_for(tmp_path, options_for("vnet"))
    assert len(trainer.network.experts) == 1 and trainer.network.aggregation is None
    assert trainer._draw(trainer.strategy.get_step_state(5)).unlabeled is None


def test_averaged_experts_return_the_mean_of_three(tmp_path):
    network = trainer_for(tmp_path, options_for("plain_experts")).network.eval()
    volume = torch.rand(1, 1, 16, 32, 32)
    parts = network.forward_all(volume)
    torch.testing.assert_close(network(volume), sum(parts.experts) / 3)


def test_dca_without_aggregation_returns_the_stitched_experts(tmp_path):
    trainer = trainer_for(tmp_path, options_for("dca", aggregation=False, steps=2))
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert all({"head", "medium", "tail"} <= set(line) and "unsupervised" not in line for line in lines)


def test_dca_without_unlabeled_patches_learns_from_labels(tmp_path):
    options = options_for("dca", steps=2, unlabeled_per_step=0, expert_stage_fraction=0.0, unsup_weight_cutoff=0.0)
    trainer = trainer_for(tmp_path, options)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert len(lines) == 2 and all("aggregation" in line and "unsupervised" not in line for line in lines)


def test_the_attention_loss_uses_all_pseudo_labels_and_the_segmentation_loss_the_confident_ones(tmp_path):
    network = trainer_for(tmp_path, options_for("dca")).network.eval()
    with torch.no_grad():
        network.aggregation.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    volumes = torch.rand(1, 1, 16, 16, 32)

    def loss(confidence: float, attention_weight: float) -> float:
        options = options_for("dca", pseudo_label_confidence=confidence, attention_weight=attention_weight)
        return unsupervised_loss(network, volumes, options)[0].item()

    assert loss(1.0, 0.0) == 0 < loss(0.0, 0.0)
    attention = loss(1.0, 0.1)
    assert attention > 0.01 and attention == pytest.approx(loss(0.0, 0.1) - loss(0.0, 0.0), rel=1e-4)


class TwoWeightedNetworks(Strategy):
    """A made-up strategy with a second network and with class weights for each network, updated in each step."""

    def __init__(self, options, groups) -> None:
        super().__init__(options)
        self.network, self.second = build_vnet(options, groups), build_vnet(options, groups)
        self.register_buffer("weights", torch.ones(2, 4))
        self.register_buffer("seen", torch.zeros(4))

    def get_loss_names(self, step_state: StepState, batch: Batch) -> tuple[str, ...]:
        return ("all",)

    def forward(self, loss_name: str, batch: Batch, step_state: StepState) -> Loss:
        assert batch.unlabeled is not None
        self.seen = torch.bincount(batch.labels.ravel(), minlength=4).float()
        total = torch.zeros(())
        volumes = torch.cat([batch.volumes, batch.unlabeled])
        answers = [self.network(volumes), self.second(volumes)]
        labeled = len(batch.volumes)
        for one, other, weights in zip(answers, reversed(answers), self.weights, strict=True):
            pseudo = other[labeled:].detach().argmax(dim=1)
            total = total + functional.cross_entropy(one[:labeled], batch.labels, weight=weights)
            total = total + self.get_unsupervised_weight(step_state) * functional.cross_entropy(
                one[labeled:], pseudo, weight=weights
            )
        return Loss(total, {"supervised": total.detach()})

    def on_step_end(self, step_state: StepState) -> None:
        rare = self.seen.sum() / (4 * self.seen.clamp(min=1))
        decay = torch.tensor([[0.5], [0.9]])
        self.weights.mul_(decay).add_((1 - decay) * rare)


@pytest.mark.slow
def test_a_strategy_with_two_networks_and_class_weights_resumes(tmp_path, monkeypatch):
    from dcaseg.training.strategies import registry

    monkeypatch.setitem(registry._STRATEGIES, "cps", TwoWeightedNetworks)
    options = options_for("cps", steps=6, ramp_fraction=0.1)
    whole = trainer_for(tmp_path / "whole", options)
    whole.run(validate_every=6)
    first = trainer_for(tmp_path / "parts", options)
    while first.step < 3:
        first._advance()
    first.folder.mkdir()
    first.save()
    second = trainer_for(tmp_path / "parts", options)
    second.resume()
    assert second.strategy.weights[0, 3] > second.strategy.weights[1, 3] > 1 > second.strategy.weights[0, 0]
    second.run()
    for one, other in zip(whole.strategy.state_dict().values(), second.strategy.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", ["average", "sequential", "fixed"])
def test_the_partition_option_divides_the_organs(tmp_path, mode):
    trainer = trainer_for(tmp_path, replace(OPTIONS, partition=mode))
    assert trainer.partition.mode == mode
    assert make_strategy(trainer.options, trainer.partition).network.owners == trainer.network.owners


def test_a_label_outside_the_vocabulary_is_rejected(tmp_path):
    case = case_of_balls(1)
    wrong = Case("odd", case.hu, np.where(case.labels == 3, 9, case.labels).astype(np.uint8))
    with pytest.raises(UserError, match="odd contains label 9, but balls has only labels up to 3"):
        Trainer(tmp_path, OPTIONS, THREE_BALLS, [case, wrong], [])


def test_a_resumed_run_uses_the_pseudo_labeled_cases_of_its_step(tmp_path):
    case = replace(case_of_balls(1), ignored=case_of_balls(1).labels == 0)
    write_pseudo_cases(tmp_path, 10, [case])
    write_pseudo_cases(tmp_path, 20, [case, case])
    assert [len(read_pseudo_cases(tmp_path, step)) for step in (0, 10, 11, 20, 21)] == [0, 0, 1, 1, 2]
    again = read_pseudo_cases(tmp_path, 11)[0]
    assert np.array_equal(again.ignored, case.ignored) and np.array_equal(again.labels, case.labels)
    assert again.count_voxels(3)[0] == 0 and (again.count_voxels(3)[1:] == case_of_balls(1).count_voxels(3)[1:]).all()


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from dcaseg.training.distributed import leave
from test_strategies import options_for, trainer_for

torch.set_num_threads(1)
for name in sys.argv[2:]:
    options = options_for(name, steps=3, labeled_per_step=4, unlabeled_per_step=4, ramp_fraction=0.1)
    trainer = trainer_for(Path(sys.argv[1]) / name, options)
    trainer.run(validate_every=9)
    for key, value in trainer.strategy.state_dict().items():
        # From the next forward pass on, norm statistics and feature banks are those of the first process.
        if "running_" in key or "num_batches" in key or "bank" in key or key == "filled":
            continue
        highest, lowest = value.float().clone(), value.float().clone()
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
        assert torch.equal(highest, lowest), (name, key, float((highest - lowest).abs().max()))
leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [("dhc", "cld", "adsh", "ss_net", "crest published"), ("co_bionet", "basak", "bcp", "a_and_d", "skcdf")]
)
def test_two_processes_keep_the_same_weights_and_statistics(tmp_path, names):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "DCASegmentation")])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(script, tmp_path, *names),
        ],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
