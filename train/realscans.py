"""What scores against a truth do not show: ripple and edges of real scans, which have none, and what is kept of faint discs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from runtime import InputFileError, grid, measure
from runtime.preview import upright

from . import data, scores
from .augment import disc
from .data import Image, Stack
from .degradations import percent
from .models import Model
from .scores import name_of, table

Mask = NDArray[np.bool_]
WHOLE = grid.parse_scales(1)

SLICES = 9  # of a scan, evenly
LOOKED_AT = 16  # slices of a scan, evenly, that the estimate is made of: as many as the runtime looks at
MIN_TISSUE = 0.05  # a slice with a smaller part of it is left out
TISSUE = 0.15  # of white: what is brighter is tissue
# σ of Gaussians, in input pixels: what is finer than the first is ripple, tissue is flat after the second, edges steep after
# the third. With them the network of before this measure has the figures that were known of it: ripple 1.4 to 1.6, edges 1.1.
FINE, COARSE, EDGE = 0.75, 1.5, 0.5
INSIDE = 4  # input pixels: flat tissue is farther than this from what is no tissue, along both axes
FLATTEST, STEEPEST = 0.30, 0.05  # parts of the tissue
VIEW = 40  # input pixels an axis of a picture's crops

DIAMETERS, CONTRASTS = (3, 5, 8), (1, 2, 3)  # truth pixels; parts of the noise's σ
RING = (3, 6)  # truth pixels from a disc's edge: what lies there is what its inside is compared with
PLACES = 4  # discs in a crop, all of one kind

HOW_REAL = (
    f"up to {SLICES} slices a scan, evenly from those with {100 * MIN_TISSUE:g} % of tissue; medians over them",
    f"ripple: standard deviation of the image less its Gaussian of σ = {FINE} input pixels, in the flattest "
    f"{100 * FLATTEST:g} % of the tissue: where bicubic less what is finer than {COARSE} has the least gradient, and is above "
    f"{100 * TISSUE:g} % of white {INSIDE} input pixels around; a model's over bicubic's",
    f"edges: mean size of the gradient, after a Gaussian of σ = {EDGE} input pixels, in the {100 * STEEPEST:g} % of bicubic's "
    f"pixels above {100 * TISSUE:g} % of white where bicubic's is largest; a model's over bicubic's",
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
    scans = [scan for scan in found if any(map(_shows_tissue, scan.slices.values()))]
    if not scans:
        raise InputFileError(f"{path} holds no volume that shows tissue: give another")
    return scans


def _shows_tissue(image: Image) -> bool:
    return bool((image > TISSUE).mean() > MIN_TISSUE)


def gradient(image: Image, scales: grid.Scales) -> Image:
    """The size of an image's gradient, per input pixel."""
    return np.hypot(*np.gradient(image, *(1 / float(r) for r in scales)))


def smooth(image: Image, sigma: float, scales: grid.Scales) -> Image:
    """An image after a Gaussian of so many input pixels."""
    return np.asarray(ndimage.gaussian_filter(image, [sigma * float(r) for r in scales]))


def in_tissue(coarse: Image, size: int | Sequence[int]) -> Mask:
    """Where a window around a pixel shows nothing but tissue."""
    return np.asarray(ndimage.minimum_filter(coarse, size, mode="constant", cval=0) > TISSUE)


def flat_tissue(image: Image, scales: grid.Scales) -> Mask:
    """Where an image, `scales` times as large as its input, shows the flattest tissue."""
    coarse = smooth(image, COARSE, scales)
    inside = in_tissue(coarse, [2 * int(INSIDE * r) + 1 for r in scales])
    slope = gradient(coarse, scales)
    return inside & (slope <= np.quantile(slope[inside], FLATTEST) if inside.any() else False)


def steepest(image: Image, scales: grid.Scales) -> Mask:
    """Where the gradient of an image's tissue is largest."""
    slope, tissue = gradient(smooth(image, EDGE, scales), scales), image > TISSUE
    return tissue & (slope >= np.quantile(slope[tissue], 1 - STEEPEST) if tissue.any() else False)


def ripple(image: Image, flat: Mask, scales: grid.Scales) -> float:
    """The standard deviation of what is finer than `FINE` input pixels; NaN without a pixel of `flat` tissue."""
    fine = image - smooth(image, FINE, scales)
    return float(fine[flat].std()) if flat.any() else np.nan


def steepness(image: Image, steep: Mask, scales: grid.Scales) -> float:
    """The mean size of the gradient at `steep` pixels; NaN without one."""
    return float(gradient(smooth(image, EDGE, scales), scales)[steep].mean()) if steep.any() else np.nan


def examine(models: Sequence[Model], scan: Stack, scales: grid.Scales) -> tuple[scores.Record, scores.Panel]:
    """A scan's ripple and edges, and its picture; the first model is the one that others are compared with.

    Raises InputFileError where no slice has flat tissue.
    """
    slices = [*scan.slices.values()]
    seen = np.unique(np.linspace(0, len(slices) - 1, LOOKED_AT).round().astype(int))
    acquired = measure.estimate([slices[k] for k in seen])
    chosen = data.evenly([*filter(_shows_tissue, slices)], SLICES)
    each = np.full((len(models), len(chosen), 2), np.nan)
    middle: dict[int, Image] = {}
    for k, lr in enumerate(chosen):
        outputs = {m: sr for m, model in enumerate(models) if (sr := model.output(lr, scales, acquired)) is not None}
        flat, steep = flat_tissue(outputs[0], scales), steepest(outputs[0], scales)
        for m, sr in outputs.items():
            each[m, k] = ripple(sr, flat, scales), steepness(sr, steep, scales)
        middle = outputs if k == len(chosen) // 2 else middle
    usable = (each[0] > 0).all(-1)  # with tissue that is not painted
    if not usable.any():
        raise InputFileError(f"{scan.name} shows no flat tissue in {len(chosen)} slices: give another scan")
    medians = np.median(each[:, usable] / each[:1, usable], axis=1)

    record: scores.Record = {"scan": scan.name, "scale": [float(r) for r in scales], "stored": list(lr.shape)}
    record |= {"acquired": list(acquired.matrix(lr.shape)), "estimate": asdict(acquired)}
    record["models"] = [
        {"model": models[m].name, "ripple": float(medians[m, 0]), "edges": float(medians[m, 1]), "slices": int(usable.sum())}
        for m in middle
    ]
    panel = []
    for shown, window in _views(middle[0], scales).items():
        named = ((models[m].name, sr, "ripple {:.2f}, edges {:.2f}".format(*medians[m])) for m, sr in middle.items())
        panel.append((shown, [(name, upright(sr[window], scan.axes), score) for name, sr, score in named]))
    return record, panel


