"""What a training slice could have been: another scanner's, another contrast, a stripped brain, a noisier day."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from scipy.ndimage import gaussian_filter

from runtime import grid

from .resample import Image, resize
from .tables import require

NOISE = (0.003, 0.08)  # of white, from the best scans to the worst that anybody reads
Probability = Annotated[float, Field(ge=0, le=1)]


def _ordered(gain: tuple[float, float]) -> tuple[float, float]:
    require(0 < gain[0] <= gain[1] < np.inf, "gain", gain, "two positive factors, the lower one first")
    return gain


@dataclass(frozen=True)
class Augment:
    """How probable each change of a patch is; `gain` bounds the factor that every patch is multiplied by."""

    gain: Annotated[tuple[float, float], AfterValidator(_ordered)] = (0.7, 1.1)  # white differs by what else is in the picture
    zoom: Probability = 0.0  # resampled by 0.8…1.25: other pixel sizes, and the blur of resampling to 1 mm
    smooth: Probability = 0.0  # a Gaussian of 0.3…0.8 pixels: softer scanners
    curve: Probability = 0.0  # grey values redrawn: other contrasts
    strip: Probability = 0.0  # black outside of a blob, and white as bright as what is left: a stripped brain
    spots: Probability = 0.0  # up to four bright dots of a low-resolution pixel or less: a network without them shatters any
    noise: Probability = 0.0  # Rician, 0.3 to 8 % of white, in the low-resolution image only: the truth is what was meant

    def crop(self, crop: Image, least: int, rng: np.random.Generator) -> Image:
        """A crop (H, W) before patches are cut: perhaps resampled, to no less than `least` pixels an axis."""
        if rng.random() >= self.zoom:
            return crop
        factor = max(rng.uniform(0.8, 1.25), least / min(crop.shape))
        height, width = (max(least, round(n * factor)) for n in crop.shape)
        return resize(crop, (height, width), ("bilinear", "bicubic")[rng.integers(2)])

    def patch(self, patch: Image, start: tuple[int, int], shape: tuple[int, ...], rng: np.random.Generator) -> Image:
        """A high-resolution patch (h, w), which begins at `start` of a crop of `shape`."""
        if rng.random() < self.smooth:
            patch = gaussian_filter(patch, rng.uniform(0.3, 0.8))
        if rng.random() < self.curve:
            patch = _curve(patch, rng)
        if rng.random() < self.strip:
            patch = patch * _blob(patch.shape, start, shape, rng)
            patch = patch / max(float(np.percentile(patch, 99.9)), 0.3)
        return np.asarray(patch * np.float32(rng.uniform(*self.gain)), np.float32)

    def pair(self, lr: Image, hr: Image, scales: grid.Scales, rng: np.random.Generator) -> tuple[Image, Image]:
        """A low-resolution patch and its truth, perhaps both with dots."""
        if rng.random() < self.spots:
            for _ in range(rng.integers(1, 5)):
                lr, hr = _dotted(lr, hr, scales, rng)
        return lr, hr

    def sigma(self, rng: np.random.Generator) -> float:
        """The noise of a low-resolution patch: its standard deviation as a part of white, or 0."""
        return float(10 ** rng.uniform(*np.log10(NOISE))) if rng.random() < self.noise else 0.0


def _curve(patch: Image, rng: np.random.Generator) -> Image:
    """Black stays black; between it and white the curve is a power, or any that five points draw."""
    if rng.random() < 0.5:
        return np.asarray(np.maximum(patch, 0) ** np.float32(np.exp(rng.uniform(-0.4, 0.4))))
    points = np.concatenate([[0.0], rng.uniform(0.05, 0.4, 1), rng.uniform(0.1, 1.0, 4)])
    return np.interp(patch, np.array([0.0, 0.1, 0.3, 0.5, 0.75, 1.0]), points).astype(np.float32)


def _dotted(lr: Image, hr: Image, scales: grid.Scales, rng: np.random.Generator) -> tuple[Image, Image]:
    """Both with the same Gaussian dot in the middle of a low-resolution pixel, of σ = 0.2 to 0.8 such pixels, in the truth at
    least 0.45, which is as wide as the pixel.
    """
    peak, sigma = rng.uniform(0.2, 1.0), rng.uniform(0.2, 0.8)
    centre = [rng.integers(n) + 0.5 for n in lr.shape]
    dots = []
    for image, width, pixels in ((lr, sigma, (1.0, 1.0)), (hr, max(sigma, 0.45), [1 / float(r) for r in scales])):
        y, x = (np.exp(-((((np.arange(n) + 0.5) * p - c) / width) ** 2) / 2) for n, p, c in zip(image.shape, pixels, centre))
        dots.append(image + (peak * np.outer(y, x)).astype(np.float32))
    return dots[0], dots[1]


def faint_discs(patch: Image, scales: grid.Scales, sigma: float, rng: np.random.Generator) -> Image:
    """A high-resolution patch (h, w) with discs, all of one size, brighter or darker by one to three times `sigma`; without
    noise, by 0.5 to 1.5 % of white. They are 1.5 to 4 input pixels wide, and 10 apart.
    """
    pixel = max(map(float, scales))
    diameter, contrast = rng.uniform(1.5, 4) * pixel, rng.uniform(1, 3) * max(sigma, 0.005)
    pitch, discs = max(8, round(10 * pixel)), np.zeros_like(patch)
    for top, left in np.ndindex(*(n // pitch for n in patch.shape)):
        cell = discs[top * pitch : (top + 1) * pitch, left * pitch : (left + 1) * pitch]
        change = np.float32(rng.choice((-contrast, contrast)))
        cell += change * disc(cell.shape, pitch / 2 + rng.uniform(-1, 1, 2) * pixel, diameter)
    return np.maximum(patch + discs, 0)  # magnitudes


def disc(shape: tuple[int, ...], centre: Iterable[float], diameter: float) -> Image:
    """1 within a disc, 0 without, and between them at its edge; in pixels, whole numbers at their centres."""
    rows, cols = (np.arange(n) - at for n, at in zip(shape, centre))
    return np.clip(diameter / 2 - np.hypot(rows[:, None], cols) + 0.5, 0, 1).astype(np.float32)


def _blob(size: tuple[int, ...], start: tuple[int, int], shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Where a patch lies inside an ellipse that fills most of its crop, its radius waved by three slow harmonics."""
    y, x = ((np.arange(s) + a - n / 2) / (n / 2 * rng.uniform(0.55, 0.9)) for s, a, n in zip(size, start, shape))
    angle = np.arctan2(y[:, None], x[None])
    wave = sum(rng.uniform(0, 0.06) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    return np.asarray(np.hypot(y[:, None], x[None]) < 1 + wave)
