"""Pictures and arrays on disk: PNG, JPEG and BMP through Pillow, TIFF through tifffile, NPY through numpy."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ..errors import ImageError, InputFileError, MetasrganError, OutputFileError, reason
from ..inputs import believe, library, quiet, unreadable
from ..intensity import real_array
from ..scan import Scan

_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
SUFFIXES = (*_PICTURES, ".npy")
_KIND = "a picture"
_DENSEST = 4096  # bytes of pixels that a byte of a picture's file makes at most, but for small blank ones
_SMALL = 1 << 24
_LONGEST_JPEG = 65_500  # pixels an axis
_LONGEST_HEADER = 10_000  # bytes that numpy reads of NPY's
_BAND = 1 << 20  # pixels that are converted at a time
# TIFF's photometric interpretation and channels, and Pillow's name for them.
_MODES = {(0, 1): "L", (1, 1): "L", (1, 2): "LA", (2, 3): "RGB", (2, 4): "RGBA", (3, 1): "P", (5, 4): "CMYK", (6, 3): "RGB"}
_JPEG_IN_TIFF = (6, 7)
_UNPACKED = (1, 2, 3, 4, 5, *_JPEG_IN_TIFF, 8, 32773, 32946, 34925, 50000)  # CCITT, LZW, deflate, PackBits, LZMA, Zstandard
# EXIF's entry, of either byte order: its number, a 16-bit integer, one of them, and which corner the first pixel has.
_ORIENTATION = re.compile(rb"\x12\x01\x03\0\x01\0\0\0([\x01-\x08])\0|\x01\x12\0\x03\0\0\0\x01\0([\x01-\x08])")
# Of NPY: Python warns of the first, numpy of the second, and makes room for the third, a very long text.
_ODD_HEADER = re.compile(rb"[^{]*\{[^}]*?(\\|\d[A-Za-z_]|[A-Za-z]\d{4})")


def read(path: Path) -> Scan:
    """A picture, or a stack (N, H, W), as a scan that has no place in space.

    Raises as `load` does, and ImageError for an array that is neither.
    """
    raw, colour = _load(path)
    pixels = real_array(raw)
    if not 2 <= pixels.ndim <= 3:
        raise ImageError(f"the image has shape {pixels.shape}: give (H, W) or (N, H, W)")
    stack = 0 if pixels.ndim == 3 else None
    return Scan(np.moveaxis(pixels, -1, 0) if colour else pixels, stack=stack, labels=raw.dtype == bool, colour=colour)


def load(path: Path) -> NDArray[Any]:
    """The pixels in their own dtype: (H, W), (H, W, 3) uint8 of a colour picture, (N, H, W) of a TIFF file's grey pages.

    Of an NPY file, the array as it is. Fewer than 8 bits become 0…255, and a picture that is tagged as turned is turned.
    Raises InputFileError for a file that is missing, truncated or not an image, and for what would be lost: transparency,
    moving pictures, deep colours; MetasrganError for TIFF without tifffile, and for compressed TIFF without imagecodecs.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[NDArray[Any], bool]:
    """The pixels, and whether they are colours."""
    try:
        if path.suffix.lower() == ".npy":
            return _array(path), False
        with open(path, "rb") as file:
            start = file.read(2)
            if start in (b"II", b"MM"):
                return _tiff(path, library("tifffile", "TIFF"))
            if start == b"\x89P":
                _check_png(path, file)
        plugins: dict[bytes, Callable[[Path], Image.Image]] = {b"\x89P": PngImageFile, b"\xff\xd8": _Jpeg, b"BM": BmpImageFile}
        if start not in plugins:
            raise InputFileError(f"{path} is no PNG, JPEG, TIFF or BMP file: check what it is, or save it as one")
        with plugins[start](path) as picture:  # Image.open would warn of large pictures
            pixels = _pixels(path, picture)
            turned = _ORIENTATION.search(picture.info.get("exif", b""))
            return _upright(pixels, ord(turned[1] or turned[2]) if turned else 1), pixels.ndim == 3
    except MetasrganError:
        raise
    except FileNotFoundError:
        raise InputFileError(f"{path} does not exist: check the name") from None
    except MemoryError:
        raise InputFileError(f"{path} claims to hold more than this machine's memory: it is damaged, or too large") from None
    except Exception as error:  # the readers of damaged headers raise whatever they stumble over
        raise unreadable(path, _KIND, reason(error)) from None


def _array(path: Path) -> NDArray[Any]:
    """The array of an NPY file; np.load would make room for what a header promises."""
    with open(path, "rb") as file:
        start = file.read(_LONGEST_HEADER)
        header = io.BytesIO(start)
        version = np.lib.format.read_magic(header)
        if version not in ((1, 0), (2, 0)) or _ODD_HEADER.match(start):
            raise unreadable(path, "a NumPy array", "its header is damaged, or of Python 2")
        formats = np.lib.format
        read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, fortran, dtype = read(header)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise unreadable(path, "a NumPy array", f"it has objects of Python, or the shape {shape}")
        count = math.prod(shape)
        believe(path, _KIND, count * dtype.itemsize, path.stat().st_size - header.tell())
        file.seek(header.tell())
        return np.fromfile(file, dtype, count).reshape(shape, order="F" if fortran else "C")


