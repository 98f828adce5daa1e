"""What a driver's library is asked for, with host memory behind it: the same tests on both; and its absence.

The names, types and statuses of cuda-bindings are the real ones; PyCUDA, which is built from source with CUDA's compiler, is
stood in for by its documentation.
"""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import DeviceError, DeviceMemoryError, engines
from runtime.engines import cuda


class FakeBindings:
    """The functions of cuda.bindings.driver that are used, on host memory: (status, value) as theirs return it."""

    def __init__(self, real: Any, limit: int) -> None:
        self.CUresult, self.CUdevice_attribute, self.CUstream_flags = (
            real.CUresult,
            real.CUdevice_attribute,
            real.CUstream_flags,
        )
        self.memory: dict[int, Any] = {}
        self.contexts: list[str] = []
        self.limit, self.released, self.launched = limit, 0, []
        for name in (name for name in vars(type(self)) if name.startswith("cu")):
            assert hasattr(real, name)

    def _ok(self, *values: Any) -> tuple[Any, ...]:
        return (self.CUresult.CUDA_SUCCESS, *values)

    def cuInit(self, flags: int) -> Any:
        return self._ok()

    def cuDeviceGet(self, ordinal: int) -> Any:
        return self._ok("device") if ordinal == 0 else (self.CUresult.CUDA_ERROR_INVALID_DEVICE, None)

    def cuDeviceGetAttribute(self, kind: Any, device: str) -> Any:
        return self._ok({"MAJOR": 8, "MINOR": 6}[kind.name.rsplit("_", 1)[1]])

    def cuDeviceGetName(self, length: int, device: str) -> Any:
        return self._ok(b"A small GPU".ljust(length, b"\0"))

    def cuDeviceTotalMem(self, device: str) -> Any:
        return self._ok(4 << 30)

    def cuDriverGetVersion(self) -> Any:
        return self._ok(12080)

    def cuDevicePrimaryCtxRetain(self, device: str) -> Any:
        return self._ok("primary")

    def cuDevicePrimaryCtxRelease(self, device: str) -> Any:
        self.released += 1
        return self._ok()

    def cuCtxPushCurrent(self, context: str) -> Any:
        self.contexts.append(context)
        return self._ok()

    def cuCtxPopCurrent(self) -> Any:
        return self._ok(self.contexts.pop())

    def cuModuleLoadData(self, image: int) -> Any:
        return self._ok(ctypes.string_at(image))

    def cuModuleUnload(self, module: bytes) -> Any:
        return self._ok()

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> Any:
        found = b".entry " + name in module
        return self._ok(name) if found else (self.CUresult.CUDA_ERROR_NOT_FOUND, None)

    def cuMemAlloc(self, size: int) -> Any:
        if size > self.limit:
            return self.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return self._ok(ctypes.addressof(block))

    def cuMemFree(self, pointer: int) -> Any:
        del self.memory[pointer]
        return self._ok()

    def cuMemGetInfo(self) -> Any:
        return self._ok(1 << 30, 4 << 30)

    def cuStreamCreate(self, flags: int) -> Any:
        return self._ok(77)

    def cuStreamDestroy(self, stream: int) -> Any:
        return self._ok()

    def cuStreamSynchronize(self, stream: int) -> Any:
        return self._ok()

    def cuMemcpyHtoDAsync(self, pointer: int, source: int, size: int, stream: int) -> Any:
        ctypes.memmove(pointer, source, size)
        return self._ok()

    def cuMemcpyDtoHAsync(self, target: int, pointer: int, size: int, stream: int) -> Any:
        ctypes.memmove(target, pointer, size)
        return self._ok()

    def cuLaunchKernel(self, kernel: bytes, *rest: Any) -> Any:
        grid, block, (shared, stream, parameters, extra) = rest[:3], rest[3:6], rest[6:]
        first = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        pointer, number = ctypes.c_uint64.from_address(first).value, ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[1]
        self.launched.append((kernel, grid, block, shared, stream, pointer, ctypes.c_int32.from_address(number).value, extra))
        return self._ok()


