"""Anonymous derived series: the basic confidentiality profile, and UIDs that only who has the key can link."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

pydicom = pytest.importorskip("pydicom", reason="pip install pydicom")

from pydicom import dcmread  # noqa: E402
from pydicom.datadict import dictionary_has_tag, dictionary_VR  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402

from runtime.dicom import datasets, save  # noqa: E402
from runtime.dicom.anonymous import ACTIONS, anonymise  # noqa: E402

from .test_dicom import (  # noqa: E402
    RECORD,
    SERIES,
    STUDY,
    assert_complete,
    derived,
    enlarged,
    errors_by_dciodvfy,
    found,
    make_series,
    make_slice,
    to_bytes,
    uids,
)

KEY = b"a secret of the hospital's"


def test_anonymous_leaves_no_identifying_value(tmp_path: Path) -> None:
    source = make_series(
        **dict.fromkeys(
            ("InstitutionName", "StudyDescription", "PatientComments", "ImageComments", "StationName"), "Doe's own"
        ),
        **dict.fromkeys(("ProtocolName", "DeviceSerialNumber", "SeriesDescription", "AdmissionID"), "Doe's own"),
        DeviceUID="1.2.3.55",
    )
    for slice_ in source:
        nested = Dataset()
        nested.RequestedProcedureDescription, nested.StudyInstanceUID = "for Doe", STUDY
        slice_.RequestAttributesSequence = [nested]
        anatomy = Dataset()
        anatomy.CodeValue, anatomy.CodingSchemeDesignator, anatomy.CodeMeaning = "69536005", "SCT", "Head"
        anatomy.PatientName = "Doe^Nested"  # in a sequence that stays
        slice_.AnatomicRegionSequence = [anatomy]
        slice_.private_block(0x0019, "ACME", create=True).add_new(1, "LO", "Doe")
        slice_.add_new(0x60000010, "US", 7)
        slice_.add_new(0x60004000, "LT", "Doe")
    series = found(source)
    image = enlarged(series.volume(), 2, 2, 1)
    save(tmp_path / "sr", series, image, description="x2", record=RECORD, anonymous=True, key=KEY)
    after = [dcmread(path) for path in sorted((tmp_path / "sr").iterdir())]
    for path in (tmp_path / "sr").iterdir():
        content = path.read_bytes()
        for planted in (b"Doe", b"Jane", b"PID-77", b"19700102", b"A77", b"S77", b"Hollie", b"20200304", b"1.2.3."):
            assert not re.search(rb"(?<![\d.])" + re.escape(planted), content), planted
    slice_ = after[0]
    assert not uids(slice_) & uids(source[0])
    assert {s.StudyInstanceUID for s in after} == {slice_.StudyInstanceUID}
    twin = derived(found([make_slice(k, series=f"{SERIES}.5") for k in range(2)]), image_of_two(), anonymous=True, key=KEY)[0]
    assert (twin.StudyInstanceUID, twin.FrameOfReferenceUID) == (slice_.StudyInstanceUID, slice_.FrameOfReferenceUID)
    assert slice_.AnatomicRegionSequence[0].CodeMeaning == "Head"
    assert slice_.PatientIdentityRemoved == "YES"
    assert slice_.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert '"bundle"' in slice_.ContributingEquipmentSequence[0].ContributionDescription
    assert_complete(slice_)
    assert errors_by_dciodvfy(tmp_path / "sr" / "0001.dcm") == set()


def image_of_two() -> Any:
    return enlarged(found(make_slice(k, series=f"{SERIES}.5") for k in range(2)).volume(), 2, 2, 1)


VALUES: dict[str, Any] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), "DOE JANE"),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), b"DOE JANE"),
    "UR": "DOE/JANE",
    **dict.fromkeys(("IS", "US", "SS", "UL", "SL", "SV", "UV", "DS", "FL", "FD"), 77),
    **{
        "AS": "077Y",
        "AT": 0x00100010,
        "DA": "19700102",
        "TM": "070707",
        "DT": "19700102070707",
        "PN": "Doe^Jane",
        "UI": "1.2.3.4",
    },
}


def named(vr: str) -> Dataset:
    """Everything that the profile names, each in a type, where the dictionary has none, that it is given."""
    dataset = Dataset()
    for tag in ACTIONS:
        if tag >> 16 <= 4:
            continue  # no part of a dataset
        kind = dictionary_VR(tag) if dictionary_has_tag(tag) else vr
        item = Dataset()
        item.PatientName = "Doe^Jane"
        dataset.add_new(tag, kind, [item] if kind == "SQ" else VALUES[kind])
    return dataset


@pytest.mark.parametrize("vr", VALUES)
def test_every_type_has_a_dummy_that_is_written(vr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a dataset and in a sequence of it, by every action of the profile."""
    actions = sorted(set(ACTIONS.values()))
    tags = {0x0012FF00 + n: action for n, action in enumerate(actions)}  # which no dictionary has: any type is theirs
    monkeypatch.setattr("runtime.dicom.anonymous.ACTIONS", tags)
    dataset, item = Dataset(), Dataset()
    for tag in tags:
        dataset.add_new(tag, vr, VALUES[vr])
        item.add_new(tag, vr, VALUES[vr])
    dataset.AnatomicRegionSequence = [item]
    anonymise(dataset, KEY)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    after = dcmread(io.BytesIO(stream.getvalue()), force=True)
    for part in (after, after.AnatomicRegionSequence[0]):
        left = {tags[int(e.tag)]: e.value for e in part if int(e.tag) in tags}
        assert not left.keys() & {"X", "X/Z", "X/D", "X/Z/D"}
        assert all(value not in (VALUES[vr], "Doe^Jane") for action, value in left.items() if action != "X/Z/U*" or vr == "UI")
        assert not left["Z"]
        assert left["D"] is not None
        assert left["D"] != ""
        assert ("U" in left) == (vr == "UI")