class _Jpeg(JpegImageFile):
    def getexif(self) -> Image.Exif:
        """Nothing: Pillow looks in it for dots per inch, and warns where it is damaged."""
        return Image.Exif()


def _check_png(path: Path, file: IO[bytes]) -> None:
    """Raise InputFileError for what Pillow lets pass: damaged pixels, 16 bits of a colour, pictures that move."""
    held, kind = path.stat().st_size, b""
    file.seek(8)
    while kind != b"IEND":
        size, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        content = file.read(min(size, held))
        if file.read(4) != struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))):
            raise unreadable(path, _KIND, f"it is cut off or damaged before its byte {file.tell():,}")
        if kind == b"IHDR" and content[8] == 16 and content[9]:  # 0 is grey alone
            raise InputFileError(f"{path} has 16 bits a channel of several: save it in grey, or with 8 bits a channel")
        if kind == b"acTL":
            raise InputFileError(f"{path} has {int.from_bytes(content[:4])} pictures: save the one to upscale by itself")


def _check_size(path: Path, pixels: int) -> None:
    """Raise InputFileError where the file is too small for so many bytes of pixels, or this machine's memory is."""
    held = path.stat().st_size
    if pixels > held * _DENSEST + _SMALL:
        raise unreadable(path, _KIND, f"its header promises {pixels:,} bytes, more than a file of {held:,} bytes makes")
    believe(path, _KIND, pixels, pixels)


def _pixels(path: Path, picture: Image.Image) -> NDArray[Any]:
    """Pillow's pixels, converted a band at a time: a conversion of the whole would hold it twice more."""
    deep, grey = picture.mode.startswith("I"), picture.mode in ("1", "L", "LA")
    height, width, mode = picture.height, picture.width, "L" if deep or grey else "RGB"
    shape, dtype = (height, width, 3)[: 2 if mode == "L" else 3], np.dtype(np.uint16 if deep else np.uint8)
    _check_size(path, math.prod(shape) * dtype.itemsize)
    pixels = np.empty(shape, dtype)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        if picture.has_transparency_data:
            alpha = band.convert("LA" if mode == "L" else "RGBA")
            if alpha.getchannel("A").getextrema() != (255, 255):
                raise InputFileError(f"{path} is transparent in parts: flatten it first")
            band = band if deep else alpha
        pixels[top : top + rows] = band if deep else band.convert(mode)
    return pixels


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of (H, W) or (H, W, C) pixels as EXIF's and TIFF's orientation, 1 to 8, means them to be seen."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    return np.flip(pixels, (0,) * (orientation in (3, 4, 7, 8)) + (1,) * (orientation in (2, 3, 6, 7)))


def _tiff(path: Path, tifffile: Any) -> tuple[NDArray[Any], bool]:
    """As `_load`. Pages are taken in the file's order, whatever OME's or another program's text says of them."""
    with quiet("tifffile") as errors, tifffile.TiffFile(path, is_ome=False, is_lsm=False, is_scanimage=False) as file:
        pages: dict[int, Any] = {}
        for page in file.pages:
            if page.offset in pages:
                raise unreadable(path, _KIND, "its pages run in a circle")
            _check_page(path, page)
            pages[page.offset] = page
        kinds = {(p.shaped, p.dtype, p.bitspersample, p.photometric, p.tags.valueof(274, 1)) for p in pages.values()}
        if len(kinds) > 1:
            raise InputFileError(f"{path} has pages of several sizes or kinds: save the ones to upscale by themselves")
        file.filehandle.seek(file.pages.next_page_offset)
        if errors or not pages or any(file.filehandle.read(file.tiff.offsetsize)):  # 0 comes after the last page
            raise unreadable(path, _KIND, (*errors, "its chain of pages is broken")[0])
        if sum(series.size for series in file.series) > len(pages) * page.size:
            raise InputFileError(f"{path} has pictures without pages of their own: save each as a page")
        _check_size(path, len(pages) * page.nbytes)
        stack = np.empty((len(pages), *page.shaped), page.dtype)
        for each, pixels in zip(pages.values(), stack):
            each.asarray(out=pixels, maxworkers=1)
        table = page.colormap
    mode, most = _MODES[page.photometric, page.samplesperpixel], (1 << page.bitspersample) - 1
    if mode != "L" and len(pages) > 1:
        raise InputFileError(f"{path} has several pages in colour: save the one to upscale by itself")
    stack = stack.view(np.uint8) if stack.dtype == bool else stack
    if page.photometric == 0:
        np.subtract(most, stack, out=stack)
    if most < 255 and mode != "P":
        stack *= 255 // most
    apart = stack.reshape(-1, *stack.shape[3:])  # pages or channels, rows, columns, channels side by side
    pixels = _upright(np.moveaxis(apart, 0, 2).reshape(*apart.shape[1:3], -1), page.tags.valueof(274, 1))
    if mode == "L":
        return np.moveaxis(pixels, 2, 0) if len(pages) > 1 else pixels[..., 0], False
    if mode == "RGB":
        return pixels, True
    picture = Image.frombuffer(mode, pixels.shape[1::-1], np.ascontiguousarray(pixels), "raw", mode, 0, 1)
    if mode == "P":
        picture.putpalette((table >> 8 * (table.max() > 255)).T.astype(np.uint8).tobytes())
    return _pixels(path, picture), mode != "LA"


