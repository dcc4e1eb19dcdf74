"""Training on synthetic CTs that are rendered from label maps on demand (``dca train --synthesize``)."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.organs import AMOS
from dcaseg.synthesis.label_to_ct.anatomy import load_anatomy
from dcaseg.synthesis.label_to_ct.geometry import Warp
from dcaseg.synthesis.label_to_ct.registration import format_warp_name, write_warp
from dcaseg.synthesis.phantom.case import generate
from dcaseg.training.cases import Case
from dcaseg.training.checkpoints import read_record
from dcaseg.training.options import GridOptions, TrainingOptions
from dcaseg.training.sampling import Prefetcher, StepSampler
from dcaseg.training.sources import LabelMapFolder, Phantoms, RecipeStream, SynthesizedCTs
from dcaseg.training.trainer import Trainer
from dcaseg.training.training_set import TrainingSet, divide

GRID = GridOptions(spacing=(14.0, 14.0, 14.0))
OPTIONS = TrainingOptions(
    grid=GRID, n_filters=2, patch=(16, 32, 32), labeled_per_step=2, unlabeled_per_step=1, steps=4, norm="instance",
    expert_stage_fraction=0.5,
)  # fmt: skip
TINY = ("--spacing", "14,14,14", "--filters", 2, "--patch", "32,32,32", "--batch", 1, "--device", "cpu")
NOBODY = ("--labelled", 0, "--unlabelled", 0, "--validation", 0)
# A label map may be incomplete.
LEFT_OUT = ("bladder", "prostate_uterus")


def write_label_map(folder: Path, seed: int) -> Path:
    """A label map of a phantom with bones, but without pelvic organs, and the table of its names."""
    phantom = generate(seed, spacing=(8.0, 8.0, 8.0))
    labels, hu = sitk.GetArrayFromImage(phantom.labels), sitk.GetArrayFromImage(phantom.ct)
    for key in LEFT_OUT:
        labels[labels == AMOS.by_key[key].label] = 0
    labels[(labels == 0) & (hu > 300)] = 16
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(phantom.labels)
    folder.mkdir()
    sitk.WriteImage(image, str(folder / "labels.nii.gz"))
    rows = [f"{organ.label}\t{organ.key}" for organ in AMOS] + ["16\tvertebrae"]
    (folder / "label_table.tsv").write_text("id\tname\n" + "\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two label maps."""
    place = tmp_path_factory.mktemp("maps")
    return write_label_map(place / "anna", 5), write_label_map(place / "bert", 8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Cached label maps and phantoms, created by the first run and read by the others."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def warps(folders, cache, tmp_path_factory) -> Path:
    """Registrations between the label maps: a deformation by some mm, instead of a registration that takes minutes."""
    place = tmp_path_factory.mktemp("warps")
    anatomies = [load_anatomy(folder, cache=cache / "anatomies") for folder in folders]
    for one, other in (anatomies, anatomies[::-1]):
        shape = [int(size * side / 20) + 1 for size, side in zip(one.tissues.shape, one.spacing[::-1], strict=True)]
        field = np.zeros((3, *shape), np.float16)
        field[2] = 10.0
        write_warp(Warp(field, 20.0, (0.0, 0.0, 0.0)), place / format_warp_name(one.name, other.name))
    return place


@pytest.fixture(scope="module")
def stream(folders) -> RecipeStream:
    maps = (LabelMapFolder(str(folders[0]), "CC0-1.0", "a hospital"), LabelMapFolder(str(folders[1]), "CC-BY-4.0"))
    return RecipeStream(maps)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "last.pt", weights_only=True)["averaged"]
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_stream_json_round_trip_and_description(stream):
    cohort = TrainingSet((Phantoms(5, 2), replace(stream, warps="warps", share=0.25)), (), (Phantoms(9, 1),))
    assert TrainingSet.from_json(json.loads(json.dumps(cohort.to_json()))) == cohort
    assert cohort.synthetic and cohort.stream == cohort.labeled[1]
    assert TrainingSet((Phantoms(5, 2),)).stream is None
    people, anna, bert = cohort.training_data
    assert not people.name.startswith("Label map") and "anna" in anna.name and "bert" in bert.name
    assert (anna.licence, anna.source, bert.licence) == ("CC0-1.0", "a hospital", "CC-BY-4.0")
    assert anna.synthetic and (anna.labeled, anna.unlabeled) == (1, 0)


