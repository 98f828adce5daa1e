"""One slice at a time: intensity → acquired matrix → tiles → encode → render. Knows nothing of files and volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import grid, tiles, uncertainty
from .acquired import NOTHING, STORED, Acquired, Told
from .bundle import Model
from .engines import Engine
from .errors import BundleError, ClosedError, DeviceMemoryError, ImageError
from .intensity import UNIT, Intensity, to_dtype
from .uncertainty import Head

log = logging.getLogger(__name__)

_SMALLEST = 64  # pixels an axis, below which a tile takes no less memory
Float = NDArray[np.float32]
Result = TypeVar("Result")
Window = tuple[int, int, int, int]  # row, column, height, width in output pixels


@dataclass(frozen=True)
class Tile:
    """Where a tile lies in a canonical slice, and its features, wherever the engine keeps them."""

    rows: tiles.Extent
    cols: tiles.Extent
    features: Any


@dataclass(frozen=True)
class Encoded:
    """A slice (H, W), black 0 and white 1; what was measured of it; its canonical form's shape and spacing; its features."""

    unit: Float
    acquired: Acquired
    shape: tuple[int, ...]
    spacing: grid.Scales
    tiles: tuple[Tile, ...]


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
        whole = 0, 0, *out.shape
        if acquired.is_stored and not grain:  # a large picture is normalised tile by tile
            tiles_of = partial(self._encode, image, acquired.told, intensity)
            shape, larger = image.shape, scales
        else:
            unit = intensity.normalise(image)
            canonical, spacing = acquired.canonical(unit)
            tiles_of = partial(self._encode, canonical, acquired.told)
            shape, larger = canonical.shape, _times(scales, spacing)
        axes, told = self._project(shape, larger), acquired.told
        if grain:
            sr = np.empty(out.shape, np.float32)
            self._within_memory(lambda: self._render(tiles_of(), axes, larger, whole, UNIT, sr, half_width, told), shape)
            more = np.float32(grain) * acquired.given_back(acquired.lacking(unit, sr, scales), image.shape, scales)
            out[...] = intensity.restore(sr + more, out.dtype)
            if half_width is not None:
                half_width += np.abs(more)
        else:
            self._within_memory(lambda: self._render(tiles_of(), axes, larger, whole, intensity, out, half_width, told), shape)

    def sources(self, shape: Sequence[int], scales: Sequence[Fraction]) -> list[NDArray[np.int64]]:
        """The input pixel that each output pixel lies in, for each axis of an array of `shape`."""
        return [axis.source for axis in self._project(shape, scales)]

    def encode(self, unit: Float, acquired: Acquired) -> Encoded:
        """A slice (H, W), black 0 and white 1, whose features are kept for `render`."""
        canonical, spacing = acquired.canonical(unit)
        encoded = self._within_memory(lambda: tuple(self._encode(canonical, acquired.told)), canonical.shape)
        return Encoded(unit, acquired, canonical.shape, spacing, encoded)

    def render(self, encoded: Encoded, scales: grid.Scales, window: Window, levels: Intensity = UNIT) -> Float:
        """A window of an encoded slice, in grey values of `levels`; without them, black 0 and white 1."""
        larger, out = _times(scales, encoded.spacing), np.empty(window[2:], np.float32)
        self._render(encoded.tiles, self._project(encoded.shape, larger), larger, window, levels, out)
        return out

    def uncertainty(self, encoded: Encoded, scales: grid.Scales, window: Window) -> Float:
        """Half the width of the interval around each pixel of a window that holds the truth; white is 1."""
        larger, out = _times(scales, encoded.spacing), np.empty(window[2:], np.float32)
        axes, told = self._project(encoded.shape, larger), encoded.acquired.told
        self._render(encoded.tiles, axes, larger, window, half_width=out, told=told)
        return out

    def _encode(self, image: NDArray[Any], told: Told, levels: Intensity = UNIT) -> Iterator[Tile]:
        """The tiles of a canonical slice in grey values of `levels`."""
        for rows in tiles.extents(image.shape[0], self.model.radius, self._tile):
            for cols in tiles.extents(image.shape[1], self.model.radius, self._tile):
                part = image[rows.first : rows.last, cols.first : cols.last]
                yield Tile(rows, cols, self.engine.encode(part, levels, told))

    def _within_memory(self, work: Callable[[], Result], shape: Sequence[int]) -> Result:
        """Do something with a slice's tiles; where there is too little memory for them, again with tiles half as large."""
        while True:
            tile = min(self._tile, max(shape))
            try:
                return work()
            except DeviceMemoryError as error:
                if tile < max(_SMALLEST, 2 * self.model.radius):  # there is more halo than tile
                    raise
                said = error.problem  # a log that keeps the error itself would keep its tile's memory too
                log.warning("%s: going on with tiles of %d pixels in place of %d", said, tile // 2, tile)
                self._tile = min(self._tile, tile // 2)

    def _project(self, shape: Sequence[int], scales: Sequence[Fraction]) -> list[grid.Axis]:
        return [grid.project(n, r, self.model.projection) for n, r in zip(shape, scales)]

    def _render(
        self,
        encoded: Iterable[Tile],
        axes: Sequence[grid.Axis],
        scales: grid.Scales,
        window: Window,
        levels: Intensity = UNIT,
        out: NDArray[Any] | None = None,
        half_width: Float | None = None,
        told: Told = NOTHING,
    ) -> None:
        """Write the window to `out`, in grey values of `levels`: by the engine, but for what float32 does not carry.

        And its uncertainty to `half_width`, of an image of which this is told.
        """
        top, left, height, width = window
        for tile in encoded:
            y = tile.rows.outputs(axes[0], top, top + height)
            x = tile.cols.outputs(axes[1], left, left + width)
            if not len(y) or not len(x):
                continue
            place = slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)
            if out is not None:
                exact = not levels.fits_float32(out.dtype)
                direct = out.dtype == np.float32 and not exact
                pixels = out[place] if direct else np.empty((len(y), len(x)), np.float32)
                self.engine.render(tile.features, y, x, scales, UNIT if exact else levels, pixels)
                if not direct:
                    out[place] = levels.restore(pixels, out.dtype) if exact else to_dtype(pixels, out.dtype)
            if half_width is not None:
                responses = self.engine.responses(tile.features)
                half_width[place] = uncertainty.half_width(self.head, responses, told, y, x, scales)


def _times(scales: grid.Scales, spacing: grid.Scales) -> grid.Scales:
    return scales[0] * spacing[0], scales[1] * spacing[1]


def output_shape(shape_in: tuple[int, ...], scales: grid.Scales) -> tuple[int, int]:
    """(rows, columns) that a slice of `shape_in` becomes."""
    return grid.output_size(shape_in[0], scales[0]), grid.output_size(shape_in[1], scales[1])


def check_slice_shape(shape: Sequence[int], where: str = "") -> None:
    """Raise ImageError for a slice without two pixels an axis: nothing lies between them to be resolved."""
    if min(shape) < 2:
        raise ImageError(f"a slice of {shape[0]}×{shape[1]} pixels{where} holds no structure to upscale: give at least 2×2")
