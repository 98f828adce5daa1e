"""A slice as DICOM describes it, one of a classic file or one of a multi-frame: where it lies, what its numbers mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from .source import Source, decoder_advice, has_decoder

Rescale = tuple[float, float]  # slope, intercept

_SINGLE_FRAME = {
    EnhancedMRImageStorage: MRImageStorage,
    LegacyConvertedEnhancedMRImageStorage: MRImageStorage,
    EnhancedCTImageStorage: CTImageStorage,
    LegacyConvertedEnhancedCTImageStorage: CTImageStorage,
    EnhancedPETImageStorage: PositronEmissionTomographyImageStorage,
    LegacyConvertedEnhancedPETImageStorage: PositronEmissionTomographyImageStorage,
}


@dataclass(frozen=True, eq=False)
class Frame:
    """Frame `index` of a file. `groups` are its functional groups, its own before the shared ones; a classic file has none."""

    source: Source
    header: Dataset
    index: int
    groups: tuple[Dataset, ...]

    def value(self, keyword: str) -> Any:
        """An attribute of the frame, wherever its file keeps it; None where it has none, or none that can be read."""
        for place in (*self.groups, self.header):
            try:
                value = place.get(keyword)
            except Exception:  # pydicom's parsers raise whatever they stumble over
                continue
            if value not in (None, ""):
                return value
        return None

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """So many finite numbers, or None."""
        value = self.value(keyword)
        try:
            numbers = tuple(float(v) for v in (value if count > 1 else (value,)))
        except (TypeError, ValueError):
            return None
        return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None

    def text(self, keyword: str) -> str:
        value = self.value(keyword)
        return "" if value is None else str(value)

    def words(self, keyword: str) -> tuple[str, ...]:
        """The parts of a value such as ImageType."""
        value = self.value(keyword)
        return () if value is None else (value,) if isinstance(value, str) else tuple(map(str, value))

    @property
    def uid(self) -> str:
        return str(self.header.SeriesInstanceUID)

    @property
    def single_frame_class(self) -> UID | None:
        """The SOP class of a file that holds this frame alone; None where there is none."""
        kind = UID(self.header.SOPClassUID)
        return _SINGLE_FRAME.get(kind) if self.groups else kind

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return int(self.header.Rows), int(self.header.Columns)

    @cached_property
    def spacing(self) -> tuple[float, float] | None:
        """Millimetres between rows and between columns."""
        spacing = self.numbers("PixelSpacing", 2)
        return (spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None

    @cached_property
    def position(self) -> NDArray[np.float64] | None:
        """The first pixel's centre, in millimetres towards the patient's left, back and head."""
        position = self.numbers("ImagePositionPatient", 3)
        return None if position is None else np.array(position)

    @cached_property
    def orientation(self) -> NDArray[np.float64] | None:
        """Unit vectors (2, 3) along a row and down a column, perpendicular to each other; None where they are not."""
        cosines = self.numbers("ImageOrientationPatient", 6)
        if cosines is None:
            return None
        axes = np.array(cosines).reshape(2, 3)
        return axes if np.abs(axes @ axes.T - np.eye(2)).max() < 1e-3 else None

    @property
    def normal(self) -> NDArray[np.float64]:
        assert self.orientation is not None
        return np.cross(*self.orientation)

    @property
    def inverted(self) -> bool:
        """Whether small numbers are shown bright."""
        return self.text("PhotometricInterpretation") == "MONOCHROME1"

    @cached_property
    def rescale(self) -> Rescale:
        """Slope and intercept from stored values to real ones."""
        slope, intercept = self.numbers("RescaleSlope", 1), self.numbers("RescaleIntercept", 1)
        return (slope[0] if slope else 1.0) or 1.0, intercept[0] if intercept else 0.0

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The smallest and largest number that its bits can hold."""
        bits = int(self.header.BitsStored)
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if self.header.PixelRepresentation else (0, (1 << bits) - 1)

    @cached_property
    def problem(self) -> str:
        """Why such a frame can be no slice of a volume, or nothing."""
        header = self.header
        allocated, stored, high, samples = (
            header.get(k) for k in ("BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel")
        )
        colours = self.text("PhotometricInterpretation")
        if samples != 1 or not colours.startswith("MONOCHROME"):
            return f"is in colour ({colours or 'of no known kind'}): only grey pictures can be upscaled"
        if allocated not in (8, 16):
            return f"has pixels of {allocated} bits: 8 or 16 can be upscaled"
        if not (isinstance(stored, int) and isinstance(high, int) and 0 < stored <= high + 1 <= allocated):
            return f"says that {stored} of {allocated} bits, up to bit {high}, are its pixels: its header is damaged"
        if header.get("PixelRepresentation") not in (0, 1):
            return "does not say whether its pixels have a sign: its header is damaged"
        if "MOSAIC" in self.words("ImageType"):
            return "is a mosaic, a volume's slices side by side in one picture: export it as single slices"
        if "ModalityLUTSequence" in header:
            return "maps its pixels by a table (Modality LUT), not by slope and intercept: export it without"
        if self.groups and self.single_frame_class is None:
            return f"is a {UID(header.SOPClassUID).name}, for which no kind of single slices is known: export it as such"
        if int(header.get("NumberOfFrames") or 1) > 1 and not self.groups:
            return "has many frames and no functional groups to tell where they lie: export it as single slices"
        missing = [
            name
            for name, found in (
                ("ImagePositionPatient", self.position),
                ("ImageOrientationPatient", self.orientation),
                ("PixelSpacing", self.spacing),
            )
            if found is None
        ]
        if missing:
            return f"does not tell where it lies ({', '.join(missing)}): it is no slice of a volume"
        if not has_decoder(header):
            syntax = header.file_meta.TransferSyntaxUID.name
            return f"is compressed ({syntax}), and nothing here reads that: {decoder_advice(header)}"
        return ""


def frames_of(source: Source, header: Dataset) -> list[Frame]:
    """The frames of a file: one, or as many as its functional groups describe."""
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    if not own:
        return [Frame(source, header, 0, ())]
    shared = _items((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    count = min(len(own), int(header.get("NumberOfFrames") or 1))
    return [Frame(source, header, k, (*_items(own[k]), *shared)) for k in range(count)]


def _items(groups: Dataset) -> Sequence[Dataset]:
    """The first item of each functional group that has one."""
    return [element.value[0] for element in groups if element.VR == "SQ" and element.value]
