"""Classical resampling on the shared grid: what the network is compared with, and how its training inputs are made."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from runtime import grid
from runtime.acquired import Band, resampling

Image = NDArray[np.float32]
Method = Literal["bilinear", "bicubic", "kspace", "canonical"]
METHODS: tuple[Method, ...] = ("bilinear", "bicubic", "kspace")  # that make an image as it is stored
TAPER = 0.5  # of the kept band, at its edge: Tukey's window as scipy has it by default


def upsample(image: Image, scales: grid.Scales, method: Literal["bilinear", "bicubic"] = "bicubic") -> Image:
    """(H, W) → (H·p_y // q_y, W·p_x // q_x), half-pixel centres, by exactly the scales; bicubic is Keys' with a = -1/2."""
    height, width = (grid.output_size(n, r) for n, r in zip(image.shape, scales))
    return resize(image, (height, width), method, (0.0, 0.0, float(width / scales[1]), float(height / scales[0])))


def downsample(
    image: Image,
    scales: grid.Scales,
    method: Method,
    start: tuple[int, int] = (0, 0),
    shape: tuple[int, int] | None = None,
    taper: float = TAPER,
) -> Image:
    """The antialiased low-resolution image of `shape` (without it, all that fits), whose field of view begins at pixel `start`.

    Pixels are half-pixel-centred and exactly r times as large; pixels around the field of view take part. bilinear and bicubic
    widen their kernel by r; kspace keeps the central 1/r of the mirrored image's spectrum through a Tukey window of `taper`;
    canonical is kspace with the window undone, as far as `runtime.acquired` undoes it.
    """
    top, left = start
    height, width = shape or (int((n - first) / r) for n, first, r in zip(image.shape, start, scales))
    if method in ("kspace", "canonical"):
        axes = zip(image.shape, scales, start, (height, width))
        rows, cols = (_band_limited(*axis, taper, method == "canonical") for axis in axes)
        return rows @ np.asarray(image, np.float32) @ cols.T
    box = (float(left), float(top), float(left + width * scales[1]), float(top + height * scales[0]))
    return resize(image, (height, width), method, box)


def resize(image: Image, shape: tuple[int, int], method: str, box: tuple[float, float, float, float] | None = None) -> Image:
    """The part of an image within `box` (left, top, right, bottom), or all of it, antialiased, as `shape`."""
    picture = Picture.fromarray(np.ascontiguousarray(image, np.float32))
    return np.array(picture.resize(shape[::-1], Picture.Resampling[method.upper()], box=box))


def halved(image: Image) -> Image:
    """The means of 2×2 pixels (H, W) → (H // 2, W // 2)."""
    rows, cols = (n // 2 for n in image.shape)
    return np.asarray(image[: 2 * rows, : 2 * cols].reshape(rows, 2, cols, 2).mean((1, 3)))


def _band_limited(size: int, scale: Fraction, start: int, count: int, taper: float, undone: bool) -> Image:
    """The matrix (count, size) from the pixels of an axis to band-limited samples of it, by way of their cosine transform."""
    if scale == 1:
        return np.eye(count, size, start, dtype=np.float32)
    band, cosines = Band(1 / float(scale), taper), math.ceil(size / scale)
    window = band.window(cosines, size) * (band.gains(cosines, size) if undone else 1)
    return resampling(size, start + (np.arange(count) + 0.5) * float(scale), window)


def rician(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    """A magnitude image with the noise that its complex one has: normal, of standard deviation `sigma` in both parts."""
    real, imaginary = rng.standard_normal((2, *image.shape), np.float32) * np.float32(sigma)
    return np.hypot(image + real, imaginary)
