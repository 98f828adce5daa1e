"""What scores do not show: ripple and edges of real scans, what is kept of faint discs, how often intervals hold the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from runtime import InputFileError, grid
from runtime.acquired import STORED
from runtime.measure import estimate
from runtime.preview import upright
from runtime.qa import criteria
from runtime.qa.criteria import COARSE, EDGE, FINE, FLATTEST, INSIDE, MIN_TISSUE, SLICES, STEEPEST, TISSUE, shows_tissue
from runtime.uncertainty import COVERAGE

from . import data, scores
from .augment import disc
from .data import Image, Stack
from .degradations import percent
from .models import Model
from .scores import Comparison, Record, Sample

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
HOW_COVERAGE = (
    f"held: part of the pixels of a crop whose truth lies within ± the half width of the output, which should be {COVERAGE:g}; "
    f"of tissue: of those above {TISSUE:g} of white; ±: mean half width in tissue, in % of white; means over crops",
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


def examine(models: Sequence[Model], scan: Stack, scales: grid.Scales) -> tuple[list[Record], scores.Panel]:
    """A scan's ripple and edges by model, over the first one's, and its picture. Raises InputFileError without flat tissue."""
    slices = [*scan.slices.values()]
    acquired = estimate([slices[k] for k in np.unique(np.linspace(0, len(slices) - 1, LOOKED_AT).round().astype(int))])
    each, chosen = [], data.evenly([*filter(shows_tissue, slices)], SLICES)
    middle: dict[str, Image] = {}
    for k, lr in enumerate(chosen):
        made = [(model.name, model.output(lr, scales, {"auto": acquired, "stored": STORED})) for model in models]
        outputs = {name: sr for name, sr in made if sr is not None}
        bicubic = outputs[models[0].name]
        flat, steep = criteria.flat_tissue(bicubic, scales), criteria.steepest(bicubic, scales)
        each.append([criteria.ripple_and_edges(sr, flat, steep, scales) for sr in outputs.values()])
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

    def mean(mask: criteria.Mask) -> NDArray[np.float64]:
        return np.asarray(ndimage.uniform_filter(mask.astype(float), size))[inner]

    coarse = criteria.smooth(bicubic, COARSE, scales)
    edge = mean(criteria.steepest(bicubic, scales)) * mean(coarse > TISSUE) * mean(coarse < TISSUE / 2)
    means = {"flat tissue": mean(criteria.flat_tissue(bicubic, scales)), "edge": edge}
    corners = {name: np.unravel_index(np.argmax(of), of.shape) for name, of in means.items()}
    return {name: tuple(slice(int(k), int(k) + n) for k, n in zip(corner, size)) for name, corner in corners.items()}


def contrast(image: Image, place: tuple[int, int], diameter: float) -> float:
    """The mean of a disc less the mean of the ring around it."""
    rows, cols = (np.arange(n) - at for n, at in zip(image.shape, place))
    far = np.hypot(rows[:, None], cols) - diameter / 2
    return float(image[far <= 0].mean() - image[(far >= RING[0]) & (far <= RING[1])].mean())


def flat_places(truth: Image) -> list[tuple[int, int]]:
    """Up to `PLACES` pixels of a truth in the midst of its flattest tissue, so far apart that no two rings meet."""
    size = 2 * (DIAMETERS[-1] // 2 + RING[1]) + 1
    return criteria.flattest(truth, grid.parse_scales(1), (size, size), PLACES)


def keep_discs(compared: Comparison) -> list[Record]:
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
    models: Sequence[Model], sample: Sample, places: Sequence[tuple[int, int]], kinds: Sequence[tuple[int, int]]
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


def hold_truths(compared: Comparison) -> list[Record]:
    """Of each case and model that tells the uncertainty: how much of the truth intervals hold, and their mean half width."""
    records = []
    for samples in scores.cases(compared):
        for model in compared.models:
            if model.interval is None:
                continue
            each = []
            for sample in samples:
                sr, half_width = model.interval(sample.lr, sample.scales, sample.known[model.told])
                truth = sample.crop.pixels[: sr.shape[0], : sr.shape[1]]
                held, tissue = np.abs(sr - truth) <= half_width, truth > TISSUE
                each.append((held.mean(), held[tissue].mean(), half_width[tissue].mean()))
            means = dict(zip(("held", "held_of_tissue", "half_width"), map(float, np.nanmean(each, 0))))
            records.append({**samples[0].case, "model": model.name, **means, "crops": len(each)})
    return records


def coverage(records: Sequence[Record]) -> str:
    """Tables of what intervals hold: the means by input, by noise and by scale, and all cases."""

    def cells(its: Sequence[Record]) -> list[str]:
        held, tissue, width = (np.mean([r[key] for r in its]) for key in ("held", "held_of_tissue", "half_width"))
        return [f"{held:.3f}", f"{tissue:.3f}", f"{100 * width:.1f}"]

    rows = [["model", "input", "noise", "scale", "held", "of tissue", "±"]]
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for r in records:
        made, noise, scale = f"{r['input']} {r['measured']}".strip(), f"{100 * r['noise']:g} %", scores.name_of(r["scale"])
        rows.append([r["model"], made, noise, scale, *cells([r])])
        for of in (("all", ""), ("input", r["input"]), ("noise", noise), ("scale", scale)):
            groups[r["model"], *of].append(r)
    means = [["model", "over", "", "cases", "held", "of tissue", "±"]]
    means += [[*group, str(len(its)), *cells(its)] for group, its in sorted(groups.items())]
    return scores.table(means) + scores.table(rows)
