"""Classical interpolation on the shared grid: what the network is compared with, and how its training inputs are made."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime import grid

Kernel = Literal["bilinear", "bicubic"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def upsample(image: NDArray[np.float32], scales: grid.Scales, kernel: Kernel = "bicubic") -> NDArray[np.float32]:
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
) -> NDArray[np.float32]:
    """The low-resolution image of `shape` whose field of view begins at pixel `start` of `image`, antialiased.

    The kernel is widened by r, pixels are half-pixel-centred and exactly r times as large; pixels of `image` around the
    field of view take part, as they would in a larger image. Without `shape`, as much as fits: floor(n / r) an axis.
    """
    if shape is None:
        shape = (int((image.shape[0] - start[0]) / scales[0]), int((image.shape[1] - start[1]) / scales[1]))
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


def brain_crop(image: NDArray[np.float32], threshold: float = 0.05) -> tuple[slice, slice]:
    """The maximal-information crop: the smallest rectangle with every pixel above `threshold` of the image's maximum.

    An image without any (all black, say) gives the empty crop (slice(0, 0), slice(0, 0)).
    """
    bright = image > threshold * image.max(initial=0.0)
    rows, cols = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
