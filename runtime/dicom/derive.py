"""A derived series: what an upscaled volume becomes in DICOM, PS3.3's General Image module and what hangs on it.

One file a slice, whatever the source was, in Explicit VR Little Endian, uncompressed. A slice's attributes are those of the
source's nearest one; what no longer holds is made anew or dropped (docs/dicom.md has the list).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    generate_uid,
)

from ..errors import ImageError, OutputFileError
from ..files import write_folder
from .anonymous import anonymise, declare
from .carried import carried, decimal
from .frames import Frame, Rescale
from .series import LPS_TO_RAS, Series, along
from .source import quiet

PRODUCT = "metasrgan-edge"
WRITTEN = r"\d{4,}\.dcm"  # the names that `save` gives

IMPERSONAL = frozenset({"software", "bundle", "device", "scale", "grid"})  # of a record: what an anonymous series may tell

_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_MAYBE_LOSSY = (JPEG2000, HTJ2K)  # what does not say which is taken for lossy
_TEXT, _LONG_TEXT = 64, 1024  # characters that LO and ST hold

# What belongs to stored values as the scanner scaled them.
_SCALED = (
    *("RescaleType", "RealWorldValueMappingSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "VOILUTSequence"),
    *("WindowCenterWidthExplanation", "VOILUTFunction", "PresentationLUTShape"),
)


def save(
    folder: Path,
    series: Series,
    image: Any,
    *,
    description: str,
    record: Mapping[str, Any],
    acquired: str = "",
    anonymous: bool = False,
    overwrite: bool = False,
    like: Path | None = None,
) -> None:
    """Write the derived series as a folder of files, 0001.dcm and so on, whole or not at all; arguments as of `datasets`.

    With `overwrite`, a folder that holds nothing but such files is replaced, unless the source lies in it.
    Raises OutputFileError.
    """
    inside = folder.resolve()
    if any(isinstance(f.source.content, Path) and inside in f.source.content.resolve().parents for f in series.frames):
        raise OutputFileError(f"{folder} holds the series that is upscaled: name another folder")
    made = datasets(series, image, description, record, anonymous, acquired)
    files = ((f"{k:04d}.dcm", partial(_write, dataset)) for k, dataset in enumerate(made, 1))
    write_folder(folder, files, overwrite, WRITTEN, like)


def datasets(
    series: Series, image: Any, description: str, record: Mapping[str, Any], anonymous: bool = False, acquired: str = ""
) -> Iterator[Dataset]:
    """The derived series slice by slice, each a dataset with its file meta information, ready to be written or sent.

    `image` is a NIfTI image made of `series.volume()`: more voxels along any axis, the same directions. `description` says what
    was done in a few words, `acquired` in a line what was measured. `record` is plain data; its `time` (ISO 8601) dates the
    series, its `software` names the version. All UIDs are made of what goes in, so the same input gives the same bytes.
    Raises ImageError for an image of another series.
    """
    return _slices(_Derivation.of(series, image, description, record, anonymous, acquired))


@dataclass(frozen=True)
class _Stored:
    """How real values are stored, in `bits` of `allocated`, by slope and intercept; `fitted` where not the source's."""

    low: int
    high: int
    allocated: int
    bits: int
    rescale: Rescale
    inverted: bool
    fitted: bool

    @classmethod
    def of(cls, series: Series, low: float, high: float) -> _Stored:
        """As the source stores them, if it does so alike in all slices and these values fit; else 16 bits over their range."""
        least, most = series.limits
        bits = max((-least - 1).bit_length() + 1, most.bit_length() + 1) if least < 0 else most.bit_length()
        if series.rescale and bits <= 16:
            slope, intercept = series.rescale
            ends = sorted(((low - intercept) / slope, (high - intercept) / slope))
            if least - 0.5 <= ends[0] and ends[1] <= most + 0.5:
                allocated = 8 if all(frame.header.BitsAllocated == 8 for frame in series.frames) else 16
                return cls(least, most, allocated, bits, series.rescale, series.frames[0].inverted, False)
        slope = float(decimal((high - low) / 65534)) or 1.0  # one short of what 16 bits hold: decimal strings round it
        return cls(0, 65535, 16, 16, (slope, float(decimal(low))), False, True)

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        slope, intercept = self.rescale
        stored = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), self.low, self.high)
        if self.inverted:
            stored = self.low + self.high - stored
        return stored.astype(f"<{'i' if self.low < 0 else 'u'}{self.allocated // 8}")


