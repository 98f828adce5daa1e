"""How well an output, brought back to what was measured, equals the input. Pure arithmetic on arrays, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .acquired import Float

LARGEST = 1024  # pixels along an axis of a slice: of larger ones the matrices would take seconds, and no scan has more


@dataclass
class Consistency:
    """Summed up over slices: canonical pixels of the input less those of the output, in the units of the input's values.

    `rmse` and `worst`, its root mean square and its largest size, are NaN where nothing was compared; `white` is white less
    black in the same units, the largest where volumes differ.
    """

    count: int = 0
    squares: float = 0.0
    worst: float = math.nan
    white: float = 0.0

    @property
    def rmse(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def add(self, difference: Float, white: float) -> None:
        """Count a difference (h, w), of which 1 is `white` units."""
        self.count += difference.size
        self.squares += float(np.vdot(difference, difference)) * white**2
        self.worst = float(np.fmax(self.worst, np.abs(difference).max() * white))
        self.white = max(self.white, white)

    def plain(self) -> dict[str, Any] | None:
        """For a sidecar; None where nothing was compared."""
        return {"rmse": float(f"{self.rmse:.3g}"), "worst": float(f"{self.worst:.3g}")} if self.count else None

    def __str__(self) -> str:
        """In a line, for a person; nothing where nothing was compared."""
        if not self.count:
            return ""
        root, worst = (f"{of:.3g} ({100 * of / self.white:.2g} % of white)" for of in (self.rmse, self.worst))
        return f"consistency with what was measured: RMSE {root}, worst {worst}"