def test_an_invalid_stream_is_rejected(stream):
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share"):
            replace(stream, share=share)
    for groups in (((stream, stream),), ((), (stream,)), ((), (), (stream,))):
        with pytest.raises(ValueError, match="at most one recipe stream"):
            TrainingSet(*groups)


@pytest.mark.slow
def test_a_draw_depends_only_on_its_generator(stream, cache):
    one, other = (stream.make_sampler(cache, OPTIONS) for _ in range(2))
    other.draw(2)
    first = one.draw(2, np.random.default_rng(7))
    again = pickle.loads(pickle.dumps(other)).draw(2, np.random.default_rng(7))
    assert torch.equal(first.volumes, again.volumes) and torch.equal(first.labels, again.labels)
    assert first.unannotated == again.unannotated == ((14, 15),) * 2
    assert not torch.equal(first.volumes, one.draw(2, np.random.default_rng(8)).volumes)


def test_a_worker_process_draws_the_same_patches(stream, cache):
    sampler = StepSampler(stream.make_sampler(cache, OPTIONS), None, OPTIONS)
    ahead = Prefetcher(sampler, lambda step: False, 3, workers=1)
    try:
        for step in range(3):
            drawn = ahead.take(step, False).labeled
            # Arrays, because they come through a pipe, not through shared memory.
            assert isinstance(drawn.volumes, np.ndarray) and isinstance(drawn.labels, np.ndarray)
            here = sampler.draw(step, False).labeled
            assert np.array_equal(drawn.volumes, here.volumes) and np.array_equal(drawn.labels, here.labels)
    finally:
        ahead.close()


@pytest.mark.slow
def test_drawn_patches_are_not_kept(stream, cache):
    sampler = stream.make_sampler(cache, OPTIONS)
    sampler.draw(2, np.random.default_rng(0))
    files, size = sorted(cache.rglob("*")), len(pickle.dumps(sampler))
    sampler.draw(30, np.random.default_rng(1))
    # Two patches of this size need 100 kB; the geometry of the last recipe may be slightly larger or smaller.
    assert abs(len(pickle.dumps(sampler)) - size) < 2e4
    assert sorted(cache.rglob("*")) == files


def test_cases_are_drawn_with_the_remaining_share(stream, cache):
    """The case is recognized by its constant HU, which no synthetic patch has."""
    case = Case("flat", np.full((20, 40, 40), 75, np.int16), np.ones((20, 40, 40), np.uint8))
    sampler = stream.make_sampler(cache, OPTIONS)
    plain = replace(OPTIONS, spatial_augmentation=False)
    mixed = replace(stream, share=0.25).mix_samplers(sampler, [case], plain)
    volumes = np.asarray(mixed.draw(60, np.random.default_rng(0)).volumes)
    flat = [bool(np.ptp(volume) == 0 and volume.flat[0] == 0.5) for volume in volumes]
    assert 35 <= sum(flat) <= 55
    assert stream.mix_samplers(sampler, [case], OPTIONS) is sampler


def test_groups_of_organs_come_from_label_maps_and_cases_together(stream, cache):
    sampler = stream.make_sampler(cache, OPTIONS)
    alone = divide(sampler.anatomies, AMOS, "top2")
    sizes = dict(zip(alone.ranking, alone.counts, strict=True))
    # An organ that no label map includes is absent, until a case has it.
    assert not {14, 15} & set(sizes) and sizes[6] > 10 * sizes[4]
    [liver, again] = [each.count_voxels(15)[6] for each in sampler.anatomies]
    assert sizes[6] == liver + again and 150 < liver < 1500
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[:3] = 14
    case = Case("one", np.zeros((30, 30, 30), np.int16), labels)
    both = divide([case, *sampler.anatomies], AMOS, "top2")
    sizes = dict(zip(both.ranking, both.counts, strict=True))
    # 2700 voxels in the only case in which it is annotated, times three.
    assert sizes[14] == 8100 and sizes[6] == liver + again
    trainer = Trainer(cache / "none", OPTIONS, AMOS, [], [], sampler=sampler, anatomies=sampler.anatomies)
    assert trainer.partition == alone
    assert trainer.strategy.fingerprint.labeled == 2 and trainer.strategy.fingerprint.partial == "anna"


