"""Grey values ↔ the network's units, by one affine map for a whole volume, so that no slice flickers against its neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .errors import ImageError

_TAIL_PERCENT = 0.1  # a few hot voxels must not darken everything else
_LARGEST_FLOAT, _LARGEST_INTEGER = float(np.finfo(np.float32).max), 2**53  # what float32 and float64 can carry through


@dataclass(frozen=True)
class Intensity:
    """`black` becomes 0 and `white` becomes 1; an output never leaves the input's own range [low, high]."""

    low: float
    high: float
    black: float
    white: float

    @classmethod
    def of(cls, volume: NDArray[Any], inverted: bool = False) -> Intensity:
        """The range of an array of any shape; `inverted` where larger numbers stand for darker pixels.

        Raises ImageError for NaN or infinity, and says where it is, and for values too large to be computed with.
        """
        if volume.dtype.kind == "f" and not np.isfinite(volume).all():
            where = tuple(int(k) for k in np.argwhere(~np.isfinite(volume))[0])
            raise ImageError(f"the value at index {where} is {volume[where]}: replace NaN and infinity before upscaling")
        low, high = volume.min().item(), volume.max().item()
        limit = _LARGEST_FLOAT if volume.dtype.kind == "f" else _LARGEST_INTEGER
        if max(-low, high) > limit:
            raise ImageError(f"values from {low} to {high} go beyond ±{limit:g}, where digits are lost: divide them first")
        low, high = float(low), float(high)
        tail = np.percentile(volume.astype(exact_float(volume.dtype)), _TAIL_PERCENT if inverted else 100 - _TAIL_PERCENT)
        black, white = (high, low) if inverted else (low, high)
        return cls(low, high, black, float(tail) if tail != black else white)

    def normalise(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Any real dtype → float32 with black at 0 and white at 1; a constant image becomes 0."""
        unit: NDArray[Any] = (image.astype(exact_float(image.dtype)) - self.black) / ((self.white - self.black) or 1.0)
        return unit.astype(np.float32, copy=False)

    def restore(self, unit: NDArray[np.float32], dtype: DTypeLike) -> NDArray[Any]:
        """The inverse, clipped to [low, high], in `dtype`; integers are rounded and clipped, never wrapped."""
        dtype = np.dtype(dtype)
        grey = unit.astype(exact_float(dtype)) * (self.white - self.black) + self.black
        return to_dtype(np.clip(grey, self.low, self.high, out=grey), dtype)


def exact_float(dtype: np.dtype[Any]) -> np.dtype[np.floating[Any]]:
    """A float type that loses nothing of a small contrast on a large offset, nor overflows between the ends of a range."""
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def to_dtype(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Real values in another dtype: integers are rounded to even and clipped to what they can hold, never wrapped."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and values.dtype != dtype:
        limits = np.iinfo(dtype)
        low: Any
        top: Any
        if values.dtype.kind == "f":
            low, top = values.dtype.type(limits.min), values.dtype.type(limits.max)
            if int(top) > limits.max:  # float32(2**31 - 1) is 2**31, which would wrap
                top = np.nextafter(top, values.dtype.type(0))
            values = np.rint(values)
        else:
            own = np.iinfo(values.dtype)
            low, top = max(limits.min, own.min), min(limits.max, own.max)
        values = np.clip(values, low, top)
    converted: NDArray[Any] = values.astype(dtype, copy=False)
    return converted


def real_array(image: ArrayLike) -> NDArray[Any]:
    """`image` as an array of real numbers in native byte order. Raises ImageError for anything else."""
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise ImageError(f"the image is no array ({error}): give rows of equal length") from None
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ImageError(f"pixels of type {array.dtype} cannot be upscaled: give integers or floats")
    if not array.size:
        raise ImageError(f"the image is empty (shape {array.shape}): there is nothing to upscale")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
