"""NRRD and MetaImage ↔ scans through SimpleITK, an optional library: ITK's LPS millimetres ↔ ours, RAS.

What the two formats hold beyond pixels and their place (names, comments, a scanner's fields) is not carried over.
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, InputFileError, OutputFileError, reason
from ..inputs import believe, inflated, library, unreadable
from ..scan import Scan

_LIBRARIES = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
SUFFIXES = tuple(_LIBRARIES)
WRITTEN = (".nrrd", ".mha")  # the other two are two files, of which a crash may leave one
_KIND = "an NRRD or MetaImage file"
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LONGEST_HEADER = 1 << 20  # bytes


def check_writable_as(path: Path) -> None:
    """Raise OutputFileError for a name that would be two files, MetasrganError where SimpleITK is missing."""
    if path.suffix.lower() not in WRITTEN:
        raise OutputFileError(f"{path} would be two files, of which one may be lost: write {' or '.join(WRITTEN)}")
    _simple_itk()


def files_of(path: Path) -> list[Path]:
    """The file, and the one beside it that a detached header names. Raises InputFileError for a name that leads elsewhere."""
    return list(dict.fromkeys((path, _Pixels.of(path).path)))


def read(path: Path) -> Scan:
    """An NRRD or MetaImage file of two to four axes, of which the fourth is time in seconds.

    Raises InputFileError for a file that is missing, truncated, not what its name says, or whose pixels lie elsewhere than
    beside it, and ImageError for pixels that are not real numbers.
    """
    sitk = _simple_itk()
    pixels = _Pixels.of(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_LIBRARIES[path.suffix.lower()])
    try:
        with _plain_name(path, pixels.path) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
            size, kind = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
            parts = reader.GetNumberOfComponents()
            if (parts != 1 and not pixels.listed) or "complex" in kind or not 2 <= len(size) <= 4:
                raise ImageError(f"{path} has {len(size)} axes of {kind}: give two to four of one real number a voxel")
            bits = int(kind.removeprefix("vector of ").partition("-")[0])  # "16-bit signed integer"
            believe(path, _KIND, parts * math.prod(size) * bits // 8, pixels.size, pixels.inflate)
            image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, _KIND, _last_line(error)) from None
    spatial = min(3, len(size))
    directions = np.reshape(image.GetDirection(), (len(size),) * 2)[:spatial, :spatial]
    affine = np.eye(4)
    affine[:spatial, :spatial] = directions * image.GetSpacing()[:spatial]
    affine[:spatial, 3] = image.GetOrigin()[:spatial]
    array = sitk.GetArrayFromImage(image).T
    array = np.moveaxis(array, 0, -1) if parts > 1 else array
    timed, spacing = len(size) == 4, image.GetSpacing()
    return Scan(array, spacing[:3], _TO_RAS @ affine, alike=timed, seconds=spacing[3] if timed else 0.0)


@contextlib.contextmanager
def _plain_name(path: Path, pixels: Path) -> Iterator[str]:
    """The path of a header in ASCII, its pixels' file beside it: ITK aborts at other names where the locale is C."""
    if str(path.absolute()).isascii():
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"header{path.suffix}")
        link.symlink_to(path.absolute())
        if pixels != path:
            Path(folder, pixels.name).symlink_to(pixels.absolute())
        yield str(link)


def writer(path: Path, scan: Scan) -> Callable[[IO[bytes]], None]:
    """What writes a scan's pixels, as they are then, to an open file in the format of the name, compressed.

    A slope, which neither format has, is applied: real values are written, in a float type that holds them.
    Raises OutputFileError where the format cannot hold the scan.
    """
    check_writable_as(path)
    if not 2 <= scan.pixels.ndim <= 4:
        raise OutputFileError(f"{path} cannot hold an image of shape {scan.shape}: write .nii.gz")
    sitk = _simple_itk()
    try:
        sitk.GetImageFromArray(np.zeros((1, 1), _real(scan.pixels[:0], scan).dtype))
    except (TypeError, KeyError, NotImplementedError):
        raise OutputFileError(f"neither NRRD nor MetaImage holds {scan.pixels.dtype}: choose another type by --dtype") from None

    def write(file: IO[bytes]) -> None:
        itk_writer = sitk.ImageFileWriter()
        itk_writer.SetImageIO(_LIBRARIES[path.suffix.lower()])
        itk_writer.SetFileName(str(file.name))  # ITK writes to names alone
        itk_writer.SetUseCompression(True)
        try:
            itk_writer.Execute(_to_itk(sitk, scan))
        except RuntimeError as error:
            raise OSError(_last_line(error)) from None

    return write