@dataclass(frozen=True)
class _Derivation:
    """All that the slices of a derived series share."""

    series: Series
    image: Any
    affine: NDArray[np.float64]  # (column, row, slice) → millimetres towards left, back and head
    description: str
    record: Mapping[str, Any]
    anonymous: bool
    acquired: str
    stored: _Stored
    low: float
    high: float
    lossy: bool
    entropy: str

    @classmethod
    def of(
        cls, series: Series, image: Any, description: str, record: Mapping[str, Any], anonymous: bool, acquired: str
    ) -> _Derivation:
        if series.problem:
            raise ImageError(f"the series cannot be upscaled: it {series.problem}")
        affine = np.asarray(image.affine, dtype=np.float64)
        if len(image.shape) != 3 or not all(n >= m for n, m in zip(image.shape, np.array(series.shape)[[1, 0, 2]])):
            raise ImageError(
                f"the image is {image.shape}: give one made of this series, {series.shape} in rows, columns, slices"
            )
        directions = [matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (affine, series.affine)]
        if not np.abs(directions[0] - directions[1]).max() < 1e-3:
            raise ImageError("the image's axes point elsewhere than the series': give one made of it, columns, rows, slices")
        low, high, digest = np.inf, -np.inf, hashlib.sha256()
        for plane in _planes(image):
            if not np.isfinite(plane).all():
                raise ImageError("the image holds NaN or infinity, which DICOM cannot store: replace them first")
            low, high = min(low, float(plane.min())), max(high, float(plane.max()))
            digest.update(plane.tobytes())
        made_of = [series.uid, *(f"{f.header.SOPInstanceUID} {f.index}" for f in series.frames)]
        entropy = [made_of, digest.hexdigest(), np.round(affine, 4).tolist(), description, _json(record), anonymous]
        return cls(
            *(series, image, LPS_TO_RAS @ affine, description, record, anonymous, acquired),
            *(_Stored.of(series, low, high), low, high, any(map(_lossy, series.frames)), json.dumps(entropy)),
        )

    @property
    def software(self) -> str:
        return _plain(str(self.record.get("software") or PRODUCT), _TEXT)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Millimetres between columns, rows and slices."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def uid(self, number: int) -> UID:
        """The series' own for 0, and a slice's for its number."""
        return generate_uid(entropy_srcs=[self.entropy, str(number)])

    def sources(self, k: int) -> tuple[Frame, list[Frame]]:
        """The source slice that lies nearest to slice `k`, and those that it lies between."""
        inverse = np.linalg.inv(LPS_TO_RAS @ self.series.affine)
        at = float(np.clip((inverse @ self.affine @ (0, 0, k, 1))[2], 0, len(self.series.frames) - 1))
        between = dict.fromkeys((int(np.floor(at + 1e-3)), int(np.ceil(at - 1e-3))))
        return self.series.frames[round(at)], [self.series.frames[n] for n in between]


def _slices(whole: _Derivation) -> Iterator[Dataset]:
    for k, plane in enumerate(_planes(whole.image)):
        with quiet():
            dataset = _slice(whole, k, whole.stored(plane.T))
        yield dataset


def _slice(whole: _Derivation, k: int, pixels: NDArray[Any]) -> Dataset:
    nearest, between = whole.sources(k)
    dataset = carried(nearest)
    _tell_origin(dataset, whole, nearest)
    _place(dataset, whole, k, nearest)
    _store(dataset, whole, pixels)
    _number(dataset, whole, k)
    if whole.anonymous:
        anonymise(dataset)
        declare(dataset)
    _tell_derivation(dataset, whole, between)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def _tell_origin(dataset: Dataset, whole: _Derivation, frame: Frame) -> None:
    """What a derived image says of itself."""
    kind = frame.words("FrameType" if frame.groups else "ImageType")[2:] or ("OTHER",)
    dataset.ImageType = ["DERIVED", "SECONDARY", *kind]
    if whole.lossy:
        dataset.LossyImageCompression = "01"


