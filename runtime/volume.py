"""NIfTI volumes in and out: every point keeps its place in millimetres, every value its type."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from . import grid, measure, sizes, through_plane
from .acquired import Acquired, Band
from .errors import ImageError, InputFileError, OutputFileError, ScaleError, reason
from .files import write_atomically
from .inputs import believe, unreadable
from .intensity import Intensity, real_array, to_dtype
from .measure import UNKNOWN, Fractions, Matrix
from .memory import allocate
from .sizes import AxisScales, Size, exact_spacing
from .slices import Slices, check_slice_shape

SUFFIXES = (".nii.gz", ".nii")
_KIND = "a NIfTI file"
_AGREE = 1e-3  # of a voxel's length
_DIFFER = 2.0  # times: volumes of a 4-D file whose ranges differ more have each its own
_TIMES = ("sec", "msec", "usec")
_MILLIMETRES = {"mm": 1.0, "micron": 0.001, "meter": 1000.0, "unknown": 1.0}
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, ValueError, EOFError, zlib.error, OverflowError, MemoryError)


def nifti_suffix(path: Path) -> str:
    """The .nii or .nii.gz that a name ends with, as it is spelled, or nothing."""
    length = next((len(suffix) for suffix in SUFFIXES if path.name.lower().endswith(suffix)), 0)
    return path.name[len(path.name) - length :]


def is_nifti(path: Path) -> bool:
    """Whether the name ends like a NIfTI file."""
    return bool(nifti_suffix(path))


def load(path: Path) -> Any:
    """A NIfTI image whose pixels stay on disk. Raises InputFileError for a file that is missing, truncated or not NIfTI."""
    try:
        _check_compression(path)
        image = nib.load(path)
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputFileError(f"{path} does not exist: check the name") from None
    except InputFileError:
        raise
    except _UNREADABLE as error:
        raise unreadable(path, _KIND, reason(error)) from None
    if not isinstance(image, nib.Nifti1Image):
        raise InputFileError(f"{path} is a {type(image).__name__}, not NIfTI: convert it to .nii.gz")
    proxy, start = image.dataobj, int(image.header.single_vox_offset)
    if proxy.offset == 0:  # which some tools leave unset
        spec = (proxy.shape, proxy.dtype, start, proxy.slope, proxy.inter)
        image = type(image)(nib.arrayproxy.ArrayProxy(proxy.file_like, spec), image.affine, image.header)
    promised = max(start, proxy.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    believe(path, _KIND, promised, size, partial(_gunzipped, path) if path.suffix.lower() == ".gz" else None)
    return image


def _check_compression(path: Path) -> None:
    """Raise InputFileError for a NIfTI file whose suffix says wrongly whether it is compressed."""
    with open(path, "rb") as file:
        start = file.read(348)
    named = path.suffix.lower() == ".gz"
    plain = start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2")
    if (named and plain) or (not named and start[:2] == b"\x1f\x8b"):
        said, right = ("not compressed", ".nii") if named else ("compressed", ".nii.gz")
        raise InputFileError(f"{path} is {said} by gzip, but its name says otherwise: rename it to {right}")


def writer(path: Path, image: Any) -> Callable[[IO[bytes]], None]:
    """What writes a NIfTI image to an open file; .gz in the name compresses it, with no time stamp."""
    if not is_nifti(path):
        raise OutputFileError(f"{path} does not end like a NIfTI file: use {' or '.join(SUFFIXES)}")

    def write(file: IO[bytes]) -> None:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile("", "wb", 1, file, mtime=0) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(file)

    return write


def save(path: Path, image: Any, overwrite: bool = False) -> None:
    """Write a NIfTI image whole or not at all."""
    write_atomically(path, writer(path, image), overwrite)


def stored(image: Any) -> tuple[NDArray[Any], float, float]:
    """The pixels as they are stored, and the slope and intercept that turn them into real values.

    Raises InputFileError where the file ends too early, ImageError where pixels are not real numbers.
    """
    proxy = image.dataobj
    if not isinstance(proxy, nib.arrayproxy.ArrayProxy):
        return real_array(proxy), 1.0, 0.0
    try:
        pixels = proxy.get_unscaled()
    except _UNREADABLE as error:
        raise unreadable(image.get_filename(), _KIND, reason(error)) from None
    return real_array(pixels), float(proxy.slope), float(proxy.inter)


def slice_axis(image: Any) -> int:
    """The array axis across which slices lie: the last of those with one slice, else the last of the thickest (to 1 %)."""
    zooms = np.asarray(voxel_size(image))
    if not np.isfinite(zooms).all():
        raise ImageError(f"the voxel spacing is {tuple(zooms.tolist())} mm: repair the header's pixdim, or choose the axis")
    single = [k for k in range(len(zooms)) if image.shape[k] == 1]
    return max(single or (k for k in range(len(zooms)) if zooms[k] * 1.01 >= zooms.max()))


def voxel_size(image: Any) -> tuple[float, ...]:
    """The length of a voxel along each of up to three axes, in the header's unit.

    It is that of the affine, which places the voxels. `pixdim`, which many tools forget, is its short form where both agree.
    """
    lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
    return tuple(
        float(said) if abs(length - said) <= _AGREE * length else float(f"{length:.6g}")
        for length, said in zip(lengths, image.header.get_zooms()[:3])
    )


def millimetres(image: Any) -> float:
    """How many millimetres the unit of an image's header is; one that it does not name is taken for millimetres."""
    try:
        return _MILLIMETRES[image.header.get_xyzt_units()[0]]
    except KeyError:  # a code that is not in the standard
        return 1.0


