"""One NVIDIA GPU: its primary context, a stream, device memory, kernels. Nothing else in this package owns any of these.

The primary context is the one that PyTorch and ONNX Runtime use too, so all of them live in one process. It is current only
inside a call of this module, in whatever thread. PyCUDA speaks to the driver where it is installed, NVIDIA's cuda-bindings
where it is not; `Driver` is all that is asked of either.
"""

from __future__ import annotations

import contextlib
import gc
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import ClosedError, DeviceError, DeviceMemoryError, reason

_SPARE = 256 << 20  # bytes of free blocks that are kept: the next slice most often has the shape of the last


@dataclass(frozen=True)
class Properties:
    """What a GPU is."""

    name: str
    compute_capability: tuple[int, int]
    memory: int  # bytes
    driver: int  # the newest CUDA that the installed driver serves: 12080 for 12.8


class Driver(Protocol):
    """The CUDA driver, as a library gives it, for one GPU. Pointers and streams are integers.

    Every method but the first two wants the context to be current. Raises DeviceMemoryError and DeviceError.
    """

    library: str  # its name and version
    kind: str  # what ONNX Runtime calls this memory: cuda
    properties: Properties

    def enter(self) -> None:
        """Make the GPU's primary context current in this thread."""

    def leave(self) -> None:
        """Make current what was so before."""

    def release(self) -> None:
        """Let go of the primary context."""

    def allocate(self, size: int) -> int: ...
    def free(self, pointer: int) -> None: ...
    def free_bytes(self) -> int: ...
    def create_stream(self) -> int: ...
    def destroy_stream(self, stream: int) -> None: ...
    def synchronise(self, stream: int) -> None: ...
    def copy_in(self, pointer: int, array: NDArray[Any], stream: int) -> None: ...
    def copy_out(self, array: NDArray[Any], pointer: int, stream: int) -> None: ...
    def load(self, ptx: bytes, names: Sequence[str]) -> dict[str, Any]: ...

    def launch(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], stream: int, arguments: list[Any]) -> None:
        """Arguments are numpy scalars, pointers uint64."""


