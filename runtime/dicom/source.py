"""DICOM files in a folder, in a zip or in memory: headers, read with distrust, and pixels.

No size is believed before it is compared with the file, and no path is made of anything that is read.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import data_element_generator
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_nr_frames, iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import InputFileError, line, reason
from ..inputs import INFLATION, reading

_LONGEST_HEADER = 1 << 24  # bytes, which take seconds to parse; those of ten thousand frames are half as long
_LINE = 200  # characters of a name or of a value, in a line
_MAX_COMPRESSION = 1 << 16  # of a picture: a black slice of 2 MB takes a hundred bytes in JPEG 2000


class Skipped(Exception):
    """Why a file is no picture to upscale. `uid` is its series', where known; a `damaged` file may have been a picture."""

    def __init__(self, why: str, uid: str = "", damaged: bool = False) -> None:
        super().__init__(line(why, _LINE))
        self.uid, self.damaged = uid, damaged


@dataclass(frozen=True, eq=False)
class Source:
    """A DICOM file on disk or in memory. `name` is only shown; `problem` says why it cannot be looked at, or nothing."""

    name: str
    size: int
    content: Path | Callable[[], bytes] = field(repr=False)
    problem: str = ""

    def open(self) -> _Bounded:
        """The file's bytes. Raises InputFileError where they are gone or damaged."""
        with reading(self.name, "DICOM"):
            file: Any = io.FileIO(self.content) if isinstance(self.content, Path) else io.BytesIO(self.content())
            return _Bounded(file, self.size)

    def header(self) -> Dataset:
        """All of it but the pixels, which are promised and there. Raises Skipped."""
        if self.problem:
            raise Skipped(self.problem)
        try:
            with self.open() as file:
                return _header(file)
        except OSError:
            raise Skipped("it could not be read", damaged=True) from None

    def frames(self, header: Dataset, indices: Sequence[int]) -> list[NDArray[Any]]:
        """The stored values (rows, columns) of some frames. Raises InputFileError where they cannot be decoded."""
        with self.open() as file:
            try:
                dataset = _read(file)
                _check_codestreams(dataset)
                return [_stored(frame, header) for frame in iter_pixels(dataset, indices=indices, raw=True)]
            except MemoryError:
                raise
            except Exception as error:  # decoders raise whatever they stumble over
                advice = ", or ".join(filter(None, ("copy it again", decoder(header)[1])))
                raise InputFileError(f"{self.name} holds pixels that cannot be read ({reason(error)}): {advice}") from None


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than `most` bytes: a header that lies about lengths costs no memory."""

    name = ""  # pydicom asks for it

    def __init__(self, file: Any, most: int) -> None:
        super().__init__(file)
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.most - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def sources(path: Path) -> Iterator[Source]:
    """The files of a folder and all folders in it, or of a zip. Raises InputFileError where `path` itself cannot be read."""
    with reading(path, "DICOM"):
        if path.is_dir():
            yield from _in_folder(path)
        elif zipfile.is_zipfile(path):
            yield from _in_zip(path)
        else:
            yield Source(path.name, path.stat().st_size, path)


def _in_folder(folder: Path) -> Iterator[Source]:
    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for path in sorted(Path(root, name) for name in names):
            size, problem = (path.stat().st_size, "") if path.is_file() else (0, "no regular file")
            yield Source(str(path.relative_to(folder)), size, path, problem)


def _in_zip(path: Path) -> Iterator[Source]:
    archive, held = zipfile.ZipFile(path), path.stat().st_size
    for member in archive.infolist():
        size, packed, problem = member.file_size, member.compress_size, ""
        if member.flag_bits & 1:
            problem = "encrypted: unpack the zip first"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes what memory a header says
            problem = "neither stored nor deflated: unpack the zip first"
        elif packed > held or size > INFLATION * packed + 1024:
            problem = f"claims {size:,} bytes in {packed:,} of {held:,}: damaged"
        if not member.is_dir():
            yield Source(line(f"{path.name}:{member.filename}", _LINE), size, partial(archive.read, member), problem)


def decoder(header: Dataset) -> tuple[bool, str]:
    """Whether a file's pixels can be decoded here, and the pip command for a decoder that is missing, or nothing."""
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return True, ""
    try:
        known = get_decoder(syntax)
    except NotImplementedError:
        return False, ""
    missing = [re.findall(r"\bpy[\w-]+(?=>=)", said) for said in known.missing_dependencies]
    return known.is_available, f"pip install {' '.join(missing[-1])}" if missing and missing[-1] else ""


