"""What is measured of one scan: a few of its slices, upscaled."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import grid, measure, preview, volume
from ..acquired import Acquired
from ..errors import ImageError
from ..scan import Scan
from ..upscaler import Upscaler
from . import criteria


@dataclass(frozen=True)
class Figures:
    """Medians over the slices of a scan; lengths in input pixels, consistency and noise in parts of white.

    `snr` is that of ours over that of the input, `over_bicubic` over that of bicubic interpolation; `edges` and `ripple` are
    over bicubic's. `outside` are lines about what the network was not trained on; None where the bundle does not say.
    """

    slices: int
    shape: tuple[int, int]
    spacing: tuple[float, ...]  # mm
    acquired: str
    noise: float
    snr: float
    over_bicubic: float
    edges: float
    width: float
    bicubic_width: float
    ripple: float
    rmse: float
    worst: float  # pixel of all slices
    outside: tuple[str, ...] | None


def examine(
    scan: Scan, upscaler: Upscaler, scales: grid.Scales, step: Callable[[], Any] = lambda: None
) -> tuple[Figures, Image.Image]:
    """The figures of a scan, and the picture of its middle slice; of a 4-D file, of the first volume. `step` follows each slice.

    Raises ImageError for labels, and for a scan without flat tissue in its slices.
    """
    if scan.labels:
        raise ImageError("it holds labels, which the network leaves alone")
    volume.check_place(scan)
    pixels = scan.pixels.mean(0, dtype=np.float32) if scan.colour else scan.pixels
    pair = (0, 1) if scan.colour else (scan.in_plane[0], scan.in_plane[1])
    one = pixels[(..., *(0 for _ in pixels.shape[3:]))]
    intensity = volume.intensities(scan)[0]
    acquired = measure.of(one, pair, intensity, header=scan.acquired).along(*pair)
    stack = np.moveaxis(one, pair, (-2, -1)).reshape(-1, *(one.shape[k] for k in pair))
    shown = [k for k, image in enumerate(stack) if criteria.shows_tissue(intensity.normalise(image))]
    chosen = [shown[k] for k in np.unique(np.linspace(0, len(shown) - 1, criteria.SLICES).astype(int))] if shown else []
    found, letters = [], "" if scan.affine is None else "".join(nib.aff2axcodes(scan.affine)[k] or "" for k in pair)
    for k in chosen:
        unit = intensity.normalise(stack[k])
        sr = intensity.normalise(upscaler(stack[k], scales, acquired=acquired, levels=intensity))
        if figures := _of_slice(unit, sr, scales, acquired):
            found.append(figures)
        if k == chosen[len(chosen) // 2]:
            picture = preview.side_by_side(unit, sr, scales, letters)
        step()
    if not found:
        raise ImageError(f"its {len(chosen)} slices with tissue show none that is flat")
    snr, over_bicubic, edges, width, other, ripple, rmse, worst = np.array(found).T
    medians = (statistics.median(each.tolist()) for each in (snr, over_bicubic, edges, width, other, ripple, rmse))
    shape = stack.shape[1], stack.shape[2]
    spacing = tuple(scan.spacing[k] for k in pair) if scan.affine is not None else ()
    said = acquired.said(shape), acquired.sigma
    return Figures(len(found), shape, spacing, *said, *medians, float(worst.max()), outside(scan, acquired, upscaler)), picture


def outside(scan: Scan, acquired: Acquired, upscaler: Upscaler) -> tuple[str, ...] | None:
    """Lines about what the network was not trained on; None where the bundle does not say what it was."""
    return None


def _of_slice(
    unit: NDArray[np.float32], sr: NDArray[np.float32], scales: grid.Scales, acquired: Acquired
) -> tuple[float, ...] | None:
    """The figures of a slice; None where it shows no flat tissue, no edge, or nothing that differs, as what is painted."""
    bicubic = criteria.bicubic(unit, scales)
    regions = criteria.regions(bicubic, scales)
    flat, steep = criteria.flat_tissue(bicubic, scales), criteria.steepest(bicubic, scales)
    ripple, edges = criteria.ripple_and_edges(bicubic, flat, steep, scales)
    if not regions or not ripple > 0 or not edges > 0:
        return None
    ours = criteria.ripple_and_edges(sr, flat, steep, scales)
    ratios = []
    for region in regions:
        stored = tuple(slice(-int(-side.start // r), int(side.stop / r)) for side, r in zip(region, scales))
        snrs = [criteria.snr(image, place) for image, place in ((unit, stored), (bicubic, region), (sr, region))]
        ratios.append([snrs[2] / snrs[0], snrs[2] / snrs[1]])
    widths = (criteria.edge_width(image, bicubic, scales) for image in (sr, bicubic))
    figures = *np.mean(ratios, 0), ours[1] / edges, *widths, ours[0] / ripple, *criteria.consistency(acquired, unit, sr, scales)
    return tuple(map(float, figures)) if np.isfinite(figures).all() else None
