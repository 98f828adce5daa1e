"""What size was asked for, as one exact scale for each array axis of a volume. Pure arithmetic, no I/O.

One number, or two, count for the axes within a slice, as everywhere; three count for the array axes 0, 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from . import grid
from .errors import ScaleError

AxisScales = tuple[Fraction, Fraction, Fraction]  # of the array axes 0, 1, 2

SAME = Fraction(1, 10_000)  # spacings as near as this to each other are equal: headers round them to single precision
_LONGEST, _SHORTEST = Fraction(1000), Fraction(1, 1000)  # mm


@dataclass(frozen=True)
class Size:
    """Exactly one way to say how large the output is to be; `in_volume` and `in_slice` turn it into scales."""

    scale: Any = None  # a number as `grid.parse_scale` reads it, or two or three
    shape: Any = None  # two or three whole numbers of pixels
    spacing: Any = None  # mm: a number, or two or three
    isotropic: bool = False  # every axis as fine as the finest

    def __post_init__(self) -> None:
        given = [self.scale is not None, self.shape is not None, self.spacing is not None, self.isotropic is True]
        if sum(given) != 1:
            raise ScaleError(
                f"got scale={self.scale!r}, shape={self.shape!r}, spacing={self.spacing!r} and isotropic={self.isotropic!r}: "
                "give exactly one of them"
            )

    def in_volume(self, shape: Sequence[int], spacing: Sequence[Fraction], axis: int) -> AxisScales:
        """The scales of a volume of `shape` voxels of `spacing` mm whose slices lie across `axis`.

        Raises ScaleError where an axis would get coarser, or finer than can be served.
        """
        size = (*shape, 1)[:3]
        in_plane = [k for k in range(3) if k != axis]
        if self.isotropic:
            wanted = [min(spacing[k] for k in range(3) if size[k] > 1)] * 3
            return _checked([spacing[k] / wanted[k] if size[k] > 1 else Fraction(1) for k in range(3)], spacing, wanted)
        if self.spacing is not None:
            numbers = [parse_spacing(value) for value in _listed("spacing", self.spacing)]
            wanted = _by_axis(numbers, in_plane, list(spacing))
            return _checked([old / new for old, new in zip(spacing, wanted)], spacing, wanted)
        if self.shape is not None:
            sizes = _listed("shape", self.shape, fewest=2)
            axes = in_plane if len(sizes) == 2 else [0, 1, 2]
            grown = list(grid.scales_for_shape([size[k] for k in axes], sizes))
            rows, cols, rest = _by_axis(grown, in_plane, [Fraction(1)] * 3)
            return rows, cols, rest
        scales = [grid.parse_scale(value) for value in _listed("scale", self.scale)]
        rows, cols, rest = _by_axis(scales, in_plane, [Fraction(1)] * 3)
        return rows, cols, rest

    def in_slice(self, shape: Sequence[int]) -> grid.Scales:
        """The scales (rows, columns) of a picture or an array, which has no millimetres."""
        if self.spacing is not None or self.isotropic:
            raise ScaleError("a picture or an array has no spacing in millimetres: give --scale or --shape")
        if self.shape is not None:
            rows, cols = grid.scales_for_shape(tuple(shape), _listed("shape", self.shape, fewest=2))
            return rows, cols
        return grid.parse_scales(self.scale)

    def asked(self) -> dict[str, Any]:
        """The way and its numbers, as text: what a record keeps of the request."""
        if self.isotropic:
            return {"isotropic": True}
        for way, read in (("scale", grid.parse_scale), ("shape", str), ("spacing", parse_spacing)):
            if (value := getattr(self, way)) is not None:
                return {way: [str(read(number)) for number in _listed(way, value)]}
        raise AssertionError("a size without any")


def parse_spacing(value: grid.ScaleLike) -> Fraction:
    """The exact millimetres that a number's decimal text names. Raises ScaleError for what is no length of a voxel."""
    length = grid.parse_number(value, "spacing", "give millimetres, such as 0.5")
    if not _SHORTEST <= length <= _LONGEST:
        raise ScaleError(f"spacing {value} is no length of a voxel: give millimetres from 0.001 to 1000, such as 0.5")
    return length


def exact_spacing(zooms: Sequence[float], unit: float = 1.0) -> tuple[Fraction, ...]:
    """A header's single-precision spacings as the short decimals that they stand for: 0.9 is 9/10; `unit` is in mm.

    Raises ScaleError for a spacing that is zero, negative or not finite.
    """
    short = [Fraction(str(np.float32(z))) if np.isfinite(z) else Fraction(0) for z in zooms]
    exact = tuple(length * Fraction(Decimal(str(unit))) for length in short)
    if min(exact) <= 0:
        raise ScaleError(f"the voxel spacing is {tuple(map(float, zooms))}: repair the header's pixdim, or give --scale")
    return exact


def written(scales: Sequence[Fraction]) -> str:
    """Scales as a person reads them: ×5/2 where all axes have it, else ×5/2 ×5/2 ×1."""
    return " ".join(f"×{r}" for r in (scales[:1] if len(set(scales)) == 1 else scales))


def _listed(what: str, value: Any, fewest: int = 1) -> list[Any]:
    numbers = list(value) if isinstance(value, (tuple, list, np.ndarray)) else [value]
    if not fewest <= len(numbers) <= 3:
        few = "two numbers (rows, columns)" if fewest == 2 else "one number, two (rows, columns)"
        raise ScaleError(f"{what} {value!r} has {len(numbers)} entries: give {few}, or three (a volume's array axes)")
    return numbers


def _by_axis(numbers: list[Any], in_plane: list[int], otherwise: list[Any]) -> list[Any]:
    if len(numbers) == 3:
        return numbers
    result = list(otherwise)
    for k, number in zip(in_plane, numbers * 2 if len(numbers) == 1 else numbers):
        result[k] = number
    return result


def _checked(scales: list[Fraction], spacing: Sequence[Fraction], wanted: Sequence[Fraction]) -> AxisScales:
    result = [Fraction(1) if abs(r - 1) <= SAME else r for r in scales]
    for k, r in enumerate(result):
        if r < 1:
            raise ScaleError(
                f"axis {k} has voxels of {float(spacing[k]):g} mm already, finer than the {float(wanted[k]):g} mm asked for; "
                f"this only upscales: ask for {float(spacing[k]):g} mm on that axis, or average it down with another tool"
            )
        if r > grid.MAX_SCALE:
            raise ScaleError(
                f"axis {k} would grow ×{float(r):.4g} from {float(spacing[k]):g} to {float(wanted[k]):g} mm: "
                f"×{grid.MAX_SCALE} is the most that can be upscaled, ask for {float(spacing[k] / grid.MAX_SCALE):g} mm or more"
            )
    return result[0], result[1], result[2]
