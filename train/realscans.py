"""What scores against a truth do not show: ripple and edges of real scans, which have none, and what is kept of faint discs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from runtime import InputFileError, formats, grid, measure, volume
from runtime.acquired import Acquired
from runtime.intensity import Intensity
from runtime.preview import upright

from . import data, report
from .augment import disc
from .degradations import Degradation, inputs, percent
from .models import Image, Model

if TYPE_CHECKING:
    from .evaluate import Crop

Mask = NDArray[np.bool_]
WHOLE = grid.parse_scales(1)

SLICES = 9  # of a scan, evenly
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


class Scan(NamedTuple):
    """The slices of a real scan that show tissue, black 0 and white 1, and what the runtime finds of them."""

    name: str
    slices: list[Image]
    acquired: Acquired
    axes: str  # where a slice's two axes lead, in nibabel's letters


@dataclass(frozen=True)
class Examined:
    """What was found of a scan at one scale: plain data, and the crops of its picture."""

    name: str
    scales: grid.Scales
    record: dict[str, Any]
    crops: list[tuple[str, list[tuple[str, Image, str]]]]


def load_scans(path: Path) -> list[Scan]:
    """The scan in a file, or the series in a folder of DICOM. Raises InputFileError where there is no volume with tissue."""
    kind = formats.kind(path)
    if kind == "picture":
        raise InputFileError(f"{path} is a picture, of which nothing is known: give a volume or a folder of DICOM")
    if kind == "dicom":
        found = [series.volume() for series in formats.dicom().find_series(path) if not series.problem]
    else:
        found = [formats.load(path)]
    name = path.name.removesuffix(formats.suffix(path))
    scans = [_scan(image, f"{name}_{k + 1}" if len(found) > 1 else name) for k, image in enumerate(found)]
    if not any(scan.slices for scan in scans):
        raise InputFileError(f"{path} holds no volume that shows tissue: give another")
    return [scan for scan in scans if scan.slices]


def _scan(image: Any, name: str) -> Scan:
    pixels, slope, _ = volume.stored(image)
    intensity = Intensity.of(pixels, inverted=slope < 0)
    across = volume.slices_across(image)
    axes = [axis for axis in range(min(3, pixels.ndim)) if axis != across]
    stack = np.moveaxis(pixels, axes, (0, 1))
    slices = (intensity.normalise(stack[(..., *index)]) for index in np.ndindex(stack.shape[2:]))
    acquired = measure.of(pixels, axes, intensity).along(*axes)
    return Scan(name, [s for s in slices if (s > TISSUE).mean() > MIN_TISSUE], acquired, axes_of(image))


def axes_of(image: Any) -> str:
    """Where the in-plane axes of a volume's slices lead, such as "LP"."""
    import nibabel

    codes = [code or "?" for code in nibabel.aff2axcodes(image.affine)]
    if len(image.shape) > 2:
        del codes[volume.slice_axis(image)]
    return "".join(codes[:2])


def gradient(image: Image, scales: grid.Scales) -> Image:
    """The size of an image's gradient, per input pixel."""
    rows, cols = np.gradient(image, *(1 / float(r) for r in scales))
    return np.hypot(rows, cols)


def smooth(image: Image, sigma: float, scales: grid.Scales) -> Image:
    """An image after a Gaussian of so many input pixels."""
    return np.asarray(ndimage.gaussian_filter(image, [sigma * float(r) for r in scales]))


def flat_tissue(image: Image, scales: grid.Scales) -> Mask:
    """Where an image, `scales` times as large as its input, shows the flattest tissue."""
    coarse = smooth(image, COARSE, scales)
    size = [2 * int(INSIDE * r) + 1 for r in scales]
    inside = ndimage.minimum_filter(coarse, size, mode="constant", cval=0) > TISSUE
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


