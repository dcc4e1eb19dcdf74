"""The training set of ``dca train``: phantoms, lists of CTs, and synthetic CTs made from label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .synthesize import describe_unknown_structures

if TYPE_CHECKING:
    from ..method.log_gap import Partition
    from ..organs import Vocabulary
    from ..training.cases import Case
    from ..training.options import TrainingOptions
    from ..training.sources import LabelMapFolder
    from ..training.synthetic_sampling import RecipeSampler
    from ..training.training_set import TrainingSet
    from ..types import StrategyName
    from .options import LabelMapGroup
    from .train_options import DataGroup, SynthesisGroup


def build_training_set(data: DataGroup, synthesis: SynthesisGroup) -> tuple[TrainingSet, Vocabulary]:
    """The training set of a new run, and the vocabulary of its labels.

    Raises UserError if options contradict each other or files cannot be used.
    """
    from ..organs import AMOS
    from ..training.corrections import CASES, read_dataset, read_unlabeled_cts
    from ..training.datalist import list_of, read_datalist, require_files
    from ..training.training_set import TrainingSet, make_training_set

    training_set, vocabulary = TrainingSet.from_phantoms(*data.phantoms), AMOS
    if data.data is not None:
        # Check that the corrected cases are unchanged since they were written.
        if (data.data / CASES).is_dir():
            read_dataset(data.data)
        read_unlabeled_cts(data.data)
        datalist = read_datalist(list_of(data.data))
        require_files(datalist)
        training_set, vocabulary = training_set.merge(make_training_set(datalist)), datalist.vocabulary
    if data.all_labels:
        training_set = training_set.to_fully_labeled()
    synthetic = _build_synthetic_cases(synthesis, has_labeled_cases=bool(training_set.labeled))
    return training_set if synthetic is None else training_set.merge(synthetic), vocabulary


def _build_synthetic_cases(synthesis: SynthesisGroup, has_labeled_cases: bool) -> TrainingSet | None:
    """Return the synthetic CTs as labeled cases, or None without label maps.

    ``has_labeled_cases``: whether the run has other labeled cases.
    """
    from ..training.sources import RecipeStream
    from ..training.training_set import TrainingSet

    if not synthesis.maps.label_maps:
        if unused := [name for name, value in synthesis.get_given_options().items() if value is not None]:
            raise UserError(f"--{unused[0]} needs a label map.", "Specify its folder with --synthesize.")
        return None
    if synthesis.made_ahead is not None:
        if synthesis.share is not None:
            raise UserError(
                "--synthesize-fraction and --synthesize-ahead cannot be combined.", "Specify only one of them."
            )
        return build_synthetic_training_set(
            synthesis.maps, synthesis.first_number or 0, synthesis.made_ahead, synthesis.warps
        )
    if synthesis.first_number is not None:
        raise UserError("--synthesize-first needs --synthesize-ahead.", "Add --synthesize-ahead.")
    if synthesis.share is not None and synthesis.share < 1 and not has_labeled_cases:
        raise UserError(
            f"There is no labeled case for the other {1 - synthesis.share:.0%} of the patches.",
            "Add labeled cases (--data, --labeled), or omit --synthesize-fraction.",
        )
    share = synthesis.share or (0.5 if has_labeled_cases else 1.0)
    folders, warps = _label_maps(synthesis.maps, synthesis.warps)
    return TrainingSet((RecipeStream(folders, warps, share),))


def build_synthetic_training_set(maps: LabelMapGroup, first: int, count: int, warps: Path | None = None) -> TrainingSet:
    """Return ``count`` synthetic CTs, numbered from ``first``, as labeled cases that are made before the training.

    ``warps`` is the folder of the registrations of the label maps. Raises UserError for folders or numbers that cannot
    be used.
    """
    from ..training.sources import SYNTHESIZED_SEEDS, SYNTHESIZED_VALIDATION_SEEDS, SynthesizedCTs
    from ..training.training_set import TrainingSet

    most = SYNTHESIZED_VALIDATION_SEEDS - SYNTHESIZED_SEEDS
    if first + count > most:
        raise UserError(
            f"Synthetic CTs cannot have numbers up to {first + count}.",
            f"--synthesize-first plus --synthesize-ahead can be at most {most}.",
        )
    folders, registrations = _label_maps(maps, warps)
    return TrainingSet((SynthesizedCTs(folders, SYNTHESIZED_SEEDS + first, count, registrations),))


def _label_maps(group: LabelMapGroup, warps: Path | None) -> tuple[tuple[LabelMapFolder, ...], str | None]:
    """Return the label map folders and the warps folder, with full paths. Raises UserError for missing folders."""
    from ..training.sources import LabelMapFolder

    maps, licenses = group.label_maps or [], group.licenses or []
    if licenses and len(licenses) != len(maps):
        raise UserError(
            f"The number of --synthesize options is {len(maps)}, that of --license options {len(licenses)}.",
            "Specify one --license for each --synthesize, or none.",
        )
    for folder in maps:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder.", "Specify a folder that contains a label map and a table of its names."
            )
    if warps is not None and not warps.is_dir():
        raise UserError(f"{warps} is not a folder.", "Specify the folder made by dca register-label-maps.")
    licenses = licenses or ["not stated"] * len(maps)
    folders = tuple(
        LabelMapFolder(str(folder.resolve()), license_name) for folder, license_name in zip(maps, licenses, strict=True)
    )
    return folders, None if warps is None else str(warps.resolve())


def get_group_warnings(groups: Partition, vocabulary: Vocabulary, strategy: StrategyName) -> list[str]:
    """Return what the user should know about the groups of organs; only DCA trains an expert for each."""
    if strategy == "dca":
        return list(groups.warnings)
    names = [vocabulary.by_label[label].name for label in groups.absent]
    return [f"{name} has no voxels in the labeled volumes, so the model cannot learn it." for name in names]


def get_case_warnings(
    training_set: TrainingSet,
    cases: tuple[list[Case], list[Case], list[Case]],
    options: TrainingOptions,
    recipes: RecipeSampler | None,
) -> list[str]:
    """Return what the user should know about the cases before training for hours."""
    labeled, unlabeled, validation = cases
    warnings = []
    if recipes is not None:
        renderer = recipes.renderer
        warnings += [
            text for each in renderer.anatomies.values() if (text := describe_unknown_structures(each)) is not None
        ]
        stream = training_set.stream
        if stream is not None and stream.warps is not None and not any(renderer.warps.values()):
            warnings.append(
                f"The folder {stream.warps} is not used: it has no registration between two of the label maps."
            )
        if len(renderer.anatomies) == 1 and not labeled:
            warnings.append("There is only one label map, so all synthetic CTs show variants of the same person.")
    elif len(labeled) == 1:
        warnings.append("There is only one labeled case, so the model learns the anatomy of one person.")
    if not unlabeled and options.strategy not in ("vnet", "plain_experts"):
        warnings.append("There is no unlabeled case, so the training is fully supervised.")
    if not validation:
        warnings.append("There is no validation case, so the last weights are kept instead of the best.")
    small = [
        case.name
        for case in labeled + unlabeled
        if any(side < least for side, least in zip(case.hu.shape, options.patch, strict=True))
    ]
    if small:
        count = "1 case is" if len(small) == 1 else f"{len(small)} cases are"
        warnings.append(f"{count} smaller than the patch and will be padded: {small[0]}{', ...' * (len(small) > 1)}.")
    return warnings
