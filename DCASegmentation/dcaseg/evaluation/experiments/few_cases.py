"""Measures what a model learns from few corrected cases of an unknown scanner: Dice before, and after 1, 2 and 4 cases.

All cases are synthetic phantoms with the same scanner, unlike the training data of the shipped model
(``draw_acquisition``). The scanner is out of calibration: CT numbers are 0.6 times the correct value. Scans are in the
arterial phase, with more noise, thicker slices and coarser planes than in training. A corrected case has its true
labels, as if a user had corrected it completely. The unlabeled cases come from the same scanner. Every arm fine-tunes
the same model with the options of ``training.options``, but half as long. The last weights are scored on the model's
grid, so nothing is selected on the test cases. These settings were fixed before any arm had run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ...errors import UserError, get_reason
from ...imaging.writers import write_json, write_text
from ...json_io import load, read_json
from ...method.network import DCANet
from ...models.bundle import Bundle
from ...synthesis.phantom.case import Phantom, generate
from ...training.cases import Case, cache_folder, load_case, prepare_case, save_case
from ...training.options import TrainingOptions, fine_tuning_options
from ...training.run_folder import CHECKPOINT
from ...training.trainer import Trainer
from ...training.validation import predict
from ...types import ProgressCallback
from ..metrics import DICE, measure
from ..scores import Scores

NAME = "learning"
SETTINGS = "learning-settings.json"

CORRECTED = (1, 2, 4)
UNLABELED, TEST = 4, 3

# Seeds of the phantoms, different from those of training, validation, testing and the review.
_LABELED_SEEDS, _UNLABELED_SEEDS, _TEST_SEEDS = 700_000, 710_000, 720_000
_SPACING, _PHASE, _NOISE_HU, _CALIBRATION = (2.8, 2.8, 6.0), "arterial", 60.0, 0.6
_STEPS = 80


@dataclass(frozen=True)
class LearningArm:
    """The number of ``corrected`` cases, with or without the unlabeled ones. Zero stands for the original model."""

    corrected: int
    unlabeled: bool

    @property
    def key(self) -> str:
        """The name of the arm's folder."""
        return f"corrected-{self.corrected}" + ("-unlabelled" if self.unlabeled else "")


BEFORE = LearningArm(0, False)
ARMS = (BEFORE, *(LearningArm(count, unlabeled) for count in CORRECTED for unlabeled in (False, True)))


@dataclass(frozen=True)
class LearningOutcome:
    """Scores on the test cases by arm, one entry for each seed. The original model has no seed and one entry."""

    scores: dict[LearningArm, list[Scores]]

    def mean(self, arm: LearningArm, labels: Sequence[int] | None = None) -> float:
        """Mean Dice over seeds, cases and organs (of ``labels``, or all)."""
        return float(np.mean([scores.mean(labels) for scores in self.scores[arm]]))

    def std(self, arm: LearningArm) -> float:
        """Standard deviation of the mean Dice over seeds; NaN for a single seed."""
        means = [scores.mean() for scores in self.scores[arm]]
        return float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")


def generate_shifted_phantom(seed: int) -> Phantom:
    """The person ``seed`` on the unknown scanner."""
    phantom = generate(seed, _SPACING, phase=_PHASE, noise_hu=_NOISE_HU)
    hu = sitk.GetArrayFromImage(phantom.ct).astype(np.float32) * np.float32(_CALIBRATION)
    ct = sitk.GetImageFromArray(np.rint(hu).astype(np.int16))
    ct.CopyInformation(phantom.ct)
    return Phantom(ct, phantom.labels, phantom.person)


def run_learning(
    bundle: Bundle,
    folder: Path,
    cache: Path,
    seeds: Sequence[int] = (0,),
    changes: dict[str, Any] | None = None,
    people: tuple[int, int] = (UNLABELED, TEST),
    device: str = "cpu",
    progress: ProgressCallback | None = None,
) -> LearningOutcome:
    """Make the missing runs in ``folder`` and write ``learning.csv``, ``.md`` and ``.json``.

    ``changes`` modify the options of fine-tuning; ``people`` are the numbers of unlabeled and of test cases. Raises
    UserError if the folder contains runs with other settings or of another model.
    """
    options = fine_tuning_options(bundle.metadata, **{"steps": _STEPS, **(changes or {})})
    _require_settings(folder, bundle, options, people)
    report_progress = progress or (lambda fraction, message: None)
    n_unlabeled, n_test = people
    n_cases = max(CORRECTED) + n_unlabeled + n_test
    n_done = 0

    def load_cases(first_seed: int, count: int, labeled: bool) -> list[Case]:
        nonlocal n_done
        cases = []
        for seed in range(first_seed, first_seed + count):
            cases.append(_make_case(seed, cache, options, labeled))
            n_done += 1
            report_progress(0.1 * n_done / n_cases, f"Phantom {n_done} of {n_cases}")
        return cases

    corrected = load_cases(_LABELED_SEEDS, max(CORRECTED), True)
    unlabeled = load_cases(_UNLABELED_SEEDS, n_unlabeled, False)
    tested = load_cases(_TEST_SEEDS, n_test, True)
    jobs = [(arm, seed) for arm in ARMS for seed in (seeds if arm.corrected else (0,))]
    scores: dict[LearningArm, list[Scores]] = {arm: [] for arm in ARMS}
    for index, (arm, seed) in enumerate(jobs):
        run = folder / "runs" / arm.key / f"seed-{seed}"
        path = run / "scores.json"
        if not path.exists():

            def report(fraction: float, index: int = index, arm: LearningArm = arm) -> None:
                report_progress(0.1 + 0.9 * (index + fraction) / len(jobs), f"{arm.key}, seed {jobs[index][1]}")

            report(0.0)
            network = bundle.network(device)
            if arm.corrected:
                run_options = TrainingOptions.from_json({**options.to_json(), "seed": seed})
                network = _fine_tune(bundle, network, run_options, arm, corrected, unlabeled, run, device, report)
            run.mkdir(parents=True, exist_ok=True)
            write_json(_score(network, tested, options, bundle), path)
        scores[arm].append(_read(path, bundle))
    outcome = LearningOutcome(scores)
    _write(outcome, folder, bundle, len(seeds))
    return outcome


