"""What a network learned from, in a few ranges, and whether a scan lies outside. Pure arithmetic on arrays, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import measure
from .acquired import Acquired, Float
from .intensity import Intensity
from .scan import Scan

Range = tuple[float, float]

_SIZE = 64  # pixels of the shorter axis, about, that slices are averaged to: there is no noise left that would tell
_TISSUE, _ABOVE_NOISE = 0.1, 2.5  # of white, and σ: brighter than both is tissue
_FIELD = 400.0  # mm: a picture of a head that does not tell shows no more
_RIM = 0.12  # of the shorter axis: so deep below the outline is the rim, in a head its scalp and skull
_MIN_RIM = 0.15  # of the tissue: with less of a rim the picture is a crop, whose rim does not tell
_ENOUGH = 40  # averaged pixels that tell
_WHITE, _SATURATED = 0.99, 0.01  # of white: above it is saturated; of the tissue
_DECILES, _EQUAL = (0.1, 0.5, 0.9), 0.02  # of white: what differs less counts as nothing
_LEAST = 1e-3  # where logarithms end
# How far beyond a range of single slices, as a part of it, a number may lie: that of so few slices that each may be odd, that
# of a volume, and the median over a volume's slices, which varies less.
_FEW, _BEYOND_FEW, _BEYOND, _BEYOND_MEDIAN = 3, 0.25, 0.15, -0.15


@dataclass(frozen=True)
class Envelope:
    """Ranges (from, to) of the scans that a network learned from; None and missing ones are not known.

    `pixel_mm` is the size of acquired pixels, `acquired` the acquired matrix over the stored one, `noise` σ as a part of white,
    `grey` those of `statistics`. `images` says in words what it learned from.
    """

    pixel_mm: Range | None = None
    acquired: Range | None = None
    noise: Range | None = None
    grey: Mapping[str, Range] = field(default_factory=dict)
    images: str = "images"

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Envelope:
        """From a manifest, whose unknown entries are ignored. Raises what it stumbles over where a range is none."""
        ranges = {name: _range(plain[name]) for name in ("pixel_mm", "acquired", "noise") if plain.get(name) is not None}
        images = plain.get("images", "images")
        if not isinstance(images, str) or not images.isprintable() or not 0 < len(images) <= 80:
            raise ValueError("images is no short text")
        return cls(grey={str(k): _range(v) for k, v in plain.get("grey", {}).items()}, images=images, **ranges)

    def outside(self, scan: Scan, intensity: Intensity, acquired: Acquired) -> tuple[str, ...]:
        """One line where a scan of this intensity, of which this was measured, lies outside; none where it lies inside."""
        pair = scan.in_plane
        bands = [acquired.bands[k] for k in pair]
        known = scan.affine is not None and all(math.isfinite(scan.spacing[k]) for k in pair)
        sizes = [float(band.spacing) * (scan.spacing[k] if known else _FIELD / scan.shape[k]) for k, band in zip(pair, bands)]
        low, high = self.pixel_mm or (0, math.inf)
        said = []
        if min(sizes) < low or (known and max(sizes) > high):
            shown, most = "×".join(f"{size:.2g}" for size in sizes), "" if known else " at most"
            said.append(f"pixels of {shown} mm{most} (it knows {_said((low, high))})")
        if self.acquired and not all(_within(band.fraction, self.acquired) for band in bands):
            parts = " and ".join(f"{100 * band.fraction:.0f} %" for band in bands)
            said.append(f"{parts} of the stored matrix was measured (it knows {_said(self.acquired, 100)} %)")
        if self.noise and not _within(acquired.sigma, self.noise):
            said.append(f"noise of {100 * acquired.sigma:.0f} % of white (it knows {_said(self.noise, 100)} %)")
        colour = scan.colour and bool(np.ptp(scan.pixels, axis=0).any())
        if colour:
            said.append(f"a colour picture (it knows {self.images})")
        elif self.grey:
            first: tuple[Any, ...] = (..., *(0,) * (scan.pixels.ndim - 3))  # of several volumes
            slices = measure.fullest(measure.some_slices(scan.pixels[first], pair[0], pair[1], intensity))
            found = statistics(slices, acquired.sigma)
            reach = dict.fromkeys(found, _BEYOND_FEW) if len(slices) < _FEW else {"skew": _BEYOND_MEDIAN}
            if not all(_within(found[k], self.grey[k], reach.get(k, _BEYOND)) for k in found.keys() & self.grey.keys()):
                said.append(f"grey values are not distributed as in the {self.images} that it knows")
        return (f"outside of what the network learned from: {'; '.join(said)}: do not trust fine detail",) if said else ()


def statistics(slices: Sequence[Float], sigma: float = 0.0) -> dict[str, float]:
    """Numbers that tell one kind of image from another, of the slices (H, W) of one volume, black 0 and white 1.

    All but the last are logarithms. None of them is there where too little shows it.

    - `rim`: the median of what lies near the outline, over the median of what lies inside. Fat is bright in T1.
    - `skew`: how far the brightest tenth inside lies above the median, over how far the darkest lies below; the median over
      the slices. Fluid is bright in T2.
    - `contrast`: the distance of those two over the median. In a CT, all of the brain is one grey.
    - `detail`: how far pixels are off their neighbours' mean, relatively, in the median.
    - `saturated`: the part of the tissue that is white, beyond the one per cent that any small crop may have.
    """
    inside, rim, tissue, detail, skews = [], [], [], [], []
    for image in slices:
        step = max(1, int(min(image.shape) / _SIZE + 0.5))
        rows, cols = (n // step for n in image.shape)
        coarse = image[: rows * step, : cols * step].reshape(rows, step, cols, step).mean((1, 3))
        bright = coarse > max(_TISSUE, _ABOVE_NOISE * sigma)
        deep = _inside(bright, max(2, round(_RIM * min(coarse.shape)))) & bright
        mean, amid = _neighbours(coarse).mean(0), bright & _neighbours(bright).all(0)
        inside.append(coarse[deep])
        if deep.sum() >= _ENOUGH:
            dark, median, light = np.quantile(coarse[deep], _DECILES)
            skews.append(math.log((light - median + _EQUAL) / (median - dark + _EQUAL)))
        rim.append(coarse[bright & ~deep])
        tissue.append(coarse[bright])
        detail.append((np.abs(coarse - mean) / np.maximum(mean, _TISSUE / 2))[amid])
    within, outer, whole, fine = (np.concatenate([np.zeros(0), *part]) for part in (inside, rim, tissue, detail))
    if not skews or len(fine) < _ENOUGH:
        return {}
    dark, median, light = np.quantile(within, _DECILES)
    found = {
        "skew": float(np.median(skews)),
        "contrast": math.log(max((light - dark) / median, _LEAST)),
        "detail": math.log(max(float(np.median(fine)), _LEAST)),
        "saturated": max(0.0, float((whole > _WHITE).mean()) - _SATURATED),
    }
    return found | ({"rim": math.log(np.median(outer) / median)} if len(outer) > _MIN_RIM * len(whole) else {})


def _neighbours(image: NDArray[Any]) -> NDArray[Any]:
    """The pixels below, above, to the right and to the left of each pixel (H, W), edges repeated; (4, H, W)."""
    framed = np.pad(image, 1, mode="edge")
    return np.stack([framed[2:, 1:-1], framed[:-2, 1:-1], framed[1:-1, 2:], framed[1:-1, :-2]])


def _inside(tissue: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Pixels (H, W) with tissue in all four directions, there and `margin` pixels away on every side; crops go on."""
    along = np.logical_or.accumulate
    enclosed = along(tissue, 0) & along(tissue[::-1], 0)[::-1] & along(tissue, 1) & along(tissue[:, ::-1], 1)[:, ::-1]
    framed = np.pad(enclosed, margin, mode="edge")
    height, width = tissue.shape
    for top in (0, margin, 2 * margin):
        for left in (0, margin, 2 * margin):
            enclosed = enclosed & framed[top : top + height, left : left + width]
    return enclosed


def _range(pair: Any) -> Range:
    low, high = (float(end) for end in pair)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{pair} is no range")
    return low, high


def _within(value: float, limits: Range, beyond: float = 0.0) -> bool:
    reach = beyond * (limits[1] - limits[0])
    return limits[0] - reach <= value <= limits[1] + reach


def _said(limits: Range, times: float = 1) -> str:
    return f"{times * limits[0]:.3g} to {times * limits[1]:.3g}"
