"""Pictures and arrays on disk: PNG, JPEG and BMP through Pillow, TIFF through tifffile, NPY through numpy."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ..errors import ImageError, InputFileError, OutputFileError
from ..inputs import believe, library, quiet, reading
from ..intensity import real_array
from ..scan import Scan

_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
SUFFIXES = (*_PICTURES, ".npy")
_KIND = "a picture"
_PLUGINS: dict[bytes, Callable[[Path], Image.Image]] = {b"\x89P": PngImageFile, b"\xff\xd8": JpegImageFile, b"BM": BmpImageFile}
_ORIENTATION = 274  # which corner the first pixel has, in EXIF and TIFF
_DENSEST = 4096  # bytes of pixels that a byte of a picture's file makes at most, but for small blank ones
_SMALL = 1 << 24
_LONGEST_JPEG = 65_500  # pixels an axis
_LONGEST_HEADER = 10_000  # bytes that numpy reads of NPY's
_BAND = 1 << 20  # pixels that are converted at a time
# TIFF's photometric interpretation and channels, and Pillow's name for them.
_MODES = {(0, 1): "L", (1, 1): "L", (1, 2): "LA", (2, 3): "RGB", (2, 4): "RGBA", (3, 1): "P", (5, 4): "CMYK", (6, 3): "RGB"}
_JPEG_IN_TIFF = (6, 7)
_UNPACKED = (1, 2, 3, 4, 5, *_JPEG_IN_TIFF, 8, 32773, 32946, 34925, 50000)  # CCITT, LZW, deflate, PackBits, LZMA, Zstandard


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
    with reading(path, _KIND), quiet("PIL"):
        if path.suffix.lower() == ".npy":
            return _array(path), False
        with open(path, "rb") as file:
            start = file.read(2)
        if start in (b"II", b"MM"):
            return _tiff(path, library("tifffile", "TIFF"))
        if start not in _PLUGINS:
            raise InputFileError(f"{path} is no PNG, JPEG, TIFF or BMP file: check what it is, or save it as one")
        if start == b"\x89P":
            _check_png(path)
        with _PLUGINS[start](path) as picture:  # Image.open refuses large pictures
            pixels, turned = _pixels(path, picture), None
            with contextlib.suppress(Exception):  # of damaged EXIF, which is no reason to refuse a picture
                turned = picture.getexif().get(_ORIENTATION)
            return _upright(pixels, turned), pixels.ndim == 3


def _array(path: Path) -> NDArray[Any]:
    """The array of an NPY file; np.load would make room for what a header promises."""
    formats = np.lib.format
    with open(path, "rb") as file:
        header = io.BytesIO(file.read(_LONGEST_HEADER))
        version = formats.read_magic(header)
        read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, fortran, dtype = read(header)
        count = math.prod(shape)
        believe(path, count * dtype.itemsize, path.stat().st_size - header.tell())
        file.seek(header.tell())
        return np.fromfile(file, dtype, count).reshape(shape, order="F" if fortran else "C")


def _check_png(path: Path) -> None:
    """Raise InputFileError for what Pillow lets pass: damaged pixels, 16 bits of a colour, pictures that move."""
    with PngImageFile(path) as picture:
        if picture.is_animated:
            raise InputFileError(f"{path} has {picture.n_frames} pictures: save the one to upscale by itself")
        if "16" in str(picture.tile[0][3]) and not picture.mode.startswith("I"):
            raise InputFileError(f"{path} has 16 bits a channel of several: save it in grey, or with 8 bits a channel")
        picture.verify()


def _check_size(path: Path, pixels: int) -> None:
    """Raise InputFileError where the file is too small for so many bytes of pixels, or this machine's memory is."""
    held = path.stat().st_size
    if pixels > held * _DENSEST + _SMALL:
        raise ValueError(f"its header promises {pixels:,} bytes, more than a file of {held:,} bytes makes")
    believe(path, pixels, pixels)


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


