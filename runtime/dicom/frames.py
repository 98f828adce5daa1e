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
from pydicom.pixels.utils import get_nr_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID

from ..errors import line
from .source import Skipped, Source, decoder, stored_type

Floats = NDArray[np.float64]
_LONGEST = 10_240  # characters of a text, as of LT, the longest but unlimited ones
FARTHEST = 1e6  # mm
_LEAST = 1e-30  # of slopes
_PERPENDICULAR = 1e-3  # how far products of direction cosines may be from 0 and 1, where their digits would tell more

_SINGLE = {"MR": uids.MRImageStorage, "CT": uids.CTImageStorage, "PET": uids.PositronEmissionTomographyImageStorage}
_SINGLE_FRAME = {
    getattr(uids, f"{kind}Enhanced{modality}ImageStorage"): single
    for kind in ("", "LegacyConverted")
    for modality, single in _SINGLE.items()
}


@dataclass(frozen=True)
class Stored:
    """How real values are stored: in integers from `low` to `high`, of which `padding` (lowest, highest) are no measurements.

    `rescale` is their slope and intercept; None where slices have each their own. `inverted` ones are shown bright if small.
    """

    low: int
    high: int
    dtype: np.dtype[Any]
    rescale: tuple[float, float] | None
    inverted: bool = False
    padding: tuple[int, int] | None = None

    def shown(self, numbers: Any) -> Any:
        """Numbers that are larger where the picture is brighter, and back: `inverted` ones are mirrored in their range."""
        return self.low + self.high - numbers if self.inverted else numbers


