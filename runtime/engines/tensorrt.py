"""The native engine for NVIDIA GPUs: the trunk by TensorRT, grey values and the Meta-Upscale stage by kernels, on one stream.

TensorRT is the package `tensorrt` where it is installed, or else `tensorrt_rtx`, made for small GPUs, which builds engines on a
machine without one too. Precision is what the graph says: neither has a switch for it any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import NOTHING, Told
from ..bundle import Bundle
from ..errors import ClosedError, DeviceError, ImageError, reason
from ..grid import Span
from ..intensity import UNIT, Intensity
from ..memory import BoundedCache
from .cache import EngineCache
from .cuda import Array, Device

log = logging.getLogger(__name__)

KERNELS = ("standardise", "meta_upscale_float", "meta_upscale_half")
IMAGE = np.dtype("u8, u8, i8, i8, i4, i4, i4, f4, f4, f4", align=True)  # as meta_upscale.cu has them
STAGE = np.dtype("u8, u8, u8, u8, u8, u8, u8, u8, u8, (9,)i4, (4,)f4", align=True)
KINDS = "fehHbB"  # NumPy's characters for the types of pixels that float32 holds exactly
_CACHED = 8 << 20  # bytes on the GPU of tables and of where pixels lie: 200 kB and 20 kB at most for a slice of 240×240


@dataclass
class Features:
    """A standardised image on the GPU, what is told of it, and its features (B', H, W), in half precision or not."""

    image: Array
    told: Told
    values: Array


class TensorRtEngine:
    """A bundle on an NVIDIA GPU. Threads may share it, and take turns.

    Where half precision overflows, the image is computed once more in float32, and a warning says so.
    """

    device, in_flight = "tensorrt", 2

    def __init__(self, bundle: Bundle, tile: int, cache_dir: Path | None = None) -> None:
        """For images of `tile` pixels an axis and their halo. Raises DeviceError, which says what is missing."""
        self._bundle, self._model, self._predictor = bundle, bundle.model, bundle.predictor()
        self._largest, self._cache = tile + 2 * bundle.model.radius, EngineCache(cache_dir)
        self._gpu, self._library, self._lock = Device(), load_library(), threading.RLock()
        if self._gpu.capability < (7, 5):
            raise DeviceError(f"{self._gpu.name} is older than compute capability 7.5", "use device 'gpu' or 'cpu'")
        self._logger = _logger(self._library)  # which TensorRT does not keep alive
        self._trunks: dict[bool, Any] = {}
        self._kept: BoundedCache[Array] = BoundedCache(_CACHED)
        self.runs_on = f"{describe(self._library)}, {bundle.model.precision}, {self._gpu.name}"
        with self._working() as gpu:
            self._kernels = gpu.load(resources.files(__package__).joinpath("meta_upscale.ptx").read_bytes(), *KERNELS)
            self._trunk(bundle.has_half)

    def encode(self, image: Any, levels: Intensity, told: Told = NOTHING) -> Features:
        """Grey values (H, W), on the host or, of `KINDS`, with `__cuda_array_interface__` → features."""
        on_host = isinstance(image, np.ndarray)
        if on_host and (image.dtype.char not in KINDS or levels.aside):
            image, levels = levels.normalise(image), UNIT
        spread = (levels.white - levels.black) or 1.0
        affine = levels.black, 1 / (spread * self._model.std), -self._model.mean / self._model.std
        with self._working() as gpu:
            pixels = gpu.borrow(gpu.upload(image) if on_host else image)
            if pixels.dtype.char not in KINDS or not pixels.dtype.isnative:
                raise ImageError(f"pixels of type {pixels.dtype} on the GPU: give float32, or integers of at most 16 bits")
            standard = gpu.empty(pixels.shape, np.float32)
            struct = pixels.pointer, standard.pointer, *pixels.strides, *pixels.shape, ord(pixels.dtype.char), *affine
            gpu.launch(self._kernels["standardise"], pixels.shape, np.array(struct, IMAGE))
            return Features(standard, told, self._run_trunk(standard, told, self._bundle.has_half))

    def render(self, features: Features, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: Any) -> None:
        """The pixels rows × cols at a scale, grey values clipped to the levels' range, into `out`, float32.

        `out` is on the host, or has `__cuda_array_interface__`; its rows are contiguous.
        """
        with self._working() as gpu:
            target = gpu.empty(out.shape, np.float32) if isinstance(out, np.ndarray) else gpu.borrow(out)
            while not self._launch(features.values, rows, cols, scales, levels, target):
                if features.values.dtype == np.float32:
                    raise DeviceError(f"{self.runs_on}: the result is not finite", "use device 'cpu', and report it")
                log.warning("half precision overflowed: this image is computed again in float32")
                features.values = self._run_trunk(features.image, features.told, half=False)
            if isinstance(out, np.ndarray):
                out[...] = gpu.download(target)

    def responses(self, features: Features) -> NDArray[np.float32]:
        """Features as (H·W, B') on the host."""
        planes = self.to_host(features.values)
        return planes.reshape(len(planes), -1).T.astype(np.float32)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """A float32 array on the GPU, which may outlive the engine."""
        with self._working() as gpu:
            return gpu.empty(shape, np.float32)

    def upload(self, array: NDArray[np.float32]) -> Array:
        """A copy on the GPU."""
        with self._working() as gpu:
            copy = gpu.upload(array)
            gpu.synchronise()
            return copy

    def to_host(self, array: Any) -> NDArray[Any]:
        """A copy on the host of an array with `__cuda_array_interface__`."""
        with self._working() as gpu:
            return gpu.download(gpu.borrow(array))

    def close(self) -> None:
        """Let go of the GPU. Arrays and features that are referred to keep their own memory. Harmless when repeated."""
        with contextlib.suppress(ClosedError), self._working() as gpu:
            gpu.cuda.cuStreamSynchronize(gpu.stream)  # whatever it says: after an error, nothing works any more
            self._trunks, self._kernels, self._kept = {}, {}, BoundedCache(0)
            del self._gpu

    @contextlib.contextmanager
    def _working(self) -> Iterator[Device]:
        with self._lock:
            if not hasattr(self, "_gpu"):
                raise ClosedError("this Upscaler is closed: load it again")
            gpu = self._gpu
            with gpu.current():
                yield gpu

    def _keep(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> Array:
        return self._kept.get(key, lambda: self._gpu.upload(make()))

    def _trunk(self, half: bool) -> Any:
        """The trunk's context, of an engine that the cache has, or that is built now and kept."""
        if half not in self._trunks:
            library, graph, gpu = self._library, self._bundle.trunk(half), self._gpu
            of = describe(library), gpu.name, *gpu.capability, self._largest, hashlib.sha256(graph).hexdigest()
            key = " ".join(map(str, of))  # all that an engine depends on; precision is in the graph
            if (engine := self._cache.get(key)) is None:
                log.warning("%s builds an engine for this GPU, once: this takes up to some minutes", describe(library))
                self._cache.put(key, engine := build(library, graph, self._largest))
            loaded = library.Runtime(self._logger).deserialize_cuda_engine(engine)
            context = loaded and loaded.create_execution_context(library.ExecutionContextAllocationStrategy.USER_MANAGED)
            if context is None:
                raise DeviceError(f"{self.runs_on} cannot load its engine: {self._logger.last}", "metasrgan cache --clear")
            self._trunks[half] = context
        return self._trunks[half]

    def _run_trunk(self, image: Array, told: Told, half: bool) -> Array:
        """The features of a standardised image; TensorRT works in memory as large as this image needs."""
        gpu, context, channels = self._gpu, self._trunk(half), self._model.basis + 9 * self._model.skip
        tensors = {"image": image, "features": gpu.empty((channels, *image.shape), np.float16 if half else np.float32)}
        if self._model.told:
            tensors["told"] = self._keep(("told", told), lambda: np.array(told, np.float32))
        fits = context.set_input_shape("image", (1, 1, *image.shape))
        if fits and all(context.set_tensor_address(name, array.pointer) for name, array in tensors.items()):
            memory = gpu.empty((context.update_device_memory_size_for_shapes(),), np.uint8)
            context.set_device_memory(memory.pointer, memory.nbytes)
            if context.execute_async_v3(int(gpu.stream)):
                return tensors["features"]
        raise DeviceError(f"{self.runs_on}: an image of {image.shape} failed: {self._logger.last}")

    def _launch(self, features: Array, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, target: Array) -> bool:
        """Whether all pixels are finite."""
        gpu, model, predictor, spread = self._gpu, self._model, self._predictor, levels.white - levels.black
        units, by_table, parts = len(predictor.b1), grid.has_table(scales), (rows.offset, cols.offset, scales)
        if by_table:
            filters = self._keep(scales, lambda: predictor.table(scales))
            places = filters.pointer, 0, 0
        else:
            filters = self._keep(("hidden", rows.key, cols.key), lambda: np.concatenate(predictor.hidden_parts(*parts)))
            places = 0, filters.pointer, filters.pointer + 4 * units * len(rows)
        w2, b2 = self._keep("w2", lambda: predictor.w2.T), self._keep("b2", lambda: predictor.b2)
        axes, bad = self._keep((rows.key, cols.key), lambda: _axes(rows, cols, by_table)), gpu.upload(np.zeros(1, np.int32))
        sizes = *features.shape, model.basis, units, scales[1].numerator, *target.shape, target.strides[0] // 4
        affine = model.std * spread, model.mean * spread + levels.black, levels.low, levels.high
        pointers = features.pointer, *places, *(array.pointer for array in (w2, b2, axes, target, bad))
        kernel = self._kernels["meta_upscale_half" if features.dtype == np.float16 else "meta_upscale_float"]
        gpu.launch(kernel, target.shape, np.array((*pointers, sizes, affine), STAGE))
        return not gpu.download(bad)[0]


def _axes(rows: Span, cols: Span, by_table: bool) -> NDArray[np.int32]:
    """Where pixels lie, as `axes` of meta_upscale.cu has it. Without a table, each output is a phase of its own."""
    parts: list[NDArray[np.int32]] = []
    for span in (rows, cols):
        phase = span.axis.phase[span.start : span.stop] if by_table else np.arange(len(span))
        taps = grid.skip_taps(span.axis.scale, span.axis.projection, span.offset).astype(np.float32)
        parts += [span.sources, phase.astype(np.int32), taps.ravel().view(np.int32)]
    return np.concatenate(parts)


def load_library() -> Any:
    """TensorRT, or TensorRT for RTX. Raises DeviceError where neither can be imported."""
    said = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            module = importlib.import_module(name)
            module.Builder  # noqa: B018  the package on PyPI may be without its libraries
            return module
        except (ImportError, AttributeError, OSError) as error:
            said.append(f"{name}: {reason(error)}")
    raise DeviceError(f"TensorRT is not installed ({'; '.join(said)})", "pip install tensorrt-rtx")


def describe(library: Any) -> str:
    return f"{library.__name__} {library.__version__}"


def build(library: Any, graph: bytes, largest: int) -> bytes:
    """An engine for images of 1×1 to `largest`×`largest` pixels on this GPU. Raises DeviceError."""
    logger = _logger(library)
    builder = library.Builder(logger)
    # TensorRT 11 has typed networks only, and no flag for them.
    typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise DeviceError(f"{describe(library)} cannot read this bundle's trunk: {parser.get_error(0).desc()}")
    planes = network.add_shuffle(network.get_output(0))
    planes.first_transpose = 0, 3, 1, 2  # from channels last, of which neighbouring threads would read far from each other
    network.unmark_output(network.get_output(0))
    network.mark_output(planes.get_output(0))
    planes.get_output(0).name = "features"
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("image", (1, 1, 1, 1), (1, 1, *[min(256, largest)] * 2), (1, 1, largest, largest))
    config.add_optimization_profile(profile)
    config.clear_flag(library.BuilderFlag.TF32)  # which would keep ten bits of a product
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise DeviceError(f"{describe(library)} could not build an engine: {logger.last}")
    return bytes(content)


def _logger(library: Any) -> Any:
    """TensorRT's words in this package's log; `last` is the last complaint."""

    class Logger(library.ILogger):  # type: ignore[misc]
        last = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            self.last = message if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR) else self.last
            log.debug("%s: %s", severity, message)

    return Logger()