def test_pseudo_labeled_cases_are_added_to_the_stream(stream, cache):
    sampler = stream.make_sampler(cache, OPTIONS)
    plain = replace(OPTIONS, spatial_augmentation=False)
    trainer = Trainer(cache / "none", plain, AMOS, [], [], sampler=sampler, anatomies=sampler.anatomies)
    case = Case("flat", np.full((20, 40, 40), 75, np.int16), np.ones((20, 40, 40), np.uint8))
    trainer._take_new_cases([case])
    labels = [np.asarray(trainer._sampler.draw(step, False).labeled.labels) for step in range(15)]
    flat = sum(bool((patch == 1).all()) for step in labels for patch in step)
    # One third of the 30 patches.
    assert 4 <= flat <= 16
    trainer._take_new_cases([])
    assert trainer._sampler.draw(0, False).labeled.labels.shape == (2, 16, 32, 32)


def train(dca, out: Path, folders: tuple[Path, Path], cache: Path, *more: object):
    maps = ("--synthesize", folders[0], "--synthesize", folders[1], "--licence", "CC0-1.0", "--licence", "CC-BY-4.0")
    return dca("train", "-o", out, *maps, *TINY, "--cache", cache, *more)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_a_stream_resumes_bit_for_bit(dca, folders, warps, cache, tmp_path, workers):
    options = (*NOBODY, "--warps", warps, "--steps", 4, "--workers", workers)
    whole = train(dca, tmp_path / "whole", folders, cache, *options)
    assert whole.code == 0, whole.err
    parts = train(dca, tmp_path / "parts", folders, cache, *options, "--minutes", 0)
    assert parts.code == 0, parts.err
    assert not equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    resumed = dca("train", "-o", tmp_path / "parts", "--resume", "--cache", cache, "--workers", workers)
    assert resumed.code == 0, resumed.err
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    record = read_record(tmp_path / "parts")
    assert record.cohort.stream == RecipeStream(
        (LabelMapFolder(str(folders[0]), "CC0-1.0"), LabelMapFolder(str(folders[1]), "CC-BY-4.0")), str(warps)
    )
    assert not list(cache.rglob("painted_*"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_run_resumes_as_if_uninterrupted(stream, cache, tmp_path, workers):
    """Half of the patches from the stream, half from a case."""
    case = Case("half", np.full((20, 40, 40), 75, np.int16), np.tri(20, 1600, 800, np.uint8).reshape(20, 40, 40))

    def trainer(name: str) -> Trainer:
        sampler = stream.make_sampler(cache, OPTIONS)
        mixed = replace(stream, share=0.5).mix_samplers(sampler, [case], OPTIONS)
        return Trainer(tmp_path / name, OPTIONS, AMOS, [case], [], sampler=mixed, anatomies=sampler.anatomies)

    def stop(line: dict) -> None:
        if line["step"] == 2:
            raise InterruptedError

    trainer("whole").run(workers=workers)
    with pytest.raises(InterruptedError):
        trainer("parts").run(report=stop, workers=workers)
    second = trainer("parts")
    second.resume()
    assert second.step == 2
    second.run(workers=workers)
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


def test_registrations_change_what_is_drawn(stream, warps, cache):
    bent = replace(stream, warps=str(warps)).make_sampler(cache, OPTIONS)
    assert all(bent.renderer.warps.values())
    blends = [bent.renderer.draw_recipe(seed).deformation.blend for seed in range(8)]
    assert any(blends)
    seed = next(seed for seed, blend in enumerate(blends) if blend)
    case = bent.renderer.render_case(bent.renderer.draw_recipe(seed)).labels
    plain = stream.make_sampler(cache, OPTIONS).renderer
    assert not torch.equal(case, plain.render_case(plain.draw_recipe(seed)).labels)


@pytest.mark.slow
def test_a_run_with_listed_cts_is_exported_with_its_training_data(dca, folders, cache, coarse_phantom, tmp_path):
    ct = {"image": os.fspath(coarse_phantom / "ct.nii.gz")}
    truth = {**ct, "label": os.fspath(coarse_phantom / "labels.nii.gz")}
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"training": [truth], "name": "one CT", "licence": "CC0-1.0", "vocabulary": "AMOS"}))
    trained = train(dca, tmp_path / "run", folders, cache, "--data", listed, "--steps", 1)
    assert trained.code == 0, trained.err
    assert "one labeled case" not in trained.err
    assert read_record(tmp_path / "run").cohort.stream.share == 0.5
    packed = dca("bundle", "export", tmp_path / "run", "-o", tmp_path / "model")
    assert packed.code == 0, packed.err
    metadata = json.loads((tmp_path / "model" / "configs" / "metadata.json").read_text())["dca"]
    assert [(one["labelled"], one["licence"], one["synthetic"]) for one in metadata["training_data"]] == [
        (1, "CC0-1.0", False),
        (1, "CC0-1.0", True),
        (1, "CC-BY-4.0", True),
    ]


