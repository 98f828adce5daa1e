"""The mean of an engine's outputs over the eight flips and turns of an image: EDSR+ of Lim et al., *EDSR*, CVPRW 2017."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import NOTHING, Told
from ..grid import Span
from ..intensity import Intensity
from .engine import Engine

_TURNS = tuple(product((False, True), repeat=3))  # rows in reverse, columns in reverse, then rows and columns exchanged


class Ensemble(Engine):
    """An engine that asks another one eight times. It takes eight times as long, and its features eight times the memory.

    Its receptive radius is one pixel larger, because outputs on the border of two pixels read one pixel before and the other
    after a flip.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.device, self.in_flight = engine.device, engine.in_flight
        self.runs_on = f"{engine.runs_on}, mean of {len(_TURNS)}"

    def encode(self, image: NDArray[Any], levels: Intensity, told: Told = NOTHING) -> tuple[Any, ...]:
        """An image (H, W) in grey values → the features of each of its flips and turns."""
        sigma, rows, cols = told
        return tuple(
            self._engine.encode(_turned(image, turn), levels, (sigma, cols, rows) if turn[2] else told) for turn in _TURNS
        )

    def render(
        self,
        features: tuple[Any, ...],
        rows: Span,
        cols: Span,
        scales: grid.Scales,
        levels: Intensity,
        out: NDArray[np.float32],
    ) -> None:
        """Write the mean of the pixels rows × cols, each clipped to the range of `levels`, to `out`."""
        out[...], part = 0, np.empty(out.shape, np.float32)
        for turn, turned in zip(_TURNS, features):
            y, x = (span.mirrored() if reverse else span for span, reverse in zip((rows, cols), turn))
            (y, x), larger = ((x, y), scales[::-1]) if turn[2] else ((y, x), scales)
            self._engine.render(turned, y, x, larger, levels, _turned(part, turn))
            out += part / len(_TURNS)  # eight eighths of the range's end are the end: the sum keeps within it

    def responses(self, features: Any) -> NDArray[np.float32]:
        """Those of the image as it is, by which the uncertainty is told."""
        return self._engine.responses(features[0])

    def close(self) -> None:
        """Close the other engine."""
        self._engine.close()


def _turned(image: NDArray[Any], turn: tuple[bool, ...]) -> NDArray[Any]:
    """A view of an image (H, W)."""
    image = image[:: -1 if turn[0] else 1, :: -1 if turn[1] else 1]
    return image.T if turn[2] else image
