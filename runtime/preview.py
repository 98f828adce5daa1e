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

    planes = plane(before, sizes.UNSCALED), plane(after, scales)
    return side_by_side(*planes, (scales[pair[0]], scales[pair[1]]), letters(before, pair))


def letters(scan: Scan, pair: Sequence[int]) -> str:
    """Where two of a scan's array axes lead, for `upright`; nothing of a picture."""
    return "" if scan.affine is None else "".join(nib.aff2axcodes(scan.affine)[k] or "" for k in pair)


def side_by_side(
    before: NDArray[Any],
    ours: NDArray[Any],
    scales: grid.Scales,
    axes: str = "",
    truth: NDArray[Any] | None = None,
    place: tuple[int, int] | None = None,
) -> Image.Image:
    """A slice (H, W) as blocks, by bicubic interpolation and as it was upscaled by `scales`, on one grey scale.

    `axes` is where the two array axes lead, for `upright`. A `truth`, where there is one, comes last. What is shown begins at
    the pixel `place`; without one it is where the slice shows most detail.
    """
    before = np.nan_to_num(before)
    intensity = Intensity.of(before)
    unit = intensity.normalise(before)
    rows, cols = most_detailed(unit) if place is None else ((k, min(k + _WINDOW, n)) for k, n in zip(place, unit.shape))
    low, high = np.percentile(unit[slice(*rows), slice(*cols)], (0.5, 99.5))
    (top, bottom), (left, right) = ((math.ceil(a * r), int(b * r)) for (a, b), r in zip((rows, cols), scales))
    size = right - left, bottom - top
    box = float(left / scales[1]), float(top / scales[0]), float(right / scales[1]), float(bottom / scales[0])
    finer = [
        intensity.normalise(np.nan_to_num(pixels[top:bottom, left:right])) for pixels in (ours, truth) if pixels is not None
    ]
    grey, *others = ((pixels - low) * (255 / ((high - low) or 1)) for pixels in (unit, *finer))
    image = Image.fromarray(grey.astype(np.float32))
    blocks, bicubic = (image.resize(size, how, box) for how in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    zoom = math.ceil(_PANEL / max(size))
    panels = []
    for pixels in (blocks, bicubic, *others):
        shown = upright(np.clip(pixels, 0, 255).astype(np.uint8), axes).repeat(zoom, 0).repeat(zoom, 1)
        panels.append(np.pad(shown, ((_TITLE, 0), (0, _GAP))))
    sheet = Image.fromarray(np.hstack(panels)[:, :-_GAP])
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for k, name in enumerate(("input", "bicubic", "ours", "truth")[: len(panels)]):
        draw.text((k * panels[0].shape[1] + _GAP, _TITLE // 6), name, 255, font)
    return sheet


def most_detailed(image: NDArray[Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and columns, (first, end) each, of the window of 96×96 pixels whose neighbours differ most."""
    height, width = (min(n, _WINDOW) for n in image.shape)
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
    turned, down, across = orientation(axes)
    return (image.T if turned else image)[:: -1 if down else 1, :: -1 if across else 1]


def orientation(axes: str) -> tuple[bool, bool, bool]:
    """How `upright` turns: whether rows then run across, and whether what runs down, and what runs across, is flipped."""
    if len(axes) != 2:
        return False, False, False
    turned = "SIAPLR".index(axes[0]) > "SIAPLR".index(axes[1])
    down, across = (axes[1], axes[0]) if turned else (axes[0], axes[1])
    return turned, down in "SA", across in "RA"
