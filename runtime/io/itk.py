"""NRRD and MetaImage ↔ scans: ITK's LPS millimetres ↔ ours, RAS. Names, comments and a scanner's fields are not carried over.

SimpleITK, an optional library, writes them. It does not read them, as damaged headers crash its readers and the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, InputFileError, OutputFileError
from ..inputs import believe, inflated, library, reading
from ..intensity import exact_float
from ..scan import FARTHEST, Scan, is_place

_LIBRARIES = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
SUFFIXES = tuple(_LIBRARIES)
WRITTEN = (".nrrd", ".mha")  # the other two are two files, of which a crash may leave one
_KIND = "an NRRD or MetaImage file"
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LONGEST_HEADER = 1 << 20  # bytes
_TYPES = {
    name: np.dtype(code)
    for code, names in {
        "i1": "signed char, int8, int8_t, met_char, met_ascii_char",
        "u1": "unsigned char, uchar, uint8, uint8_t, met_uchar",
        "i2": "short, short int, signed short, signed short int, int16, int16_t, met_short",
        "u2": "unsigned short, unsigned short int, ushort, uint16, uint16_t, met_ushort",
        "i4": "int, signed int, int32, int32_t, met_int, met_long",
        "u4": "unsigned int, uint, uint32, uint32_t, met_uint, met_ulong",
        "i8": "long long, long long int, signed long long, signed long long int, longlong, int64, int64_t, met_long_long",
        "u8": "unsigned long long, unsigned long long int, ulonglong, uint64, uint64_t, met_ulong_long",
        "f4": "float, met_float",
        "f8": "double, met_double",
    }.items()
    for name in names.split(", ")
}
_SAMPLED = ("domain", "space", "time", "???", "none")  # NRRD's kinds of axis along which there are samples
_SPACES = "(r|l|right|left)(a|p|anterior|posterior)(s|superior)(t|time)?|((scannerxyz|3drighthanded|3dlefthanded)(time)?)?"


def files_of(path: Path) -> list[Path]:
    """The file, and the one beside it that a detached header names. Raises InputFileError for a name that leads elsewhere."""
    return list(dict.fromkeys((path, _header(path).pixels)))


def read(path: Path) -> Scan:
    """An NRRD or MetaImage file of two to four axes, of which the fourth is time in seconds.

    Raises InputFileError for a file that is missing, truncated, not what its name says, or whose pixels lie elsewhere than
    beside it, and ImageError for pixels that are not real numbers.
    """
    header, content = _header(path), bytearray()
    promised = math.prod(header.sizes) * header.dtype.itemsize
    with reading(path, _KIND):
        size = header.pixels.stat().st_size
        start = max(0, size - promised) if header.start < 0 else header.start

        def kept() -> Iterator[bytes]:
            for piece in inflated(header.pixels, start):
                content.extend(piece)
                yield piece

        believe(path, promised, max(0, size - start), kept() if header.compressed else None)
        packed: Any = content if header.compressed else np.fromfile(header.pixels, np.uint8, promised, offset=start)
        array = np.frombuffer(packed, header.dtype, math.prod(header.sizes)).reshape(header.sizes, order="F")
    array = array.astype(header.dtype.newbyteorder("="), copy=False)
    array = array if header.listed is None else np.moveaxis(array, header.listed, -1)
    spatial, affine = min(3, len(header.origin)), np.eye(4)
    affine[:spatial, :spatial] = header.steps[:spatial, :spatial]
    affine[:spatial, 3] = header.origin[:spatial]
    steps = np.linalg.norm(header.steps, axis=0).tolist()
    timed = len(steps) == 4
    return Scan(array, tuple(steps[:3]), _TO_RAS @ affine, alike=timed, seconds=steps[3] if timed else 0.0)


def writer(path: Path, scan: Scan) -> Callable[[IO[bytes]], None]:
    """What writes a scan's pixels, as they are then, to an open file in the format of the name, compressed.

    A slope, which neither format has, is applied. Raises OutputFileError where the format cannot hold the scan.
    """
    if not 2 <= scan.pixels.ndim <= 4:
        raise OutputFileError(f"{path} cannot hold an image of shape {scan.shape}: write .nii.gz")
    sitk = library("SimpleITK", "NRRD or MetaImage")
    try:
        _to_itk(sitk, replace(scan, pixels=scan.pixels[(slice(1),) * scan.pixels.ndim]))
    except (TypeError, KeyError, NotImplementedError):
        raise OutputFileError(f"neither NRRD nor MetaImage holds {scan.pixels.dtype}: choose another type by --dtype") from None
    except RuntimeError as error:
        raise OutputFileError(f"{path} cannot hold the volume's place ({_last_line(error)}): write .nii.gz") from None

    def write(file: IO[bytes]) -> None:
        try:
            sitk.WriteImage(_to_itk(sitk, scan), str(file.name), useCompression=True, imageIO=_LIBRARIES[path.suffix.lower()])
        except RuntimeError as error:
            raise OSError(_last_line(error)) from None

    return write


def _to_itk(sitk: Any, scan: Scan) -> Any:
    data = scan.real(scan.pixels)
    if data is not scan.pixels:
        data = data.astype(exact_float(scan.pixels.dtype))
    if data.ndim == 2:
        data = data[..., None]  # with two axes it would have no place in space
    affine, later = _TO_RAS @ scan.affine, data.ndim - 3
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = np.eye(data.ndim)
    directions[:3, :3] = (affine[:3, :3] / spacing).round(15)  # or ITK prints doubts of numbers such as 1e-40
    result = sitk.GetImageFromArray(data.T, isVector=False)
    result.SetOrigin([*affine[:3, 3], *[0.0] * later])
    result.SetSpacing([*spacing, *[scan.seconds if scan.seconds > 0 else 1.0] * later])  # ITK knows no other
    result.SetDirection(directions.ravel().tolist())
    return result


@dataclass(frozen=True)
class _Header:
    """What a header says: where the pixels are, what they are, and where in space they lie. Raises ValueError for nonsense."""

    pixels: Path
    start: int  # byte of the pixels; -1: they are the last bytes
    compressed: bool
    dtype: np.dtype[Any]
    sizes: list[int]
    listed: int | None  # the axis that is a list of volumes
    steps: NDArray[np.float64]  # along each other axis, in columns: mm as ITK counts them, seconds
    origin: NDArray[np.float64]

    def __post_init__(self) -> None:
        axes = len(self.origin) + (self.listed is not None)
        if len(self.sizes) != axes or not all(0 < size < 1 << 31 for size in self.sizes):
            raise ValueError(f"its sizes are {self.sizes}")
        if self.start < -1 or (self.start == -1 and self.compressed):
            raise ValueError(f"its pixels begin at byte {self.start}")
        if not is_place(self.steps) or not np.isfinite(self.origin).all():
            raise ValueError("its directions, spacings or origin name no place in space")


class _Fields(dict[str, str]):
    def __missing__(self, name: str) -> str:
        raise ValueError(f"it has no field {name!r}")


def _header(path: Path) -> _Header:
    """Raises InputFileError for a header that is damaged or unknown, ImageError for pixels that are not real numbers."""
    with reading(path, _KIND), open(path, "rb") as file:
        return _nrrd(path, file) if path.suffix.lower() in (".nrrd", ".nhdr") else _meta(path, file)


def _nrrd(path: Path, file: IO[bytes]) -> _Header:
    if not re.fullmatch(rb"NRRD00(\.01|0[1-5])\s*", file.readline(20)):
        raise ValueError("it does not begin with NRRD0001 to NRRD0005")
    fields = _fields(file, nrrd=True)
    if unknown := sorted({"axismins", "axismaxs", "lineskip"} & fields.keys()):
        raise ValueError(f"its field {unknown[0]} is not understood")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputFileError(f"{path} is encoded as {encoding!r}: save it raw or as gzip")
    dtype = _type(fields["type"])
    order = fields["endian"].lower() if dtype.itemsize > 1 else "little"
    sizes = [int(size) for size in fields["sizes"].split()]
    kinds = fields.get("kinds", "domain " * len(sizes)).lower().split()
    if not len(sizes) == len(kinds) == int(fields["dimension"]) or order not in ("little", "big"):
        raise ValueError(f"it has {len(sizes)} sizes and {len(kinds)} kinds of {fields['dimension']} axes, in {order} order")
    sampled = [axis for axis, kind in enumerate(kinds) if kind in _SAMPLED]
    others = [axis for axis in range(len(kinds)) if axis not in sampled]
    count = len(sampled)
    listed = others[0] if count == 3 and [kinds[axis] for axis in others] == ["list"] else None
    if listed is None:
        _check_axes(path, count, math.prod(sizes[axis] for axis in others))
        sizes = [sizes[axis] for axis in sampled]
    if not (space := re.fullmatch(_SPACES, re.sub("[- ]", "", fields.get("space", "").lower()))):
        raise ValueError(f"its space is {fields['space']!r}")
    to_lps = np.array([-1 if space[1] in ("r", "right") else 1, -1 if space[2] in ("a", "anterior") else 1, 1, 1][:count])
    if "spacedirections" in fields:
        vectors = re.findall(r"none|\([^()]*\)", fields["spacedirections"].lower().replace(",", " "))
        if len(vectors) != len(kinds):
            raise ValueError(f"its space directions are {fields['spacedirections']!r}")
        steps = np.transpose([_numbers(vectors[axis].strip("()"), count) for axis in sampled]) * to_lps[:, None]
    else:
        spacings = _numbers(fields.get("spacings", "1 " * len(kinds)), len(kinds))[sampled]
        steps = np.diag(np.nan_to_num(spacings, nan=1.0))
    origin = _numbers(fields.get("spaceorigin", "0 " * count).strip("()").replace(",", " "), count) * to_lps
    pixels, start = _beside(path, fields.get("datafile", "")), int(fields.get("byteskip", "0"))
    if start and encoding != "raw":
        raise ValueError("it skips bytes of compressed pixels")
    if start >= 0 and pixels == path:
        start += file.tell()
    dtype = dtype.newbyteorder("<" if order == "little" else ">")
    return _Header(pixels, start, encoding != "raw", dtype, sizes, listed, steps, origin)


def _meta(path: Path, file: IO[bytes]) -> _Header:
    fields = _fields(file, nrrd=False)
    axes = int(fields["ndims"])
    _check_axes(path, axes, int(fields.get("elementnumberofchannels", "1")))

    def first(*names: str, default: str) -> str:
        return next((fields[name] for name in names if name in fields), default)

    def true(*names: str, default: str = "false") -> bool:
        return first(*names, default=default)[:1].lower() in ("t", "1")

    if not true("binarydata", default="true"):
        raise InputFileError(f"{path} holds its pixels as text (BinaryData = False): save it as binary")
    dtype = _type(fields["elementtype"]).newbyteorder(">" if true("binarydatabyteordermsb", "elementbyteordermsb") else "<")
    sizes = [int(size) for size in fields["dimsize"].split()[:axes]]
    identity = " ".join(map(str, np.eye(axes).ravel()))
    cosines = _numbers(first("transformmatrix", "rotation", "orientation", default=identity), axes * axes)
    spacing = _numbers(first("elementspacing", "elementsize", default="1 " * axes), axes)
    origin = _numbers(first("origin", "offset", "position", default="0 " * axes), axes)
    pixels, start = _beside(path, fields["elementdatafile"]), int(fields.get("headersize", "0"))
    if not start and pixels == path:
        start = file.tell()
    steps = cosines.reshape(axes, axes).T * spacing
    return _Header(pixels, start, true("compresseddata"), dtype, sizes, None, steps, origin)


def _fields(file: IO[bytes], nrrd: bool) -> _Fields:
    """The fields of a header by their names, in lower case without spaces. The file is left at the first byte after it."""
    fields = _Fields()
    pattern = "([^:=]+):(?!=)(.*)" if nrrd else "([^:=]+)[:=](.*)"  # NRRD's `key:=value` is no field
    for line in iter(lambda: file.readline(_LONGEST_HEADER - file.tell()), b""):
        text = line.decode("utf-8", "surrogateescape").strip()
        if field := re.match(pattern, text):
            fields["".join(field[1].lower().split())] = field[2].strip()
        if not text if nrrd else "elementdatafile" in fields:
            break
    if file.tell() >= _LONGEST_HEADER:
        raise ValueError(f"its header is longer than {_LONGEST_HEADER:,} bytes")
    return fields


def _beside(path: Path, named: str) -> Path:
    """The file that a header names, or the header's own for LOCAL. Raises InputFileError for any other but one beside it."""
    if named.lower() in ("", "local"):
        return path
    named = named.removeprefix("./")
    if not re.fullmatch(r"[^/\\\0]+", named) or re.match(r"\.\.?$|LIST|.*%\d*d", named):
        raise InputFileError(
            f"{path} says that its pixels are in {named!r}: put one file beside it, and that file's bare name into it"
        )
    return path.with_name(named)


def _check_axes(path: Path, axes: int, parts: int) -> None:
    if parts != 1 or not 2 <= axes <= 4:
        raise ImageError(f"{path} has {axes} axes of {parts} numbers a voxel: give two to four of one real number a voxel")


def _type(name: str) -> np.dtype[Any]:
    if (squeezed := " ".join(name.lower().split())) not in _TYPES:
        raise ValueError(f"its values are of type {name!r}")
    return _TYPES[squeezed]


def _numbers(text: str, count: int) -> NDArray[np.float64]:
    """The first numbers of a text, which may have more; NaN is one."""
    numbers = np.array([float(number) for number in text.split()[:count]])
    if len(numbers) != count or (abs(numbers) > FARTHEST).any():
        raise ValueError(f"it has {text!r} in place of {count} numbers")
    return numbers


def _last_line(error: RuntimeError) -> str:
    """Of what ITK says, which is its reason; the lines above tell where in its source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
