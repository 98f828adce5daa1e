"""Cutting an image into tiles with an exact halo, and the part of an axis that one tile renders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grid import Axis

TILE = 512  # input pixels an axis; the trunk's working memory is some 300 MB for such a tile, whatever the image


@dataclass(frozen=True)
class Extent:
    """One tile along one axis, in input pixels: it renders the outputs of [start, stop) and encodes [first, last)."""

    start: int
    stop: int
    first: int
    last: int

    def outputs(self, axis: Axis, start: int, stop: int) -> Span:
        """Those of the output pixels [start, stop) whose source lies in the tile."""
        low, high = (int(k) for k in np.searchsorted(axis.source, [self.start, self.stop]))
        low, high = max(low, start), min(high, stop)
        return Span(axis, low, max(low, high), self.first, self.last - self.first)


@dataclass(frozen=True)
class Span:
    """Output pixels [start, stop) of an axis, read from features that begin at input pixel `first` and hold `size` pixels."""

    axis: Axis
    start: int
    stop: int
    first: int
    size: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def offset(self) -> NDArray[np.float64]:
        """Sub-pixel offset of each output."""
        return self.axis.offset[self.start : self.stop]


def extents(size: int, halo: int, tile: int) -> Iterator[Extent]:
    """Tiles of equal length, at most `tile`, each with `halo` pixels more on both sides where the image goes on."""
    count = -(-size // tile)
    for k in range(count):
        start, stop = k * size // count, (k + 1) * size // count
        yield Extent(start, stop, max(0, start - halo), min(size, stop + halo))
