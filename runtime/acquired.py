"""What the scanner measured, and how to get back to it. Pure arithmetic on arrays, no I/O.

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

MOST_GAIN = 4.0  # −12 dB: how far a window is undone. Beyond it small errors of its estimate become ripple
KEPT = 0.2  # a window's value where the canonical matrix ends: beyond it there is next to nothing to keep
_NEAR = 0.015  # of an axis: how far its canonical matrix may be from the measured one, for a simple ratio
_WHOLE = 0.98  # a part of Nyquist's frequency from which the whole matrix counts as measured


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
        """What undoes the window, up to `MOST_GAIN`, at the same cosines."""
        return 1 / np.maximum(self.window(count, size), 1 / MOST_GAIN)

    @property
    def kept(self) -> float:
        """The part of Nyquist's frequency where the window falls to `KEPT`: where the canonical matrix ends."""
        if self.floor >= KEPT:
            return self.fraction
        fallen = math.acos(2 * (KEPT - self.floor) / (1 - self.floor) - 1) / math.pi  # part of the taper
        return self.fraction * (1 - self.taper * (1 - fallen))

    def canonical_size(self, size: int) -> int:
        """Samples of the canonical matrix of an axis of `size` pixels: a simple ratio near `kept`, whose tables are small."""
        wanted = self.kept * size
        if self.kept >= _WHOLE:
            return size
        near = range(max(2, math.ceil(wanted - _NEAR * size)), min(size, math.floor(wanted + _NEAR * size)) + 1)
        return min(near, key=lambda m: (Fraction(size, m).denominator, abs(m - wanted)), default=max(2, round(wanted)))


def resampling(size: int, positions: NDArray[Any], gains: NDArray[np.float64]) -> Float:
    """The matrix (positions, size) from the pixels of an axis to band-limited samples of it.

    `positions` count in pixels from the axis's outer edge: pixel i is at i + 1/2. Cosine k is kept with `gains[k]`, the others
    are not.
    """
    k = np.arange(len(gains))
    weights = np.where(k, 2.0, 1.0) / size * gains
    cosines = [np.cos(np.pi / size * np.outer(x, k)) for x in (positions, np.arange(size) + 0.5)]
    return np.asarray((cosines[0] * weights) @ cosines[1].T, np.float32)


@dataclass(frozen=True)
class Acquired:
    """What was measured of a scan: a band for each axis, and the noise.

    `sigma` is the noise's standard deviation in the real part of the canonical image, as a part of white; 0 is none. `source`
    says where the bands are from, and `notes` what else a person should know of them, in a line each.
    """

    bands: tuple[Band, ...]
    sigma: float = 0.0
    source: str = "stored"
    notes: tuple[str, ...] = ()

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
        """For a record."""
        taper = [round(band.taper, 3) for band in self.bands[: len(shape)]]
        return {"matrix": list(self.matrix(shape)), "taper": taper, "source": self.source, "noise": round(self.sigma, 5)}

    def canonical(self, image: Float) -> tuple[Float, tuple[Fraction, Fraction]]:
        """A slice (H, W) in canonical form (m_y, m_x), and how much larger its pixels are than the stored ones."""
        height, width = image.shape
        rows, cols = (_to_canonical(band, n) for band, n in zip(self.bands, image.shape))
        image = image if rows is None else rows @ image
        image = image if cols is None else image @ cols.T
        return image, (Fraction(height, image.shape[0]), Fraction(width, image.shape[1]))


STORED = Acquired((Band(),) * 3)  # the whole matrix was measured, without noise


@lru_cache(maxsize=16)  # all slices of a volume need the same two or three
def _to_canonical(band: Band, size: int) -> Float | None:
    """The matrix (m, size) that crops an axis to its canonical samples and undoes the window; None where nothing changes."""
    m = band.canonical_size(size)
    if m == size and not band.taper:
        return None
    return resampling(size, (np.arange(m) + 0.5) * (size / m), band.gains(m, size))


def lacking(canonical: Float, sr: Float, scales: Sequence[Fraction]) -> Float:
    """What `sr`, brought down to the canonical matrix again, lacks of the canonical image; (m_y, m_x)."""
    rows, cols = (_brought_down(m, r) for m, r in zip(canonical.shape, scales))
    return np.asarray(canonical - rows[:, : sr.shape[0]] @ sr @ cols[:, : sr.shape[1]].T, np.float32)


def given_back(lacks: Float, scales: Sequence[Fraction], rows: slice, cols: slice) -> Float:
    """What adds `lacking` to the output pixels rows × cols without changing anything else in its band."""
    up_y, up_x = (_interpolation(m, r) for m, r in zip(lacks.shape, scales))
    return np.asarray(up_y[rows] @ lacks @ up_x[cols].T, np.float32)


@lru_cache(maxsize=8)
def _interpolation(m: int, scale: Fraction) -> Float:
    """Zero filling: the matrix from an axis of m pixels to m·p // q, band-limited."""
    n = m * scale.numerator // scale.denominator
    return resampling(m, (np.arange(n) + 0.5) / float(scale), np.ones(m))


@lru_cache(maxsize=8)
def _brought_down(m: int, scale: Fraction) -> Float:
    """Its inverse on the band: what was interpolated comes back exactly, where m·p/q is no whole number too."""
    up = _interpolation(m, scale).astype(np.float64)
    return np.asarray(np.linalg.solve(up.T @ up, up.T), np.float32)
