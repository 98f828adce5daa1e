"""One NVIDIA GPU by NVIDIA's cuda-bindings: its primary context, one stream, memory, kernels.

The primary context is the one that PyTorch, CuPy and `pycuda.autoprimaryctx` use too. The stream waits for the legacy default
stream, on which most of them work. Memory comes from a pool in the stream's order: nothing waits for it.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import DeviceError, DeviceMemoryError, ImageError, reason

_SPARE = 256 << 20  # bytes of free memory that the pool keeps: the next slice most often has the shape of the last
_BLOCK = 32, 8, 1  # threads: a warp writes 32 neighbours of a row
_REPAIRS = {
    "CUDA_ERROR_NO_DEVICE": "nvidia-smi should list a GPU",
    "CUDA_ERROR_NOT_SUPPORTED": "install a newer NVIDIA driver",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "install an NVIDIA driver of version 525 or later",
}


class Array:
    """An array in a GPU's memory that `owner` holds, with the owner's `__cuda_array_interface__`; indices give parts of it."""

    def __init__(self, owner: Any, at: NDArray[Any] | None = None) -> None:
        if at is None:  # numpy works out where parts lie, and reads none of them
            face = owner.__cuda_array_interface__
            place = {name: face.get(name) for name in ("shape", "typestr", "data", "strides")} | {"version": 3}
            at = np.asarray(SimpleNamespace(__array_interface__=place))
        self._owner, self._at, self.pointer = owner, at, at.ctypes.data
        self.shape, self.dtype, self.strides, self.nbytes = at.shape, at.dtype, at.strides, at.nbytes

    def __getitem__(self, index: Any) -> Array:
        return Array(self._owner, self._at[index])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        own = {"shape": self.shape, "data": self._at.__array_interface__["data"], "strides": self.strides}
        return dict(self._owner.__cuda_array_interface__) | own


class _Memory(SimpleNamespace):
    """That of a new array: a weak reference to it tells when nobody needs it any more."""


class Device:
    """The GPU, released with the last reference to it or to an array of it. All but `memory` wants `current`."""

    def __init__(self) -> None:
        """Raises DeviceError, which says what is missing."""
        try:
            from cuda.bindings import driver as cuda

            cuda.cuInit(0)
        except Exception as error:  # each version of the package raises its own where there is no driver
            repair = "pip install cuda-bindings" if isinstance(error, ImportError) else "install an NVIDIA driver"
            raise DeviceError(f"cuda-bindings cannot be used ({reason(error)})", repair) from None
        self.cuda, self._release = cuda, contextlib.ExitStack()
        self.call("cuInit", 0)
        gpu, kinds = self.call("cuDeviceGet", 0), cuda.CUdevice_attribute
        self.name: str = self.call("cuDeviceGetName", 256, gpu).rstrip(b"\0").decode()
        both = (getattr(kinds, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        self.capability = tuple(int(self.call("cuDeviceGetAttribute", kind, gpu)) for kind in both)
        self.driver = int(self.call("cuDriverGetVersion"))  # the newest CUDA that it serves: 12080 for 12.8
        self._context = self.call("cuDevicePrimaryCtxRetain", gpu)
        self._release.callback(cuda.cuDevicePrimaryCtxRelease, gpu)
        self._release.callback(cuda.cuCtxPopCurrent)
        with self.current():
            self.stream = self.call("cuStreamCreate", cuda.CUstream_flags.CU_STREAM_DEFAULT)
            self._release.callback(cuda.cuStreamDestroy, self.stream)
            kind = cuda.CUmemPoolProps()
            kind.allocType = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
            kind.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            self.pool = self.call("cuMemPoolCreate", kind)
            self._release.callback(cuda.cuMemPoolDestroy, self.pool)
            keep = cuda.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
            self.call("cuMemPoolSetAttribute", self.pool, keep, cuda.cuuint64_t(_SPARE))

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self.cuda.cuCtxPushCurrent(self._context)
            self._release.close()

    def call(self, name: str, *arguments: Any) -> Any:
        """What a function of the driver returns. Raises DeviceMemoryError and DeviceError by its status."""
        status, *values = getattr(self.cuda, name)(*arguments)
        if status == self.cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceMemoryError("the GPU is out of memory")
        if status != self.cuda.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"the NVIDIA driver failed at {name}: {status.name}", _REPAIRS.get(status.name, ""))
        return values[0] if len(values) == 1 else values

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """The primary context is current in this thread, and then again what was so before."""
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def memory(self) -> tuple[int, int]:
        """Bytes that are free for anyone, and all."""
        with self.current():
            free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """A new array in C order. Its memory goes back with the last part of it, when all that was asked for is done."""
        kind = np.dtype(dtype)
        pointer = int(self.call("cuMemAllocFromPoolAsync", max(math.prod(shape) * kind.itemsize, 1), self.pool, self.stream))
        face = {"shape": shape, "typestr": kind.str, "data": (pointer, False), "version": 3}
        memory = _Memory(__cuda_array_interface__=face)
        weakref.finalize(memory, self._free, pointer)  # in whatever thread collects garbage
        return Array(memory)

    def _free(self, pointer: int) -> None:
        self.cuda.cuMemFreeAsync(pointer, self.stream)

    def upload(self, array: NDArray[Any]) -> Array:
        """A copy of a host array, which may change at once; the copy is there when all that was asked for is done."""
        array = np.ascontiguousarray(array)
        copy = self.empty(array.shape, array.dtype)
        self.call("cuMemcpyHtoDAsync", copy.pointer, array.ctypes.data, array.nbytes, self.stream)
        return copy

    def borrow(self, array: Any) -> Array:
        """Another library's array, when its stream is done. Raises DeviceError and ImageError."""
        face, borrowed = array.__cuda_array_interface__, Array(array)
        if face.get("mask") is not None or min(borrowed.strides, default=0) < 0:
            raise ImageError("the array on the GPU has a mask or negative strides: give a plain copy")
        context, kind = -1, self.cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT
        with contextlib.suppress(DeviceError):  # of what is no GPU's memory
            context = int(self.call("cuPointerGetAttribute", kind, borrowed.pointer))
        if context not in (0, int(self._context)):  # a pool's memory has none
            repair = "with PyCUDA, import pycuda.autoprimaryctx in place of pycuda.autoinit"
            raise DeviceError(f"the array is not in the primary context of {self.name}", repair)
        if stream := face.get("stream"):
            self.call("cuStreamSynchronize", self.cuda.CUstream(stream))
        return borrowed

    def download(self, array: Array) -> NDArray[Any]:
        """A copy on the host, when all that was asked for is done."""
        last = sum((n - 1) * step for n, step in zip(array.shape, array.strides))
        content = np.empty(last + array.dtype.itemsize, np.uint8)
        self.call("cuMemcpyDtoHAsync", content.ctypes.data, array.pointer, content.nbytes, self.stream)
        self.synchronise()
        return np.ndarray(array.shape, array.dtype, content, strides=array.strides)

    def synchronise(self) -> None:
        """Wait until all that was asked for is done."""
        self.call("cuStreamSynchronize", self.stream)

    def load(self, ptx: bytes, *names: str) -> dict[str, Any]:
        """A module's kernels by name."""
        image = np.frombuffer(ptx + b"\0", np.uint8)
        module = self.call("cuModuleLoadData", image.ctypes.data)
        self._release.callback(self.cuda.cuModuleUnload, module)
        return {name: self.call("cuModuleGetFunction", module, name.encode()) for name in names}

    def launch(self, kernel: Any, shape: tuple[int, ...], struct: NDArray[Any]) -> None:
        """Run a kernel, whose one argument is a struct, with a thread for each of (rows, columns) pixels."""
        blocks = -(-shape[1] // _BLOCK[0]), -(-shape[0] // _BLOCK[1]), 1
        pointers = np.array([struct.ctypes.data], np.uint64)
        self.call("cuLaunchKernel", kernel, *blocks, *_BLOCK, 0, self.stream, pointers.ctypes.data, 0)
