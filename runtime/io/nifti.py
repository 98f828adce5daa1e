"""NIfTI files ↔ scans: every point keeps its place in millimetres, every value its type, the header the rest that it said."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from .. import grid, headers
from ..errors import ImageError, InputFileError, reason
from ..inputs import believe, inflated, quiet, reading
from ..intensity import real_array
from ..measure import UNKNOWN, Fractions
from ..scan import Scan

SUFFIXES = (".nii.gz", ".nii")
_KIND = "a NIfTI file"
_AGREE = 1e-3  # of a voxel's length
_SHEARED = 1e-4  # cosine between two axes
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # by the code of a unit; every other is taken for mm
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
_LARGEST = 1e30  # slopes, with which values stay within floats
_FARTHEST = 1 << 26  # bytes before the pixels: headers' extensions
_WORDS = ("descrip", "aux_file", "db_name", "intent_name")


def read(path: Path) -> Scan:
    """A NIfTI file, with what the BIDS sidecar beside it says of the acquired matrix. Raises as `load` and `of_image` do."""
    image = load(path)
    return of_image(image, headers.beside(path, image.shape))


def load(path: Path) -> Any:
    """A NIfTI image whose pixels stay on disk. Raises InputFileError for a file that is missing, truncated or not NIfTI."""
    with reading(path, _KIND), quiet("nibabel.global"), np.errstate(all="ignore"):
        packed = path.suffix.lower() == ".gz"
        with open(path, "rb") as file:
            start = file.read(348)
        plain = start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2")
        if plain if packed else start[:2] == b"\x1f\x8b":
            said, right = ("not compressed", ".nii") if plain else ("compressed", ".nii.gz")
            raise InputFileError(f"{path} is {said} by gzip, but its name says otherwise: rename it to {right}")
        with gzip.open(path) if packed else open(path, "rb") as file:
            start = file.read(544)
            second = 540 in (int.from_bytes(start[:4], order) for order in ("little", "big"))
            kind = nib.Nifti2Image if second else nib.Nifti1Image
            size = kind.header_class.template_dtype.itemsize
            offset = float(kind.header_class(start[:size].ljust(size, b"\0"), check=False)["vox_offset"])
            if not offset <= _FARTHEST:
                raise ValueError(f"its pixels would begin at byte {offset:g}")
            head = start + file.read(max(0, int(offset) - len(start)))  # no length in it makes nibabel ask for more
        header = kind.header_class.from_fileobj(io.BytesIO(head))
        header["vox_offset"] = max(header["vox_offset"], header.single_vox_offset)  # which some tools leave at 0
        pixels, files = nib.arrayproxy.ArrayProxy(path, header), kind.filespec_to_file_map(path)
        promised = int(header["vox_offset"]) + math.prod(pixels.shape) * header.get_data_dtype().itemsize
        believe(path, promised, path.stat().st_size, inflated(path) if packed else None)
        return kind(pixels, header.get_best_affine(), header, file_map=files)


def of_image(image: Any, acquired: Fractions = UNKNOWN) -> Scan:
    """A nibabel image, its pixels in memory; `acquired` is what else than its header says of the acquired matrix.

    Raises ImageError for what is no NIfTI image, for vectors and for pixels that are not real numbers, and InputFileError where
    the file ends too early.
    """
    if not isinstance(image, nib.Nifti1Image):
        raise ImageError(f"a {type(image).__name__} is not a NIfTI image: give a nibabel Nifti1Image or Nifti2Image")
    header, pixels, slope, inter = image.header, image.dataobj, 1.0, 0.0
    intent = header.get_intent()[0]
    if "vector" in intent or intent.startswith("displacement"):
        raise ImageError(f"the header's intent is {intent!r}: a network for images would change vectors, resample them instead")
    if isinstance(pixels, nib.arrayproxy.ArrayProxy):
        slope, inter = float(pixels.slope), float(pixels.inter)
        with reading(image.get_filename(), _KIND):
            pixels = pixels.get_unscaled()
    if not 1 / _LARGEST < abs(slope) < _LARGEST or not abs(inter) < _LARGEST:
        raise ImageError(f"the header scales values by {slope:g} and adds {inter:g}: repair scl_slope and scl_inter")
    units = int(header["xyzt_units"])
    unit, time = _MILLIMETRES.get(units & 7, 1.0), units & 56
    affine = np.array(image.affine, float)
    with np.errstate(over="ignore", invalid="ignore"):
        affine[:3] *= unit
    return Scan(
        real_array(pixels),
        tuple(size * unit for size in _voxel_size(image)),
        affine,
        slope=slope,
        inter=inter,
        labels=intent == "label",
        alike=time in _SECONDS,
        seconds=float(header.get_zooms()[3]) * _SECONDS.get(time, 1.0) if len(image.shape) > 3 else 0.0,
        acquired=acquired,
        header=image,
    )


def image_of(scan: Scan) -> Any:
    """A scan as an image of its header's class that shares its pixels, as they are to be stored: nibabel does not scale them.

    The header is that of the image the scan was read from, but for size, type, voxel size and place; else a new one. Raises
    ImageError for a place or a type that NIfTI cannot describe.
    """
    known = isinstance(scan.header, nib.Nifti1Image)
    kind, header = (type(scan.header), scan.header.header.copy()) if known else (nib.Nifti1Image, nib.Nifti1Header())
    try:
        with np.errstate(all="ignore"):
            header.set_data_shape(scan.shape)
            header.set_data_dtype(scan.pixels.dtype)
            _move(header, scan) if known else _place(header, scan)
            image = kind(scan.pixels, header.get_best_affine(), header)
    except (HeaderDataError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise ImageError(
            f"a NIfTI header cannot describe the volume {scan.shape} of {scan.pixels.dtype} ({reason(error)}): "
            "repair its sform, qform or pixdim, or give a smaller scale or another --dtype"
        ) from None
    image.header.set_slope_inter(scan.slope, scan.inter)
    return image


def reopened(image: Any) -> Any:
    """An image of `image_of` as nibabel gives it after saving and loading: its slope applied where there is one."""
    return image if image.header.get_slope_inter() == (1, 0) else type(image).from_bytes(image.to_bytes())


def writer(path: Path, scan: Scan, anonymous: bool = False) -> Callable[[IO[bytes]], None]:
    """What writes a scan's pixels, as they are then, to an open file; .gz in the name compresses it, with no time stamp.

    An `anonymous` file lacks what the header said in words, and its extensions, which may hold a whole DICOM header. Raises
    ImageError as `image_of` does.
    """
    image = image_of(scan)
    if anonymous:
        for name in {*_WORDS} & {*image.header.keys()}:  # NIfTI-2 has no db_name
            image.header[name] = b""
        image.header.extensions.clear()

    def write(file: IO[bytes]) -> None:
        packed = path.suffix.lower() == ".gz"
        with gzip.GzipFile("", "wb", 1, file, mtime=0) if packed else contextlib.nullcontext(file) as stream:
            image.to_stream(stream)

    return write


def _voxel_size(image: Any) -> tuple[float, ...]:
    """The length of a voxel along each of up to three axes, in the header's unit: the affine's, as many tools forget pixdim."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
        return tuple(
            float(said) if abs(length - said) <= _AGREE * length else float(f"{length:.6g}")  # the shorter, where both agree
            for length, said in zip(lengths, image.header.get_zooms()[:3])
        )


