"""Models and bicubic interpolation scored on inputs that were made of truths: records in plain data, and their tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime import InputFileError, grid
from runtime.acquired import STORED, Acquired
from runtime.measure import estimate
from runtime.preview import upright

from . import data, metrics, subjects
from .data import Crop, Image
from .degradations import Degradation, percent
from .metrics import Measure
from .models import Model, Told

MIN_CROP = 64  # pixels an axis: at ×4 there must be something left
PANEL_SCALES = tuple((r, r) for r in (Fraction(2), Fraction(5, 2), Fraction(4)))
PANEL_SUBJECTS = 3

# What tells a record's case, whichever keys it has, and how it is shown.
CASE = ("scan", "stored", "acquired", "taper", "input", "measured", "scale", "noise", "diameter", "contrast")
Record = dict[str, Any]  # of a case and a model; models in one order, the first the one that gains are over
Panel = list[tuple[str, list[tuple[str, Image, str]]]]  # a row (subject, [(heading, image, its score), …]) a crop


class Results(NamedTuple):
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

    @property
    def known(self) -> dict[Told, Acquired]:
        """What is known of the input, by what a model may want to be told."""
        of: dict[Told, Acquired] = {"true": self.degradation.acquired, "stored": STORED}
        return of | ({"auto": self.estimate} if self.estimate else {})

    @property
    def case(self) -> Record:
        made = {"input": self.degradation.kind, "measured": self.degradation.case, "noise": self.degradation.noise}
        return {**made, "scale": [float(r) for r in self.scales]}

    def outputs(self, models: Sequence[Model], lr: Image) -> list[Image | None]:
        """What models make of the input, or of another one of its kind."""
        return [model.output(lr, self.scales, self.known) for model in models]


def load_subjects(folder: Path, subject: str | None = None) -> dict[str, list[Crop]]:
    """Every subject's brain crops of `MIN_CROP` pixels an axis or more; an empty list where a subject has none.

    `subject` as in `subjects.split_by_subject`. Raises InputFileError where no subject has any.
    """
    files = subjects.find_files(folder)
    crops: dict[str, list[Crop]] = defaultdict(list)
    for file, name in data.bar([*zip(files, subjects.subjects(folder, files, subject))], desc="reading", leave=False):
        crops[name] += data.load_crops([file], MIN_CROP)
    if not any(crops.values()):
        raise InputFileError(f"{folder} holds no slice with a brain of {MIN_CROP}×{MIN_CROP} pixels: give larger images")
    return dict(crops)


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
            found = {volume: estimate(its) for volume, its in volumes.items()} if estimated else {}
            samples += [Sample(name, crops[k], degradation, scales, lrs[k], found.get(crops[k].volume)) for k in chosen]
        yield samples


def evaluate(compared: Comparison, measures: Sequence[Measure] = (metrics.PSNR, metrics.SSIM)) -> Results:
    """Score every model on every sample of `cases`.

    The largest crop of the first subjects is shown, at `PANEL_SCALES`, or where none of them is scored at the first.
    """
    models, panel_scales = compared.models, [pair for pair in compared.scales if pair in PANEL_SCALES] or compared.scales[:1]
    records, estimates, panels = results = Results([], [], {})
    for samples in cases(compared):
        (first, *_), panel, scores = samples, [], {}
        for name, its in groupby(samples, lambda sample: sample.subject):
            of_subject, each = [*its], []
            shown = max(of_subject, key=lambda sample: sample.crop.pixels.size)
            for sample in of_subject:
                outputs = sample.outputs(models, sample.lr)
                each.append([[measure.score(sample.crop.pixels, sr) for measure in measures] for sr in outputs])
                if sample is shown:
                    panel.append((name, _images(models, sample, outputs)))
            scores[name] = np.mean(each, axis=0)
        records.extend(records_of(first.case, [model.name for model in models], scores, measures))
        truth = asdict(first.degradation.acquired)
        volumes = {sample.crop.volume: sample.estimate for sample in samples if sample.estimate}
        for volume, of in volumes.items():
            estimates.append({**first.case, "volume": volume, "estimate": asdict(of), "truth": truth})
        if first.scales in panel_scales:
            panels[first.degradation.name, name_of(first.scales)] = panel[:PANEL_SUBJECTS]
    return results


def records_of(
    case: Record, models: Sequence[str], scores: dict[str, np.ndarray], measures: Sequence[Measure]
) -> Iterator[Record]:
    """Of each measure the mean over subjects and the gain over the first model, both with their standard errors, and the
    subjects' own scores (models, measures), which are given. None where there is no number.
    """
    values = np.stack([*scores.values()], -1)  # (models, measures, subjects)

    def error(of: np.ndarray) -> float | None:
        return number(of.std(ddof=1) / math.sqrt(len(of))) if len(of) > 1 else None

    for name, its in zip(models, values):
        line = {**case, "model": name}
        for measure, of, over in zip(measures, its, its - values[0]):
            line[measure.key] = {"mean": number(of.mean()), "standard_error": error(of), "gain": number(over.mean())}
            line[measure.key] |= {"gain_error": error(over), "subjects": dict(zip(scores, map(number, of)))}
        yield line


def number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _images(models: Sequence[Model], sample: Sample, outputs: Sequence[Image | None]) -> list[tuple[str, Image, str]]:
    """(heading, upright image, its score): the input, what each model that serves the scale makes of it, the truth."""
    rows, cols = (grid.project(n, r, "centred").source for n, r in zip(sample.lr.shape, sample.scales))
    truth = sample.crop.pixels[: len(rows), : len(cols)]
    shown = [("input, nearest", sample.lr[rows][:, cols])]
    shown += [(model.name, sr) for model, sr in zip(models, outputs) if sr is not None]
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
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], "", ""])


def by_model(records: Sequence[Record], columns: dict[str, Callable[[Record, Sequence[Record]], str]]) -> str:
    """A table with a row a case and a column for each model and kind of cell, which is made of a record and all of its case."""
    keys = [key for key in CASE if any(r.get(key) for r in records)]
    models = [*dict.fromkeys(r["model"] for r in records)]
    shown: dict[str, Callable[[Any], str]] = {"scale": name_of, "noise": percent, "contrast": "{} σ".format}
    shown |= dict.fromkeys(("stored", "acquired"), lambda axes: "×".join(map(str, axes)))
    shown["taper"] = lambda axes: ", ".join(f"{taper:.2g}" for taper in axes)
    rows = [[*keys, *(f"{heading} {model}" for heading in columns for model in models)]]
    for case, lines in groupby(records, itemgetter(*keys)):
        its = [*lines]
        of = {line["model"]: line for line in its}
        cells = (cell(of[name], its) if name in of else "–" for cell in columns.values() for name in models)
        rows.append([*(shown.get(key, str)(value) for key, value in zip(keys, case)), *cells])
    return table(rows)


def plain(key: str) -> Callable[[Record, Sequence[Record]], str]:
    """A number of a record, with two digits."""
    return lambda line, _: "–" if line[key] is None else f"{line[key]:.2f}"


def cell_of(measure: Measure) -> Callable[[Record, Sequence[Record]], str]:
    """32.73 ± 0.41 (+3.97), in bold if it is the best of its case."""

    def cell(line: Record, case: Sequence[Record]) -> str:
        score, digits = line[measure.key], measure.digits
        if score["mean"] is None:
            return "–"
        best = (max if measure.higher_is_better else min)(m for r in case if (m := r[measure.key]["mean"]) is not None)
        text = f"{score['mean']:.{digits}f}"
        bold = "**" * (text == f"{best:.{digits}f}")
        error = "" if score["standard_error"] is None else f" ± {score['standard_error']:.{digits}f}"
        gain = "" if score["gain"] is None or line is case[0] else f" ({score['gain']:+.{digits}f})"
        return f"{bold}{text}{error}{bold}{gain}"

    return cell


def summary(records: Sequence[Record], measures: Sequence[Measure]) -> list[Record]:
    """Of all scans, and of those at each scale and noise: each model's mean and least gain over bicubic, and where it is."""
    noisy, groups = any(line["noise"] for line in records), defaultdict(list)
    for line in records:
        served = all(line[measure.key]["gain"] is not None for measure in measures)
        if served and line["input"] == "scan" and line["model"] != records[0]["model"]:
            over = name_of(line["scale"]) + f", noise {percent(line['noise'])}" * noisy
            for group in (over, "all"):
                groups[group, line["model"]].append(line)
    found = []
    for (group, model), lines in sorted(groups.items(), key=lambda item: item[0][0] == "all"):
        row: Record = {"over": group, "model": model, "cases": len(lines)}
        for measure in measures:
            gains = [line[measure.key]["gain"] for line in lines]
            worst = lines[(np.argmin if measure.higher_is_better else np.argmax)(gains)]
            noise = percent(worst["noise"]) * (worst["noise"] > 0)
            at = " ".join(filter(None, (worst["measured"], noise, name_of(worst["scale"]))))
            row[measure.key] = {"mean": float(np.mean(gains)), "least": worst[measure.key]["gain"], "at": at}
        found.append(row)
    return found


def markdown(records: Sequence[Record], measures: Sequence[Measure]) -> str:
    """A table of all scores, and a summary of those of scans."""
    text = "## Scores\n\n" + by_model(records, {measure.label: cell_of(measure) for measure in measures})
    columns = [column for measure in measures for column in (f"mean gain, {measure.label}", "least", "at")]
    rows = [["inputs of a scanner", "model", "cases", *columns]]
    for line in summary(records, measures):
        row = [line["over"], line["model"], str(line["cases"])]
        for m in measures:
            row += [f"{line[m.key][part]:+.{m.digits}f} {m.unit}".strip() for part in ("mean", "least")] + [line[m.key]["at"]]
        rows.append(row)
    return text + (f"## The scanner's inputs in short: gains over bicubic\n\n{table(rows)}" if rows[1:] else "")
