"""A derived series: what an upscaled volume becomes in DICOM, PS3.3's General Image module and what hangs on it.

One file a slice, whatever the source was, in Explicit VR Little Endian, uncompressed. A slice's attributes are those of the
source's nearest one; what no longer holds is made anew or dropped (docs/dicom.md has the list).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import set_pixel_data
from pydicom.sr.codedict import codes
from pydicom.uid import HTJ2K, JPEG2000, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from ..errors import ImageError, OutputFileError
from ..files import write_folder
from ..inputs import quiet
from .anonymous import anonymise, declare, keyed_uid
from .carried import carried, coded, decimal
from .frames import Frame, Rescale
from .series import LPS_TO_RAS, Series, along

Record = Mapping[str, Any]
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
    record: Record,
    acquired: str = "",
    anonymous: bool = False,
    key: bytes | None = None,
    overwrite: bool = False,
    like: Path | None = None,
    first: Callable[[Path], Any] = lambda finished: None,
) -> None:
    """Write the derived series as a folder of files, 0001.dcm and so on, whole or not at all; arguments as of `datasets`.

    With `overwrite`, a folder that holds nothing but such files is replaced, unless the source lies in it. `like` and `first`
    are as of `files.write_folder`. Raises OutputFileError.
    """
    inside = folder.resolve()
    if any(isinstance(f.source.content, Path) and inside in f.source.content.resolve().parents for f in series.frames):
        raise OutputFileError(f"{folder} holds the series that is upscaled: name another folder")
    made = datasets(series, image, description, record, anonymous, acquired, key)
    files = ((f"{k:04d}.dcm", partial(_write, dataset)) for k, dataset in enumerate(made, 1))
    write_folder(folder, files, overwrite, WRITTEN, like, first)


def datasets(
    series: Series,
    image: Any,
    description: str,
    record: Record,
    anonymous: bool = False,
    acquired: str = "",
    key: bytes | None = None,
) -> Iterator[Dataset]:
    """The derived series slice by slice, each a dataset with its file meta information, ready to be written or sent.

    `image` is a NIfTI image made of `series.volume()`: more voxels along any axis, the same directions. `description` says what
    was done in a few words, `acquired` in a line what was measured. `record` is plain data; its `time` (ISO 8601) dates the
    series, its `software` names the version. All UIDs are made of what goes in, so the same input gives the same bytes.
    Those of an `anonymous` series are made with a secret `key`: the same key gives the same UIDs, and so keeps the series of a
    study together; without one, each call has its own. Raises ImageError for an image of another series.
    """
    secret = (secrets.token_bytes() if key is None else key) if anonymous else b""
    return _slices(_Derivation(series, image, description, record, anonymous, acquired, secret))


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
        slope = float(decimal((high - low) / 65534) or 1)  # one short of what 16 bits hold: decimal strings round it
        return cls(0, 65535, 16, 16, (slope, float(decimal(low) or 0)), False, True)

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        slope, intercept = self.rescale
        stored = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), self.low, self.high)
        if self.inverted:
            stored = self.low + self.high - stored
        return stored.astype(f"<{'i' if self.low < 0 else 'u'}{self.allocated // 8}")


class _Derivation:
    """All that the slices of a derived series share."""

    def __init__(
        self, series: Series, image: Any, description: str, record: Record, anonymous: bool, acquired: str, key: bytes
    ) -> None:
        if series.problem:
            raise ImageError(f"the series cannot be upscaled: it {series.problem}")
        self.series, self.image, self.description, self.record = series, image, description, record
        self.anonymous, self.acquired, self.key = anonymous, acquired, key
        affine = np.asarray(image.affine, dtype=np.float64)
        if len(image.shape) != 3 or not all(n >= m for n, m in zip(image.shape, np.array(series.shape)[[1, 0, 2]])):
            raise ImageError(f"the image is {image.shape}: give one made of this series, (columns, rows, slices) or larger")
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
        entropy = _json([made_of, digest.hexdigest(), np.round(affine, 4).tolist(), description, record, anonymous])
        self.uid = partial(keyed_uid, key, entropy)  # of the series, "", and of each slice by its number
        self.affine = LPS_TO_RAS @ affine  # (column, row, slice) → millimetres towards left, back and head
        self.stored, self.low, self.high = _Stored.of(series, low, high), low, high
        self.lossy = any(map(_lossy, series.frames))
        self.software = _plain(str(record.get("software") or PRODUCT), _TEXT)

    def sources(self, k: int) -> tuple[Frame, list[Frame]]:
        """The source slice that lies nearest to slice `k`, and those that it lies between."""
        inverse = np.linalg.inv(LPS_TO_RAS @ self.series.affine)
        at = float(np.clip((inverse @ self.affine @ (0, 0, k, 1))[2], 0, len(self.series.frames) - 1))
        between = dict.fromkeys((int(np.floor(at + 1e-3)), int(np.ceil(at - 1e-3))))
        return self.series.frames[round(at)], [self.series.frames[n] for n in between]


def _slices(whole: _Derivation) -> Iterator[Dataset]:
    for k, plane in enumerate(_planes(whole.image)):
        with quiet("pydicom"):
            dataset = _slice(whole, k, whole.stored(plane.T))
        yield dataset


def _slice(whole: _Derivation, k: int, pixels: NDArray[Any]) -> Dataset:
    nearest, between = whole.sources(k)
    dataset = carried(nearest)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    kind = nearest.words("FrameType" if nearest.groups else "ImageType")[2:] or ("OTHER",)
    dataset.ImageType = ["DERIVED", "SECONDARY", *kind]
    if whole.lossy:
        dataset.LossyImageCompression = "01"
    _place(dataset, whole, k, nearest)
    _store(dataset, whole, pixels)
    _number(dataset, whole, k)
    if whole.anonymous:
        anonymise(dataset, whole.key)
        declare(dataset)
    _tell_derivation(dataset, whole, between)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _place(dataset: Dataset, whole: _Derivation, k: int, nearest: Frame) -> None:
    first, last = whole.series.frames[0], whole.series.frames[-1]
    spacing = [_seven(mm) for mm in np.linalg.norm(whole.affine[:3, :3], axis=0)]  # of columns, rows and slices
    position = (whole.affine @ (0, 0, k, 1))[:3].round(5)
    dataset.PixelSpacing = [decimal(spacing[1]), decimal(spacing[0])]
    dataset.ImagePositionPatient = [decimal(x) for x in position]
    dataset.ImageOrientationPatient = [decimal(x) for x in first.axes.ravel()]
    thickness = nearest.numbers("SliceThickness", 1)
    thinner = spacing[2] / whole.series.spacing[2] if len(whole.series.frames) < whole.image.shape[2] else 1.0
    dataset.SliceThickness = decimal(_seven(thickness[0] * thinner)) if thickness else None
    if whole.image.shape[2] > 1:  # across the slices, which may lie staggered
        dataset.SpacingBetweenSlices = decimal(_seven(abs(float(whole.affine[:3, 2] @ first.normal))))
    if "SliceLocation" in dataset:
        del dataset.SliceLocation
        said = [frame.numbers("SliceLocation", 1) for frame in (first, last)]
        if said[0] and said[1]:
            start, end = (along(frame, first.normal) for frame in (first, last))
            rate = (said[1][0] - said[0][0]) / (end - start) if end > start else 1.0
            dataset.SliceLocation = decimal(said[0][0] + (float(position @ first.normal) - start) * rate)


def _seven(value: float) -> float:
    """A number to the digits that NIfTI's float32 holds."""
    return float(f"{value:.7g}")


