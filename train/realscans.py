"""What scores against a truth do not show: ripple and edges of real scans, which have none, and what is kept of faint discs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from runtime import InputFileError, grid
from runtime.measure import estimate
from runtime.preview import upright
from runtime.qa.criteria import (
    COARSE,
    EDGE,
    FINE,
    FLATTEST,
    INSIDE,
    MIN_TISSUE,
    SLICES,
    STEEPEST,
    TISSUE,
    Mask,
    flat_tissue,
    gradient,
    in_tissue,
    ripple_and_edges,
    shows_tissue,
    smooth,
    steepest,
)

from . import data, scores
from .augment import disc
from .data import Image, Stack
from .degradations import percent
from .models import Model

WHOLE = grid.parse_scales(1)

LOOKED_AT = 16  # slices of a scan, evenly, of which the estimate is made: as many as the runtime's
VIEW = 40  # input pixels: an axis of a picture's crops

DIAMETERS, CONTRASTS = (3, 5, 8), (1, 2, 3)  # truth pixels; parts of the noise's σ
RING = (3, 6)  # truth pixels from a disc's edge: what lies there is what its inside is compared with
PLACES = 4  # discs in a crop, all of one kind

HOW_REAL = (
    f"medians over up to {SLICES} slices, evenly from those with {percent(MIN_TISSUE)} of tissue, of a model's number over "
    f"bicubic's; tissue is above {percent(TISSUE)} of white; lengths are in input pixels",
    f"ripple: standard deviation of the image less its Gaussian of σ = {FINE}, where bicubic's image after one of {COARSE} "
    f"has the {percent(FLATTEST)} least gradients of all tissue that is {INSIDE} from anything else",
    f"edges: mean gradient after a Gaussian of σ = {EDGE}, where bicubic's is among the {percent(STEEPEST)} largest in tissue",
    "acquired, taper and σ: the runtime's estimate from the volume's spectrum; headers were not asked",
)
HOW_DISCS = (
    f"{PLACES} discs of one kind at a time in the flattest tissue of a truth, before it becomes an input; the same noise with "
    "and without them",
    f"kept: mean inside less mean of the ring {RING[0]} to {RING[1]} truth pixels outside, of the output with discs less the "
    "output without, over all discs; for bicubic as a part of the truth's, for a model as a part of bicubic's",
)


def load_scans(path: Path) -> list[Stack]:
    """The scan in a file, or the series in a folder of DICOM. Raises InputFileError where there is no volume with tissue."""
    found = data.read(path)
    if not all(scan.axes for scan in found):
        raise InputFileError(f"{path} is a picture, of which nothing is known: give a volume or a folder of DICOM")
    scans = [scan for scan in found if any(map(shows_tissue, scan.slices.values()))]
    if not scans:
        raise InputFileError(f"{path} holds no volume that shows tissue: give another")
    return scans


def examine(models: Sequence[Model], scan: Stack, scales: grid.Scales) -> tuple[list[scores.Record], scores.Panel]:
    """A scan's ripple and edges by model, over the first one's, and its picture. Raises InputFileError without flat tissue."""
    slices = [*scan.slices.values()]
    acquired = estimate([slices[k] for k in np.unique(np.linspace(0, len(slices) - 1, LOOKED_AT).round().astype(int))])
    each, chosen = [], data.evenly([*filter(shows_tissue, slices)], SLICES)
    middle: dict[str, Image] = {}
    for k, lr in enumerate(chosen):
        outputs = {model.name: sr for model in models if (sr := model.output(lr, scales, acquired)) is not None}
        bicubic = outputs[models[0].name]
        flat, steep = flat_tissue(bicubic, scales), steepest(bicubic, scales)
        each.append([ripple_and_edges(sr, flat, steep, scales) for sr in outputs.values()])
        middle = outputs if k == len(chosen) // 2 else middle
    found = np.array([its for its in each if all(value > 0 for value in its[0])])  # slices with tissue that is not painted
    if not len(found):
        raise InputFileError(f"{scan.name} shows no flat tissue in {len(chosen)} slices: give another scan")
    medians = dict(zip(middle, np.median(found / found[:, :1], axis=0).tolist()))
    shape = slices[0].shape
    case = {"scan": scan.name, "scale": [float(r) for r in scales], "slices": len(found), "estimate": asdict(acquired)}
    case |= {"stored": list(shape), "acquired": list(acquired.matrix(shape)), "noise": acquired.sigma}
    case["taper"] = [band.taper for band in acquired.bands]
    records = [{**case, "model": name, "ripple": its[0], "edges": its[1]} for name, its in medians.items()]
    panel = []
    for shown, window in _views(middle[models[0].name], scales).items():
        named = ((name, sr, "ripple {:.2f}, edges {:.2f}".format(*medians[name])) for name, sr in middle.items())
        panel.append((shown, [(name, upright(sr[window], scan.axes), score) for name, sr, score in named]))
    return records, panel


def _views(bicubic: Image, scales: grid.Scales) -> dict[str, tuple[slice, ...]]:
    """Two places of a slice: where most tissue is flat, and where a steep edge lies at air."""
    size = [min(n, round(VIEW * float(r))) for n, r in zip(bicubic.shape, scales)]
    inner = tuple(slice(s // 2, n - (s - 1) // 2) for n, s in zip(bicubic.shape, size))  # centres of whole windows

    def mean(mask: Mask) -> NDArray[np.float64]:
        return np.asarray(ndimage.uniform_filter(mask.astype(float), size))[inner]

    coarse = smooth(bicubic, COARSE, scales)
    edge = mean(steepest(bicubic, scales)) * mean(coarse > TISSUE) * mean(coarse < TISSUE / 2)
    means = {"flat tissue": mean(flat_tissue(bicubic, scales)), "edge": edge}
    corners = {name: np.unravel_index(np.argmax(of), of.shape) for name, of in means.items()}
    return {name: tuple(slice(int(k), int(k) + n) for k, n in zip(corner, size)) for name, corner in corners.items()}


def contrast(image: Image, place: tuple[int, int], diameter: float) -> float:
    """The mean of a disc less the mean of the ring around it."""
    rows, cols = (np.arange(n) - at for n, at in zip(image.shape, place))
    far = np.hypot(rows[:, None], cols) - diameter / 2
    return float(image[far <= 0].mean() - image[(far >= RING[0]) & (far <= RING[1])].mean())


def flat_places(truth: Image, count: int = PLACES) -> list[tuple[int, int]]:
    """Up to `count` pixels of a truth in the midst of its flattest tissue, so far apart that no two rings meet."""
    coarse, size = smooth(truth, COARSE, WHOLE), 2 * (DIAMETERS[-1] // 2 + RING[1]) + 1
    slope = np.where(in_tissue(coarse, size), ndimage.uniform_filter(gradient(coarse, WHOLE), size), np.inf)
    places: list[tuple[int, int]] = []
    while len(places) < count and np.isfinite(slope.min()):
        row, col = map(int, np.unravel_index(np.argmin(slope), slope.shape))
        places.append((row, col))
        slope[max(0, row - size) : row + size + 1, max(0, col - size) : col + size + 1] = np.inf
    return places


def keep_discs(compared: scores.Comparison) -> list[scores.Record]:
    """How much of discs in all samples each model keeps: a record an input, scale, diameter, contrast and model."""
    kinds, records = [*product(DIAMETERS, CONTRASTS)], []
    for samples in scores.cases(compared):
        places = [flat_places(sample.crop.pixels) for sample in samples]
        kept = np.array([_kept(compared.models, sample, at, kinds) for sample, at in zip(samples, places) if at]).sum(0)
        if not kept.any():
            raise InputFileError("no crop shows flat tissue that a disc could be put into: give other images")
        for (diameter, strength), (bicubic, *others, truth) in zip(kinds, kept):
            case = {**samples[0].case, "diameter": diameter, "contrast": strength, "discs": sum(map(len, places))}
            parts = [bicubic / truth, *(its / bicubic for its in others)]
            records += [{**case, "model": m.name, "kept": scores.number(of)} for m, of in zip(compared.models, parts)]
    return records


def _kept(
    models: Sequence[Model], sample: scores.Sample, places: Sequence[tuple[int, int]], kinds: Sequence[tuple[int, int]]
) -> list[list[float]]:
    """(kinds of discs, models and the truth): the contrast that discs at these places have, summed over them."""
    truth, degradation, kept = sample.crop.pixels, sample.degradation, []
    without = sample.outputs(models, sample.lr)
    for diameter, strength in kinds:
        discs: Image = np.sum([disc(truth.shape, place, diameter) for place in places], axis=0)
        discs = discs * np.float32(strength * degradation.noise)
        made = sample.outputs(models, degradation.of(truth + discs, sample.scales))
        changes = [None if a is None or b is None else a - b for a, b in zip(made, without)]
        kept.append([np.nan if c is None else sum(contrast(c, at, diameter) for at in places) for c in (*changes, discs)])
    return kept
