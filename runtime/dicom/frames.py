"""A slice as DICOM describes it, one of a classic file or one of a multi-frame: where it lies, what its numbers mean."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid as uids
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID

from ..errors import line
from ..inputs import quiet
from .source import Skipped, Source, decoder_advice, has_decoder

Rescale = tuple[float, float]  # slope, intercept
_LONGEST = 10_240  # characters of a text, as of LT, the longest but unlimited ones
_FARTHEST = 1e6  # mm
_LEAST = 1e-30  # of slopes
_PERPENDICULAR = 1e-3  # how far products of direction cosines may be from 0 and 1, where their digits would tell more

_SINGLE = {"MR": uids.MRImageStorage, "CT": uids.CTImageStorage, "PET": uids.PositronEmissionTomographyImageStorage}
_SINGLE_FRAME = {
    getattr(uids, f"{kind}Enhanced{modality}ImageStorage"): single
    for kind in ("", "LegacyConverted")
    for modality, single in _SINGLE.items()
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
            with quiet("pydicom"), contextlib.suppress(Exception):  # pydicom's parsers raise whatever they stumble over
                if (value := place.get(keyword)) not in (None, ""):
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
        """An attribute in one line."""
        return "\\".join(self.words(keyword))

    def words(self, keyword: str) -> tuple[str, ...]:
        """The parts of a value such as ImageType."""
        value = self.value(keyword)
        if value is None or isinstance(value, Sequence):
            return ()
        return tuple(line(part, _LONGEST) for part in (value if isinstance(value, MultiValue) else (value,)))

    @property
    def uid(self) -> str:
        return str(self.header.SeriesInstanceUID)

    @property
    def single_frame_class(self) -> UID | None:
        """The SOP class of a file that holds this frame alone; None where there is none."""
        kind = UID(self.header.SOPClassUID, IGNORE)
        return _SINGLE_FRAME.get(kind) if self.groups else kind

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return int(self.header.Rows), int(self.header.Columns)

    @cached_property
    def spacing(self) -> tuple[float, float] | None:
        """Millimetres between rows and between columns."""
        spacing = self.numbers("PixelSpacing", 2)
        return (spacing[0], spacing[1]) if spacing and 1 / _FARTHEST < min(spacing) <= max(spacing) < _FARTHEST else None

    @cached_property
    def position(self) -> NDArray[np.float64] | None:
        """The first pixel's centre, in millimetres towards the patient's left, back and head."""
        position = self.numbers("ImagePositionPatient", 3)
        return np.array(position) if position and max(map(abs, position)) < _FARTHEST else None

    @cached_property
    def orientation(self) -> NDArray[np.float64] | None:
        """Unit vectors (2, 3) along a row and down a column, perpendicular to each other.

        They are the nearest ones to the header's. None where those are no such vectors, rounded to the digits that they have.
        """
        cosines = self.numbers("ImageOrientationPatient", 6)
        if cosines is None:
            return None
        axes = np.reshape(cosines, (2, 3))
        if not np.abs(axes @ axes.T - np.eye(2)).max() <= max(_PERPENDICULAR, 4 * self.rounding):
            return None
        left, _, right = np.linalg.svd(axes, full_matrices=False)
        return np.asarray((left @ right).round(12) + 0.0)

    @cached_property
    def rounding(self) -> float:
        """The last decimal place of its direction cosines; 0 for whole numbers and single digits, which are exact or no use."""
        try:
            cosines = [Decimal(str(cosine)) for cosine in self.value("ImageOrientationPatient") or ()]
        except (ArithmeticError, TypeError):  # text, or no list
            return 0.0
        places = min((int(c.as_tuple().exponent) for c in cosines if abs(c) > _PERPENDICULAR), default=0)
        return 10.0**places if places < -1 else 0.0

    @cached_property
    def thickness(self) -> float:
        """Millimetres from a lone slice to where the next would be; 1 where the header does not tell."""
        said = self.numbers("SpacingBetweenSlices", 1) or self.numbers("SliceThickness", 1) or (1.0,)
        return abs(said[0]) if 1 / _FARTHEST < abs(said[0]) < _FARTHEST else 1.0

    @property
    def axes(self) -> NDArray[np.float64]:
        """The orientation of a frame that has one."""
        assert self.orientation is not None
        return self.orientation

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(*self.axes)

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
    def padding(self) -> tuple[int, int] | None:
        """The smallest and largest stored number that stand for no measurement; None where the header names none, or only 0.

        0 is the background. A number that was written with the wrong sign is put right.
        """
        ends = [self.numbers(f"PixelPadding{of}", 1) for of in ("Value", "RangeLimit")]
        span, least = 1 << self.header.BitsAllocated, self.limits[0]
        first = -(span // 2) if least else 0
        found = sorted((int(end[0]) - first) % span + first for end in ends if end)
        inside = ends[0] and (found[0] or found[-1]) and least <= found[0] and found[-1] <= self.limits[1]
        return (found[0], found[-1]) if inside else None

    @cached_property
    def problem(self) -> str:
        """Why such a frame can be no slice of a volume, or nothing."""
        header = self.header
        allocated, stored, high = header.BitsAllocated, header.BitsStored, header.HighBit
        colours = self.text("PhotometricInterpretation")
        if header.SamplesPerPixel != 1 or not colours.startswith("MONOCHROME"):
            return f"is in colour ({colours or 'of no known kind'}): only grey pictures can be upscaled"
        if allocated not in (8, 16):
            return f"has pixels of {allocated} bits: 8 or 16 can be upscaled"
        if not 0 < stored <= high + 1 <= allocated:
            return f"says that {stored} of {allocated} bits, up to bit {high}, are its pixels: its header is damaged"
        if "MOSAIC" in self.words("ImageType"):
            return "is a mosaic, a volume's slices side by side in one picture: export it as single slices"
        slope, intercept = self.rescale
        if not _LEAST < abs(slope) < 1 / _LEAST or not abs(intercept) < 1 / _LEAST:
            return f"has a slope of {slope:g} and an intercept of {intercept:g}, which no float32 holds: its header is damaged"
        if "ModalityLUTSequence" in header:
            return "maps its pixels by a table (Modality LUT), not by slope and intercept: export it without"
        if self.groups and self.single_frame_class is None:
            kind = UID(header.SOPClassUID, IGNORE).name
            return f"is a {kind}, for which no kind of single slices is known: export it as such"
        if (header.get("NumberOfFrames") or 1) > 1 and not self.groups:
            return "has many frames and no functional groups to tell where they lie: export it as single slices"
        geometry = {"Position": self.position, "Orientation": self.orientation}
        places = {f"Image{of}Patient": found for of, found in geometry.items()} | {"PixelSpacing": self.spacing}
        if missing := [name for name, found in places.items() if found is None]:
            return f"does not tell where it lies ({', '.join(missing)}): missing or impossible, so it is no slice of a volume"
        if not has_decoder(header):
            syntax = header.file_meta.TransferSyntaxUID.name
            return f"is compressed ({syntax}), and nothing here reads that: {decoder_advice(header)}"
        return ""


def frames_of(source: Source, header: Dataset) -> list[Frame]:
    """The frames of a file: one, or as many as its functional groups describe. Raises Skipped where these are damaged."""
    with quiet("pydicom"):
        try:
            own = header.get("PerFrameFunctionalGroupsSequence") or ()
            shared = _items((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
            count = min(len(own), header.get("NumberOfFrames") or 1)
            groups = [(*_items(own[k]), *shared) for k in range(count)]
        except Exception as error:  # pydicom's parsers raise whatever they stumble over
            raise Skipped(f"damaged ({type(error).__name__})", str(header.SeriesInstanceUID), damaged=True) from None
    return [Frame(source, header, k, items) for k, items in enumerate(groups or [()])]


def _items(groups: Dataset) -> tuple[Dataset, ...]:
    """The first item of each functional group that has one."""
    return tuple(element.value[0] for element in groups if element.VR == "SQ" and element.value)
