"""What was measured of an input: as the caller says, or as its spectrum shows, or as its header says, in this order.

Where none of them tells, the whole stored matrix counts as measured. One estimate serves a whole volume.

Nature's own power spectrum is a mixture of white noise and of falling powers of the frequency, with some blur. It never falls
as steeply as the spectrum of zero-filled data does where the band ends. So the spectrum along an axis is fitted by

    (nature × window²) ∗ leakage + floor

for every window of a list, with parts of nature and a floor of at least 0. The floor is what rounding and the magnitude leave
where nothing was measured: far below what was. The window that fits best wins, if it fits clearly better than none. In doubt it
is none: to undo a window that is not there spoils the image, to miss one costs little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from .acquired import WHOLE, Acquired, Band, Float
from .errors import ImageError
from .grid import MAX_SCALE, evenly
from .intensity import Intensity

# Samples of each axis within a slice, or of all three array axes; or what was found before, of the last axes.
Matrix = Union[Literal["auto", "stored"], Sequence[int], Acquired]
Fractions = Sequence[Union[float, None]]  # acquired over stored, of each array axis; None where a header does not tell
UNKNOWN: Fractions = (None, None, None)

_DIFFER = 0.05  # of the stored matrix, from which on a header contradicts the spectrum
_SLICES, _PIXELS = 16, 1024  # of a volume, and of the middle of an axis, that are looked at: more tell no more
_TISSUE = 0.1  # of white: brighter than that is tissue, as a rule
# Pixels along both axes: a volume whose largest slice has fewer does not tell, nor a slice; nor a canonical slice of noise, as
# the fine structure of a small head looks like it.
_LARGE, _SMALLEST, _TELL_NOISE = 52, 24, 76

_BINS = 64  # frequencies of an axis, from 0 to below Nyquist's: as many as an image of 128 pixels resolves in both directions
_AT = np.arange(_BINS) / _BINS
_USED = slice(6, _BINS)  # below that a head's shape rules
_OTHER = slice(7, 29)  # of the other axis: beyond the bright edges along it, and before most bands end
_BORDER = 1 / 8  # of an axis is faded out at either end: else the jump there leaks over the whole spectrum
_WIDER = 1.1  # edges near the border leak farther than an average pixel, whose leakage is known
_DARKEST = 1e-6  # of the mean power: less is the arithmetic's rounding
# By which nature's power falls with the frequency; 0 is white noise. And the exponent of the blur's power at Nyquist's.
_POWERS, _BLURS = (0.0, 2.0, 4.0, 2.0), (0.0, 0.0, 0.0, 3.0)
_FLOOR = 0.05  # at most, of nature's power at the band's end: -13 dB, more than blurred images fall
# Tapers and floors; how many times as well as a hard edge each must fit, how much better than no window, and what part of that
# one's misfit it may leave. More of them are mistaken for each other. What a bilinear kernel does looks a little like a window:
# it gains up to 0.1. A smooth image looks like Hamming's, which harms most.
_SHAPES = {(0.0, 0.0): (1, 0.01, 1), (0.25, 0.0): (1.2, 0.08, 0.3), (0.5, 0.0): (2.2, 0.15, 0.3), (1.0, 0.08): (1.5, 0.3, 0.09)}
_CUT, _NEAR_CUT = 1.7, 2.6  # how many times as well a band must fit that ends before Nyquist's frequency, or just before
_BANDS = [Band(round(float(f), 2), *shape) for f in np.linspace(1, 0.36, 33) for shape in _SHAPES]  # the first is everything
_TIMES, _GAINS, _LEFT = np.array([_SHAPES[band.taper, band.floor] for band in _BANDS]).T
_TIMES = _TIMES * [1 if band.fraction == 1 else _NEAR_CUT if band.fraction > 0.93 else _CUT for band in _BANDS]
# The mean over each bin, from half a bin below it to half a bin above: no band ends where bins do.
_FINER = np.array([band.window(8 * _BINS, 8 * _BINS) ** 2 for band in _BANDS], np.float32)
_WINDOWS = np.concatenate([_FINER[:, 4:0:-1], _FINER[:, :-4]], 1).reshape(len(_BANDS), _BINS, 8).mean(2)
_RADIAL = _AT[:, None] ** 2 + _AT[_OTHER] ** 2
_NATURE = np.array([(_RADIAL ** (-p / 2)).mean(1) * np.exp(-b * _AT**2) for p, b in zip(_POWERS, _BLURS)], np.float32)
_ENDS = np.array([_NATURE[:, min(int(band.fraction * _BINS), _BINS - 1)] for band in _BANDS], np.float32)
_STEPS, _FIRST, _BEST = 24, 6, 40  # of the fit; after the first ones only the best windows go on
# Misfits are means of r - log r - 1, with r the power over the model's: 0.01 is an error of 0.6 dB, 0.1 of 1.9 dB.
_ERROR = 0.01  # of the model itself: smaller misfits tell nothing
_UNCLEAR = 0.5  # a misfit from which the spectrum is not that of a scan

_NOISIEST = 0.1  # of white: networks are trained up to 0.08, and what looks noisier is no scan
_BLOCK = 8  # pixels
# The upper half of a block's cosines, which show least tissue: no slopes, no edges along an axis.
_FINE = np.sqrt(2 / _BLOCK) * np.cos(np.pi / _BLOCK * np.outer(np.arange(_BLOCK // 2, _BLOCK), np.arange(_BLOCK) + 0.5))
_FLATTEST = 0.05  # of the blocks of tissue show noise alone
_WHITE = 0.4976  # that part of the blocks of white noise lie below this part of its power: chi-square of 16 degrees
_BRIGHT = 4.0  # σ: above it the magnitude's noise is normal
_DARK, _ENOUGH = 0.04, 16  # of white: blocks below it, or below 2 σ, are air; and how many of them tell
_LITTLE = 0.03  # of white: with more noise texture no longer adds to it, and zero filling takes from that of the air
_RAYLEIGH = 2 - np.pi / 2  # the variance of the magnitude of noise alone, over σ²


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
    if noise is not None and not _within(noise, 0, 1):
        raise ImageError(f"noise {noise!r} is no part of white: give its standard deviation from 0 to 1, such as 0.02")
    slices = some_slices(data, axes[0], axes[1], intensity)
    found = [] if matrix == "stored" else [*bands_of(slices)]
    if found and len(axes) > 2:
        found.append(bands_of(some_slices(data, axes[0], axes[2], intensity))[1])
    bands, sources = [Band()] * data.ndim, []
    notes = [intensity.said] if intensity.aside else []
    for axis, seen in zip(axes, found):
        told, given = header[axis], asked.get(axis)
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
    sigma = _sigma(slices, (bands[axes[0]], bands[axes[1]])) if noise is None else float(noise)
    return Acquired(tuple(bands), sigma, " and ".join(dict.fromkeys(sources)) or "stored", tuple(notes))


def estimate(slices: Sequence[Float]) -> Acquired:
    """What the spectrum alone tells of the slices (H, W) of one volume, black 0 and white 1; their sizes may differ."""
    slices = _telling(slices, _LARGE)
    rows, cols = (band or Band() for band in bands_of(slices))
    return Acquired((rows, cols), _sigma(slices, (rows, cols)), "spectrum")


def checked_grain(grain: float) -> float:
    """Raises ImageError for what is not between 0 and 1."""
    if not _within(grain, 0, 1):
        raise ImageError(f"grain {grain!r} is no part: give 0 (denoised) to 1 (what was measured is kept)")
    return float(grain)


def _asked(matrix: str | Sequence[int], axes: Sequence[int], shape: Sequence[int]) -> dict[int, float]:
    """The fraction of each axis for which a matrix was given."""
    if isinstance(matrix, str):
        if matrix not in ("auto", "stored"):
            raise ImageError(f"acquired {matrix!r} is no matrix: give numbers of samples, or auto, or stored")
        return {}
    numbers, shown = list(matrix), " ".join(map(str, matrix))
    of = sorted(axes[:2]) if len(numbers) == 2 else list(range(len(shape)))[:3]
    if len(numbers) != len(of):
        raise ImageError(f"acquired {shown} has {len(numbers)} entries: give {' or '.join({'2', str(len(of))})}")
    for number, axis in zip(numbers, of):
        n, least = shape[axis], max(2, -(-shape[axis] // MAX_SCALE))
        if not _within(number, min(least, n), n) or number != int(number):
            raise ImageError(
                f"acquired {shown} cannot be: axis {axis} has {n} stored samples, give it {least} to {n} measured ones"
            )
    return {axis: number / shape[axis] for number, axis in zip(numbers, of) if axis in axes}


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high


def some_slices(data: NDArray[Any], rows: int, cols: int, intensity: Intensity) -> list[Float]:
    """Some slices of these axes, black 0 and white 1, from all parts of the array; none that are too small."""
    stack = np.moveaxis(data, (rows, cols), (-2, -1))
    margins = [max(0, n - _PIXELS) // 2 for n in stack.shape[-2:]]
    stack = stack[..., margins[0] : stack.shape[-2] - margins[0], margins[1] : stack.shape[-1] - margins[1]]
    places = np.linspace(0, math.prod(stack.shape[:-2]) - 1, _SLICES).round().astype(int)
    chosen = (stack[np.unravel_index(int(k), stack.shape[:-2])] for k in np.unique(places))
    return _telling(map(intensity.normalise, chosen), _LARGE)


def _telling(slices: Iterable[Float], large: int) -> list[Float]:
    """The slices of a volume; none where all are so small that their shapes look like noise and zero filling."""
    found = list(slices)
    return found if any(min(image.shape) >= large for image in found) else []


def bands_of(slices: Sequence[Float]) -> tuple[Band | None, Band | None]:
    """What was measured along rows (axis 0) and columns of a volume's slices (H, W), black 0 and white about 1.

    Band() where no window shows, None where the spectrum does not tell.
    """
    power = np.zeros((_BINS, _BINS))
    leakage = np.zeros((2, 2 * _BINS))
    for image in fullest(slices):
        if min(image.shape) >= _SMALLEST:
            fades, waves, leaks = zip(*map(_axis, image.shape))
            weight = np.outer(*fades)
            faded = (image - np.float32((image * weight).sum() / weight.sum())) * weight
            power += ((waves[0].T @ faded @ waves[1]) ** 2).reshape(2, _BINS, 2, _BINS).sum((0, 2))
            leakage += leaks
    return _band(power[:, _OTHER].mean(1), leakage[0]), _band(power[_OTHER].mean(0), leakage[1])


def noise_of(slices: Sequence[Float]) -> float:
    """σ of the white noise of canonical slices (H, W), as a part of white: of the real part, before the magnitude.

    Taken from the flattest blocks of tissue, where texture adds to it; or from the air, where that has noise too, and less.
    Air with less than a third of it was blanked. Of slices without noise it is what their texture leaves; 0 without tissue.
    """
    each_mean, each_power = [np.zeros(0)], [np.zeros(0)]
    for image in fullest(slices):
        rows, cols = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK
        blocks = image[: rows * _BLOCK, : cols * _BLOCK].reshape(rows, _BLOCK, cols, _BLOCK).swapaxes(1, 2)
        each_mean.append(blocks.mean((2, 3), dtype=np.float64).ravel())
        each_power.append(((_FINE @ blocks @ _FINE.T) ** 2).mean((2, 3)).ravel())
    means, powers = np.concatenate(each_mean), np.concatenate(each_power)
    sigma = 0.0
    for _ in range(3):  # what counts as bright depends on the noise
        tissue = powers[means > max(_TISSUE, _BRIGHT * sigma)]
        if len(tissue):
            sigma = float(np.sqrt(np.quantile(tissue, _FLATTEST) / _WHITE))
    air = powers[means < max(_DARK, 2 * sigma)]
    background = float(np.sqrt(np.median(air) / _RAYLEIGH)) if len(air) >= _ENOUGH else 0.0
    return background if sigma / 3 < background < sigma < _LITTLE else sigma


def _sigma(slices: Sequence[Float], bands: tuple[Band, Band]) -> float:
    canonical = (Acquired(bands).canonical(image)[0] for image in slices)
    return min(noise_of(_telling(canonical, _TELL_NOISE)), _NOISIEST)


def fullest(slices: Sequence[Float]) -> list[Float]:
    """Up to `_SLICES` of them at even distances, of those that show at least half as much tissue as the fullest."""
    tissue = [np.count_nonzero(image > _TISSUE) for image in slices]
    full = [image for image, pixels in zip(slices, tissue) if pixels and pixels >= max(tissue) / 2]
    return evenly(full, _SLICES)


@lru_cache(maxsize=8)
def _axis(size: int) -> tuple[Float, Float, NDArray[np.float64]]:
    """Of an axis: how it fades out at its borders (size,), the waves of its frequencies (size, 2 · bins), and the leakage.

    That is the power (2 · bins,) that fading brings from one frequency to those 0, 1, 2 … bins away.
    """
    at = np.arange(size)
    border = np.minimum((np.minimum(at, size - 1 - at) + 0.5) / (_BORDER * size), 1)
    fade = 0.5 - 0.5 * np.cos(np.pi * border)
    angle = np.pi * np.outer(at, _AT)
    waves = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    centred = np.pi / _WIDER / _BINS * np.outer(np.arange(2 * _BINS), at - (size - 1) / 2)
    return fade.astype(np.float32), waves.astype(np.float32), (np.cos(centred) @ fade) ** 2


def _band(power: NDArray[np.float64], leakage: NDArray[np.float64]) -> Band | None:
    """The band whose window explains the power (bins,) along an axis; leakage (2 · bins,) as above."""
    level = power[_USED].mean()
    if not level > 0:
        return None
    measured = np.maximum(power[_USED] / level, _DARKEST).astype(np.float32)
    k = np.arange(_BINS)
    spread = leakage[np.abs(k[:, None] - k)] + np.where(k, leakage[k[:, None] + k], 0)  # of negative frequencies too
    spread = (spread / spread.sum(1, keepdims=True))[_USED].astype(np.float32)

    # Itakura and Saito's distance, made smaller by multiplication: parts that begin above 0 stay above it.
    left = np.arange(len(_BANDS))
    parts = np.ones((len(left), len(_POWERS)), np.float32) * (0.1 / _NATURE[:, _USED].mean(1))
    floor = np.full((len(left), 1), measured.min())
    for step in range(_STEPS + 1):
        model = (parts @ _NATURE * _WINDOWS[left]) @ spread.T + floor
        ratio = measured / model
        if step in (_FIRST, _STEPS):
            misfit = (ratio - np.log(ratio) - 1).mean(1)
        if step == _FIRST:
            best = np.union1d([0], np.argsort(misfit)[:_BEST])
            left, parts, floor, model, ratio = left[best], parts[best], floor[best], model[best], ratio[best]
        wanted, had = (((v / model) @ spread * _WINDOWS[left]) @ _NATURE.T for v in (ratio, np.ones_like(model)))
        parts *= wanted / had
        floor *= (ratio / model).sum(1, keepdims=True) / (1 / model).sum(1, keepdims=True)
        floor = np.minimum(floor, _FLOOR * (parts * _ENDS[left]).sum(1, keepdims=True))
    if misfit.min() > _UNCLEAR:
        return None
    misfit += _ERROR
    best = (misfit * _TIMES[left]).argmin()
    band, of = left[best], parts[best]
    found, white = _BANDS[band], of[0] / (of @ _ENDS[band])  # at the band's end, after a window was undone that was not there
    most = _LEFT[band] * math.sqrt(1 - found.taper * white) * misfit[0]
    found = found if misfit[0] - misfit[best] > _GAINS[band] and misfit[best] < most else Band()
    return found if found.taper or found.fraction < WHOLE else Band()
