"""The grid that all rooms share: which output pixel reads which input pixel, at what sub-pixel offset, and where in
millimetres it lies. Pure integer arithmetic, no I/O, no floating-point floors.

Pixel areas tile the same field of view with their top-left edges aligned. For a scale r = p/q, an axis of n pixels becomes
n·p // q pixels. Source: Hu et al., *Meta-SR*, CVPR 2019 (the corner projection), and this project's own centred variant.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Literal, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from .errors import ScaleError

Projection = Literal["corner", "centred"]
ScaleLike = Union[int, float, str, Fraction, Decimal]  # one axis
Scales = tuple[Fraction, Fraction]  # rows, columns
Item = TypeVar("Item")

MAX_SCALE = 16  # four times what the network is trained for; beyond it the pixels are smooth guesses
MAX_TABLE_SLOTS = 4096  # 0.7 MB of coefficients; the paper's scales need at most 40². Beyond it, stages work without a table
_MAX_PERIOD = 64  # input pixels; a longer one has classes of pixels that an image hardly fills
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d{1,3})?(/\d+)?", re.IGNORECASE)  # 1e99999999 would be a very long integer
_MAX_TERM = 1 << 62  # phases are kept as int64

PAPER_SCALES = tuple(Fraction(n, 10) for n in range(11, 41))  # 1.1, 1.2 … 4.0


def parse_scale(value: ScaleLike) -> Fraction:
    """The exact rational that a number's decimal text names: 2.1 → 21/10, "5/2" → 5/2, never the binary float.

    Raises ScaleError outside 1…16, for NaN, infinity, booleans and anything that is not a number.
    """
    hint = f"give a number from 1 to {MAX_SCALE}, such as 2.5 or 5/2"
    scale = parse_number(value, "scale", hint)
    if not 1 <= scale <= MAX_SCALE:
        raise ScaleError(f"scale {str(value).strip()} is outside what can be upscaled: {hint}")
    if 2 * scale.numerator >= _MAX_TERM:
        raise ScaleError(f"scale {str(value).strip()} has too many digits: round it to 17")
    return scale


def parse_number(value: ScaleLike, what: str, hint: str) -> Fraction:
    """The exact rational that a number's decimal text names. Raises ScaleError, which calls it `what`, for anything else."""
    try:
        text = str(value).strip()
    except ValueError:  # Python does not print integers of thousands of digits
        raise ScaleError(f"{what} is a number of thousands of digits: {hint}") from None
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    if isinstance(value, (str, Real, Decimal)) and not isinstance(value, bool) and _NUMBER.fullmatch(text):
        if len(text) > 40:
            raise ScaleError(f"{what} {shown} has too many digits: round it to 17")
        with contextlib.suppress(ValueError, ZeroDivisionError):
            return Fraction(text)
    raise ScaleError(f"{what} {shown!r} is not a number: {hint}")


def parse_scales(value: ScaleLike | tuple[ScaleLike, ...] | list[ScaleLike]) -> Scales:
    """(row scale, column scale) of a scale given once for both axes or as a pair."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ScaleError(f"scale {value!r} has {len(pair)} entries: give one number, or two (rows, columns)")
    return parse_scale(pair[0]), parse_scale(pair[1])


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Up to `count` of some items, from the first to the last at even distances."""
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, count).astype(int))] if items else []


def output_size(size: int, scale: Fraction) -> int:
    """n·p // q in integers: 45 pixels at ×1.4 are 63, where int(45 * 1.4) is 62."""
    return size * scale.numerator // scale.denominator


def overlap(size: int, scale: Fraction) -> NDArray[np.float64]:
    """(inputs, outputs): how much of each output pixel, of width 1, lies in each input pixel, of width `scale`."""
    start = np.arange(size)[:, None] * float(scale)
    k = np.arange(output_size(size, scale))
    shared: NDArray[np.float64] = np.minimum(start + float(scale), k + 1) - np.maximum(start, k)
    return shared.clip(0, 1)