def _real(pixels: NDArray[Any], scan: Scan) -> NDArray[Any]:
    values = scan.real(pixels)
    return values if values is pixels else values.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)


def _to_itk(sitk: Any, scan: Scan) -> Any:
    data = _real(scan.pixels, scan)
    if data.ndim == 2:
        data = data[..., None]  # with two axes it would have no place in space
    affine = _TO_RAS @ scan.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = np.eye(data.ndim)
    directions[:3, :3] = affine[:3, :3] / spacing
    later = data.ndim - 3
    result = sitk.GetImageFromArray(data.T, isVector=False)
    result.SetOrigin([*affine[:3, 3], *[0.0] * later])
    result.SetSpacing([*spacing, *[scan.seconds if scan.seconds > 0 else 1.0] * later])  # ITK knows no other
    result.SetDirection(directions.ravel().tolist())
    return result


@dataclass(frozen=True)
class _Pixels:
    """Where the pixels of an image are: the file, how many bytes of it they may be, and how to inflate them."""

    path: Path
    size: int
    inflate: Callable[[], Any] | None
    listed: bool  # one axis is a list of volumes, not a part of space

    @classmethod
    def of(cls, path: Path) -> _Pixels:
        """What the text of a header says; everything else in it is ITK's to read."""
        try:
            with open(path, "rb") as file:
                fields, length = _fields(file.read(_LONGEST_HEADER), path.suffix.lower() in (".nrrd", ".nhdr"))
            named = fields.get("datafile") or fields.get("elementdatafile", "")
            local = not named or named.lower() == "local"
            if not local and "%" in named:
                raise InputFileError(
                    f"{path} names its pixels {named!r}, and a percent sign stands for a number there: rename both without it"
                )
            if not local and (not re.fullmatch(r"[^/\\%\0]+", named) or named in (".", "..") or named.startswith("LIST")):
                raise InputFileError(
                    f"{path} says that its pixels are in {named!r}: put one file beside it, and that file's bare name into it"
                )
            data = path if local else path.with_name(named)
            size = data.stat().st_size - (length if local else 0)
        except FileNotFoundError as error:
            raise InputFileError(f"{error.filename} does not exist: check the name") from None
        except InputFileError:
            raise
        except (OSError, ValueError) as error:
            raise unreadable(path, _KIND, reason(error)) from None
        if fields.get("binarydata", "true").lower() in ("false", "0"):
            raise InputFileError(f"{path} holds its pixels as text (BinaryData = False): save it as binary")
        encoding = fields.get("encoding", "raw").lower()
        if encoding not in ("raw", "gzip", "gz"):
            raise InputFileError(f"{path} is encoded as {encoding!r}: save it raw or as gzip")
        compressed = encoding != "raw" or fields.get("compresseddata", "false").lower() in ("true", "1")
        listed = "list" in fields.get("kinds", "").split()
        return cls(data, size, partial(inflated, data, length if local else 0) if compressed else None, listed)


def _fields(start: bytes, nrrd: bool) -> tuple[dict[str, str], int]:
    """The fields of a header by their names, in lower case without spaces, and its length in bytes."""
    fields: dict[str, str] = {}
    position = 0
    for line in start.splitlines(keepends=True):
        position += len(line)
        text = line.decode("utf-8", "surrogateescape").strip()
        if nrrd and not text:
            break  # the blank line after which pixels begin
        parts = re.split(":" if nrrd else "[=:]", text, maxsplit=1)
        if len(parts) == 2 and not text.startswith("#"):
            name = "".join(parts[0].lower().split())
            fields[name] = parts[1].strip()
            if name == "elementdatafile":
                break
    return fields, position


def _simple_itk() -> Any:
    return library("SimpleITK", "NRRD or MetaImage")


def _last_line(error: RuntimeError) -> str:
    """Of what ITK says, which is its reason; the lines above tell where in its source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
