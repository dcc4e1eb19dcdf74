"""Spine, pelvis and femurs, and the muscles inside the outline of ``body``. (``rendering`` adds the ribs.)"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .materials import Layered, Solid
from .shapes import Capsule, Ellipsoid, Point, Shape, tube
from .structure import Structure

# Centers of the vertebral bodies: z and y (mm).
_SPINE_Z = (-140.0, -92.0, -56.0, -19.0, 18.0, 54.0, 88.0, 119.0, 148.0, 176.0, 203.0, 229.0, 254.0, 278.0, 301.0)
_SPINE_Y = (46.0, 20.0, 13.0, 12.0, 15.0, 19.0, 25.0, 31.0, 37.0, 42.0, 46.0, 50.0, 52.0, 53.0, 53.0)
_BONE = Layered("cortical_bone", "cancellous_bone", 1.5, texture=22.0)
_MUSCLE = Solid("muscle", 4.0)


def get_spine_y(z: float) -> float:
    """Position of the middle of the spine from front to back (mm) at height ``z`` (mm)."""
    return float(np.interp(z, _SPINE_Z, _SPINE_Y))


def skeleton() -> list[Structure]:
    """The bones except the ribs, which are painted with the chest wall."""
    return [_canal(), _discs(), *_vertebrae(), _sacrum(), *_hips()]


def muscles() -> list[Structure]:
    """Psoas, quadratus lumborum, crura of the diaphragm, and muscles of the pelvis."""
    structures = []
    for side in (-1.0, 1.0):
        psoas = tube(
            [(26 * side, 17, 48), (36 * side, 14, 5), (44 * side, 12, -50), (54 * side, 5, -95), (70 * side, -15, -145),
             (84 * side, -36, -190), (94 * side, -20, -250)],
            [7, 14, 20, 22, 22, 19, 12], pieces=3,
        )  # fmt: skip
        structures.append(_make_unconfined("psoas", psoas, _MUSCLE, gap=0.5))
        quadratus = (Ellipsoid((66 * side, 52, -20), (23, 9, 62), (0, 0, 20 * side)),)
        structures.append(_make_unconfined("quadratus_lumborum", quadratus, _MUSCLE, gap=0.5))
        crus_path = [(8 * side, -3, 30), (13 * side, 0, 70), (16 * side, 4, 105), (11 * side, -4, 140)]
        crus = tube(crus_path, [4, 5, 5, 4], 2)
        structures.append(_make_unconfined("crus", crus, _MUSCLE, gap=0.3))
        piriformis = tube([(20 * side, 62, -165), (60 * side, 62, -185), (110 * side, 40, -200)], [7, 10, 6], 2)
        structures.append(_make_unconfined("piriformis", piriformis, _MUSCLE, gap=0.5))
        # The pelvic floor: slings from the pubic bones around the rectum.
        for z, reach in ((-236.0, 38.0), (-248.0, 29.0), (-259.0, 20.0)):
            sling = [
                (13 * side, -48, z + 2),
                (reach * side, -12, z),
                (0.85 * reach * side, 34, z - 4),
                (3 * side, 57, z),
            ]
            structures.append(_make_unconfined("levator_ani", tube(sling, [3, 4.5, 4.5, 4], 3), _MUSCLE, gap=0.5))
        obturator = tube([(52 * side, -32, -195), (56 * side, 5, -205), (50 * side, 35, -220)], [7, 8, 6], 2)
        structures.append(_make_unconfined("obturator_internus", obturator, _MUSCLE, gap=0.5))
    return structures


def _canal() -> Structure:
    points = [(0.0, get_spine_y(z) + 25.0, z) for z in (-130, -92, -56, -19, 18, 54, 88, 148, 203, 254, 301)]
    return _make_unconfined("spinal_canal", tube(points, 7.0, 2), Solid("spinal_canal", 3.0), gap=None)


def _discs() -> Structure:
    disks = []
    for low, high in pairwise(_SPINE_Z):
        z = (low + high) / 2
        size = _compute_vertebra_size(z)
        disks.append(
            Ellipsoid((0.0, get_spine_y(z), z), (22 * size, 16 * size, 9.0), (_compute_vertebra_tilt(z), 0, 0))
        )
    return _make_unconfined("discs", tuple(disks), Solid("disc", 5.0), gap=0.2)


def _vertebrae() -> list[Structure]:
    bodies: list[Shape] = []
    arches: list[Shape] = []
    for z in _SPINE_Z[1:]:
        y, size = get_spine_y(z), _compute_vertebra_size(z)
        # Three stacked ellipsoids approximate a drum. A flat cut through one ellipsoid would have sharp edges.
        height = 0.40 * (36.0 if z < 70 else 28.0)
        bodies += [
            Ellipsoid(
                (0.0, y, z + shift * height),
                (22.5 * size, 16.5 * size, 0.75 * height),
                (_compute_vertebra_tilt(z), 0, 0),
            )
            for shift in (-0.45, 0.0, 0.45)
        ]
        arches.append(Capsule((0, y + 36, z - 4), (0, y + 58 * size**0.5, z - 14), 4.5, 4.0))
        for side in (-1.0, 1.0):
            arches.append(Capsule((14 * size * side, y + 10, z + 5), (14 * size * side, y + 28, z), 4.5, 5.0))
            arches.append(Capsule((13 * size * side, y + 30, z - 2), (2 * side, y + 37, z - 6), 4.0, 4.0))
            arches.append(Capsule((15 * size * side, y + 29, z), (38 * side, y + 33, z + 2), 4.5, 3.0))
    return [
        _make_unconfined("vertebral_bodies", tuple(bodies), _BONE, gap=0.0, blend=3.0),
        _make_unconfined("vertebral_arches", tuple(arches), _BONE, gap=0.0),
    ]


def _sacrum() -> Structure:
    parts: list[Shape] = [
        Ellipsoid((0, 38, -126), (40, 17, 18), (35, 0, 0)),
        Ellipsoid((0, 58, -152), (42, 13, 19), (45, 0, 0)),
        Ellipsoid((0, 74, -178), (30, 10, 17), (15, 0, 0)),
        *tube([(0, 79, -195), (0, 77, -212), (0, 67, -228)], [9, 7, 4], 2),
    ]
    return _make_unconfined("sacrum", tuple(parts), _BONE, gap=0.0, blend=6.0)


def _hips() -> list[Structure]:
    structures = []
    for side in (-1.0, 1.0):

        def at(x: float, y: float, z: float, side: float = side) -> Point:
            return x * side, y, z

        wing: list[Shape] = [
            Ellipsoid(at(108, 8, -105), (5.5, 52, 46), (0, 28 * side, -22 * side)),
            Ellipsoid(at(66, 55, -125), (9, 24, 34), (0, 20 * side, -52 * side)),
            *tube([at(118, -38, -92), at(128, -5, -68), at(112, 40, -72), at(72, 68, -105)], [5, 5.5, 6, 7], 3),
            *tube([at(68, 52, -140), at(84, 30, -168), at(88, 15, -190)], [11, 12, 14], 2),
            *tube([at(116, -36, -100), at(104, -30, -140), at(92, -20, -178)], [6, 8, 11], 2),
        ]
        socket: list[Shape] = [Ellipsoid(at(88, -4, -203), (31, 31, 31))]
        joint: list[Shape] = [Ellipsoid(at(97, -8, -207), (27, 27, 27))]
        rami: list[Shape] = [
            *tube([at(72, -22, -208), at(42, -52, -212), at(11, -62, -222)], [9, 7, 9], 2),
            Capsule(at(11, -62, -222), at(11, -55, -244), 8, 6),
            *tube([at(11, -55, -244), at(34, -25, -265), at(56, 18, -276)], [6, 6, 11], 2),
            *tube([at(76, 26, -215), at(66, 34, -240), at(57, 24, -274)], [13, 12, 14], 2),
        ]
        head = Ellipsoid(at(94, -8, -206), (23.5, 23.5, 23.5))
        structures.append(_make_unconfined("femoral_head", (head,), _BONE, gap=0.0))
        femur = tube([at(96, -7, -208), at(120, 2, -228), at(134, 8, -246), at(132, 6, -350)], [17, 15, 17, 15], 2)
        structures.append(
            _make_unconfined("femur", (*femur, Ellipsoid(at(144, 16, -232), (13, 16, 20))), _BONE, gap=0.0)
        )
        structures.append(
            Structure("hip_bone", tuple(wing + socket), _BONE, carved=tuple(joint), gap=0.5, wall_gap=None,
                      diaphragm_gap=None, blend=6.0)
        )  # fmt: skip
        structures.append(_make_unconfined("pubis_and_ischium", tuple(rami), _BONE, gap=0.0, blend=3.0))
    return structures


def _compute_vertebra_size(z: float) -> float:
    """Size of a vertebra relative to the second lumbar vertebra; smaller toward the chest."""
    return float(np.interp(z, (-92.0, 18.0, 148.0, 301.0), (1.08, 1.0, 0.82, 0.66)))


def _compute_vertebra_tilt(z: float) -> float:
    """Angle (degrees) by which a vertebra tilts with the curve of the spine."""
    return float(np.degrees(np.arctan2(get_spine_y(z + 12) - get_spine_y(z - 12), 24.0)))


def _make_unconfined(
    key: str, parts: tuple[Shape, ...], material: Layered | Solid, gap: float | None, blend: float = 0.0
) -> Structure:
    return Structure(key, parts, material, gap=gap, wall_gap=None, diaphragm_gap=None, blend=blend)