def examine(models: Sequence[Model], scan: Scan, scales: grid.Scales, factor: float = 1.0) -> Examined:
    """A scan's ripple and edges, and its picture; the first model is the one that others are compared with.

    `factor` is what σ is told times. Raises InputFileError where no slice has flat tissue.
    """
    chosen = data.evenly(scan.slices, SLICES)
    each = np.full((len(models), len(chosen), 2), np.nan)
    shown = len(chosen) // 2
    middle: dict[int, Image] = {}
    for k, lr in enumerate(chosen):
        flat, steep = np.zeros((2, 1, 1), bool)
        for m, model in enumerate(models):
            sr = model.output(lr, scales, model.hears(scan.acquired, factor=factor))
            if sr is None:
                continue
            if not m:
                flat, steep = flat_tissue(sr, scales), steepest(sr, scales)
            each[m, k] = ripple(sr, flat, scales), steepness(sr, steep, scales)
            if k == shown:
                middle[m] = sr
    usable = (each[0] > 0).all(-1)  # with tissue that is not painted
    if not usable.any():
        raise InputFileError(f"{scan.name} shows no flat tissue in {len(chosen)} slices: give another scan")
    medians = np.median(each[:, usable] / each[:1, usable], axis=1)

    stored = lr.shape
    record: dict[str, Any] = {"scan": scan.name, "scale": [float(r) for r in scales], "stored": list(stored)}
    record |= {"acquired": list(scan.acquired.matrix(stored)), "estimate": asdict(scan.acquired)}
    record["models"] = [
        {"model": models[m].name, "ripple": float(medians[m, 0]), "edges": float(medians[m, 1]), "slices": int(usable.sum())}
        for m in range(len(models))
        if np.isfinite(medians[m]).all()
    ]
    return Examined(scan.name, scales, record, _crops(models, scan, scales, middle, medians))


def _crops(
    models: Sequence[Model], scan: Scan, scales: grid.Scales, outputs: dict[int, Image], medians: NDArray[np.float64]
) -> list[tuple[str, list[tuple[str, Image, str]]]]:
    """Two places of a slice: where most tissue is flat, and where a steep edge lies at air."""
    bicubic = outputs[0]
    size = [min(n, round(VIEW * float(r))) for n, r in zip(bicubic.shape, scales)]
    coarse = smooth(bicubic, COARSE, scales)
    steep, tissue, air = (_means(at, size) for at in (steepest(bicubic, scales), coarse > TISSUE, coarse < TISSUE / 2))
    rows = []
    for name, means in (("flat tissue", _means(flat_tissue(bicubic, scales), size)), ("edge", steep * tissue * air)):
        top, left = map(int, np.unravel_index(np.argmax(means), means.shape))
        images = []
        for m, sr in outputs.items():
            score = f"ripple {medians[m, 0]:.2f}, edges {medians[m, 1]:.2f}"
            images.append((models[m].name, upright(sr[top : top + size[0], left : left + size[1]], scan.axes), score))
        rows.append((name, images))
    return rows


