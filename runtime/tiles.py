"""Cutting an image into tiles with an exact halo, and the part of an axis that one tile renders."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grid import Axis, project, skip_taps

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
    """Output pixels [start, stop) of an axis, read from responses that begin at input pixel `first` and hold `size` pixels."""

    axis: Axis
    start: int
    stop: int
    first: int
    size: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def key(self) -> Hashable:
        """All that follows from where the span lies."""
        return self.axis.n_in, self.axis.scale, self.axis.projection, self.start, self.stop, self.first, self.size

    @property
    def sources(self) -> NDArray[np.int32]:
        """Where the responses have the input pixel that each output reads."""
        return (self.axis.source[self.start : self.stop] - self.first).astype(np.int32)

    @property
    def offset(self) -> NDArray[np.float64]:
        """Sub-pixel offset of each output."""
        return self.axis.offset[self.start : self.stop]

    def interpolation(self) -> NDArray[np.float32]:
        """The matrix (outputs, `size`) that interpolates linearly between pixel centres, edges repeated."""
        taps = skip_taps(self.axis.scale, self.axis.projection, self.offset)
        matrix = np.zeros((len(self), self.size), np.float32)
        columns = np.clip(self.sources[:, None] + (-1, 0, 1), 0, self.size - 1)
        np.add.at(matrix, (np.arange(len(self))[:, None], columns), taps)
        return matrix

    def mirrored(self) -> Span:
        """The same outputs in reverse, read from the responses of the mirrored image. An output on the border of two pixels
        reads the other one there."""
        axis = project(self.axis.n_in, self.axis.scale, self.axis.projection, mirrored=True)
        return Span(axis, axis.n_out - self.stop, axis.n_out - self.start, -self.first - self.size, self.size)


def content(seen: NDArray[np.bool_], radius: int) -> tuple[slice, slice]:
    """Of an axis where `seen` marks content: the pixels within `radius` of it, and those that decide what is there."""
    where = np.flatnonzero(seen)
    if not len(where):
        return slice(0, 0), slice(0, 0)
    first, last = int(where[0]), int(where[-1]) + 1
    inner, outer = (slice(max(0, first - reach), min(len(seen), last + reach)) for reach in (radius, 2 * radius))
    return inner, outer


def by_distance_to_the_ends(size: int, radius: int) -> NDArray[np.int64]:
    """For each pixel of an axis, the one of an axis of 2·radius + 1 that is as far from each end, or farther than radius."""
    pixel = np.arange(size)
    from_the_left, from_the_right = np.minimum(pixel, radius), np.minimum(size - 1 - pixel, radius)
    return np.where(from_the_right < radius, 2 * radius - from_the_right, from_the_left)


def extents(size: int, halo: int, tile: int) -> Iterator[Extent]:
    """Tiles of equal length, at most `tile`, each with `halo` pixels more on both sides where the image goes on."""
    count = -(-size // tile)
    for k in range(count):
        start, stop = k * size // count, (k + 1) * size // count
        yield Extent(start, stop, max(0, start - halo), min(size, stop + halo))
