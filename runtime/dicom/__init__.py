"""DICOM in and out: series found by their geometry, and derived series written. Needs pydicom."""

from ..inputs import library

library("pydicom", "DICOM")

from .derive import datasets, save  # noqa: E402
from .series import Series, find_series, read, series_of, usable  # noqa: E402

__all__ = ["Series", "datasets", "find_series", "read", "save", "series_of", "usable"]