def _place(dataset: Dataset, whole: _Derivation, k: int, nearest: Frame) -> None:
    series, spacing = whole.series, [float(f"{mm:.7g}") for mm in whole.spacing]  # what NIfTI's float32 holds
    position = (whole.affine @ (0, 0, k, 1))[:3].round(5)
    assert nearest.orientation is not None
    dataset.PixelSpacing = [decimal(spacing[1]), decimal(spacing[0])]
    dataset.ImagePositionPatient = [decimal(x) for x in position]
    dataset.ImageOrientationPatient = [decimal(x) for x in nearest.orientation.ravel()]
    if (thickness := nearest.numbers("SliceThickness", 1)) is not None:
        finer = series.shape[2] < whole.image.shape[2]
        dataset.SliceThickness = (
            decimal(float(f"{thickness[0] * spacing[2] / series.spacing[2]:.7g}")) if finer else dataset.SliceThickness
        )
    else:
        dataset.SliceThickness = None
    if whole.image.shape[2] > 1:  # across the slices, which may lie staggered
        dataset.SpacingBetweenSlices = decimal(float(f"{abs(whole.affine[:3, 2] @ nearest.normal):.7g}"))
    if "SliceLocation" in dataset:
        ends = series.frames[0], series.frames[-1]
        first, last = (frame.numbers("SliceLocation", 1) for frame in ends)
        del dataset.SliceLocation
        if first and last:
            start, end = (along(frame, ends[0].normal) for frame in ends)
            rate = (last[0] - first[0]) / (end - start) if end > start else 1.0
            dataset.SliceLocation = decimal(first[0] + (float(position @ ends[0].normal) - start) * rate)


def _store(dataset: Dataset, whole: _Derivation, pixels: NDArray[Any]) -> None:
    stored = whole.stored
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = stored.allocated, stored.bits, stored.bits - 1
    dataset.PixelRepresentation = int(stored.low < 0)
    dataset.PhotometricInterpretation = "MONOCHROME1" if stored.inverted else "MONOCHROME2"
    extreme = "SS" if stored.low < 0 else "US"
    dataset.add_new("SmallestImagePixelValue", extreme, int(pixels.min()))
    dataset.add_new("LargestImagePixelValue", extreme, int(pixels.max()))
    if stored.fitted:
        for keyword in _SCALED:
            if keyword in dataset:
                delattr(dataset, keyword)
        dataset.RescaleSlope, dataset.RescaleIntercept = map(decimal, stored.rescale)
        dataset.RescaleType = "US"
        dataset.WindowCenter = decimal((whole.low + whole.high) / 2)
        dataset.WindowWidth = decimal(max(whole.high - whole.low, 1.0))
    content = pixels.tobytes()
    dataset.add_new("PixelData", "OB" if stored.allocated == 8 else "OW", content + b"\0" * (len(content) % 2))


def _number(dataset: Dataset, whole: _Derivation, k: int) -> None:
    """UIDs, numbers and dates: slices are counted in the direction in which the source counts them."""
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = whole.uid(k + 1), whole.uid(0)
    first, last = (frame.numbers("InstanceNumber", 1) for frame in (whole.series.frames[0], whole.series.frames[-1]))
    count = whole.image.shape[2]
    dataset.InstanceNumber = count - k if first and last and first > last else k + 1
    number = dataset.get("SeriesNumber")
    dataset.SeriesNumber = number * 100 + 1 if number is not None and 0 <= number < 1 << 24 else number
    if moment := _moment(whole.record, dataset.get("TimezoneOffsetFromUTC")):
        for kind in ("InstanceCreation", "Series", "Content"):
            setattr(dataset, f"{kind}Date", f"{moment:%Y%m%d}")
            setattr(dataset, f"{kind}Time", f"{moment:%H%M%S.%f}")


