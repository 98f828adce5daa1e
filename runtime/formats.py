"""Which format a file is of, and what may become what: volumes are NIfTI images inside, pictures and arrays stay arrays."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from . import images, itk, volume
from .errors import InputFileError, OutputFileError

Kind = Literal["nifti", "itk", "dicom", "picture"]

VOLUMES = (*volume.SUFFIXES, *itk.WRITTEN)  # what a volume may be written to
READ = (*volume.SUFFIXES, *itk.SUFFIXES, *images.SUFFIXES)
_DICOM = (".dcm", ".ima", ".zip")


def kind(path: Path) -> Kind:
    """What a file or folder is, by its name; a file whose name says nothing by its first bytes.

    Raises InputFileError for what does not exist, or is of no known format.
    """
    if os.path.isdir(path):
        return "dicom"
    known = _by_name(path)
    if known is None and os.path.exists(path) and not _begins_like_dicom(path):
        raise InputFileError(f"{path} has no suffix of a known format: give {', '.join(READ)}, or a DICOM folder, file or zip")
    if not os.path.exists(path):
        raise InputFileError(f"{path} does not exist, or may not be read: check the name")
    return known or "dicom"


def files_of(path: Path) -> list[Path]:
    """The files that an input consists of."""
    if os.path.isdir(path):
        return sorted(file for file in path.rglob("*") if file.is_file())
    return itk.files_of(path) if itk.is_itk(path) else [path]


def load(path: Path) -> Any:
    """A NIfTI or ITK file as a NIfTI image."""
    return itk.load(path) if itk.is_itk(path) else volume.load(path)


def writer(path: Path, image: Any) -> Callable[[IO[bytes]], None]:
    """What writes a NIfTI image to an open file in the format that the path's suffix names."""
    return itk.writer(path, image) if itk.is_itk(path) else volume.writer(path, image)


def dicom() -> Any:
    """The module that reads and writes DICOM. Raises MetasrganError where pydicom is not installed."""
    return importlib.import_module(f"{__package__}.dicom")


def suffix(path: Path) -> str:
    """The suffix of a known format that a name ends with, as it is spelled, or nothing."""
    if os.path.isdir(path):
        return ""
    return volume.nifti_suffix(path) or (path.suffix if _by_name(path) else "")


def check_becomes(path: Path, source: Kind, out: Path) -> None:
    """Raise OutputFileError where an input cannot be written as what the output's name says.

    Raises MetasrganError where the library that writes it is missing.
    """
    becomes = _by_name(out)
    if source == "picture":
        if becomes not in ("picture", None):
            raise OutputFileError(
                f"{path} cannot become {out}: pictures and arrays, which have no place in space, stay pictures or arrays"
            )
    elif becomes == "picture":
        raise OutputFileError(f"{path} cannot become {out}, which has no place in space: write {', '.join(VOLUMES)}")
    elif becomes == "dicom" or (becomes is None and source != "dicom"):
        raise OutputFileError(f"{path} cannot become {out}: end its name in {', '.join(VOLUMES)}")
    elif itk.is_itk(out):
        itk.check_writable_as(out)


def _by_name(path: Path) -> Kind | None:
    if volume.is_nifti(path):
        return "nifti"
    if itk.is_itk(path):
        return "itk"
    if images.is_image(path):
        return "picture"
    return "dicom" if path.suffix.lower() in _DICOM else None


def _begins_like_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
