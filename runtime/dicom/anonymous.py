"""The Basic Application Level Confidentiality Profile, applied: what could tell who a patient is goes."""

from __future__ import annotations

import hmac
import re
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import BYTES_VR, FLOAT_VR, INT_VR

from .carried import coded

# DICOM PS3.15 2026c, table E.1-1, column "Basic Prof.": elements by group, in the order of number. Private attributes, curves
# (50xx) and overlays (60xx), which it names as ranges, never reach a derived series.
# D: a dummy value, Z: nothing, X: removed, U: another UID; several: which of them is the object's to say (PS3.15, E.3.1).
_TABLE = {
    "D": """0008(0106 0107) 0012(0010 0020 0040 0042 0081) 0018(11BB 9074 9151 9367 9369 936A 9371 9623 9701 9804) 0034(0001
        0002 0005 0007) 003A(0314) 0040(0512 0551 1101 A027 A030 A073 A075 A120 A121 A122 A123 A13A A730) 0042(0011) 0044(0104)
        0068(6226 6270) 006A(0003 0005) 0070(0001 0006) 0072(000A 005E 005F 0061 0063 0065 0066 0068 006A 006B 006C 006D 006E
        0070 0071) 0400(0105 0115 0562 0563 0565) 2100(0140) 3006(0002) 3008(0024 0025 0162 0164 0166 0168) 300A(0002 022C 022E
        0608 0619 0623 062A 067C 0734 0736 073A 0741 0742 0760 0783) 300C(0127) 3010(002D 0033 0034 0035 0038 0054)""",
    "Z": """0008(0020 0030 0050 0090 009C) 0010(0010 0030 0040) 0012(0021 0030 0031 0050 0060) 0018(1203) 0020(0010) 0040(0513
        0562 0610 2016 2017 A082 A088) 0400(0564) 3006(0008 0009 0026 00A6) 300A(0611 0615 067D) 300E(0004 0005) 3010(000F 0017
        001B 0043 005A 005C 007A 007B 007F 0081)""",
    "X": """0000(1000) 0008(0015 0024 0025 0034 0035 0054 0055 0081 0092 0094 0096 009D 0201 1000 1030 103E 1040 1041 1048 1049
        1050 1052 1060 1062 1080 1084 1088 1120 1301 1302 1303 1304 2111 4000) 0010(0011 0012 0013 0014 0015 0016 0021 0032 0041
        0042 0043 0044 0045 0046 0047 0050 0101 0102 1000 1001 1002 1005 1010 1020 1030 1040 1050 1060 1080 1081 1090 1100 2000
        2110 2150 2152 2154 2155 2160 2161 2162 2180 21A0 21B0 21C0 21D0 21F0 2297 2299 4000) 0012(0022 0023 0032 0041 0043 0051
        0055 0071 0072 0073 0082 0086 0087) 0014(407C 407E) 0016(002B 004B 004D 004E 004F 0050 0051 0070 0071 0072 0073 0074
        0075 0076 0077 0078 0079 007A 007B 007C 007D 007E 007F 0080 0081 0082 0083 0084 0085 0086 0087 0088 0089 008A 008B 008C
        008D 008E) 0018(0027 0035 1004 1005 1007 1008 1009 100A 1010 1011 1012 1014 1042 1043 1072 1073 1078 1079 1200 1201 1202
        1204 1205 4000 5011 9185 9373 937B 937F 9424 9937 A002 A003) 0020(0027 3401 3403 3405 3406 4000 9158) 0028(4000)
        0032(0012 0032 0033 0034 0035 1000 1001 1010 1011 1020 1021 1030 1032 1033 1040 1041 1050 1051 1066 1067 1070 4000)
        0038(0004 0010 0011 0014 001A 001B 001C 001D 001E 0020 0021 0030 0032 0040 0050 0060 0061 0062 0064 0300 0400 0500 4000)
        003A(0020 0203 020C 0329 032B) 0040(0001 0002 0003 0004 0005 0006 0007 0009 000B 0010 0011 0012 0241 0242 0243 0244 0245
        0250 0251 0253 0254 0275 0280 0310 050A 051A 0556 0600 0602 06FA 1001 1002 1004 1005 100A 1010 1011 1102 1103 1104 1400
        2001 2004 2005 2008 2009 2010 2011 2400 3001 4005 4008 4010 4011 4025 4027 4028 4030 4034 4035 4036 4037 4050 4051 4052
        A023 A024 A033 A034 A035 A078 A07A A07C A110 A112 A192 A193 A307 A352 A353 A354 A358 B034 B036 B03B B03F DB06 DB07 E004
        E012) 0044(0004 000B 0010 0105) 0050(001B 0020 0021) 006A(0006) 0070(0082 0083 0086) 0074(1234 1236) 0088(0200 0904 0906
        0910 0912) 0100(0420) 0400(0310 0402 0403 0404 0550 0551 0552 0561 0600) 2030(0020) 2100(0040 0050 0070) 3002(0121 0123)
        3006(0004 0006 0028 002D 002E 0038 004D 004E 0085 0088) 300A(0003 0004 000B 000E 0016 0072 00C3 00DD 0196 01A6 01B2 0216
        02EB 0676 078E 0792 0794 079A) 300C(0113) 3010(0036 0037 0061 0085) 4000(0010 4000) 4008(0040 0042 0100 0101 0102 0108
        0109 010A 010B 010C 0111 0112 0113 0114 0115 0118 0119 011A 0200 0202 0300 4000) FFFA(FFFA) FFFC(FFFC)""",
    "U": """0000(1001) 0002(0003) 0004(1511) 0008(0014 0017 0018 0019 0058 1155 1195 3010) 0018(1002 100B 2042) 0020(000D 000E
        0052 0200 9161 9164) 0028(1199 1214) 003A(0310) 0040(0554 4023 A124 A171 A172 A402 DB0C DB0D) 0062(0021) 0064(0003)
        0070(031A 1101 1102) 0088(0140) 0400(0100) 3006(0024 00C2) 300A(0013 0054 0083 0609 0650 0700 0785) 3010(0006 000B 0013
        0015 0031 003B 006E 006F)""",
    "Z/D": """0008(0023 0033) 0010(0020) 0018(0010 9919) 0070(0084)""",
    "X/Z": """0008(0022 0032 1110) 0010(2203) 0032(1060) 0040(0555) 2200(0002 0005) 3008(0105) 300A(00B2) 300E(0008)""",
    "X/D": """0008(0012 0021 0031 1072) 0018(1030 1400 700A 700C 700E 9516 9517) 0040(A032 B020) 3008(0054 0056 0250 0251)
        300A(0006 0007) 3010(004C 004D 0056 0077)""",
    "X/Z/D": """0008(0013 002A 0080 0082 1010 1070 1111) 0018(1000)""",
    "X/Z/U*": """0008(1140 2112)""",
}

ACTIONS: dict[int, str] = {
    int(group + element, 16): action
    for action, tags in _TABLE.items()
    for group, elements in re.findall(r"(\w{4})\(([^)]*)\)", tags)
    for element in elements.split()
}
_DUMMIES: dict[str, Any] = {"DA": "19000101", "TM": "000000", "DT": "19000101000000", "AS": "000Y", "PN": "REMOVED^"}
_DUMMIES |= dict.fromkeys(BYTES_VR, bytes(8)) | dict.fromkeys(INT_VR | FLOAT_VR, 0)  # numbers of up to 8 bytes, all of them 0
_STANDARD = "1.2.840.10008."  # UIDs that name no thing of a hospital's


def anonymise(dataset: Dataset, key: bytes) -> None:
    """Drop or replace, in place and in all sequences, what the profile names, which is nothing private, and say so."""

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
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "DICOM PS3.15 Basic Application Level Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = [coded(codes.DCM.BasicApplicationConfidentialityProfile)]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def keyed_uid(key: bytes, *parts: str) -> UID:
    """The UID for some text, always the same, that nobody can make or link to the text without the key."""
    return generate_uid(entropy_srcs=[hmac.digest(key, "\0".join(parts).encode(), "sha256").hex()])
