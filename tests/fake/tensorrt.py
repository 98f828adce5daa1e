"""A TensorRT for tests, on the memory of libcuda.cpp: an engine is the ONNX graph, ONNX Runtime on the CPU runs it.

It refuses what TensorRT refuses, and what would show only on a GPU: memory that is not there, work without a context.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np
import onnxruntime

__version__ = "10.13.0"
_cuda = ctypes.CDLL("libcuda.so.1")
_MAGIC = b"an engine: "
alive: list[str] = []  # names of contexts, engines and runtimes


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = "internal error", "error", "warning"


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 0


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class Network:
    """The graph's outputs; what is in it, it does not know."""

    def __init__(self) -> None:
        self.graph, self.outputs = b"", []
        self.get_output, self.unmark_output = self.outputs.__getitem__, self.outputs.remove


class Builder:
    def __init__(self, logger: ILogger) -> None: ...

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> dict[str, Any]:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        assert _cuda.fake_context() == 1
        assert network.outputs == ["features"]
        assert config.cleared == [BuilderFlag.TF32]
        return _MAGIC + str(config.profile["image"][2][2]).encode() + b"\n" + network.graph


class Config:
    def __init__(self) -> None:
        self.cleared: list[BuilderFlag] = []

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: dict[str, Any]) -> None:
        self.profile = profile


class Profile(dict[str, Any]):
    def set_shape(self, name: str, *shapes: Any) -> None:
        self[name] = shapes


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network = network

    def parse(self, graph: bytes) -> bool:
        self._network.graph = graph
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._network.outputs.extend(output.name for output in session.get_outputs())
        return True


class Runtime:
    def __init__(self, logger: Any) -> None:
        assert _cuda.fake_context() == 1
        self.logger = logger

    def deserialize_cuda_engine(self, engine: bytes) -> Engine | None:
        if not engine.startswith(_MAGIC):
            self.logger.log(ILogger.ERROR, "the serialization does not match: memory of another engine")
            return None
        return Engine(engine, self.logger)


class Engine:
    def __init__(self, engine: bytes, logger: Any) -> None:
        largest, _, graph = engine.removeprefix(_MAGIC).partition(b"\n")
        self.largest, self.logger = int(largest), logger
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._shape = engine, (0, 0, 0, 0)
        self._memory: tuple[int, int] | None = None
        self._addresses: dict[str, int] = {}
        alive.append("context")

    def __del__(self) -> None:
        alive.remove("context")
        assert _cuda.fake_context() != 2  # without one, CUDA's runtime takes the primary one

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._memory = None
        if max(shape) > self._engine.largest:
            self._engine.logger.log(ILogger.ERROR, f"{name}: {shape} is beyond the profile")
            return False
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in ["features", *(value.name for value in self._engine.session.get_inputs())]

    def update_device_memory_size_for_shapes(self) -> int:
        return int(256 * np.prod(self._shape))

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes()
        self._memory = address, size

    def execute_async_v3(self, stream: int) -> bool:
        if failing:
            self._engine.logger.log(ILogger.ERROR, failing[0])
            return False
        assert _cuda.fake_context() == 1
        assert self._memory
        _cuda.fake_drain(ctypes.c_void_p(stream))
        ctypes.memset(*self._at(*self._memory), 0xFF, self._memory[1])
        height, width = self._shape[2:]
        feeds = {"image": self._array("image", self._shape, np.float32)}
        if len(self._engine.session.get_inputs()) > 1:
            feeds["told"] = self._array("told", (3,), np.float32)
        (values,) = self._engine.session.run(["features"], feeds)
        features = self._array("features", values.shape, values.dtype)
        features[...] = values
        if overflowing and values.dtype == np.float16:
            features[0, 3, height // 2, width // 2] = np.inf
        return True

    def _at(self, address: int, size: int) -> tuple[int]:
        assert _cuda.fake_holds(ctypes.c_uint64(address), ctypes.c_size_t(size)), "no memory of the GPU"
        return (address,)

    def _array(self, name: str, shape: Any, dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        (address,) = self._at(self._addresses[name], size)
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


failing: list[str] = []  # what the next images fail with
overflowing: list[bool] = []
