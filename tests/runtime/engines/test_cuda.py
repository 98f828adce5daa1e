"""What a driver's library is asked for, on the real one's names and types with host memory behind them; and its absence."""

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


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBindings:
    bindings = pytest.importorskip("cuda.bindings")
    from cuda.bindings import driver

    fake = FakeBindings(driver, limit=1 << 20)
    monkeypatch.setattr(bindings, "driver", fake)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)
    return fake


def test_a_device_by_cuda_bindings(fake: FakeBindings) -> None:
    device = cuda.Device(cuda.open_driver())
    assert device.library.startswith("cuda-bindings ")
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


def test_blocks_are_used_again(fake: FakeBindings) -> None:
    device = cuda.Device(cuda.open_driver())
    first = device.empty((1000,), np.float32)
    pointer = first.pointer
    del first
    assert device.empty((990,), np.float32).pointer == pointer
    device.close()


def test_what_is_missing_is_said(fake: FakeBindings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    monkeypatch.delattr(sys.modules["cuda.bindings"], "driver")
    with pytest.raises(DeviceError, match=r"neither pycuda nor cuda-bindings.*pip install 'metasrgan-edge\[gpu\]'"):
        cuda.open_driver()
    fail = SimpleNamespace(cuInit=lambda flags: (fake.CUresult.CUDA_ERROR_NO_DEVICE,), CUresult=fake.CUresult)
    monkeypatch.setattr(sys.modules["cuda.bindings"], "driver", fail, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fail)
    with pytest.raises(DeviceError, match="CUDA_ERROR_NO_DEVICE"):
        cuda.open_driver()
    monkeypatch.setattr(engines, "driver_is_installed", lambda: False)
    with pytest.raises(DeviceError, match="no NVIDIA driver is installed here: install one"):
        cuda.open_driver()
