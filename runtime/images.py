"""Pictures and arrays on disk: PNG, JPEG, TIFF and BMP through Pillow, NPY through numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .errors import InputFileError, OutputFileError, reason
from .files import write_atomically

_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
SUFFIXES = (*_PICTURES, ".npy")


def is_image(path: Path) -> bool:
    """Whether the name ends like a picture or a numpy array."""
    return path.suffix.lower() in SUFFIXES


def read(path: Path) -> NDArray[Any]:
    """The pixels in their own dtype: (H, W), or (H, W, 3) of a colour picture; of an NPY file, the array as it is.

    A picture that its camera tagged as turned is turned. Raises InputFileError for a file that is missing, truncated or not
    an image, and for what would be lost: transparency, further pages.
    """
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise InputFileError(f"{path} has {pages} pages: save the one to upscale by itself")
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                if upright.getchannel("A").getextrema() != (255, 255):
                    raise InputFileError(f"{path} is transparent in parts: flatten it first")
            if upright.mode not in ("L", "F", "I", "RGB") and not upright.mode.startswith("I;16"):
                upright = upright.convert("L" if upright.mode in ("1", "LA") else "RGB")  # palettes, CMYK
            return np.array(upright)
    except InputFileError:
        raise
    except FileNotFoundError:
        raise InputFileError(f"{path} does not exist: check the name") from None
    except MemoryError:
        raise InputFileError(f"{path} claims to hold more than this machine's memory: it is damaged, or too large") from None
    except Exception as error:  # the readers of damaged headers raise whatever they stumble over
        raise InputFileError(f"{path} is not a readable image, or is truncated ({reason(error)}): copy it again") from None


def check_writable_as(path: Path, pixels_dtype: np.dtype[Any], ndim: int, colour: bool) -> None:
    """Raise OutputFileError where a file of this name cannot hold such pixels."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return
    if suffix not in _PICTURES:
        raise OutputFileError(f"{path} has no suffix that pixels can be written to: use one of {', '.join(SUFFIXES)}")
    if ndim - colour != 2:
        raise OutputFileError(f"{path} cannot hold a stack of slices: write .npy")
    if pixels_dtype == np.uint8 or (pixels_dtype == np.uint16 and not colour and suffix in (".png", ".tif", ".tiff")):
        return
    if pixels_dtype == np.float32 and not colour and suffix in (".tif", ".tiff"):
        return
    what = f"{'colour ' if colour else ''}{pixels_dtype}"
    raise OutputFileError(f"{path} cannot hold {what} pixels: write .npy, or convert them, clipped to 0…255, by --dtype uint8")


def write(path: Path, pixels: NDArray[Any], colour: bool, overwrite: bool = False) -> None:
    """Write pixels (H, W), or (H, W, 3) in `colour`, in their own dtype, whole or not at all."""
    suffix = path.suffix.lower()
    check_writable_as(path, pixels.dtype, pixels.ndim, colour)
    if suffix == ".npy":
        write_atomically(path, lambda file: np.save(file, pixels, allow_pickle=False), overwrite)
    else:
        options = {"quality": 95} if _PICTURES[suffix] == "JPEG" else {}
        picture = Image.fromarray(pixels)
        write_atomically(path, lambda file: picture.save(file, format=_PICTURES[suffix], **options), overwrite)
