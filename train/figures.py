"""The pictures of an evaluation: scores over scale, and crops beside each other. Each function gives a matplotlib figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from .models import Image as Pixels
from .report import Results

STYLE: Any = {
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 4,
    "lines.linewidth": 1.2,
    "savefig.dpi": "figure",
}
# Okabe and Ito's colours, told apart by colour-blind readers too; bicubic, which comes first, is black.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
LINES = ("-", "-", "--", "-.", ":")  # one that lies on another shows both


@rc_context(STYLE)
def curves(results: Results) -> Figure:
    """Every measure over scale, a line a model, with standard errors, a panel an input that is no scan; equal scales of both
    axes only.
    """
    square = sorted((y, s) for s, (y, x) in enumerate(results.scales) if y == x)
    index, ratio = np.array([s for _, s in square], int), [float(r) for r, _ in square]
    shown = [d for d, degradation in enumerate(results.inputs) if degradation.kind != "scan"]
    rows, cols = len(results.measures), len(shown)
    figure = Figure(figsize=(1.2 + 2.7 * cols, 0.7 + 2.3 * rows), dpi=200, layout="constrained")
    axes = figure.subplots(rows, cols, squeeze=False, sharex=True, sharey="row")
    for q, measure in enumerate(results.measures):
        axes[q, 0].set_ylabel(measure.label + (f" ({measure.unit})" if measure.unit else ""))
        for k, d in enumerate(shown):
            axis = axes[q, k]
            axis.grid(color="0.9", linewidth=0.6)
            axis.xaxis.set_major_formatter("×{x:g}")
            if len(ratio) <= 6:
                axis.set_xticks(ratio)
            for m, model in enumerate(results.models):
                colour, marker = COLOURS[m % len(COLOURS)], MARKERS[m % len(MARKERS)]
                mean, error = (part[d, index, m, q] for part in (results.mean, results.standard_error))
                style = {"color": colour, "marker": marker, "linestyle": LINES[m % len(LINES)], "label": model.name}
                axis.errorbar(ratio, mean, None if np.isnan(error).all() else error, capsize=2, elinewidth=0.8, **style)
            if q == 0:
                axis.set_title(f"inputs made by {results.inputs[d].name}")
            if q == rows - 1:
                axis.set_xlabel("scale")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(results.models)))
    return figure


@rc_context(STYLE)
def panel(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, Pixels, str]]]]) -> Figure:
    """A row (subject, [(heading, image, its score), …]) a crop, each image over its absolute error against the last, the truth.

    All images of a row have one shape (H, W) and are shown from 0, black, to 1; the errors share one colour scale.
    """
    columns = len(rows[0][1])
    errors = [[np.abs(image - images[-1][1]) for _, image, _ in images[:-1]] for _, images in rows]
    top = max(float(np.percentile(e, 99.5)) for row in errors for e in row) or 1.0
    heights = [1.75 * e[0].shape[0] / e[0].shape[1] for e in errors for _ in range(2)]
    size = (1.75 * columns + 0.3, sum(heights) + 0.32 * len(rows) + 0.6)
    figure = Figure(figsize=size, dpi=100, layout=ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02, hspace=0, wspace=0))
    figure.suptitle(title)
    axes = figure.subplots(2 * len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for (subject, images), error, above, below in zip(rows, errors, axes[::2], axes[1::2]):
        for axis, (heading, image, score) in zip(above, images):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(f"{heading}\n{score}" if axis in axes[0] else score, fontsize=8)
        for axis, image in zip(below, error):
            mapped = axis.imshow(image, cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
        above[0].set_ylabel(subject, fontsize=8)
        below[0].set_ylabel("error", fontsize=8)
    bar = axes[1, -1].inset_axes((0.1, 0.1, 0.07, 0.8))  # below the first truth, which has no error
    figure.colorbar(mapped, cax=bar, label="absolute error\n(white = 1)", extend="max")
    return figure


@rc_context(STYLE)
def crops(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, Pixels, str]]]]) -> Figure:
    """A row (what it shows, [(model, crop, its figures), …]) a place of a scan, enlarged so that single pixels can be seen.

    A row is shown from the first hundredth of its first image's grey values, black, to the last.
    """
    figure = Figure(figsize=(3.2 * len(rows[0][1]) + 0.3, 3.5 * len(rows) + 0.3), dpi=100, layout="constrained")
    figure.suptitle(title)
    for line, (shown, images) in zip(figure.subplots(len(rows), len(rows[0][1]), squeeze=False), rows):
        low, high = np.percentile(images[0][1], (1, 99))
        for axis, (heading, image, score) in zip(line, images):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"{heading}\n{score}", fontsize=8)
        line[0].set_ylabel(shown)
    return figure


def save(figure: Figure, kind: str, file: Any) -> None:
    """Write a figure to a binary file, as svg or as png of 96 colours, the same bytes for the same figure."""
    drawn = io.BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": "metasrgan-edge"}):
        figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    if kind == "svg":
        file.write(drawn.getvalue())
    else:
        palette = Image.open(drawn).convert("RGB").quantize(96, dither=Image.Dither.NONE)
        palette.save(file, format="png", optimize=True)