@pytest.mark.slow
def test_a_run_on_a_stream_alone_is_exported_as_synthetic(dca, folders, cache, tmp_path):
    trained = train(dca, tmp_path / "run", folders, cache, *NOBODY, "--steps", 1)
    assert trained.code == 0, trained.err
    assert dca("bundle", "export", tmp_path / "run", "-o", tmp_path / "model").code == 0
    assert dca("bundle", "verify", tmp_path / "model").code == 0
    metadata = json.loads((tmp_path / "model" / "configs" / "metadata.json").read_text())["dca"]
    assert [one["licence"] for one in metadata["training_data"]] == ["CC0-1.0", "CC-BY-4.0"]
    assert any("synthetic CTs only" in limit for limit in metadata["limits"])


@pytest.mark.slow
def test_precomputed_synthetic_cases_use_registrations(dca, folders, warps, cache, tmp_path):
    out = tmp_path / "run"
    trained = train(
        dca, out, folders, tmp_path / "cases", *NOBODY,
        "--warps", warps, "--synthesize-ahead", 2, "--synthesize-first", 7,
        "--steps", 1,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    [source] = read_record(out).cohort.labeled
    assert isinstance(source, SynthesizedCTs)
    assert (source.first_seed, source.count, source.warps) == (500_007, 2, str(warps))
    assert len(list((tmp_path / "cases").rglob("painted_50000*.npz"))) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--warps", "somewhere"), "--warps needs a label map"),
        (("--synthesize-first", 0), "--synthesize-first needs a label map"),
        (("--synthesize", "MAP", "--synthesize-first", 0), "--synthesize-first needs --synthesize-ahead"),
        (("--synthesize", "MAP", "--synthesize-ahead", 2, "--synthesize-fraction", 0.5), "Specify only one"),
        (("--synthesize", "MAP", *NOBODY, "--synthesize-fraction", 0.5), "no labeled case for the other 50%"),
        (("--synthesize", "MAP", "--license", "a", "--licence", "b"), "that of --license options 2"),
        (("--synthesize", "nowhere"), "nowhere is not a folder"),
        (("--synthesize", "MAP", "--warps", "nowhere"), "nowhere is not a folder"),
        (("--synthesize", "MAP", *NOBODY, "--preprocessing", "dhc"), "need a spacing in mm"),
    ],
)
def test_contradictory_options_are_rejected(dca, folders, tmp_path, options, words):
    given = [folders[0] if each == "MAP" else each for each in options]
    refused = dca("train", "-o", tmp_path / "run", *given, "--steps", 1)
    assert refused.code == 2 and words in " ".join(refused.err.split()), refused.err
    assert not (tmp_path / "run" / "last.pt").exists()


def test_registrations_of_other_label_maps_give_a_warning(dca, folders, warps, cache, tmp_path):
    options = (*TINY, *NOBODY, "--steps", 1, "--cache", cache, "--synthesize", folders[0])
    run = dca("train", "-o", tmp_path / "run", *options, "--warps", warps)
    assert run.code == 0 and "no registration" in run.err and "not used" in run.err
    assert "only one label map" in " ".join(run.err.split())
    kept = dca("train", "-o", tmp_path / "run", "--resume", "--warps", warps, "--synthesize-ahead", 3)
    assert kept.code == 2 and "synthesize-ahead" in kept.err and "warps" in kept.err


@pytest.mark.slow
def test_resuming_without_the_label_map_is_an_error(dca, folders, cache, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folders[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "run"
    options = (*TINY, *NOBODY, "--steps", 1, "--minutes", 0, "--cache", cache)
    assert dca("train", "-o", out, "--synthesize", copy, *options).code == 0
    copy.rename(tmp_path / "elsewhere")
    resumed = dca("train", "-o", out, "--resume", "--cache", cache)
    assert resumed.code == 2 and str(copy) in resumed.err.replace("\n", "") and "Traceback" not in resumed.err
