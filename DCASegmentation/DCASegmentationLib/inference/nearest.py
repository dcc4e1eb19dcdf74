"""A map of the model grid on the CT's grid: each voxel of the CT takes the value of the model voxel nearest to it.

As resampling with nearest neighbors, only that the axes of both grids run along each other, so an index for each axis
is all that it takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid

Bytes = NDArray[np.uint8]
Indices = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]


class NearestVoxel:
    """For each axis (z, y, x) of ``model`` the model voxel nearest to each CT voxel along it.

    ``model`` is a grid whose axes are those of ``ct``, permuted and flipped (``imaging.grid.model_grid``).
    """

    def __init__(self, model: Grid, ct: Grid) -> None:
        to_model = np.linalg.inv(model.axes * np.array(model.spacing))
        steps = to_model @ (ct.axes * np.array(ct.spacing))
        start = to_model @ (np.array(ct.origin) - np.array(model.origin))
        indices, order = [], []
        for axis in (2, 1, 0):
            along = int(np.argmax(np.abs(steps[axis])))
            position = start[axis] + steps[axis, along] * np.arange(ct.size[along])
            indices.append(np.clip(np.rint(position), 0, model.size[axis] - 1).astype(np.intp))
            order.append(2 - along)
        self.indices: Indices = (indices[0], indices[1], indices[2])
        self._order = tuple(order)

    def along_model(self, on_ct: Bytes) -> Bytes:
        """A view of an array (z, y, x) of the CT whose axes follow the model's; writing into it writes ``on_ct``."""
        return on_ct.transpose(self._order)

    def reached(self, values: Bytes) -> Bytes:
        """The part of a model map that any CT voxel takes its value from."""
        z, y, x = (np.unique(index) for index in self.indices)
        return values[np.ix_(z, y, x)]

    def plane(self, values: Bytes, z: int) -> Bytes:
        """Plane ``z`` of a model map at the CT's voxels along the model's y and x."""
        _, y, x = self.indices
        return values[z].take(y, axis=0).take(x, axis=1)

    def on_ct(self, values: Bytes, ct: Grid) -> Bytes:
        """A whole model map on the CT's grid (z, y, x)."""
        result = np.empty(ct.shape, np.uint8)
        for out, z in zip(self.along_model(result), self.indices[0], strict=True):
            out[...] = self.plane(values, z)
        return result
