"""What an evaluation found, as Markdown for people and as plain data for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import grid
from runtime.acquired import Acquired

from .degradations import Degradation, percent
from .metrics import Measure
from .models import Model


@dataclass(frozen=True)
class Results:
    """`scores` is (inputs, scales, models, measures, subjects), float64: each subject's mean over its crops, NaN at a scale
    that a model does not serve. `crops` counts the crops of each subject, in the order of `scores`. The first model is the
    one that gains are over. `estimates` are of (input, scale, volume), the first two as indices.
    """

    inputs: tuple[Degradation, ...]
    scales: tuple[grid.Scales, ...]
    models: tuple[Model, ...]
    measures: tuple[Measure, ...]
    crops: dict[str, int]
    scores: NDArray[np.float64]
    estimates: dict[tuple[int, int, str], Acquired] = field(default_factory=dict)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(inputs, scales, models, measures): means over subjects."""
        return self.scores.mean(-1)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """The mean's: the sample standard deviation over subjects / √subjects, NaN for one subject."""
        count = self.scores.shape[-1]
        if count < 2:
            return np.full(self.scores.shape[:-1], np.nan)
        return self.scores.std(-1, ddof=1) / math.sqrt(count)


def name_of(scales: grid.Scales) -> str:
    """A scale as people write it: ×2.5, or ×2,3 for rows and columns."""
    return "×" + ",".join(f"{float(r):g}" for r in dict.fromkeys(scales))


def markdown(results: Results) -> str:
    """A table a kind of input, the best of each row in bold; a summary of scans; the models."""
    means, errors = results.mean, results.standard_error
    noisy = any(d.noise for d in results.inputs)
    parts = []
    for kind in dict.fromkeys(d.kind for d in results.inputs):
        scan = kind == "scan"
        rows = [[*["measured"] * scan, "scale", *["noise"] * noisy, *_headings(results)]]
        for d, degradation in enumerate(results.inputs):
            if degradation.kind == kind:
                case, noise = [degradation.case] * scan, [percent(degradation.noise)] * noisy
                for s, scales in enumerate(results.scales):
                    rows.append([*case, name_of(scales), *noise, *_cells(results, means[d, s], errors[d, s])])
        parts += ["## Inputs of a scanner" if scan else f"## Inputs made by {kind}", table(rows)]
    if short := summary(results):
        rows = [["inputs of a scanner", "model", "cases", "mean gain", "least gain", "at", "mean SSIM gain", "least", "at"]]
        for line in short:
            cells = [f"{line['psnr']['mean']:+.2f} dB", f"{line['psnr']['least']:+.2f} dB", line["psnr"]["at"]]
            cells += [f"{line['ssim']['mean']:+.4f}", f"{line['ssim']['least']:+.4f}", line["ssim"]["at"]]
            rows.append([line["over"], line["model"], str(line["cases"]), *cells])
        parts += ["## The scanner's inputs in short: gains over bicubic", table(rows)]
    return "\n\n".join([*parts, models_table(results.models)])


def summary(results: Results) -> list[dict[str, Any]]:
    """Of all scans, and of those at each scale and noise: each model's mean and least gain over bicubic, and where it is."""
    cases = [(d, s) for d, s in np.ndindex(results.scores.shape[:2]) if results.inputs[d].kind == "scan"]
    groups: dict[str, list[tuple[int, int]]] = {}
    noisy = any(d.noise for d in results.inputs)
    for d, s in cases:
        noise = f", noise {percent(results.inputs[d].noise)}" * noisy
        groups.setdefault(name_of(results.scales[s]) + noise, []).append((d, s))
    if len(groups) > 1:
        groups["all"] = cases
    gains = results.mean - results.mean[:, :, :1]
    lines = []
    for over, group in groups.items():
        for m, model in enumerate(results.models[1:], 1):
            served = [case for case in group if np.isfinite(gains[case][m]).all()]
            if not served:
                continue
            line: dict[str, Any] = {"over": over, "model": model.name, "cases": len(served)}
            for q, measure in enumerate(results.measures):
                of = [float(gains[case][m, q]) for case in served]
                worst = min if measure.higher_is_better else max
                d, s = served[of.index(worst(of))]
                at = f"{results.inputs[d].name} {name_of(results.scales[s])}"
                line[measure.key] = {"mean": float(np.mean(of)), "least": worst(of), "at": at}
            lines.append(line)
    return lines


def models_table(models: Sequence[Model]) -> str:
    heading = ["model", "told", "parameters", "bytes on disk", "multiply-adds an lr pixel", "served by", "file"]
    rows = [
        [m.name, m.told, *(_count(n) for n in (m.parameters, m.bytes, m.multiply_adds)), m.served_by, m.file or "–"]
        for m in models
    ]
    return "## Models\n\n" + table([heading, *rows]) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """Everything of the results as plain data: one record an input, scale and model, with each subject's scores."""
    means, errors = results.mean, results.standard_error
    records = []
    for d, s, m in np.ndindex(results.scores.shape[:3]):
        record = {**_case(results, d, s), "model": results.models[m].name}
        for q, measure in enumerate(results.measures):
            record[measure.key] = {
                "mean": _number(means[d, s, m, q]),
                "standard_error": _number(errors[d, s, m, q]),
                "subjects": {name: _number(v) for name, v in zip(results.crops, results.scores[d, s, m, q])},
            }
        records.append(record)
    estimates = [
        {**_case(results, d, s), "volume": name, "estimate": asdict(found), "truth": asdict(results.inputs[d].acquired)}
        for (d, s, name), found in results.estimates.items()
    ]
    content = {"crops": results.crops, "models": facts(results.models), "scores": records}
    return {**content, "summary": summary(results), "estimates": estimates}


def _case(results: Results, d: int, s: int) -> dict[str, Any]:
    degradation = results.inputs[d]
    made = {"input": degradation.kind, "measured": degradation.case, "noise": degradation.noise}
    return {**made, "scale": [float(r) for r in results.scales[s]]}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them headings, as a Markdown table whose columns line up in a terminal too."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _headings(results: Results) -> Iterable[str]:
    for q, measure in enumerate(results.measures):
        for k, model in enumerate(results.models):
            yield f"{measure.label} {model.name}" + (" (gain)" if k and not q else "")


def _cells(results: Results, mean: NDArray[np.float64], error: NDArray[np.float64]) -> Iterable[str]:
    """One row's cells from its (models, measures), measure by measure: 32.73 ± 0.41 (+3.97), the gain for the first measure."""
    for q, measure in enumerate(results.measures):
        shown = [f"{value:.{measure.digits}f}" for value in mean[:, q]]
        best = f"{(np.nanmax if measure.higher_is_better else np.nanmin)(mean[:, q]):.{measure.digits}f}"
        for k, text in enumerate(shown):
            if np.isnan(mean[k, q]):
                yield "–"
                continue
            cell = text if np.isnan(error[k, q]) else f"{text} ± {error[k, q]:.{measure.digits}f}"
            cell = f"**{cell}**" if text == best else cell
            yield cell + (f" ({mean[k, q] - mean[0, q]:+.{measure.digits}f})" if k and not q else "")


def facts(models: Sequence[Model]) -> list[dict[str, Any]]:
    """What is known of models, as plain data."""
    return [{f.name: getattr(model, f.name) for f in fields(model) if f.name != "upscale"} for model in models]


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
