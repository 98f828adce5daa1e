"""Models and bicubic interpolation scored on inputs that were made of truths: records in plain data, and their tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime import InputFileError, grid, measure
from runtime.acquired import Acquired
from runtime.preview import upright

from . import data, metrics, subjects
from .data import Crop, Image
from .degradations import Degradation, percent
from .metrics import Measure
from .models import Model, nearest

MIN_CROP = 64  # pixels an axis: at ×4 there must be something left
PANEL_SCALES = tuple((r, r) for r in (Fraction(2), Fraction(5, 2), Fraction(4)))
PANEL_SUBJECTS = 3

Record = dict[str, Any]
Panel = list[tuple[str, list[tuple[str, Image, str]]]]  # a row (subject, [(heading, image, its score), …]) a crop


class Results(NamedTuple):
    """`records`: one an input, scale and model, models in one order, the first the one that gains are over; of each measure the
    mean over subjects, its standard error and the subjects' own means over their crops. None where there is no number.
    """

    records: list[Record]
    estimates: list[Record]  # of each input, scale and volume
    panels: dict[tuple[str, str], Panel]  # by input and scale


class Comparison(NamedTuple):
    """Models, and what they are compared on: crops of subjects, all or `most` of each, as inputs of these kinds and scales."""

    models: Sequence[Model]
    subjects: dict[str, list[Crop]]
    degradations: Sequence[Degradation]
    scales: Sequence[grid.Scales]
    most: int | None = None


class Sample(NamedTuple):
    """A subject's crop, the input made of it, and where a model wants to hear it, what the runtime finds in its volume."""

    subject: str
    crop: Crop
    degradation: Degradation
    scales: grid.Scales
    lr: Image
    estimate: Acquired | None

    def outputs(self, models: Sequence[Model], lr: Image | None = None) -> list[Image | None]:
        """What models make of the input, or of another one of its kind."""
        image = self.lr if lr is None else lr
        return [model.output(image, self.scales, self.estimate, self.degradation.acquired) for model in models]

    @property
    def case(self) -> Record:
        made = {"input": self.degradation.kind, "measured": self.degradation.case, "noise": self.degradation.noise}
        return {**made, "scale": [float(r) for r in self.scales]}


def load_subjects(folder: Path, subject: str | None = None) -> dict[str, list[Crop]]:
    """Every subject's brain crops of `MIN_CROP` pixels an axis or more; an empty list where a subject has none.

    `subject` as in `subjects.split_by_subject`. Raises InputFileError where no subject has any.
    """
    files = subjects.find_files(folder)
    names = subjects.subjects(folder, files, subject)
    crops: dict[str, list[Crop]] = {name: [] for name in names}
    for file, name in data.bar([*zip(files, names)], desc="reading", unit="file", leave=False):
        crops[name] += data.load_crops([file], MIN_CROP)
    if not any(crops.values()):
        raise InputFileError(f"{folder} holds no slice with a brain of {MIN_CROP}×{MIN_CROP} pixels: give larger images")
    return crops


def cases(compared: Comparison) -> Iterator[list[Sample]]:
    """The samples of each input and scale, by subject; estimates are made of all inputs of a volume."""
    estimated = any(model.told == "auto" for model in compared.models)
    for degradation, scales in data.bar([*product(compared.degradations, compared.scales)], unit="case", leave=False):
        samples = []
        for name, crops in compared.subjects.items():
            chosen = data.evenly(range(len(crops)), compared.most or len(crops))
            lrs = {k: degradation.of(crops[k].pixels, scales) for k in (range(len(crops)) if estimated else chosen)}
            volumes = defaultdict(list)
            for k, lr in lrs.items():
                volumes[crops[k].volume].append(lr)
            found = {volume: measure.estimate(its) for volume, its in volumes.items()} if estimated else {}
            samples += [Sample(name, crops[k], degradation, scales, lrs[k], found.get(crops[k].volume)) for k in chosen]
        yield samples


def evaluate(compared: Comparison, measures: Sequence[Measure] = (metrics.PSNR, metrics.SSIM)) -> Results:
    """Score every model on every sample of `cases`.

    The largest crop of the first subjects is shown, at `PANEL_SCALES`, or where none of them is scored at the first.
    """
    models, results = compared.models, Results([], [], {})
    distances = [measure.of for measure in measures]
    panel_scales = [pair for pair in compared.scales if pair in PANEL_SCALES] or compared.scales[:1]
    for samples in cases(compared):
        case, rows, means = samples[0].case, [], {}
        for name, its in groupby(samples, lambda sample: sample.subject):
            every, each = [*its], []
            shown = max(every, key=lambda sample: sample.crop.pixels.size)
            for sample in every:
                outputs = sample.outputs(models)
                each.append([metrics.score(sr, sample.crop.pixels, distances) for sr in outputs])
                if sample is shown:
                    rows.append((name, _images(models, sample, outputs)))
            means[name] = np.mean(each, axis=0)
        results.records.extend(record(case, *of, [*means], measures) for of in zip(models, np.stack([*means.values()], -1)))
        degradation = samples[0].degradation
        truth = asdict(degradation.acquired)
        for volume, estimate in {sample.crop.volume: sample.estimate for sample in samples}.items():
            if estimate:
                results.estimates.append({**case, "volume": volume, "estimate": asdict(estimate), "truth": truth})
        if samples[0].scales in panel_scales:
            results.panels[degradation.name, name_of(samples[0].scales)] = rows[:PANEL_SUBJECTS]
    return results


