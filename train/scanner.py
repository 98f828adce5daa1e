"""A scanner, as far as an image shows it: part of k-space, a window on it, zeros around it, noise, the magnitude.

k-space is that of the image mirrored at its borders, as in `runtime.acquired`: of an axis of n pixels, a scanner that measures
the fraction f of a matrix of n / r pixels measures the first f · n / r cosines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from runtime import grid
from runtime.acquired import Band, Told, resampling

from .resample import Image

HAMMING = Band(taper=1.0, floor=0.08)


@dataclass(frozen=True)
class Acquisition:
    """How a scan is made: what is measured of rows and columns, and with how much noise."""

    bands: tuple[Band, Band]  # of rows and columns
    sigma: float = 0.0  # of white: the noise of the real and of the imaginary part, where the window is 1
    ellipse: bool = False  # the corners of k-space are left out
    partial: int | None = None  # the axis of which 6/8 are measured (partial Fourier): beyond half of the band one side alone


def acquire(
    image: Image, scales: grid.Scales, how: Acquisition, shape: tuple[int, ...], rng: np.random.Generator, seen: float = 0.0
) -> tuple[Image, Image]:
    """The magnitude image of `shape` that a scanner stores of `image`, its pixels `scales` times as large; and its truth.

    The outer edges of the first pixels lie together. The truth is `image`, with the part `seen` of the noise's σ in it.
    """
    sizes = [n / float(r) for n, r in zip(image.shape, scales)]
    bands = [n * band.fraction for n, band in zip(sizes, how.bands)]
    count = [int(np.ceil(band)) for band in bands]
    window = np.outer(*(band.window(c, n) for band, c, n in zip(how.bands, count, sizes)))
    if how.ellipse:
        window[np.hypot(*np.ix_(*(np.arange(n) / band for n, band in zip(count, bands)))) > 1] = 0
    fine = [_waves(np.cos, np.arange(n) + 0.5, c, n) for n, c in zip(image.shape, count)]
    places = [(np.arange(n) + 0.5) * float(r) for n, r in zip(shape, scales)]
    waves = [_waves(np.cos, at, c, n) for at, c, n in zip(places, count, image.shape)]

    density = how.sigma * float(np.sqrt(np.prod(image.shape) / np.prod(bands)))
    noise = (density * rng.standard_normal((2, *count))).astype(np.float32) if how.sigma else np.zeros((2, 1, 1), np.float32)
    truth = image
    if how.sigma and seen:
        in_truth = [fine[0] @ (seen * part * (window > 0)) @ fine[1].T for part in noise]
        truth = np.hypot(image + in_truth[0], in_truth[1]).astype(np.float32)
        rest = np.float32(density * (1 - seen**2) ** 0.5)
        noise = noise * np.float32(seen) + rng.standard_normal(noise.shape, np.float32) * rest
    real, imaginary = (fine[0].T @ image @ fine[1] + noise[0]) * window, noise[1] * window
    if how.partial is None:
        return np.hypot(_image(waves, real), _image(waves, imaginary)).astype(np.float32), truth
    # One side of k-space is half a cosine in the real part, half a sine in the imaginary one, and half of the noise's power.
    one_sided = np.expand_dims(np.arange(count[how.partial]) > bands[how.partial] / 2, 1 - how.partial)
    crossed = [*waves]
    crossed[how.partial] = _waves(np.sin, places[how.partial], count[how.partial], image.shape[how.partial])
    quadrature = _image(crossed, real * one_sided / 2)
    real, imaginary = real * np.where(one_sided, 0.5, 1), imaginary * np.where(one_sided, 0.5**0.5, 1)
    return np.hypot(_image(waves, real), _image(waves, imaginary) + quadrature).astype(np.float32), truth


def canonical_patch(
    around: Image, scales: grid.Scales, start: tuple[int, int], shape: tuple[int, int], sigma: float, rng: np.random.Generator
) -> tuple[Image, Image, Told]:
    """A scan of `around` in canonical form, with the runtime's errors: the patch (of `shape` pixels, `scales` times as large,
    from pixel `start` on), its truth, as large as `around`, and what the runtime would tell.

    In a quarter of the noisy patches a part of the noise is in the truth and not told: a network learns to take off what it is
    told, and no more.
    """
    first = _draw(rng)
    drawn = (first, first if rng.random() < 0.5 else _draw(rng))
    seen = min(1.0, rng.uniform(0, 1.2)) if sigma and rng.random() < 0.25 else 0.0
    ellipse, partial = rng.random() < 0.2, int(rng.integers(2)) if rng.random() < 0.1 else None
    ends = [n / float(r) for n, r in zip(around.shape, scales)]  # cosines of the canonical matrix
    measured = [end * error for end, (_, _, error) in zip(ends, drawn)]
    stored = [int(np.ceil(max(pair) * rng.uniform(1, 1.8))) for pair in zip(ends, measured)]
    bands = [replace(band, fraction=end / n) for end, n, (band, _, _) in zip(measured, stored, drawn)]
    how = Acquisition((bands[0], bands[1]), sigma, ellipse, partial)
    sizes = (Fraction(around.shape[0], stored[0]), Fraction(around.shape[1], stored[1]))
    scan, truth = acquire(around, sizes, how, tuple(stored), rng, seen)
    for k, (_, guess, _) in enumerate(drawn):
        count = int(np.ceil(ends[k]))
        gains = replace(guess, fraction=ends[k] / stored[k]).gains(count, stored[k])
        sigma *= float(np.sqrt(np.sum((gains * bands[k].window(count, stored[k])) ** 2) / measured[k]))  # of the noise is left
        places = (start[k] + (np.arange(shape[k]) + 0.5) * float(scales[k])) * (stored[k] / around.shape[k])
        matrix = resampling(stored[k], places, gains)
        scan = matrix @ scan if k == 0 else scan @ matrix.T
    sigma *= float((1 - seen**2) ** 0.5 * np.exp(0.12 * rng.standard_normal()))
    return scan, truth, (sigma, drawn[0][1].soft, drawn[1][1].soft)


def _draw(rng: np.random.Generator) -> tuple[Band, Band, float]:
    """Of an axis: its window, the one that the estimate finds, and how much farther than by that its band really goes.

    Errors are as large as the runtime's (docs/acquired.md). Larger ones would teach a network to undo nothing.
    """
    kind = rng.random()
    band = HAMMING if kind < 0.2 else Band(taper=rng.uniform(0.05, 0.7) if kind < 0.5 else 0.0)
    if rng.random() < 0.04:
        return band, Band(), rng.uniform(0.5, 1)  # neither the window nor the zeros are found
    taper = band.taper + 0.05 * rng.standard_normal() if band.taper else rng.uniform(-0.8, 0.1)
    if rng.random() < 0.05:
        taper = 0.0
    return band, Band(taper=float(np.clip(taper, 0, 1))), float(np.exp((0.008 + 0.015 * band.taper) * rng.standard_normal()))


def _waves(wave: np.ufunc, places: np.ndarray, count: int, size: int) -> Image:
    """The first `count` cosines (or sines) of an axis of `size` pixels, orthonormal over them, at places in pixels."""
    k = np.arange(count)
    return np.asarray(wave(np.pi / size * np.outer(places, k)) * np.where(k, np.sqrt(2 / size), np.sqrt(1 / size)), np.float32)


def _image(waves: list[Image], coefficients: np.ndarray) -> np.ndarray:
    return np.asarray(waves[0] @ coefficients @ waves[1].T)
