"""TensorRT: a trunk's ONNX → an engine, built once and kept, and that engine as a trunk on the GPU.

The package `tensorrt` where it is installed, or else `tensorrt_rtx`, TensorRT for RTX: the same interface, made for small GPUs,
and able to build on a machine that has none. Precision is what the graph says: neither has a switch for it any more.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from typing import TYPE_CHECKING, Any

from ..bundle import Bundle
from ..errors import DeviceError, DeviceMemoryError
from ..tiles import TILE
from . import cuda
from .cache import EngineCache
from .ort import OnnxTrunk, tensorrt_settings

if TYPE_CHECKING:
    from . import Progress
    from .gpu import Trunk

log = logging.getLogger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx")
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0))  # that TensorRT for RTX builds for ahead of time
PORTABLE = "any of " + ", ".join(f"{major}.{minor}" for major, minor in CAPABILITIES)
INSTALL = "pip install tensorrt-rtx"


def load_library(names: tuple[str, ...] = MODULES) -> Any:
    """The first of the modules that can be imported. Raises DeviceError where none can."""
    said = []
    for name in names:
        try:
            module = importlib.import_module(name)
            module.Builder  # noqa: B018  the package on PyPI may be without its libraries
            return module
        except (ImportError, AttributeError, OSError) as error:
            said.append(f"{name}: {error}")
    raise DeviceError(f"TensorRT is not installed ({'; '.join(said)})", INSTALL)


def describe(library: Any) -> str:
    return f"{library.__name__} {library.__version__}"


def open_trunk(
    device: cuda.Device, bundle: Bundle, largest: int, cache: EngineCache, progress: Progress | None, half: bool
) -> Trunk:
    """A bundle's trunk by TensorRT: with an engine that the bundle or the cache has, or one that is built now and kept.

    Without a TensorRT of Python's, ONNX Runtime's TensorRT provider serves where it can. Raises DeviceError.
    """
    graph, gpu = bundle.trunk(half), device.properties
    try:
        library = load_library()
    except DeviceError as error:
        settings = tensorrt_settings(half, largest, cache.folder(hashlib.sha256(graph).hexdigest()))
        try:
            return OnnxTrunk.load(device, graph, half, "tensorrt", settings)
        except DeviceError as also:
            raise DeviceError(f"{error.problem}; {also.problem}", error.repair) from None
    own = key(library, graph, largest, f"{gpu.name}, {gpu.compute_capability[0]}.{gpu.compute_capability[1]}")
    portable = key(library, graph, largest, PORTABLE)
    engine = bundle.engine(portable) if gpu.compute_capability in CAPABILITIES else None
    engine = engine or cache.get(own)
    if engine is None:
        log.warning("%s builds an engine for this GPU, once: this takes up to some minutes", describe(library))
        engine = build(library, graph, largest, portable=False, progress=progress)
        cache.put(own, engine)
    return TensorRtTrunk(library, device, engine, half)


def portable_engines(bundle: Bundle) -> tuple[dict[str, dict[str, str]], dict[str, bytes]]:
    """What a bundle may carry as `engines` in its manifest, and the members: an engine for all of `CAPABILITIES`, for the usual
    tiles. Needs TensorRT for RTX, and no GPU. Raises DeviceError."""
    library, name = load_library(("tensorrt_rtx",)), "engines/rtx.engine"
    graph, largest = bundle.trunk(bundle.has_half), TILE + 2 * bundle.model.radius
    return {name: key(library, graph, largest, PORTABLE)}, {name: build(library, graph, largest, portable=True)}


def key(library: Any, graph: bytes, largest: int, gpu: str) -> dict[str, str]:
    """All that an engine depends on. Precision is in the graph."""
    return {"graph": hashlib.sha256(graph).hexdigest(), "library": describe(library), "gpu": gpu, "largest": str(largest)}


def build(library: Any, graph: bytes, largest: int, portable: bool, progress: Progress | None = None) -> bytes:
    """An engine for images of 1×1 to `largest`×`largest` pixels, for the GPU here or, `portable`, for all of `CAPABILITIES`.

    Takes seconds to minutes; `progress` is told. Raises DeviceError where TensorRT refuses the graph or fails.
    """
    logger = _logger(library)
    builder = library.Builder(logger)
    # TensorRT 11 has typed networks only, and no flag for them.
    typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise DeviceError(f"{describe(library)} cannot read this bundle's trunk: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    usual = min(256, largest)
    profile.set_shape("image", (1, 1, 1, 1), (1, 1, usual, usual), (1, 1, largest, largest))
    config.add_optimization_profile(profile)
    config.clear_flag(library.BuilderFlag.TF32)  # which would keep ten bits of a product
    if portable:
        config.num_compute_capabilities = len(CAPABILITIES)
        for k, (major, minor) in enumerate(CAPABILITIES):
            config.set_compute_capability(getattr(library.ComputeCapability, f"SM{major}{minor}"), k)
    if progress is not None and hasattr(library, "IProgressMonitor"):
        config.progress_monitor = _monitor(library, progress)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise DeviceError(f"{describe(library)} could not build an engine: {logger.last}")
    return bytes(content)


class TensorRtTrunk:
    """An engine as a trunk on the GPU."""

    def __init__(self, library: Any, device: cuda.Device, engine: bytes, half: bool) -> None:
        self.half, self._device = half, device
        self.runs_on = f"{describe(library)}, {'float16' if half else 'float32'}"
        logger = _logger(library)
        with device.borrowed():
            self._runtime = library.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            self._context = self._engine and self._engine.create_execution_context()
        if self._context is None:
            kind = DeviceMemoryError if "memory" in logger.last.lower() else DeviceError
            raise kind(f"{describe(library)} cannot run its engine on this GPU: {logger.last}")
        self._logger = logger  # TensorRT does not keep it alive

    def run(self, image: cuda.Array, told: cuda.Array | None, responses: cuda.Array) -> None:
        context = self._context
        with self._device.borrowed() as stream:
            fits = context.set_input_shape("image", (1, 1, *image.shape))
            fits = fits and context.set_tensor_address("image", image.pointer)
            fits = fits and (told is None or context.set_tensor_address("told", told.pointer))
            fits = fits and context.set_tensor_address("responses", responses.pointer)
            if not fits or not context.execute_async_v3(stream):
                raise DeviceError(f"{self.runs_on}: an image of {image.shape} failed: {self._logger.last}")

    def close(self) -> None:
        with self._device.borrowed():
            del self._context, self._engine, self._runtime


def _logger(library: Any) -> Any:
    """TensorRT's words in this package's log; `last` is the last complaint."""

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.last = message
            log.debug("%s: %s", severity, message)

    return Logger()


def _monitor(library: Any, progress: Progress) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, step + 1, self._steps[name])
            return True

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

    return Monitor()
