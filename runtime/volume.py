"""A whole scan: what is measured of it once, and then slice by slice. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import grid, measure, sizes, through_plane
from .acquired import STORED, Acquired, Band
from .consistency import LARGEST, Consistency
from .errors import ImageError, ScaleError
from .intensity import Intensity, to_dtype
from .measure import Matrix
from .memory import allocate
from .scan import Scan, is_place
from .sizes import Size
from .slices import Slices, check_slice_shape

Progress = Callable[[int, int], None]

_LABELS, _LOOKED_AT = 64, 100_000  # different values at most, and each so often on average; values that are looked at
_DIFFER = 2.0  # times: volumes of a 4-D file whose ranges differ more have each its own
_AS_LABELS = "labels: nearest neighbour, the network was not used"


def prepared(scan: Scan, size: Size, dtype: DTypeLike | None = None) -> Scan:
    """A scan's output at a size, its pixels allocated and not filled: as `scan` stores them, or real values in another `dtype`.

    Raises ScaleError and ImageError for what cannot be upscaled.
    """
    target = _checked_dtype(dtype or scan.pixels.dtype.newbyteorder("="))
    if target.kind in "iu" and scan.pixels.dtype.kind == "f" and np.isnan(scan.pixels).any():
        raise ImageError(f"the volume holds NaN, which {target} does not: choose float32 by --dtype, or fill them")
    check_place(scan)
    axis, in_plane = scan.axis, scan.in_plane
    scales = size.of(scan.shape[:3], scan.spacing, axis)
    where = "" if scan.pixels.ndim == 2 else f" across axis {axis} of {scan.shape}"
    check_slice_shape([scan.shape[k] for k in in_plane], where)
    if scales[axis] != 1 and (scan.pixels.ndim < 3 or scan.shape[axis] < 2):
        raise ScaleError(
            f"scale {sizes.written(scales)} makes more slices of one: give a volume of two or more, or scale ×1 there"
        )
    shape = tuple(grid.output_size(n, r) for n, r in zip(scan.shape, scales)) + scan.shape[3:]
    pixels = allocate(shape, target, "C" if scan.affine is None else "F")  # F is NIfTI's own order
    return scan.finer(pixels, scales, stored=dtype is None or (scan.slope, scan.inter) == (1, 0))


def uncertainty(out: Scan) -> Scan:
    """Room for the uncertainty of an output, for `upscale`: as large, in the same place, real values in float32."""
    pixels = allocate(out.shape, np.float32, "C" if out.affine is None else "F")
    return replace(out, pixels=pixels, slope=1.0, inter=0.0, padding=None, notes=())


def check_place(scan: Scan) -> None:
    """Raises ImageError for an affine that is none."""
    if scan.affine is not None and not is_place(scan.affine):
        raise ImageError("the header names no place in space: repair its sform, qform or pixdim, or its directions")


def upscale(
    slices: Slices,
    scan: Scan,
    out: Scan,
    *,
    acquired: Matrix = "auto",
    noise: float | None = None,
    grain: float = 0.0,
    progress: Progress | None = None,
    ranges: Sequence[Intensity] = (),
    consistency: Consistency | None = None,
    half_width: NDArray[np.float32] | None = None,
) -> Acquired:
    """Fill `out`, which `prepared` made of `scan`, and tell what was measured. `progress(done, total)` counts slices.

    `ranges` are those of grey values, by default the scan's own `intensities`. `consistency` is added to, slice by slice of
    `scan`. `half_width`, as large as `out`, receives the uncertainty in real values: 0 where the network was not used.

    Where there are to be more slices, the planes that contain the axis across which they lie are upscaled first. An integer
    scan with a slope keeps both, as an affine map of intensities commutes with the network's own (a negative slope makes large
    numbers dark).
    """
    data, result, axis, pair = scan.pixels, out.pixels, scan.axis, scan.in_plane
    by_axis = out.finer_than(scan)
    in_plane = by_axis[pair[0]], by_axis[pair[1]]
    through = by_axis[axis] != 1
    within = set(in_plane) != {1} or not through
    grain = measure.checked_grain(grain)
    stored = (out.slope, out.inter) == (scan.slope, scan.inter)
    if half_width is not None:
        half_width[...] = 0
        _ = scan.labels or slices.head  # before any work is done: BundleError
    if scan.labels:
        values = data[np.ix_(*slices.sources(data.shape[:3], by_axis))]
        result[...] = to_dtype(values if stored else scan.real(values), result.dtype)
        return Acquired((Band(),) * data.ndim, notes=(_AS_LABELS,))
    planes = through_plane.planes(data.shape[:3], axis) if through else 0
    volumes = list(np.ndindex(data.shape[3:]))
    total = len(volumes) * (planes + (out.shape[axis] if data.ndim > 2 else 1))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    ranges = ranges or intensities(scan)
    found: list[Acquired] = []
    for number, index in enumerate(volumes):
        one, target = data[(..., *index)], result[(..., *index)]
        intensity = ranges[number % len(ranges)]
        if len(found) < len(ranges):  # what was measured, once for each range
            part = one if len(ranges) > 1 else data
            found.append(measure.of(part, (*pair, axis) if through else pair, intensity, acquired, noise, scan.acquired))
        measured, white = found[-1], abs(intensity.white - intensity.black) * abs(scan.slope)
        thin, thin_widths = one, None
        widths = None if half_width is None else half_width[(..., *index)]
        if through:
            thin_widths = None if widths is None else through_plane.room(one.shape, axis, by_axis[axis], np.float32)
            thin = through_plane.upscale(slices, one, axis, by_axis[axis], intensity, measured, step, thin_widths)
        intensity = intensity if stored else replace(intensity, slope=scan.slope, inter=scan.inter)
        arrays = [np.moveaxis(a, pair, (-2, -1)) for a in (target, thin, widths, thin_widths) if a is not None]
        pieces = (tuple(array[k] for array in arrays) for k in np.ndindex(arrays[0].shape[:-2]))
        how = measured.along(*pair), grain
        fill = partial(_fill, slices, intensity, in_plane, how if within else None)
        for _ in in_flight(fill, pieces, slices.engine.in_flight if within else 1):
            step()
        if consistency is not None:
            _compare(consistency, scan, one, target, by_axis, intensity, measured.along(*pair) if within else STORED)
        intensity.put_back(target, one, slices.sources(one.shape, by_axis))
        if widths is not None:
            widths *= white
    return replace(found[0], notes=(*found[0].notes, *_doubt(scan)))


def _compare(
    into: Consistency,
    scan: Scan,
    volume: NDArray[Any],
    target: NDArray[Any],
    by_axis: sizes.AxisScales,
    intensity: Intensity,
    acquired: Acquired,
) -> None:
    """Add to `into` how far `target` is off the volume that it was made of. Thin slices in a thick one count as their mean."""
    pair, finished = scan.in_plane, intensity.finished
    if max(volume.shape[k] for k in pair) > LARGEST:
        return
    stacks = (np.moveaxis(array, pair, (-2, -1)) for array in (volume, target))
    thick, thin = (stack.reshape(-1, *stack.shape[-2:]) for stack in stacks)
    white = abs(scan.slope) * (abs(intensity.white - intensity.black) or 1.0)
    shares = through_plane.thickness(len(thick), by_axis[scan.axis])
    for image, of in zip(thick, shares / shares.sum(1, keepdims=True)):
        sr = np.sum([float(of[k]) * finished.normalise(thin[k]) for k in np.flatnonzero(of)], axis=0)
        into.add(acquired.difference(intensity.normalise(image), sr, (by_axis[pair[0]], by_axis[pair[1]])), white)


def _fill(
    slices: Slices,
    intensity: Intensity,
    scales: grid.Scales,
    how: tuple[Acquired, float] | None,
    out: NDArray[Any],
    image: NDArray[Any],
    half_width: NDArray[np.float32] | None = None,
    known: NDArray[np.float32] | None = None,
) -> None:
    """Fill a slice of an output by the network, or without `how` with its own values; `known` is the image's uncertainty."""
    if how:
        slices.fill(out, image, intensity, scales, *how, half_width)
    else:
        out[...] = intensity.real(image, out.dtype)
    if half_width is not None and known is not None:
        half_width += known[np.ix_(*slices.sources(image.shape, scales))]


