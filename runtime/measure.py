"""What was measured of an input: as the caller says, or as its spectrum shows, or as its header says, in this order.

Where none of them tells, the whole stored matrix counts as measured. One estimate serves a whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from . import spectrum
from .acquired import Acquired, Band
from .errors import ImageError
from .grid import MAX_SCALE
from .intensity import Intensity

Float = NDArray[np.float32]
# Samples of each axis within a slice, or of all three array axes; or what was found before, of the last axes.
Matrix = Union[Literal["auto", "stored"], Sequence[int], Acquired]
Fractions = Sequence[Union[float, None]]  # acquired over stored, of each array axis; None where a header does not tell
UNKNOWN: Fractions = (None, None, None)

_SLICES, _PIXELS = 16, 1024  # of a volume, and of the middle of an axis, that are looked at
_TELL_NOISE = 76  # pixels an axis of a canonical slice: in smaller ones the fine structure of a head looks like noise
_NOISIEST = 0.1  # of white: networks are trained up to 0.08, and what looks noisier is no scan
_DIFFER = 0.05  # of the stored matrix, from which on a header contradicts the spectrum


def of(
    data: NDArray[Any],
    axes: Sequence[int],
    intensity: Intensity,
    matrix: Matrix = "auto",
    noise: float | None = None,
    header: Fractions = UNKNOWN,
) -> Acquired:
    """What was measured of an array whose slices have the first two of `axes`: a band for each of its axes.

    A third axis, across which slices lie, is looked at where it is among `axes`; others count as measured. Raises ImageError
    for a `matrix` that cannot be, and for a `noise` that is no part of white.
    """
    if isinstance(matrix, Acquired):
        return replace(matrix, bands=((Band(),) * data.ndim + matrix.bands)[-data.ndim :])
    axes = [axis % data.ndim for axis in axes]
    asked = _asked(matrix, axes, data.shape)
    bands, sources = [Band()] * data.ndim, []
    notes = [intensity.said] if intensity.aside else []
    slices = _telling(_slices(data, (axes[0], axes[1]), intensity))
    found = [] if matrix == "stored" else [*spectrum.bands(slices)]
    if found and len(axes) > 2:
        found.append(spectrum.bands(_telling(_slices(data, (axes[0], axes[2]), intensity)))[1])
    for axis, seen in zip(axes, found):
        told, given = header[axis] if axis < len(header) else None, asked.get(axis)
        if given is not None:
            agrees = seen is not None and abs(seen.fraction - given) <= _DIFFER
            bands[axis] = replace(seen, fraction=given) if seen is not None and agrees else Band(given)
            sources.append("given")
        elif seen is not None:
            bands[axis] = seen
            sources.append("spectrum")
            if told is not None and abs(told - seen.fraction) > _DIFFER:
                says, shows = (round(f * data.shape[axis]) for f in (told, seen.fraction))
                notes.append(f"of {data.shape[axis]} along axis {axis} the header says {says} measured, the spectrum {shows}")
        elif told is not None:
            bands[axis] = Band(told)
            sources.append("header")
    source = " and ".join(dict.fromkeys(sources)) or "stored"
    if noise is None:
        noise = _noise(slices, (bands[axes[0]], bands[axes[1]]))
    return Acquired(tuple(bands), _checked_noise(noise), source, tuple(notes))


def estimate(slices: Sequence[Float]) -> Acquired:
    """What the spectrum alone tells of the slices (H, W) of one volume, black 0 and white 1; their sizes may differ."""
    slices = _telling(slices)
    rows, cols = (band or Band() for band in spectrum.bands(slices))
    return Acquired((rows, cols), _noise(slices, (rows, cols)), "spectrum")


def checked_grain(grain: float) -> float:
    """Raises ImageError for what is not between 0 and 1."""
    if not _is_number(grain) or not 0 <= grain <= 1:
        raise ImageError(f"grain {grain!r} is no part: give 0 (denoised) to 1 (what was measured is kept)")
    return float(grain)


def _noise(slices: Sequence[Float], bands: tuple[Band, Band]) -> float:
    canonical = _telling((Acquired(bands).canonical(image)[0] for image in slices), _TELL_NOISE)
    return min(spectrum.noise(canonical), _NOISIEST)


def _telling(slices: Iterable[Float], large: int = spectrum.LARGE) -> list[Float]:
    """The slices of a volume; none where all are so small that their shapes look like noise and zero filling."""
    found = list(slices)
    return found if any(min(image.shape) >= large for image in found) else []


def _slices(data: NDArray[Any], axes: tuple[int, int], intensity: Intensity) -> Iterator[Float]:
    """Some slices of these axes, black 0 and white 1, from all parts of the array."""
    stack = np.moveaxis(data, axes, (-2, -1))
    margins = [max(0, n - _PIXELS) // 2 for n in stack.shape[-2:]]
    stack = stack[..., margins[0] : stack.shape[-2] - margins[0], margins[1] : stack.shape[-1] - margins[1]]
    count = math.prod(stack.shape[:-2])
    for k in np.unique(np.linspace(0, count - 1, _SLICES).round().astype(int)):
        yield intensity.normalise(stack[np.unravel_index(int(k), stack.shape[:-2])])


def _asked(matrix: str | Sequence[int], axes: Sequence[int], shape: Sequence[int]) -> dict[int, float]:
    """The fraction of each axis for which a matrix was given."""
    if isinstance(matrix, str):
        if matrix not in ("auto", "stored"):
            raise ImageError(f"acquired {matrix!r} is no matrix: give numbers of samples, or auto, or stored")
        return {}
    numbers = list(matrix)
    of = sorted(axes[:2]) if len(numbers) == 2 else list(range(len(shape)))[:3]
    if len(numbers) != len(of):
        raise ImageError(f"acquired {_shown(numbers)} has {len(numbers)} entries: give {' or '.join({'2', str(len(of))})}")
    for number, axis in zip(numbers, of):
        least = max(2, -(-shape[axis] // MAX_SCALE))
        if not _is_number(number) or number != int(number) or not min(least, shape[axis]) <= number <= shape[axis]:
            raise ImageError(
                f"acquired {_shown(numbers)} cannot be: axis {axis} has {shape[axis]} stored samples, give it {least} to "
                f"{shape[axis]} measured ones"
            )
    return {axis: number / shape[axis] for number, axis in zip(numbers, of) if axis in axes}


def _checked_noise(noise: float) -> float:
    if not _is_number(noise) or not 0 <= noise <= 1:
        raise ImageError(f"noise {noise!r} is no part of white: give its standard deviation from 0 to 1, such as 0.02")
    return float(noise)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _shown(numbers: Sequence[object]) -> str:
    return " ".join(map(str, numbers))