def _views(bicubic: Image, scales: grid.Scales) -> dict[str, tuple[slice, slice]]:
    """Two places of a slice: where most tissue is flat, and where a steep edge lies at air."""
    size = [min(n, round(VIEW * float(r))) for n, r in zip(bicubic.shape, scales)]
    inner = tuple(slice(s // 2, n - (s - 1) // 2) for n, s in zip(bicubic.shape, size))  # centres of whole windows

    def mean(mask: Mask) -> NDArray[np.float64]:
        return np.asarray(ndimage.uniform_filter(mask.astype(float), size))[inner]

    coarse = smooth(bicubic, COARSE, scales)
    edge = mean(steepest(bicubic, scales)) * mean(coarse > TISSUE) * mean(coarse < TISSUE / 2)
    views = {}
    for name, means in (("flat tissue", mean(flat_tissue(bicubic, scales))), ("edge", edge)):
        top, left = map(int, np.unravel_index(np.argmax(means), means.shape))
        views[name] = slice(top, top + size[0]), slice(left, left + size[1])
    return views


def markdown(models: Sequence[Model], records: Sequence[scores.Record]) -> str:
    """What was measured of each scan, and what models make of it."""
    scans = {}
    rows = [["scan", "scale", *(f"{what} {model.name}" for what in ("ripple", "edges") for model in models[1:])]]
    for record in records:
        matrices = ["×".join(map(str, record[key])) for key in ("stored", "acquired")]
        taper = ", ".join(f"{band['taper']:.2g}" for band in record["estimate"]["bands"])
        scans[record["scan"]] = [record["scan"], *matrices, taper, percent(record["estimate"]["sigma"])]
        of = {line["model"]: line for line in record["models"]}
        cells = [f"{of[m.name][key]:.2f}" if m.name in of else "–" for key in ("ripple", "edges") for m in models[1:]]
        rows.append([record["scan"], name_of(record["scale"]), *cells])
    measured = table([["scan", "stored", "acquired", "taper", "σ"], *scans.values()])
    return f"## What was measured\n\n{measured}\n\n## Ripple in flat tissue and edges, over bicubic's\n\n{table(rows)}\n\n"


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
    """How much of discs in all samples each model keeps: a record an input, scale, diameter and contrast."""
    kinds = [*product(DIAMETERS, CONTRASTS)]
    records = []
    for samples in scores.cases(compared):
        places = [flat_places(sample.crop.pixels) for sample in samples]
        kept = np.array([_kept(compared.models, sample, at, kinds) for sample, at in zip(samples, places) if at]).sum(0)
        if not kept.any():
            raise InputFileError("no crop shows flat tissue that a disc could be put into: give other images")
        for (diameter, strength), (bicubic, *others, truth) in zip(kinds, kept):
            of = {model.name: scores.number(its / bicubic) for model, its in zip(compared.models[1:], others)}
            kind = {"diameter": diameter, "contrast": strength, "discs": sum(map(len, places))}
            records.append({**samples[0].case, **kind, "bicubic": float(bicubic / truth), "models": of})
    return records


def _kept(
    models: Sequence[Model], sample: scores.Sample, places: Sequence[tuple[int, int]], kinds: Sequence[tuple[int, int]]
) -> list[list[float]]:
    """(kinds of discs, models and the truth): the contrast that discs at these places have, summed over them."""
    truth, degradation, without, kept = sample.crop.pixels, sample.degradation, sample.outputs(models), []
    for diameter, strength in kinds:
        discs: Image = np.sum([disc(truth.shape, place, diameter) for place in places], axis=0)
        discs = discs * np.float32(strength * degradation.noise)
        made = sample.outputs(models, degradation.of(truth + discs, sample.scales))
        changes = [None if a is None or b is None else a - b for a, b in zip(made, without)]
        kept.append([np.nan if c is None else sum(contrast(c, at, diameter) for at in places) for c in (*changes, discs)])
    return kept


def disc_rows(models: Sequence[Model], records: Sequence[scores.Record]) -> list[list[str]]:
    """Headings, and a row a record."""
    names = [model.name for model in models[1:]]
    rows = [["input", "scale", "noise", "diameter", "contrast", "bicubic keeps", *(f"{name} over bicubic" for name in names)]]
    for line in records:
        made = " ".join(filter(None, (line["input"], line["measured"])))
        cells = [made, name_of(line["scale"]), percent(line["noise"]), str(line["diameter"]), f"{line['contrast']} σ"]
        kept = [line["bicubic"], *(line["models"][name] for name in names)]
        rows.append([*cells, *("–" if value is None else f"{value:.2f}" for value in kept)])
    return rows
