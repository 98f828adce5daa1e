"""How often the intervals that a bundle tells hold the truth, by input and scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from runtime.uncertainty import COVERAGE

from .realscans import TISSUE
from .scores import Comparison, Record, cases, name_of, table

HOW = (
    f"held: part of the pixels of a crop whose truth lies within ± the half width of the output, which should be {COVERAGE:g}; "
    f"of tissue: of those above {TISSUE:g} of white; ±: mean half width in tissue, in % of white; means over crops",
)


def examine(compared: Comparison) -> list[Record]:
    """Of each case and model that tells the uncertainty: what is held, and the half width."""
    records = []
    for samples in cases(compared):
        for model in (model for model in compared.models if model.interval):
            each = []
            for sample in samples:
                acquired = model.acquired(sample.estimate, sample.degradation.acquired)
                assert model.interval
                sr, half_width = model.interval(sample.lr, sample.scales, acquired)
                truth = sample.crop.pixels[: sr.shape[0], : sr.shape[1]]
                held, tissue = np.abs(sr - truth) <= half_width, truth > TISSUE
                each.append((held.mean(), held[tissue].mean(), half_width[tissue].mean()))
            means = dict(zip(("held", "held_of_tissue", "half_width"), map(float, np.nanmean(each, 0))))
            records.append({**samples[0].case, "model": model.name, **means, "crops": len(each)})
    return records


def markdown(records: Sequence[Record]) -> str:
    """A table of all cases, and one of the means by input, by noise and by scale."""
    rows = [["model", "input", "noise", "scale", "held", "of tissue", "±"]]
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for r in records:
        made, noise, scale = f"{r['input']} {r['measured']}".strip(), f"{100 * r['noise']:g} %", name_of(r["scale"])
        rows.append([r["model"], made, noise, scale, *_cells([r])])
        for of in (("all", ""), ("input", r["input"]), ("noise", noise), ("scale", scale)):
            groups[r["model"], *of].append(r)
    means = [["model", "over", "", "cases", "held", "of tissue", "±"]]
    means += [[*group, str(len(its)), *_cells(its)] for group, its in sorted(groups.items())]
    return f"## What intervals hold\n\n{table(means)}{table(rows)}"


def _cells(records: Sequence[Record]) -> list[str]:
    held, tissue, width = (np.mean([r[key] for r in records]) for key in ("held", "held_of_tissue", "half_width"))
    return [f"{held:.3f}", f"{tissue:.3f}", f"{100 * width:.1f}"]
