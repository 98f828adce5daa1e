"""How far an output may lie from the truth: for each pixel half the width of an interval that holds it with `COVERAGE`.

A small network, the head, sees the responses of one input pixel. `export --uncertainty` trains it for the finished trunk, and
scales it so that intervals hold the truth as often as they say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import grid
from .tiles import Span

Float = NDArray[np.float32]

COVERAGE = 0.9
OUTPUTS = 3  # of the head: a, b_y and b_x of log(half width) = a + b_y/r_y + b_x/r_x, in standard deviations of the model


@dataclass(frozen=True)
class Head:
    """The MLP B' → … → `OUTPUTS` with a relu between layers, each of weights (out, in) and biases (out,), float32."""

    layers: tuple[tuple[Float, Float], ...]

    def __call__(self, responses: Float) -> Float:
        """Responses (P, B') of input pixels → (P, `OUTPUTS`)."""
        *hidden, (weights, biases) = self.layers
        for w, b in hidden:
            responses = np.maximum(responses @ w.T + b, 0)
        return np.asarray(responses @ weights.T + biases, np.float32)


def half_width(head: Head, responses: Float, rows: Span, cols: Span, scales: grid.Scales) -> Float:
    """Half the width at the output pixels rows × cols, interpolated linearly, in standard deviations of the model.

    `responses` (H·W, B') are those of a tile of `rows.size` by `cols.size` pixels.
    """
    a, *slopes = head(responses).T
    at_pixels = np.exp(a + sum(b / np.float32(r) for b, r in zip(slopes, scales)))
    return _interpolated(_interpolated(at_pixels.reshape(rows.size, cols.size), rows, 0), cols, 1)


def _interpolated(image: Float, span: Span, axis: int) -> Float:
    """An image at a span's output pixels along an axis, between pixel centres, edges repeated."""
    taps = grid.skip_taps(span.axis.scale, span.axis.projection, span.offset).astype(np.float32)
    parts = (
        image.take(np.clip(span.sources + step, 0, span.size - 1), axis) * np.expand_dims(weights, 1 - axis)
        for step, weights in zip((-1, 0, 1), taps.T)
    )
    return np.asarray(sum(parts), np.float32)
