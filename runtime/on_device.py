"""Arrays in a GPU's memory, as PyCUDA, CuPy and torch have them: with `__cuda_array_interface__`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import measure
from .acquired import Acquired
from .engines.cuda import Array
from .engines.native import NativeEngine
from .errors import ImageError
from .intensity import Intensity, real_array
from .measure import Matrix
from .sizes import Size
from .slices import Slices, check_slice_shape, output_shape


def upscale(
    slices: Slices,
    image: Any,
    size: Size,
    acquired: Matrix,
    noise: float | None,
    grain: float,
    levels: Intensity | None,
    on_host: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> Any:
    """A slice (H, W), or the slices of one volume (N, H, W), upscaled to a new float32 array in the same memory.

    The stream that `image` names, and the legacy default stream, are waited for; what comes back is finished.
    A copy on the host tells the range and what was measured, unless `levels` and an `Acquired` do. The pixels stay on the GPU,
    but for those of which something is set aside, cropped to an acquired matrix, given back, or too fine for float32:
    `on_host` upscales a copy. Raises ImageError where the engine computes elsewhere.
    """
    native = slices.engine.on_arrays()
    part, host = Array(image), None
    if len(part.shape) not in (2, 3):
        raise ImageError(f"the image has shape {part.shape}: give (H, W) or (N, H, W)")
    check_slice_shape(part.shape[-2:])
    if levels is None or not isinstance(acquired, Acquired):
        host = to_host(native, image)
        levels = levels or Intensity.of(host)
        acquired = measure.of(host, (-2, -1), levels, acquired, noise)
    measured = acquired.along(-2, -1)
    fine = part.dtype.itemsize > 2 and part.dtype != np.float32
    if fine or grain or levels.aside or not measured.is_stored or not levels.fits_float32(np.float32):
        finished = on_host(to_host(native, image) if host is None else host)
        with native.working() as gpu:
            out = gpu.upload(finished)
            gpu.synchronise()
        return out
    rows, cols, _ = size.of(part.shape[-2:], (), 2)
    with native.working() as gpu:
        out = gpu.empty((*part.shape[:-2], *output_shape(part.shape[-2:], (rows, cols))), np.float32)
    for k in np.ndindex(part.shape[:-2]):
        slices.fill(out[k], part[k], levels, (rows, cols), measured)  # type: ignore[arg-type]
    return out


def to_host(native: NativeEngine, image: Any) -> NDArray[Any]:
    """A copy of an image. Raises ImageError where it is not of real numbers."""
    with native.working() as gpu:
        return real_array(gpu.download(gpu.borrow(image)))