class FakePyCuda:
    """`pycuda.driver`, as its documentation has it."""

    class Error(Exception): ...

    class MemoryError(Error): ...

    class LogicError(Error): ...

    def __init__(self, limit: int) -> None:
        self.memory: dict[int, Any] = {}
        self.contexts: list[Any] = []
        self.limit, self.released = limit, 0
        self.launched: list[Any] = []
        fake = self

        class Context:
            def push(self) -> None:
                fake.contexts.append(self)

            @staticmethod
            def pop() -> None:
                fake.contexts.pop()

            def detach(self) -> None:
                fake.released += 1

        class Device:
            def __init__(self, index: int) -> None:
                assert index == 0

            def retain_primary_context(self) -> Context:
                return Context()

            def name(self) -> str:
                return "A small GPU"

            def compute_capability(self) -> tuple[int, int]:
                return 8, 6

            def total_memory(self) -> int:
                return 4 << 30

        class Stream:
            handle = 77

            def synchronize(self) -> None: ...

        class Allocation:
            def __init__(self, size: int) -> None:
                self.block = ctypes.create_string_buffer(size)
                fake.memory[int(self)] = self

            def __int__(self) -> int:
                return ctypes.addressof(self.block)

            def free(self) -> None:
                del fake.memory[int(self)]

        class Module:
            def __init__(self, content: bytes) -> None:
                self.content = content

            def get_function(self, name: str) -> Any:
                if f".entry {name}".encode() not in self.content:
                    raise fake.LogicError("cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND")

                def launch(*arguments: Any, grid: Any, block: Any, stream: Stream) -> None:
                    pointer, number = arguments
                    assert (pointer.dtype, number.dtype) == (np.uint64, np.int32)
                    fake.launched.append((name.encode(), grid, block, 0, stream.handle, int(pointer), int(number), 0))

                return launch

        self.Context, self.Device, self.Stream, self.module_from_buffer = Context, Device, Stream, Module
        self._allocation = Allocation

    def init(self) -> None: ...

    def get_driver_version(self) -> int:
        return 12080

    def mem_alloc(self, size: int) -> Any:
        if size > self.limit:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return self._allocation(size)

    def mem_get_info(self) -> tuple[int, int]:
        return 1 << 30, 4 << 30

    def memcpy_htod_async(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def memcpy_dtoh_async(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> FakeBindings:
    """cuda-bindings alone is installed."""
    package = pytest.importorskip("cuda.bindings")
    from cuda.bindings import driver

    fake = FakeBindings(driver, limit=1 << 20)
    monkeypatch.setattr(package, "driver", fake)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)
    return fake


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> FakePyCuda:
    """PyCUDA is installed, and preferred."""
    fake = FakePyCuda(limit=1 << 20)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(VERSION_TEXT="2026.1", driver=fake))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)
    return fake


@pytest.mark.parametrize(("library", "name"), [("bindings", "cuda-bindings "), ("pycuda", "PyCUDA 2026.1")])
def test_a_device_by_either_library(library: str, name: str, request: pytest.FixtureRequest) -> None:
    fake = request.getfixturevalue(library)
    device = cuda.Device(cuda.open_driver())
    assert device.library.startswith(name)
    assert device.properties == cuda.Properties("A small GPU", (8, 6), 4 << 30, 12080)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = device.upload(values)
    np.testing.assert_array_equal(device.download(array), values)
    kernels = device.load(b"// PTX\n.entry stage_half(", ["stage_half"])
    device.launch(kernels["stage_half"], (2, 9, 33), array, np.int32(7))
    assert fake.launched == [(b"stage_half", (2, 2, 2), (32, 8, 1), 0, 77, array.pointer, 7, 0)]
    assert device.free_bytes() == 1 << 30
    assert fake.contexts == []  # whatever was current before is so again
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        device.empty((1 << 20,), np.float32)
    with pytest.raises(DeviceError, match="CUDA_ERROR_NOT_FOUND"):
        device.load(b"", ["stage_half"])
    device.close()
    device.close()
    assert (len(fake.memory), fake.released, fake.contexts) == (0, 1, [])


def test_blocks_are_used_again(bindings: FakeBindings) -> None:
    device = cuda.Device(cuda.open_driver())
    first = device.empty((1000,), np.float32)
    pointer = first.pointer
    del first
    assert device.empty((990,), np.float32).pointer == pointer
    device.close()


def test_what_is_missing_is_said(bindings: FakeBindings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    monkeypatch.delattr(sys.modules["cuda.bindings"], "driver")
    with pytest.raises(DeviceError, match=r"neither pycuda nor cuda-bindings.*pip install cuda-bindings"):
        cuda.open_driver()
    fail = SimpleNamespace(cuInit=lambda flags: (bindings.CUresult.CUDA_ERROR_NO_DEVICE,), CUresult=bindings.CUresult)
    monkeypatch.setattr(sys.modules["cuda.bindings"], "driver", fail, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fail)
    with pytest.raises(DeviceError, match="CUDA_ERROR_NO_DEVICE"):
        cuda.open_driver()
    monkeypatch.setattr(engines, "driver_is_installed", lambda: False)
    with pytest.raises(DeviceError, match="no NVIDIA driver is installed here: install one"):
        cuda.open_driver()
