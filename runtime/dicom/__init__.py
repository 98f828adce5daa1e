"""DICOM in and out: series found by their geometry, and derived series written. Needs the extra `[dicom]`."""

from ..errors import InputFileError

try:
    import pydicom  # noqa: F401
except ModuleNotFoundError:
    raise InputFileError("DICOM needs pydicom: pip install 'metasrgan-edge[dicom]'") from None

from .derive import WRITTEN, datasets, save
from .series import Series, find_series, series_of

__all__ = ["WRITTEN", "Series", "datasets", "find_series", "save", "series_of"]
