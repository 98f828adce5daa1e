from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

cuda = ctypes.CDLL("libcuda.so.1")


class GPUArray:
    def __init__(self, shape: tuple[int, ...], dtype: Any, base: Any = None, gpudata: int | None = None) -> None:
        self.shape, self.dtype, self.base = tuple(shape), np.dtype(dtype), base
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize
        pointer = ctypes.c_uint64(gpudata or 0)
        if gpudata is None:
            assert not cuda.fake_allocate(ctypes.byref(pointer), ctypes.c_size_t(self.nbytes), ctypes.c_void_p(0x10))
        self.gpudata = pointer.value

    def __del__(self) -> None:
        if self.base is None:
            cuda.fake_free(ctypes.c_uint64(self.gpudata))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = {"data": (self.gpudata, False), "strides": None, "stream": None}
        return {"shape": self.shape, "typestr": self.dtype.str, "version": 3, **data}

    def get(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        assert cuda.fake_holds(ctypes.c_uint64(self.gpudata), ctypes.c_size_t(self.nbytes))
        cuda.fake_drain(None)
        cuda.fake_read(ctypes.c_void_p(out.ctypes.data), ctypes.c_uint64(self.gpudata), ctypes.c_size_t(self.nbytes))
        return out


def to_gpu(array: np.ndarray) -> GPUArray:
    assert array.flags.c_contiguous
    out = GPUArray(array.shape, array.dtype)
    cuda.fake_write(ctypes.c_uint64(out.gpudata), ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), None)
    return out
