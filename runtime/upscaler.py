"""The embedding interface: load once, upscale as often as you like."""

from __future__ import annotations

import logging
import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import engines, grid, measure, tiles
from .acquired import STORED, Acquired, Told
from .bounded import BoundedCache
from .bundle import Bundle
from .engines import Engine, Progress
from .errors import ClosedError, DeviceError, DeviceMemoryError, ImageError, OutputFileError, ScaleError
from .files import scratch_array
from .intensity import Intensity, real_array
from .measure import Matrix
from .sizes import Size

log = logging.getLogger(__name__)

Float = NDArray[np.float32]
Result = TypeVar("Result")
ScaleOrPair = grid.ScaleLike | tuple[grid.ScaleLike, grid.ScaleLike]
ScaleOrAxes = ScaleOrPair | tuple[grid.ScaleLike, grid.ScaleLike, grid.ScaleLike]
Window = tuple[int, int, int, int]  # row, column, height, width in output pixels

SHIPPED = "brain.bundle"
GRAIN = 0.0  # by default: what is told to be noise is left out
_LACKS = 8 << 20  # bytes that a view keeps of what its outputs lack of the input: some scales of a slice of 512×512


@dataclass(frozen=True)
class _Tile:
    """Where a tile lies in a slice, and its responses, wherever the engine keeps them."""

    rows: tiles.Extent
    cols: tiles.Extent
    responses: Any


