"""A GPU's engine: any trunk that works on device memory, and the Meta-Upscale stage as a CUDA kernel behind it.

The responses never leave the GPU: the trunk writes them where the kernel reads them. Up goes an image, down come its pixels.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import NOTHING, Told
from ..bounded import BoundedCache
from ..bundle import Bundle, Model
from ..errors import DeviceError
from ..phases import WeightPredictor
from ..tiles import Span
from . import cuda, ort, tensorrt
from .cache import EngineCache, default_directory

if TYPE_CHECKING:
    from . import Progress

log = logging.getLogger(__name__)

Float = NDArray[np.float32]

KERNELS = ("stage_float", "stage_half", "table_free_float", "table_free_half")
_CACHED = 8 << 20  # bytes on the GPU of tables and of where pixels lie: 97 kB and 19 kB at most for a slice of 240×240


class Trunk(Protocol):
    """Who computes responses in device memory, on a device's stream."""

    half: bool  # whether in half precision, responses too
    runs_on: str  # for a person: which library, in which version and precision

    def run(self, image: cuda.Array, told: cuda.Array | None, responses: cuda.Array) -> None:
        """A standardised image (H, W) float32 → responses (H, W, B'), float16 or float32; need not be done on return.

        `told` (3,) float32 is for a trunk that is told, None for one that is not.
        """

    def close(self) -> None: ...


@dataclass
class Encoded:
    """An image on the GPU and its responses, with the trunk that they came from and what it was told."""

    image: cuda.Array
    told: cuda.Array | None
    responses: cuda.Array
    trunk: Trunk


class GpuEngine:
    """A bundle on a GPU. Safe to share between threads, which take turns.

    Where half precision overflows, the image is computed once more in float32, by the trunk that `exact` makes, and a
    warning says so.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        predictor: WeightPredictor,
        device: cuda.Device,
        trunk: Trunk,
        exact: Callable[[], Trunk],
    ) -> None:
        self.device, self.runs_on = name, f"{trunk.runs_on}, {device.properties.name}, {device.library}"
        self._model, self._predictor = model, predictor
        self._gpu, self._trunk, self._make_exact = device, trunk, exact
        self._exact: Trunk | None = None if trunk.half else trunk
        ptx = resources.files(__package__).joinpath("stage.ptx").read_bytes()
        self._kernels = device.load(ptx, KERNELS)
        self._kept: BoundedCache[cuda.Array] = BoundedCache(_CACHED)
        self._w2, self._b2 = device.upload(self._predictor.w2), device.upload(self._predictor.b2)
        self._lock = threading.Lock()

    def encode(self, image: Float, told: Told = NOTHING) -> Encoded:
        """A standardised image (H, W) → its responses, on the GPU. Raises DeviceMemoryError."""
        with self._lock:
            more = self._gpu.upload(np.array(told, np.float32)) if self._model.told else None
            return self._encode(self._gpu.upload(image), more, self._trunk)

    def render(self, encoded: Encoded, rows: Span, cols: Span, scales: grid.Scales) -> Float:
        """The pixels rows × cols at a scale; (len(rows), len(cols)), float32."""
        with self._lock:
            pixels = self._render(encoded, rows, cols, scales)
            if pixels is None and encoded.trunk.half:
                log.warning("half precision overflowed: this image is computed again in float32")
                self._exact = self._exact or self._make_exact()
                again = self._encode(encoded.image, encoded.told, self._exact)
                encoded.responses, encoded.trunk = again.responses, again.trunk
                pixels = self._render(encoded, rows, cols, scales)
            if pixels is None:
                raise DeviceError(f"{encoded.trunk.runs_on}: the result is not finite", "use device 'cpu', and report it")
            return pixels

    def close(self) -> None:
        """Free the GPU's memory. Harmless when repeated."""
        with self._lock:
            for trunk in (self._trunk, self._exact):
                if trunk is not None:
                    trunk.close()
            self._gpu.close()

    def _encode(self, image: cuda.Array, told: cuda.Array | None, trunk: Trunk) -> Encoded:
        channels = self._model.basis + 9 * self._model.skip
        responses = self._gpu.empty((*image.shape, channels), np.float16 if trunk.half else np.float32)
        trunk.run(image, told, responses)
        return Encoded(image, told, responses, trunk)

    def _render(self, encoded: Encoded, rows: Span, cols: Span, scales: grid.Scales) -> Float | None:
        """The pixels, or None where one is not finite."""
        gpu, shape = self._gpu, (len(rows), len(cols))
        by_table = grid.has_table(scales)
        coefficients: list[cuda.Array | np.generic]
        if by_table:
            table = self._kept.get(scales, lambda: gpu.upload(self._predictor.table(scales).astype(np.float16)))
            coefficients = [table, np.int32(scales[1].numerator)]
        else:
            hidden = [gpu.upload(part) for part in self._predictor.hidden_parts(rows.offset, cols.offset, scales)]
            coefficients = [*hidden, self._w2, self._b2, np.int32(self._predictor.w2.shape[1])]
        out = gpu.empty(shape, np.float32)
        kernel = ("stage" if by_table else "table_free") + ("_half" if encoded.trunk.half else "_float")
        gpu.launch(
            self._kernels[kernel],
            (1, *shape),
            encoded.responses,
            *(np.int32(n) for n in encoded.responses.shape),
            *coefficients,
            np.int32(self._model.basis),
            self._kept.get((rows.key, cols.key), lambda: gpu.upload(_axes(rows, cols, by_table))),
            out,
            *(np.int32(n) for n in shape),
        )
        pixels: Float = gpu.download(out)
        return pixels if np.isfinite(pixels).all() else None


def _axes(rows: Span, cols: Span, by_table: bool) -> NDArray[np.int32]:
    """Where pixels lie, as `axes` of stage.cu has it. Without a table, each output is a phase of its own."""
    parts: list[NDArray[np.int32]] = []
    for span in (rows, cols):
        phase = span.axis.phase[span.start : span.stop] if by_table else np.arange(len(span))
        taps = grid.skip_taps(span.axis.scale, span.axis.projection, span.offset).astype(np.float32)
        parts += [span.sources, phase.astype(np.int32), taps.ravel().view(np.int32)]
    return np.concatenate(parts)


def load(bundle: Bundle, name: str, tile: int, cache_dir: Path | None, progress: Progress | None = None) -> GpuEngine:
    """The engine for cuda or tensorrt. Raises DeviceError, which says what is missing."""
    if bundle.integers:
        raise DeviceError("this bundle computes in 8-bit integers, which is for CPUs", "give the one exported without --int8")
    device = cuda.Device(cuda.open_driver())
    try:
        make: Callable[[bool], Trunk]
        if name == "cuda":
            make = partial(_cuda_trunk, device, bundle)
        else:
            cache = EngineCache(cache_dir or default_directory())
            make = partial(tensorrt.open_trunk, device, bundle, tile + 2 * bundle.model.radius, cache, progress)
        return GpuEngine(name, bundle.model, bundle.predictor(), device, make(bundle.has_half), partial(make, False))
    except BaseException:
        device.close()
        raise


def _cuda_trunk(device: cuda.Device, bundle: Bundle, half: bool) -> Trunk:
    return ort.OnnxTrunk.load(device, bundle.trunk(half), half, "cuda", ort.cuda_settings())