def in_flight(work: Callable[..., None], calls: Iterable[tuple[Any, ...]], most: int) -> Iterator[None]:
    """Call `work`, `most` times at once: a device computes while the next slice is prepared. Yields after each, in order."""
    if most == 1:
        for arguments in calls:
            work(*arguments)
            yield
        return
    with ThreadPoolExecutor(most) as pool:  # after an error, here or of the caller, `map` begins nothing more
        yield from pool.map(lambda arguments: work(*arguments), calls)


def _doubt(scan: Scan) -> list[str]:
    """A line about a volume of so few whole numbers that they may be labels, which nothing in it says."""
    if scan.affine is None or scan.pixels.dtype.kind not in "iu":
        return []
    some = scan.pixels.ravel("K")[:: max(1, scan.pixels.size // _LOOKED_AT)]
    count = len(np.unique(some))
    if count < 2 or count > min(_LABELS, len(some) // _LABELS):
        return []
    return [f"it has {count} different whole numbers: if they are labels, set the header's intent to label (1002)"]


def intensities(scan: Scan) -> list[Intensity]:
    """The intensity range of everything, or that of each volume: a time series has one, other contrasts have each their own."""
    data = scan.pixels

    def of(part: NDArray[Any]) -> Intensity:
        return Intensity.of(part, scan.slope < 0, nan=scan.affine is not None, padding=scan.padding)

    if data.ndim > 3 and not scan.alike:
        each = [of(data[(..., *index)]) for index in np.ndindex(data.shape[3:])]
        widths = [abs(one.white - one.black) for one in each]
        if max(widths) > _DIFFER * min(widths):
            return each
    return [of(data)]


def _checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        checked = np.dtype(dtype)
    except TypeError:
        checked = np.dtype(object)
    if checked.kind not in "iuf":
        raise ImageError(f"dtype {dtype!r} is no real number: give one such as int16 or float32")
    return checked
