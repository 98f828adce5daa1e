"""The pictures of an evaluation: gains over scale, and crops beside each other, as the bytes of PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from .metrics import Measure
from .scores import Panel, Record

# Okabe and Ito's colours, told apart by colour-blind readers too. Of two lines of which one lies on the other both are seen.
_LINES = cycler(color=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"))
_LINES += cycler(marker="osD^vPX") + cycler(linestyle=("-", "-", "--", "-.", ":", "-", "-"))
STYLE: Any = {
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": _LINES,
    "lines.markersize": 4,
    "lines.linewidth": 1.2,
    "savefig.dpi": "figure",
}


@rc_context(STYLE)
def gains(records: Sequence[Record], measures: Sequence[Measure]) -> bytes:
    """What each model gains over the first one, bicubic interpolation: the mean over subjects, and its standard error.

    A panel an input that is no scan; equal scales of both axes only.
    """
    shown = [line for line in records if line["input"] != "scan"]
    panels = [[*lines] for _, lines in groupby(shown, lambda line: (line["input"], line["noise"]))]
    first, *models = dict.fromkeys(line["model"] for line in shown)
    rows, cols = len(measures), len(panels)
    figure = Figure(figsize=(1.2 + 2.7 * cols, 0.7 + 2.3 * rows), dpi=200, layout="constrained")
    axes = figure.subplots(rows, cols, squeeze=False, sharex=True, sharey="row")
    for (q, d), axis in np.ndenumerate(axes):
        measure, noise = measures[q], panels[d][0]["noise"]
        square = sorted((line for line in panels[d] if len({*line["scale"]}) == 1), key=lambda line: line["scale"])
        axis.grid(color="0.9", linewidth=0.6)
        axis.xaxis.set_major_formatter("×{x:g}")
        if len(ratios := {line["scale"][0] for line in square}) <= 6:
            axis.set_xticks(sorted(ratios))
        axis.axhline(0, color="0.3", linewidth=0.8)
        for model in models:
            its = [line for line in square if line["model"] == model]
            gain, error = (np.array([line[measure.key][key] for line in its], float) for key in ("gain", "gain_error"))
            bars = error if np.isfinite(error).any() else None
            axis.errorbar([line["scale"][0] for line in its], gain, bars, capsize=2, elinewidth=0.8, label=model)
        axis.set_title(f"inputs made by {panels[d][0]['input']}" + f" {100 * noise:.3g} %" * (noise > 0) if q == 0 else "")
        axis.set_xlabel("scale" if q == rows - 1 else "")
        axis.set_ylabel(f"{measure.label} over {first}" + f" ({measure.unit})" * bool(measure.unit) if d == 0 else "")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(models)))
    return _png(figure)


@rc_context(STYLE)
def panel(title: str, rows: Panel, errors: bool) -> bytes:
    """A line of images a row, so large that single pixels of an input can be seen.

    With `errors`, images are shown from 0, black, to 1, and below each is its absolute error against the last of its row, the
    truth, all on one colour scale; else each row from the first hundredth of its first image's grey values to the last.
    """
    columns, width = len(rows[0][1]), 1.75 if errors else 3.2
    lines = [np.abs(image - images[-1][1]) for _, images in rows for _, image, _ in images[:-1]] if errors else []
    top = max((float(np.percentile(line, 99.5)) for line in lines), default=1.0) or 1.0
    heights = [width * images[0][1].shape[0] / images[0][1].shape[1] for _, images in rows for _ in range(1 + errors)]
    figure = Figure(figsize=(width * columns + 0.3, sum(heights) + 0.32 * len(rows) + 0.6), dpi=100)
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02, hspace=0, wspace=0))
    figure.suptitle(title)
    axes = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for (shown, images), above, below in zip(rows, axes[:: 1 + errors], axes[errors :: 1 + errors]):
        low, high = (0, 1) if errors else np.percentile(images[0][1], (1, 99))
        for axis, under, (heading, image, score) in zip(above, below, images):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"{heading}\n{score}" if axis in axes[0] or not errors else score, fontsize=8)
            if errors and image is not images[-1][1]:
                mapped = under.imshow(np.abs(image - images[-1][1]), cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
        above[0].set_ylabel(shown, fontsize=8)
        if errors:
            below[0].set_ylabel("error", fontsize=8)
    if errors:
        bar = axes[1, -1].inset_axes((0.1, 0.1, 0.07, 0.8))  # below the first truth, which has no error
        figure.colorbar(mapped, cax=bar, label="absolute error\n(white = 1)", extend="max")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    """A figure in 96 colours, the same bytes for the same figure."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
    return file.getvalue()
