"""Thick slices made thin: the planes that contain the axis across which slices lie are upscaled along it.

They do so in two orientations, whose results are averaged. A thick slice is a mean over its thickness (a box profile), so what
the mean of the thin ones in its place lacks of it is given back to each of them. docs/through-plane.md has measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import grid
from .acquired import STORED, Acquired
from .intensity import Intensity, exact_float
from .memory import allocate
from .slices import Slices


def upscale(
    slices: Slices,
    volume: NDArray[Any],
    axis: int,
    scale: Fraction,
    intensity: Intensity,
    acquired: Acquired = STORED,
    step: Callable[[], None] = lambda: None,
    half_width: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """A volume (three axes) with `scale` times as many slices along `axis`, in float32, or float64 of wide integers and floats.

    `acquired` is of all three axes. `step` is called after each plane. Values stay within the intensity's range. `half_width`,
    which `room` made, receives the uncertainty, where white is 1: the sum of both orientations', as their mean is too small
    (docs/uncertainty.md).
    """
    dtype = exact_float(volume.dtype)
    out = room(volume.shape, axis, scale, dtype)
    across = orientations(volume.shape, axis)
    for other in across:
        rows, cols = (k for k in range(3) if k != other)
        scales = (scale, Fraction(1)) if rows == axis else (Fraction(1), scale)
        planes, results = np.moveaxis(volume, other, 0), np.moveaxis(out, other, 0)
        made, width = (np.empty(results.shape[1:], kind) for kind in (dtype, np.float32))
        for k, plane in enumerate(planes):
            of_plane = None if half_width is None else width
            slices.fill(made, plane, intensity, scales, acquired.along(rows, cols), half_width=of_plane)
            results[k] += made / len(across)
            if half_width is not None:
                np.moveaxis(half_width, other, 0)[k] += width
            step()
    overlap = grid.overlap(volume.shape[axis], scale).astype(dtype)
    means, parts = overlap / overlap.sum(1, keepdims=True), (overlap / overlap.sum(0)).T
    thick, thin = np.moveaxis(intensity.filled(volume), axis, -1), np.moveaxis(out, axis, -1)
    for here in np.ndindex(thick.shape[0]):
        thin[here] += (thick[here] - thin[here] @ means.T) @ parts.T
        np.clip(thin[here], intensity.low, intensity.high, out=thin[here])
    return out


def orientations(shape: tuple[int, ...], axis: int) -> list[int]:
    """The axes across which lie the planes that `upscale` goes through: those with something to be resolved beside `axis`."""
    others = [k for k in range(3) if k != axis]
    return [k for k in others if shape[sum(others) - k] > 1]


def room(shape: tuple[int, ...], axis: int, scale: Fraction, dtype: DTypeLike) -> NDArray[Any]:
    """Zeros, as large as what `upscale` makes of a volume of `shape`."""
    return allocate(tuple(grid.output_size(n, scale) if k == axis else n for k, n in enumerate(shape)), dtype)
