"""CTs synthesized from label maps: input, output, and agreement of labels and image."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.errors import UserError
from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.json_io import load
from dcaseg.organs import AMOS
from dcaseg.synthesis.label_to_ct.anatomy import Anatomy, load_anatomy, prepare
from dcaseg.synthesis.label_to_ct.geometry import Warp
from dcaseg.synthesis.label_to_ct.label_map import LabelMap, read_label_map, read_names
from dcaseg.synthesis.label_to_ct.noise import sample_normal, sample_smooth_noise
from dcaseg.synthesis.label_to_ct.recipe import RECIPE_VERSION, Deformation, FieldOfView, Recipe, read_recipe
from dcaseg.synthesis.label_to_ct.recipe_generator import draw_recipe
from dcaseg.synthesis.label_to_ct.registration import (
    MAX_WEIGHT,
    compute_jacobian_determinant,
    format_warp_name,
    register,
    write_warp,
)
from dcaseg.synthesis.label_to_ct.renderer import Renderer
from dcaseg.synthesis.label_to_ct.tissues import TISSUES, find_structure
from dcaseg.synthesis.label_to_ct.volumes import compute_hull_distance, compute_signed_distance
from dcaseg.synthesis.phantom.case import generate
from dcaseg.training.options import GridOptions, TrainingOptions
from dcaseg.training.sources import LabelMapFolder, SynthesizedCTs, synthesize_case
from dcaseg.training.synthetic_sampling import RecipeSampler

GRID = GridOptions(spacing=(6.0, 6.0, 6.0))
REAL = Path(__file__).parents[2] / "shared" / "ct"
# Label maps may be incomplete.
LEFT_OUT = ("bladder", "prostate_uterus")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a label map of a phantom, without pelvic organs but with a spine, and the table of its names."""
    phantom = generate(5, spacing=(5.0, 5.0, 5.0), orientation="LPS")
    labels, hu = sitk.GetArrayFromImage(phantom.labels), sitk.GetArrayFromImage(phantom.ct)
    for key in LEFT_OUT:
        labels[labels == AMOS.by_key[key].label] = 0
    labels[(labels == 0) & (hu > 300)] = 16
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(phantom.labels)
    path = tmp_path_factory.mktemp("map")
    sitk.WriteImage(image, str(path / "labels.nii.gz"))
    rows = [f"{organ.label}\t{organ.key}" for organ in AMOS] + ["16\tvertebrae"]
    (path / "label_table.tsv").write_text("id\tname\n" + "\n".join(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def anatomy(folder) -> Anatomy:
    return load_anatomy(folder)


@pytest.fixture(scope="module")
def renderer(anatomy) -> Renderer:
    return Renderer([anatomy], GRID.spacing)


def paint_case(seed, anatomies, grid, phase=None):
    return synthesize_case(Renderer(anatomies, grid.spacing, grid.orientation), seed, phase)


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("kidney_left", "left_kidney"),
        ("right_adrenal_gland", "right_adrenal"),
        ("Gall bladder", "gallbladder"),
        ("urinary_bladder", "bladder"),
        ("portal_vein_and_superior_mesenteric_vein", "portal_vein"),
        ("iliac_vena_left", "vein"),
        ("left_renal_artery", "artery"),
        ("left_renal_pelvis", "renal_pelvis"),
        ("L5-L4-IntervertebralDisc", "disc"),
        ("Lumbar3", "bone"),
        ("rib_left_10", "bone"),
        ("brachiocephalic_trunk", "artery"),
        ("colon_and_ileum", "colon"),
        ("iliopsoas_left", "psoas"),
        ("kidney", None),
        ("something else", None),
    ],
)
def test_structures_are_recognized_by_name(name, structure):
    assert find_structure(name) == structure


def test_every_organ_of_amos_has_a_tissue():
    assert {tissue.label for tissue in TISSUES} == set(range(len(AMOS) + 1))