def _make_case(seed: int, cache: Path, options: TrainingOptions, labeled: bool) -> Case:
    path = cache_folder(cache, options.grid) / f"shifted_{seed}{'' if labeled else '_unlabelled'}.npz"
    if not path.exists():
        phantom = generate_shifted_phantom(seed)
        save_case(prepare_case(path.stem, phantom.ct, phantom.labels if labeled else None, options.grid), path)
    return load_case(path)


def _fine_tune(
    bundle: Bundle,
    network: DCANet,
    options: TrainingOptions,
    arm: LearningArm,
    corrected: Sequence[Case],
    unlabeled: Sequence[Case],
    run: Path,
    device: str,
    report: Callable[[float], None],
) -> DCANet:
    trainer = Trainer(
        run,
        options,
        bundle.metadata.vocabulary,
        corrected[: arm.corrected],
        unlabeled if arm.unlabeled else (),
        device=device,
        initial=network,
        groups=bundle.metadata.partition,
    )
    if (run / CHECKPOINT).exists():
        trainer.resume()
    trainer.run(report=lambda line: report(line["step"] / options.steps))
    trained = trainer.evaluated_network
    assert isinstance(trained, DCANet)
    return trained


def _score(network: DCANet, cases: Sequence[Case], options: TrainingOptions, bundle: Bundle) -> dict[str, Any]:
    x, y, z = options.grid.spacing
    n_organs = len(bundle.metadata.vocabulary)
    by_case = {}
    for case in cases:
        assert case.labels is not None
        # Windows without overlap are enough to compare arms, and take half the time.
        dice = measure(predict(network, case, options, 0.0), case.labels, (z, y, x), n_organs, (DICE,))[DICE.key]
        by_case[case.name] = [round(float(value), 5) if np.isfinite(value) else None for value in dice]
    return {"dice": by_case}


@dataclass(frozen=True)
class _StoredScores:
    """The Dice of each organ by case, None if it does not count."""

    dice: Mapping[str, tuple[float | None, ...]]


def _read(path: Path, bundle: Bundle) -> Scores:
    try:
        scores = Scores(bundle.metadata.vocabulary, (DICE,))
        for case, dice in load(_StoredScores, read_json(path)).dice.items():
            scores.add(case, {DICE.key: np.array(dice, float)})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({get_reason(error)}).", "Delete it; the next run measures it again."
        ) from None
    return scores


def _require_settings(folder: Path, bundle: Bundle, options: TrainingOptions, people: tuple[int, int]) -> None:
    settings = {
        "model": bundle.weights.sha256,
        "options": options.to_json(),
        "people": list(people),
        "scanner": [*_SPACING, _PHASE, _NOISE_HU, _CALIBRATION],
    }
    # As JSON returns it, with lists in place of tuples.
    settings = json.loads(json.dumps(settings))
    path = folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(settings, path)
        return
    try:
        recorded = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({get_reason(error)}).", "Choose another folder.") from None
    if recorded != settings:
        raise UserError(f"{folder} contains runs of another model or with other settings.", "Choose another folder.")


def format_rows(outcome: LearningOutcome, bundle: Bundle) -> list[dict[str, str]]:
    """The rows of the table, one for each arm: mean Dice over organs, its deviation over seeds, and Dice by group."""
    partition = bundle.metadata.partition
    groups = {"head": partition.head, "medium": partition.medium, "tail": partition.tail}
    return [
        {
            "corrected cases": str(arm.corrected) if arm.corrected else "before",
            "unlabeled cases": "yes" if arm.unlabeled else "no",
            "Dice": _format(outcome.mean(arm)),
            "± over seeds": _format(outcome.std(arm)),
            **{name: _format(outcome.mean(arm, labels)) for name, labels in groups.items() if labels},
        }
        for arm in ARMS
    ]


def _write(outcome: LearningOutcome, folder: Path, bundle: Bundle, seeds: int) -> None:
    table = format_rows(outcome, bundle)
    header = list(table[0])
    lines = [header, ["---"] * len(header), *([row[title] for title in header] for row in table)]
    write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), folder / f"{NAME}.md")
    write_text(
        "".join(f"{','.join(line)}\n" for line in (header, *(list(row.values()) for row in table))),
        folder / f"{NAME}.csv",
    )
    about = {"model": bundle.metadata.name, "sha256": bundle.weights.sha256, "seeds": seeds}
    write_json({**about, "data": "synthetic people of one shifted scanner", "arms": table}, folder / f"{NAME}.json")


def _format(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"