def _check_page(path: Path, page: Any) -> None:
    """Raise InputFileError for what tifffile would not read exactly, MetasrganError where it needs imagecodecs to read it."""
    bits, sample, packed, kind = page.bitspersample, page.sampleformat, page.compression, getattr(page.dtype, "kind", "")
    shown, channels, held = int(page.photometric) if 262 in page.tags else -1, page.samplesperpixel, path.stat().st_size
    strips = [start and size and start + size <= held for start, size in zip(page.dataoffsets, page.databytecounts)]
    mode = _MODES.get((shown, channels)) if page.imagedepth == 1 and (shown != 6 or packed in _JPEG_IN_TIFF) else None
    mixed = not isinstance(bits, int) or kind not in ("b", "u", "i", "f") or bits in (3, 5, 6, 7)
    for refused, why in (
        (packed not in _UNPACKED, f"is compressed as {packed!r}: save it uncompressed"),
        (mixed, f"has pixels of {bits} bits in the format {sample!r}: save it as unsigned 16-bit or float 32-bit pixels"),
        (not mode, f"has {channels} channels of {page.photometric!r}, {page.imagedepth} deep: save it in grey or RGB"),
        (mode != "L" and bits not in (1, 2, 4, 8), f"has {bits} bits a channel of several: save it in grey, or with 8 bits"),
        (shown == 0 and kind not in ("b", "u"), "shows small numbers bright (WhiteIsZero): save it as BlackIsZero"),
        (len(strips) != math.prod(page.chunked) or not all(strips), "is truncated, or lacks parts: copy it again"),
    ):
        if refused:
            raise InputFileError(f"{path} {why}")
    if packed != 1 or page.predictor != 1 or bits not in (1, 8, 16, 32, 64):
        library("imagecodecs", f"{path}, which is compressed or packed,")


def writer(path: Path, scan: Scan) -> Callable[[IO[bytes]], Any]:
    """What writes a scan's pixels, as they are then, in their own dtype.

    Raises OutputFileError where a file of this name cannot hold them, MetasrganError for TIFF without tifffile.
    """
    suffix, pixels, colour = path.suffix.lower(), scan.pixels, scan.colour
    shown = np.moveaxis(pixels, 0, -1) if colour else pixels
    if suffix == ".npy":
        return lambda file: np.save(file, shown, allow_pickle=False)
    if suffix not in _PICTURES:
        raise OutputFileError(f"{path} has no suffix that pixels can be written to: use one of {', '.join(SUFFIXES)}")
    kind = _PICTURES[suffix]
    tifffile = library("tifffile", "TIFF") if kind == "TIFF" else None
    if pixels.ndim - colour != 2 and not (tifffile and pixels.ndim - colour == 3):
        raise OutputFileError(f"{path} cannot hold a stack of slices: write .npy or .tif")
    whole = pixels.dtype.kind in "iuf" and pixels.dtype.itemsize <= 8
    deep = whole if tifffile else kind == "PNG" and pixels.dtype == np.uint16
    if pixels.dtype != np.uint8 and (colour or not deep):
        what = f"{'colour ' if colour else ''}{pixels.dtype}"
        raise OutputFileError(
            f"{path} cannot hold {what} pixels: write .npy, or convert them, clipped to 0…255, by --dtype uint8"
        )
    if kind == "JPEG" and max(pixels.shape) > _LONGEST_JPEG:
        raise OutputFileError(f"{path} cannot hold {shown.shape[0]}×{shown.shape[1]} pixels, JPEG ends at 65,500: write .png")
    if tifffile:
        options: dict[str, Any] = {"photometric": "rgb" if colour else "minisblack", "metadata": None}
        return lambda file: tifffile.imwrite(file, shown, **options)
    options = {"quality": 95} if kind == "JPEG" else {}
    return lambda file: Image.fromarray(np.ascontiguousarray(shown)).save(file, format=kind, **options)
