"""Pictures and arrays on disk: PNG, JPEG, TIFF and BMP through Pillow, NPY through numpy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffTags

from ..errors import ImageError, InputFileError, OutputFileError, reason
from ..files import write_atomically
from ..inputs import believe, unreadable
from ..intensity import real_array
from ..scan import Scan

_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
SUFFIXES = (*_PICTURES, ".npy")
_KIND = "a picture"
_DENSEST = 4096  # bytes of pixels that a byte of a picture's file makes at most, but for small blank ones
_SMALL = 1 << 24


def read(path: Path) -> Scan:
    """A picture, or a stack (N, H, W), as a scan without a place in space. Raises InputFileError and ImageError like `load`."""
    pixels = load(path)
    labels = pixels.dtype == bool
    pixels = real_array(pixels)
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8 and path.suffix.lower() != ".npy"
    if not 2 <= pixels.ndim <= 3:
        raise ImageError(f"the image has shape {pixels.shape}: give (H, W) or (N, H, W)")
    stack = 0 if pixels.ndim == 3 else None
    return Scan(np.moveaxis(pixels, -1, 0) if colour else pixels, stack=stack, labels=labels, colour=colour)


def load(path: Path) -> NDArray[Any]:
    """The pixels in their own dtype: (H, W), (H, W, 3) of a colour picture, (N, H, W) of a TIFF file's grey pages.

    Of an NPY file, the array as it is. A picture that its camera tagged as turned is turned. Raises InputFileError for a file
    that is missing, truncated or not an image, and for what would be lost: transparency, a moving picture.
    """
    try:
        held = path.stat().st_size
        if path.suffix.lower() == ".npy":
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # numpy compares the file's size with what it promises
            believe(path, _KIND, mapped.nbytes, held)
            return np.array(mapped)
        with _open(path) as picture:
            _check_kept(path, picture)
            pages = getattr(picture, "n_frames", 1)
            if pages > 1 and picture.format != "TIFF":
                raise InputFileError(f"{path} has {pages} pictures: save the one to upscale by itself")
            largest = pages * picture.width * picture.height * 4  # bytes, of what a mode takes at most
            believe(path, _KIND, largest, held * _DENSEST + _SMALL)
            if pages == 1:
                return _pixels(path, picture)
            return np.stack([_page(path, picture, k) for k in range(pages)])
    except InputFileError:
        raise
    except FileNotFoundError:
        raise InputFileError(f"{path} does not exist: check the name") from None
    except Image.DecompressionBombError:
        raise InputFileError(f"{path} has more pixels than Pillow reads safely: cut it into smaller pictures") from None
    except MemoryError:
        raise InputFileError(f"{path} claims to hold more than this machine's memory: it is damaged, or too large") from None
    except Exception as error:  # the readers of damaged headers raise whatever they stumble over
        raise unreadable(path, _KIND, reason(error)) from None


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of size, which `believe` checks, and of odd headers, which decoding shows
        return Image.open(path)


def _check_kept(path: Path, picture: Image.Image) -> None:
    """Raise InputFileError for pixels whose type Pillow changes without a word."""
    if picture.format == "PNG":
        with open(path, "rb") as file:
            depth, colours = file.read(26)[24:]
        if depth == 16 and colours:  # 0 is grey alone
            raise InputFileError(f"{path} has 16 bits a channel of several: save it in grey, or with 8 bits a channel")
    if picture.format == "TIFF":
        tags = {TiffTags.lookup(number).name: value for number, value in picture.tag_v2.items()}  # type: ignore[attr-defined]
        bits, kinds = set(tags.get("BitsPerSample", (1,))), set(tags.get("SampleFormat", (1,)))
        kept = {(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 2), (32, 3)}  # bits; unsigned, signed, float
        if not {(b, k) for b in bits for k in kinds} <= kept:
            kind = {1: "unsigned", 2: "signed", 3: "float"}.get(max(kinds), "unknown")
            raise InputFileError(
                f"{path} has {kind} pixels of {max(bits)} bits, which are not read exactly: save it as 16-bit unsigned or "
                "32-bit float, or as .npy"
            )
        if tags.get("PhotometricInterpretation") == 0 and max(bits) > 8:
            raise InputFileError(f"{path} shows small numbers bright (WhiteIsZero) in {max(bits)} bits: save it as BlackIsZero")


def _pixels(path: Path, picture: Image.Image) -> NDArray[Any]:
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        if upright.getchannel("A").getextrema() != (255, 255):
            raise InputFileError(f"{path} is transparent in parts: flatten it first")
    if upright.mode not in ("L", "F", "I", "RGB") and not upright.mode.startswith("I;16"):
        upright = upright.convert("L" if upright.mode in ("1", "LA") else "RGB")  # palettes, CMYK
    return np.array(upright)


def _page(path: Path, picture: Image.Image, page: int) -> NDArray[Any]:
    shape, mode = picture.size, picture.mode
    picture.seek(page)
    if (picture.size, picture.mode) != (shape, mode):
        raise InputFileError(f"{path} has pages of several sizes or kinds: save the ones to upscale by themselves")
    pixels = _pixels(path, picture)
    if pixels.ndim != 2:
        raise InputFileError(f"{path} has several pages in colour: save the one to upscale by itself")
    return pixels


def writer(path: Path, scan: Scan) -> Callable[[IO[bytes]], Any]:
    """What writes a scan's pixels, as they are then. Raises OutputFileError where a file of this name cannot hold them."""
    check_writable_as(path, scan.pixels.dtype, scan.pixels.ndim, scan.colour)
    return lambda file: save(file, path.suffix, np.moveaxis(scan.pixels, 0, -1) if scan.colour else scan.pixels, scan.colour)


