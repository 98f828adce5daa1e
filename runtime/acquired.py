"""What the scanner measured, how to get back to it, and how well an output equals it. Pure arithmetic on arrays, no I/O.

A scanner measures part of k-space, tapers its edge with a window, fills the rest with zeros and stores the magnitude. The
canonical form of such a scan is its acquired matrix, the window undone, with white noise of a known σ: what the network sees.

All resampling is by the cosine transform (DCT-II), the Fourier transform of an image mirrored at its borders: outer edges
stay where they are, and cosine k of an axis of n pixels is the frequency k/n of Nyquist's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Told = tuple[float, float, float]  # what a network is told: σ, and the soft part of the band along rows and columns

NOTHING: Told = (0.0, 0.0, 0.0)
LEAST_SIGMA, SOFT = 1e-3, 3.0  # less noise is none; a band's soft end is multiplied by it, so that Hann's window is 1
WHOLE = 0.97  # a part of Nyquist's frequency from which the whole matrix counts as measured
LARGEST = 1024  # pixels along an axis of a slice: `difference` of larger ones would take seconds, and no scan has more
_MOST_GAIN = 4.0  # −12 dB: how far a window is undone. Beyond it small errors of its estimate become ripple
_NEAR = 0.01  # of Nyquist's frequency: how far the canonical band may end from the measured one, for a simple ratio
_ALL = slice(None)


@dataclass(frozen=True)
class Band:
    """What was measured along one axis: a part of the stored frequencies, through a window.

    `fraction` is the acquired matrix over the stored one, above 0, at most 1. The window is 1 up to 1 - `taper` of the band,
    and from there half a cosine down to `floor` at its end: taper 0 is a hard edge, 1 with floor 0 Hann's, with 0.08 Hamming's.
    """

    fraction: float = 1.0
    taper: float = 0.0
    floor: float = 0.0

    def window(self, count: int, size: int) -> NDArray[np.float64]:
        """The window at the first `count` cosines of an axis of `size` pixels; 0 beyond the band."""
        k = np.arange(count) / (self.fraction * size)
        tukey = 0.5 + 0.5 * np.cos(np.pi * np.clip((k - 1 + self.taper) / max(self.taper, 1e-9), 0, 1))
        return np.where(k < 1, self.floor + (1 - self.floor) * tukey, 0)

    def gains(self, count: int, size: int) -> NDArray[np.float64]:
        """What undoes the window, up to 12 dB, at the same cosines; 0 beyond the band."""
        window = self.window(count, size)
        return np.where(window > 0, 1 / np.maximum(window, 1 / _MOST_GAIN), 0)

    @property
    def soft(self) -> float:
        """The part of the band, at its end, where the window is too deep to be undone whole: 0 is a hard edge."""
        if self.floor >= 1 / _MOST_GAIN:
            return 0.0
        fallen = math.acos(2 * (1 / _MOST_GAIN - self.floor) / (1 - self.floor) - 1) / math.pi  # part of the taper
        return self.taper * (1 - fallen)

    @property
    def spacing(self) -> Fraction:
        """How far canonical samples lie apart, in stored pixels: a simple ratio near 1 / fraction, whose tables are small."""
        if self.fraction >= WHOLE:
            return Fraction(1)
        ratios = (Fraction(1 / self.fraction).limit_denominator(q) for q in range(1, 100))
        return next(s for s in ratios if abs(float(1 / s) - self.fraction) <= _NEAR)


@dataclass(frozen=True)
class Acquired:
    """What was measured of a scan: a band for each axis, and the noise.

    `sigma` is the noise's standard deviation in the real part of the canonical image, as a part of white; 0 is none. `source`
    says where the bands are from. `notes` are lines for a person.
    """

    bands: tuple[Band, ...]
    sigma: float = 0.0
    source: str = "stored"
    notes: tuple[str, ...] = ()

    @property
    def told(self) -> Told:
        """What a network is told of a slice."""
        return self.sigma, self.bands[0].soft, self.bands[1].soft

    @property
    def is_stored(self) -> bool:
        """Whether the canonical form is the stored one."""
        return all(band.spacing == 1 and not band.taper for band in self.bands)

    def along(self, *axes: int) -> Acquired:
        """The same of these axes alone."""
        return replace(self, bands=tuple(self.bands[k] for k in axes))

    def matrix(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The acquired matrix of a scan of this shape, to a sample."""
        return tuple(max(2, round(n * band.fraction)) for n, band in zip(shape, self.bands))

    def said(self, shape: Sequence[int]) -> str:
        """In a line, for a person."""
        matrix, stored = ("×".join(map(str, numbers)) for numbers in (self.matrix(shape), shape))
        return f"acquired {matrix} of {stored} ({self.source}), noise {100 * self.sigma:.1f} % of white"

    def plain(self, shape: Sequence[int]) -> dict[str, Any]:
        """For a sidecar."""
        taper = [round(band.taper, 3) for band in self.bands[: len(shape)]]
        return {"matrix": list(self.matrix(shape)), "taper": taper, "source": self.source, "noise": round(self.sigma, 5)}

    def canonical(self, image: Float) -> tuple[Float, tuple[Fraction, Fraction]]:
        """A slice (H, W) in canonical form, (⌈H / s_y⌉, ⌈W / s_x⌉), and s, the size of its pixels in stored ones.

        Outer edges stay aligned. Where H / s is no whole number the last pixel reaches beyond the edge, into the mirror image.
        """
        rows, cols = (_to_canonical(band, n) for band, n in zip(self.bands, image.shape))
        image = image if rows is None else rows @ image
        image = image if cols is None else image @ cols.T
        return image, (self.bands[0].spacing, self.bands[1].spacing)

    def lacking(self, image: Float, sr: Float, scales: Sequence[Fraction]) -> Float:
        """What `sr`, the slice `image` (H, W) upscaled, lacks of what was measured: cosines of rows and columns."""
        rows, cols = (_analyses(band, n, r) for band, n, r in zip(self.bands, image.shape, scales))
        return np.asarray(rows[0] @ image @ cols[0].T - rows[1] @ sr @ cols[1].T, np.float32)

    def difference(self, image: Float, sr: Float, scales: Sequence[Fraction]) -> Float:
        """What `lacking` says, in pixels of the canonical form: (⌊H / s_y⌋, ⌊W / s_x⌋)."""
        lacks = self.lacking(image, sr, scales)
        return self.given_back(lacks, image.shape, [1 / band.spacing for band in self.bands])

    def given_back(
        self, lacks: Float, shape: Sequence[int], scales: Sequence[Fraction], rows: slice = _ALL, cols: slice = _ALL
    ) -> Float:
        """What adds `lacking` to the output pixels rows × cols of a slice of `shape`, and changes nothing else in its band."""
        up_y, up_x = (_synthesis(band, n, r) for band, n, r in zip(self.bands, shape, scales))
        return np.asarray(up_y[rows] @ lacks @ up_x[cols].T, np.float32)


