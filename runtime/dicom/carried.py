"""What of a source's header a derived slice may have, whatever kind of file it comes from."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

from pydicom.datadict import dictionary_VM, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

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
            _set(dataset, keyword, value)
    if region := frame.value("AnatomicRegionSequence"):
        dataset.AnatomicRegionSequence = [_without_private(item) for item in region]
    if dataset.get("InPlanePhaseEncodingDirection") == "COLUMN":
        dataset.InPlanePhaseEncodingDirection = "COL"
    if dataset.get("Modality") == "MR":
        dataset.ScanningSequence = _SCANNING.get(frame.text("EchoPulseSequence"), "RM")
        dataset.SequenceVariant = "NONE"
        for keyword in ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength"):
            if keyword not in dataset:
                _set(dataset, keyword, None)
    return dataset


def _without_private(source: Dataset, dropped: frozenset[int | None] = frozenset()) -> Dataset:
    """A copy of what the standard defines and pydicom can read, sequences included; no pixels, overlays or curves."""
    copy = Dataset()
    for tag in sorted(source.keys()):
        if tag in dropped or tag.is_private or tag.element == 0:
            continue
        if tag.group >= 0x7FE0 or tag.group & 0xFF00 in (0x5000, 0x6000):
            continue
        try:
            element = source[tag]
            if element.VR == "SQ":
                copy.add_new(tag, "SQ", [_without_private(item) for item in element.value])
            elif element.VR != "UN":
                copy.add_new(tag, element.VR, element.value)
        except Exception:  # what its parser stumbles over cannot be carried
            continue
    return copy


def decimal(value: float) -> DSfloat:
    """A number as a decimal string of 16 characters says it."""
    return DSfloat(float(value), auto_format=True)


def _set(dataset: Dataset, keyword: str, value: Any) -> None:
    """Set an attribute, of a number as much as a decimal string holds."""
    setattr(dataset, keyword, decimal(value) if isinstance(value, float) and not isinstance(value, DSfloat) else value)
