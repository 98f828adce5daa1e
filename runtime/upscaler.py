"""The embedding interface: load once, upscale as often as you like."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import engines, grid, measure, on_device, tiles, volume
from .acquired import Acquired
from .bounded import BoundedCache
from .bundle import Bundle
from .consistency import Consistency
from .engines import Engine
from .engines.ensemble import Ensemble
from .errors import BundleError, DeviceError, ImageError, ScaleError
from .intensity import Intensity, real_array
from .measure import Matrix
from .scan import Scan
from .sizes import Size
from .slices import Encoded, Slices, Window, check_slice_shape, output_shape

Float = NDArray[np.float32]
ScaleOrPair = grid.ScaleLike | tuple[grid.ScaleLike, grid.ScaleLike]
ScaleOrAxes = ScaleOrPair | tuple[grid.ScaleLike, grid.ScaleLike, grid.ScaleLike]

MODELS = ("brain", "fast", "perceptual")  # the shipped bundles, the default first
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
        tile: int = tiles.TILE,
        ensemble: bool = False,
    ) -> Upscaler:
        """Load a bundle for a device: cpu, openvino, gpu, cuda, tensorrt or auto. A bundle is a path, the name of a
        shipped one, brain (the default), fast or perceptual, or one in memory.

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
            again = partial(self, scale=scale, shape=shape, acquired=acquired, noise=noise, grain=grain, levels=levels)
            return on_device.upscale(self.slices, image, Size(scale, shape), acquired, noise, grain, levels, again)
        array = _checked(image, (2, 3))
        labels = getattr(image, "dtype", None) == np.bool_  # a mask has nothing between true and false
        scan = Scan(array, stack=0 if array.ndim == 3 else None, labels=labels)
        out = volume.prepared(scan, Size(scale, shape), np.float32)
        half_width = volume.uncertainty(out).pixels if uncertainty else None
        told: dict[str, Any] = {"acquired": acquired, "noise": noise, "grain": grain, "ranges": [levels] if levels else []}
        volume.upscale(self.slices, scan, out, **told, progress=progress, half_width=half_width)
        return (out.pixels, half_width) if uncertainty else out.pixels

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

        scan = image if isinstance(image, Scan) else nifti.of_image(image)
        scan = scan.across(axis)
        out = volume.prepared(scan, Size(scale, shape, spacing, isotropic), dtype)
        outputs = [out, volume.uncertainty(out)] if uncertainty else [out]
        results = outputs if isinstance(image, Scan) else [nifti.image_of(each) for each in outputs]  # which share the pixels
        half_width = outputs[1].pixels if uncertainty else None
        told: dict[str, Any] = {"acquired": acquired, "noise": noise, "grain": grain}
        volume.upscale(self.slices, scan, out, **told, progress=progress, half_width=half_width)
        finished = [each if isinstance(image, Scan) else nifti.reopened(each) for each in results]
        return tuple(finished) if uncertainty else finished[0]

    def close(self) -> None:
        """Release the engine and its memory. Harmless when repeated; any other use afterwards raises ClosedError."""
        self.slices.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
        scales, whole, here = self._place(scale, shape, window)
        top, left, height, width = here
        grain = measure.checked_grain(grain)
        slices, encoded = self._slices, self._encoded
        if grain:
            more = self._given_back(grain, scales, whole, here)
            out = self._intensity.restore(slices.render(encoded, scales, here) + more, np.float32)
        else:
            out = slices.render(encoded, scales, here, self._intensity)
        if self._intensity.aside:
            y, x = slices.sources(self.shape, scales)
            self._intensity.put_back(out, self._image, (y[top : top + height], x[left : left + width]))
        return out

    def consistency(
        self, scale: ScaleOrPair | None = None, *, shape: tuple[int, int] | None = None, grain: float = GRAIN
    ) -> Consistency:
        """How well the whole slice at a scale or of an output shape, brought back to what was measured, equals the input.

        Its `rmse` and `worst` are in the input's units. Raises ScaleError.
        """
        scales, _, _ = self._place(scale, shape, None)
        sr = self._intensity.normalise(self.render(scale, shape=shape, grain=grain))
        white, found = abs(self._intensity.white - self._intensity.black), Consistency()
        found.add(self.acquired.difference(self._encoded.unit, sr, scales), white)
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
        scales, whole, here = self._place(scale, shape, window)
        out = self._slices.uncertainty(self._encoded, scales, here)
        if grain := measure.checked_grain(grain):
            out += np.abs(self._given_back(grain, scales, whole, here))
        return out * np.float32(abs(self._intensity.white - self._intensity.black))

    def _given_back(self, grain: float, scales: grid.Scales, whole: tuple[int, int], window: Window) -> Float:
        """What `grain` adds to a window of the output; white is 1."""
        top, left, height, width = window
        slices, encoded = self._slices, self._encoded
        lacks = self._lacks.get(
            scales, lambda: self.acquired.lacking(encoded.unit, slices.render(encoded, scales, (0, 0, *whole)), scales)
        )
        part = slice(top, top + height), slice(left, left + width)
        return np.float32(grain) * self.acquired.given_back(lacks, self.shape, scales, *part)

    def _place(
        self, scale: ScaleOrPair | None, shape: tuple[int, int] | None, window: Window | None
    ) -> tuple[grid.Scales, tuple[int, int], Window]:
        """Scales, the output's shape, and the window of it that is wanted. Raises ScaleError."""
        rows, cols, _ = Size(scale, shape).of(self.shape, (), 2)
        whole = output_shape(self.shape, (rows, cols))
        return (rows, cols), whole, (0, 0, *whole) if window is None else _checked_window(window, whole)

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
    if array.ndim not in ndims:
        forms = " or ".join({2: "(H, W)", 3: "(N, H, W)"}[n] for n in ndims)
        raise ImageError(f"the image has shape {array.shape}: give {forms}")
    check_slice_shape(array.shape[-2:])
    return array


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
