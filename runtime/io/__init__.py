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
from ..scan import Scan
from . import itk, nifti, pictures

Kind = Literal["nifti", "itk", "dicom", "picture"]

VOLUMES = (*nifti.SUFFIXES, *itk.WRITTEN)  # what a volume may be written to
_WRITTEN = (*VOLUMES, *pictures.SUFFIXES)
READ = (*nifti.SUFFIXES, *itk.SUFFIXES, *pictures.SUFFIXES)
_MODULES: dict[Kind, Any] = {"nifti": nifti, "itk": itk, "picture": pictures}
_SUFFIXES: dict[str, Kind] = {suffix: kind for kind, module in _MODULES.items() for suffix in module.SUFFIXES}
_SUFFIXES |= {".dcm": "dicom", ".ima": "dicom", ".zip": "dicom"}


def kind(path: Path) -> Kind:
    """What a file or folder is, by its name; a file whose name says nothing by its first bytes.

    Raises InputFileError for what does not exist, or is of no known format.
    """
    if not os.path.exists(path):
        raise InputFileError(f"{path} does not exist, or may not be read: check the name")
    if known := "dicom" if os.path.isdir(path) else _by_name(path):
        return known
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(132)[128:] == b"DICM":
            return "dicom"
    raise InputFileError(f"{path} has no suffix of a known format: give {', '.join(READ)}, or a DICOM folder, file or zip")


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

    An `anonymous` NIfTI file lacks the words of its header. Raises OutputFileError or ImageError where the format cannot hold
    the scan, MetasrganError for a missing library.
    """
    _check(path, _WRITTEN, f"{path} cannot be written")
    if _by_name(path) == "nifti":
        return nifti.writer(path, scan, anonymous)
    return itk.writer(path, scan) if _by_name(path) == "itk" else pictures.writer(path, scan)


def write(path: Path, scan: Scan, overwrite: bool = False) -> None:
    """Write a scan whole or not at all. Raises like `writer`, and OutputFileError where that cannot be done."""
    write_atomically(path, writer(path, scan), overwrite)


def dicom() -> Any:
    """The module that reads and writes DICOM. Raises MetasrganError where pydicom is not installed."""
    return importlib.import_module("runtime.dicom")


def suffix(path: Path) -> str:
    """The suffix of a known format that a name ends with, as it is spelled, or nothing."""
    return "" if os.path.isdir(path) else path.name[len(path.name) - len(_suffix(path)) :]


def check_becomes(path: Path, source: Kind, out: Path) -> None:
    """Raise OutputFileError where an input cannot be written as what the output's name says.

    DICOM becomes DICOM, a folder, or a volume, other volumes a volume, and pictures, which have no place in space, a picture.
    Raises MetasrganError where the library that writes it is missing.
    """
    if source != "dicom" or _suffix(out):
        _check(out, pictures.SUFFIXES if source == "picture" else VOLUMES, f"{path} cannot become {out}")


def check_writable(out: Path) -> None:
    """Raise OutputFileError for a suffix that nothing is written to, MetasrganError for one whose library is missing."""
    _check(out, _WRITTEN, f"{out.name[1:]!r} is no format")


def _check(out: Path, formats: Sequence[str], problem: str) -> None:
    if _suffix(out) not in formats:
        raise OutputFileError(f"{problem}: end its name in {', '.join(formats)}")
    if _by_name(out) == "itk":
        itk.simple_itk()


def _suffix(path: Path) -> str:
    found = (suffix for suffix in _SUFFIXES if path.suffix and path.name.lower().endswith(suffix))
    return max(found, key=len, default="")


def _by_name(path: Path) -> Kind | None:
    return _SUFFIXES.get(_suffix(path))
