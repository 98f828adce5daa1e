"""DICOM files in a folder, in a zip or in memory: their headers, read with distrust, and their pixels.

Believes no size before it has looked at the file's own, and makes no path of anything that it reads.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import InputFileError, line, reason
from ..inputs import quiet

_PIXELS = 0x7FE00010
_LONGEST_HEADER = 1 << 24  # bytes, which take seconds to parse; those of ten thousand frames are half as long
_UNDEFINED = 0xFFFFFFFF
_LINE = 200  # characters of a name or of a value, in a line
_MAX_INFLATION = 1032  # of deflate: a zip's member cannot hold more for each byte that it takes
_MAX_COMPRESSION = 1 << 16  # of a picture: a black slice of 2 MB takes a hundred bytes in JPEG 2000

# Who decodes what pydicom and Pillow do not; the second half is what pip is told.
_DECODERS = {
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "High-Throughput JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG-LS": "pyjpegls",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
    "RLE": "pylibjpeg pylibjpeg-rle",
}


class Skipped(Exception):
    """A file that is no picture to upscale; its text says why. `uid` is its series', where it could be read.

    A `damaged` one was a picture, or may have been.
    """

    def __init__(self, why: str, uid: str = "", damaged: bool = False) -> None:
        super().__init__(line(why, _LINE))
        self.uid, self.damaged = uid, damaged


@dataclass(frozen=True, eq=False)
class Source:
    """Where a DICOM file's bytes are: a path, a member of a zip, or memory. `name` is for a person's eyes alone.

    `problem` says why it cannot be looked at, or nothing.
    """

    name: str
    size: int
    content: Path | bytes | tuple[zipfile.ZipFile, zipfile.ZipInfo] = field(repr=False)
    problem: str = ""

    def open(self) -> _Bounded:
        """The file's bytes. Raises InputFileError where they are gone or damaged."""
        try:
            if isinstance(self.content, Path):
                return _Bounded(io.FileIO(self.content), self.content.stat().st_size)
            content = self.content if isinstance(self.content, bytes) else self.content[0].read(self.content[1])
            return _Bounded(io.BytesIO(content), len(content))
        except Exception as error:  # the unpackers of damaged members raise whatever they stumble over
            why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
            raise InputFileError(f"{self.name} could not be read ({why}): copy it again") from None

    def header(self) -> Dataset:
        """All of it but the pixels, which are promised and there. Raises Skipped."""
        if self.problem:
            raise Skipped(self.problem)
        with self.open() as file, quiet("pydicom"):
            return _header(file, self.size)

    def frames(self, header: Dataset, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The stored values (rows, columns) of some of its frames, sign and unused bits in order.

        Raises InputFileError where pixels are damaged, or where no decoder for them is installed.
        """
        with self.open() as file, quiet("pydicom"):
            try:
                dataset = _read(file)
                _check_codestreams(dataset)
                frames = [_stored(frame, header) for frame in iter_pixels(dataset, indices=indices, raw=True)]
            except (InputFileError, MemoryError):
                raise
            except Exception as error:  # decoders raise whatever they stumble over
                compressed = header.file_meta.TransferSyntaxUID.is_encapsulated
                advice = f"copy it again, or {decoder_advice(header)}" if compressed else "copy it again"
                raise InputFileError(f"{self.name} holds pixels that cannot be read ({reason(error)}): {advice}") from None
        yield from frames


class _Bounded(io.BufferedReader):
    """A file of which no more is ever asked for than `most` bytes, or than there is: a header that lies costs no memory."""

    name = ""  # which pydicom asks for, and memory has not

    def __init__(self, file: Any, most: int) -> None:
        super().__init__(file)
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.most - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


class _Archive(zipfile.ZipFile):
    """A zip that is silent about its members' damage when it is closed for good; Python's own asserts there."""

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            super().__del__()


def sources(path: Path) -> Iterator[Source]:
    """The files of a folder and all folders in it, or of a zip. Raises InputFileError where `path` itself cannot be read."""
    if not os.path.exists(path):
        raise InputFileError(f"{path} does not exist, or may not be read: check the name")
    try:
        if path.is_dir():
            yield from _in_folder(path)
        elif zipfile.is_zipfile(path):
            yield from _in_zip(path)
        else:
            yield Source(path.name, path.stat().st_size, path)
    except Exception as error:  # the reader of a damaged zip's directory raises whatever it stumbles over
        raise InputFileError(f"{path} could not be read ({reason(error)}): copy it again") from None


def _in_folder(folder: Path) -> Iterator[Source]:
    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for path in sorted(Path(root, name) for name in names):
            regular = path.is_file()
            size = path.stat().st_size if regular else 0
            yield Source(str(path.relative_to(folder)), size, path, "" if regular else "no regular file")


def _in_zip(path: Path) -> Iterator[Source]:
    archive = _Archive(path)
    for member in archive.infolist():
        problem = ""
        if member.flag_bits & 1:
            problem = "encrypted: unpack the zip first"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes what memory a header says
            problem = "neither stored nor deflated: unpack the zip first"
        elif member.compress_size > path.stat().st_size:
            problem = f"claims {member.compress_size:,} bytes, more than the zip has: damaged"
        elif member.file_size > _MAX_INFLATION * member.compress_size + 1024:
            problem = f"claims {member.file_size:,} bytes in {member.compress_size:,}: damaged"
        shown = line(f"{path.name}:{member.filename}", _LINE)
        if not member.is_dir():
            yield Source(shown, member.file_size, (archive, member), problem)


def in_memory(files: Iterable[bytes]) -> Iterator[Source]:
    """DICOM files that came by another way than the disk."""
    for number, content in enumerate(files, 1):
        yield Source(f"file {number}", len(content), content)


def decoder_advice(header: Dataset) -> str:
    """The pip command that brings a decoder for this file's compression."""
    name = header.file_meta.TransferSyntaxUID.name
    packages = next((pip for kind, pip in _DECODERS.items() if name.startswith(kind)), "pylibjpeg")
    return f"pip install {packages}"


def has_decoder(header: Dataset) -> bool:
    syntax = header.file_meta.TransferSyntaxUID
    try:
        return bool(not syntax.is_encapsulated or get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _header(file: _Bounded, size: int) -> Dataset:
    start = file.read(1024)
    if start[128:132] != b"DICM" and start[:2] not in (b"\x08\x00", b"\x02\x00"):  # the latter lack the preamble
        raise Skipped("not DICOM")
    if b"1.2.840.10008.1.2.1.99" in start:
        raise Skipped("deflated as a whole: convert it with dcmconv +te first")
    file.seek(0)
    whole, file.most = file.most, min(file.most, _LONGEST_HEADER)
    try:
        header = _read(file, stop_before_pixels=True)
        file.most = whole
        uids = (header.get(f"{of}UID") for of in ("SeriesInstance", "SOPClass", "SOPInstance"))
        uid, kind, instance = (value if isinstance(value, str) else "" for value in uids)
        sizes = [header.get(k) for k in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
        sizes.append(header.get("NumberOfFrames") or 1)
        bits = [header.get(k) for k in ("BitsStored", "HighBit", "PixelRepresentation")]
        packed = header.file_meta.TransferSyntaxUID.is_encapsulated
    except Exception as error:  # the readers of damaged headers raise whatever they stumble over
        raise Skipped(f"damaged, or not DICOM ({type(error).__name__})", damaged=True) from None
    pixels = _pixel_bytes(file, header, size)
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
    """A file's dataset; one without meta information is told apart from what it begins with, and says so from then on."""
    dataset = dcmread(file, force=True, **options)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _pixel_bytes(file: BinaryIO, header: FileDataset, size: int) -> int | None:
    """How many bytes of pixels really follow where the header ended; None where none are announced, 0 where they break off."""
    implicit, little = header.original_encoding
    order = "little" if little else "big"

    def number(count: int) -> int:
        return int.from_bytes(file.read(count), order)  # type: ignore[arg-type]

    tag = number(2) << 16 | number(2)
    if tag != _PIXELS:
        return None
    if not implicit:
        file.read(4)  # OB or OW, and two bytes of nothing
    length = number(4)
    begin = file.tell()
    if length != _UNDEFINED:
        return max(min(length, size - begin), 0)
    while True:  # items, until the sequence is delimited
        tag, length = number(2) << 16 | number(2), number(4)
        if tag == 0xFFFEE0DD:
            return file.tell() - begin
        if tag != 0xFFFEE000 or file.tell() + length > size:
            return 0
        file.seek(length, os.SEEK_CUR)


def _check_codestreams(dataset: Dataset) -> None:
    """Refuse a compressed picture that says another size than the header, before a decoder believes it."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    for stream in generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)):
        size = codestream_size(stream)
        if size is not None and size != (dataset.Rows, dataset.Columns):
            raise ValueError(f"a picture of {size[0]}×{size[1]} in a header of {dataset.Rows}×{dataset.Columns}")


def codestream_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream says of itself; None for another, such as RLE."""
    if (at := stream.find(b"\xff\x4f\xff\x51", 0, 1024)) >= 0:  # SOC, SIZ
        right, bottom, left, top = (int.from_bytes(stream[at + k : at + k + 4], "big") for k in (8, 12, 16, 20))
        return bottom - top, right - left
    if stream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(stream):
        marker = stream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # SOF; not tables
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _stored(frame: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """Values of BitsStored bits out of their place in BitsAllocated, whatever else, such as an overlay, lies beside them."""
    allocated, stored, high = (int(header[k].value) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    signed = bool(header.PixelRepresentation)
    frame = frame.astype(np.dtype(f"{'i' if signed else 'u'}{allocated // 8}"), copy=False)
    if header.file_meta.TransferSyntaxUID.is_encapsulated:  # its decoder put them right
        return frame
    return np.asarray((frame << (allocated - 1 - high)) >> (allocated - stored))
