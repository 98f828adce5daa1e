"""TensorRT for the trunk: the package `tensorrt` where it is installed, or else `tensorrt_rtx`, made for small GPUs.

Precision is what the graph says: neither has a switch for it any more.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import DeviceError, reason
from .cache import EngineCache
from .cuda import Array
from .native import NativeEngine

log = logging.getLogger(__name__)


class TensorRtEngine(NativeEngine):
    """The native engine with TensorRT's trunk."""

    device = "tensorrt"

    def __init__(self, bundle: Bundle, tile: int, cache_dir: Path | None = None) -> None:
        """For images of `tile` pixels an axis and their halo. Raises DeviceError, which says what is missing."""
        self._largest, self._cache = tile + 2 * bundle.model.radius, EngineCache(cache_dir)
        self._library = load_library()
        self._logger = _logger(self._library)  # which TensorRT does not keep alive
        super().__init__(bundle, describe(self._library))

    def _open_trunk(self, graph: bytes) -> Any:
        """The context of an engine that the cache has, or that is built now and kept."""
        library, gpu = self._library, self._gpu
        of = describe(library), gpu.name, *gpu.capability, self._largest, hashlib.sha256(graph).hexdigest()
        content = self._cache.get(" ".join(map(str, of)), lambda: build(library, graph, self._largest))
        engine = library.Runtime(self._logger).deserialize_cuda_engine(content)
        context = engine and engine.create_execution_context(library.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceError(f"{self.runs_on} cannot load its engine: {self._logger.last}", "metasrgan cache --clear")
        return context

    def _run(self, trunk: Any, tensors: Mapping[str, Array]) -> None:
        """TensorRT works in memory as large as this image needs."""
        shape = tensors["image"].shape
        fits = trunk.set_input_shape("image", shape)
        if fits and all(trunk.set_tensor_address(name, array.pointer) for name, array in tensors.items()):
            memory = self._gpu.empty((trunk.update_device_memory_size_for_shapes(),), np.uint8)
            trunk.set_device_memory(memory.pointer, memory.nbytes)
            if trunk.execute_async_v3(int(self._gpu.stream)):
                return
        raise DeviceError(f"{self.runs_on}: an image of {shape[2:]} failed: {self._logger.last}")


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
    """An engine for images of 1×1 to `largest`×`largest` pixels on this GPU; needs none with RTX. Raises DeviceError."""
    log.warning("%s builds an engine for this GPU, once: this takes up to some minutes", describe(library))
    logger = _logger(library)
    builder = library.Builder(logger)
    # TensorRT 11 has typed networks only, and no flag for them.
    typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise DeviceError(f"{describe(library)} cannot read this bundle's trunk: {parser.get_error(0).desc()}")
    network.unmark_output(network.get_output(0))  # "responses": they are in "features" too
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