def _move(header: Any, scan: Scan) -> None:
    """Place finer voxels where the header has those that it is of; slice timing goes where the slices were upscaled.

    Each of sform and qform keeps its code; where only one is coded, both hold it. Without either, the place that nibabel
    assumes is written down, because it would assume another one for the new size.
    """
    image, scales = scan.header, scan.scales
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    coded = {form: getattr(header, f"get_{form}")() for form in codes if codes[form]}
    if not coded:
        codes["sform"] = 2  # "aligned", as nibabel calls a place that it was told
    sform, qform = (grid.upscaled_affine(coded.get(form, image.affine), scales) for form in ("sform", "qform"))
    if not all(np.isfinite(form).all() and np.linalg.det(form[:3, :3]) for form in (sform, qform)):
        raise ValueError("it names no place in space")
    header.set_qform(qform, codes["qform"])
    header.set_sform(sform, codes["sform"])
    old = image.header["pixdim"][1:4].copy()
    if not codes["qform"]:  # which is of pixdim
        old[: len(image.shape)] = _voxel_size(image)
    header["pixdim"][1:4] = old / np.array([float(r) for r in scales], np.float32)
    timed = header.get_dim_info()[2]
    if timed is not None and scales[timed] != 1:
        header["slice_start"] = header["slice_end"] = header["slice_duration"] = header["slice_code"] = 0


def _place(header: Any, scan: Scan) -> None:
    """Place voxels as their affine does, which may be sheared, as a quaternion cannot be."""
    assert scan.affine is not None
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > _SHEARED
    header.set_qform(scan.affine, 0 if sheared else 1)
    header.set_sform(scan.affine, 1)
    header.set_xyzt_units("mm", "sec" if scan.alike else None)
    if scan.pixels.ndim > 3:
        header.set_zooms((*header.get_zooms()[:3], scan.seconds, *header.get_zooms()[4:]))