def _tell_derivation(dataset: Dataset, whole: _Derivation, between: Sequence[Frame]) -> None:
    """What was done, by whom, to which images; nothing in it is the patient's, as it is added to anonymous slices too."""
    what = _plain(whole.description, _TEXT)
    source = "" if whole.anonymous else dataset.get("SeriesDescription") or ""
    dataset.SeriesDescription = f"{str(source)[: max(_TEXT - len(what) - 1, 0)]} {what}".strip()
    (rows, columns, slices), spacing = whole.series.shape, whole.series.spacing
    size = f"{columns}x{rows}x{slices} voxels of {spacing[1]:.4g}x{spacing[0]:.4g}x{spacing[2]:.4g} mm"
    measured = f" ({_plain(whole.acquired, _TEXT * 2)})" if whole.acquired else ""
    text = f"{what}: upscaled by a neural network from {size}{measured}. Detail finer than these is estimated, not measured."
    before = str(dataset.get("DerivationDescription") or "")
    dataset.DerivationDescription = f"{text} Before that: {before}"[:_LONG_TEXT] if before else text
    _append(dataset, "DerivationCodeSequence", _coded(codes.DCM.SpatialResampling))
    dataset.SourceImageSequence = [_reference(frame, whole.anonymous) for frame in between]
    versions = dataset.get("SoftwareVersions") or []
    versions = [versions] if isinstance(versions, str) else list(versions)
    dataset.SoftwareVersions = [*versions, whole.software]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_coded(codes.DCM.ProcessingEquipment)]
    equipment.Manufacturer = equipment.ManufacturerModelName = PRODUCT
    equipment.SoftwareVersions = whole.software
    record = whole.record
    if whole.anonymous:
        record = {key: value for key, value in record.items() if key in IMPERSONAL}
    elif moment := _moment(whole.record):
        equipment.ContributionDateTime = f"{moment:%Y%m%d%H%M%S.%f%z}"
    equipment.ContributionDescription = _fitting(record)
    _append(dataset, "ContributingEquipmentSequence", equipment)


def _lossy(frame: Frame) -> bool:
    """Whether the frame was compressed with loss, ever."""
    syntax, said = frame.header.file_meta.TransferSyntaxUID, frame.text("LossyImageCompression")
    return said == "01" or syntax in _LOSSY or (syntax in _MAYBE_LOSSY and not said)


def _reference(frame: Frame, anonymous: bool) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = frame.header.SOPClassUID
    item.ReferencedSOPInstanceUID = frame.header.SOPInstanceUID
    if frame.groups:
        item.ReferencedFrameNumber = frame.index + 1
    if anonymous:
        anonymise(item)
    item.PurposeOfReferenceCodeSequence = [_coded(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def _coded(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _append(dataset: Dataset, keyword: str, item: Dataset) -> None:
    setattr(dataset, keyword, [*(dataset.get(keyword) or ()), item])


def _planes(image: Any) -> Iterator[NDArray[Any]]:
    """Slices (columns, rows) of real values."""
    for k in range(image.shape[2]):
        yield image.real(image.pixels[:, :, k])


def _moment(record: Mapping[str, Any], offset: object = None) -> datetime | None:
    """The record's time, by the clock that is `offset` (±HHMM) from Greenwich where that is known."""
    try:
        moment = datetime.fromisoformat(str(record["time"]))
    except (KeyError, ValueError):
        return None
    if offset and moment.tzinfo and re.fullmatch(r"[+-]\d{4}", str(offset)):
        moment = moment.astimezone(datetime.strptime(str(offset), "%z").tzinfo)
    return moment


def _fitting(record: Mapping[str, Any]) -> str:
    """The record as JSON, without its longest entries where a short text cannot hold them."""
    kept = dict(record)
    while len(text := _json(kept)) > _LONG_TEXT:
        del kept[max(kept, key=lambda key: len(_json(kept[key])))]
    return text


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _plain(text: str, length: int) -> str:
    """Text that every character set can write."""
    plain = text.replace("×", "x").replace("\\", "/").encode("ascii", "replace").decode()
    return re.sub(r"[\x00-\x1f]+", " ", plain)[:length].strip()


def _write(dataset: Dataset, file: IO[bytes]) -> None:
    with quiet():
        dcmwrite(file, dataset, enforce_file_format=True)
