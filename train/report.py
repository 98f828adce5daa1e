"""What an evaluation found, as Markdown for people and as plain data for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import grid

from .metrics import Measure
from .models import Model


@dataclass(frozen=True)
class Results:
    """`scores` is (kernels, scales, models, measures, subjects), float64: each subject's mean over its crops, NaN at a scale
    that a model does not serve. `crops` counts the crops of each subject, in the order of `scores`. The first model is the
    one that gains are over.
    """

    kernels: tuple[str, ...]
    scales: tuple[grid.Scales, ...]
    models: tuple[Model, ...]
    measures: tuple[Measure, ...]
    crops: dict[str, int]
    scores: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """(kernels, scales, models, measures): means over subjects."""
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


def markdown(results: Results, how: Sequence[str]) -> str:
    """A table a degradation, the best of each row in bold; the models; how it was measured."""
    parts = []
    for kernel, mean, error in zip(results.kernels, results.mean, results.standard_error):
        rows = [[name_of(s), *_cells(results, m, e)] for s, m, e in zip(results.scales, mean, error)]
        parts += [f"## Inputs made by {kernel}", table([["scale", *_headings(results)], *rows])]
    facts = ["model", "parameters", "bytes on disk", "multiply-adds an lr pixel", "served by", "file"]
    models = [
        [m.name, *(_count(n) for n in (m.parameters, m.bytes, m.multiply_adds)), m.served_by, m.file or "–"]
        for m in results.models
    ]
    parts += ["## Models", table([facts, *models]), "## How it was measured", "\n".join(f"- {line}" for line in how)]
    return "\n\n".join(parts) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """Everything of the results as plain data: one record a degradation, scale and model, with each subject's scores."""
    means, errors = results.mean, results.standard_error
    records = []
    for k, s, m in np.ndindex(results.scores.shape[:3]):
        record: dict[str, Any] = {"kernel": results.kernels[k], "scale": [float(r) for r in results.scales[s]]}
        record["model"] = results.models[m].name
        for q, measure in enumerate(results.measures):
            record[measure.key] = {
                "mean": _number(means[k, s, m, q]),
                "standard_error": _number(errors[k, s, m, q]),
                "subjects": {name: _number(v) for name, v in zip(results.crops, results.scores[k, s, m, q])},
            }
        records.append(record)
    return {"crops": results.crops, "models": [_facts(model) for model in results.models], "scores": records}


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


def _facts(model: Model) -> dict[str, Any]:
    return {field.name: getattr(model, field.name) for field in fields(model) if field.name != "upscale"}


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
