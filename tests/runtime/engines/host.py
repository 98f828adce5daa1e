"""A GPU without a GPU: the driver's interface on host memory, and stage.cu compiled for the host."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from runtime import engines
from runtime.bundle import Bundle
from runtime.engines import cuda, gpu, ort
from runtime.errors import DeviceMemoryError
from runtime.phases import WeightPredictor

FOLDER = Path(__file__).parent


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """The kernels of stage.cu as a library for the host; skips the test where there is no compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: the kernel's source is compiled for the host")
    library = folder / "stage.so"
    source = Path(engines.__file__).parent
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{source}"]
    subprocess.run([compiler, *flags, str(FOLDER / "host.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class HostDriver:
    """`cuda.Driver` on host memory. Counts what is alive; `limit` bytes are all there are."""

    library, kind = "host", "cpu"
    properties = cuda.Properties("a host", (7, 5), 1 << 30, 12000)

    def __init__(self, kernels: ctypes.CDLL, limit: int = 1 << 40) -> None:
        self._kernels, self.limit = kernels, limit
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.depth = self.streams = self.most = 0
        self.released = False

    @property
    def used(self) -> int:
        return sum(block.nbytes for block in self.memory.values())

    def enter(self) -> None:
        assert not self.released
        self.depth += 1

    def leave(self) -> None:
        self.depth -= 1

    def release(self) -> None:
        assert self.depth == 0
        assert not self.released
        self.released = True

    def allocate(self, size: int) -> int:
        assert self.depth
        if self.used + size > self.limit:
            raise DeviceMemoryError("the GPU is out of memory")
        block = np.full(size, 0xFF, np.uint8)  # which is NaN: whoever reads what nobody wrote is found out
        self.memory[block.ctypes.data] = block
        self.most = max(self.most, self.used)
        return block.ctypes.data

    def free(self, pointer: int) -> None:
        assert self.depth
        del self.memory[pointer]

    def free_bytes(self) -> int:
        return self.limit - self.used

    def create_stream(self) -> int:
        assert self.depth
        self.streams += 1
        return 1

    def destroy_stream(self, stream: int) -> None:
        assert self.depth
        self.streams -= 1

    def synchronise(self, stream: int) -> None:
        assert self.depth

    def copy_in(self, pointer: int, array: NDArray[Any], stream: int) -> None:
        assert self.depth
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def copy_out(self, array: NDArray[Any], pointer: int, stream: int) -> None:
        assert self.depth
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def load(self, ptx: bytes, names: Sequence[str]) -> dict[str, Any]:
        assert all(f".entry {name}(".encode() in ptx for name in names)
        return {name: name for name in names}

    def launch(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], stream: int, arguments: list[Any]) -> None:
        assert self.depth
        boxes = [np.array(argument) for argument in arguments]
        pointers = np.array([box.ctypes.data for box in boxes], np.uint64)
        sizes = [np.array(size, np.int32) for size in (grid, block)]
        assert not self._kernels.launch(kernel.encode(), *(ctypes.c_void_p(array.ctypes.data) for array in (*sizes, pointers)))


def load(bundle: Bundle, driver: HostDriver, half: bool, predictor: WeightPredictor | None = None) -> gpu.GpuEngine:
    """The GPU's engine on the host, its trunk by ONNX Runtime on memory that stays where it is."""
    device = cuda.Device(driver)

    def trunk(half: bool) -> ort.OnnxTrunk:
        session = onnxruntime.InferenceSession(bundle.trunk(half), providers=["CPUExecutionProvider"])
        return ort.OnnxTrunk(device, session, half, "onnxruntime on the host")

    predictor = predictor or bundle.predictor()
    return gpu.GpuEngine("cuda", bundle.model, predictor, device, trunk(half), lambda: trunk(False))