def _means(of: NDArray[Any], size: Sequence[int]) -> NDArray[np.float64]:
    """(H - h + 1, W - w + 1): the means of every window (h, w)."""
    sums = np.pad(np.asarray(of, np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    (h, w), (height, width) = size, of.shape
    total = sums[h:, w:] - sums[: height - h + 1, w:] - sums[h:, : width - w + 1] + sums[: height - h + 1, : width - w + 1]
    return np.asarray(total / (h * w))


def markdown(models: Sequence[Model], found: Sequence[Examined]) -> str:
    """What was measured of each scan, and what models make of it."""
    scans = [["scan", "stored", "acquired", "taper", "σ"]]
    for name in dict.fromkeys(scan.name for scan in found):
        record = next(scan.record for scan in found if scan.name == name)
        matrices = ["×".join(map(str, record[key])) for key in ("stored", "acquired")]
        taper = ", ".join(f"{band['taper']:.2g}" for band in record["estimate"]["bands"])
        scans.append([name, *matrices, taper, percent(record["estimate"]["sigma"])])
    compared = models[1:]
    rows = [["scan", "scale", *(f"ripple {m.name}" for m in compared), *(f"edges {m.name}" for m in compared)]]
    for scan in found:
        of = {line["model"]: line for line in scan.record["models"]}
        cells = [f"{of[m.name][key]:.2f}" if m.name in of else "–" for key in ("ripple", "edges") for m in compared]
        rows.append([scan.name, report.name_of(scan.scales), *cells])
    titled = (("## What was measured", scans), ("## Ripple in flat tissue and edges, over bicubic's", rows))
    return "".join(f"{title}\n\n{report.table(lines)}\n\n" for title, lines in titled)


def distance(shape: tuple[int, ...], place: tuple[int, int]) -> NDArray[np.float64]:
    """How far every pixel's centre lies from that of one."""
    rows, cols = (np.arange(n) - at for n, at in zip(shape, place))
    return np.hypot(rows[:, None], cols)


def contrast(image: Image, place: tuple[int, int], diameter: float) -> float:
    """The mean of a disc less the mean of the ring around it."""
    far = distance(image.shape, place) - diameter / 2
    return float(image[far <= 0].mean() - image[(far >= RING[0]) & (far <= RING[1])].mean())


def flat_places(truth: Image, count: int = PLACES) -> list[tuple[int, int]]:
    """Up to `count` pixels of a truth in the midst of its flattest tissue, so far apart that no two rings meet."""
    reach = DIAMETERS[-1] // 2 + RING[1]
    coarse, size = smooth(truth, COARSE, WHOLE), 2 * reach + 1
    inside = ndimage.minimum_filter(coarse, size, mode="constant", cval=0) > TISSUE
    slope = np.where(inside, ndimage.uniform_filter(gradient(coarse, WHOLE), size), np.inf)
    places: list[tuple[int, int]] = []
    while len(places) < count and np.isfinite(slope.min()):
        row, col = map(int, np.unravel_index(np.argmin(slope), slope.shape))
        places.append((row, col))
        slope[max(0, row - size) : row + size + 1, max(0, col - size) : col + size + 1] = np.inf
    return places


def keep_discs(
    models: Sequence[Model],
    subjects: Iterable[Sequence[Crop]],
    which: Iterable[Sequence[int]],
    degradations: Sequence[Degradation],
    scales: Sequence[grid.Scales],
    factor: float = 1.0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """How much of discs each model keeps: a record an input, scale, diameter and contrast. `which` of each subject's crops."""
    cases = [(degradation, pair) for degradation in degradations for pair in scales]
    sides = [*zip(subjects, which)]
    records = []
    total = len(cases) * sum(len(numbers) for _, numbers in sides)
    with tqdm(total=total, desc="discs", unit="crop", disable=not progress, leave=False) as bar:
        for degradation, pair in cases:
            kept = np.zeros((len(models) + 1, len(DIAMETERS), len(CONTRASTS)))  # by models, and in the truth
            count = 0
            for crops, numbers in sides:
                estimated = any(model.told == "auto" for model in models)
                lrs, found = inputs(crops, numbers, degradation, pair, estimated)
                for k, lr in zip(numbers, lrs):
                    told = [model.hears(found.get(crops[k].volume), degradation.acquired, factor) for model in models]
                    places = flat_places(crops[k].pixels)
                    kept += _kept(models, told, crops[k].pixels, lr, places, degradation, pair)
                    count += len(places)
                    bar.update()
            if not count:
                raise InputFileError("no crop shows flat tissue that a disc could be put into: give other images")
            for d, c in np.ndindex(len(DIAMETERS), len(CONTRASTS)):
                record: dict[str, Any] = {"input": degradation.kind, "measured": degradation.case, "noise": degradation.noise}
                record |= {
                    "scale": [float(r) for r in pair],
                    "diameter": DIAMETERS[d],
                    "contrast": CONTRASTS[c],
                    "discs": count,
                }
                by_model = kept[:-1, d, c]
                record["bicubic"] = float(by_model[0] / kept[-1, d, c])
                record["models"] = {m.name: _number(by_model[k] / by_model[0]) for k, m in enumerate(models) if k}
                records.append(record)
    return records


def _kept(
    models: Sequence[Model],
    told: Sequence[Acquired],
    truth: Image,
    lr: Image,
    places: Sequence[tuple[int, int]],
    degradation: Degradation,
    scales: grid.Scales,
) -> NDArray[np.float64]:
    """(models and the truth, diameters, contrasts): the contrast that discs at these places have, summed over them."""
    kept = np.zeros((len(models) + 1, len(DIAMETERS), len(CONTRASTS)))
    if not places:
        return kept

    def outputs(lr: Image) -> list[Image | None]:
        return [model.output(lr, scales, acquired) for model, acquired in zip(models, told)]

    without = outputs(lr)
    for d, c in np.ndindex(kept.shape[1:]):
        discs = np.sum([disc(truth.shape, place, DIAMETERS[d]) for place in places], axis=0)
        discs *= np.float32(CONTRASTS[c] * degradation.noise)
        made = outputs(degradation.of(truth + discs, scales))
        for m, pair in enumerate([*zip(made, without), (discs, np.zeros_like(discs))]):
            if pair[0] is None or pair[1] is None:
                kept[m, d, c] = np.nan
            else:
                kept[m, d, c] = sum(contrast(pair[0] - pair[1], place, DIAMETERS[d]) for place in places)
    return kept


def disc_rows(models: Sequence[Model], records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Headings, and a row a record."""
    names = [model.name for model in models[1:]]
    rows = [["input", "scale", "noise", "diameter", "contrast", "bicubic keeps", *(f"{name} over bicubic" for name in names)]]
    for line in records:
        scale = "×" + ",".join(f"{r:g}" for r in dict.fromkeys(line["scale"]))
        made = " ".join(filter(None, (line["input"], line["measured"])))
        cells = [made, scale, percent(line["noise"]), str(line["diameter"]), f"{line['contrast']} σ", f"{line['bicubic']:.2f}"]
        rows.append([*cells, *("–" if (v := line["models"][name]) is None else f"{v:.2f}" for name in names)])
    return rows


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
