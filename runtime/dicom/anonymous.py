"""The Basic Application Level Confidentiality Profile, applied: what could tell who a patient is goes."""

from __future__ import annotations

import hmac
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import BYTES_VR, FLOAT_VR, INT_VR

from .carried import coded
from .profile import ACTIONS

_DUMMIES: dict[str, Any] = {"DA": "19000101", "TM": "000000", "DT": "19000101000000", "AS": "000Y", "PN": "REMOVED^"}
_DUMMIES |= dict.fromkeys(BYTES_VR, bytes(8)) | dict.fromkeys(INT_VR | FLOAT_VR, 0)  # numbers of up to 8 bytes, all of them 0
_STANDARD = "1.2.840.10008."  # UIDs that name no thing of a hospital's


def anonymise(dataset: Dataset, key: bytes) -> None:
    """Drop or replace, in place and in all sequences, what the profile names; a UID becomes the same one wherever it stands.

    Only what the standard defines may be in it: private attributes are not looked at.
    """

    def replaced(uid: str) -> UID:
        return UID(uid) if not uid or uid.startswith(_STANDARD) else keyed_uid(key, uid)

    def act(place: Dataset, element: DataElement) -> None:
        vr, value = element.VR, element.value
        action = ACTIONS.get(int(element.tag), {"PN": "Z", "UI": "U"}.get(vr, ""))  # the table does not know yet all names
        gone = action in ("X", "X/Z", "X/D", "X/Z/D") or (action == "D" and vr == "SQ")
        if gone or ("U" in action and vr not in ("UI", "SQ")):
            del place[element.tag]  # an image can do without any of these
        elif action in ("Z", "Z/D"):
            element.value = [] if vr == "SQ" else None
        elif vr == "UI":
            element.value = [*map(replaced, value)] if isinstance(value, MultiValue) else replaced(value or "")
        elif action == "D":
            element.value = _DUMMIES.get(vr, "REMOVED")

    dataset.walk(act)


def declare(dataset: Dataset) -> None:
    """Say that it was done, and how."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "DICOM PS3.15 Basic Application Level Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = [coded(codes.DCM.BasicApplicationConfidentialityProfile)]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def keyed_uid(key: bytes, *parts: str) -> UID:
    """The UID for some text that nobody can make, or link to the text, without the key."""
    return generate_uid(entropy_srcs=[hmac.digest(key, "\0".join(parts).encode(), "sha256").hex()])
