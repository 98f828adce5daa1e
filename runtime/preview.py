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

from . import grid, sizes
from .intensity import Intensity
from .scan import Scan

_WINDOW = 96  # input pixels an axis
_PANEL = 384  # pixels that a panel's longer side has at least
_GAP, _TITLE, _FONT = 10, 36, 22


def of(before: Scan, after: Scan) -> Image.Image:
    """The middle slice of a scan, colours by their mean, and of what `volume.upscale` made of it.

    Where the slices became thinner and nothing else, it is the middle plane that contains their axis.
    """
    pair, scales = before.in_plane, after.finer_than(before)
    if all(scales[k] == 1 for k in pair) and scales[before.axis] != 1:
        pair = tuple(sorted((pair[0], before.axis)))

    def plane(scan: Scan, scales: Sequence[Fraction]) -> NDArray[Any]:
        if scan.colour:
            return np.asarray(scan.pixels.mean(0))
        each = zip(before.shape, [*scales, *[Fraction(1)] * before.pixels.ndim])
        middle = [int((n // 2 + Fraction(1, 2)) * r) for n, r in each]
        return scan.real(scan.pixels[tuple(slice(None) if k in pair else place for k, place in enumerate(middle))])

    axes = "" if before.affine is None else nib.aff2axcodes(before.affine)
    names = "".join(axes[k] or "" for k in pair) if axes else ""
    planes = plane(before, sizes.UNSCALED), plane(after, scales)
    return side_by_side(*planes, (scales[pair[0]], scales[pair[1]]), names)


def side_by_side(
    before: NDArray[Any], ours: NDArray[Any], scales: grid.Scales, axes: str = "", truth: NDArray[Any] | None = None
) -> Image.Image:
    """A slice (H, W) as blocks, by bicubic interpolation and as it was upscaled by `scales`, on one grey scale.

    `axes` is where the two array axes lead, for `upright`. A `truth`, where there is one, comes last.
    """
    finer = {name: np.nan_to_num(pixels) for name, pixels in (("ours", ours), ("truth", truth)) if pixels is not None}
    before = np.nan_to_num(before)
    intensity = Intensity.of(before)
    unit = intensity.normalise(before)
    rows, cols = most_detailed(unit)
    low, high = np.percentile(unit[slice(*rows), slice(*cols)], (0.5, 99.5))
    finer = {name: intensity.normalise(pixels) for name, pixels in finer.items()}
    grey, *others = ((pixels - low) * (255 / ((high - low) or 1)) for pixels in (unit, *finer.values()))
    (top, bottom), (left, right) = ((math.ceil(a * r), int(b * r)) for (a, b), r in zip((rows, cols), scales))
    size = right - left, bottom - top
    box = float(left / scales[1]), float(top / scales[0]), float(right / scales[1]), float(bottom / scales[0])
    image = Image.fromarray(grey.astype(np.float32))
    panels = {  # each with its name, its pixels in blocks where they are small
        "input": np.asarray(image.resize(size, Image.Resampling.NEAREST, box)),
        "bicubic": np.asarray(image.resize(size, Image.Resampling.BICUBIC, box)),
        **{name: pixels[top:bottom, left:right] for name, pixels in zip(finer, others)},
    }
    shown = {name: upright(np.clip(pixels, 0, 255).astype(np.uint8), axes) for name, pixels in panels.items()}
    zoom = math.ceil(_PANEL / max(size))
    height, width = (zoom * n for n in shown["ours"].shape)
    sheet = Image.new("L", (len(shown) * (width + _GAP) - _GAP, height + _TITLE))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for start, (name, pixels) in zip(range(0, sheet.width, width + _GAP), shown.items()):
        draw.text((start + _GAP, _TITLE // 6), name, 255, font)
        sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (start, _TITLE))
    return sheet


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
    turned, down, across = orientation(axes)
    return (image.T if turned else image)[:: -1 if down else 1, :: -1 if across else 1]


def orientation(axes: str) -> tuple[bool, bool, bool]:
    """How `upright` turns: whether rows then run across, and whether what runs down, and what runs across, is flipped."""
    if len(axes) != 2:
        return False, False, False
    turned = "SIAPLR".index(axes[0]) > "SIAPLR".index(axes[1])
    down, across = (axes[1], axes[0]) if turned else (axes[0], axes[1])
    return turned, down in "SA", across in "RA"
