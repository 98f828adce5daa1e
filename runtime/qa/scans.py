"""What is measured of one scan: a few of its slices, upscaled."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import grid, measure, preview, volume
from ..acquired import Acquired, Consistency, Float
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
    spacing: tuple[float, ...]  # mm
    acquired: str
    noise: float
    outside: tuple[str, ...] | None
    snr: float
    over_bicubic: float
    edges: float
    width: float
    bicubic_width: float
    ripple: float
    rmse: float
    worst: float  # pixel of all slices


Tested = tuple[Figures, Image.Image] | str  # a series: its figures and its picture, or the reason why it has none


def examine(scan: Scan, upscaler: Upscaler, scales: grid.Scales) -> tuple[Figures, Image.Image]:
    """The figures of a scan, and the picture of its middle slice; of a 4-D file, of the first volume.

    Raises ImageError for labels, and for a scan without flat tissue in its slices.
    """
    if scan.labels:
        raise ImageError("it holds labels, which the network leaves alone")
    volume.check_place(scan)
    grey = replace(scan, pixels=scan.pixels.mean(0, dtype=np.float32, keepdims=True)) if scan.colour else scan
    pair = scan.in_plane[0], scan.in_plane[1]
    one: NDArray[Any] = grey.pixels[(..., *np.zeros(max(0, grey.pixels.ndim - 3), int))]
    intensity = volume.intensities(grey)[0]
    measured = measure.of(one, pair, intensity, header=scan.acquired)
    acquired, envelope = measured.along(*pair), upscaler.bundle.envelope
    stack = np.moveaxis(one, pair, (-2, -1)).reshape(-1, one.shape[pair[0]], one.shape[pair[1]])
    shown = [image for image in stack if criteria.shows_tissue(intensity.normalise(image))]
    each, images = [], []
    for image in grid.evenly(shown, criteria.SLICES):
        unit = intensity.normalise(image)
        sr = intensity.normalise(upscaler(image, scales, acquired=acquired, levels=intensity))
        if figures := _of_slice(unit, sr, scales, acquired):
            each.append(figures)
            images.append((unit, sr))
    if not each:
        raise ImageError("no slice of it shows flat tissue")
    medians: dict[str, Any] = {name: statistics.median(figures[name] for figures in each) for name in each[0]}
    medians["worst"] = max(figures["worst"] for figures in each)
    spacing = tuple(scan.spacing[k] for k in pair) if scan.affine is not None else ()
    outside = envelope.outside(scan, intensity, measured) if envelope else None
    found = Figures(len(each), spacing, acquired.said(stack.shape[1:]), acquired.sigma, outside, **medians)
    return found, preview.side_by_side(*images[len(images) // 2], scales, preview.letters(scan, pair))


@np.errstate(divide="ignore", invalid="ignore")
def _of_slice(unit: Float, sr: Float, scales: grid.Scales, acquired: Acquired) -> dict[str, float] | None:
    """The figures of a slice; None where it shows no flat tissue, no edge, or nothing that differs, as what is painted."""
    bicubic = criteria.bicubic(unit, scales)
    regions = criteria.regions(bicubic, scales)
    flat, steep = criteria.flat_tissue(bicubic, scales), criteria.steepest(bicubic, scales)
    ripple, edges = criteria.ripple_and_edges(bicubic, flat, steep, scales)
    if not regions or not ripple > 0 or not edges > 0:
        return None
    ratios = []
    for rows, cols in regions:
        stored = tuple(slice(math.ceil(side.start / r), int(side.stop / r)) for side, r in zip((rows, cols), scales))
        before, other, ours = (criteria.snr(part) for part in (unit[stored], bicubic[rows, cols], sr[rows, cols]))
        ratios.append((ours / before, ours / other))
    its_ripple, its_edges = criteria.ripple_and_edges(sr, flat, steep, scales)
    consistency = Consistency()
    consistency.add(acquired.difference(unit, sr, scales), white=1.0)
    figures = {
        **dict(zip(("snr", "over_bicubic"), np.mean(ratios, 0).tolist())),
        "edges": its_edges / edges,
        "width": criteria.edge_width(sr, steep, scales),
        "bicubic_width": criteria.edge_width(bicubic, steep, scales),
        "ripple": its_ripple / ripple,
        "rmse": consistency.rmse,
        "worst": consistency.worst,
    }
    return figures if np.isfinite([*figures.values()]).all() else None
