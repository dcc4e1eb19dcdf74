"""The parts of phantoms: distances to shapes, partial volume at boundaries, and posture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dcaseg.synthesis.phantom.body import Body
from dcaseg.synthesis.phantom.materials import Hollow, RenderTarget, Solid
from dcaseg.synthesis.phantom.person import BodyWarp, Contrast, Person
from dcaseg.synthesis.phantom.shapes import MARGIN, Capsule, Ellipsoid, smooth_minimum, tube
from dcaseg.synthesis.phantom.structure import SampleGrid, Structure, create_empty_distance, place

CUBE = ((-60.0, -60.0, -60.0), (60.0, 60.0, 60.0))


@pytest.fixture(scope="module")
def person() -> Person:
    return Person.draw(5)


@pytest.fixture
def cube(person: Person) -> SampleGrid:
    return SampleGrid.from_box(CUBE, 3.0, Body(person))


def test_distance_to_a_sphere_is_exact(cube: SampleGrid) -> None:
    distance = Ellipsoid((5, 0, 0), (20, 20, 20))(cube.x, cube.y, cube.z)

    expected = np.sqrt((cube.x - 5) ** 2 + cube.y**2 + cube.z**2) - 20
    far = expected > -15  # the first-order distance has no gradient near the center
    assert np.allclose(distance[far], expected[far], atol=1e-3)


def test_distance_to_a_rotated_ellipsoid_is_zero_on_its_surface() -> None:
    ellipsoid = Ellipsoid((0, 0, 0), (10, 20, 30), (0, 0, 90))

    tips = np.array([[20.0, 0, 0], [0, 10, 0], [0, 0, 30]], dtype=np.float32)
    assert np.allclose(ellipsoid(*tips.T), 0, atol=1e-4)


def test_distance_to_a_capsule_is_exact(cube: SampleGrid) -> None:
    distance = Capsule((0, 0, -20), (0, 0, 20), 8, 8)(cube.x, cube.y, cube.z)

    beyond = np.maximum(np.abs(cube.z) - 20, 0)
    assert np.allclose(distance, np.sqrt(cube.x**2 + cube.y**2 + beyond**2) - 8, atol=1e-3)


@pytest.mark.parametrize(
    "shape",
    [Ellipsoid((3, 4, 5), (10, 20, 30), (20, 30, 40)), Capsule((-10, 0, 5), (15, 10, -5), 6, 12, flatness=1.5)],
    ids=["ellipsoid", "capsule"],
)
def test_the_box_of_a_shape_contains_all_points_near_it(shape: Ellipsoid | Capsule, cube: SampleGrid) -> None:
    near = shape(cube.x, cube.y, cube.z) < 0.75 * MARGIN
    low, high = shape.box

    for axis, values in enumerate((cube.x, cube.y, cube.z)):
        assert values[near].min() >= low[axis]
        assert values[near].max() <= high[axis]


@pytest.mark.parametrize("regular", [True, False])
def test_a_part_of_a_block_is_found_by_its_box(cube: SampleGrid, regular: bool) -> None:
    if not regular:
        cube = replace(cube, axes=None)
    part = cube.find_slices(((-10, -20, 30), (10, 0, 50)))

    assert part is not None
    outside = np.ones(cube.x.shape, dtype=bool)
    outside[part] = False
    inside = (np.abs(cube.x) <= 10) & (cube.y >= -20) & (cube.y <= 0) & (cube.z >= 30) & (cube.z <= 50)
    assert not (inside & outside).any()
    assert cube.find_slices(((100, 0, 0), (120, 10, 10))) is None


def test_a_tube_passes_through_its_points_with_their_radii() -> None:
    points = [(0.0, 0.0, 0.0), (20.0, 10.0, 0.0), (40.0, 0.0, 10.0)]
    capsules = tube(points, [5, 7, 9], pieces=3)

    for point, radius in zip(points, [5, 7, 9], strict=True):
        xyz = [np.array([value], dtype=np.float32) for value in point]
        assert min(float(capsule(*xyz)[0]) for capsule in capsules) == pytest.approx(-radius, abs=0.6)


def test_a_fillet_only_adds_to_a_union() -> None:
    a, b = np.linspace(-10, 10, 41), np.linspace(10, -10, 41)

    rounded = smooth_minimum(a, b, 4.0)
    assert (rounded <= np.minimum(a, b)).all()
    assert rounded[20] == pytest.approx(-1.0)
    assert rounded[0] == -10


def test_a_later_structure_leaves_a_fat_plane_to_an_earlier_one(cube: SampleGrid) -> None:
    occupied = create_empty_distance(cube)
    free = {"wall_gap": None, "diaphragm_gap": None, "material": Solid("liver")}
    first = Structure("first", (Ellipsoid((-10, 0, 0), (20, 20, 20)),), **free)  # type: ignore[arg-type]
    second = Structure("second", (Ellipsoid((10, 0, 0), (20, 20, 20)),), gap=4.0, **free)  # type: ignore[arg-type]

    inside = []
    for structure in (first, second):
        placed = place(structure, cube, occupied)
        assert placed is not None
        mask = np.zeros(cube.x.shape, dtype=bool)
        mask[placed[0]] = placed[1] < 0
        inside.append(mask)
    assert not (inside[0] & inside[1]).any()
    to_first = np.sqrt((cube.x + 10) ** 2 + cube.y**2 + cube.z**2) - 20
    assert to_first[inside[1]].min() > 3.9


def test_a_voxel_on_a_boundary_gets_a_mixture_of_both_sides(person: Person) -> None:
    contrast = Contrast.from_person(person, "portal_venous")
    hu = np.full(5, -100.0, dtype=np.float32)
    distance = np.array([-4.0, -1.0, 0.0, 1.0, 4.0], dtype=np.float32)
    canvas = RenderTarget(hu, np.zeros(5), np.zeros(5), np.zeros(5), blur=4.0, contrast=contrast)

    canvas.blend(distance, 100.0)

    assert hu.tolist() == pytest.approx([100.0, 50.0, 0.0, -50.0, -100.0])


def test_gas_rises_to_the_front_of_a_hollow_organ(person: Person) -> None:
    contrast = Contrast.from_person(person, "none")
    hu = np.zeros(2, dtype=np.float32)
    canvas = RenderTarget(hu, np.array([-20.0, 20.0]), np.zeros(2), np.zeros(2), blur=1.0, contrast=contrast)

    Hollow("gastric_wall", "gastric_content", gas_in_front_of=0.0).paint(canvas, np.full(2, -15.0, dtype=np.float32))

    assert hu[0] == pytest.approx(contrast.hu["gas"])
    assert hu[1] == pytest.approx(contrast.hu["gastric_content"])


@pytest.mark.parametrize("seed", range(5))
def test_posture_never_folds_the_body_and_its_volume_factor_is_correct(seed: int) -> None:
    posture = BodyWarp.from_person(Person.draw(seed))
    axis = np.linspace(-150, 150, 7)
    x, y, z = np.meshgrid(axis, axis, axis)
    h = 0.01

    jacobian = np.empty((*x.shape, 3, 3))
    for column, (dx, dy, dz) in enumerate(np.eye(3) * h):
        ahead = posture.to_reference(x + dx, y + dy, z + dz)
        behind = posture.to_reference(x - dx, y - dy, z - dz)
        for row in range(3):
            jacobian[..., row, column] = (ahead[row] - behind[row]) / (2 * h)
    shrinkage = np.linalg.det(jacobian)

    assert shrinkage.min() > 0.3
    factor = posture.compute_volume_factor(*posture.to_reference(x, y, z))
    assert np.abs(factor * shrinkage - 1).mean() < 0.02