def _upright(pixels: NDArray[Any], orientation: Any) -> NDArray[Any]:
    """A view of (H, W) or (H, W, C) pixels as EXIF's and TIFF's orientation, 1 to 8, means them to be seen."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    return np.flip(pixels, (0,) * (orientation in (3, 4, 7, 8)) + (1,) * (orientation in (2, 3, 6, 7)))


def _tiff(path: Path, tifffile: Any) -> tuple[NDArray[Any], bool]:
    """As `_load`. Pages are taken in the file's order, whatever OME's or another program's text says of them."""
    with quiet("tifffile") as errors, tifffile.TiffFile(path, is_ome=False, is_lsm=False, is_scanimage=False) as file:
        pages: dict[int, Any] = {}
        for page in file.pages:
            if page.offset in pages:
                raise ValueError("its pages run in a circle")
            _check_page(path, page)
            pages[page.offset] = page
        kinds = {(p.shaped, p.dtype, p.bitspersample, p.photometric, p.tags.valueof(_ORIENTATION, 1)) for p in pages.values()}
        file.filehandle.seek(file.pages.next_page_offset)
        if errors or not pages or any(file.filehandle.read(file.tiff.offsetsize)):  # 0 comes after the last page
            raise ValueError((*errors, "its chain of pages is broken")[0])
        mode, count = _MODES[page.photometric, page.samplesperpixel], len(pages)
        if len(kinds) > 1:
            raise InputFileError(f"{path} has pages of several sizes or kinds: save the ones to upscale by themselves")
        if sum(series.size for series in file.series) > count * page.size:
            raise InputFileError(f"{path} has pictures without pages of their own: save each as a page")
        if mode != "L" and count > 1:
            raise InputFileError(f"{path} has several pages in colour: save the one to upscale by itself")
        _check_size(path, count * page.nbytes)
        stack = np.empty((count, *page.shaped), page.dtype)
        for each, pixels in zip(pages.values(), stack):
            each.asarray(out=pixels, maxworkers=1)
        table, most = page.colormap, (1 << page.bitspersample) - 1
    stack = stack.view(np.uint8) if stack.dtype == bool else stack
    if page.photometric == 0:
        np.subtract(most, stack, out=stack)
    if most < 255 and mode != "P":
        stack *= 255 // most
    apart = stack.reshape(-1, *stack.shape[3:])  # pages or channels, rows, columns, channels side by side
    pixels = _upright(np.moveaxis(apart, 0, 2).reshape(*apart.shape[1:3], -1), page.tags.valueof(_ORIENTATION))
    if mode == "L":
        return np.moveaxis(pixels, 2, 0) if count > 1 else pixels[..., 0], False
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
    """What writes a scan's pixels, as they are then. Raises OutputFileError where a file of this name cannot hold them."""
    suffix, pixels, colour = path.suffix.lower(), scan.pixels, scan.colour
    shown = np.moveaxis(pixels, 0, -1) if colour else pixels
    if suffix == ".npy":
        return lambda file: np.save(file, shown, allow_pickle=False)
    kind = _PICTURES[suffix]
    tifffile = library("tifffile", "TIFF") if kind == "TIFF" else None
    deep = pixels.dtype.kind in "iuf" if tifffile else kind == "PNG" and pixels.dtype == np.uint16
    if (pixels.dtype != np.uint8 and (colour or not deep)) or pixels.ndim - colour not in ((2, 3) if tifffile else (2,)):
        what = f"{'×'.join(map(str, shown.shape))} pixels of {'colour ' if colour else ''}{pixels.dtype}"
        raise OutputFileError(f"{path} cannot hold {what}: write .npy, or .tif, or clip them to 0…255 by --dtype uint8")
    if kind == "JPEG" and max(pixels.shape) > _LONGEST_JPEG:
        raise OutputFileError(f"{path} cannot hold {shown.shape[0]}×{shown.shape[1]} pixels, JPEG ends at 65,500: write .png")
    if tifffile:
        options: dict[str, Any] = {"photometric": "rgb" if colour else "minisblack", "metadata": None}
        return lambda file: tifffile.imwrite(file, shown, **options)
    options = {"quality": 95} if kind == "JPEG" else {}
    return lambda file: Image.fromarray(np.ascontiguousarray(shown)).save(file, format=kind, **options)
