"""Files in and out: one module for each format, `read` → `Scan` → `writer`; which format a file is of, what may become what."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from ..errors import InputFileError, OutputFileError
from ..files import write_atomically
from ..inputs import library
from ..scan import Scan
from . import itk, nifti, pictures

Kind = Literal["nifti", "itk", "dicom", "picture"]

VOLUMES = (*nifti.SUFFIXES, *itk.WRITTEN)  # what a volume may be written to
PICTURES = pictures.SUFFIXES
READ = (*nifti.SUFFIXES, *itk.SUFFIXES, *PICTURES)
_WRITTEN = (*VOLUMES, *PICTURES)
_MODULES: dict[Kind, Any] = {"nifti": nifti, "itk": itk, "picture": pictures}
_KINDS: dict[str, Kind] = {suffix: kind for kind, module in _MODULES.items() for suffix in module.SUFFIXES}
_KINDS |= {".dcm": "dicom", ".ima": "dicom", ".zip": "dicom"}


def suffix(path: Path) -> str:
    """The suffix of a known format that a name ends with, as it is spelled, or nothing."""
    found = (suffix for suffix in _KINDS if path.suffix and path.name.lower().endswith(suffix))
    return path.name[len(path.name) - len(max(found, key=len, default="")) :]


def kind(path: Path) -> Kind:
    """What a file or folder is, by its name; a file whose name says nothing by its first bytes.

    Raises InputFileError for what does not exist, or is of no known format.
    """
    if not os.path.exists(path):
        raise InputFileError(f"{path} does not exist, or may not be read: check the name")
    if os.path.isdir(path):
        return "dicom"
    if known := _KINDS.get(suffix(path).lower()):
        return known
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(132)[128:] == b"DICM":
            return "dicom"
    raise InputFileError(f"{path} has no suffix of a known format: give {', '.join(READ)}, or a DICOM folder, file or zip")


def files_of(path: Path) -> list[Path]:
    """The files that an input consists of."""
    if os.path.isdir(path):
        return sorted(file for file in path.rglob("*") if file.is_file())
    return itk.files_of(path) if suffix(path).lower() in itk.SUFFIXES else [path]


def read(path: Path, series: int | None = None, allow_gaps: bool = False) -> Scan:
    """An input of any format. `series` is the one of a DICOM input to take, from 0; `allow_gaps` takes one that is damaged.

    Raises InputFileError for what cannot be read, ImageError for what is no image, MetasrganError for a missing library.
    """
    format = kind(path)
    scan: Scan = dicom().read(path, series, allow_gaps) if format == "dicom" else _MODULES[format].read(path)
    return scan


def writer(path: Path, scan: Scan, anonymous: bool = False) -> Callable[[IO[bytes]], Any]:
    """What writes a scan to an open file in the format that the path's suffix names, its pixels as they are then.

    An `anonymous` NIfTI file lacks the words of its header. Raises OutputFileError or ImageError where the format cannot hold
    the scan, MetasrganError for a missing library.
    """
    check_suffix(path)
    format = _KINDS[suffix(path).lower()]
    return nifti.writer(path, scan, anonymous) if format == "nifti" else _MODULES[format].writer(path, scan)


def write(path: Path, scan: Scan, overwrite: bool = False) -> None:
    """Write a scan whole or not at all. Raises like `writer`, and OutputFileError where that cannot be done."""
    write_atomically(path, writer(path, scan), overwrite)


def dicom() -> Any:
    """The module that reads and writes DICOM. Raises MetasrganError where pydicom is not installed."""
    return importlib.import_module("runtime.dicom")


def check_suffix(out: Path, formats: Sequence[str] = _WRITTEN, problem: str = "") -> None:
    """Raise OutputFileError for a name that ends in none of the formats, MetasrganError for one whose library is missing."""
    if (own := suffix(out).lower()) not in formats:
        raise OutputFileError(f"{problem or f'{out} cannot be written'}: end its name in {', '.join(formats)}")
    if own in itk.SUFFIXES:
        library("SimpleITK", "NRRD or MetaImage")


def check_becomes(path: Path, source: Kind, out: Path) -> None:
    """Raise OutputFileError where an input cannot be written as what the output's name says.

    DICOM becomes DICOM, a folder, or a volume, other volumes a volume, and pictures, which have no place in space, a picture.
    Raises MetasrganError where the library that writes it is missing.
    """
    if source != "dicom" or suffix(out):
        check_suffix(out, PICTURES if source == "picture" else VOLUMES, f"{path} cannot become {out}")