def record(
    case: Record, model: Model, scores: NDArray[np.float64], subjects: Sequence[str], measures: Sequence[Measure]
) -> Record:
    """A model's scores (measures, subjects) of one case."""
    return {**case, "model": model.name} | {
        measure.key: {
            "mean": number(of.mean()),
            "standard_error": number(of.std(ddof=1) / math.sqrt(len(of))) if len(of) > 1 else None,
            "subjects": dict(zip(subjects, map(number, of))),
        }
        for measure, of in zip(measures, scores)
    }


def number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _images(models: Sequence[Model], sample: Sample, outputs: Sequence[Image | None]) -> list[tuple[str, Image, str]]:
    """(heading, upright image, its score): the input, what each model that serves the scale makes of it, the truth."""
    shown = [("input, nearest", nearest(sample.lr, sample.scales))]
    shown += [(model.name, sr) for model, sr in zip(models, outputs) if sr is not None]
    truth = sample.crop.pixels[: shown[0][1].shape[0], : shown[0][1].shape[1]]
    images = [(name, sr, f"{metrics.psnr(truth, sr):.2f} dB, {metrics.ssim(truth, sr):.4f}") for name, sr in shown]
    images.append(("truth", truth, "PSNR, SSIM"))
    return [(heading, upright(np.clip(image, 0, 1), sample.crop.axes), score) for heading, image, score in images]


def name_of(scales: Iterable[Any]) -> str:
    """A scale as people write it: ×2.5, or ×2,3 for rows and columns."""
    return "×" + ",".join(f"{float(r):g}" for r in dict.fromkeys(scales))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them headings, as a Markdown table whose columns line up in a terminal too."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def markdown(records: Sequence[Record], measures: Sequence[Measure]) -> str:
    """A table a kind of input, the best of each row in bold; a summary of scans."""
    noisy = any(line["noise"] for line in records)
    parts = []
    for kind in dict.fromkeys(line["input"] for line in records):
        cases = [[*lines] for _, lines in groupby((line for line in records if line["input"] == kind), _key)]
        scan = kind == "scan"
        first, columns = measures[0], [(m, k, line["model"]) for m in measures for k, line in enumerate(cases[0])]
        heading = [f"{m.label} {model}" + " (gain)" * (k > 0 and m is first) for m, k, model in columns]
        rows = [["measured"] * scan + ["scale"] + ["noise"] * noisy + heading]
        for lines in cases:
            _, measured, noise, scales = _key(lines[0])
            row = [measured] * scan + [name_of(scales)] + [percent(noise)] * noisy
            rows.append([*row, *(cell for measure in measures for cell in _cells(lines, measure, measure is first))])
        parts += ["## Inputs of a scanner" if scan else f"## Inputs made by {kind}", table(rows)]
    if short := summary(records, measures):
        rows = [["inputs of a scanner", "model", "cases", "mean gain", "least gain", "at", "mean SSIM gain", "least", "at"]]
        for line in short:
            cells = [f"{line['psnr']['mean']:+.2f} dB", f"{line['psnr']['least']:+.2f} dB", line["psnr"]["at"]]
            cells += [f"{line['ssim']['mean']:+.4f}", f"{line['ssim']['least']:+.4f}", line["ssim"]["at"]]
            rows.append([line["over"], line["model"], str(line["cases"]), *cells])
        parts += ["## The scanner's inputs in short: gains over bicubic", table(rows)]
    return "\n\n".join(parts) + "\n\n"


def _key(line: Record) -> tuple[str, str, float, list[float]]:
    """The case that a record is of."""
    return line["input"], line["measured"], line["noise"], line["scale"]


def _cells(lines: Sequence[Record], measure: Measure, with_gain: bool) -> Iterator[str]:
    """Of one case, a cell a model: 32.73 ± 0.41 (+3.97)."""
    means = [line[measure.key]["mean"] for line in lines]
    best = (max if measure.higher_is_better else min)(mean for mean in means if mean is not None)
    for k, (line, mean) in enumerate(zip(lines, means)):
        if mean is None:
            yield "–"
            continue
        shown, error = f"{mean:.{measure.digits}f}", line[measure.key]["standard_error"]
        cell = shown if error is None else f"{shown} ± {error:.{measure.digits}f}"
        cell = f"**{cell}**" if shown == f"{best:.{measure.digits}f}" else cell
        yield cell + (f" ({mean - means[0]:+.{measure.digits}f})" if k and with_gain else "")


def summary(records: Sequence[Record], measures: Sequence[Measure]) -> list[Record]:
    """Of all scans, and of those at each scale and noise: each model's mean and least gain over bicubic, and where it is."""
    noisy = any(line["noise"] for line in records)
    gains = defaultdict(list)
    for (kind, measured, noise, scales), lines in groupby(records, _key):
        bicubic, *others = lines
        over, shown = name_of(scales), percent(noise)
        at = " ".join(filter(None, (kind, measured, shown * (noise > 0), over)))
        for line in others if kind == "scan" else ():
            if all(line[measure.key]["mean"] is not None for measure in measures):
                gain = [line[measure.key]["mean"] - bicubic[measure.key]["mean"] for measure in measures]
                gains[over + f", noise {shown}" * noisy].append((line["model"], at, gain))
    if len(gains) > 1:
        gains["all"] = [case for cases in gains.values() for case in cases]
    found = []
    for group, cases in gains.items():
        for model in dict.fromkeys(model for model, _, _ in cases):
            its = [(gain, at) for name, at, gain in cases if name == model]
            summed: Record = {"over": group, "model": model, "cases": len(its)}
            for q, by in enumerate(measures):
                least, at = (min if by.higher_is_better else max)(((gain[q], at) for gain, at in its), key=itemgetter(0))
                summed[by.key] = {"mean": float(np.mean([gain[q] for gain, _ in its])), "least": least, "at": at}
            found.append(summed)
    return found
