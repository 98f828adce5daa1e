"""Arrays in a GPU's memory, as PyCUDA, CuPy and torch have them: with `__cuda_array_interface__`."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import measure
from .engines import DeviceEngine
from .errors import ImageError
from .intensity import Intensity, real_array
from .measure import Matrix
from .sizes import Size
from .slices import Slices, check_slice_shape, output_shape


class Part:
    """A part of an array in a GPU's memory, of the array's own face; slices and numbers give parts of it."""

    def __init__(self, array: Any) -> None:
        self._owner = array
        # numpy works out where a part lies, and reads none of it.
        self._at = np.asarray(_Face(dict(array.__cuda_array_interface__)))

    def __getitem__(self, index: Any) -> Part:
        part = object.__new__(Part)
        part._owner, part._at = self._owner, self._at[index]
        return part

    @property
    def shape(self) -> tuple[int, ...]:
        return self._at.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._at.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        own = self._at.__array_interface__
        part = {name: own[name] for name in ("shape", "typestr", "data")} | {"strides": self._at.strides}
        return dict(self._owner.__cuda_array_interface__) | part


class _Face:
    def __init__(self, face: dict[str, Any]) -> None:
        self.__array_interface__ = {name: face.get(name) for name in ("shape", "typestr", "data", "strides")} | {"version": 3}


def upscale(slices: Slices, image: Any, size: Size, acquired: Matrix, noise: float | None, grain: float, on_host: Any) -> Any:
    """A slice (H, W), or the slices of one volume (N, H, W), upscaled to a new float32 array in the same memory.

    Its range and what was measured are found on a copy on the host. The pixels stay on the GPU, but for those of which
    something is set aside, cropped to an acquired matrix, given back, or too fine for float32: `on_host` upscales that copy.
    Raises ImageError where the engine computes elsewhere.
    """
    engine = slices.engine
    if not isinstance(engine, DeviceEngine):
        raise ImageError(f"the image is in a GPU's memory, and {engine.device} computes: copy it to the host, or load tensorrt")
    host = real_array(engine.to_host(image))
    if host.ndim not in (2, 3):
        raise ImageError(f"the image has shape {host.shape}: give (H, W) or (N, H, W)")
    check_slice_shape(host.shape[-2:])
    intensity = Intensity.of(host)
    measured = measure.of(host, (-2, -1), intensity, acquired, noise).along(-2, -1)
    plain = measured.is_stored and not grain and not intensity.aside and intensity.fits_float32(np.float32)
    if not plain or (host.dtype.itemsize > 2 and host.dtype != np.float32):
        return engine.upload(on_host(host))
    rows, cols, _ = size.of(host.shape[-2:], (), 2)
    out = engine.empty((*host.shape[:-2], *output_shape(host.shape[-2:], (rows, cols))))
    for k in np.ndindex(host.shape[:-2]):
        source: Any = Part(image)[k]
        target: Any = Part(out)[k]
        slices.fill(target, source, intensity, (rows, cols), measured)
    return out
