"""`Scan`: what a reader gives, the core upscales and a writer takes. No I/O, no file format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import grid, sizes
from .errors import ImageError
from .intensity import rescaled
from .measure import UNKNOWN, Fractions
from .sizes import AxisScales

FARTHEST, _SMALLEST = 1e9, 1e-30  # mm of a place, mm³ of a voxel: headers hold them in single precision


def is_place(axes: NDArray[np.float64]) -> bool:
    """Whether a matrix from array indices to mm, or its part without the origin, names a place: it is finite and not flat."""
    return bool(np.abs(axes).max() < FARTHEST and abs(np.linalg.det(axes)) > _SMALLEST)


@dataclass(frozen=True)
class Scan:
    """Pixels, where they lie and what they mean.

    `pixels` are as stored, and their real values are pixels·slope + inter. The first three axes are those of space, axes after
    them count volumes. `affine` (4, 4) maps array indices to mm towards right, front and head, and `spacing` is the size of a
    voxel in mm along the axes of space; a picture has neither. `header` is its reader's, for a writer of the same format;
    `scales` are how much finer than `header` says the voxels are.
    """

    pixels: NDArray[Any] = field(repr=False)
    spacing: tuple[float, ...] = ()
    affine: NDArray[np.float64] | None = field(default=None, repr=False)
    stack: int | None = None  # the array axis across which slices lie, where the format says so
    slope: float = 1.0
    inter: float = 0.0
    labels: bool = False  # numbers are names, with nothing between them
    alike: bool = False  # the fourth axis is time: all volumes have one intensity range
    seconds: float = 0.0  # between volumes
    colour: bool = False  # axis 0 is red, green and blue
    acquired: Fractions = UNKNOWN  # of each array axis, as the header says
    padding: tuple[float, float] | None = None  # stored values from … to … stand for no value
    header: Any = field(default=None, repr=False)
    scales: AxisScales = sizes.UNSCALED
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    @cached_property
    def axis(self) -> int:
        """The array axis across which slices lie: by the format, or the last with one slice, or the last thickest (to 1 %).

        Raises ImageError where the header does not tell.
        """
        if self.stack is not None:
            return self.stack
        if self.pixels.ndim < 2:
            raise ImageError(f"the volume has shape {self.shape}: give two axes or more")
        if self.pixels.ndim == 2:
            return 2
        if not np.isfinite(self.spacing).all():
            raise ImageError(f"the voxel spacing is {self.spacing} mm: repair the header's pixdim, or choose the axis")
        single = [k for k in range(3) if self.shape[k] == 1]
        return max(single or (k for k in range(3) if self.spacing[k] * 1.01 >= max(self.spacing)))

    @property
    def in_plane(self) -> tuple[int, ...]:
        """The array axes of a slice."""
        return tuple(k for k in range(min(3, self.pixels.ndim)) if k != self.axis)

    def across(self, axis: int | None) -> Scan:
        """The scan with its slices across another axis, if one is given. Raises ImageError for what is no axis of space."""
        if axis is None:
            return self
        if self.affine is None:
            raise ImageError(f"axis {axis!r} was given for a picture, which has no slices to lie across it: leave it out")
        if axis not in range(3) or self.pixels.ndim == 2:
            raise ImageError(
                f"axis is {axis!r}, the volume {self.shape}: give the array axis across which slices lie, 0, 1 or 2"
            )
        return replace(self, stack=axis)

    def real(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The real values of some of its pixels."""
        return rescaled(pixels, self.slope, self.inter)

    def finer_than(self, other: Scan) -> AxisScales:
        """How much finer its voxels are than those of a scan that it was made of."""
        rows, cols, rest = (new / old for new, old in zip(self.scales, other.scales))
        return rows, cols, rest

    def finer(self, pixels: NDArray[Any], scales: AxisScales, stored: bool = True) -> Scan:
        """The scan with finer `pixels`: every point stays in its place. Those that are not as `stored` are real values."""
        scaled: dict[str, Any] = {} if stored else {"slope": 1.0, "inter": 0.0}
        if self.affine is not None:
            scaled["affine"] = grid.upscaled_affine(self.affine, scales)
        spacing = tuple(size / float(r) for size, r in zip(self.spacing, scales))
        rows, cols, rest = (old * new for old, new in zip(self.scales, scales))
        return replace(self, pixels=pixels, spacing=spacing, stack=self.axis, scales=(rows, cols, rest), **scaled)