def scales_of(image: Any, size: Size, axis: int) -> AxisScales:
    """The exact scales that a size asked for means for an image whose slices lie across `axis`."""
    zooms = voxel_size(image)
    in_mm = size.isotropic or size.spacing is not None
    spacing = exact_spacing([*zooms, 1.0][:3], millimetres(image)) if in_mm else (Fraction(1),) * 3
    return size.in_volume(image.shape[:3], spacing, axis)


def upscale(
    slices: Slices,
    image: Any,
    size: Size,
    *,
    axis: int | None = None,
    dtype: DTypeLike | None = None,
    acquired: Matrix = "auto",
    noise: float | None = None,
    grain: float = 0.0,
    header: Fractions = UNKNOWN,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, Acquired]:
    """`Upscaler.volume`, with pixels as they are to be stored and the header's slope set for `save`; and what was measured.

    Slices are computed one by one, after the planes that contain the axis across which they lie, where that is upscaled.
    An integer volume with a slope keeps both, as an affine map of intensities commutes with the network's own (a negative
    slope makes large numbers dark); with another `dtype` asked for, real values are stored without a slope. `header` tells
    what it knows of the acquired matrix, for each array axis.
    """
    if not isinstance(image, nib.Nifti1Image):
        raise ImageError(f"a {type(image).__name__} is not a NIfTI image: give a nibabel Nifti1Image or Nifti2Image")
    data, slope, inter = stored(image)
    target = data.dtype if dtype is None else _checked_dtype(dtype, image)
    if target.kind in "iu" and data.dtype.kind == "f" and np.isnan(data).any():
        raise ImageError(f"the volume holds NaN, which {target} does not: choose float32 by --dtype, or fill them")
    axis = slices_across(image, axis)
    by_axis = scales_of(image, size, axis)
    in_plane = [k for k in range(min(3, data.ndim)) if k != axis]
    shape_in = tuple(data.shape[k] for k in in_plane)
    try:
        check_slice_shape(shape_in)
    except ImageError as error:
        raise ImageError(f"{error} (slices of a volume {data.shape} across axis {axis}; choose another axis)") from None
    if by_axis[axis] != 1 and (data.ndim < 3 or data.shape[axis] < 2):
        raise ScaleError(
            f"scale {sizes.written(by_axis)} makes more slices of one: give a volume of two or more, or scale ×1 there"
        )
    shape_out = tuple(grid.output_size(n, r) for n, r in zip(data.shape, (*by_axis, *[Fraction(1)] * data.ndim)))
    out_header = _header(image, shape_out, target, by_axis)

    out = allocate(shape_out, target, order="F")  # NIfTI's own order
    keep_slope = dtype is None or (slope, inter) == (1, 0)

    def real(values: NDArray[Any]) -> NDArray[Any]:
        return values if keep_slope else values * slope + inter

    def finished(pixels: NDArray[Any], found: Acquired) -> tuple[Any, Acquired]:
        upscaled = type(image)(pixels, out_header.get_best_affine(), out_header)
        upscaled.header.set_slope_inter(*((slope, inter) if keep_slope else (1, 0)))
        return upscaled, found

    if _is_label(image):
        first, second, third = np.ix_(*slices.sources((*data.shape, 1)[:3], by_axis))
        whole = data if data.ndim > 2 else data[..., None]
        out[...] = to_dtype(real(whole[first, second, third]), target).reshape(shape_out)
        note = "labels, by the header's intent: nearest neighbour, the network was not used"
        return finished(out, Acquired((Band(),) * data.ndim, notes=(note,)))

    scales = (by_axis[in_plane[0]], by_axis[in_plane[1]])
    through, within = by_axis[axis] != 1, set(scales) != {1} or by_axis[axis] == 1
    looked_at = (*in_plane, axis) if through else tuple(in_plane)
    grain = measure.checked_grain(grain)
    planes = through_plane.planes(data.shape[:3], axis) if through else 0
    total = math.prod(data.shape[3:]) * (planes + (shape_out[axis] if data.ndim > 2 else 1))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    def upscale_range(data: NDArray[Any], out: NDArray[Any], intensity: Intensity) -> Acquired:
        """Volumes that share one range."""
        measured = measure.of(data, looked_at, intensity, acquired, noise, header)
        of_slice = measured.along(*in_plane)

        def computed(image: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
            return slices.upscale(image, intensity, scales, dtype, of_slice, grain)

        def stored_slice(image: NDArray[Any]) -> NDArray[Any]:
            if keep_slope:
                return computed(image, target) if within else to_dtype(image, target)
            return to_dtype(real(computed(image, np.float64) if within else image), target)

        for index in np.ndindex(data.shape[3:]):
            one, result = data[(..., *index)], out[(..., *index)]
            thin = through_plane.upscale(slices, one, axis, by_axis[axis], intensity, measured, step) if through else one
            stack, targets = (np.moveaxis(array, in_plane, (-2, -1)) for array in (thin, result))
            for k in np.ndindex(stack.shape[:-2]):
                targets[k] = stored_slice(stack[k])
                step()
            intensity.put_back(result, one, slices.sources(one.shape, by_axis), real)
        return measured

    found = []
    for index, intensity in _ranges(image, data, slope < 0).items():
        part: Any = (..., *index)
        found.append(upscale_range(data[part], out[part], intensity))
    return finished(out, found[0])


def _is_label(image: Any) -> bool:
    """Whether numbers are names, with nothing between them. Raises ImageError for vectors."""
    intent = image.header.get_intent()[0]
    if "vector" in intent or intent.startswith("displacement"):
        raise ImageError(f"the header's intent is {intent!r}: a network for images would change vectors, resample them instead")
    return bool(intent == "label")


def _ranges(image: Any, data: NDArray[Any], inverted: bool) -> dict[tuple[int, ...], Intensity]:
    """The intensity range of everything, by the index (), or of each volume, by its own index.

    A time series has one range. Volumes of other contrasts have each their own.
    """
    together: dict[tuple[int, ...], Intensity] = {(): Intensity.of(data, inverted, nan=True)}
    if data.ndim < 4 or image.header.get_xyzt_units()[1] in _TIMES:
        return together
    each: dict[tuple[int, ...], Intensity] = {
        index: Intensity.of(data[(..., *index)], inverted, nan=True) for index in np.ndindex(data.shape[3:])
    }
    widths = [abs(one.white - one.black) for one in each.values()]
    return each if max(widths) > _DIFFER * min(widths) else together


def reopened(image: Any) -> Any:
    """The image of `upscale` as nibabel gives it after saving and loading: its slope applied where there is one."""
    slope, inter = image.header.get_slope_inter()
    if (slope, inter) == (1, 0):
        return image
    return type(image).from_bytes(image.to_bytes())


def slices_across(image: Any, axis: int | None = None) -> int:
    """The checked array axis across which an image's slices lie: `axis`, or by default the thickest; 2 of two axes."""
    if len(image.shape) < 2:
        raise ImageError(f"the volume has shape {image.shape}: give two axes or more")
    if len(image.shape) == 2 and axis is None:
        return 2
    if axis is None:
        return slice_axis(image)
    if axis not in range(3) or len(image.shape) == 2:
        raise ImageError(f"axis is {axis!r}, the volume {image.shape}: give the array axis across which slices lie, 0, 1 or 2")
    return axis


def _checked_dtype(dtype: DTypeLike, image: Any) -> np.dtype[Any]:
    try:
        checked = np.dtype(dtype)
        image.header.copy().set_data_dtype(checked)
    except (TypeError, HeaderDataError):
        raise ImageError(f"dtype {dtype!r} is nothing that NIfTI stores: give one such as int16 or float32") from None
    if checked.kind not in "iuf":
        raise ImageError(f"dtype {dtype!r} is no real number: give one such as int16 or float32")
    return checked


def _header(image: Any, shape: tuple[int, ...], dtype: np.dtype[Any], scales: AxisScales) -> Any:
    """The image's header for its upscaled pixels: size, type, voxel size and position; everything else as it was.

    Each of sform and qform moves by itself and keeps its code; where only one is coded, both hold it. Without either, the
    place that nibabel assumes is written down, because it would assume another one for the new size. Slice timing goes
    where the slices that it counts were upscaled. Raises ImageError for a geometry that cannot be moved.
    """
    header = image.header.copy()
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    try:
        header.set_data_shape(shape)
        header.set_data_dtype(dtype)
        coded = {form: header.get_sform() if form == "sform" else header.get_qform() for form in codes if codes[form]}
        if not coded:
            codes["sform"] = 2  # "aligned", as nibabel calls a place that it was told
        sform, qform = (grid.upscaled_affine(coded.get(form, image.affine), scales) for form in ("sform", "qform"))
        if not all(np.isfinite(form).all() and np.linalg.det(form[:3, :3]) for form in (sform, qform)):
            raise ValueError("it names no place in space")
        header.set_qform(qform, codes["qform"])
        header.set_sform(sform, codes["sform"])
        old = image.header["pixdim"][1:4].copy()
        if not codes["qform"]:  # which is of pixdim
            old[: len(image.shape)] = voxel_size(image)
        header["pixdim"][1:4] = old / np.array([float(r) for r in scales], np.float32)
    except (HeaderDataError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise ImageError(
            f"the header cannot describe the upscaled volume {shape} ({reason(error)}): "
            "repair its sform, qform or pixdim, or give a smaller scale"
        ) from None
    timed = header.get_dim_info()[2]
    if timed is not None and scales[timed] != 1:
        header["slice_start"] = header["slice_end"] = header["slice_duration"] = header["slice_code"] = 0
    return header


def _gunzipped(path: Path) -> Iterator[bytes]:
    """A gzip file to its checksum, which nibabel stops short of."""
    with gzip.open(path) as stream:
        yield from iter(lambda: stream.read(1 << 20), b"")
