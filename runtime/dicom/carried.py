"""What of a source's header a derived slice may have, whatever kind of file it comes from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import MutableSequence
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import BYTES_VR, DSfloat

from .frames import Frame

# What is not true of a derived slice, or was never about a single one. Private data, curves and overlays go by their tags.
_NOT_CARRIED = """
    InstanceCreatorUID ReferencedImageSequence SourceImageSequence ReferencedPerformedProcedureStepSequence
    ReferencedInstanceSequence ReferencedSeriesSequence StudiesContainingOtherReferencedInstancesSequence
    SourceImageEvidenceSequence ReferencedImageEvidenceSequence ReferencedPresentationStateSequence
    IconImageSequence SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries
    LargestPixelValueInSeries PixelAspectRatio NominalScannedPixelSpacing ImagerPixelSpacing SpatialResolution
    ImagesInAcquisition NumberOfFrames FrameIncrementPointer PerFrameFunctionalGroupsSequence
    SharedFunctionalGroupsSequence DimensionOrganizationSequence DimensionIndexSequence
    DimensionOrganizationType InConcatenationNumber InConcatenationTotalNumber ConcatenationUID
    ConcatenationFrameOffsetNumber SOPInstanceUIDOfConcatenationSource ConversionSourceAttributesSequence
    ContentCreatorName StorageMediaFileSetUID ExtendedOffsetTable ExtendedOffsetTableLengths
    PixelDataProviderURL MACParametersSequence DigitalSignaturesSequence EncryptedAttributesSequence
    OriginalAttributesSequence DataSetTrailingPadding DataSetType
"""
_DEEPEST = 16  # sequences within each other
_DROPPED = frozenset(tag_for_keyword(keyword) for keyword in _NOT_CARRIED.split())

# What a multi-frame keeps for each frame, by the name that a single one has for it.
_OF_A_FRAME = {
    "AcquisitionDateTime": "FrameAcquisitionDateTime",
    "AcquisitionNumber": "FrameAcquisitionNumber",
    "EchoTime": "EffectiveEchoTime",
    "ImageLaterality": "FrameLaterality",
    "ImagedNucleus": "ResonantNucleus",
    "ImagingFrequency": "TransmitterFrequency",
    "InversionTime": "InversionTimes",
} | {
    keyword: keyword
    for keyword in (
        *("EchoTrainLength", "FlipAngle", "InPlanePhaseEncodingDirection", "NumberOfAverages", "PercentPhaseFieldOfView"),
        *("PercentSampling", "PixelBandwidth", "RepetitionTime", "RescaleIntercept", "RescaleSlope", "RescaleType"),
        *("SliceThickness", "TemporalPositionIndex", "WindowCenter", "WindowCenterWidthExplanation", "WindowWidth"),
    )
}
_SCANNING = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": ["SE", "GR"]}  # of EchoPulseSequence


def carried(frame: Frame) -> Dataset:
    """The frame's attributes that a derived slice may have, as those of a single-frame file."""
    dataset = _without_private(frame.header, _DROPPED)
    charset = dataset.get("SpecificCharacterSet")
    if isinstance(charset, str) and charset.startswith("ISO 2022"):  # which left the default out, that it begins from
        dataset.SpecificCharacterSet = ["", charset]
    dataset.SOPClassUID = frame.single_frame_class
    if not frame.groups:
        return dataset
    for keyword, name in _OF_A_FRAME.items():
        value = frame.value(name)
        if value is not None and not (isinstance(value, MutableSequence) and dictionary_VM(keyword) == "1"):
            _put(dataset, keyword, value)
    if region := frame.value("AnatomicRegionSequence"):
        _put(dataset, "AnatomicRegionSequence", region)
    if dataset.get("InPlanePhaseEncodingDirection") == "COLUMN":
        dataset.InPlanePhaseEncodingDirection = "COL"
    if dataset.get("Modality") == "MR":
        dataset.ScanningSequence = _SCANNING.get(frame.text("EchoPulseSequence"), "RM")
        dataset.SequenceVariant = "NONE"
        for keyword in ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength"):
            if keyword not in dataset:
                setattr(dataset, keyword, None)
    return dataset


def _without_private(source: Dataset, dropped: frozenset[int | None] = frozenset(), depth: int = 0) -> Dataset:
    """A copy of what the standard defines, and pydicom can read and write, with sequences; no pixels, overlays or curves."""
    copy = Dataset()
    for tag in sorted(source.keys()):
        if tag in dropped or tag.is_private or tag.element == 0:
            continue
        if not 8 <= tag.group < 0x7FE0 or tag.group & 0xFF00 in (0x5000, 0x6000):  # the lowest are not of a dataset
            continue
        with contextlib.suppress(Exception):  # of what pydicom's parsers stumble over
            _put(copy, tag, source[tag].value, source[tag].VR, depth)
    return copy


def _put(dataset: Dataset, name: str | BaseTag, value: Any, vr: str = "UN", depth: int = 0) -> None:
    """Set an attribute in the type that it has by the dictionary, where that can be written; `vr` is the file's own."""
    tag = Tag(name)
    known = dictionary_VR(tag) if dictionary_has_tag(tag) else vr
    with contextlib.suppress(Exception):
        if known == "SQ":
            value = [_without_private(item, depth=depth + 1) for item in value] if depth < _DEEPEST else []
        elif known == "DS" and isinstance(value, float) and not isinstance(value, DSfloat):
            value = decimal(value)
        element = DataElement(tag, vr if vr in known else known, value)
        file = DicomBytesIO()
        file.is_implicit_VR, file.is_little_endian = False, True
        write_data_element(file, element)
        if element.VR != "UN" and isinstance(value, bytes) <= (element.VR in BYTES_VR):
            dataset.add(element)


def coded(code: Code) -> Dataset:
    """A code as an item of a sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def decimal(value: float) -> DSfloat | None:
    """A number as a decimal string of 16 characters says it; None for one that it cannot say."""
    return DSfloat(float(value), auto_format=True) if math.isfinite(value) else None