class Array:
    """A contiguous array in device memory. Its block goes back to the device with the last reference to it."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self._block = device.take(self.nbytes)
        self._give_back = device.give_back

    @property
    def pointer(self) -> int:
        return self._block.pointer

    def __del__(self) -> None:
        if hasattr(self, "_block"):
            self._give_back(self._block)


@dataclass(frozen=True)
class _Block:
    pointer: int
    size: int


class Device:
    """A GPU's memory and one stream, on which everything happens in order. Safe to share between threads.

    Blocks are reused rather than freed: to free one waits for the GPU. As all work is on one stream, a block whose last
    reader is still in the queue may be handed to the next writer.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.library, self.kind, self.properties = driver.library, driver.kind, driver.properties
        self._lock = threading.RLock()
        self._blocks: set[_Block] = set()  # all that were allocated
        self._spare: list[_Block] = []
        self._returned: deque[_Block] = deque()  # by the garbage collector, in any thread at any moment: no lock is taken there
        self._closed = False
        with self._current():
            self.stream = driver.create_stream()

    @contextlib.contextmanager
    def _current(self) -> Iterator[Driver]:
        with self._lock:
            if self._closed:
                raise ClosedError("this Upscaler is closed: load it again")
            self._driver.enter()
            try:
                yield self._driver
            finally:
                self._driver.leave()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Memory for an array. Raises DeviceMemoryError where the GPU has no more."""
        return Array(self, shape, dtype)

    def upload(self, array: NDArray[Any]) -> Array:
        """A copy of a host array."""
        source = np.ascontiguousarray(array)
        result = self.empty(source.shape, source.dtype)
        with self._current() as driver:
            driver.copy_in(result.pointer, source, self.stream)
        return result

    def download(self, array: Array) -> NDArray[Any]:
        """A copy of a device array, when all that was asked for before is done."""
        result = np.empty(array.shape, array.dtype)
        with self._current() as driver:
            driver.copy_out(result, array.pointer, self.stream)
            driver.synchronise(self.stream)
        return result

    def load(self, ptx: bytes, names: Sequence[str]) -> dict[str, Any]:
        """A module's kernels by name."""
        with self._current() as driver:
            return driver.load(ptx, names)

    def launch(self, kernel: Any, pixels: tuple[int, int, int], *arguments: Array | np.generic) -> None:
        """Run a kernel with a thread for each of (slices, rows, columns) pixels, after all that was asked for before."""
        slices, rows, cols = pixels
        block = (32, 8, 1)  # a warp writes 32 neighbours of a row
        grid = (-(-cols // block[0]), -(-rows // block[1]), slices)
        values = [np.uint64(a.pointer) if isinstance(a, Array) else a for a in arguments]
        with self._current() as driver:
            driver.launch(kernel, grid, block, self.stream, values)

    def synchronise(self) -> None:
        """Wait until all that was asked for is done."""
        with self._current() as driver:
            driver.synchronise(self.stream)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[int]:
        """The stream, with the context current, for a library that works on it."""
        with self._current():
            yield self.stream

    def free_bytes(self) -> int:
        """What the GPU has left for anyone."""
        with self._current() as driver:
            return driver.free_bytes()

    def take(self, size: int) -> _Block:
        """A block of at least `size` bytes, and at most a quarter more."""
        size = max(256, size)
        step = 1 << (size.bit_length() - 3)
        rounded = -(-size // step) * step
        with self._current() as driver:
            self._collect(driver, keep=_SPARE)
            for block in self._spare:
                if block.size == rounded:
                    self._spare.remove(block)
                    return block
            try:
                block = _Block(driver.allocate(rounded), rounded)
            except DeviceMemoryError:
                gc.collect()  # an error's traceback may hold the arrays of what failed before
                self._collect(driver, keep=0)
                block = _Block(driver.allocate(rounded), rounded)
            self._blocks.add(block)
            return block

    def give_back(self, block: _Block) -> None:
        """Take a block back, later: this may be called wherever the garbage collector runs."""
        self._returned.append(block)

    def _collect(self, driver: Driver, keep: int) -> None:
        """Take in what came back, and free what was not needed for longest, until at most `keep` bytes are spare."""
        while self._returned:
            self._spare.append(self._returned.popleft())
        while sum(block.size for block in self._spare) > keep:
            block = self._spare.pop(0)
            self._blocks.remove(block)
            driver.free(block.pointer)

    def close(self) -> None:
        """Free everything. Harmless when repeated; arrays that are still referred to lose their memory."""
        with self._lock:
            if self._closed:
                return
            try:
                with self._current() as driver:
                    driver.synchronise(self.stream)
                    for block in self._blocks:
                        driver.free(block.pointer)
                    driver.destroy_stream(self.stream)
            finally:  # what a broken driver did not free, it frees with the process
                self._closed = True
                self._blocks.clear()
                self._spare.clear()
                self._driver.release()


def open_driver(index: int = 0) -> Driver:
    """A GPU's driver by PyCUDA, or else by cuda-bindings. Raises DeviceError, which says what is missing."""
    from . import driver_is_installed

    if not driver_is_installed():
        raise DeviceError("no NVIDIA driver is installed here", "install one, or use device 'cpu'")
    for library in (PyCuda, CudaBindings):
        try:
            return library(index)
        except ImportError:
            pass
        except DeviceError:
            raise
        except Exception as error:  # what each of them raises where it cannot load the driver is its own
            raise DeviceError(f"the NVIDIA driver does not work ({reason(error)})", "nvidia-smi should say why") from error
    raise DeviceError("neither pycuda nor cuda-bindings is installed", "pip install cuda-bindings, or use device 'cpu'")


class PyCuda:
    """The driver by PyCUDA."""

    kind = "cuda"

    def __init__(self, index: int) -> None:
        import pycuda
        import pycuda.driver as cuda

        self._cuda = cuda
        self.library = f"PyCUDA {pycuda.VERSION_TEXT}"
        self._streams: dict[int, Any] = {}
        self._allocations: dict[int, Any] = {}
        self._modules: list[Any] = []
        with self._errors():
            cuda.init()
            device = cuda.Device(index)
            self._context = device.retain_primary_context()
            self.properties = Properties(
                device.name(), device.compute_capability(), device.total_memory(), cuda.get_driver_version()
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.MemoryError as error:
            raise DeviceMemoryError(f"the GPU is out of memory ({error})") from None
        except self._cuda.Error as error:
            raise DeviceError(f"the GPU's driver failed: {error}") from None

    def enter(self) -> None:
        self._context.push()

    def leave(self) -> None:
        self._cuda.Context.pop()

    def release(self) -> None:
        self.enter()
        self._modules.clear()
        self.leave()
        self._context.detach()

    def allocate(self, size: int) -> int:
        with self._errors():
            allocation = self._cuda.mem_alloc(size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, pointer: int) -> None:
        with self._errors():
            self._allocations.pop(pointer).free()

    def free_bytes(self) -> int:
        return int(self._cuda.mem_get_info()[0])

    def create_stream(self) -> int:
        stream = self._cuda.Stream()
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def synchronise(self, stream: int) -> None:
        with self._errors():
            self._streams[stream].synchronize()

    def copy_in(self, pointer: int, array: NDArray[Any], stream: int) -> None:
        with self._errors():
            self._cuda.memcpy_htod_async(pointer, array, self._streams[stream])

    def copy_out(self, array: NDArray[Any], pointer: int, stream: int) -> None:
        with self._errors():
            self._cuda.memcpy_dtoh_async(array, pointer, self._streams[stream])

    def load(self, ptx: bytes, names: Sequence[str]) -> dict[str, Any]:
        with self._errors():
            module = self._cuda.module_from_buffer(ptx)
            self._modules.append(module)
            return {name: module.get_function(name) for name in names}

    def launch(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], stream: int, arguments: list[Any]) -> None:
        with self._errors():
            kernel(*arguments, grid=grid, block=block, stream=self._streams[stream])


class CudaBindings:
    """The driver by NVIDIA's cuda-bindings."""

    kind = "cuda"

    def __init__(self, index: int) -> None:
        from importlib import metadata

        from cuda.bindings import driver as cuda

        self._cuda = cuda
        self.library = f"cuda-bindings {metadata.version('cuda-bindings')}"
        self._call(cuda.cuInit(0))
        self._device = self._call(cuda.cuDeviceGet(index))
        kinds = cuda.CUdevice_attribute
        capability = [
            int(self._call(cuda.cuDeviceGetAttribute(kind, self._device)))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        ]
        self.properties = Properties(
            self._call(cuda.cuDeviceGetName(256, self._device)).rstrip(b"\0").decode(),
            (capability[0], capability[1]),
            int(self._call(cuda.cuDeviceTotalMem(self._device))),
            int(self._call(cuda.cuDriverGetVersion())),
        )
        self._context = self._call(cuda.cuDevicePrimaryCtxRetain(self._device))
        self._modules: list[Any] = []

    def _call(self, result: tuple[Any, ...]) -> Any:
        """What a call of the driver returned. Raises DeviceError and DeviceMemoryError by its status."""
        status, *values = result
        if status == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceMemoryError("the GPU is out of memory")
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"the GPU's driver failed: {status.name}")
        return values[0] if values else None

    def enter(self) -> None:
        self._call(self._cuda.cuCtxPushCurrent(self._context))

    def leave(self) -> None:
        self._call(self._cuda.cuCtxPopCurrent())

    def release(self) -> None:
        self.enter()
        for module in self._modules:
            self._call(self._cuda.cuModuleUnload(module))
        self.leave()
        self._call(self._cuda.cuDevicePrimaryCtxRelease(self._device))

    def allocate(self, size: int) -> int:
        return int(self._call(self._cuda.cuMemAlloc(size)))

    def free(self, pointer: int) -> None:
        self._call(self._cuda.cuMemFree(pointer))

    def free_bytes(self) -> int:
        status, free, _ = self._cuda.cuMemGetInfo()
        return int(self._call((status, free)))

    def create_stream(self) -> int:
        return int(self._call(self._cuda.cuStreamCreate(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: int) -> None:
        self._call(self._cuda.cuStreamDestroy(stream))

    def synchronise(self, stream: int) -> None:
        self._call(self._cuda.cuStreamSynchronize(stream))

    def copy_in(self, pointer: int, array: NDArray[Any], stream: int) -> None:
        self._call(self._cuda.cuMemcpyHtoDAsync(pointer, array.ctypes.data, array.nbytes, stream))

    def copy_out(self, array: NDArray[Any], pointer: int, stream: int) -> None:
        self._call(self._cuda.cuMemcpyDtoHAsync(array.ctypes.data, pointer, array.nbytes, stream))

    def load(self, ptx: bytes, names: Sequence[str]) -> dict[str, Any]:
        image = np.frombuffer(ptx + b"\0", np.uint8)
        module = self._call(self._cuda.cuModuleLoadData(image.ctypes.data))
        self._modules.append(module)
        return {name: self._call(self._cuda.cuModuleGetFunction(module, name.encode())) for name in names}

    def launch(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], stream: int, arguments: list[Any]) -> None:
        boxes = [np.array(argument) for argument in arguments]
        pointers = np.array([box.ctypes.data for box in boxes], np.uint64)
        self._call(self._cuda.cuLaunchKernel(kernel, *grid, *block, 0, stream, pointers.ctypes.data, 0))