STORED = Acquired((Band(),) * 3)  # the whole matrix was measured, without noise


@dataclass
class Consistency:
    """Differences summed up over slices: pixels of the input's canonical form less those of the output's, in input values.

    `rmse` and `worst`, the root mean square and the largest size, are NaN where nothing was compared; `white` is white less
    black in the same units, the largest where volumes differ.
    """

    count: int = 0
    squares: float = 0.0
    worst: float = math.nan
    white: float = 0.0

    @property
    def rmse(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def add(self, difference: Float, white: float) -> None:
        """Count a difference (h, w), of which 1 is `white` units."""
        self.count += difference.size
        self.squares += float(np.vdot(difference, difference)) * white**2
        self.worst = float(np.fmax(self.worst, np.abs(difference).max() * white))
        self.white = max(self.white, white)

    def plain(self) -> dict[str, float] | None:
        """For a sidecar; None where nothing was compared."""
        return {"rmse": float(f"{self.rmse:.3g}"), "worst": float(f"{self.worst:.3g}")} if self.count else None

    def __str__(self) -> str:
        """In a line, for a person; nothing where nothing was compared."""
        if not self.count:
            return ""
        root, worst = (f"{of:.3g} ({100 * of / self.white:.2g} % of white)" for of in (self.rmse, self.worst))
        return f"consistency with what was measured: RMSE {root}, worst {worst}"


def resampling(size: int, places: NDArray[Any], gains: NDArray[np.float64]) -> Float:
    """The matrix (places, size) from the pixels of an axis to band-limited samples of it.

    `places` count in pixels from the axis's outer edge: pixel i is at i + 1/2. Only cosines with `gains` are kept, times those.
    """
    weights = np.where(np.arange(len(gains)), 2.0, 1.0) / size * gains
    at_places, at_pixels = (_cosines(x, len(gains), size) for x in (places, np.arange(size) + 0.5))
    return np.asarray((at_places * weights) @ at_pixels.T, np.float32)


@lru_cache(maxsize=6)  # all slices of a volume need the same two or three
def _to_canonical(band: Band, size: int) -> Float | None:
    """The matrix (m, size) that crops an axis to its canonical samples and undoes the window; None where nothing changes."""
    if band.spacing == 1 and not band.taper:
        return None
    m = math.ceil(size / band.spacing)
    return resampling(size, (np.arange(m) + 0.5) * float(band.spacing), band.gains(m, size))


@lru_cache(maxsize=8)
def _synthesis(band: Band, size: int, scale: Fraction) -> Float:
    """The matrix (size·p // q, m) from the m cosines that were measured to output pixels: zero filling."""
    places = (np.arange(size * scale.numerator // scale.denominator) + 0.5) / float(scale)
    return np.asarray(_cosines(places, math.ceil(size / band.spacing), size), np.float32)


@lru_cache(maxsize=4)
def _analyses(band: Band, size: int, scale: Fraction) -> tuple[Float, Float]:
    """The matrices to those cosines: (m, size) from an axis's pixels, the window undone; (m, size·p // q) from output pixels.

    The second is the inverse of `_synthesis`: what was filled in comes back exactly, where size·p/q is no whole number too.
    """
    up = _synthesis(band, size, scale).astype(np.float64)
    m = up.shape[1]
    weights = np.where(np.arange(m), 2.0, 1.0) / size * band.gains(m, size)
    measured = weights[:, None] * _cosines(np.arange(size) + 0.5, m, size).T
    whole = size * scale.numerator % scale.denominator == 0  # then cosines are orthogonal over the output pixels
    inverse = up.T / (up**2).sum(0)[:, None] if whole else np.linalg.solve(up.T @ up, up.T)
    return np.asarray(measured, np.float32), np.asarray(inverse, np.float32)


def _cosines(places: NDArray[Any], count: int, size: int) -> NDArray[np.float64]:
    """The first cosines of an axis of `size` pixels at places in pixels from its outer edge; (places, count)."""
    return np.cos(np.pi / size * np.outer(places, np.arange(count)))
