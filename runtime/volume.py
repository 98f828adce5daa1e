"""NIfTI volumes in and out: every point keeps its place in millimetres, every value its type."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from . import grid
from .errors import ImageError, InputFileError, OutputFileError, reason
from .files import write_atomically
from .intensity import Intensity, real_array, to_dtype
from .upscaler import check_slice_shape, resolve_scales

if TYPE_CHECKING:
    from .upscaler import ScaleOrPair, Upscaler

_SUFFIXES = (".nii", ".nii.gz")
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, ValueError, EOFError, zlib.error, OverflowError, MemoryError)


def is_nifti(path: Path) -> bool:
    """Whether the name ends like a NIfTI file."""
    return path.name.lower().endswith(_SUFFIXES)


def load(path: Path) -> Any:
    """A NIfTI image whose pixels stay on disk. Raises InputFileError for a file that is missing or something else."""
    try:
        image = nib.load(path)
        if path.suffix.lower() == ".gz":
            _check_gzip(path)
    except FileNotFoundError:
        raise InputFileError(f"{path} does not exist: check the name") from None
    except _UNREADABLE as error:
        raise _unreadable(str(path), error) from None
    if not isinstance(image, nib.Nifti1Image):
        raise InputFileError(f"{path} is a {type(image).__name__}, not NIfTI: convert it to .nii.gz")
    return image


def save(path: Path, image: Any, overwrite: bool = False) -> None:
    """Write a NIfTI image whole or not at all; .gz in the name compresses it."""
    if not is_nifti(path):
        raise OutputFileError(f"{path} does not end like a NIfTI file: use {' or '.join(_SUFFIXES)}")

    def write(file: Any) -> None:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile("", "wb", 1, file, mtime=0) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(file)

    write_atomically(path, write, overwrite)


def stored(image: Any) -> tuple[NDArray[Any], float, float]:
    """The pixels as they are stored, and the slope and intercept that turn them into real values.

    Raises InputFileError where the file ends too early, ImageError where pixels are not real numbers.
    """
    proxy = image.dataobj
    try:
        if isinstance(proxy, nib.arrayproxy.ArrayProxy):
            return real_array(proxy.get_unscaled()), float(proxy.slope), float(proxy.inter)
    except ImageError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(str(image.get_filename()), error) from None
    return real_array(proxy), 1.0, 0.0


def slice_axis(image: Any) -> int:
    """The array axis with the thickest spacing, across which slices lie; the last one where they are equal to 1 %."""
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    return max(k for k in range(len(zooms)) if zooms[k] * 1.01 >= zooms.max())


def upscale(
    upscaler: Upscaler,
    image: Any,
    scale: ScaleOrPair | None = None,
    *,
    shape: tuple[int, int] | None = None,
    axis: int | None = None,
    dtype: DTypeLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """`Upscaler.volume`, with pixels as they are to be stored and the header's slope set for `save`.

    Only one slice at a time is held in float32. An integer volume with a slope keeps both, as an affine map of intensities
    commutes with the network's; with another `dtype` asked for, real values are stored without a slope.
    """
    if not isinstance(image, nib.Nifti1Image):
        raise ImageError(f"a {type(image).__name__} is not a NIfTI image: give a nibabel Nifti1Image or Nifti2Image")
    data, slope, inter = stored(image)
    if data.ndim < 2:
        raise ImageError(f"the volume has shape {data.shape}: give two axes or more")
    axis = _checked_axis(axis, image, data)
    in_plane = [k for k in range(min(3, data.ndim)) if k != axis]
    shape_in = tuple(data.shape[k] for k in in_plane)
    try:
        check_slice_shape(shape_in)
    except ImageError as error:
        raise ImageError(f"{error} (slices of a volume {data.shape} across axis {axis}; choose another with axis)") from None
    scales = resolve_scales(shape_in, scale, shape)
    by_axis = dict(zip(in_plane, scales))

    shape_out = tuple(grid.output_size(n, by_axis.get(k, Fraction(1))) for k, n in enumerate(data.shape))
    target = np.dtype(dtype) if dtype is not None else data.dtype
    keep_slope = dtype is None or (slope == 1 and inter == 0)
    out = np.empty(shape_out, target, order="F")  # NIfTI's own order
    slices, targets = (_in_slices(array, in_plane) for array in (data, out))
    intensity = Intensity.of(data)
    total = int(np.prod(slices.shape[:-2]))
    for done, index in enumerate(np.ndindex(slices.shape[:-2]), 1):
        if keep_slope:
            targets[index] = upscaler.upscale_slice(slices[index], intensity, scales, target)
        else:
            real = upscaler.upscale_slice(slices[index], intensity, scales, np.float64) * slope + inter
            targets[index] = to_dtype(real, target)
        if progress:
            progress(done, total)
    header = _header(image, shape_out, target, tuple(by_axis.get(k, Fraction(1)) for k in range(3)))
    result = type(image)(out, header.get_best_affine(), header)
    result.header.set_slope_inter(*((slope, inter) if keep_slope else (1, 0)))
    return result


def reopened(image: Any) -> Any:
    """The image of `upscale` as nibabel gives it after saving and loading: its slope applied where there is one."""
    slope, inter = image.header.get_slope_inter()
    if (slope, inter) == (1, 0):
        return image
    return type(image).from_bytes(image.to_bytes())


def _checked_axis(axis: int | None, image: Any, data: NDArray[Any]) -> int:
    if data.ndim == 2:
        return 2
    if axis is None:
        return slice_axis(image)
    if axis not in (0, 1, 2):
        raise ImageError(f"axis is {axis!r}: give the array axis across which slices lie, 0, 1 or 2")
    return axis


def _in_slices(array: NDArray[Any], in_plane: list[int]) -> NDArray[Any]:
    """A view of the array with the two in-plane axes last."""
    return np.moveaxis(array, in_plane, (-2, -1))


def _header(image: Any, shape: tuple[int, ...], dtype: np.dtype[Any], scales: tuple[Fraction, ...]) -> Any:
    """The image's header for its upscaled pixels: size, type, voxel size and position; everything else as it was.

    Each of sform and qform moves by itself and keeps its code; where only one is coded, both hold it. Without either, the
    place that nibabel assumes is written down, because it would assume another one for the new size.
    """
    header = image.header.copy()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    spatial = header.get_zooms()[:3]
    header.set_zooms((*(z / float(r) for z, r in zip(spatial, scales)), *header.get_zooms()[3:]))
    codes = {form: int(image.header[f"{form}_code"]) for form in ("sform", "qform")}
    coded = {form: image.header.get_sform() if form == "sform" else image.header.get_qform() for form in codes if codes[form]}
    if not coded:
        codes["sform"] = 2  # "aligned", as nibabel calls a place that it was told
    sform, qform = (grid.upscaled_affine(coded.get(form, image.affine), scales) for form in ("sform", "qform"))
    header.set_qform(qform, codes["qform"])
    header.set_sform(sform, codes["sform"])
    return header


def _check_gzip(path: Path) -> None:
    """Read a gzip file to its checksum, which nibabel stops short of: damaged pixels must not pass for a patient's."""
    with gzip.open(path) as stream:
        while stream.read(1 << 20):
            pass


def _unreadable(name: str, error: BaseException) -> InputFileError:
    return InputFileError(f"{name} is not a readable NIfTI file, or is truncated ({reason(error)}): copy it again")