def _store(dataset: Dataset, whole: _Derivation, pixels: NDArray[Any]) -> None:
    stored = whole.stored
    colours = "MONOCHROME1" if stored.inverted else "MONOCHROME2"
    set_pixel_data(dataset, pixels, colours, stored.bits, generate_instance_uid=False)
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


def _number(dataset: Dataset, whole: _Derivation, k: int) -> None:
    """UIDs, numbers and dates: slices are counted in the direction in which the source counts them."""
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = whole.uid(str(k + 1)), whole.uid("")
    first, last = (frame.numbers("InstanceNumber", 1) for frame in (whole.series.frames[0], whole.series.frames[-1]))
    count = whole.image.shape[2]
    dataset.InstanceNumber = count - k if first and last and first > last else k + 1
    number = whole.series.frames[0].numbers("SeriesNumber", 1)
    dataset.SeriesNumber = int(number[0]) * 100 + 1 if number and 0 <= number[0] < 1 << 24 else None
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
    dataset.DerivationCodeSequence = [*dataset.get("DerivationCodeSequence", ()), coded(codes.DCM.SpatialResampling)]
    dataset.SourceImageSequence = [_reference(frame, whole) for frame in between]
    versions = dataset.get("SoftwareVersions") or []
    versions = [versions] if isinstance(versions, str) else list(versions)
    dataset.SoftwareVersions = [*versions, whole.software]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [coded(codes.DCM.ProcessingEquipment)]
    equipment.Manufacturer = equipment.ManufacturerModelName = PRODUCT
    equipment.SoftwareVersions = whole.software
    record = whole.record
    if whole.anonymous:
        record = {key: value for key, value in record.items() if key in IMPERSONAL}
    elif moment := _moment(whole.record):
        equipment.ContributionDateTime = f"{moment:%Y%m%d%H%M%S.%f%z}"
    equipment.ContributionDescription = _fitting(record)
    dataset.ContributingEquipmentSequence = [*dataset.get("ContributingEquipmentSequence", ()), equipment]


def _lossy(frame: Frame) -> bool:
    """Whether the frame was compressed with loss, ever."""
    syntax, said = frame.header.file_meta.TransferSyntaxUID, frame.text("LossyImageCompression")
    return said == "01" or syntax in _LOSSY or (syntax in _MAYBE_LOSSY and not said)


def _reference(frame: Frame, whole: _Derivation) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = frame.header.SOPClassUID
    item.ReferencedSOPInstanceUID = frame.header.SOPInstanceUID
    if frame.groups:
        item.ReferencedFrameNumber = frame.index + 1
    if whole.anonymous:
        anonymise(item, whole.key)
    item.PurposeOfReferenceCodeSequence = [coded(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def _planes(image: Any) -> Iterator[NDArray[Any]]:
    """Slices (columns, rows) of real values."""
    for k in range(image.shape[2]):
        yield image.real(image.pixels[:, :, k])


def _moment(record: Record, offset: object = None) -> datetime | None:
    """The record's time, by the clock that is `offset` (±HHMM) from Greenwich where that is known."""
    try:
        moment = datetime.fromisoformat(str(record["time"]))
    except (KeyError, ValueError):
        return None
    if offset and moment.tzinfo and re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", str(offset)):
        moment = moment.astimezone(datetime.strptime(str(offset), "%z").tzinfo)
    return moment


def _fitting(record: Record) -> str:
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
    content = io.BytesIO()  # as pydicom hides the cause where a disk is full
    with quiet("pydicom"):
        dcmwrite(content, dataset, enforce_file_format=True)
    file.write(content.getbuffer())
