"""What size was asked for, as one exact scale for each array axis of a volume. Pure arithmetic, no I/O.

One number, or two, count for the axes within a slice, as everywhere; three count for the array axes 0, 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from . import grid
from .errors import ScaleError

AxisScales = tuple[Fraction, Fraction, Fraction]  # of the array axes 0, 1, 2

UNSCALED: AxisScales = (Fraction(1), Fraction(1), Fraction(1))
_SAME = Fraction(1, 10_000)  # spacings as near as this to each other are equal: headers round them to single precision
_FEW, _PAIR = "one number, or two (rows, columns)", "two numbers (rows, columns)"
_LONGEST, _SHORTEST = Fraction(1000), Fraction(1, 1000)  # mm


@dataclass(frozen=True)
class Size:
    """Exactly one way to say how large the output is to be, its numbers exact; `of` turns it into scales.

    Raises ScaleError for none of the ways, for several, and for numbers that cannot be meant.
    """

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
        for way, parse, few in (("scale", grid.parse_scale, _FEW), ("spacing", parse_spacing, _FEW), ("shape", _whole, _PAIR)):
            if (value := getattr(self, way)) is not None:
                numbers = list(value) if isinstance(value, (tuple, list, np.ndarray)) else [value]
                if len(numbers) > 3 or len(numbers) < (2 if few == _PAIR else 1):
                    said = f"{way} {value!r} has {len(numbers)} entries"
                    raise ScaleError(f"{said}: give {few}, or three (a volume's array axes)")
                object.__setattr__(self, way, tuple(map(parse, numbers)))

    def of(self, shape: Sequence[int], spacing: Sequence[float], axis: int) -> AxisScales:
        """The scales of an array whose axes of space have `shape` pixels of `spacing` mm, and whose slices lie across `axis`.

        `spacing` is empty for a picture or a bare array. Raises ScaleError for an axis that would get coarser, or too fine.
        """
        if not spacing and (self.spacing or self.isotropic):
            raise ScaleError("a picture or an array has no spacing in millimetres: give --scale or --shape")
        if not spacing and len(self.scale or self.shape) == 3:
            raise ScaleError(f"three numbers were given for slices that have no place in space: give {_FEW}")
        size = (*shape, 1)[:3]
        if self.scale:
            return _by_axis(self.scale, axis, UNSCALED)
        if self.shape:
            before = [n for k, n in enumerate(size) if k != axis or len(self.shape) == 3]
            if not all(n <= m <= grid.MAX_SCALE * n for n, m in zip(before, self.shape)):
                raise ScaleError(
                    f"shape {self.shape} cannot be made of an image of {'×'.join(map(str, before))}: "
                    f"each axis may grow by a factor of 1 to {grid.MAX_SCALE}"
                )
            return _by_axis([Fraction(m, n) for n, m in zip(before, self.shape)], axis, UNSCALED)
        voxel = exact_spacing([*spacing, 1.0][:3])
        if self.isotropic:  # but for an axis of one voxel
            finest = min(v for v, n in zip(voxel, size) if n > 1)
            wanted = [finest if n > 1 else v for v, n in zip(voxel, size)]
        else:
            wanted = [*_by_axis(self.spacing, axis, voxel)]
        scales = [old / new if abs(old / new - 1) > _SAME else Fraction(1) for old, new in zip(voxel, wanted)]
        for k, (r, old, new) in enumerate(zip(scales, map(float, voxel), map(float, wanted))):
            if r < 1:
                raise ScaleError(
                    f"axis {k} has voxels of {old:g} mm already, finer than the {new:g} mm asked for; this only upscales: "
                    f"ask for {old:g} mm on that axis, or average it down with another tool"
                )
            if r > grid.MAX_SCALE:
                raise ScaleError(
                    f"axis {k} would grow ×{float(r):.4g} from {old:g} to {new:g} mm: ×{grid.MAX_SCALE} is the most that can "
                    f"be upscaled, ask for {old / grid.MAX_SCALE:g} mm or more"
                )
        return scales[0], scales[1], scales[2]

    def asked(self) -> dict[str, Any]:
        """The way and its numbers, as text: what a sidecar keeps of the request."""
        if self.isotropic:
            return {"isotropic": True}
        return {way: list(map(str, value)) for way in ("scale", "shape", "spacing") if (value := getattr(self, way))}


def parse_spacing(value: grid.ScaleLike) -> Fraction:
    """The exact millimetres that a number's decimal text names. Raises ScaleError for what is no length of a voxel."""
    length = grid.parse_number(value, "spacing", "give millimetres, such as 0.5")
    if not _SHORTEST <= length <= _LONGEST:
        raise ScaleError(f"spacing {value} is no length of a voxel: give millimetres from 0.001 to 1000, such as 0.5")
    return length


def exact_spacing(zooms: Sequence[float]) -> tuple[Fraction, ...]:
    """Single-precision spacings in mm as the short decimals that they stand for: 0.9 is 9/10.

    Raises ScaleError for a spacing that is zero, negative or not finite.
    """
    short = map(np.float32, zooms)
    exact = tuple(Fraction(str(z)) if np.isfinite(z) else Fraction(0) for z in short)
    if min(exact) <= 0:
        raise ScaleError(f"the voxel spacing is {tuple(map(float, zooms))}: repair the header's pixdim, or give --scale")
    return exact


def written(scales: Sequence[Fraction]) -> str:
    """Scales as a person reads them: ×5/2 where all axes have it, else ×5/2 ×5/2 ×1."""
    return " ".join(f"×{r}" for r in (scales[:1] if len(set(scales)) == 1 else scales))


def _whole(value: Any) -> int:
    try:
        if float(value) == int(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ScaleError(f"shape has {value!r}, which is no whole number: give pixels, rows and columns")


def _by_axis(numbers: Sequence[Fraction], axis: int, otherwise: Sequence[Fraction]) -> AxisScales:
    """One number for each axis of space; where fewer than three are given, that of `axis`, across slices, is of `otherwise`."""
    within = iter((numbers[0], numbers[-1]))
    a, b, c = numbers if len(numbers) == 3 else (otherwise[k] if k == axis else next(within) for k in range(3))
    return a, b, c
