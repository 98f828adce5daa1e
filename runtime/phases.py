"""The Meta-Upscale stage's filters: the weight predictor in numpy, and a scale's phase table.

A scale p/q has p phases an axis, hence p_y·p_x filters, whatever the image's size. Each is a sum of the B filters of a
basis, with which the trunk has convolved the features already: what is predicted, once a scale, are B coefficients a phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import grid
from .acquired import Float


@dataclass(frozen=True)
class WeightPredictor:
    """The MLP 3 or 4 → hidden → B: (row offset, column offset, `grid.inverse_scales`) → one filter's coefficients.

    They are W₂·relu(W₁·position + b₁) + b₂. float32: w1 (hidden, 3), or (hidden, 4) where it is told the scale of each axis;
    b1 (hidden,), w2 (B, hidden), b2 (B,).
    """

    w1: Float
    b1: Float
    w2: Float
    b2: Float
    projection: grid.Projection

    def table(self, scales: grid.Scales) -> Float:
        """The phase table: the coefficients of every pair of phases, (p_y, p_x, B), float32."""
        row_offsets, col_offsets = (grid.phase_offsets(r, self.projection) for r in scales)
        rows, cols = self.hidden_parts(row_offsets, col_offsets, scales)
        hidden = np.maximum(rows[:, None] + cols[None], 0)
        shape = (len(rows), len(cols), len(self.b2))
        table: Float = hidden.reshape(-1, hidden.shape[-1]) @ self.w2.T + self.b2
        return table.reshape(shape)

    def hidden_parts(
        self, row_offsets: NDArray[np.float64], col_offsets: NDArray[np.float64], scales: grid.Scales
    ) -> tuple[Float, Float]:
        """The hidden layer before its relu is a sum of a row part (rows, hidden) and a column part (cols, hidden)."""
        row_part = np.outer(row_offsets, self.w1[:, 0])
        inverse = grid.inverse_scales(scales, per_axis=self.w1.shape[1] == 4)
        col_part = np.outer(col_offsets, self.w1[:, 1]) + self.w1[:, 2:] @ inverse + self.b1
        return row_part.astype(np.float32), col_part.astype(np.float32)

    def bending(
        self, rows: Float, cols: Float, row_offsets: NDArray[np.float64], col_offsets: NDArray[np.float64]
    ) -> tuple[Float, Float, Float, Float]:
        """The same MLP for some offsets alone, of fewer hidden units.

        From their `hidden_parts`, (rows, hidden) and (cols, hidden), to such parts, and w2 (hidden, B) and b2 (B,) for them.

        Between offsets that lie close together few units bend. Those that stay below zero are nothing there, and those that
        stay above it are one linear function: two units carry the offsets from the smallest ones, and b2 what it is at those.
        """
        low, high = rows.min(0) + cols.min(0), rows.max(0) + cols.max(0)
        bent, linear = (low < 0) & (high > 0), low >= 0
        y, x = row_offsets - row_offsets.min(), col_offsets - col_offsets.min()
        at_smallest = rows[y.argmin(), linear] + cols[x.argmin(), linear]
        w2 = self.w2.T
        parts = (
            np.column_stack([rows[:, bent], y, np.zeros_like(y)]),
            np.column_stack([cols[:, bent], np.zeros_like(x), x]),
            np.vstack([w2[bent], self.w1[linear, :2].T @ w2[linear]]),
            self.b2 + at_smallest @ w2[linear],
        )
        hidden_rows, hidden_cols, weights, bias = (part.astype(np.float32) for part in parts)
        return hidden_rows, hidden_cols, weights, bias


def slot_table(table: Float, scales: grid.Scales, projection: grid.Projection, skip: bool) -> Float:
    """A phase table laid out for the stage: (q_y·q_x, B', n_y·n_x) float32.

    Input pixels congruent modulo (q_y, q_x) share one matrix, a column for each of their up to n_y·n_x output pixels.
    With `skip`, B' = B + 9: the image's 3×3 neighbours ride behind the responses, and their coefficients interpolate linearly.
    """
    axes = [grid.project(r.denominator, r, projection) for r in scales]
    (phase_y, phase_x), (ny, nx) = (a.slot_phases() for a in axes), (a.slots for a in axes)
    slots = table[phase_y[:, None, :, None], phase_x[None, :, None, :]]  # (qy, qx, ny, nx, B)
    if skip:
        taps_y, taps_x = (
            grid.skip_taps(r, projection, grid.phase_offsets(r, projection))[phase]
            for r, phase in zip(scales, (phase_y, phase_x))
        )  # (q, n, 3)
        taps = np.einsum("akt,blu->abkltu", taps_y, taps_x).astype(np.float32)
        slots = np.concatenate([slots, taps.reshape(*slots.shape[:4], 9)], axis=-1)
    slots = slots.reshape(len(phase_y) * len(phase_x), ny * nx, -1)
    return np.ascontiguousarray(slots.transpose(0, 2, 1))
