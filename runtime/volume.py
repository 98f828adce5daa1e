"""A whole scan: what is measured of it once, and then slice by slice. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import grid, measure, sizes, through_plane
from .acquired import LARGEST, STORED, Acquired, Band, Consistency
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
    asked = dtype or scan.pixels.dtype.newbyteorder("=")
    try:
        target = np.dtype(asked)
    except TypeError:
        target = np.dtype(object)
    if target.kind not in "iuf":
        raise ImageError(f"dtype {asked!r} is no real number: give one such as int16 or float32")
    if target.kind in "iu" and scan.pixels.dtype.kind == "f" and np.isnan(scan.pixels).any():
        raise ImageError(f"the volume holds NaN, which {target} does not: choose float32 by --dtype, or fill them")
    check_place(scan)
    axis = scan.axis
    scales = size.of(scan.shape[:3], scan.spacing, axis)
    where = "" if scan.pixels.ndim == 2 else f" across axis {axis} of {scan.shape}"
    check_slice_shape([scan.shape[k] for k in scan.in_plane], where)
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
    data, axis, pair, scales = scan.pixels, scan.axis, scan.in_plane, out.finer_than(scan)
    in_plane, through = (scales[pair[0]], scales[pair[1]]), scales[axis] != 1
    within = set(in_plane) != {1} or not through
    grain = measure.checked_grain(grain)
    stored = (out.slope, out.inter) == (scan.slope, scan.inter)
    if half_width is not None:
        half_width[...] = 0
        _ = scan.labels or slices.head  # before any work is done: BundleError
    if scan.labels:
        values = data[np.ix_(*slices.sources(data.shape[:3], scales))]
        out.pixels[...] = to_dtype(values if stored else scan.real(values), out.pixels.dtype)
        return Acquired((Band(),) * data.ndim, notes=(_AS_LABELS,))
    volumes = list(np.ndindex(data.shape[3:]))
    planes = sum(data.shape[k] for k in through_plane.orientations(data.shape[:3], axis)) if through else 0
    done, total = 0, len(volumes) * (planes + (out.shape[axis] if data.ndim > 2 else 1))

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    ranges = ranges or intensities(scan)
    found: list[Acquired] = []
    for number, index in enumerate(volumes):
        volume, target = data[(..., *index)], out.pixels[(..., *index)]
        widths = None if half_width is None else half_width[(..., *index)]
        intensity = ranges[number % len(ranges)]
        if len(found) < len(ranges):  # what was measured, once for each range
            part = volume if len(ranges) > 1 else data
            found.append(measure.of(part, (*pair, axis) if through else pair, intensity, acquired, noise, scan.acquired))
        measured, thin, thin_widths = found[-1], volume, None
        if through:
            thin_widths = None if widths is None else through_plane.room(volume.shape, axis, scales[axis], np.float32)
            thin = through_plane.upscale(slices, volume, axis, scales[axis], intensity, measured, step, thin_widths)
        if not stored:
            intensity = replace(intensity, slope=scan.slope, inter=scan.inter)
        measured = measured.along(*pair) if within else STORED
        if within:
            width_of_each = repeat(None) if widths is None else _slices(widths, pair)
            each = zip(_slices(target, pair), _slices(thin, pair), width_of_each)
            calls = ((to, of, intensity, in_plane, measured, grain, width) for to, of, width in each)
            for _ in in_flight(slices.fill, calls, slices.engine.in_flight):
                step()
        else:
            for to, of in zip(_slices(target, pair), _slices(thin, pair)):
                to[...] = intensity.real(of, to.dtype)
                step()
        if widths is not None and thin_widths is not None:
            for width, known in zip(_slices(widths, pair), _slices(thin_widths, pair)):
                width += known[np.ix_(*slices.sources(known.shape, in_plane))]
        if consistency is not None:
            _compare(consistency, scan, volume, target, scales, intensity, measured)
        intensity.put_back(target, volume, slices.sources(volume.shape, scales))
        if widths is not None:
            widths *= intensity.width * abs(scan.slope)
    return replace(found[0], notes=(*found[0].notes, *_doubt(scan)))


def _slices(volume: NDArray[Any], pair: Sequence[int]) -> list[NDArray[Any]]:
    """The slices of a volume, whose axes are `pair`, as views."""
    stack = np.moveaxis(volume, pair, (-2, -1))
    return [stack[k] for k in np.ndindex(stack.shape[:-2])]


def _compare(
    into: Consistency,
    scan: Scan,
    volume: NDArray[Any],
    target: NDArray[Any],
    scales: sizes.AxisScales,
    intensity: Intensity,
    acquired: Acquired,
) -> None:
    """Add to `into` how far `target` is off the volume that it was made of. Thin slices in a thick one count as their mean."""
    pair = scan.in_plane
    if max(volume.shape[k] for k in pair) > LARGEST:
        return
    thick, thin = _slices(volume, pair), _slices(target, pair)
    white = abs(scan.slope) * (intensity.width or 1.0)
    shares = grid.overlap(len(thick), scales[scan.axis])
    for image, of in zip(thick, shares / shares.sum(1, keepdims=True)):
        sr = np.sum([float(of[k]) * intensity.normalise_output(thin[k]) for k in np.flatnonzero(of)], axis=0)
        into.add(acquired.difference(intensity.normalise(image), sr, (scales[pair[0]], scales[pair[1]])), white)


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

    def of(part: NDArray[Any]) -> Intensity:
        return Intensity.of(part, scan.slope < 0, nan=scan.affine is not None, padding=scan.padding)

    if scan.pixels.ndim > 3 and not scan.alike:
        each = [of(scan.pixels[(..., *index)]) for index in np.ndindex(scan.shape[3:])]
        widths = [one.width for one in each]
        if max(widths) > _DIFFER * min(widths):
            return each
    return [of(scan.pixels)]