@dataclass(frozen=True, eq=False)
class Frame:
    """Frame `index` of a file, its geometry NaN where the file does not tell.

    `groups` are its functional groups, its own before the shared ones; a classic file has none.
    """

    source: Source
    header: Dataset
    index: int
    groups: tuple[Dataset, ...]

    def value(self, keyword: str) -> Any:
        """An attribute of the frame, wherever its file keeps it; None where it has none, or none that can be read."""
        for place in (*self.groups, self.header):
            with contextlib.suppress(Exception):  # pydicom's parsers raise whatever they stumble over
                if (value := place.get(keyword)) not in (None, ""):
                    return value
        return None

    def numbers(self, keyword: str, count: int, least: float = -math.inf, most: float = math.inf) -> Floats:
        """So many numbers (count,) between two others; all NaN where the attribute is anything else."""
        numbers = unknown = np.full(count, np.nan)
        with contextlib.suppress(Exception):  # of text, of lists of another length, of sequences
            numbers = np.array(self.value(keyword), np.float64).reshape(count)
        return numbers if ((least < numbers) & (numbers < most)).all() else unknown

    def number(self, keyword: str, default: float = math.nan) -> float:
        """A finite number, or the default."""
        (number,) = self.numbers(keyword, 1).tolist()
        return default if math.isnan(number) else number

    def text(self, keyword: str) -> str:
        """An attribute in one line, with backslashes between its parts."""
        value = self.value(keyword)
        if value is None or isinstance(value, Sequence):
            return ""
        return "\\".join(line(part, _LONGEST) for part in (value if isinstance(value, MultiValue) else [value]))

    @property
    def kind(self) -> UID | None:
        """The SOP class of a file that holds this frame alone; None where there is none."""
        kind = UID(self.header.SOPClassUID, IGNORE)
        return _SINGLE_FRAME.get(kind) if self.groups else kind

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return int(self.header.Rows), int(self.header.Columns)

    @cached_property
    def spacing(self) -> Floats:
        """Millimetres between rows and between columns."""
        return self.numbers("PixelSpacing", 2, 1 / FARTHEST, FARTHEST)

    @cached_property
    def position(self) -> Floats:
        """The first pixel's centre, in millimetres towards the patient's left, back and head."""
        return self.numbers("ImagePositionPatient", 3, -FARTHEST, FARTHEST)

    @cached_property
    def axes(self) -> Floats:
        """The perpendicular unit vectors (2, 3) along a row and down a column that are nearest to the header's.

        NaN where those are not such vectors, rounded to the digits that they have.
        """
        axes = self.numbers("ImageOrientationPatient", 6).reshape(2, 3)
        if not np.abs(axes @ axes.T - np.eye(2)).max() <= max(_PERPENDICULAR, 4 * self.rounding):
            return np.full((2, 3), np.nan)
        left, _, right = np.linalg.svd(axes, full_matrices=False)
        return np.asarray((left @ right).round(12) + 0.0)

    @property
    def normal(self) -> Floats:
        return np.cross(*self.axes)

    @cached_property
    def rounding(self) -> float:
        """The last decimal place of its direction cosines; 0 for whole numbers and single digits, which are exact or no use."""
        try:
            cosines = [Decimal(str(cosine)) for cosine in self.value("ImageOrientationPatient") or ()]
        except (ArithmeticError, TypeError):  # text, or no list
            return 0.0
        places = min((int(c.as_tuple().exponent) for c in cosines if abs(c) > _PERPENDICULAR), default=0)
        return 10.0**places if places < -1 else 0.0

    @property
    def rescale(self) -> tuple[float, float]:
        """Slope and intercept from stored values to real ones."""
        return self.number("RescaleSlope", 1.0) or 1.0, self.number("RescaleIntercept", 0.0)

    @cached_property
    def stored(self) -> Stored:
        """What its numbers mean, if it has no `problem`. A padding of 0 alone is none: it is the background."""
        header, value, limit = self.header, self.number("PixelPaddingValue"), self.number("PixelPaddingRangeLimit")
        least = -(1 << header.BitsStored - 1) if header.PixelRepresentation else 0
        most, span = least + (1 << header.BitsStored) - 1, 1 << header.BitsAllocated
        first = -(span // 2) if least else 0  # some are written with the wrong sign
        ends = sorted((int(end) - first) % span + first for end in (value, limit) if not math.isnan(end))
        told = not math.isnan(value) and any(ends) and least <= ends[0] and ends[-1] <= most
        inverted = self.text("PhotometricInterpretation") == "MONOCHROME1"
        return Stored(least, most, stored_type(header), self.rescale, inverted, (ends[0], ends[-1]) if told else None)

    @cached_property
    def problem(self) -> str:
        """Why such a frame can be no slice of a volume, or nothing."""
        header, colours, (slope, intercept) = self.header, self.text("PhotometricInterpretation"), self.rescale
        allocated, stored, high = header.BitsAllocated, header.BitsStored, header.HighBit
        if header.SamplesPerPixel != 1 or not colours.startswith("MONOCHROME"):
            return f"is in colour ({colours or 'of no known kind'}): only grey pictures can be upscaled"
        if allocated not in (8, 16):
            return f"has pixels of {allocated} bits: 8 or 16 can be upscaled"
        if not 0 < stored <= high + 1 <= allocated:
            return f"says that {stored} of {allocated} bits, up to bit {high}, are its pixels: its header is damaged"
        if "MOSAIC" in self.text("ImageType").split("\\"):
            return "is a mosaic, a volume's slices side by side in one picture: export it as single slices"
        if not _LEAST < abs(slope) < 1 / _LEAST or not abs(intercept) < 1 / _LEAST:
            return f"has a slope of {slope:g} and an intercept of {intercept:g}, which no float32 holds: its header is damaged"
        if "ModalityLUTSequence" in header:
            return "maps its pixels by a table (Modality LUT), not by slope and intercept: export it without"
        if not self.kind:
            name = UID(header.SOPClassUID, IGNORE).name
            return f"is a {name}, for which no kind of single slices is known: export it as such"
        if get_nr_frames(header, warn=False) > 1 and not self.groups:
            return "has many frames and no functional groups to tell where they lie: export it as single slices"
        places = {"ImagePositionPatient": self.position, "ImageOrientationPatient": self.axes, "PixelSpacing": self.spacing}
        if missing := [name for name, found in places.items() if np.isnan(found).any()]:
            return f"does not tell where it lies ({', '.join(missing)}): missing or impossible, so it is no slice of a volume"
        decoded, advice = decoder(header)
        syntax = header.file_meta.TransferSyntaxUID.name
        return "" if decoded else f"is compressed ({syntax}), and nothing here reads that: {advice or 'save it uncompressed'}"


def frames_of(source: Source) -> list[Frame]:
    """The frames of a file: one, or as many as its functional groups describe. Raises Skipped where it has none to look at."""
    header = source.header()
    try:
        own = header.get("PerFrameFunctionalGroupsSequence") or ()
        shared = _items((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
        groups = [(*_items(one), *shared) for one in own[: get_nr_frames(header, warn=False)]]
    except Exception as error:  # pydicom's parsers raise whatever they stumble over
        raise Skipped(f"damaged ({type(error).__name__})", str(header.SeriesInstanceUID), damaged=True) from None
    return [Frame(source, header, k, items) for k, items in enumerate(groups or [()])]


def _items(groups: Dataset) -> tuple[Dataset, ...]:
    """The first item of each functional group that has one."""
    return tuple(element.value[0] for element in groups if element.VR == "SQ" and element.value)