def phase_offsets(scale: Fraction, projection: Projection, phases: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """The sub-pixel offset of each of the p phases of scale p/q, ascending, or of some `phases`, in input pixels; float64.

    corner: phase/p in [0, 1), from the input pixel's top-left edge. centred: in [-1/2, 1/2), from its centre.
    """
    p, q = scale.numerator, scale.denominator
    phases = np.arange(p) if phases is None else phases
    offset: NDArray[np.float64] = phases / p if projection == "corner" else (2 * phases + q % 2 - p) / (2 * p)
    return offset


def skip_taps(scale: Fraction, projection: Projection, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half-pixel-centred linear interpolation as three taps on the pixels source-1, source, source+1; shape (…, 3).

    Whatever the projection, the taps interpolate between pixel centres, so that a ramp stays where it lies.
    """
    centred = offset if projection == "centred" else offset + float(1 / (2 * scale)) - 0.5
    return np.stack([np.maximum(-centred, 0), 1 - np.abs(centred), np.maximum(centred, 0)], axis=-1)


@dataclass(frozen=True)
class Axis:
    """One axis of an image on the grid of one scale.

    Output i reads input `source[i]` at phase `phase[i]`, the index into `phase_offsets`; both int64, shape (n_out,).
    `rank[i]` counts the outputs before i that have the same source: no input pixel has more than `slots` outputs. Those of
    a mirrored axis count the ones beyond its edge too.
    """

    n_in: int
    scale: Fraction
    projection: Projection
    source: NDArray[np.int64]
    phase: NDArray[np.int64]
    rank: NDArray[np.int64]

    @property
    def n_out(self) -> int:
        return len(self.source)

    @property
    def slots(self) -> int:
        return -(-self.scale.numerator // self.scale.denominator)

    @property
    def offset(self) -> NDArray[np.float64]:
        """Sub-pixel offset of each output, float64, shape (n_out,): no need of all p phases, which may be very many."""
        return phase_offsets(self.scale, self.projection, self.phase)

    def slot_phases(self) -> NDArray[np.int64]:
        """Phase of the k-th output of every input pixel congruent a modulo q; shape (q, slots), unused slots 0."""
        period = project(self.scale.denominator, self.scale, self.projection)
        phases = np.zeros((self.scale.denominator, self.slots), np.int64)
        phases[period.source, period.rank] = period.phase
        return phases


def project(n_in: int, scale: Fraction, projection: Projection, mirrored: bool = False) -> Axis:
    """Project every output pixel of an axis onto its input pixel, exactly.

    corner:  source = i·q // p,           phase = i·q mod p
    centred: source = (2i+1)·q // 2p,     phase = ((2i+1)·q mod 2p) // 2
    Exact for any p, q: where 64-bit products would overflow, Python's integers do the work.

    A mirrored axis has the same outputs in reverse. Its pixels and outputs end at -1: pixel k of the axis is -1 - k of it.
    """
    p, q = scale.numerator, scale.denominator
    n_out = output_size(n_in, scale)
    fits = (2 * n_out + 1) * q < _MAX_TERM
    i = np.arange(-n_out if mirrored else 0, 0 if mirrored else n_out, dtype=np.int64 if fits else object)
    if projection == "corner":
        source, phase = i * q // p, i * q % p
        first = -(-source * p // q)
    elif projection == "centred":
        source, phase = (2 * i + 1) * q // (2 * p), (2 * i + 1) * q % (2 * p) // 2
        first = -((q - 2 * source * p) // (2 * q))
    else:
        raise ValueError(f"projection {projection!r} is unknown: use 'corner' or 'centred'")
    source, phase, rank = (part.astype(np.int64) for part in (source, phase, i - first))
    return Axis(n_in, scale, projection, source, phase, rank)


@dataclass(frozen=True)
class Span:
    """Output pixels [start, stop) of an axis, read from responses that begin at input pixel `first` and hold `size` pixels."""

    axis: Axis
    start: int
    stop: int
    first: int
    size: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def key(self) -> Hashable:
        """All that follows from where the span lies."""
        return self.axis.n_in, self.axis.scale, self.axis.projection, self.start, self.stop, self.first, self.size

    @property
    def sources(self) -> NDArray[np.int32]:
        """Where the responses have the input pixel that each output reads."""
        return (self.axis.source[self.start : self.stop] - self.first).astype(np.int32)

    @property
    def offset(self) -> NDArray[np.float64]:
        """Sub-pixel offset of each output."""
        return self.axis.offset[self.start : self.stop]

    def interpolation(self) -> NDArray[np.float32]:
        """The matrix (outputs, `size`) that interpolates linearly between pixel centres, edges repeated."""
        taps = skip_taps(self.axis.scale, self.axis.projection, self.offset)
        matrix = np.zeros((len(self), self.size), np.float32)
        columns = np.clip(self.sources[:, None] + (-1, 0, 1), 0, self.size - 1)
        np.add.at(matrix, (np.arange(len(self))[:, None], columns), taps)
        return matrix

    def mirrored(self) -> Span:
        """The same outputs in reverse, read from the responses of the mirrored image. An output on the border of two pixels
        reads the other one there."""
        axis = project(self.axis.n_in, self.axis.scale, self.axis.projection, mirrored=True)
        return Span(axis, axis.n_out - self.stop, axis.n_out - self.start, -self.first - self.size, self.size)


def content(seen: NDArray[np.bool_], radius: int) -> tuple[slice, slice]:
    """Of an axis where `seen` marks content: the pixels within `radius` of it, and those that decide what is there."""
    where = np.flatnonzero(seen)
    if not len(where):
        return slice(0, 0), slice(0, 0)
    first, last = int(where[0]), int(where[-1]) + 1
    inner, outer = (slice(max(0, first - reach), min(len(seen), last + reach)) for reach in (radius, 2 * radius))
    return inner, outer


def by_distance_to_the_ends(size: int, radius: int) -> NDArray[np.int64]:
    """For each pixel of an axis, the one of an axis of 2·radius + 1 that is as far from each end, or farther than radius."""
    pixel = np.arange(size)
    from_the_left, from_the_right = np.minimum(pixel, radius), np.minimum(size - 1 - pixel, radius)
    return np.where(from_the_right < radius, 2 * radius - from_the_right, from_the_left)


def has_table(scales: Scales) -> bool:
    """Whether a scale's period and its slots, q·⌈p/q⌉ an axis, are few enough to keep a filter for each."""
    rows, cols = (r.denominator * -(-r.numerator // r.denominator) for r in scales)
    return rows * cols <= MAX_TABLE_SLOTS and max(r.denominator for r in scales) <= _MAX_PERIOD


def inverse_scales(scales: Scales, per_axis: bool) -> list[float]:
    """What a weight predictor is told of the scale: (1/r_y, 1/r_x), or 1/√(r_y·r_x) where it has one input for both."""
    return [float(1 / r) for r in scales] if per_axis else [1 / math.sqrt(scales[0] * scales[1])]


def upscaled_affine(affine: NDArray[np.float64], scales: tuple[Fraction, ...]) -> NDArray[np.float64]:
    """The voxel-to-millimetre affine (4, 4) of a volume upscaled by `scales`, one for each of its three array axes.

    Voxels shrink by r and the outer edge of the first one stays in place, so its centre moves by (1/r - 1)/2 old voxels.
    """
    shrink = np.array([float(1 / r) for r in scales])
    result = np.array(affine, dtype=np.float64)
    result[:3, :3] = affine[:3, :3] * shrink
    result[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((shrink - 1) / 2)
    return result
