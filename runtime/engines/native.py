"""The native engine for NVIDIA GPUs: the trunk by a library, grey values and the Meta-Upscale stage by our own kernels.

`tensorrt` is this engine with TensorRT's trunk; `cuda`, for images that are in the GPU's memory, with ONNX Runtime's.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import Float, Told
from ..bundle import Bundle
from ..errors import DeviceError, ImageError
from ..grid import Span
from ..intensity import UNIT, Intensity
from ..memory import BoundedCache
from . import graphs
from .cuda import Array, Device
from .engine import DeviceEngine, Features
from .stage import affine

KERNELS = ("standardise", "meta_upscale_float", "meta_upscale_half")
IMAGE = np.dtype("u8, u8, i8, i8, i4, i4, i4, f4, f4, f4", align=True)  # as meta_upscale.cu has them
STAGE = np.dtype("u8, u8, u8, u8, u8, u8, u8, u8, u8, (9,)i4, (4,)f4", align=True)
KINDS = "fehHbB"  # NumPy's characters for the types of pixels that float32 holds exactly
_CACHED = 8 << 20  # bytes on the GPU of tables and of where pixels lie: 200 kB and 20 kB at most for a slice of 240×240


class NativeEngine(DeviceEngine):
    """A bundle on an NVIDIA GPU."""

    def __init__(self, bundle: Bundle, library: str) -> None:
        """Raises DeviceError, which says what is missing."""
        super().__init__(bundle, bundle.has_half)
        self._gpu = Device()
        if self._gpu.capability < (7, 5):
            raise DeviceError(f"{self._gpu.name} is older than compute capability 7.5", "use device 'gpu' or 'cpu'")
        self.runs_on = f"{library}, {bundle.model.precision}, {self._gpu.name}"
        self._trunks: dict[bool, Any] = {}
        self._kept: BoundedCache[Array] = BoundedCache(_CACHED)
        with self.working() as gpu:
            self._kernels = gpu.load(resources.files(__package__).joinpath("meta_upscale.ptx").read_bytes(), *KERNELS)
            self._trunk(self._half)

    @abstractmethod
    def _open_trunk(self, graph: bytes) -> Any:
        """The library's trunk of a graph."""

    @abstractmethod
    def _run(self, trunk: Any, tensors: Mapping[str, Array]) -> None:
        """Compute `features` (1, B', H, W) of `image` (1, 1, H, W), and of `told` where the model is told."""

    def responses(self, features: Features) -> Float:
        """Features as (H·W, B') on the host."""
        with self.working() as gpu:
            planes = gpu.download(features.value)
        return planes.reshape(len(planes), -1).T.astype(np.float32)

    def on_arrays(self) -> NativeEngine:
        """This one."""
        return self

    @contextlib.contextmanager
    def working(self) -> Iterator[Device]:
        """The GPU, for this thread alone. Raises ClosedError. Arrays that are made on it may outlive the engine."""
        with super().working(), self._gpu.current():
            yield self._gpu

    def _release(self) -> None:
        """Let go of the GPU. Arrays and features that are referred to keep their own memory."""
        with self._gpu.current():
            self._gpu.cuda.cuStreamSynchronize(self._gpu.stream)  # whatever it says: after an error, nothing works any more
            del self._trunks, self._kernels, self._kept
        del self._gpu

    def _standardise(self, image: Any, levels: Intensity) -> Array:
        """Grey values (H, W), on the host or, of `KINDS`, with `__cuda_array_interface__` → (1, 1, H, W) on the GPU."""
        on_host = isinstance(image, np.ndarray)
        if on_host and (image.dtype.char not in KINDS or levels.aside):
            image, levels = levels.normalise(image), UNIT
        spread = (levels.white - levels.black) or 1.0
        scaling = levels.black, 1 / (spread * self._model.std), -self._model.mean / self._model.std
        with self.working() as gpu:
            pixels = gpu.borrow(gpu.upload(image) if on_host else image)
            if pixels.dtype.char not in KINDS or not pixels.dtype.isnative:
                raise ImageError(f"pixels of type {pixels.dtype} on the GPU: give float32, or integers of at most 16 bits")
            standard = gpu.empty((1, 1, *pixels.shape), np.float32)
            struct = pixels.pointer, standard.pointer, *pixels.strides, *pixels.shape, ord(pixels.dtype.char), *scaling
            gpu.launch(self._kernels["standardise"], pixels.shape, np.array(struct, IMAGE))
            return standard

    def _keep(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> Array:
        return self._kept.get(key, lambda: self._gpu.upload(make()))

    def _trunk(self, half: bool) -> Any:
        if half not in self._trunks:
            self._trunks[half] = self._open_trunk(self._bundle.trunk(half) + graphs.planes(half))
        return self._trunks[half]

    def _features(self, image: Array, told: Told, half: bool) -> Array:
        """The features of a standardised image."""
        shape = 1, self._model.basis + 9 * self._model.skip, *image.shape[2:]
        tensors = {"image": image, "features": self._gpu.empty(shape, np.float16 if half else np.float32)}
        if self._model.told:
            tensors["told"] = self._keep(("told", told), lambda: np.array(told, np.float32))
        self._run(self._trunk(half), tensors)
        return tensors["features"][0]

    def _render(self, value: Array, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: Any) -> bool:
        """`out` is on the host, or has `__cuda_array_interface__` and contiguous rows."""
        on_host = isinstance(out, np.ndarray)
        target = self._gpu.empty(out.shape, np.float32) if on_host else self._gpu.borrow(out)
        gpu, predictor, by_table = self._gpu, self._predictor, grid.has_table(scales)
        units, parts = len(predictor.b1), (rows.offset, cols.offset, scales)
        if by_table:
            filters = self._keep(scales, lambda: predictor.table(scales))
            places = filters.pointer, 0, 0
        else:
            filters = self._keep(("hidden", rows.key, cols.key), lambda: np.concatenate(predictor.hidden_parts(*parts)))
            places = 0, filters.pointer, filters[len(rows) :].pointer
        w2, b2 = self._keep("w2", lambda: predictor.w2.T), self._keep("b2", lambda: predictor.b2)
        axes, bad = self._keep((rows.key, cols.key), lambda: _axes(rows, cols, by_table)), gpu.upload(np.zeros(1, np.int32))
        sizes = *value.shape, self._model.basis, units, scales[1].numerator, *target.shape, target.strides[0] // 4
        pointers = value.pointer, *places, *(array.pointer for array in (w2, b2, axes, target, bad))
        grey = affine(self._model, levels)
        kernel = self._kernels["meta_upscale_half" if value.dtype == np.float16 else "meta_upscale_float"]
        gpu.launch(kernel, target.shape, np.array((*pointers, sizes, tuple(grey.values())), STAGE))
        finite = not gpu.download(bad)[0]
        if finite and on_host:
            out[...] = gpu.download(target)
        return finite


def _axes(rows: Span, cols: Span, by_table: bool) -> NDArray[np.int32]:
    """Where pixels lie, as `axes` of meta_upscale.cu has it. Without a table, each output is a phase of its own."""
    parts: list[NDArray[np.int32]] = []
    for span in (rows, cols):
        phase = span.axis.phase[span.start : span.stop] if by_table else np.arange(len(span))
        taps = grid.skip_taps(span.axis.scale, span.axis.projection, span.offset).astype(np.float32)
        parts += [span.sources, phase.astype(np.int32), taps.ravel().view(np.int32)]
    return np.concatenate(parts)
