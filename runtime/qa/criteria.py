"""What is measured of an upscaled slice beside bicubic interpolation of it: SNR, ripple, edges, consistency.

Images are (H, W), black 0 and white about 1; `scales` are how much larger they are than their input. Lengths are in input
pixels. Places are chosen in the bicubic image, and all images are measured at the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image as Pillow

from .. import grid, sizes
from ..acquired import Acquired, Float

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
_PROFILES, _REACH, _STEP = 200, 4.0, 0.125  # edges of a slice whose width is measured; input pixels to either side; between


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
    for axis, r in enumerate(scales):
        wide = sigma * float(r)
        reach = int(4 * wide + 0.5)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / wide) ** 2)
        padded = np.pad(image.astype(np.float64), [(reach * (axis == k),) * 2 for k in (0, 1)], "symmetric")
        n = image.shape[axis]
        shifted = (padded[k : k + n] if axis == 0 else padded[:, k : k + n] for k in range(2 * reach + 1))
        image = sum((w * part for w, part in zip(weights / weights.sum(), shifted)), np.zeros(image.shape)).astype(image.dtype)
    return image


def in_tissue(coarse: Image, size: int | Sequence[int]) -> Mask:
    """Where a window around a pixel, of an odd size, shows nothing but tissue."""
    tissue: Mask = coarse > TISSUE
    for axis, wide in enumerate([size] * 2 if isinstance(size, int) else size):
        padded = np.pad(tissue, [(wide // 2 * (axis == k),) * 2 for k in (0, 1)])
        tissue = np.all(sliding_window_view(padded, wide, axis), -1)
    return tissue


def flat_tissue(image: Image, scales: grid.Scales) -> Mask:
    """Where an image, `scales` times as large as its input, shows the flattest tissue."""
    coarse = smooth(image, COARSE, scales)
    inside, slope = in_tissue(coarse, [2 * int(INSIDE * r) + 1 for r in scales]), gradient(coarse, scales)
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


def regions(image: Image, scales: grid.Scales) -> list[tuple[slice, slice]]:
    """Up to `REGIONS` squares in the flattest tissue that do not overlap, as a person would place them for an SNR."""
    coarse = smooth(image, COARSE, scales)
    size = [2 * int(REGION * r / 2) + 1 for r in scales]
    wide = [n + 2 * int(r) for n, r in zip(size, scales)]
    slope = np.where(in_tissue(coarse, wide), smooth(gradient(coarse, scales), REGION / 3, scales), np.inf)
    found: list[tuple[slice, slice]] = []
    while len(found) < REGIONS and np.isfinite(slope.min(initial=np.inf)):
        row, col = map(int, np.unravel_index(np.argmin(slope), slope.shape))
        top, left = row - size[0] // 2, col - size[1] // 2
        found.append((slice(top, top + size[0]), slice(left, left + size[1])))
        slope[max(0, row - size[0]) : row + size[0] + 1, max(0, col - size[1]) : col + size[1] + 1] = np.inf
    return found


def snr(region: Image) -> float:
    """Mean over standard deviation; infinite where nothing differs."""
    with np.errstate(divide="ignore"):
        return float(region.mean(dtype=np.float64) / region.std(dtype=np.float64))


def edge_width(image: Image, like: Image, scales: grid.Scales) -> float:
    """The median distance, in input pixels, over which an edge rises from 10 to 90 %, at the steepest edges of `like`.

    Along the gradient, an edge goes from where the image stops to fall to where it stops to rise. NaN without an edge.
    """
    r = np.array([float(scale) for scale in scales])
    soft = smooth(like, EDGE, scales)
    slopes = np.array(np.gradient(soft, *(1 / r)))
    places = np.argwhere(steepest(like, scales))
    places = places[np.unique(np.linspace(0, len(places) - 1, min(_PROFILES, len(places))).astype(int))]
    if not len(places):
        return np.nan
    along = slopes[:, places[:, 0], places[:, 1]]
    steps = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    at = places.T[..., None] + (along / np.hypot(*along) * r[:, None])[..., None] * steps  # (2, edges, steps)
    widths = [width for profile in _sampled(image, at) if (width := _rise(profile))]
    return float(np.median(widths)) * _STEP if widths else np.nan


def consistency(acquired: Acquired, unit: Image, sr: Image, scales: grid.Scales) -> tuple[float, float]:
    """RMSE and worst pixel of what `sr` lacks of the acquired k-space of its input `unit`, both as parts of white."""
    lacks = acquired.given_back(acquired.lacking(unit, sr, scales), unit.shape, sizes.UNSCALED[:2])
    return float(np.sqrt(np.mean(np.square(lacks, dtype=np.float64)))), float(np.abs(lacks).max())


def _sampled(image: Image, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at places (2, …), in pixels, by linear interpolation; those beyond the border are that of the border."""
    whole = [np.clip(np.floor(x).astype(int), 0, n - 2) for x, n in zip(at, image.shape)]
    (y, x), (v, u) = whole, (np.clip(p - w, 0, 1) for p, w in zip(at, whole))
    above, below = (image[row, x] * (1 - u) + image[row, x + 1] * u for row in (y, y + 1))
    return np.asarray(above * (1 - v) + below * v)


def _rise(profile: NDArray[np.float64]) -> float:
    """Steps between 10 and 90 % of the rise through the middle of a profile; 0 where it does not rise."""
    middle, climbs = len(profile) // 2, np.diff(profile) > 0
    down, up = climbs[:middle][::-1], climbs[middle:]
    first = middle - (len(down) if down.all() else int(down.argmin()))
    last = middle + (len(up) if up.all() else int(up.argmin()))
    rise = profile[first : last + 1]
    if len(rise) < 2:
        return 0.0
    low, high = np.interp([0.1, 0.9], (rise - rise[0]) / (rise[-1] - rise[0]), np.arange(len(rise)))
    return float(high - low)
