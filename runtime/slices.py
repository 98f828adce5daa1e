"""One slice at a time: intensity → acquired matrix → tiles → encode → render. Knows nothing of files and volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import grid, uncertainty
from .acquired import STORED, Acquired, Float, Told
from .bundle import Model
from .engines import Engine
from .errors import BundleError, ClosedError, DeviceMemoryError, ImageError
from .intensity import UNIT, Intensity, to_dtype
from .uncertainty import Head

log = logging.getLogger(__name__)

TILE = 512  # input pixels an axis; the trunk's working memory is some 300 MB for such a tile, whatever the image
_SMALLEST = 64  # pixels an axis, below which a tile takes no less memory
Result = TypeVar("Result")
Window = tuple[int, int, int, int]  # row, column, height, width in output pixels


@dataclass(frozen=True)
class Extent:
    """One tile along one axis, in input pixels: it renders the outputs of [start, stop) and encodes [first, last)."""

    start: int
    stop: int
    first: int
    last: int

    def outputs(self, axis: grid.Axis, start: int, stop: int) -> grid.Span:
        """Those of the output pixels [start, stop) whose source lies in the tile."""
        low, high = (int(k) for k in np.searchsorted(axis.source, [self.start, self.stop]))
        low, high = max(low, start), min(high, stop)
        return grid.Span(axis, low, max(low, high), self.first, self.last - self.first)


@dataclass(frozen=True)
class Tile:
    """Where a tile lies in a canonical slice, and its features, wherever the engine keeps them."""

    rows: Extent
    cols: Extent
    features: Any


@dataclass(frozen=True)
class Encoded:
    """A slice (H, W), black 0 and white 1; what was measured of it; its canonical form's shape and spacing; its features."""

    unit: Float
    acquired: Acquired
    shape: tuple[int, ...]
    spacing: grid.Scales
    tiles: Iterable[Tile]


