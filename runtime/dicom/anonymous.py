"""The Basic Application Level Confidentiality Profile, applied: what could tell who a patient is goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid

from .profile import ACTIONS

_DUMMIES = {"DA": "19000101", "TM": "000000", "DT": "19000101000000", "AS": "000Y", "PN": "REMOVED^", "CS": "REMOVED"}
_STANDARD = "1.2.840.10008."  # UIDs that name no thing of a hospital's


def anonymise(dataset: Dataset) -> None:
    """Drop or replace, in place and in all sequences, what the profile names; a UID becomes the same one wherever it stands.

    Only what the standard defines may be in it: private attributes are not looked at.
    """
    for tag in list(dataset.keys()):
        element = dataset[tag]
        action = ACTIONS.get(int(tag))
        if action is None and element.VR == "PN":
            action = "Z"  # a name that the table does not know yet
        if action in ("X", "X/Z", "X/D", "X/Z/D") or (action == "D" and element.VR == "SQ"):
            del dataset[tag]  # an image can do without any of these
        elif action in ("Z", "Z/D"):
            element.value = [] if element.VR == "SQ" else None
        elif action == "D":
            element.value = _DUMMIES.get(element.VR, 0 if element.VR in _NUMBERS else "REMOVED")
        elif element.VR == "UI":
            element.value = _each(element.value, replaced)
        elif element.VR == "SQ":
            for item in element.value:
                anonymise(item)


def declare(dataset: Dataset) -> None:
    """Say that it was done, and how."""
    method = Dataset()
    code = codes.DCM.BasicApplicationConfidentialityProfile
    method.CodeValue, method.CodingSchemeDesignator, method.CodeMeaning = code.value, code.scheme_designator, code.meaning
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "DICOM PS3.15 Basic Application Level Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = [method]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def replaced(uid: str) -> UID:
    """Another UID for it, always the same one; those of the standard stay."""
    return UID(uid) if not uid or uid.startswith(_STANDARD) else generate_uid(entropy_srcs=["anonymous", uid])


def _each(value: Any, change: Callable[[str], UID]) -> Any:
    return change(str(value or "")) if isinstance(value, (str, type(None))) else [change(str(v)) for v in value]


_NUMBERS = {"DS", "IS", "US", "SS", "UL", "SL", "FL", "FD", "SV", "UV"}
