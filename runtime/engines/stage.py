"""What the two graphs of the Meta-Upscale stage are fed, for any device.

By table: gather the features class by class, one batched matrix product with the slot table, gather the output pixels. Without
one: the predictor itself for every output pixel. Strips of rows bound the memory of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..bundle import Model
from ..grid import Span
from ..intensity import Intensity
from ..phases import WeightPredictor

_STRIP_SLOTS = 1 << 20  # of the product, 4 MB: a slice of 240×240 pixels up to ×4 goes through at once
_STRIP_PIXELS = 1 << 15  # of the table-free path, some 8 MB of the hidden units that bend
_LARGEST = float(np.finfo(np.float32).max)
_ALIKE = 3  # groups of pixels with similar offsets, an axis: the fastest of 2 … 5, with strips of 1 << 14 … 1 << 16


class Piece(NamedTuple):
    """Output pixels `place` of an output (h, w) that one run of a graph makes, and its feeds but for features and levels."""

    place: Any  # an index of the output: whole rows as a slice, or other pixels
    feeds: Mapping[str, Any]


def affine(model: Model, levels: Intensity) -> dict[str, np.float32]:
    """From the network's units to grey values, which keep within the range of `levels`."""
    width = levels.white - levels.black
    gain, offset = model.std * width, model.mean * width + levels.black
    low, high = max(levels.low, -_LARGEST), min(levels.high, _LARGEST)
    return {name: np.float32(x) for name, x in (("gain", gain), ("offset", offset), ("low", low), ("high", high))}


def by_table(rows: Span, cols: Span) -> Iterator[Piece]:
    """The pieces of the outputs rows × cols; `phases.slot_table` is the feed `slots` of them all."""
    ny, nx = rows.axis.slots, cols.axis.slots
    sources_x, class_x, block_x, rank_x = _blocks(cols, cols.start, cols.stop)
    (qx, blocks_x), qy = sources_x.shape, rows.axis.scale.denominator
    height = max(1, _STRIP_SLOTS // (sources_x.size * ny * nx) // qy) * qy  # input rows
    for start, stop in _strips(rows, height):
        sources_y, class_y, block_y, rank_y = _blocks(rows, start, stop)
        # The product is laid out (class_y, class_x, block_y, block_x, rank_y, rank_x).
        per_class = sources_y.shape[1] * blocks_x * ny * nx
        out_rows = class_y * qx * per_class + block_y * blocks_x * ny * nx + rank_y * nx
        out_cols = class_x * per_class + block_x * ny * nx + rank_x
        feeds = {
            "source_rows": sources_y[:, None, :, None] * np.int32(cols.size),
            "source_cols": sources_x[None, :, None, :],
            "out_rows": out_rows[:, None].astype(np.int32),
            "out_cols": out_cols[None].astype(np.int32),
        }
        yield Piece(slice(start - rows.start, stop - rows.start), feeds)


def table_free(rows: Span, cols: Span, scales: grid.Scales, predictor: WeightPredictor, skip: bool) -> Iterator[Piece]:
    """The same for any scale, whose every pixel has coefficients of its own.

    Pixels of similar offsets go together: of the predictor's hidden units they need those that bend between them.
    """
    source_rows, source_cols = rows.sources * np.int32(cols.size), cols.sources
    all_rows, all_cols = predictor.hidden_parts(rows.offset, cols.offset, scales)
    taps_rows, taps_cols = (
        grid.skip_taps(r, predictor.projection, span.offset).astype(np.float32) for r, span in zip(scales, (rows, cols))
    )
    for y, x in product(_alike(rows.offset), _alike(cols.offset)):
        hidden_rows, hidden_cols, w2, b2 = predictor.bending(all_rows[y], all_cols[x], rows.offset[y], cols.offset[x])
        alike = {"source_cols": source_cols[None, x], "hidden_cols": hidden_cols[None], "w2": w2, "b2": b2}
        if skip:
            alike["taps_cols"] = taps_cols[None, x, None, :]
        step = max(1, _STRIP_PIXELS // len(x))
        for start in range(0, len(y), step):
            strip = slice(start, start + step)
            feeds = alike | {"source_rows": source_rows[y[strip], None], "hidden_rows": hidden_rows[strip, None]}
            if skip:
                feeds["taps_rows"] = taps_rows[y[strip], None, :, None]
            yield Piece(np.ix_(y[strip], x), feeds)


def _blocks(span: Span, start: int, stop: int) -> tuple[NDArray[Any], ...]:
    """The blocks, of q input pixels each, that the outputs [start, stop) read.

    Where the features have their pixels, by class modulo q, (q, blocks); and each output's class, block and rank. Pixels beyond
    the features stand in the last blocks and are never kept: they read the nearest one.
    """
    source, q = span.axis.source[start:stop], span.axis.scale.denominator
    first, last = int(source[0]) // q, int(source[-1]) // q
    pixel = np.arange(q)[:, None] + q * np.arange(first, last + 1) - span.first
    sources = np.minimum(np.maximum(pixel, 0), span.size - 1).astype(np.int32)  # np.clip takes 0.1 ms
    return sources, source % q, source // q - first, span.axis.rank[start:stop]


def _alike(offset: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Which outputs have similar offsets, in groups as large as each other."""
    return np.array_split(np.argsort(offset), min(_ALIKE, len(offset)))


def _strips(rows: Span, height: int) -> Iterator[tuple[int, int]]:
    """Runs of outputs whose sources lie in the same `height` input rows."""
    source = rows.axis.source
    start = rows.start
    while start < rows.stop:
        edge = (int(source[start]) // height + 1) * height
        stop = min(int(np.searchsorted(source, edge)), rows.stop)
        yield start, stop
        start = stop
