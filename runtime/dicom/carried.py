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
    SourceImageEvidenceSequence ReferencedImageEvidenceSequence ReferencedPresentationStateSequence IconImageSequence
    SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries PixelAspectRatio
    NominalScannedPixelSpacing ImagerPixelSpacing SpatialResolution ImagesInAcquisition NumberOfFrames FrameIncrementPointer
    PerFrameFunctionalGroupsSequence SharedFunctionalGroupsSequence DimensionOrganizationSequence DimensionIndexSequence
    DimensionOrganizationType InConcatenationNumber InConcatenationTotalNumber ConcatenationUID ConcatenationFrameOffsetNumber
    SOPInstanceUIDOfConcatenationSource ConversionSourceAttributesSequence ContentCreatorName StorageMediaFileSetUID
    ExtendedOffsetTable ExtendedOffsetTableLengths PixelDataProviderURL MACParametersSequence DigitalSignaturesSequence
    EncryptedAttributesSequence OriginalAttributesSequence DataSetTrailingPadding DataSetType
"""
_DEEPEST = 16  # sequences within each other
_DROPPED = frozenset(tag_for_keyword(keyword) for keyword in _NOT_CARRIED.split())

# What a multi-frame keeps for each frame, and the name that it has there where that is another.
_OF_A_FRAME = """
    AcquisitionDateTime=FrameAcquisitionDateTime AcquisitionNumber=FrameAcquisitionNumber EchoTime=EffectiveEchoTime
    ImageLaterality=FrameLaterality ImagedNucleus=ResonantNucleus ImagingFrequency=TransmitterFrequency
    InversionTime=InversionTimes EchoTrainLength FlipAngle InPlanePhaseEncodingDirection NumberOfAverages
    PercentPhaseFieldOfView PercentSampling PixelBandwidth RepetitionTime RescaleIntercept RescaleSlope RescaleType
    SliceThickness TemporalPositionIndex WindowCenter WindowCenterWidthExplanation WindowWidth AnatomicRegionSequence
"""
_SCANNING = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": ["SE", "GR"]}  # of EchoPulseSequence


def carried(frame: Frame) -> Dataset:
    """The frame's attributes that a derived slice may have, as those of a single-frame file."""
    dataset = _without_private(frame.header, _DROPPED)
    charset = dataset.get("SpecificCharacterSet")
    if isinstance(charset, str) and charset.startswith("ISO 2022"):  # which left the default out, that it begins from
        dataset.SpecificCharacterSet = ["", charset]
    dataset.SOPClassUID = frame.kind
    if not frame.groups:
        return dataset
    for keyword, _, there in (pair.partition("=") for pair in _OF_A_FRAME.split()):
        value = frame.value(there or keyword)
        several = isinstance(value, MutableSequence) and dictionary_VR(keyword) != "SQ" and dictionary_VM(keyword) == "1"
        if value is not None and not several:
            _put(dataset, keyword, value)
    if dataset.get("InPlanePhaseEncodingDirection") == "COLUMN":
        dataset.InPlanePhaseEncodingDirection = "COL"
    if dataset.get("Modality") == "MR":
        dataset.ScanningSequence = _SCANNING.get(frame.text("EchoPulseSequence"), "RM")
        dataset.SequenceVariant = "NONE"
        for keyword in ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength"):
            dataset.setdefault(keyword, None)
    return dataset


def _without_private(source: Dataset, dropped: frozenset[int | None] = frozenset(), depth: int = 0) -> Dataset:
    """A copy of what the standard defines, and pydicom can read and write, with sequences; no pixels, overlays or curves."""
    copy = Dataset()
    for tag in sorted(source.keys()):
        skipped = tag in dropped or tag.is_private or tag.element == 0 or tag.group & 0xFF00 in (0x5000, 0x6000)
        if not skipped and 8 <= tag.group < 0x7FE0:  # the lowest are not of a dataset
            with contextlib.suppress(Exception):  # of what pydicom's parsers stumble over
                _put(copy, tag, source[tag].value, source[tag].VR, depth)
    return copy


def _put(dataset: Dataset, name: str | BaseTag, value: Any, vr: str = "UN", depth: int = 0) -> None:
    """Set an attribute in the type that it has by the dictionary, where that can be written; `vr` is the file's own."""
    tag = Tag(name)
    known = dictionary_VR(tag) if dictionary_has_tag(tag) else vr
    with contextlib.suppress(Exception):
        if known == "SQ":
            value = [_without_private(part, depth=depth + 1) for part in value] if depth < _DEEPEST else []
        elif known == "DS" and isinstance(value, float) and not isinstance(value, DSfloat):
            value = decimal(value)
        element = DataElement(tag, vr if vr in known else known, value)
        file = DicomBytesIO()
        file.is_implicit_VR, file.is_little_endian = False, True
        write_data_element(file, element)
        if element.VR != "UN" and isinstance(value, bytes) <= (element.VR in BYTES_VR):
            dataset.add(element)


def item(**attributes: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def coded(code: Code) -> Dataset:
    """A code as an item of a sequence."""
    return item(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)


def decimal(value: float, digits: int = 17) -> DSfloat | None:
    """A number as a decimal string of 16 characters says it, to so many digits; None for one that it cannot say."""
    return DSfloat(float(f"{value:.{digits}g}"), auto_format=True) if math.isfinite(value) else None