class Upscaler:
    """Upscales brain-MR slices and volumes to any size with one loaded bundle. Safe to share between threads.

    Use `Upscaler.load`; the constructor takes the parts.
    """

    def __init__(self, bundle: Bundle, engine: Engine, tile: int) -> None:
        self.bundle = bundle
        self._engine: Engine | None = engine
        self._tile = tile

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        tile: int = tiles.TILE,
        progress: Progress | None = None,
    ) -> Upscaler:
        """Load a bundle, by default the shipped one, for a device: cpu, cuda, tensorrt or auto.

        `auto` takes a GPU that works, or else the CPU, with one warning where there is a GPU; no other name falls back.
        `threads` is by default the number of processors this process may use; `cache_dir` keeps TensorRT's engines (by
        default: in the user's cache); an image larger than `tile` pixels an axis is cut into tiles, smaller ones of which
        need less memory. While TensorRT builds an engine, `progress(phase, done, total)` is called.
        Raises BundleError for a bundle that is missing or damaged, DeviceError for a device that cannot run here.
        """
        if bundle is None:
            with resources.as_file(resources.files(__package__).joinpath(SHIPPED)) as path:
                loaded = Bundle.read(path)
        else:
            loaded = Bundle.read(Path(bundle))
        return cls.of(loaded, device=device, threads=threads, cache_dir=cache_dir, tile=tile, progress=progress)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        *,
        device: str = "auto",
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        tile: int = tiles.TILE,
        progress: Progress | None = None,
    ) -> Upscaler:
        """`load` for a bundle that is in memory already."""
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise DeviceError(f"threads is {threads!r}: give 1 or more, or nothing for all processors")
        if not isinstance(tile, int) or tile < 1:
            raise DeviceError(f"tile is {tile!r}: give 1 pixel or more")
        folder = Path(cache_dir) if cache_dir else None
        return cls(bundle, engines.load(bundle, device, threads, tile, folder, progress), tile)

    @property
    def device(self) -> str:
        """What really does the arithmetic: cpu, cuda or tensorrt."""
        return self._running.device

    @property
    def runs_on(self) -> str:
        """The same for a person: library, version, precision, processor."""
        return self._running.runs_on

    def prepare(self, shape: tuple[int, int], scale: ScaleOrPair) -> None:
        """Do ahead of time what the first slice of `shape` pixels would wait for: load kernels, choose algorithms, predict
        the scale's table."""
        self(np.indices(shape).sum(0) % 2, scale, acquired="stored")

    def __call__(
        self,
        image: ArrayLike,
        scale: ScaleOrPair | None = None,
        *,
        shape: tuple[int, int] | None = None,
        acquired: Matrix = "auto",
        noise: float | None = None,
        grain: float = GRAIN,
    ) -> Float:
        """Upscale a slice (H, W), or the slices of one volume (N, H, W) with one intensity range, to float32 in its units.

        `scale` is one number for both axes or (rows, columns), and gives H·p // q rows for p/q; `shape` is the exact
        output size instead. The output keeps within the input's own range.

        `acquired` is the matrix that the scanner measured, (rows, columns), where the stored one is larger by zero filling;
        "auto" estimates it from the spectrum, "stored" takes the whole matrix as measured. `noise` is σ as a part of white
        (default: estimated). `grain` is how much of what was measured is added back where the network took it for noise:
        0 none, 1 all, so that the output brought down again equals the input. Raises ScaleError and ImageError.
        """
        array = _checked(image, (2, 3))
        scales = resolve_scales(array.shape[-2:], scale, shape)
        out = allocate((*array.shape[:-2], *output_shape(array.shape[-2:], scales)), np.float32)
        intensity = Intensity.of(array)
        measured = measure.of(array, (-2, -1), intensity, acquired, noise).along(-2, -1)
        grain = measure.checked_grain(grain)
        for index in np.ndindex(array.shape[:-2]):
            out[index] = self.upscale_slice(array[index], intensity, scales, np.float32, measured, grain)
        return out

    def measure(self, image: ArrayLike, *, acquired: Matrix = "auto", noise: float | None = None) -> Acquired:
        """What the scanner measured of a slice (H, W), or of slices of one volume (N, H, W); arguments as of a call.

        Where the slices of a volume come one by one, give what some of them tell as `acquired` to each.
        """
        array = _checked(image, (2, 3))
        return measure.of(array, (-2, -1), Intensity.of(array), acquired, noise).along(-2, -1)

    def encode(self, image: ArrayLike, *, acquired: Matrix = "auto", noise: float | None = None) -> View:
        """Run the trunk once on a slice (H, W); the view then renders any scale and window of it, each at little cost."""
        array = _checked(image, (2,))
        intensity = Intensity.of(array)
        measured = measure.of(array, (-2, -1), intensity, acquired, noise).along(-2, -1)
        unit = intensity.normalise(array)
        canonical, spacing = measured.canonical(unit)
        encoded = self._within_memory(lambda: tuple(self._encode(canonical, measured.told)))
        return View(self, unit, intensity, measured, canonical.shape, spacing, encoded)

    def volume(
        self,
        image: Any,
        scale: ScaleOrAxes | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        spacing: ScaleOrAxes | None = None,
        isotropic: bool = False,
        axis: int | None = None,
        dtype: DTypeLike | None = None,
        acquired: Matrix = "auto",
        noise: float | None = None,
        grain: float = GRAIN,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Upscale a nibabel NIfTI image, in slices that lie across `axis` (the thickest by default).

        `scale`, `shape` (pixels) or `spacing` (mm) are of the axes within a slice where one number or two are given, and of
        the array axes 0, 1 and 2 where there are three; `isotropic` makes every axis as fine as the finest.
        `acquired`, `noise` and `grain` are those of a slice; two numbers of `acquired` are of the axes within a slice too.
        Returns an image of the same class whose affine keeps every point in its place, with the same dtype (or `dtype`)
        and the rest of the header. `progress(done, total)` is called after each slice. Raises ScaleError and ImageError.
        """
        from . import volume  # nibabel is imported by those who need it

        size = Size(scale, shape, spacing, isotropic)
        options: dict[str, Any] = {"axis": axis, "dtype": dtype, "acquired": acquired, "noise": noise, "grain": grain}
        return volume.reopened(volume.upscale(self, image, size, **options, progress=progress)[0])

    def upscale_slice(
        self,
        image: NDArray[Any],
        intensity: Intensity,
        scales: grid.Scales,
        dtype: DTypeLike,
        acquired: Acquired = STORED,
        grain: float = 0.0,
    ) -> NDArray[Any]:
        """One checked slice (H, W) of a volume with this intensity range, in `dtype`; its tiles are dropped one by one."""
        unit = intensity.normalise(image)
        canonical, spacing = acquired.canonical(unit)
        window = (0, 0, *output_shape(image.shape, scales))
        larger = (scales[0] * spacing[0], scales[1] * spacing[1])
        sr = self._within_memory(lambda: self._render(self._encode(canonical, acquired.told), canonical.shape, larger, window))
        if grain:
            sr += np.float32(grain) * acquired.given_back(acquired.lacking(unit, sr, scales), image.shape, scales)
        return intensity.restore(sr, dtype)

    def close(self) -> None:
        """Release the engine and its memory. Harmless when repeated; any other use afterwards raises ClosedError."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def _running(self) -> Engine:
        if self._engine is None:
            raise ClosedError("this Upscaler is closed: load it again")
        return self._engine

    def _encode(self, canonical: Float, told: Told) -> Iterator[_Tile]:
        model = self.bundle.model
        standard = (canonical - np.float32(model.mean)) / np.float32(model.std)
        for rows in tiles.extents(canonical.shape[0], model.radius, self._tile):
            for cols in tiles.extents(canonical.shape[1], model.radius, self._tile):
                yield _Tile(rows, cols, self._running.encode(standard[rows.first : rows.last, cols.first : cols.last], told))

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        """Do something with tiles; where a GPU has too little memory for them, again with tiles half as large."""
        while True:
            tile = self._tile
            try:
                return work()
            except DeviceMemoryError as error:
                if tile < 2 * self.bundle.model.radius:  # there is more halo than tile
                    raise
                said = str(error)  # a log that keeps the error itself would keep its tile's memory too
                log.warning("%s: going on with tiles of %d pixels in place of %d", said, tile // 2, tile)
                self._tile = min(self._tile, tile // 2)

    def _render(self, encoded: Iterable[_Tile], shape: tuple[int, ...], scales: grid.Scales, window: Window) -> Float:
        """The window in units of black 0 and white 1."""
        model, engine = self.bundle.model, self._running
        rows, cols = (grid.project(n, r, model.projection) for n, r in zip(shape, scales))
        top, left, height, width = window
        out = np.empty((height, width), np.float32)
        for tile in encoded:
            y = tile.rows.outputs(rows, top, top + height)
            x = tile.cols.outputs(cols, left, left + width)
            if not len(y) or not len(x):
                continue
            pixels = engine.render(tile.responses, y, x, scales)
            out[y.start - top : y.stop - top, x.start - left : x.stop - left] = pixels
        out *= np.float32(model.std)
        out += np.float32(model.mean)
        return out


class View:
    """An encoded slice: responses of 164 bytes for each acquired pixel, and the `Upscaler` that made it.

    `acquired` says what was measured of it.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        unit: Float,
        intensity: Intensity,
        acquired: Acquired,
        canonical_shape: tuple[int, ...],
        spacing: grid.Scales,
        encoded: tuple[_Tile, ...],
    ) -> None:
        self.shape, self.acquired = unit.shape, acquired
        self._upscaler, self._unit, self._intensity = upscaler, unit, intensity
        self._canonical_shape, self._spacing, self._encoded = canonical_shape, spacing, encoded
        self._lacks: BoundedCache[Float] = BoundedCache(_LACKS)

    def render(
        self,
        scale: ScaleOrPair | None = None,
        *,
        shape: tuple[int, int] | None = None,
        window: Window | None = None,
        grain: float = GRAIN,
    ) -> Float:
        """The slice at a scale or of an output shape, or only the `window` (row, column, height, width) of it, float32.

        The window counts in output pixels and equals that part of the whole. With `grain`, as in `Upscaler.__call__`, the first
        window at a scale takes as long as the whole. Raises ScaleError where the window leaves the output.
        """
        scales = resolve_scales(self.shape, scale, shape)
        whole = output_shape(self.shape, scales)
        top, left, height, width = (0, 0, *whole) if window is None else _checked_window(window, whole)
        grain = measure.checked_grain(grain)
        sr = self._render(scales, (top, left, height, width))
        if grain:
            lacks = self._lacks.get(
                scales, lambda: self.acquired.lacking(self._unit, self._render(scales, (0, 0, *whole)), scales)
            )
            part = slice(top, top + height), slice(left, left + width)
            sr += np.float32(grain) * self.acquired.given_back(lacks, self.shape, scales, *part)
        return self._intensity.restore(sr, np.float32)

    def _render(self, scales: grid.Scales, window: Window) -> Float:
        larger = (scales[0] * self._spacing[0], scales[1] * self._spacing[1])
        return self._upscaler._render(self._encoded, self._canonical_shape, larger, window)


def resolve_scales(shape_in: tuple[int, ...], scale: ScaleOrPair | None, shape: tuple[int, int] | None) -> grid.Scales:
    """The exact (row, column) scales that a caller asked for by exactly one of `scale` and `shape`."""
    if (scale is None) == (shape is None):
        raise ScaleError(f"got scale={scale!r} and shape={shape!r}: give exactly one of them")
    if shape is not None:
        rows, cols = grid.scales_for_shape(shape_in, shape)
        return rows, cols
    assert scale is not None
    return grid.parse_scales(scale)


def output_shape(shape_in: tuple[int, ...], scales: grid.Scales) -> tuple[int, int]:
    """(rows, columns) that a slice of `shape_in` becomes."""
    return grid.output_size(shape_in[0], scales[0]), grid.output_size(shape_in[1], scales[1])


def allocate(shape: tuple[int, ...], dtype: DTypeLike, order: Literal["C", "F"] = "C") -> NDArray[Any]:
    """An array for the output, in a file without a name where it would take more than half of the machine's memory.

    Raises ScaleError, rather than bring the machine down, where it fits neither.
    """
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if needed <= machine_memory() // 2:
        return np.empty(shape, dtype, order)
    try:
        return scratch_array(shape, dtype, order)
    except OutputFileError as error:
        size = "×".join(map(str, shape))
        raise ScaleError(
            f"the output of {size} values needs {needed / 1e9:,.0f} GB, more than half of this machine's memory, and {error}; "
            "or give a smaller scale or shape"
        ) from None


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return sys.maxsize


def _checked(image: ArrayLike, ndims: tuple[int, ...]) -> NDArray[Any]:
    array = real_array(image)
    if array.ndim not in ndims:
        forms = " or ".join({2: "(H, W)", 3: "(N, H, W)"}[n] for n in ndims)
        raise ImageError(f"the image has shape {array.shape}: give {forms}")
    check_slice_shape(array.shape[-2:])
    return array


def check_slice_shape(shape: tuple[int, ...]) -> None:
    """Raise ImageError for a slice without two pixels an axis: nothing lies between them to be resolved."""
    if min(shape) < 2:
        raise ImageError(f"a slice of {shape[0]}×{shape[1]} pixels holds no structure to upscale: give at least 2×2")


def _checked_window(window: Window, whole: tuple[int, int]) -> Window:
    try:
        row, col, height, width = (operator.index(v) for v in window)
    except (TypeError, ValueError):
        raise ScaleError(f"window {window!r} is not (row, column, height, width) in whole output pixels") from None
    if row < 0 or col < 0 or height < 1 or width < 1 or row + height > whole[0] or col + width > whole[1]:
        raise ScaleError(
            f"window {window} leaves the output of {whole[0]}×{whole[1]} pixels: "
            "give (row, column, height, width) inside it, in output pixels"
        )
    return row, col, height, width