@pytest.mark.parametrize("vr", ["LO", "OB", "UT"])
def test_everything_that_the_profile_names_is_written_and_read_back(vr: str) -> None:
    source = make_series(2)
    for slice_ in source:
        for place in (slice_, anatomy := Dataset()):
            for element in named(vr):
                if element.keyword not in ("SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
                    place.add(element)
        slice_.AnatomicRegionSequence = [anatomy]
    series = found(source)
    for slice_ in derived(series, enlarged(series.volume(), 2, 2, 1), anonymous=True):
        content = to_bytes(slice_)
        assert not re.search(rb"doe|jane|19700102|1\.2\.3\.", content, re.IGNORECASE)
        after = dcmread(io.BytesIO(content))
        assert [element.tag for element in after] == [element.tag for element in slice_]
        assert after.FlowIdentifier == after.SourceIdentifier == after.EncapsulatedDocument == bytes(8)
        assert after.AnatomicRegionSequence[0].FlowIdentifier == bytes(8)


def all_uids(dataset: Dataset) -> set[str]:
    """Every UID, those of references too, that is not one of the standard's."""
    nested = [all_uids(item) for element in dataset if element.VR == "SQ" for item in element.value]
    own = {str(element.value) for element in dataset if element.VR == "UI"}
    return {uid for uid in own.union(*nested) if not uid.startswith("1.2.840.10008.")}


def test_uids_hang_on_the_key() -> None:
    series = found(make_series())
    image = enlarged(series.volume(), 2, 2, 1)

    def made(key: bytes) -> list[Dataset]:
        return derived(series, image, anonymous=True, key=key)

    first, again, other, random, twice = ([all_uids(s) for s in made(key)] for key in (KEY, KEY, b"other", b"", b""))
    assert first == again
    assert len(first[0]) >= 5  # study, series, instance, frame of reference, source image
    for one, two in ((first, other), (first, random), (random, twice)):
        assert not set.union(*one) & set.union(*two)
    assert len({slice_.StudyInstanceUID for slice_ in made(b"")}) == 1


def test_no_hash_of_the_input_is_told() -> None:
    series = found(make_series())
    told = hashlib.sha256(b"input").hexdigest()
    record = {**RECORD, "input": told, "notes": [told]}
    slice_ = to_bytes(next(datasets(series, enlarged(series.volume(), 2, 2, 1), "x2", record, anonymous=True)))
    assert told.encode() not in slice_
    public = pydicom.uid.generate_uid(entropy_srcs=["anonymous", STUDY])
    assert str(public).encode() not in slice_
