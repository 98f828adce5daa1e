"""Files in and out: one module for each format, `read` → `Scan` → `writer`; which format a file is of, what may become what."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from ..errors import InputFileError, OutputFileError
from ..files import write_atomically
from ..scan import Scan
from . import itk, nifti, pictures

Kind = Literal["nifti", "itk", "dicom", "picture"]

VOLUMES = (*nifti.SUFFIXES, *itk.WRITTEN)  # what a volume may be written to
READ = (*nifti.SUFFIXES, *itk.SUFFIXES, *pictures.SUFFIXES)
_DICOM = (".dcm", ".ima", ".zip")
_MODULES: dict[Kind, Any] = {"nifti": nifti, "itk": itk, "picture": pictures}


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
    return itk.files_of(path) if _by_name(path) == "itk" else [path]


def read(path: Path, series: int | None = None, allow_gaps: bool = False) -> Scan:
    """An input of any format. `series` is the one of a DICOM input to take, from 0; `allow_gaps` takes one that is damaged.

    Raises InputFileError for what cannot be read, ImageError for what is no image, MetasrganError for a missing library.
    """
    format = kind(path)
    scan: Scan = dicom().read(path, series, allow_gaps) if format == "dicom" else _MODULES[format].read(path)
    return scan


def writer(path: Path, scan: Scan, anonymous: bool = False) -> Callable[[IO[bytes]], Any]:
    """What writes a scan to an open file in the format that the path's suffix names, its pixels as they are then.

    Raises OutputFileError or ImageError where the format cannot hold it.
    """
    return nifti.writer(path, scan, anonymous) if nifti.suffix(path) else _MODULES[_by_name(path) or "nifti"].writer(path, scan)


def write(path: Path, scan: Scan, overwrite: bool = False) -> None:
    """Write a scan whole or not at all. Raises like `writer`, and OutputFileError where that cannot be done."""
    write_atomically(path, writer(path, scan), overwrite)


def dicom() -> Any:
    """The module that reads and writes DICOM. Raises MetasrganError where pydicom is not installed."""
    return importlib.import_module("runtime.dicom")


def suffix(path: Path) -> str:
    """The suffix of a known format that a name ends with, as it is spelled, or nothing."""
    if os.path.isdir(path):
        return ""
    return nifti.suffix(path) or (path.suffix if _by_name(path) else "")


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
    elif becomes == "itk":
        itk.check_writable_as(out)


def check_writable(out: Path) -> None:
    """Raise OutputFileError for a suffix that nothing is written to, MetasrganError for one whose library is missing."""
    becomes = _by_name(out)
    if becomes in (None, "dicom"):
        raise OutputFileError(f"{out.name[1:]!r} is no format: give one of {', '.join((*VOLUMES, *pictures.SUFFIXES))}")
    if becomes == "itk":
        itk.check_writable_as(out)


def _by_name(path: Path) -> Kind | None:
    if nifti.suffix(path):
        return "nifti"
    known = next((name for name, module in _MODULES.items() if path.suffix.lower() in module.SUFFIXES), None)
    return known or ("dicom" if path.suffix.lower() in _DICOM else None)


def _begins_like_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
