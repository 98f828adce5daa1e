"""A derived series: what an upscaled volume becomes in DICOM, one uncompressed file a slice, whatever the source was.

A slice's attributes are those of the source's nearest one; what no longer holds is made anew or dropped (docs/dicom.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.pixels.utils import set_pixel_data
from pydicom.sr.codedict import codes
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from ..errors import ImageError, OutputFileError
from ..files import write_folder
from ..inputs import quiet
from ..scan import Scan
from .anonymous import anonymise, keyed_uid
from .carried import carried, coded, decimal, item
from .frames import Frame, Stored
from .series import LPS_TO_RAS, Series

Record = Mapping[str, Any]
_PRODUCT = "metasrgan-edge"
_WRITTEN = r"\d{4,}\.dcm"  # the names that `save` gives
_IMPERSONAL = ("software", "bundle", "device", "scale", "grid")  # of a record: what an anonymous series may tell
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_MAYBE_LOSSY = (JPEG2000, HTJ2K)  # what does not say which is taken for lossy
_TEXT, _LONG_TEXT = 64, 1024  # characters that LO and ST hold
_DIGITS = 7  # that NIfTI's float32 holds

# What belongs to stored values as the scanner scaled them.
_SCALED = (
    *("RescaleType", "RealWorldValueMappingSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "VOILUTSequence"),
    *("WindowCenterWidthExplanation", "VOILUTFunction", "PresentationLUTShape"),
)


def save(
    folder: Path,
    series: Series,
    image: Scan,
    *,
    overwrite: bool = False,
    like: Path | None = None,
    first: Callable[[Path], Any] = lambda finished: None,
    **told: Any,
) -> None:
    """Write the derived series as a folder of files, 0001.dcm and so on, whole or not at all; `told` is as of `datasets`.

    With `overwrite`, a folder that holds nothing but such files is replaced, unless the source lies in it. `like` and `first`
    are as of `files.write_folder`. Raises OutputFileError, and ImageError as `datasets` does.
    """
    inside = folder.resolve()
    if any(isinstance(f.source.content, Path) and inside in f.source.content.resolve().parents for f in series.frames):
        raise OutputFileError(f"{folder} holds the series that is upscaled: name another folder")
    made = datasets(series, image, **told)
    files = ((f"{k:04d}.dcm", partial(_write, dataset)) for k, dataset in enumerate(made, 1))
    write_folder(folder, files, overwrite, _WRITTEN, like, first)


def datasets(
    series: Series, image: Scan, description: str, record: Record, anonymous: bool = False, acquired: str = "", key: bytes = b""
) -> Iterator[Dataset]:
    """The derived series slice by slice, each a dataset with its file meta information, ready to be written or sent.

    `image` is made of `series.volume()`: more voxels along any axis, the same directions. `description` says what was done in
    a few words, `acquired` in a line what was measured. `record` is plain data; its `time` (ISO 8601) dates the series, its
    `software` names the version. All UIDs are made of what goes in, so the same input gives the same bytes. Those of an
    `anonymous` series are made with a secret `key`: the same key gives the same UIDs, and so keeps the series of a study
    together; without one, each call has its own. Raises ImageError for an image of another series.
    """
    secret = (key or secrets.token_bytes()) if anonymous else b""
    return map(_Derivation(series, image, description, record, anonymous, acquired, secret).slice, range(image.shape[-1]))


@dataclass
class _Derivation:
    """What the slices of a derived series share: the arguments of `datasets`, and what is found out about the image."""

    series: Series
    image: Scan
    description: str
    record: Record
    anonymous: bool
    acquired: str
    key: bytes

    def __post_init__(self) -> None:
        series, shape, low, high, digest = self.series, self.image.shape, np.inf, -np.inf, hashlib.sha256()
        if series.problem:
            raise ImageError(f"the series cannot be upscaled: it {series.problem}")
        if len(shape) != 3 or not all(n >= m for n, m in zip(shape, np.array(series.shape)[[1, 0, 2]])):
            raise ImageError(f"the image is {shape}: give one made of this series, (columns, rows, slices) or larger")
        affine = np.asarray(self.image.affine, np.float64)
        self.affine = LPS_TO_RAS @ affine  # (column, row, slice) → millimetres towards left, back and head
        self.back = np.linalg.inv(series.affine) @ affine  # → (column, row, slice) of the source
        directions = [matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (affine, series.affine)]
        if not np.abs(directions[0] - directions[1]).max() < 1e-3:
            raise ImageError("the image's axes point elsewhere than the series': give one made of it, columns, rows, slices")
        for k in range(shape[2]):
            plane = self._plane(k)
            if not np.isfinite(plane).all():
                raise ImageError("the image holds NaN or infinity, which DICOM cannot store: replace them first")
            low, high = min(low, float(plane.min())), max(high, float(plane.max()))
            digest.update(plane.tobytes())
        made_of = [series.uid, *(f"{f.header.SOPInstanceUID} {f.index}" for f in series.frames)]
        place = affine.round(4).tolist()
        self.entropy = _json([made_of, digest.hexdigest(), place, self.description, self.record, self.anonymous])
        self.stored, self.lossy = _stored(series, low, high), any(map(_is_lossy, series.frames))

    def _plane(self, k: int) -> NDArray[Any]:
        """Real values (columns, rows)."""
        return self.image.real(self.image.pixels[:, :, k])

    @quiet("pydicom")
    def slice(self, k: int) -> Dataset:
        """Slice `k`, from 0."""
        frames = self.series.frames
        at = float(np.clip((self.back @ (0, 0, k, 1))[2], 0, len(frames) - 1))
        nearest, between = frames[round(at)], dict.fromkeys((int(np.floor(at + 1e-3)), int(np.ceil(at - 1e-3))))
        dataset = carried(nearest)
        kind = nearest.text("FrameType" if nearest.groups else "ImageType").split("\\")[2:]
        dataset.ImageType = ["DERIVED", "SECONDARY", *(kind or ["OTHER"])]
        if self.lossy:
            dataset.LossyImageCompression = "01"
        self._place(dataset, k, nearest)
        self._store(dataset, self._plane(k).T)
        self._number(dataset, k)
        dataset.SourceImageSequence = [_reference(frames[n]) for n in between]
        if self.anonymous:
            anonymise(dataset, self.key)
        self._tell(dataset)
        return dataset

    def _place(self, dataset: Dataset, k: int, nearest: Frame) -> None:
        first, last = self.series.frames[0], self.series.frames[-1]
        columns, rows, step = np.linalg.norm(self.affine[:3, :3], axis=0)
        position = (self.affine @ (0, 0, k, 1))[:3].round(5)
        dataset.PixelSpacing = [decimal(rows, _DIGITS), decimal(columns, _DIGITS)]
        dataset.ImagePositionPatient = [*map(decimal, position)]
        dataset.ImageOrientationPatient = [*map(decimal, first.axes.ravel())]
        slices = self.image.shape[2]
        thinner = step / self.series.spacing[2] if slices > len(self.series.frames) else 1.0
        dataset.SliceThickness = decimal(nearest.number("SliceThickness") * thinner, _DIGITS)
        if slices > 1:  # across the slices, which may lie staggered
            dataset.SpacingBetweenSlices = decimal(abs(float(self.affine[:3, 2] @ first.normal)), _DIGITS)
        if "SliceLocation" in dataset:
            start, end = (frame.number("SliceLocation") for frame in (first, last))
            away, own = (float((to - first.position) @ first.normal) for to in (last.position, position))
            dataset.SliceLocation = decimal(round(start + own * ((end - start) / away if away > 0 else 1.0), 5))

    def _store(self, dataset: Dataset, values: NDArray[Any]) -> None:
        stored, (slope, intercept) = self.stored, self.stored.rescale or (1.0, 0.0)
        numbers = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), stored.low, stored.high)
        pixels = stored.shown(numbers).astype(stored.dtype.newbyteorder("<"))
        colours, bits = "MONOCHROME1" if stored.inverted else "MONOCHROME2", (stored.high - stored.low).bit_length()
        set_pixel_data(dataset, pixels, colours, bits, generate_instance_uid=False)
        for name, extreme in (("Smallest", pixels.min()), ("Largest", pixels.max())):
            dataset.add_new(f"{name}ImagePixelValue", "SS" if stored.low < 0 else "US", int(extreme))
        if stored is not self.series.stored:
            for keyword in _SCALED:
                dataset.pop(keyword, None)
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = decimal(slope), decimal(intercept), "US"
            dataset.WindowCenter, dataset.WindowWidth = decimal(intercept + slope * 32767), decimal(slope * 65534)

    def _number(self, dataset: Dataset, k: int) -> None:
        """UIDs, numbers and dates: slices are counted in the direction in which the source counts them."""
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = (keyed_uid(self.key, self.entropy, n) for n in (str(k + 1), ""))
        first, last = (frame.number("InstanceNumber") for frame in (self.series.frames[0], self.series.frames[-1]))
        dataset.InstanceNumber = self.image.shape[2] - k if first > last else k + 1
        number = self.series.frames[0].number("SeriesNumber")
        dataset.SeriesNumber = int(number) * 100 + 1 if 0 <= number < 1 << 24 else None
        if moment := _moment(self.record, dataset.get("TimezoneOffsetFromUTC")):
            for kind in ("InstanceCreation", "Series", "Content"):
                setattr(dataset, f"{kind}Date", f"{moment:%Y%m%d}")
                setattr(dataset, f"{kind}Time", f"{moment:%H%M%S.%f}")

    def _tell(self, dataset: Dataset) -> None:
        """What was done, and by whom; nothing in it is the patient's, as it is added to anonymous slices too."""
        what, software = _plain(self.description, _TEXT), _plain(str(self.record.get("software") or _PRODUCT), _TEXT)
        before = str(dataset.get("SeriesDescription") or "")[: max(_TEXT - len(what) - 1, 0)]
        dataset.SeriesDescription = f"{before} {what}".strip()
        (rows, columns, slices), spacing = self.series.shape, self.series.spacing
        size = f"{columns}x{rows}x{slices} voxels of {spacing[1]:.4g}x{spacing[0]:.4g}x{spacing[2]:.4g} mm"
        measured = f" ({_plain(self.acquired, _TEXT * 2)})" if self.acquired else ""
        text = f"{what}: upscaled by a neural network from {size}{measured}. "
        text += "Detail finer than these is estimated, not measured."
        if before := dataset.get("DerivationDescription"):
            text = f"{text} Before that: {before}"
        dataset.DerivationDescription = text[:_LONG_TEXT]
        dataset.DerivationCodeSequence = [*dataset.get("DerivationCodeSequence", ()), coded(codes.DCM.SpatialResampling)]
        versions = dataset.get("SoftwareVersions") or []
        dataset.SoftwareVersions = [*([versions] if isinstance(versions, str) else versions), software]
        equipment = item(
            PurposeOfReferenceCodeSequence=[coded(codes.DCM.ProcessingEquipment)],
            Manufacturer=_PRODUCT,
            ManufacturerModelName=_PRODUCT,
            SoftwareVersions=software,
            ContributionDescription=_fitting({k: v for k, v in self.record.items() if k in _IMPERSONAL or not self.anonymous}),
        )
        if not self.anonymous and (moment := _moment(self.record)):
            equipment.ContributionDateTime = f"{moment:%Y%m%d%H%M%S.%f%z}"
        dataset.ContributingEquipmentSequence = [*dataset.get("ContributingEquipmentSequence", ()), equipment]


