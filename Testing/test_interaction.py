"""Correction with clicks: what changes, what must not change, and which input is refused."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import UserError
from dcaseg.imaging.grid import Grid
from dcaseg.imaging.intensity import compute_voxel_checksum
from dcaseg.imaging.writers import write_image
from dcaseg.interaction.random_walker import RandomWalkerEngine, SeededRandomWalker, solve
from dcaseg.interaction.session import BOX_MM, CorrectionSession
from dcaseg.interaction.session_requests import Sessions, handle
from dcaseg.interaction.strokes import Stroke, rasterize, to_indices, to_point
from dcaseg.synthesis.phantom.case import generate
from scene_case import small_ct, small_labels

NAMES = {1: "spleen", 2: "liver", 3: "stomach"}
SPLEEN, LIVER = 1, 2


def ball(shape, center, radius_mm, spacing=(2.0, 2.0, 2.0)):
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    steps = spacing[::-1]
    return sum(((axis - c) * s) ** 2 for axis, c, s in zip((z, y, x), center, steps, strict=True)) <= radius_mm**2


class Scene:
    """A spleen and a liver with two gray values in fat, surrounded by air; 2 mm voxels on an oblique grid."""

    def __init__(self, shape=(70, 70, 70), spacing=(2.0, 2.0, 2.0), axes=(-1, 0, 0, 0, 0, 1, 0, 1, 0)):
        random = np.random.default_rng(0)
        self.spacing = spacing
        self.spleen_at = tuple(n // 2 for n in shape)
        self.liver_at = (shape[0] // 2, shape[1] // 2, shape[2] // 2 + round(34 / spacing[0]))
        self.spleen = ball(shape, self.spleen_at, 20.0, spacing)
        self.liver = ball(shape, self.liver_at, 16.0, spacing) & ~self.spleen
        hu = np.full(shape, -100.0)
        hu[self.spleen] = 110
        hu[self.liver] = 60
        hu += random.normal(0, 12, shape)
        hu[:3] = -1000
        self.grid = Grid(shape[::-1], spacing, (-31.0, 47.0, 12.0), tuple(float(value) for value in axes))
        self.ct = self.grid.make_image(np.rint(hu).astype(np.int16))

    def labels(self, spleen=None, liver=None):
        array = np.zeros(self.spleen.shape, np.uint8)
        array[self.spleen if spleen is None else spleen] = SPLEEN
        array[self.liver if liver is None else liver] = LIVER
        return self.grid.make_image(array)

    def session(self, labels=None, **options):
        return CorrectionSession(self.ct, self.labels() if labels is None else labels, NAMES, **options)

    def stroke(self, *voxels, add=None):
        return Stroke(tuple(to_point(voxel, self.grid) for voxel in voxels), add)


@pytest.fixture(scope="module")
def scene():
    return Scene()


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_click_restores_a_missing_organ(scene):
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen)))
    change = session.apply(SPLEEN, scene.stroke(scene.spleen_at))
    assert change.adds
    assert dice(session.labels == SPLEEN, scene.spleen) > 0.85
    # The neighbor with another gray value loses little.
    assert (session.labels == LIVER).sum() > 0.85 * scene.liver.sum()


@pytest.mark.parametrize("margin_mm", [4.0, 12.0])
def test_a_box_adds_a_missing_organ_inside_of_it(scene, margin_mm):
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen)))
    half = np.full(3, 20.0 + margin_mm)
    middle = np.array(to_point(scene.spleen_at, scene.grid))
    change = session.apply(SPLEEN, Stroke.click(*middle, True), (tuple(middle - half), tuple(middle + half)))
    assert dice(session.labels == SPLEEN, scene.spleen) > 0.9
    rest = np.ones(scene.spleen.shape, bool)
    rest[change.box] = False
    assert not (session.labels[rest] == SPLEEN).any()


def test_a_click_outside_the_mask_adds_the_missing_half(scene):
    half = scene.spleen.copy()
    half[:, : scene.spleen_at[1]] = False
    session = scene.session(scene.labels(spleen=half))
    z, y, x = scene.spleen_at
    change = session.apply(SPLEEN, scene.stroke((z, y - 5, x)))
    assert change.adds
    assert change.added > 0.6 * (scene.spleen & ~half).sum()
    assert dice(session.labels == SPLEEN, scene.spleen) > 0.93


def test_a_click_inside_the_mask_removes_a_leak(scene):
    leak = ball(scene.spleen.shape, (scene.spleen_at[0], scene.spleen_at[1] - 16, scene.spleen_at[2]), 14.0)
    leaked = scene.spleen | leak
    session = scene.session(scene.labels(spleen=leaked))
    z, y, x = scene.spleen_at
    before = dice(leaked, scene.spleen)
    change = session.apply(SPLEEN, scene.stroke((z, y - 17, x)))
    assert not change.adds
    assert change.removed > 0.5 * (leaked & ~scene.spleen).sum()
    assert dice(session.labels == SPLEEN, scene.spleen) > before + 0.05


def test_neighbors_give_up_wrong_voxels_which_are_counted(scene):
    swapped = scene.liver.copy()
    half = scene.spleen.copy()
    half[:, :, scene.spleen_at[2] :] = False
    swapped |= scene.spleen & ~half
    session = scene.session(scene.labels(spleen=half, liver=swapped))
    z, y, x = scene.spleen_at
    before = session.labels.copy()
    change = session.apply(SPLEEN, scene.stroke((z, y, x + 5)))
    now = session.labels
    assert change.voxels_lost == {LIVER: int(((before == LIVER) & (now == SPLEEN)).sum())}
    assert change.voxels_lost[LIVER] > 0.6 * (scene.spleen & ~half).sum()


def test_earlier_strokes_remain_in_effect_after_later_ones(scene):
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen)))
    z, y, x = scene.spleen_at
    places = [((z, y, x), True), ((z, y + 15, x), False), ((z + 6, y, x), True), ((z, y, x - 14), False)]
    for count, (voxel, add) in enumerate(places, start=1):
        session.apply(SPLEEN, scene.stroke(voxel, add=add))
        for earlier, belongs in places[:count]:
            assert (session.labels[earlier] == SPLEEN) == belongs


def test_a_stroke_that_agrees_with_the_mask_changes_nothing_but_constrains_later_ones(scene):
    session = scene.session()
    z, y, x = scene.spleen_at
    assert session.apply(SPLEEN, scene.stroke((z, y, x), add=True)).changed == 0
    assert session.apply(SPLEEN, scene.stroke((2, y, x), add=False)).changed == 0
    assert len(session.changes) == 2
    session.apply(SPLEEN, scene.stroke((z, y, x - 2), add=False))
    assert session.labels[z, y, x] == SPLEEN


def test_a_click_that_adds_never_removes_more_than_it_adds(scene):
    class Destroyer:
        name = "destroyer"

        def predict_foreground(self, view):
            return np.zeros(view.mask.shape, np.float32)

    half = scene.spleen.copy()
    half[:, : scene.spleen_at[1]] = False
    session = scene.session(scene.labels(spleen=half), engine=Destroyer())
    z, y, x = scene.spleen_at
    session.apply(SPLEEN, scene.stroke((z, y - 5, x)))
    assert (session.labels[half] == SPLEEN).all()
    assert session.labels[z, y - 5, x] == SPLEEN


@pytest.mark.parametrize("adds", [True, False])
def test_a_click_changes_one_piece_around_it_in_its_direction_only(scene, adds):
    """Both ends of the spleen are wrong, and its whole border by a voxel in the other direction."""
    z, y, x = scene.spleen_at
    shape, spacing = scene.spleen.shape, scene.spacing
    ends = [ball(shape, (z, y + side * 10, x), 9.0, spacing) & (scene.spleen == adds) for side in (-1, 1)]
    if not adds:
        ends = [ball(shape, (z, y + side * 14, x), 9.0, spacing) & ~scene.spleen for side in (-1, 1)]
    wrong_border = ball(shape, scene.spleen_at, 22.0 if adds else 18.0, spacing)
    start = (wrong_border & ~(ends[0] | ends[1])) if adds else (wrong_border | ends[0] | ends[1])
    session = scene.session(scene.labels(spleen=start))
    # Where the liver overlaps it, the label map has the liver.
    start = np.array(session.labels == SPLEEN)
    click = tuple(int(each) for each in np.argwhere(ends[0]).mean(axis=0).round())
    assert start[click] != adds
    change = session.apply(SPLEEN, scene.stroke(click, add=adds))
    after = session.labels == SPLEEN
    assert (change.removed if adds else change.added) == 0
    changed = after != start
    assert changed[ends[0]].mean() > 0.4
    assert not changed[ends[1]].any(), "the other end was not clicked"
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(changed.astype(np.uint8))))
    assert pieces.max() == 1


def test_a_click_for_one_organ_is_not_overwritten_by_the_next_organ(scene):
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen), liver=np.zeros_like(scene.liver)))
    own = scene.liver_at
    session.apply(LIVER, scene.stroke(own, add=True))
    session.apply(SPLEEN, scene.stroke(scene.spleen_at, add=True))
    assert session.labels[own] == LIVER


@pytest.mark.slow
def test_undo_restores_every_voxel_stroke_by_stroke(scene):
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen)))
    z, y, x = scene.spleen_at
    states = [session.labels.copy()]
    for label, voxel in ((SPLEEN, (z, y, x)), (LIVER, (z, y, x + 6)), (SPLEEN, (z, y + 12, x)), (3, (z - 12, y, x))):
        session.apply(label, scene.stroke(voxel, add=True))
        states.append(session.labels.copy())
    assert all((a != b).any() for a, b in pairwise(states))
    for state in reversed(states[:-1]):
        session.undo()
        assert np.array_equal(session.labels, state)
    with pytest.raises(UserError, match="no click to undo"):
        session.undo()
    # An undone stroke is forgotten, so its opposite is not a contradiction.
    session.apply(SPLEEN, scene.stroke((z, y, x), add=True))


def test_the_input_labels_never_change(scene):
    labels = scene.labels(spleen=np.zeros_like(scene.spleen))
    before = sitk.GetArrayFromImage(labels)
    session = scene.session(labels)
    session.apply(SPLEEN, scene.stroke(scene.spleen_at))
    assert np.array_equal(sitk.GetArrayFromImage(labels), before)
    with pytest.raises(ValueError, match="read-only"):
        session.labels[0, 0, 0] = 1


def test_locked_organs_keep_every_voxel(scene):
    liver = scene.liver | (scene.spleen & ball(scene.spleen.shape, scene.liver_at, 26.0))
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen), liver=liver), locked=[LIVER])
    kept = session.labels == LIVER
    z, y, x = scene.spleen_at
    change = session.apply(SPLEEN, scene.stroke((z, y, x - 4)))
    assert change.added and not change.voxels_lost
    assert np.array_equal(session.labels == LIVER, kept)


@pytest.mark.parametrize("engine", [RandomWalkerEngine(), SeededRandomWalker()], ids=lambda each: each.name)
def test_nothing_changes_outside_the_users_box(scene, engine):
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen)), engine=engine)
    z, y, x = scene.spleen_at
    before = session.labels.copy()
    corners = (to_point((z - 4, y - 4, x - 4), scene.grid), to_point((z + 3, y + 5, x + 6), scene.grid))
    session.apply(SPLEEN, scene.stroke((z, y, x)), corners)
    changed = np.argwhere(session.labels != before)
    assert len(changed)
    assert (changed >= (z - 4, y - 4, x - 4)).all() and (changed <= (z + 3, y + 5, x + 6)).all()


def test_nothing_changes_beyond_the_block_around_a_click():
    shape = (20, 90, 90)
    hu = np.full(shape, 60.0) + np.random.default_rng(1).normal(0, 5, shape)
    grid = Grid(shape[::-1], (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    ct = grid.make_image(hu.astype(np.int16))
    start = np.zeros(shape, np.uint8)
    start[:, 40:51, 30:40] = LIVER
    session = CorrectionSession(ct, grid.make_image(start), NAMES)
    session.apply(LIVER, Stroke((to_point((10, 45, 45), grid),)))
    changed = np.argwhere(session.labels != start)
    assert len(changed) > 100
    assert (np.abs(changed - (10, 45, 45)) * 3.0 <= BOX_MM / 2 + 3.0).all()


def tube_scene(spacing):
    """A vessel of 240 mm with 20 mm in diameter, bent, in fat. ``spacing``: (x, y, z) in mm, with slices of 3 mm."""
    shape = (84, round(150 / spacing[1]), round(150 / spacing[0]))
    grid = Grid(shape[::-1], spacing, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    z, y, x = np.ogrid[tuple(slice(0, size) for size in shape)]
    square = (y * spacing[1] - 75 - 18 * np.sin(z / 20)) ** 2 + (x * spacing[0] - 75) ** 2
    vessel = (square <= 10**2) & (z >= 2) & (z < 82)
    hu = np.where(vessel, 150.0, -100.0) + np.random.default_rng(3).normal(0, 10, shape)
    return grid, vessel, grid.make_image(hu.astype(np.int16))


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (1.25, 1.0, 3.0)])
def test_a_missing_organ_is_followed_beyond_the_block(spacing):
    grid, vessel, ct = tube_scene(spacing)
    labels = np.zeros(vessel.shape, np.uint8)
    rows, columns = (slice(round(a / b), round(c / b)) for a, c, b in ((60, 90, spacing[1]), (45, 105, spacing[0])))
    labels[74:79, rows, columns] = SPLEEN
    session = CorrectionSession(ct, grid.make_image(labels), {1: "spleen", 8: "aorta"}, locked=[SPLEEN])
    at = np.argwhere(vessel[42]).mean(axis=0).round().astype(int)
    change = session.apply(8, Stroke((to_point((42, *at), grid),)))
    found = session.labels == 8
    # The block around the click holds 96 of 240 mm, and the locked segment cuts the vessel off.
    reachable = vessel & (np.arange(84)[:, None, None] < 74) & (labels == 0)
    assert dice(found, reachable) > 0.8
    assert change.added == found.sum() and change.before.shape == session.labels[change.box].shape
    assert (session.labels[labels == SPLEEN] == SPLEEN).all()
    session.undo()
    assert np.array_equal(session.labels, labels)


def test_a_missing_organ_is_not_followed_beyond_its_usual_volume():
    shape = (40, 90, 90)
    hu = np.full(shape, 60.0) + np.random.default_rng(1).normal(0, 5, shape)
    grid = Grid(shape[::-1], (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    ct, empty = grid.make_image(hu.astype(np.int16)), grid.make_image(np.zeros(shape, np.uint8))
    for names in ({2: "gallbladder"}, {}):
        # A segment that the vocabulary does not know is not followed at all.
        session = CorrectionSession(ct, empty, names)
        session.apply(2, Stroke((to_point((20, 45, 45), grid),)))
        changed = np.argwhere(session.labels != 0)
        assert (np.abs(changed - (20, 45, 45)) * 3.0 <= BOX_MM / 2 + 3.0).all()


def test_fine_voxels_keep_their_borders_where_a_coarse_view_changes_nothing():
    fine = Scene((60, 150, 150), (0.7, 0.7, 2.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    bitten = fine.spleen & ~ball(fine.spleen.shape, (30, 60, 75), 9.0, fine.spacing)
    session = fine.session(fine.labels(spleen=bitten))
    before = session.labels.copy()
    change = session.apply(SPLEEN, fine.stroke((30, 60, 75)))
    assert change.added > 0.6 * (fine.spleen & ~bitten).sum()
    assert dice(session.labels == SPLEEN, fine.spleen) > dice(bitten, fine.spleen)
    changed = session.labels != before
    # The smooth border of a coarse answer would differ from the mask in thousands of voxels.
    assert changed.sum() < 2.5 * (fine.spleen & ~bitten).sum()


def test_a_scribble_is_one_undo_step_and_all_of_its_points_count(scene):
    session = scene.session(scene.labels(spleen=np.zeros_like(scene.spleen)))
    z, y, x = scene.spleen_at
    line = scene.stroke((z, y - 7, x), (z, y + 7, x), (z + 5, y + 7, x), add=True)
    session.apply(SPLEEN, line)
    voxels = rasterize(line.points, scene.grid)
    assert len(voxels) > 15
    assert (session.labels[tuple(voxels.T)] == SPLEEN).all()
    session.undo()
    assert not (session.labels == SPLEEN).any()


def test_points_are_in_ras_millimeters_on_any_grid():
    image = generate(3, spacing=(7.0, 6.0, 8.0), orientation="PSL", tilt_degrees=8).ct
    grid = Grid.from_image(image)
    for index in ((0, 0, 0), (3, 5, 7), tuple(n - 1 for n in grid.shape)):
        point = to_point(index, grid)
        lps = image.TransformIndexToPhysicalPoint(tuple(int(i) for i in index[::-1]))
        assert np.allclose(point, (-lps[0], -lps[1], lps[2]))
        assert to_indices([point], grid).tolist() == [list(index)]


def test_the_solver_solves_its_documented_system():
    random = np.random.default_rng(3)
    shape = (5, 6, 7)
    hu = random.normal(0, 30, shape).astype(np.float32)
    prior, weight = random.random(shape).astype(np.float32), (0.2 + random.random(shape)).astype(np.float32)
    spacing = (1.0, 1.0, 2.5)
    found = solve(hu, spacing, prior, weight, 0.002, prior, 500, 1e-7)
    count = hu.size
    index = np.arange(count).reshape(shape)
    matrix = np.diag(weight.ravel().astype(float))
    for axis, step in enumerate((2.5, 1.0, 1.0)):
        low = [slice(None)] * 3
        high = [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        edges = (np.exp(-0.002 * (hu[tuple(low)] - hu[tuple(high)]) ** 2) + 1e-3) / step**2
        for i, j, w in zip(index[tuple(low)].ravel(), index[tuple(high)].ravel(), edges.ravel(), strict=True):
            matrix[i, i] += w
            matrix[j, j] += w
            matrix[i, j] -= w
            matrix[j, i] -= w
    expected = np.linalg.solve(matrix, (weight * prior).ravel().astype(float)).reshape(shape)
    assert np.allclose(found, expected, atol=1e-4)


def _bad_inputs(scene):
    z, y, x = scene.spleen_at
    inside, air = scene.stroke((z, y, x), add=True), scene.stroke((1, y, x), add=True)
    return {
        "lies outside the CT": (SPLEEN, Stroke.click(5000, 0, 0)),
        "lies in air": (SPLEEN, air),
        "is locked or accepted": (LIVER, scene.stroke(scene.liver_at, add=True)),
        "which is locked or accepted": (SPLEEN, scene.stroke(scene.liver_at, add=True)),
        "no stomach near this point to remove": (3, scene.stroke((z, y, x), add=False)),
        "Segment 0 does not exist": (0, inside),
        "Segment 900 does not exist": (900, inside),
        "contradicts an earlier one": (SPLEEN, scene.stroke((z, y, x), add=False)),
    }


@pytest.mark.parametrize("message", list(_bad_inputs(Scene((20, 70, 70)))))
def test_invalid_strokes_are_refused_and_change_nothing(scene, message):
    session = scene.session(locked=[LIVER])
    session.apply(SPLEEN, scene.stroke(scene.spleen_at, add=True))
    before, steps = session.labels.copy(), len(session.changes)
    label, stroke = _bad_inputs(scene)[message]
    with pytest.raises(UserError, match=message) as caught:
        session.apply(label, stroke)
    assert caught.value.remedy
    assert np.array_equal(session.labels, before)
    assert len(session.changes) == steps
    # Nor is the refused stroke recorded.
    session.apply(SPLEEN, scene.stroke(scene.spleen_at, add=True))


def test_a_point_outside_its_box_and_an_empty_box_are_refused(scene):
    session = scene.session()
    z, y, x = scene.spleen_at
    far = (to_point((5, 5, 5), scene.grid), to_point((9, 9, 9), scene.grid))
    with pytest.raises(UserError, match="outside the box"):
        session.apply(SPLEEN, scene.stroke((z, y, x)), far)
    with pytest.raises(UserError, match="no voxels"):
        session.apply(SPLEEN, scene.stroke((z, y, x)), ((9000.0, 0, 0), (9100.0, 10.0, 10.0)))


def test_gas_in_a_hollow_organ_can_be_clicked(scene):
    hu = sitk.GetArrayFromImage(scene.ct)
    z, y, x = scene.spleen_at
    gas = ball(hu.shape, (z, y, x), 8.0)
    hu[gas] = -900
    session = CorrectionSession(scene.grid.make_image(hu), scene.labels(spleen=np.zeros_like(gas)), NAMES)
    session.apply(3, scene.stroke((z, y, x), add=True))
    assert (session.labels == 3).sum() > 0.5 * gas.sum()
    # A new segment that is not in the vocabulary.
    session.undo()
    session.apply(9, scene.stroke((z, y, x), add=True))
    assert session.labels[z, y, x] == 9


def test_a_segmentation_on_another_grid_is_refused(scene):
    shifted = scene.labels()
    shifted.SetOrigin((0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="grid") as caught:
        scene.session(shifted)
    assert "transform" in caught.value.remedy


def test_a_ct_that_has_changed_is_refused(scene):
    right = compute_voxel_checksum(sitk.GetArrayViewFromImage(scene.ct))
    scene.session(checksum=right)
    other = sitk.GetArrayFromImage(scene.ct)
    other[30, 30, 30] += 1
    with pytest.raises(UserError, match="changed"):
        CorrectionSession(scene.grid.make_image(other), scene.labels(), NAMES, checksum=right)


@pytest.mark.parametrize(
    ("points", "message"),
    [((), "at least one point"), (((float("nan"), 0, 0),), "finite"), (((0.0, 0, 0),) * 10_001, "too long")],
)
def test_invalid_points_are_refused(points, message):
    with pytest.raises(UserError, match=message):
        Stroke(points)


@pytest.fixture
def files(scene, tmp_path):
    write_image(scene.ct, tmp_path / "ct.nrrd")
    write_image(scene.labels(spleen=np.zeros_like(scene.spleen)), tmp_path / "labels.nrrd")
    return tmp_path


def _open(files, sessions, **more):
    request = {
        "type": "open",
        "ct": str(files / "ct.nrrd"),
        "labels": str(files / "labels.nrrd"),
        "names": {"1": "spleen", "2": "liver"},
        **more,
    }
    # As it arrives through a pipe.
    return handle(json.loads(json.dumps(request)), sessions)["session"]


def _stroke(scene, files, number, voxel, **more):
    return {
        "type": "stroke",
        "session": number,
        "label": SPLEEN,
        "points": [list(to_point(voxel, scene.grid))],
        "patch": str(files / "patch.nrrd"),
        **more,
    }


def _pasted(labels, answer):
    """The labels of the caller after copying the patch."""
    patch = sitk.GetArrayFromImage(sitk.ReadImage(answer["patch"]))
    (i, j, k), (width, height, depth) = answer["first"], answer["size"]
    labels[k : k + depth, j : j + height, i : i + width] = patch
    return labels


def test_requests_with_plain_data_return_a_patch_and_undo_it(scene, files):
    sessions = Sessions()
    number = _open(files, sessions)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "labels.nrrd")))
    first = labels.copy()
    answer = json.loads(json.dumps(handle(_stroke(scene, files, number, scene.spleen_at), sessions)))
    assert answer["adds"] and answer["added"] == (_pasted(labels, answer) == SPLEEN).sum()
    assert dice(labels == SPLEEN, scene.spleen) > 0.85
    patch = sitk.ReadImage(answer["patch"])
    corner = scene.ct.TransformIndexToPhysicalPoint(answer["first"])
    assert np.allclose(patch.GetOrigin(), corner) and np.allclose(patch.GetDirection(), scene.ct.GetDirection())
    back = handle({"type": "undo", "session": number, "patch": str(files / "patch.nrrd")}, sessions)
    assert np.array_equal(_pasted(labels, back), first)


def test_rewinding_keeps_the_first_strokes_even_if_later_ones_failed(scene, files):
    sessions = Sessions()
    number = _open(files, sessions)
    first = handle(_stroke(scene, files, number, scene.spleen_at), sessions)
    assert first["strokes"] == 1
    kept = sessions.get(number).labels.copy()
    with pytest.raises(UserError):
        handle(_stroke(scene, files, number, scene.spleen_at, points=[[1e4, 0, 0]]), sessions)
    handle(_stroke(scene, files, number, scene.liver_at, add=True), sessions)
    for _again in range(2):
        assert handle({"type": "rewind", "session": number, "strokes": 1}, sessions) == {"strokes": 1}
        assert np.array_equal(sessions.get(number).labels, kept)
    for strokes in (-1, None, "1"):
        with pytest.raises(UserError, match="how many strokes"):
            handle({"type": "rewind", "session": number, "strokes": strokes}, sessions)


def test_opening_the_same_ct_again_reads_it_only_if_its_file_has_changed(scene, files, monkeypatch):
    read = []
    monkeypatch.setattr(
        "dcaseg.interaction.session_requests.read_ct", lambda path: read.append(path) or sitk.ReadImage(str(path))
    )
    sessions = Sessions()
    _open(files, sessions)
    _open(files, sessions)
    assert len(read) == 1
    write_image(scene.ct + 1, files / "other.nrrd")
    (files / "other.nrrd").replace(files / "ct.nrrd")
    number = _open(files, sessions)
    assert len(read) == 2
    sessions.close(number)
    _open(files, sessions)
    assert len(read) == 3, "a closed session keeps no CT in memory"


def test_a_stroke_whose_patch_cannot_be_written_is_undone(scene, files):
    sessions = Sessions()
    number = _open(files, sessions)
    with pytest.raises(UserError, match="no folder"):
        handle(_stroke(scene, files, number, scene.spleen_at, patch=str(files / "none" / "p.nrrd")), sessions)
    with pytest.raises(UserError, match="no click to undo"):
        handle({"type": "undo", "session": number, "patch": str(files / "patch.nrrd")}, sessions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "dance"}, "type 'dance' do not exist"),
        ({"session": 99}, "session is closed"),
        ({"session": None}, "session is closed"),
        ({"patch": None}, "does not name the file 'patch'"),
        ({"points": [[1, 2]]}, "not valid"),
        ({"label": "spleen"}, "not valid"),
        ({"corners": [[1, 2, 3]]}, "not valid"),
        ({"locked": [SPLEEN]}, "locked"),
    ],
)
def test_invalid_requests_are_refused(scene, files, change, message):
    sessions = Sessions()
    number = _open(files, sessions)
    with pytest.raises(UserError, match=message):
        handle(_stroke(scene, files, number, scene.spleen_at) | change, sessions)


def test_only_the_latest_session_stays_open_until_it_is_closed(scene, files):
    sessions = Sessions()
    first = _open(files, sessions)
    second = _open(files, sessions)
    with pytest.raises(UserError, match="is closed"):
        handle(_stroke(scene, files, first, scene.spleen_at), sessions)
    assert handle({"type": "close", "session": second}, sessions) == {}
    with pytest.raises(UserError, match="is closed"):
        handle(_stroke(scene, files, second, scene.spleen_at), sessions)


def test_one_click_fills_most_of_an_erased_block():
    erased = (slice(12, 20), slice(18, 24), slice(26, 34))
    ct, labels = small_ct(), small_labels()
    array = sitk.GetArrayFromImage(labels)
    label = int(array[16, 21, 30])
    array[erased] = 0
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(labels)
    session = CorrectionSession(ct, image, {label: "spleen"}, [])
    x, y, z = ct.TransformIndexToPhysicalPoint((30, 21, 16))
    session.apply(label, Stroke(((-x, -y, z),), True))
    assert (session.labels[erased] == label).mean() > 0.5


@pytest.mark.parametrize("thickness", [1, 2, 3, 4])
def test_a_click_that_adds_to_a_thin_organ_loses_none_of_it(thickness):
    """A sheet like an adrenal gland, on voxels finer than those of the view, on which it may vanish."""
    shape, spacing = (80, 140, 140), (0.7, 0.7, 1.0)
    z, y, x = np.indices(shape)
    truth = (y >= 70) & (y < 70 + thickness) & (np.abs(x - 70) < 20) & (np.abs(z - 40) < 10)
    hu = np.where(truth, 70, -90) + np.random.default_rng(0).normal(0, 12, shape)
    ct = sitk.GetImageFromArray(hu.astype(np.int16))
    ct.SetSpacing(spacing)
    grid = Grid.from_image(ct)
    mask = truth & (x < 78)
    session = CorrectionSession(ct, grid.make_image(mask.astype(np.uint8)), {1: "left_adrenal_gland"})
    change = session.apply(1, Stroke((to_point((40, 70, 83), grid),), True))
    result = session.labels == 1
    assert change.removed == 0 and (result & mask).sum() == mask.sum()
    assert dice(result, truth) >= dice(mask, truth) - 0.02, "the organ is not taken for a missing one"


def test_nothing_changes_outside_a_box_on_an_oblique_ct():
    """The block of voxels around the box is larger than the box."""
    size, spacing = 60, 2.0
    angle = np.deg2rad(30)
    direction = (np.cos(angle), -np.sin(angle), 0.0, np.sin(angle), np.cos(angle), 0.0, 0.0, 0.0, 1.0)
    organ = ball((size,) * 3, (30, 30, 30), 34.0)
    ct = sitk.GetImageFromArray(np.where(organ, 100, -50).astype(np.int16))
    ct.SetSpacing((spacing,) * 3)
    ct.SetDirection(direction)
    grid = Grid.from_image(ct)
    labels = (organ & (np.indices((size,) * 3)[2] < 30)).astype(np.uint8)
    session = CorrectionSession(ct, grid.make_image(labels), {1: "liver"})
    center = np.array(to_point((30, 30, 34), grid))
    corners = (tuple((center - 15).tolist()), tuple((center + 15).tolist()))
    change = session.apply(1, Stroke((tuple(center.tolist()),), True), corners)
    assert change.added > 100
    changed = np.argwhere(session.labels != labels)
    outside = np.abs([np.array(to_point(voxel, grid)) - center for voxel in changed]).max()
    assert outside <= 15 + 1.5 * spacing / 2, "at most half a voxel, which may be diagonal"


def test_an_undo_whose_patch_cannot_be_written_changes_nothing(scene, files, tmp_path):
    sessions = Sessions()
    number = _open(files, sessions)
    handle(_stroke(scene, files, number, scene.spleen_at), sessions)
    before = sessions.get(number).labels.copy()
    request = {"type": "undo", "session": number, "patch": str(tmp_path / "missing" / "patch.nrrd")}
    with pytest.raises(UserError, match="no folder"):
        handle(request, sessions)
    assert len(sessions.get(number).changes) == 1 and (sessions.get(number).labels == before).all()


def test_opening_another_ct_releases_the_first_one_before_it_is_read(files, tmp_path, monkeypatch):
    sessions = Sessions()
    first = _open(files, sessions)
    other = tmp_path / "other.nrrd"
    shutil.copy(files / "ct.nrrd", other)
    held = []

    def read(path):
        held.append(len(sessions._open))
        return sitk.ReadImage(str(path))

    monkeypatch.setattr("dcaseg.interaction.session_requests.read_ct", read)
    assert _open(files, sessions, ct=str(other)) != first
    assert held == [0]