class Slices:
    """Upscales slices with one network on one engine. Safe to share between threads."""

    def __init__(self, model: Model, engine: Engine, tile: int, head: Head | None = None) -> None:
        self.model, self._head = model, head
        self._engine: Engine | None = engine
        self._tile = tile

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise ClosedError("this Upscaler is closed: load it again")
        return self._engine

    @property
    def head(self) -> Head:
        """What tells the uncertainty. Raises BundleError where the bundle has none."""
        if self._head is None:
            raise BundleError("this bundle does not tell the uncertainty: export it again with --uncertainty IMAGES")
        return self._head

    def close(self) -> None:
        """Release the engine. Harmless when repeated; any other use afterwards raises ClosedError."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def upscale(
        self,
        image: NDArray[Any],
        intensity: Intensity,
        scales: grid.Scales,
        dtype: DTypeLike,
        acquired: Acquired = STORED,
        grain: float = 0.0,
    ) -> NDArray[Any]:
        """A slice (H, W) of a volume of this intensity range, in `dtype`."""
        out = np.empty(output_shape(image.shape, scales), dtype)
        self.fill(out, image, intensity, scales, acquired, grain)
        return out

    def fill(
        self,
        out: NDArray[Any],
        image: NDArray[Any],
        intensity: Intensity,
        scales: grid.Scales,
        acquired: Acquired = STORED,
        grain: float = 0.0,
        half_width: Float | None = None,
    ) -> None:
        """Write what `upscale` returns into `out`, and the uncertainty into `half_width`, as large, white being 1.

        Each tile's memory is freed before the next.
        """
        as_it_is = acquired.is_stored and not grain  # a large picture is normalised tile by tile
        unit, levels = (image, intensity) if as_it_is else (intensity.normalise(image), UNIT)
        sr, shown = (np.empty(out.shape, np.float32), UNIT) if grain else (out, intensity)

        def render(encoded: Encoded) -> None:
            self._render(encoded, scales, (0, 0, *out.shape), sr, shown, half_width)

        self._encoded(unit, levels, acquired, render)
        if grain:
            more = np.float32(grain) * acquired.given_back(acquired.lacking(unit, sr, scales), image.shape, scales)
            out[...] = intensity.restore(sr + more, out.dtype)
            if half_width is not None:
                half_width += np.abs(more)

    def sources(self, shape: Sequence[int], scales: Sequence[Fraction]) -> list[NDArray[np.int64]]:
        """The input pixel that each output pixel lies in, for each axis of an array of `shape`."""
        return [grid.project(n, r, self.model.projection).source for n, r in zip(shape, scales)]

    def encode(self, unit: Float, acquired: Acquired) -> Encoded:
        """A slice (H, W), black 0 and white 1, whose features are kept for `render`."""
        return self._encoded(unit, UNIT, acquired, lambda encoded: replace(encoded, tiles=tuple(encoded.tiles)))

    def render(self, encoded: Encoded, scales: grid.Scales, window: Window, levels: Intensity = UNIT) -> Float:
        """A window of an encoded slice, in grey values of `levels`; without them, black 0 and white 1."""
        out = np.empty(window[2:], np.float32)
        self._render(encoded, scales, window, out, levels)
        return out

    def uncertainty(self, encoded: Encoded, scales: grid.Scales, window: Window) -> Float:
        """Half the width of the interval around each pixel of a window that holds the truth; white is 1."""
        out = np.empty(window[2:], np.float32)
        self._render(encoded, scales, window, half_width=out)
        return out

    def _encoded(self, image: NDArray[Any], levels: Intensity, acquired: Acquired, use: Callable[[Encoded], Result]) -> Result:
        """What `use` makes of a slice in grey values of `levels`, which is the `unit` of what it gets.

        Each tile is encoded when it is asked for. Where there is too little memory for one, again with tiles half as large.
        """
        canonical, spacing = acquired.canonical(image)
        while True:
            tile = min(self._tile, max(canonical.shape))
            try:
                parts = self._tiles(canonical, levels, acquired.told, tile)
                return use(Encoded(image, acquired, canonical.shape, spacing, parts))
            except DeviceMemoryError as error:
                if tile < max(_SMALLEST, 2 * self.model.radius):  # there is more halo than tile
                    raise
                said = error.problem  # a log that keeps the error itself would keep its tile's memory too
                log.warning("%s: going on with tiles of %d pixels in place of %d", said, tile // 2, tile)
                self._tile = min(self._tile, tile // 2)

    def _tiles(self, image: NDArray[Any], levels: Intensity, told: Told, tile: int) -> Iterator[Tile]:
        for rows in extents(image.shape[0], self.model.radius, tile):
            for cols in extents(image.shape[1], self.model.radius, tile):
                part = image[rows.first : rows.last, cols.first : cols.last]
                yield Tile(rows, cols, self.engine.encode(part, levels, told))

    def _render(
        self,
        encoded: Encoded,
        scales: grid.Scales,
        window: Window,
        out: NDArray[Any] | None = None,
        levels: Intensity = UNIT,
        half_width: Float | None = None,
    ) -> None:
        """Write the window to `out`, in grey values of `levels`, by the engine but for what float32 does not carry.

        And its uncertainty to `half_width`.
        """
        top, left, height, width = window
        larger = scales[0] * encoded.spacing[0], scales[1] * encoded.spacing[1]
        rows, cols = (grid.project(n, r, self.model.projection) for n, r in zip(encoded.shape, larger))
        for tile in encoded.tiles:
            y, x = tile.rows.outputs(rows, top, top + height), tile.cols.outputs(cols, left, left + width)
            if not len(y) or not len(x):
                continue
            place = slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)
            if out is not None:
                exact = not levels.fits_float32(out.dtype)
                direct = out.dtype == np.float32 and not exact
                pixels = out[place] if direct else np.empty((len(y), len(x)), np.float32)
                self.engine.render(tile.features, y, x, larger, UNIT if exact else levels, pixels)
                if not direct:
                    out[place] = levels.restore(pixels, out.dtype) if exact else to_dtype(pixels, out.dtype)
            if half_width is not None:
                responses = self.engine.responses(tile.features)
                half_width[place] = uncertainty.half_width(self.head, responses, encoded.acquired.told, y, x, larger)


def extents(size: int, halo: int, tile: int) -> Iterator[Extent]:
    """Tiles of equal length, at most `tile`, each with `halo` pixels more on both sides where the image goes on."""
    count = -(-size // tile)
    for k in range(count):
        start, stop = k * size // count, (k + 1) * size // count
        yield Extent(start, stop, max(0, start - halo), min(size, stop + halo))


def output_shape(shape_in: tuple[int, ...], scales: grid.Scales) -> tuple[int, int]:
    """(rows, columns) that a slice of `shape_in` becomes."""
    return grid.output_size(shape_in[0], scales[0]), grid.output_size(shape_in[1], scales[1])


def check_slice_shape(shape: Sequence[int], where: str = "") -> None:
    """Raise ImageError for a slice without two pixels an axis: nothing lies between them to be resolved."""
    if min(shape) < 2:
        raise ImageError(f"a slice of {shape[0]}×{shape[1]} pixels{where} holds no structure to upscale: give at least 2×2")
