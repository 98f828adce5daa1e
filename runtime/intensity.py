"""Grey values ↔ the network's units, by one affine map for a whole volume, so that no slice flickers against its neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .errors import ImageError

_TAIL_PERCENT = 0.1  # a few odd voxels must not darken or flatten everything else
_DARKER, _BRIGHTER = 0.75, 20.0  # times white less black: how far a value may lie beyond black, and beyond white
_BOTTOM = 0.01  # of the values: so many that are black itself are the background, and nothing is darker
_BELOW, _ABOVE = 5.0, 20.0  # times the range of all other values: how far a fill value lies below or above them
_OFFSET = 4.0  # times white less black: how far black and white may lie from 0 in float32, which has 1.2e-7 of each number
_LARGEST_FLOAT, _LARGEST_INTEGER = float(np.finfo(np.float32).max), 2**53  # what float32 and float64 can carry through


@dataclass(frozen=True)
class Intensity:
    """`black` becomes 0 and `white` becomes 1; an output never leaves the input's own range [low, high].

    Values beyond `floor` and `ceiling`, and NaN, are set aside: padding, fill values, dead voxels. There are `aside` of them.
    They count as black, and `put_back` gives the output their own values. Outputs are value·slope + inter.
    """

    low: float
    high: float
    black: float
    white: float
    floor: float = -np.inf
    ceiling: float = np.inf
    aside: int = 0
    slope: float = 1.0
    inter: float = 0.0
    padding: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, volume: NDArray[Any], inverted: bool = False, nan: bool = False, padding: tuple[float, float] | None = None
    ) -> Intensity:
        """The range of an array of any shape; `inverted` if larger numbers are darker.

        NaN, with `nan`, and values from … to … of `padding` stand for no value. Raises ImageError for other NaN and for
        infinity, and says where, and for values too large to be computed with.
        """
        values = volume.ravel("K")
        if volume.dtype.kind == "f":
            bad = np.isinf(volume) if nan else ~np.isfinite(volume)
            if bad.any():
                where = tuple(int(k) for k in np.argwhere(bad)[0])
                raise ImageError(f"the value at index {where} is {volume[where]}: replace NaN and infinity before upscaling")
            values = values[~np.isnan(values)] if nan else values
        if padding:
            values = values[(values < padding[0]) | (values > padding[1])]
        if not values.size:
            raise ImageError("all values are NaN or padding: there is nothing to upscale")
        values, ends = _without_fill(values)
        lowest, highest = values.min().item(), values.max().item()
        limit = _LARGEST_FLOAT if volume.dtype.kind == "f" else _LARGEST_INTEGER
        if max(-lowest, highest) > limit:
            raise ImageError(
                f"values from {lowest} to {highest} go beyond ±{limit:g}, where digits are lost: divide them first"
            )
        low, high = float(lowest), float(highest)
        black, white = (ends if ends[0] < ends[1] else (low, high))[:: -1 if inverted else 1]
        darker = 0.0 if np.count_nonzero(values == black) > _BOTTOM * values.size else _DARKER
        floor, ceiling = sorted((black - (white - black) * darker, white + (white - black) * _BRIGHTER))
        if low < floor or high > ceiling:
            with np.errstate(over="ignore"):  # the limits may lie beyond what float16 holds
                values = values[(values >= floor) & (values <= ceiling)]
            low, high = float(values.min()), float(values.max())
        return cls(low, high, black, white, floor, ceiling, volume.size - values.size, padding=padding)

    @property
    def width(self) -> float:
        """How far white lies from black; 0 of a constant image."""
        return abs(self.white - self.black)

    @property
    def said(self) -> str:
        """One line about the values that are set aside."""
        return (
            f"{self.aside:,} values are NaN, padding or beyond {self.floor:g} to {self.ceiling:g}, far from all others: "
            "they are kept as they are, and do not count for black and white"
        )

    def fits_float32(self, dtype: DTypeLike) -> bool:
        """Whether grey values in `dtype` come out right, to 5e-7 of white less black, where float32 computes them."""
        wide = np.dtype(dtype).itemsize > 2 and dtype != np.float32
        near = max(abs(self.black), abs(self.white)) <= _OFFSET * self.width and 1e-30 < self.width < 1e30
        return near and not wide and (self.slope, self.inter) == (1, 0)

    def is_aside(self, image: NDArray[Any]) -> NDArray[np.bool_]:
        """Where an image has values that are set aside."""
        with np.errstate(over="ignore"):
            aside = ~((image >= self.floor) & (image <= self.ceiling))
        return aside | ((image >= self.padding[0]) & (image <= self.padding[1])) if self.padding else aside

    def filled(self, image: NDArray[Any]) -> NDArray[Any]:
        """The image with black in place of the values that are set aside."""
        return np.where(self.is_aside(image), image.dtype.type(self.black), image) if self.aside else image

    def normalise(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Any real dtype → float32 with black at 0 and white at 1; a constant image becomes 0."""
        if self is UNIT and image.dtype == np.float32:
            return image
        unit = self.filled(image).astype(exact_float(image.dtype))
        unit -= self.black
        unit /= (self.white - self.black) or 1.0
        return unit.astype(np.float32, copy=False)

    def normalise_output(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """The same of values as an output has them, in which nothing is set aside."""
        black, white = (value * self.slope + self.inter for value in (self.black, self.white))
        return replace(self, black=black, white=white, aside=0).normalise(pixels)

    def put_back(self, out: NDArray[Any], image: NDArray[Any], sources: Sequence[NDArray[np.int64]]) -> None:
        """Give the values of `image` that are set aside to all pixels of `out` whose source they are.

        `sources` are the source pixels of each axis of `out`.
        """
        for row, source in enumerate(sources[0] if self.aside else ()):
            values = image[source][np.ix_(*sources[1:])]
            np.copyto(out[row], self.real(values, out.dtype), where=self.is_aside(values))

    def restore(self, unit: NDArray[np.float32], dtype: DTypeLike) -> NDArray[Any]:
        """The inverse of `normalise`, clipped to [low, high], as an output has it, in `dtype`."""
        plain = (self.slope, self.inter) == (1, 0)
        grey = unit.astype(exact_float(np.dtype(dtype)) if plain else np.float64) * (self.white - self.black) + self.black
        return self.real(np.clip(grey, self.low, self.high, out=grey), dtype)

    def real(self, values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """Values as an output has them, in `dtype`."""
        return to_dtype(rescaled(values, self.slope, self.inter), dtype)


UNIT = Intensity(-np.inf, np.inf, black=0.0, white=1.0)  # of what is in units already


def _without_fill(values: NDArray[Any]) -> tuple[NDArray[Any], list[float]]:
    """Values (n,) without fill values, which are frequent, not 0, and far from all others; and the ends of their range."""
    kept, ends = values, _ends(values)
    for end, extreme, far in zip(ends, (values.min(), values.max()), (_BELOW, _ABOVE)):
        if end == extreme != 0:
            rest = kept[kept != extreme]
            low, high = (float(rest.min()), float(rest.max())) if rest.size else (0.0, 0.0)
            if min(abs(float(extreme) - low), abs(float(extreme) - high)) > far * (high - low) > 0:
                kept = rest
    return kept, ends if kept is values else _ends(kept)


def _ends(values: NDArray[Any]) -> list[float]:
    """The percentiles that count as black and white, as `numpy.percentile` gives them of floats, without a copy in floats."""
    last = values.size - 1
    places = [last * percent / 100 for percent in (_TAIL_PERCENT, 100 - _TAIL_PERCENT)]
    near = np.array([(int(place), min(int(place) + 1, last)) for place in places])
    pairs = np.partition(values, np.unique(near))[near].astype(np.float64).tolist()
    return [low + (high - low) * (place % 1) for (low, high), place in zip(pairs, places)]


def rescaled(values: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """values·slope + inter; the values themselves where that changes nothing."""
    return values if (slope, inter) == (1, 0) else values * slope + inter


def exact_float(dtype: np.dtype[Any]) -> np.dtype[np.floating[Any]]:
    """A float type that loses nothing of a small contrast on a large offset, nor overflows between the ends of a range."""
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def to_dtype(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Real values in another dtype: integers are rounded to even and clipped to what they can hold, never wrapped."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" and values.dtype != dtype:
        limits = np.iinfo(dtype)
        if values.dtype.kind == "f":
            low, top = values.dtype.type(limits.min), values.dtype.type(limits.max)
            if int(top) > limits.max:  # float32(2**31 - 1) is 2**31, which would wrap
                top = np.nextafter(top, values.dtype.type(0))
            values = np.rint(values)
            np.clip(values, low, top, out=values)
        else:
            own = np.iinfo(values.dtype)
            values = np.clip(values, max(limits.min, own.min), min(limits.max, own.max))
    converted: NDArray[Any] = values.astype(dtype, copy=False)
    return converted


def real_array(image: ArrayLike) -> NDArray[Any]:
    """`image` as an array of real numbers in native byte order. Raises ImageError for anything else."""
    if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise ImageError("the image is a masked array: give it with its masked values filled, .filled(0)")
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise ImageError(f"the image is no array ({error}): give rows of equal length") from None
    if array.dtype.names:
        raise ImageError(
            f"its voxels have the parts {', '.join(array.dtype.names)} (colour, or vectors): give one grey channel"
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(f"pixels of type {array.dtype} cannot be upscaled: give integers or floats")
    if not array.size:
        raise ImageError(f"the image is empty (shape {array.shape}): there is nothing to upscale")
    return array.astype(np.uint8 if array.dtype.kind == "b" else array.dtype.newbyteorder("="), copy=False)
