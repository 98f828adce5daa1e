"""The embedding interface: load once, upscale as often as you like."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import engines, grid, measure, volume
from .acquired import Acquired, Consistency, Float
from .bundle import Bundle
from .engines import Engine
from .engines.cuda import Array
from .engines.ensemble import Ensemble
from .engines.native import NativeEngine
from .errors import BundleError, DeviceError, ImageError, ScaleError
from .intensity import Intensity, real_array
from .measure import Matrix
from .memory import BoundedCache
from .scan import Scan
from .sizes import Size
from .slices import TILE, Encoded, Slices, Window, check_slice_shape, output_shape

ScaleOrPair = grid.ScaleLike | tuple[grid.ScaleLike, grid.ScaleLike]
ScaleOrAxes = ScaleOrPair | tuple[grid.ScaleLike, grid.ScaleLike, grid.ScaleLike]

MODELS = ("brain", "fast", "best", "perceptual")  # the shipped bundles, the default first
SHIPPED = f"{MODELS[0]}.bundle"
GRAIN = 0.0  # by default: what is told to be noise is left out
_NEARLY = Fraction(1, 200)  # how far a scale may lie from the one that is asked for, as a part of it
_LACKS = 8 << 20  # bytes that a view keeps of what its outputs lack of the input: some scales of a slice of 512×512


class Upscaler:
    """Upscales brain-MR slices and volumes to any size with one loaded bundle. Safe to share between threads.

    Use `Upscaler.load`; the constructor takes the parts.
    """

    def __init__(self, bundle: Bundle, engine: Engine, tile: int) -> None:
        self.bundle = bundle
        self.slices = Slices(bundle.model, engine, tile, bundle.head())

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        tile: int = TILE,
        ensemble: bool = False,
    ) -> Upscaler:
        """Load a bundle for a device: cpu, openvino, gpu, cuda, tensorrt or auto. A bundle is a path, the name of a
        shipped one, brain (the default), fast, best or perceptual, or one in memory.

        `auto` takes cuda where it works, else gpu if it is hardware and faster than the CPU, else the CPU, and logs which
        and why; no other name falls back.
        `threads` is by default the number of processors this process may use; `cache_dir` keeps TensorRT's engines (by
        default: in the user's cache); an image larger than `tile` pixels an axis is cut into tiles, smaller ones of which
        need less memory; with `ensemble`, the output is the mean over the eight flips and turns of each slice, and takes
        eight times as long.
        Raises BundleError for a bundle that is missing or damaged, DeviceError for a device that cannot run here.
        """
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise DeviceError(f"threads is {threads!r}: give 1 or more, or nothing for all processors")
        if not isinstance(tile, int) or tile < 1:
            raise DeviceError(f"tile is {tile!r}: give 1 pixel or more")
        opened, folder = open_bundle(bundle), Path(cache_dir) if cache_dir else None
        if ensemble:  # which reaches one pixel farther
            opened = replace(opened, model=replace(opened.model, radius=opened.model.radius + 1))
        engine = engines.load(opened, device, threads, tile, folder)
        return cls(opened, Ensemble(engine) if ensemble else engine, tile)

    @property
    def device(self) -> str:
        """What really does the arithmetic: cpu, openvino, gpu, cuda or tensorrt."""
        return self.slices.engine.device

    @property
    def runs_on(self) -> str:
        """The same for a person: library, version, precision, processor."""
        return self.slices.engine.runs_on

    @property
    def ensemble(self) -> bool:
        """Whether the output is the mean over the eight flips and turns."""
        return isinstance(self.slices.engine, Ensemble)

    def prepare(self, shape: tuple[int, int], scale: ScaleOrPair) -> None:
        """Do ahead of time what the first slice of `shape` pixels would wait for: load kernels, choose algorithms, predict
        the scale's table."""
        self(np.indices(shape).sum(0) % 2, scale, acquired="stored")

    def __call__(
        self,
        image: Any,
        scale: ScaleOrPair | None = None,
        *,
        shape: tuple[int, int] | None = None,
        acquired: Matrix = "auto",
        noise: float | None = None,
        grain: float = GRAIN,
        levels: Intensity | None = None,
        uncertainty: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Upscale a slice (H, W), or the slices of one volume (N, H, W) with one intensity range, to float32 in its units.

        `scale` is one number for both axes or (rows, columns), and gives H·p // q rows for p/q; `shape` is the exact
        output size instead. The output keeps within the input's own range. A mask of bools is enlarged by nearest neighbour.

        `acquired` is the matrix that the scanner measured, (rows, columns), where the stored one is larger by zero filling;
        "auto" estimates it from the spectrum, "stored" takes the whole matrix as measured. `noise` is σ as a part of white
        (default: estimated). `grain` is how much of what was measured is added back where the network took it for noise:
        0 none, 1 all, so that the output brought down again equals the input. `levels` is the range of a volume whose slices
        come one by one, `runtime.intensity.Intensity.of(volume)`.

        With `uncertainty`, returns (output, half width): both as large. The truth lies within ± half width of the output at
        90 % of the pixels (`runtime.uncertainty.COVERAGE`; docs/uncertainty.md).

        `progress(done, total)` is called after each slice; what it raises stops the work, and the Upscaler can be used
        again. Raises ScaleError, ImageError, and BundleError where the bundle does not tell the uncertainty.

        An array in an NVIDIA GPU's memory (PyCUDA, CuPy, torch: all with `__cuda_array_interface__`) gives one there, if
        `device` is cuda or tensorrt: its pixels do not leave the GPU if all was measured, nothing is set aside and `grain` is
        0. Its stream and the default stream are waited for; the result is finished. A copy on the host tells the range and
        what was measured, unless `levels` and what `measure` gave as `acquired` do.
        """
        if hasattr(image, "__cuda_array_interface__"):
            if uncertainty:
                raise ImageError("uncertainty is told of arrays on the host alone: copy the image there")
            return self._in_place(image, Size(scale, shape), acquired, noise, grain, levels)
        array = _checked(image, (2, 3))
        labels = getattr(image, "dtype", None) == np.bool_  # a mask has nothing between true and false
        scan = Scan(array, stack=0 if array.ndim == 3 else None, labels=labels)
        out = volume.prepared(scan, Size(scale, shape), np.float32)
        half_width = volume.uncertainty(out).pixels if uncertainty else None
        told: Any = {"acquired": acquired, "noise": noise, "grain": grain, "ranges": [levels] if levels else []}
        volume.upscale(self.slices, scan, out, **told, progress=progress, half_width=half_width)
        return out.pixels if half_width is None else (out.pixels, half_width)

    def _in_place(
        self, image: Any, size: Size, acquired: Matrix, noise: float | None, grain: float, levels: Intensity | None
    ) -> Any:
        """A call with an array in a GPU's memory. What must be copied to the host, `__call__` says."""
        native, part, host = self.slices.engine.on_arrays(), Array(image), None
        _check_shape(part.shape, (2, 3))
        if levels is None or not isinstance(acquired, Acquired):
            host = _on_host(native, image)
            levels = levels or Intensity.of(host)
            acquired = measure.of(host, (-2, -1), levels, acquired, noise)
        measured = acquired.along(-2, -1)
        fine = part.dtype.itemsize > 2 and part.dtype != np.float32
        if fine or grain or levels.aside or not measured.is_stored or not levels.fits_float32(np.float32):
            host = _on_host(native, image) if host is None else host
            finished = self(host, size.scale, shape=size.shape, acquired=acquired, grain=grain, levels=levels)
            with native.working() as gpu:
                out = gpu.upload(finished)
                gpu.synchronise()
            return out
        rows, cols, _ = size.of(part.shape[-2:], (), 2)
        with native.working() as gpu:
            out = gpu.empty((*part.shape[:-2], *output_shape(part.shape[-2:], (rows, cols))), np.float32)
        for k in np.ndindex(part.shape[:-2]):
            self.slices.fill(out[k], part[k], levels, (rows, cols), measured)  # type: ignore[arg-type]
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
        measured = measure.of(array, (0, 1), intensity, acquired, noise)
        return View(self.slices, array, intensity, self.slices.encode(intensity.normalise(array), measured))

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
        uncertainty: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Upscale a nibabel NIfTI image, or a `Scan`, in slices that lie across `axis` (the thickest by default).

        `scale`, `shape` (pixels) or `spacing` (mm) are of the axes within a slice where one number or two are given, and of
        the array axes 0, 1 and 2 where there are three; `isotropic` makes every axis as fine as the finest.
        `acquired`, `noise` and `grain` are those of a slice; two numbers of `acquired` are of the axes within a slice too.
        Returns an image of the same class whose affine keeps every point in its place, with the same dtype (or `dtype`)
        and the rest of the header. With `uncertainty`, returns (output, half width), the second in float32, as in
        `Upscaler.__call__`. `progress(done, total)` is called after each slice. Raises ScaleError, ImageError and BundleError.
        """
        from .io import nifti  # nibabel is imported by those who need it

        given = isinstance(image, Scan)
        scan = (image if given else nifti.of_image(image)).across(axis)
        out = volume.prepared(scan, Size(scale, shape, spacing, isotropic), dtype)
        outputs = [out, volume.uncertainty(out)] if uncertainty else [out]
        results = outputs if given else [nifti.image_of(each) for each in outputs]  # which share the pixels
        told: Any = {"acquired": acquired, "noise": noise, "grain": grain}
        half_width = outputs[1].pixels if uncertainty else None
        volume.upscale(self.slices, scan, out, **told, progress=progress, half_width=half_width)
        results = results if given else [nifti.reopened(each) for each in results]
        return tuple(results) if uncertainty else results[0]

    def close(self) -> None:
        """Release the engine and its memory. Harmless when repeated; any other use afterwards raises ClosedError."""
        self.slices.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> Any:  # of pickle and copy
        raise DeviceError("an Upscaler can neither be copied nor sent to another process", "load it there")


class View:
    """An encoded slice: it keeps 164 bytes for each acquired pixel. `acquired` is what was measured of it."""

    def __init__(self, slices: Slices, image: NDArray[Any], intensity: Intensity, encoded: Encoded) -> None:
        self._image = image if intensity.aside else image[:0]
        self.shape, self.acquired = encoded.unit.shape, encoded.acquired
        self._slices, self._intensity, self._encoded = slices, intensity, encoded
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
        scales, window = self._place(scale, shape, window)
        slices, encoded, intensity = self._slices, self._encoded, self._intensity
        if grain := measure.checked_grain(grain):
            unit = slices.render(encoded, scales, window) + self._given_back(grain, scales, window)
            out = intensity.restore(unit, np.float32)
        else:
            out = slices.render(encoded, scales, window, intensity)
        if intensity.aside:
            y, x = slices.sources(self.shape, scales)
            rows, cols = _parts(window)
            intensity.put_back(out, self._image, (y[rows], x[cols]))
        return out

    def consistency(
        self, scale: ScaleOrPair | None = None, *, shape: tuple[int, int] | None = None, grain: float = GRAIN
    ) -> Consistency:
        """How well the whole slice at a scale or of an output shape, brought back to what was measured, equals the input.

        Its `rmse` and `worst` are in the input's units. Raises ScaleError.
        """
        scales, _ = self._place(scale, shape, None)
        intensity, found = self._intensity, Consistency()
        sr = intensity.normalise(self.render(scales, grain=grain))
        found.add(self.acquired.difference(self._encoded.unit, sr, scales), intensity.width)
        return found

    def uncertainty(
        self,
        scale: ScaleOrPair | None = None,
        *,
        shape: tuple[int, int] | None = None,
        window: Window | None = None,
        grain: float = GRAIN,
    ) -> Float:
        """Half the width of the interval around each pixel of `render` that holds the truth; float32.

        Raises ScaleError as `render` does, and BundleError where the bundle does not tell it.
        """
        scales, window = self._place(scale, shape, window)
        out = self._slices.uncertainty(self._encoded, scales, window)
        if grain := measure.checked_grain(grain):
            out += np.abs(self._given_back(grain, scales, window))
        return out * np.float32(self._intensity.width)

    def _given_back(self, grain: float, scales: grid.Scales, window: Window) -> Float:
        """What `grain` adds to a window of the output; white is 1."""

        def lacking() -> Float:
            sr = self._slices.render(self._encoded, scales, (0, 0, *output_shape(self.shape, scales)))
            return self.acquired.lacking(self._encoded.unit, sr, scales)

        lacks = self._lacks.get(scales, lacking)
        return np.float32(grain) * self.acquired.given_back(lacks, self.shape, scales, *_parts(window))

    def _place(
        self, scale: ScaleOrPair | None, shape: tuple[int, int] | None, window: Window | None
    ) -> tuple[grid.Scales, Window]:
        """Scales, and the window of the output that is wanted. Raises ScaleError."""
        rows, cols, _ = Size(scale, shape).of(self.shape, (), 2)
        whole = output_shape(self.shape, (rows, cols))
        if window is None:
            return (rows, cols), (0, 0, *whole)
        try:
            top, left, height, width = (operator.index(v) for v in window)
        except (TypeError, ValueError):
            raise ScaleError(f"window {window!r} is not (row, column, height, width) in whole output pixels") from None
        if not (0 <= top < top + height <= whole[0] and 0 <= left < left + width <= whole[1]):
            raise ScaleError(
                f"window {window} leaves the output of {whole[0]}×{whole[1]} pixels: "
                "give (row, column, height, width) inside it, in output pixels"
            )
        return (rows, cols), (top, left, height, width)

    def nearest_scale(self, factor: ScaleOrPair) -> grid.Scales:
        """Scales near a factor, or near a pair (rows, columns), that `render` serves fastest, from a small table.

        They are within 0.5 % where a table allows it. Near whole numbers of canonical pixels none does: 1.6 % at most.
        """
        rows, cols = (_simple(r * s) / s for r, s in zip(grid.parse_scales(factor), self._encoded.spacing))
        return max(rows, Fraction(1)), max(cols, Fraction(1))


def open_bundle(bundle: str | Path | Bundle | None) -> Bundle:
    """A shipped bundle by its model's name (default: the first of `MODELS`), the bundle at a path, or one that is open already.

    Raises BundleError.
    """
    if isinstance(bundle, Bundle):
        return bundle
    name = MODELS[0] if bundle is None else bundle
    if name in MODELS:
        with resources.as_file(resources.files(__package__).joinpath(f"{name}.bundle")) as path:
            return Bundle.read(path)
    if isinstance(name, str) and Path(name).stem == name and not os.path.exists(name):
        raise BundleError(f"model {name!r} is unknown: use one of {', '.join(MODELS)}, or the path of a .bundle")
    return Bundle.read(Path(name))


def _simple(factor: Fraction) -> Fraction:
    """The simplest ratio near a factor whose square table is small, or else the nearest that has one."""
    ratios = [factor.limit_denominator(q) for q in range(1, 65)]
    small = [r for r in ratios if grid.has_table((r, r))] or ratios
    return next((r for r in small if abs(r / factor - 1) <= _NEARLY), min(small, key=lambda r: abs(r - factor)))


def _checked(image: ArrayLike, ndims: tuple[int, ...]) -> NDArray[Any]:
    array = real_array(image)
    _check_shape(array.shape, ndims)
    return array


def _on_host(native: NativeEngine, image: Any) -> NDArray[Any]:
    with native.working() as gpu:
        return real_array(gpu.download(gpu.borrow(image)))


def _check_shape(shape: tuple[int, ...], ndims: tuple[int, ...]) -> None:
    if len(shape) not in ndims:
        forms = " or ".join({2: "(H, W)", 3: "(N, H, W)"}[n] for n in ndims)
        raise ImageError(f"the image has shape {shape}: give {forms}")
    check_slice_shape(shape[-2:])


def _parts(window: Window) -> tuple[slice, slice]:
    """The rows and columns of a window."""
    top, left, height, width = window
    return slice(top, top + height), slice(left, left + width)
