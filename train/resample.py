"""Classical resampling on the shared grid: what the network is compared with, and how its training inputs are made."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime import grid
from runtime.acquired import Band, resampling

Kernel = Literal["bilinear", "bicubic", "kspace"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
TAPER = 0.5  # of the kept band, at its edge: Tukey's window as scipy has it by default
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def upsample(
    image: NDArray[np.float32], scales: grid.Scales, kernel: Literal["bilinear", "bicubic"] = "bicubic"
) -> NDArray[np.float32]:
    """(H, W) → (H·p_y // q_y, W·p_x // q_x), half-pixel centres, by exactly the scales; bicubic is Keys' with a = -1/2."""
    height, width = (grid.output_size(n, r) for n, r in zip(image.shape, scales))
    box = (0.0, 0.0, float(width / scales[1]), float(height / scales[0]))
    return _resize(image, (height, width), box, kernel)


def downsample(
    image: NDArray[np.float32],
    scales: grid.Scales,
    kernel: Kernel,
    start: tuple[int, int] = (0, 0),
    shape: tuple[int, int] | None = None,
    taper: float = TAPER,
) -> NDArray[np.float32]:
    """The low-resolution image of `shape` whose field of view begins at pixel `start` of `image`, antialiased.

    Pixels are half-pixel-centred and exactly r times as large; pixels of `image` around the field of view take part, as
    they would in a larger image. Without `shape`, as much as fits: floor(n / r) an axis. bilinear and bicubic widen their
    kernel by r. kspace keeps the central 1/r of the spectrum of the image mirrored at its borders, as a scanner that
    measures less of k-space, with the outer `taper` of what it keeps rolled off by a raised cosine (a Tukey window).
    """
    if shape is None:
        shape = (int((image.shape[0] - start[0]) / scales[0]), int((image.shape[1] - start[1]) / scales[1]))
    if kernel == "kspace":
        rows, cols = (_band_limited(*axis, taper) for axis in zip(image.shape, scales, start, shape))
        return rows @ np.asarray(image, np.float32) @ cols.T
    top, left = start
    box = (float(left), float(top), float(left + shape[1] * scales[1]), float(top + shape[0] * scales[0]))
    return _resize(image, shape, box, kernel)


def _resize(
    image: NDArray[np.float32], shape: tuple[int, int], box: tuple[float, float, float, float], kernel: Kernel
) -> NDArray[np.float32]:
    if kernel not in _FILTERS:
        raise ValueError(f"kernel {kernel!r} is unknown: use one of {', '.join(_FILTERS)}")
    picture = Image.fromarray(np.ascontiguousarray(image, np.float32))
    return np.array(picture.resize((shape[1], shape[0]), _FILTERS[kernel], box=box))


def _band_limited(size: int, scale: Fraction, start: int, count: int, taper: float) -> NDArray[np.float32]:
    """The matrix (count, size) from the pixels of an axis to band-limited samples of it, by way of their cosine transform."""
    if scale == 1:
        return np.eye(count, size, start, dtype=np.float32)
    window = Band(1 / float(scale), taper).window(math.ceil(size / scale), size)
    return resampling(size, start + (np.arange(count) + 0.5) * float(scale), window)


def rician(image: NDArray[np.float32], sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A magnitude image with the noise that its complex one has: normal, of standard deviation `sigma` in both parts."""
    real, imaginary = rng.standard_normal((2, *image.shape), np.float32) * np.float32(sigma)
    return np.hypot(image + real, imaginary)


def brain_crop(image: NDArray[np.float32], threshold: float = 0.05) -> tuple[slice, slice]:
    """The maximal-information crop: the smallest rectangle with every pixel above `threshold` of the image's maximum, or of 1.

    A voxel above white, 1, does not hide the rest. An image without any (all black, say) gives the empty crop
    (slice(0, 0), slice(0, 0)).
    """
    bright = image > threshold * min(image.max(initial=0.0), 1.0)
    rows, cols = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