def test_tables_of_names_may_use_tabs_commas_or_spaces(tmp_path):
    for name, text in {
        "a.tsv": "id\tname\tvolume\n3\tliver\t1400\n",
        "b.csv": 'id,name\n3,"liver"\n',
        "c.ctbl": "# Colors\n3 liver 147 59 0 255\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_names(tmp_path / name) == {3: "liver"}


def test_a_sidecar_corrects_the_spacing_and_renames_and_divides_structures(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    size = read_labels(tmp_path / "labels.nii.gz").GetSize()
    lower = [[0, size[0]], [0, size[1]], [0, size[2] // 2]]
    sidecar = {
        "spacing": [4, 4.5, 6],
        "names": {"stomach": "duodenum_too"},
        "parts": {"vertebrae": [{"name": "sacrum", "boxes": [lower]}]},
    }
    (tmp_path / "anatomy.json").write_text(json.dumps(sidecar), encoding="utf-8")
    found = read_label_map(tmp_path)
    assert found.spacing == (4.0, 4.5, 6.0)
    assert found.names[AMOS.by_key["stomach"].label] == "duodenum_too"
    sacrum = next(number for number, name in found.names.items() if name == "sacrum")
    levels = np.flatnonzero((found.voxels == sacrum).any(axis=(1, 2)))
    assert len(levels) and levels[-1] < size[2] // 2
    assert not (found.voxels[: size[2] // 2] == 16).any()


def test_a_label_map_is_read_in_ras_orientation(folder):
    voxels = read_label_map(folder).voxels
    places = {key: np.argwhere(voxels == AMOS.by_key[key].label).mean(axis=0) for key in ("liver", "spleen", "aorta")}
    assert places["liver"][2] > places["spleen"][2]
    assert places["liver"][1] > places["aorta"][1]
    lung_side, kidney = places["liver"][0], np.argwhere(voxels == AMOS.by_key["right_kidney"].label).mean(axis=0)[0]
    assert lung_side > kidney


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "label map"),
        ({"labels.nrrd": None}, "table"),
        ({"labels.nrrd": None, "t.tsv": "nothing"}, "names no structures"),
        ({"labels.nrrd": None, "t.tsv": "1\tspleen\n"}, "no liver"),
        ({"labels.nrrd": None, "t.tsv": "1\tliver\n", "anatomy.json": "[3]"}, "anatomy.json"),
        ({"labels.nrrd": None, "t.tsv": "1\tliver\n", "anatomy.json": '{"names": "x"}'}, "anatomy.json"),
        ({"labels.nrrd": None, "t.tsv": "1\tliver\n", "anatomy.json": '{"spacing": [1, -1, "x"]}'}, "anatomy.json"),
        ({"labels.nrrd": None, "t.tsv": "²\tliver\n"}, "names no structures"),
    ],
)
def test_a_folder_that_is_not_an_anatomy_is_rejected(content, words, tmp_path):
    image = sitk.GetImageFromArray(np.ones((4, 5, 6), np.uint8))
    for name, text in content.items():
        if text is None:
            sitk.WriteImage(image, str(tmp_path / name))
        else:
            (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_anatomy(tmp_path)


def test_the_same_seed_gives_the_same_case_and_another_seed_another_case(anatomy):
    first, again, other = (paint_case(seed, [anatomy], GRID) for seed in (4, 4, 5))
    assert first.name == again.name
    assert np.array_equal(first.hu, again.hu) and np.array_equal(first.labels, again.labels)
    assert first.hu.shape != other.hu.shape or not np.array_equal(first.hu, other.hu)


def test_a_pickled_anatomy_gives_the_same_case(anatomy):
    sent = pickle.loads(pickle.dumps(anatomy))
    assert np.array_equal(paint_case(9, [sent], GRID).hu, paint_case(9, [anatomy], GRID).hu)


def test_organs_missing_in_the_label_map_are_unannotated_and_not_rendered(anatomy):
    case = paint_case(1, [anatomy], GRID)
    assert case.unannotated == tuple(AMOS.by_key[key].label for key in LEFT_OUT)
    assert not np.isin(case.labels, case.unannotated).any()


def test_labels_agree_with_the_image(anatomy):
    """The liver's voxels are soft tissue, and a liver shifted by two voxels does not fit the image as well."""
    liver = AMOS.by_key["liver"].label
    fits, shifted = [], []
    for seed in range(12):
        case = paint_case(seed, [anatomy], GRID, "portal_venous")
        if (case.labels == liver).sum() < 200:
            continue
        rim = (case.labels == liver) & (compute_signed_distance(case.labels == liver, (6.0, 6.0, 6.0)) > -7.0)
        middle = np.median(case.hu[case.labels == liver])
        assert 20 < middle < 200
        fits.append(np.median(np.abs(case.hu[rim] - middle)))
        shifted.append(np.median(np.abs(np.roll(case.hu, (2, 2), (1, 2))[rim] - middle)))
    assert np.mean(fits) < 0.8 * np.mean(shifted)


@pytest.mark.slow
def test_the_phase_shows_in_the_aorta_and_the_kidneys(anatomy):
    def mean(phase, key):
        values = []
        for seed in range(10):
            case = paint_case(seed, [anatomy], GRID, phase)
            organ = case.labels == AMOS.by_key[key].label
            if organ.sum() > 20:
                values.append(np.median(case.hu[organ]))
        return np.mean(values)

    assert mean("none", "aorta") < 80 < mean("portal_venous", "aorta") < 180 < mean("arterial", "aorta")
    assert mean("portal_venous", "right_kidney") > mean("none", "right_kidney") + 60


def test_left_and_right_are_not_swapped(anatomy):
    for seed in range(5):
        labels = paint_case(seed, [anatomy], GRID).labels
        liver, spleen = (np.argwhere(labels == AMOS.by_key[key].label) for key in ("liver", "spleen"))
        if len(liver) and len(spleen):
            assert liver[:, 2].mean() > spleen[:, 2].mean()


def test_the_case_follows_the_grids_orientation(anatomy):
    ras = paint_case(2, [anatomy], GRID)
    lps = paint_case(2, [anatomy], GridOptions(spacing=(6.0, 6.0, 6.0), orientation="LPS"))
    assert np.array_equal(lps.hu, ras.hu[:, ::-1, ::-1])
    assert np.array_equal(lps.labels, ras.labels[:, ::-1, ::-1])


@pytest.mark.slow
def test_the_gallbladder_is_sometimes_removed(anatomy):
    label = AMOS.by_key["gallbladder"].label
    counts = [int((paint_case(seed, [anatomy], GRID).labels == label).sum()) for seed in range(40)]
    assert 1 <= sum(count == 0 for count in counts) <= 25


@pytest.mark.slow
def test_cases_are_cached_and_only_missing_ones_are_rendered_again(folder, tmp_path):
    source = SynthesizedCTs((LabelMapFolder(str(folder)),), 10, 3)
    fractions = []
    first = source.cases(tmp_path, GRID, True, lambda fraction, text: fractions.append(fraction))
    assert fractions == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert all(case.labels is None for case in source.cases(tmp_path, GRID, False))
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("painted_*.npz")}
    next(tmp_path.rglob("painted_11.npz")).unlink()
    again = source.cases(tmp_path, GRID, True)
    for before, after in zip(first, again, strict=True):
        assert np.array_equal(before.hu, after.hu) and np.array_equal(before.labels, after.labels)
        assert before.unannotated == after.unannotated
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("painted_*.npz")}
    assert [name for name in sorted(times) if kept[name] == times[name]] == ["painted_10.npz", "painted_12.npz"]


@pytest.mark.slow
def test_a_prepared_anatomy_is_read_from_the_cache_and_a_damaged_one_is_replaced(folder, anatomy, tmp_path):
    made = load_anatomy(folder, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    read = load_anatomy(folder, cache=tmp_path)
    assert file.stat().st_mtime_ns == written
    for one in (made, read):
        assert np.array_equal(one.tissues, anatomy.tissues) and one.stretches == anatomy.stretches
        assert one.levels == anatomy.levels and one.volumes_ml == anatomy.volumes_ml
    file.write_bytes(file.read_bytes()[:1000])
    assert np.array_equal(load_anatomy(folder, cache=tmp_path).tissues, anatomy.tissues)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA"])
@pytest.mark.parametrize("thick", [1.0, 8.0])
def test_a_patch_equals_the_same_part_of_the_case_bit_for_bit(anatomy, orientation, thick):
    renderer = Renderer([anatomy], (5.0, 6.0, 7.0), orientation)
    random = np.random.default_rng(0)
    for seed in range(3):
        recipe = draw_recipe(seed, [anatomy])
        recipe = replace(recipe, scanner=replace(recipe.scanner, slice_mm=thick, blur=0.2))
        case = renderer.render_case(recipe)
        assert case.hu.shape == case.labels.shape
        for _ in range(4):
            start = [int(random.integers(0, n - 4)) for n in case.hu.shape]
            shape = [int(random.integers(3, 1 + min(24, n - a))) for n, a in zip(case.hu.shape, start, strict=True)]
            patch = renderer.render_patch(recipe, start, shape)
            where = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
            assert torch.equal(patch.hu, case.hu[where]) and torch.equal(patch.labels, case.labels[where])


def test_end_slices_are_repeated_above_and_below_the_scan_and_beside_it_is_air(anatomy, renderer):
    recipe = draw_recipe(0, [anatomy])
    low, middle = recipe.field_of_view.start, anatomy.positions[AMOS.by_key["liver"].label].mean(axis=0)
    z = float(middle[2] - anatomy.center[2])
    view = FieldOfView((low[0] + 40.0, low[1], z), (recipe.field_of_view.extent[0] - 40.0, 120.0, 50.0))
    recipe = replace(recipe, field_of_view=view)
    case = renderer.render_case(recipe)
    depth, height, width = case.hu.shape
    assert depth == 8
    patch = renderer.render_patch(recipe, (-4, -3, -5), (depth + 9, height + 6, width + 10))
    inner = patch.hu[:, 3:-3, 5:-5]
    assert torch.equal(inner[4 : 4 + depth], case.hu)
    assert (inner[:4] == case.hu[0]).all() and (inner[4 + depth :] == case.hu[-1]).all()
    labels = patch.labels[:, 3:-3, 5:-5]
    assert (labels[:4] == case.labels[0]).all() and (labels[4 + depth :] == case.labels[-1]).all()
    outside = torch.ones_like(patch.hu, dtype=torch.bool)
    outside[:, 3:-3, 5:-5] = False
    assert (patch.hu[outside] == -1024).all() and (patch.labels[outside] == 0).all()


def test_a_recipe_survives_json(anatomy, tmp_path):
    for seed in range(20):
        recipe = draw_recipe(seed, [anatomy], partners={anatomy.name: ["another"]})
        assert recipe == draw_recipe(seed, [anatomy], partners={anatomy.name: ["another"]})
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps(recipe.to_json()), encoding="utf-8")
        assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": RECIPE_VERSION + 1}, "Update"),
        ({"version": 0}, "again"),
        ({"seed": "many"}, "recipe.seed"),
        ({"colour": 1}, "colour"),
        ({"deformation": {"scale": [1, 2]}}, "recipe.deformation.scale"),
        ({"deformation": {"scale": [1, 2, float("inf")]}}, "finite"),
        ({"appearance": None}, "recipe.appearance"),
    ],
)
def test_an_invalid_recipe_is_rejected_with_the_reason(anatomy, change, words):
    with pytest.raises(UserError, match=words):
        Recipe.from_json({**draw_recipe(0, [anatomy]).to_json(), **change})