def _reference(frame: Frame) -> Dataset:
    return item(
        ReferencedSOPClassUID=frame.header.SOPClassUID,
        ReferencedSOPInstanceUID=frame.header.SOPInstanceUID,
        PurposeOfReferenceCodeSequence=[coded(codes.DCM.SourceImageForImageProcessingOperation)],
        **{"ReferencedFrameNumber": frame.index + 1} if frame.groups else {},
    )


def _stored(series: Series, low: float, high: float) -> Stored:
    """As the source stores its values, if it does so alike in all slices and these fit; else 16 bits over their range."""
    stored = series.stored
    if stored.rescale and stored.dtype.itemsize <= 2:
        slope, intercept = stored.rescale
        ends = sorted(((low - intercept) / slope, (high - intercept) / slope))
        if stored.low - 0.5 <= ends[0] and ends[1] <= stored.high + 0.5:
            return stored
    slope = float(decimal((high - low) / 65534) or 1)  # one short of what 16 bits hold: decimal strings round it
    return Stored(0, 65535, np.dtype(np.uint16), (slope, float(decimal(low) or 0)))


def _is_lossy(frame: Frame) -> bool:
    """Whether the frame was compressed with loss, ever."""
    syntax, said = frame.header.file_meta.TransferSyntaxUID, frame.text("LossyImageCompression")
    return said == "01" or syntax in _LOSSY or (syntax in _MAYBE_LOSSY and not said)


def _moment(record: Record, offset: object = None) -> datetime | None:
    """The record's time, by the clock that is `offset` (±HHMM) from Greenwich where that is known."""
    try:
        moment = datetime.fromisoformat(str(record["time"]))
    except (KeyError, ValueError):
        return None
    with contextlib.suppress(ValueError):
        return moment.astimezone(datetime.strptime(str(offset), "%z").tzinfo) if moment.tzinfo else moment
    return moment


def _fitting(record: Record) -> str:
    """The record as JSON, without its longest entries where a short text cannot hold them."""
    while len(text := _json(record)) > _LONG_TEXT:
        longest = max(record, key=lambda key: len(_json(record[key])))
        record = {key: value for key, value in record.items() if key != longest}
    return text


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _plain(text: str, length: int) -> str:
    """Text that every character set can write."""
    plain = text.replace("×", "x").replace("\\", "/").encode("ascii", "replace").decode()
    return re.sub(r"[\x00-\x1f]+", " ", plain)[:length].strip()


@quiet("pydicom")
def _write(dataset: Dataset, file: IO[bytes]) -> None:
    content = io.BytesIO()  # as pydicom hides the cause where a disk is full
    dcmwrite(content, dataset, enforce_file_format=True)
    file.write(content.getbuffer())
