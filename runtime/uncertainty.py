"""How far an output may lie from the truth: for each pixel half the width of an interval that holds it with `COVERAGE`.

A small network, the head, sees the responses of one input pixel and what is told of the image. `export --uncertainty` trains
it for the finished trunk, and scales it so that intervals hold the truth as often as they say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import grid
from .acquired import LEAST_SIGMA, SOFT, Float, Told
from .grid import Span

COVERAGE = 0.9
INPUTS, OUTPUTS = 3, 3  # of the head: `plain`; a, b_y and b_x of log(half width) = a + b_y/r_y + b_x/r_x, where white is 1


@dataclass(frozen=True)
class Head:
    """The MLP B' + `INPUTS` → … → `OUTPUTS`, a relu between layers, each of weights (out, in) and biases (out,), float32."""

    layers: tuple[tuple[Float, Float], ...]

    def __call__(self, responses: Float, told: Told) -> Float:
        """Responses (P, B') of input pixels, and what is told of their image → (P, `OUTPUTS`)."""
        (weights, biases), *rest = self.layers
        inputs = weights.shape[1] - INPUTS
        x = responses @ weights[:, :inputs].T + (weights[:, inputs:] @ plain(told) + biases)
        for weights, biases in rest:
            x = np.maximum(x, 0) @ weights.T + biases
        return np.asarray(x, np.float32)


def plain(told: Told) -> Float:
    """What is told as numbers of about 1: 0 is no noise and 2 is 10 % of white, 0 is a hard edge and 1 Hann's window."""
    sigma, *soft = told
    return np.array([math.log10(max(sigma, LEAST_SIGMA) / LEAST_SIGMA), *(SOFT * part for part in soft)], np.float32)


def half_width(head: Head, responses: Float, told: Told, rows: Span, cols: Span, scales: grid.Scales) -> Float:
    """Half the width at the output pixels rows × cols, interpolated linearly; white is 1, and no width is more.

    `responses` (H·W, B') are those of a tile of `rows.size` by `cols.size` pixels.
    """
    a, *slopes = head(responses, told).T
    log = a + sum(b / np.float32(r) for b, r in zip(slopes, scales))
    at_pixels = np.exp(np.minimum(log, 0)).reshape(rows.size, cols.size)
    return np.asarray(rows.interpolation() @ at_pixels @ cols.interpolation().T, np.float32)