def check_writable_as(path: Path, pixels_dtype: np.dtype[Any], ndim: int, colour: bool) -> None:
    """Raise OutputFileError where a file of this name cannot hold such pixels."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return
    if suffix not in _PICTURES:
        raise OutputFileError(f"{path} has no suffix that pixels can be written to: use one of {', '.join(SUFFIXES)}")
    deep = suffix in (".tif", ".tiff")
    if ndim - colour != 2 and not (deep and ndim == 3):
        raise OutputFileError(f"{path} cannot hold a stack of slices: write .npy or .tif")
    if pixels_dtype == np.uint8 or (pixels_dtype == np.uint16 and not colour and (deep or suffix == ".png")):
        return
    if pixels_dtype in (np.int32, np.float32) and not colour and deep:
        return
    what = f"{'colour ' if colour else ''}{pixels_dtype}"
    raise OutputFileError(f"{path} cannot hold {what} pixels: write .npy, or convert them, clipped to 0…255, by --dtype uint8")


def save(file: IO[bytes], suffix: str, pixels: NDArray[Any], colour: bool) -> None:
    """Write pixels (H, W), a stack (N, H, W), or (H, W, 3) in `colour`, in their own dtype."""
    suffix = suffix.lower()
    if suffix == ".npy":
        np.save(file, pixels, allow_pickle=False)
        return
    options: dict[str, Any] = {"quality": 95} if _PICTURES[suffix] == "JPEG" else {}
    first, *others = map(Image.fromarray, pixels if pixels.ndim - colour == 3 else [np.ascontiguousarray(pixels)])
    if others:
        options |= {"save_all": True, "append_images": others}
    first.save(file, format=_PICTURES[suffix], **options)


def write(path: Path, pixels: NDArray[Any], colour: bool, overwrite: bool = False) -> None:
    """Write pixels whole or not at all."""
    check_writable_as(path, pixels.dtype, pixels.ndim, colour)
    write_atomically(path, lambda file: save(file, path.suffix, pixels, colour), overwrite)