def _header(file: _Bounded) -> Dataset:
    start, size = file.read(1024), file.most
    if start[128:132] != b"DICM" and start[:2] not in (b"\x08\x00", b"\x02\x00"):  # the latter lack the preamble
        raise Skipped("not DICOM")
    if b"1.2.840.10008.1.2.1.99" in start:
        raise Skipped("deflated as a whole: convert it with dcmconv +te first")
    file.seek(0)
    file.most = min(size, _LONGEST_HEADER)
    try:
        header = _read(file, stop_before_pixels=True)
        uids = (header.get(f"{of}UID") for of in ("SeriesInstance", "SOPClass", "SOPInstance"))
        uid, kind, instance = (value if isinstance(value, str) else "" for value in uids)
        sizes = [header.get(k) for k in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
        sizes.append(get_nr_frames(header, warn=False))
        bits = [header.get(k) for k in ("BitsStored", "HighBit", "PixelRepresentation")]
        packed = header.file_meta.TransferSyntaxUID.is_encapsulated
    except Exception as error:  # the readers of damaged headers raise whatever they stumble over
        raise Skipped(f"damaged, or not DICOM ({type(error).__name__})", damaged=True) from None
    file.most = size
    pixels = _pixel_bytes(file, header)
    if pixels is None:
        if "Image Storage" in UID(kind).name and "Rows" in header:
            raise Skipped("truncated: its pixels are missing, copy it again", uid, damaged=True)
        raise Skipped(f"holds no picture ({UID(kind).name or 'of no known kind'})", uid)
    complete = all(isinstance(n, int) for n in (*sizes, *bits)) and min(sizes) > 0 and bits[2] in (0, 1)
    if not (complete and uid and kind and instance):
        why = "damaged: its header lacks the picture's size and type, or what it is and which series it is of"
        raise Skipped(why, uid, damaged=True)
    promised = math.prod(sizes) // 8
    if promised > (size * _MAX_COMPRESSION if pixels and packed else pixels):
        why = f"truncated: its header promises {promised:,} bytes of pixels, it has {pixels:,}; copy it again"
        raise Skipped(why, uid, damaged=True)
    return header


def _read(file: BinaryIO, **options: Any) -> FileDataset:
    """A file's dataset, with the transfer syntax that its bytes show where its meta information names none."""
    dataset = dcmread(file, force=True, **options)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _pixel_bytes(file: _Bounded, header: FileDataset) -> int | None:
    """How many bytes of pixels follow a header; None where none are announced, 0 where they break off."""
    implicit, little = header.original_encoding
    try:
        pixels: Any = next(data_element_generator(file, bool(implicit), bool(little), defer_size=0), None)
    except Exception:  # of a file that ends before its pixels do
        return 0
    if pixels is None or pixels.tag != 0x7FE00010:
        return None
    end = file.tell() if pixels.length == 0xFFFFFFFF else min(pixels.value_tell + pixels.length, file.most)
    return max(int(end - pixels.value_tell), 0)


def _check_codestreams(dataset: Dataset) -> None:
    """Refuse a compressed picture that says another size than the header, before a decoder believes it."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    for stream in generate_frames(dataset.PixelData, number_of_frames=get_nr_frames(dataset, warn=False)):
        size = codestream_size(stream)
        if size and size != (dataset.Rows, dataset.Columns):
            raise ValueError(f"a picture of {size[0]}×{size[1]} in a header of {dataset.Rows}×{dataset.Columns}")


def codestream_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream says of itself; None for another, such as RLE."""
    if (at := stream.find(b"\xff\x4f\xff\x51", 0, 1024)) >= 0:  # SOC, SIZ
        right, bottom, left, top = struct.unpack(">4L", stream[at + 8 : at + 24].ljust(16, b"\0"))
        return bottom - top, right - left
    at = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while at + 9 <= len(stream):
        marker, length, rows, columns = struct.unpack(">xBHxHH", stream[at : at + 9])
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # SOF; not tables
            return rows, columns
        at += 2 + length
    return None


def stored_type(header: Dataset) -> np.dtype[Any]:
    """The type of a picture's stored values."""
    return np.dtype(f"{'ui'[header.PixelRepresentation]}{header.BitsAllocated // 8}")


def _stored(frame: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """Values of BitsStored bits out of their place in BitsAllocated, whatever else, such as an overlay, lies beside them."""
    frame = frame.astype(stored_type(header), copy=False)
    if header.file_meta.TransferSyntaxUID.is_encapsulated:  # its decoder put them right
        return frame
    return np.asarray((frame << (header.BitsAllocated - 1 - header.HighBit)) >> (header.BitsAllocated - header.BitsStored))
