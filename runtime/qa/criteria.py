"""What is measured of an upscaled slice beside bicubic interpolation of it: SNR, ripple, edges.

Images are (H, W), black 0 and white about 1; `scales` are how much larger they are than their input. Lengths are in input
pixels. Places are chosen in the bicubic image, and all images are measured at the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image as Pillow

from .. import grid
from ..acquired import Float

Image = Float
Mask = NDArray[np.bool_]

SLICES = 9  # of a scan, evenly from those that show tissue
MIN_TISSUE, TISSUE = 0.05, 0.15  # of a slice, or it shows none; of white: what is brighter is tissue
# σ of Gaussians, in input pixels: what is finer than the first is ripple, tissue is flat after the second, edges steep after
# the third.
FINE, COARSE, EDGE = 0.75, 1.5, 0.5
INSIDE = 4  # input pixels: flat tissue is farther than this from any other
FLATTEST, STEEPEST = 0.30, 0.05  # parts of the tissue
REGION, REGIONS = 7, 4  # input pixels an axis of a region of interest; how many of them in a slice
REACH = 2  # input pixels to either side of an edge, in which its dark and its bright end lie


def bicubic(image: Image, scales: grid.Scales) -> Image:
    """Keys' interpolation (a = -1/2) of a slice, on the grid of the output."""
    height, width = (grid.output_size(n, r) for n, r in zip(image.shape, scales))
    box = 0.0, 0.0, float(width / scales[1]), float(height / scales[0])
    return np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BICUBIC, box))


def signed(part: float, digits: int = 0) -> str:
    """A change as a person reads it: −5 %, with no zero below 0."""
    return f"{round(100 * part, digits) + 0.0:+.{digits}f}\N{NO-BREAK SPACE}%".replace("-", "−")


def shows_tissue(image: Image) -> bool:
    return bool((image > TISSUE).mean() > MIN_TISSUE)


def gradient(image: Image, scales: grid.Scales) -> Image:
    """The size of an image's gradient, per input pixel."""
    slope: Image = np.hypot(*np.gradient(image, *(1 / float(r) for r in scales)))
    return slope


def smooth(image: Image, sigma: float, scales: grid.Scales) -> Image:
    """An image, mirrored at its borders, after a Gaussian of so many input pixels, out to four times σ."""
    smoothed = image.astype(np.float64)
    for axis, r in enumerate(scales):
        wide = sigma * float(r)
        reach = int(4 * wide + 0.5)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / wide) ** 2)
        padded = np.pad(smoothed, [(reach * (axis == k),) * 2 for k in (0, 1)], "symmetric")
        smoothed = np.apply_along_axis(np.convolve, axis, padded, weights / weights.sum(), "valid")
    return smoothed.astype(image.dtype)


def windows(image: Image | Mask, sizes: Sequence[int], reduce: Callable[..., NDArray[Any]]) -> NDArray[Any]:
    """`reduce`, such as np.max, of a window around each pixel whose sizes are odd; there is air beyond the border."""
    for axis, size in enumerate(sizes):
        padded = np.pad(image, [(size // 2 * (axis == k),) * 2 for k in (0, 1)])
        image = reduce(sliding_window_view(padded, size, axis), -1)
    return image


def flat_tissue(image: Image, scales: grid.Scales) -> Mask:
    """Where an image, `scales` times as large as its input, shows the flattest tissue."""
    coarse = smooth(image, COARSE, scales)
    inside = windows(coarse > TISSUE, [2 * int(INSIDE * r) + 1 for r in scales], np.all)
    slope = gradient(coarse, scales)
    return inside & (slope <= np.quantile(slope[inside], FLATTEST) if inside.any() else False)


def steepest(image: Image, scales: grid.Scales) -> Mask:
    """Where the gradient of an image's tissue is largest."""
    slope, tissue = gradient(smooth(image, EDGE, scales), scales), image > TISSUE
    return tissue & (slope >= np.quantile(slope[tissue], 1 - STEEPEST) if tissue.any() else False)


def ripple_and_edges(image: Image, flat: Mask, steep: Mask, scales: grid.Scales) -> tuple[float, float]:
    """The standard deviation of what is finer than `FINE` where it is `flat`, and the mean gradient where it is `steep`.

    NaN without such a pixel.
    """
    fine, slope = image - smooth(image, FINE, scales), gradient(smooth(image, EDGE, scales), scales)
    return float(fine[flat].std()) if flat.any() else np.nan, float(slope[steep].mean()) if steep.any() else np.nan


def flattest(image: Image, scales: grid.Scales, sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """The centres of up to `most` windows of these sizes in the flattest tissue, so far apart that they do not overlap."""
    coarse = smooth(image, COARSE, scales)
    slope = np.where(windows(coarse > TISSUE, sizes, np.all), windows(gradient(coarse, scales), sizes, np.mean), np.inf)
    places: list[tuple[int, int]] = []
    while len(places) < most and np.isfinite(slope.min(initial=np.inf)):
        row, col = map(int, np.unravel_index(np.argmin(slope), slope.shape))
        places.append((row, col))
        slope[max(0, row - sizes[0]) : row + sizes[0] + 1, max(0, col - sizes[1]) : col + sizes[1] + 1] = np.inf
    return places


def regions(image: Image, scales: grid.Scales) -> list[tuple[slice, slice]]:
    """Up to `REGIONS` squares in the flattest tissue, as a person would place them for an SNR, with room around them."""
    half = [int(REGION * r / 2) for r in scales]
    places = flattest(image, scales, [2 * (n + int(r)) + 1 for n, r in zip(half, scales)], REGIONS)
    return [(slice(y - half[0], y + half[0] + 1), slice(x - half[1], x + half[1] + 1)) for y, x in places]


def snr(region: Image) -> float:
    """Mean over standard deviation."""
    return float(region.mean(dtype=np.float64) / region.std(dtype=np.float64))


def edge_width(image: Image, steep: Mask, scales: grid.Scales) -> float:
    """The median width of edges, in input pixels: how far each would go from dark to bright at its steepest slope."""
    around = [2 * int(REACH * r) + 1 for r in scales]
    rise = windows(image, around, np.max) - windows(image, around, np.min)
    slope = windows(gradient(image, scales), around, np.max)
    return float(np.median(rise[steep] / slope[steep]))
