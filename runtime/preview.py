"""The picture to judge an output by: input, bicubic and ours side by side, where the input shows most detail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from . import grid
from .intensity import Intensity
from .sizes import AxisScales

_WINDOW = 96  # input pixels an axis
_PANEL = 384  # pixels that a panel's longer side has at least
_GAP, _TITLE, _FONT = 10, 36, 22


def of_volume(before: Any, after: Any, axis: int, by_axis: AxisScales) -> Image.Image:
    """The middle slice, across `axis`, of a NIfTI image and of what `volume.upscale` made of it.

    Where the slices became thinner and nothing else, it is the middle plane that contains their axis.
    """
    in_plane = [k for k in range(min(3, len(before.shape))) if k != axis]
    if all(by_axis[k] == 1 for k in in_plane) and by_axis[axis] != 1:
        in_plane = sorted((in_plane[0], axis))

    def plane(image: Any, scales: Sequence[Fraction]) -> NDArray[Any]:
        centres = [Fraction(2 * (n // 2) + 1, 2) for n in before.shape]  # of the input's middle pixels
        places = [int(centre * (scales[k] if k < 3 else 1)) for k, centre in enumerate(centres)]
        return np.asarray(image.dataobj[tuple(slice(None) if k in in_plane else place for k, place in enumerate(places))])

    slope, inter = after.header.get_slope_inter()
    ours = plane(after, by_axis) * (slope or 1) + (inter or 0)
    axes = nib.aff2axcodes(before.affine)
    names = "".join(axes[k] or "" for k in in_plane)
    return side_by_side(plane(before, (Fraction(1),) * 3), ours, (by_axis[in_plane[0]], by_axis[in_plane[1]]), names)


def of_planes(before: NDArray[Any], after: NDArray[Any], scales: grid.Scales, colour: bool) -> Image.Image:
    """A picture (H, W), the middle of a stack (N, H, W), or the mean of a picture's three colours (3, H, W)."""
    planes = [p if p.ndim == 2 else p.mean(0) if colour else p[len(p) // 2] for p in (before, after)]
    return side_by_side(planes[0], planes[1], scales)


def side_by_side(before: NDArray[Any], ours: NDArray[Any], scales: grid.Scales, axes: str = "") -> Image.Image:
    """A slice (H, W) as blocks, by bicubic interpolation and as it was upscaled by `scales`, on one grey scale.

    `axes` is where the two array axes lead, for `upright`.
    """
    before, ours = np.nan_to_num(before), np.nan_to_num(ours)
    intensity = Intensity.of(before)
    unit = intensity.normalise(before)
    rows, cols = most_detailed(unit)
    low, high = np.percentile(unit[slice(*rows), slice(*cols)], (0.5, 99.5))
    grey, ours = ((pixels - low) * (255 / ((high - low) or 1)) for pixels in (unit, intensity.normalise(ours)))
    (top, bottom), (left, right) = ((math.ceil(a * r), int(b * r)) for (a, b), r in zip((rows, cols), scales))
    size = right - left, bottom - top
    box = float(left / scales[1]), float(top / scales[0]), float(right / scales[1]), float(bottom / scales[0])
    image = Image.fromarray(grey.astype(np.float32))
    panels = {
        "input": np.asarray(image.resize(size, Image.Resampling.NEAREST, box)),
        "bicubic": np.asarray(image.resize(size, Image.Resampling.BICUBIC, box)),
        "ours": ours[top:bottom, left:right],
    }
    return _sheet({name: upright(np.clip(pixels, 0, 255).astype(np.uint8), axes) for name, pixels in panels.items()})


def most_detailed(image: NDArray[Any], side: int = _WINDOW) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and columns, (first, end) each, of the window of `side` pixels whose neighbours differ most."""
    height, width = (min(n, side) for n in image.shape)
    detail = np.sum(np.abs(np.gradient(image.astype(float))), axis=0)
    detail = np.minimum(detail, np.median(detail[detail > 0])) if detail.any() else detail  # or it is the skull's rim
    total = np.pad(np.cumsum(np.cumsum(detail, 0), 1), ((1, 0), (1, 0)))
    within = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    row, col = (int(k) for k in np.unravel_index(within.argmax(), within.shape))
    return (row, row + height), (col, col + width)


def upright(image: NDArray[Any], axes: str) -> NDArray[Any]:
    """(H, W) turned as radiologists look at it: head or face up, the patient's left on the right, the face on the left.

    `axes` names where the two array axes lead, as nibabel does, from "LRPAIS"; anything else leaves the image as it is.
    """
    if len(axes) != 2:
        return image
    rows_first = "SIAPLR".index(axes[0]) < "SIAPLR".index(axes[1])
    image, down, right = (image, axes[0], axes[1]) if rows_first else (image.T, axes[1], axes[0])
    return image[:: -1 if down in "SA" else 1, :: -1 if right in "RA" else 1]


def _sheet(panels: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """Panels of one size beside each other, each with its name, their pixels in blocks where they are small."""
    height, width = next(iter(panels.values())).shape
    zoom = math.ceil(_PANEL / max(height, width))
    height, width = zoom * height, zoom * width
    sheet = Image.new("L", (len(panels) * (width + _GAP) - _GAP, height + _TITLE))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for k, (name, pixels) in enumerate(panels.items()):
        left = k * (width + _GAP)
        draw.text((left + _GAP, _TITLE // 6), name, 255, font)
        sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, _TITLE))
    return sheet