def test_other_data_and_recipes_of_unknown_label_maps_are_rejected(anatomy, renderer, tmp_path):
    for text in ("[1]", "{", '{"seed": 3}'):
        (tmp_path / "r.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            read_recipe(tmp_path / "r.json")
    recipe = draw_recipe(0, [anatomy])
    with pytest.raises(UserError, match="nobody"):
        renderer.render_case(replace(recipe, anatomy="nobody"))
    toward = replace(recipe, deformation=replace(recipe.deformation, blend={"nobody": 0.5}))
    with pytest.raises(UserError, match="nobody"):
        renderer.render_case(toward)


def test_the_sampler_draws_patches_of_new_cts_and_the_same_ones_for_the_same_seed(renderer):
    options = TrainingOptions(grid=GRID, patch=(16, 20, 24))

    def sampler():
        return RecipeSampler(renderer, options, np.random.default_rng(5))

    first, second = sampler(), sampler()
    patches = first.draw(3)
    assert patches.volumes.shape == (3, 1, 16, 20, 24) and patches.volumes.dtype == torch.float32
    assert patches.labels.shape == (3, 16, 20, 24) and patches.labels.dtype == torch.int64
    assert patches.volumes.min() >= 0 and patches.volumes.max() <= 1
    unannotated = tuple(AMOS.by_key[key].label for key in LEFT_OUT)
    assert patches.unannotated == (unannotated,) * 3
    seeds = second.draw_seeds(3)
    assert len(set(seeds)) == 3
    # Rendered out of order, as workers may.
    for index in (2, 0, 1):
        patch = second.render(seeds[index])
        assert torch.equal(patch.labels.to(torch.int64), patches.labels[index])
    again = first.draw(1)
    assert not torch.equal(again.volumes[0], patches.volumes[0])


@pytest.mark.slow
def test_patches_show_small_organs_as_often_as_large_ones(renderer):
    options = TrainingOptions(grid=GRID, patch=(16, 16, 16), foreground_fraction=1.0)
    sampler = RecipeSampler(renderer, options, np.random.default_rng(0))
    labels = np.asarray(sampler.draw(40).labels)
    shown = np.array([[(patch == label).any() for label in range(1, 16)] for patch in labels]).mean(axis=0)
    for key in ("left_adrenal_gland", "gallbladder", "esophagus", "spleen"):
        assert shown[AMOS.by_key[key].label - 1] > 0.1, key
    anywhere = (
        RecipeSampler(renderer, replace(options, foreground_fraction=0.0), np.random.default_rng(0)).draw(40).labels
    )
    assert (labels > 0).mean() > 1.5 * (np.asarray(anywhere) > 0).mean()


def test_positions_of_organs_are_found_in_the_body(anatomy, renderer):
    for seed in range(4):
        scene = renderer.prepare(draw_recipe(seed, [anatomy]))
        label = AMOS.by_key["liver"].label
        voxels = np.rint(scene.compute_voxel_indices(anatomy.positions[label])).astype(int)
        labels = scene.render_case().labels.numpy()
        inside = ((voxels >= 0) & (voxels < np.array(labels.shape))).all(axis=1)
        if inside.sum() > 50:
            assert (labels[tuple(voxels[inside].T)] == label).mean() > 0.7


@pytest.fixture(scope="module")
def other(anatomy) -> Anatomy:
    """Another phantom to register to."""
    phantom = generate(8, spacing=(5.0, 5.0, 5.0))
    labels, hu = sitk.GetArrayFromImage(phantom.labels), sitk.GetArrayFromImage(phantom.ct)
    labels[(labels == 0) & (hu > 300)] = 16
    names = {organ.label: organ.key for organ in AMOS} | {16: "vertebrae"}
    return prepare(LabelMap("other", labels, (5.0, 5.0, 5.0), names))


@pytest.fixture(scope="module")
def warps(anatomy, other) -> dict[str, dict[str, Warp]]:
    return {anatomy.name: {other.name: register(anatomy, other).warp}}


@pytest.mark.slow
def test_a_registration_increases_the_overlap_without_folding(anatomy, other):
    found = register(anatomy, other)
    assert found.after > found.before + 0.05
    vectors = np.moveaxis(found.warp.field.astype(np.float32), 0, -1)
    assert np.abs(vectors).max() > 3.0
    assert compute_jacobian_determinant(MAX_WEIGHT * vectors, found.warp.step).min() > 0


@pytest.mark.slow
def test_a_body_changes_gradually_with_the_blending_weight(anatomy, other, warps):
    """Half of the warp gives a body between the one without and the one with all of it."""
    renderer = Renderer([anatomy, other], (6.0, 6.0, 6.0), warps=warps)
    plain = draw_recipe(0, [anatomy], scan_range="trunk")
    view = FieldOfView((-180.0, -140.0, -250.0), (360.0, 280.0, 500.0))

    def labels(blend):
        recipe = replace(plain, deformation=Deformation(blend=blend), field_of_view=view, missing=())
        return renderer.render_case(recipe).labels.numpy()

    start, half, whole = labels({}), labels({other.name: 0.5}), labels({other.name: 1.0})

    def likeness(a, b):
        return np.mean([2 * ((a == n) & (b == n)).sum() / ((a == n).sum() + (b == n).sum()) for n in (1, 2, 3, 6)])

    assert likeness(start, whole) < likeness(half, whole) < 1.0
    assert likeness(start, whole) < likeness(start, half) < 1.0


def test_bodies_with_implausible_organs_are_drawn_again(anatomy, other, warps):
    renderer = Renderer([anatomy, other], GRID.spacing, warps=warps)
    recipes = [renderer.draw_recipe(seed, [anatomy.name]) for seed in range(8)]
    assert sum(bool(recipe.deformation.blend) for recipe in recipes) >= 3
    # A warp that turns everything inside out must be rejected.
    absurd = Warp(np.zeros_like(warps[anatomy.name][other.name].field), 10.0, (0.0, 0.0, 0.0))
    x = np.arange(absurd.field.shape[3]) * 10.0
    # From the lowest weight of 0.2 on, it swaps left and right.
    absurd.field[0] = (x.mean() - x) * 8
    refusing = Renderer([anatomy, other], GRID.spacing, warps={anatomy.name: {other.name: absurd}})
    assert not any(refusing.draw_recipe(seed, [anatomy.name]).deformation.blend for seed in range(8))
    # An anatomy that is not given does not leak in through its warps.
    apart = Renderer([anatomy], GRID.spacing, warps=warps)
    assert not any(apart.draw_recipe(seed).deformation.blend for seed in range(8))


@pytest.mark.slow
def test_the_command_registers_every_pair_once_and_renders_blended_bodies(folder, dca, tmp_path):
    twin = tmp_path / "twin"
    twin.mkdir()
    for path in folder.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    warps = tmp_path / "warps"
    command = ("register-label-maps", folder, twin, "-o", warps, "--cache", tmp_path / "cache")
    first = dca(*command)
    assert first.code == 0, first.err
    files = {path.name: path.stat().st_mtime_ns for path in warps.iterdir()}
    assert sorted(files) == sorted([f"{folder.name}--twin.npz", f"twin--{folder.name}.npz"])
    assert dca(*command).code == 0
    assert files == {path.name: path.stat().st_mtime_ns for path in warps.iterdir()}
    out = tmp_path / "between"
    out.mkdir()
    blended = {}
    for seed in range(6):
        painted = dca(
            "synthesize", folder, twin, "--warps", warps, "--seed", seed, "--spacing", "8,8,8", "-o", out / f"{seed}"
        )
        assert painted.code == 0, painted.err
        blended = read_recipe(out / f"{seed}" / "recipe.json").deformation.blend
        if blended:
            break
    assert blended
    # The recipe needs the registrations it was made with.
    recipe = out / f"{seed}" / "recipe.json"
    assert dca("synthesize", folder, twin, "--recipe", recipe, "-o", tmp_path / "without").code == 2
    assert dca("register-label-maps", folder, "-o", warps).code == 2
    (warps / "a--b.npz").write_bytes(b"nothing")
    assert dca("synthesize", folder, "--warps", warps, "-o", tmp_path / "damaged").code == 2


@pytest.mark.slow
def test_duplicate_names_are_rejected_and_unknown_structures_reported(anatomy, folder, dca, tmp_path):
    with pytest.raises(UserError, match="Two label maps have the name"):
        Renderer([anatomy, anatomy], GRID.spacing)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sidecar = {"names": {"pancreas": "something else"}}
    (tmp_path / "anatomy.json").write_text(json.dumps(sidecar), encoding="utf-8")
    run = dca("synthesize", tmp_path, "--spacing", "8,8,8", "-o", tmp_path / "out")
    assert run.code == 0 and "something else" in run.err
    record = json.loads((tmp_path / "out" / "synthesis.json").read_text(encoding="utf-8"))
    assert "pancreas" in record["unknown"]


@pytest.mark.slow
def test_a_source_ignores_registrations_to_label_maps_that_it_does_not_have(anatomy, folder, warps, tmp_path):
    for name, warp in warps[anatomy.name].items():
        write_warp(warp, tmp_path / format_warp_name(anatomy.name, name))
    source = SynthesizedCTs((LabelMapFolder(str(folder)),), 0, 1, str(tmp_path))
    assert load(SynthesizedCTs, json.loads(json.dumps(source.to_json()))) == source
    # The other label map is not among those of the source: its shape must not leak in.
    assert not any(source.make_renderer(tmp_path / "cache", GRID).warps.values())


def test_fixed_shapes_cannot_be_drawn_from_recipes(renderer):
    options = TrainingOptions(grid=GridOptions(shape=(32, 32, 32)))
    with pytest.raises(UserError, match="need a spacing in mm"):
        RecipeSampler(renderer, options, np.random.default_rng(0))


def test_random_numbers_depend_only_on_position():
    cpu = torch.device("cpu")
    axes = [np.arange(-20, 30), np.arange(40), np.arange(100, 150)]
    whole = sample_normal(3, axes, cpu)
    assert torch.equal(sample_normal(3, [axes[0][7:9], axes[1], axes[2][30:]], cpu), whole[7:9, :, 30:])
    assert abs(float(whole.mean())) < 0.02 and abs(float(whole.std()) - 1) < 0.02
    assert abs(float(np.corrcoef(whole[1:].ravel(), whole[:-1].ravel())[0, 1])) < 0.02
    assert abs(float(np.corrcoef(sample_normal(4, axes, cpu).ravel(), whole.ravel())[0, 1])) < 0.02


def test_a_convex_hull_contains_its_mask_and_gives_distances():
    mask = np.zeros((1, 30, 40), bool)
    mask[0, 5:15, 10:21] = True
    mask[0, 8:11, 12:15] = False
    distance = compute_hull_distance(mask, (2.0, 2.0, 1.0))
    assert (distance[mask] <= 1e-4).all()
    assert distance[0, 9, 13] == pytest.approx(-6.0, abs=1e-4)
    assert distance[0, 9, 25] == pytest.approx(10.0, abs=1e-4)


def test_smooth_noise_has_the_requested_sd_and_length():
    axes = [np.arange(60) * 2.0 for _ in range(3)]
    field = sample_smooth_noise(0, axes, 10.0, torch.device("cpu"))[0].numpy()
    assert abs(float(field.mean())) < 0.1
    assert 0.9 < float(field.std()) < 1.1

    def likeness(step):
        return float(np.corrcoef(field[step:].ravel(), field[:-step].ravel())[0, 1])

    assert likeness(1) > 0.9 and abs(likeness(15)) < 0.15
    part = sample_smooth_noise(0, [axes[0][20:30], axes[1][5:6], axes[2][11:]], 10.0, torch.device("cpu"))[0].numpy()
    assert np.array_equal(part, field[20:30, 5:6, 11:])


@pytest.mark.slow
def test_the_command_writes_a_case(folder, dca, tmp_path):
    out = tmp_path / "painted"
    run = dca("synthesize", folder, "--seed", 3, "--phase", "arterial", "--spacing", "6,6,6", "-o", out)
    assert run.code == 0, run.err
    ct, labels = read_ct(out / "ct.nrrd"), read_labels(out / "labels.nrrd")
    assert ct.GetSize() == labels.GetSize() and ct.GetSpacing() == (6.0, 6.0, 6.0)
    record = json.loads((out / "synthesis.json").read_text(encoding="utf-8"))
    assert record["seed"] == 3 and "arterial" in record["case"] and record["unknown"] == list(LEFT_OUT)
    again = dca("synthesize", folder, "--recipe", out / "recipe.json", "--spacing", "6,6,6", "-o", tmp_path / "again")
    assert again.code == 0, again.err
    assert np.array_equal(sitk.GetArrayFromImage(read_ct(tmp_path / "again" / "ct.nrrd")), sitk.GetArrayFromImage(ct))
    assert dca("synthesize", folder, "-o", out).code == 2
    assert dca("synthesize", tmp_path / "nowhere", "-o", tmp_path / "b").code == 2


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real label maps are not here")
def test_small_organs_of_the_real_label_maps_survive_at_3_mm():
    anatomies = [load_anatomy(REAL / name) for name in ("labels_torso_male", "labels_spl_atlas")]
    assert [anatomy.unannotated for anatomy in anatomies] == [(), (14, 15)]
    grid = GridOptions(spacing=(3.0, 3.0, 3.0))
    volumes: dict[int, list[float]] = {organ.label: [] for organ in AMOS}
    for seed in range(24):
        labels = paint_case(seed, anatomies, grid).labels
        for organ in AMOS:
            inside = np.argwhere(labels == organ.label)
            # Organs that the scan cuts off do not count.
            if len(inside) and inside[:, 0].min() > 0 and inside[:, 0].max() < len(labels) - 1:
                volumes[organ.label].append(len(inside) * 0.027)
    for organ in AMOS:
        if organ.key not in ("aorta", "esophagus"):
            low, high = organ.volume_ml
            assert 0.8 * low < np.median(volumes[organ.label]) < high, organ.key


@pytest.mark.slow
def test_synthetic_cts_are_labeled_cases_in_addition_to_those_of_a_list(dca, folder, coarse_phantom, tmp_path):
    listed = tmp_path / "list.json"
    ct = {"image": str(coarse_phantom / "ct.nii.gz")}
    truth = {**ct, "label": str(coarse_phantom / "labels.nii.gz")}
    listed.write_text(json.dumps({"training": [], "validation": [truth], "name": "one CT", "vocabulary": "AMOS"}))
    out = tmp_path / "run"
    tiny = ("--spacing", "14,14,14", "--filters", 1, "--patch", 32, "--batch", 1, "--steps", 2, "--device", "cpu")
    maps = ("--synthesize", folder, "--licence", "CC0-1.0", "--synthesize-ahead", 2)
    trained = dca("train", "-o", out, *maps, "--data", listed, "--unlabelled", 1, *tiny, "--validate-every", 2)
    assert trained.code == 0, trained.err
    assert dca("bundle", "export", out, "-o", tmp_path / "model").code == 0
    training_data = json.loads((tmp_path / "model" / "configs" / "metadata.json").read_text())["dca"]["training_data"]
    assert [(one["labelled"], one["unlabelled"], one["licence"]) for one in training_data] == [
        (2, 0, "CC0-1.0"),
        (0, 1, "Apache-2.0"),
    ]
    refused = dca("train", "-o", tmp_path / "other", "--synthesize", tmp_path / "nowhere")
    assert refused.code == 2 and "nowhere is not a folder" in refused.err
