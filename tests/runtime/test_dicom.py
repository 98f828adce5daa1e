"""DICOM in and out. Slices are made here; the real series is tested where `shared/` is there."""

from __future__ import annotations

import copy
import io
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import threading
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import ImageError, InputFileError, MetasrganError, OutputFileError, Upscaler, grid

pydicom = pytest.importorskip("pydicom", reason="pip install pydicom")

from pydicom import dcmread  # noqa: E402
from pydicom.datadict import tag_for_keyword  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from runtime.__main__ import main  # noqa: E402
from runtime.dicom import Series, carried, datasets, derive, find_series, save, series_of  # noqa: E402
from runtime.dicom import series as series_module  # noqa: E402
from runtime.dicom.source import decoder  # noqa: E402
from runtime.inputs import quiet  # noqa: E402
from runtime.io import nifti  # noqa: E402
from runtime.scan import Scan  # noqa: E402
from tests.conftest import DATA, run_python  # noqa: E402

SAMPLE = DATA / "samples" / "dicom-t1"
RECORD = {
    "software": "metasrgan-edge 9.9",
    "bundle": "b" * 64,
    "device": "CPU",
    "scale": ["2", "2", "1"],
    "grid": "centred",
    "input": "Doe_Jane.zip",
    "time": "2026-01-02T03:04:05+00:00",
}
STUDY, FRAME, SERIES = "1.2.3.1", "1.2.3.2", "1.2.3.3"
TILT = np.array([[0.8, 0.6, 0.0], [-0.36, 0.48, -0.8]])  # unit vectors along a row and down a column
NORMAL = np.cross(*TILT)
ORIGIN = np.array([-91.5, -47.25, 33.125])
SPACING, STEP = (0.75, 0.5), 4.0  # mm between rows and columns; between slices


def make_slice(k: int = 0, *, series: str = SERIES, **more: Any) -> Dataset:
    """Slice `k`, 7×9 pixels of 12 bits, of an oblique MR series; `more` sets attributes, and removes those that are None."""
    slice_ = Dataset()
    meta = slice_.file_meta = FileMetaDataset()
    slice_.SOPClassUID = meta.MediaStorageSOPClassUID = MRImageStorage
    slice_.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"{series}.{k + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = STUDY, series, FRAME
    slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate, slice_.PatientSex = "Doe^Jane", "PID-77", "19700102", "F"
    slice_.StudyDate, slice_.StudyTime, slice_.AccessionNumber, slice_.StudyID = "20200304", "101112", "A77", "S77"
    slice_.ReferringPhysicianName, slice_.Manufacturer, slice_.Modality = "Doc^Hollie", "ACME", "MR"
    slice_.SeriesDescription, slice_.SeriesNumber, slice_.InstanceNumber = "T1 oblique", 4, k + 1
    slice_.ContentDate, slice_.ContentTime = "20200304", "101113"
    slice_.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    slice_.ScanningSequence, slice_.SequenceVariant, slice_.ScanOptions, slice_.MRAcquisitionType = "SE", "NONE", "", "2D"
    slice_.EchoTime, slice_.RepetitionTime, slice_.EchoTrainLength = "12", "500", "1"
    slice_.PatientPosition = "HFS"
    slice_.PositionReferenceIndicator, slice_.SliceThickness, slice_.SliceLocation = "", "3.5", str(-STEP * k)
    slice_.ImageOrientationPatient = TILT.ravel().tolist()
    slice_.ImagePositionPatient = [round(x, 6) for x in ORIGIN + k * STEP * NORMAL]
    slice_.PixelSpacing = list(SPACING)
    slice_.BurnedInAnnotation = "NO"
    slice_.WindowCenter, slice_.WindowWidth = "300", "600"
    slice_.PhotometricInterpretation, slice_.SamplesPerPixel = "MONOCHROME2", 1
    slice_.BitsStored, slice_.PixelRepresentation = 12, 0
    pixels = more.pop("pixels", None)
    set_pixels(slice_, np.random.default_rng(k).integers(0, 4096, (7, 9), np.uint16) if pixels is None else pixels)
    for keyword, value in more.items():
        setattr(slice_, keyword, value)
        if value is None:
            delattr(slice_, keyword)
    slice_.HighBit = more.get("HighBit", slice_.BitsStored - 1)
    return slice_


def set_pixels(slice_: Dataset, pixels: np.ndarray) -> None:
    slice_.Rows, slice_.Columns = pixels.shape[-2:]
    slice_.BitsAllocated = 8 * pixels.itemsize
    slice_.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", pixels.tobytes() + b"\0" * (pixels.nbytes % 2))


def as_jpeg(slice_: Dataset) -> Dataset:
    """A slice of 8 bits, its pixels packed with loss."""
    stream = io.BytesIO()
    Image.fromarray(slice_.pixel_array).save(stream, "JPEG")
    slice_.PixelData = encapsulate([stream.getvalue()])
    slice_["PixelData"].is_undefined_length = True
    slice_.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return slice_


def make_series(count: int = 4, **more: Any) -> list[Dataset]:
    return [make_slice(k, **more) for k in range(count)]


def to_bytes(slice_: Dataset, **options: Any) -> bytes:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, slice_, enforce_file_format=True, **options)
    return stream.getvalue()


def found(slices: Iterable[Dataset]) -> Series:
    """The one series that slices are."""
    (series,) = series_of(map(to_bytes, slices))
    return series


def fill(folder: Path, slices: Iterable[Dataset], names: Iterable[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    slices = list(slices)
    for name, slice_ in zip(names or [f"{slice_.SOPInstanceUID}.dcm" for slice_ in slices], slices):
        (folder / name).write_bytes(to_bytes(slice_))
    return folder


def values(scan: Scan) -> np.ndarray:
    return scan.real(scan.pixels)


def enlarged(scan: Scan, *scales: Any) -> Scan:
    """What `Upscaler.volume` makes of it, but for the values, which are those of the nearest voxel."""
    rows, cols, rest = (grid.parse_scale(scale) for scale in scales)
    nearest = np.ix_(*(grid.project(n, r, "centred").source for n, r in zip(scan.shape, (rows, cols, rest))))
    return scan.finer(scan.pixels[nearest], (rows, cols, rest))


def derived(series: Series, image: Any, **options: Any) -> list[Dataset]:
    return list(datasets(series, image, "enlarged ×2", RECORD, **options))


def real(slice_: Dataset) -> np.ndarray:
    """A slice's values by pydicom's arithmetic, not ours."""
    return slice_.pixel_array * float(slice_.get("RescaleSlope", 1)) + float(slice_.get("RescaleIntercept", 0))


def corner(slice_: Dataset) -> np.ndarray:
    """The outer corner of the first pixel, in patient coordinates."""
    along, down = np.array(slice_.ImageOrientationPatient, float).reshape(2, 3)
    row, column = (float(mm) for mm in slice_.PixelSpacing)
    return np.array(slice_.ImagePositionPatient, float) - along * column / 2 - down * row / 2


def uids(dataset: Dataset) -> set[str]:
    """Every UID in a dataset that names a thing of the hospital's and is no reference to the source's images."""
    return {
        str(uid)
        for element in dataset
        for part in ([element] if element.VR == "UI" else itertools.chain(*(element.value if element.VR == "SQ" else ())))
        if part.VR == "UI" and element.keyword != "SourceImageSequence"
        for uid in ([part.value] if isinstance(part.value, str) else part.value)
        if not str(uid).startswith("1.2.840.10008.")
    }


def dcm2niix(folder: Path) -> Any:
    module = pytest.importorskip("dcm2niix", reason="pip install dcm2niix")
    out = folder.with_name(f"{folder.name}-converted")
    out.mkdir()
    subprocess.run([module.bin, "-f", "v", "-z", "n", "-b", "n", "-o", str(out), str(folder)], check=True, capture_output=True)
    (path,) = out.glob("*.nii")
    return nib.load(path)


def assert_same_place_and_values(image: Any, other: Any) -> None:
    images = (nifti.reopened(nifti.image_of(one)) if isinstance(one, Scan) else one for one in (image, other))
    a, b = map(nib.as_closest_canonical, images)
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in a.shape))))
    # 0.01 mm is what the project promises; conversion through decimal strings and float32 costs a hundredth of it.
    assert np.abs(nib.affines.apply_affine(a.affine, corners) - nib.affines.apply_affine(b.affine, corners)).max() < 0.01
    np.testing.assert_array_equal(a.get_fdata(), b.get_fdata())


def errors_by_dciodvfy(path: Path) -> set[str]:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    return {line for line in done.stderr.splitlines() if line.startswith("Error")}


# The real series


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of its slices, which take the network two seconds."""
    if not SAMPLE.is_dir():
        pytest.skip("the sample series of shared/ is not there")
    folder = tmp_path_factory.mktemp("sample")
    for path in sorted(SAMPLE.glob("*.dcm"))[:4]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("scale", ["2", "2.3"])
def test_real_series_keeps_its_place_and_passes_validation(sample: Path, shipped: Upscaler, scale: str, tmp_path: Path) -> None:
    (series,) = find_series(sample)
    image = shipped.volume(series.volume(), scale, axis=2)
    save(tmp_path / "sr", series, image, description=f"×{scale}", record=RECORD)
    paths = sorted((tmp_path / "sr").iterdir())
    after = [dcmread(path) for path in paths]
    before = {dataset.SOPInstanceUID: dataset for dataset in map(dcmread, sample.iterdir())}
    assert len(after) == len(before)
    n = 256 * Fraction(scale) // 1
    for slice_ in after:
        (reference,) = slice_.SourceImageSequence
        source = before.pop(reference.ReferencedSOPInstanceUID)
        assert (slice_.Rows, slice_.Columns) == (n, n)
        assert np.linalg.norm(corner(slice_) - corner(source)) < 0.05  # mm, as promised
        assert slice_.PixelSpacing == pytest.approx([0.859375 / float(scale)] * 2, rel=1e-6)  # float32's
        assert uids(slice_) & uids(source) == {source.StudyInstanceUID, source.FrameOfReferenceUID}
    assert_same_place_and_values(dcm2niix(tmp_path / "sr"), image)
    source_errors = set().union(*map(errors_by_dciodvfy, sample.iterdir()))
    assert set().union(*map(errors_by_dciodvfy, paths)) <= source_errors


def test_whole_real_series_is_one_volume() -> None:
    if not SAMPLE.is_dir():
        pytest.skip("the sample series of shared/ is not there")
    (series,) = find_series(SAMPLE)
    assert (series.shape, series.problem, series.modality) == ((256, 256, 24), "", "MR")
    assert series.spacing == pytest.approx((0.859375, 0.859375, 0.9), rel=1e-6)
    assert "LICENSE was left out: not DICOM" in series.notes


# Geometry and values of made ones


@pytest.mark.parametrize("scales", [(2, 2, 1), ("2.3", "1.4", 1), (2, 2, "2.5"), (1, 1, 4)])
def test_derived_slices_keep_their_place(scales: tuple[Any, ...], tmp_path: Path) -> None:
    source = make_series()
    series = found(source)
    image = enlarged(series.volume(), *scales)
    save(tmp_path / "sr", series, image, description="enlarged", record=RECORD)
    after = [dcmread(path) for path in sorted((tmp_path / "sr").iterdir())]
    exact = [Fraction(scale) for scale in scales]
    assert len(after) == 4 * exact[2] // 1
    for k, slice_ in enumerate(after):
        assert (slice_.Columns, slice_.Rows) == tuple(n * r // 1 for n, r in zip((9, 7), exact))
        # The centre of an output slice, counted in source slices from the outer edge that both share.
        expected = corner(source[0]) + ((k + 0.5) / exact[2] - Fraction(1, 2)) * STEP * NORMAL
        assert np.abs(corner(slice_) - expected.astype(float)).max() < 1e-4  # mm: NIfTI's affine is float32
        assert slice_.SpacingBetweenSlices == pytest.approx(STEP / float(exact[2]), rel=1e-6)
        assert slice_.SliceThickness == pytest.approx(3.5 / float(exact[2]), rel=1e-6)
        assert slice_.SliceLocation == pytest.approx(-(k + 0.5) / float(exact[2]) * STEP + STEP / 2, abs=1e-4)
        at = (k + 0.5) / float(exact[2]) - 0.5
        between = {min(max(int(f(at)), 0), 3) for f in (np.floor, np.ceil)}
        assert {r.ReferencedSOPInstanceUID for r in slice_.SourceImageSequence} == {f"{SERIES}.{n + 1}" for n in between}
        np.testing.assert_array_equal(slice_.pixel_array.T, values(image)[:, :, k])
    assert_same_place_and_values(dcm2niix(tmp_path / "sr"), image)


def test_volume_is_where_dcm2niix_sees_it(tmp_path: Path) -> None:
    series = found(make_series())
    assert_same_place_and_values(dcm2niix(fill(tmp_path / "source", make_series())), series.volume())


def signed(k: int = 0) -> np.ndarray:
    return np.random.default_rng(k).integers(-2048, 2048, (7, 9), np.int16)


KINDS: dict[str, Callable[[], list[Dataset]]] = {
    "unsigned 12 bits": make_series,
    "signed 12 bits": lambda: [make_slice(k, pixels=signed(k), PixelRepresentation=1) for k in range(4)],
    "unsigned 16 bits": lambda: [make_slice(k, pixels=signed(k).view(np.uint16), BitsStored=16) for k in range(4)],
    "8 bits": lambda: make_series(pixels=np.arange(63, dtype=np.uint8).reshape(7, 9) * 4, BitsStored=8),
    "whole-number rescale": lambda: make_series(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU"),
    "fractional rescale": lambda: make_series(RescaleSlope="0.3421", RescaleIntercept="-17.25", RescaleType="US"),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_every_kind_come_back(kind: str, syntax: Any) -> None:
    source = KINDS[kind]()
    written = copy.deepcopy(source)
    for slice_ in written:
        slice_.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            slice_.PixelData = np.frombuffer(slice_.PixelData, f"u{slice_.BitsAllocated // 8}").byteswap().tobytes()
    series = found(written)
    image = series.volume()
    assert image.pixels.dtype == source[0].pixel_array.dtype
    for k, (before, after) in enumerate(zip(source, derived(series, enlarged(image, 2, 2, 1)))):
        # NIfTI keeps a slope as float32: 1e-7 of the largest value
        np.testing.assert_allclose(values(image)[:, :, k].T, real(before), atol=1e-3)
        np.testing.assert_array_equal(after.pixel_array[::2, ::2], before.pixel_array)
        for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"):
            assert after.get(keyword) == before.get(keyword), keyword
        assert (after.WindowCenter, after.WindowWidth) == (300, 600)
        assert after["SmallestImagePixelValue"].VR == ("SS" if before.PixelRepresentation else "US")
        assert after.SmallestImagePixelValue == before.pixel_array.min()
        assert after.LargestImagePixelValue == before.pixel_array.max()


def test_overlay_bits_beside_the_pixels_are_ignored() -> None:
    pixels = np.arange(63, dtype=np.uint16).reshape(7, 9)
    series = found(make_series(pixels=(pixels << 2) | 0xC001, BitsStored=12, HighBit=13))
    np.testing.assert_array_equal(values(series.volume())[:, :, 0].T, pixels)


def test_small_numbers_shown_bright_become_large_and_go_back() -> None:
    pixels = np.arange(63, dtype=np.uint16).reshape(7, 9) * 60
    series = found(make_series(pixels=pixels, PhotometricInterpretation="MONOCHROME1"))
    image = series.volume()
    np.testing.assert_array_equal(values(image)[:, :, 0].T, 4095 - pixels)  # the range of 12 bits, mirrored
    after = derived(series, enlarged(image, 2, 2, 1))[0]
    assert after.PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_array_equal(after.pixel_array[::2, ::2], pixels)


def test_slices_with_a_slope_each_are_stored_anew() -> None:
    source = [make_slice(k, RescaleSlope=str(0.5 + k), RescaleIntercept="3", PixelPaddingValue=7) for k in range(4)]
    series = found(source)
    after = derived(series, enlarged(series.volume(), 2, 2, 1))
    top = max(real(slice_).max() for slice_ in source)
    for before, slice_ in zip(source, after):
        # half a step of the new slope, which spreads their range over 16 bits
        np.testing.assert_allclose(real(slice_)[::2, ::2], real(before), atol=top / 65534)
        assert slice_.WindowWidth == pytest.approx(top - min(real(s).min() for s in source), rel=1e-6)
    assert {slice_.RescaleSlope for slice_ in after} == {after[0].RescaleSlope}
    assert "PixelPaddingValue" not in after[0]  # it counts in the old steps


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_series_are_read(syntax: Any) -> None:
    pixels = np.random.default_rng(5).integers(0, 4096, (64, 80), np.uint16)
    plain, packed = make_series(pixels=pixels), make_series(pixels=pixels)
    try:
        for slice_ in packed:
            slice_.compress(syntax, generate_instance_uid=False)
    except (RuntimeError, NotImplementedError):
        pytest.skip(f"no encoder of {syntax.name} is installed")
    volumes = [values(found(slices).volume()) for slices in (packed, plain)]
    np.testing.assert_array_equal(*volumes)


def test_compression_that_nothing_reads_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.dicom.frames.decoder", lambda header: (False, decoder(header)[1]))
    packed = make_series()
    for slice_ in packed:
        slice_.compress(RLELossless, generate_instance_uid=False)
    series = found(packed)
    assert series.problem.endswith("nothing here reads that: pip install pylibjpeg pylibjpeg-rle")
    with pytest.raises(ImageError, match="pip install"):
        series.volume()


def test_compression_that_no_decoder_is_known_for_is_refused() -> None:
    packed = make_series()
    for slice_ in packed:
        slice_.compress(RLELossless, generate_instance_uid=False)
        slice_.file_meta.TransferSyntaxUID = MPEG2MPML
    assert found(packed).problem.endswith("nothing here reads that: save it uncompressed")


def test_enhanced_multi_frame_equals_the_classic_series(tmp_path: Path) -> None:
    """Converted by highdicom, which is not ours."""
    highdicom = pytest.importorskip("highdicom", reason="pip install highdicom")
    source = make_series(RescaleSlope="1", RescaleIntercept="0", RescaleType="US")
    enhanced = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        [source[k] for k in (2, 0, 3, 1)], f"{SERIES}.9", 7, f"{SERIES}.9.1", 1, transfer_syntax_uid=ExplicitVRLittleEndian
    )
    series = found([enhanced])
    assert (series.shape, series.spacing, series.problem) == ((7, 9, 4), (*SPACING, pytest.approx(STEP)), "")
    assert_same_place_and_values(series.volume(), found(source).volume())
    check_flattened(series, enhanced, tmp_path)


def make_enhanced() -> Dataset:
    """Two moments of four slices in one file, frames in no order, as scanners write it."""
    file = make_slice(
        SOPClassUID=EnhancedMRImageStorage,
        **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation")),
        **dict.fromkeys(("WindowCenter", "WindowWidth", "EchoTime", "RepetitionTime")),
        **dict.fromkeys(("ScanningSequence", "SequenceVariant", "ScanOptions")),
    )
    file.EchoPulseSequence = "GRADIENT"

    def item(**values: Any) -> list[Dataset]:
        group = Dataset()
        for keyword, value in values.items():
            setattr(group, keyword, value)
        return [group]

    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=list(SPACING), SliceThickness="3.5", SpacingBetweenSlices="4")
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=TILT.ravel().tolist())
    shared.MRTimingAndRelatedParametersSequence = item(RepetitionTime="500", FlipAngle="8", EchoTrainLength=1)
    shared.MREchoSequence = item(EffectiveEchoTime=12.3456789012345678)
    shared.MRModifierSequence = item(InversionTimes=[100.1234567890123456, 200.0])
    file.SharedFunctionalGroupsSequence = [shared]
    (head,) = item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning="Head")
    shared.FrameAnatomySequence = item(FrameLaterality="U", AnatomicRegionSequence=[head])
    frames, pixels = [], []
    for moment, k in ((1, 2), (2, 2), (1, 0), (2, 3), (1, 3), (2, 0), (2, 1), (1, 1)):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[round(x, 6) for x in ORIGIN + k * STEP * NORMAL])
        frame.FrameContentSequence = item(TemporalPositionIndex=moment, FrameAcquisitionNumber=moment)
        frame.MRImageFrameTypeSequence = item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])
        frame.FrameVOILUTSequence = item(WindowCenter=str(100 * moment), WindowWidth="600")
        frames.append(frame)
        pixels.append(make_slice(k + 10 * moment).pixel_array)
    file.PerFrameFunctionalGroupsSequence = frames
    file.NumberOfFrames = len(frames)
    set_pixels(file, np.array(pixels))
    return file


def test_enhanced_multi_frame_is_told_apart_by_moment(tmp_path: Path) -> None:
    file = make_enhanced()
    stacks = series_of([to_bytes(file)])
    assert [stack.shape for stack in stacks] == [(7, 9, 4)] * 2
    for moment, stack in enumerate(stacks, 1):
        assert f"TemporalPositionIndex {moment}" in stack.notes[0]
        for k in range(4):
            np.testing.assert_array_equal(values(stack.volume())[:, :, k].T, make_slice(k + 10 * moment).pixel_array)
        after = check_flattened(stack, file, tmp_path / str(moment))
        assert {slice_.WindowCenter for slice_ in after} == {100 * moment}
        assert {slice_.EchoTime for slice_ in after} == {12.3456789012346}  # what a decimal string of 16 characters holds
        assert after[0].AnatomicRegionSequence[0].CodeMeaning == "Head"
        assert not any("InversionTime" in slice_ for slice_ in after)  # which holds one, and there are two
        assert errors_by_dciodvfy(tmp_path / str(moment) / "sr" / "0001.dcm") == set()
        assert {slice_.ScanningSequence for slice_ in after} == {"GR"}


def test_every_keyword_is_one_of_the_standards() -> None:
    lists = carried._NOT_CARRIED.split(), derive._SCALED, re.findall(r"\w+", carried._OF_A_FRAME), series_module._KINDS
    keywords = itertools.chain(*lists)
    assert [keyword for keyword in keywords if tag_for_keyword(keyword) is None] == []


def check_flattened(series: Series, source: Dataset, folder: Path) -> list[Dataset]:
    """The derived series is one of single frames, whole, and refers to frames."""
    folder.mkdir(exist_ok=True)
    image = enlarged(series.volume(), 2, 2, 1)
    save(folder / "sr", series, image, description="x2", record=RECORD)
    paths = sorted((folder / "sr").iterdir())
    after = [dcmread(path) for path in paths]
    assert [slice_.SOPClassUID for slice_ in after] == [MRImageStorage] * 4
    assert all(slice_.ImageType[:2] == ["DERIVED", "SECONDARY"] for slice_ in after)
    for k, slice_ in enumerate(after):
        (reference,) = slice_.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        frame = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.abs(position - ORIGIN - k * STEP * NORMAL).max() < 1e-5
        assert "PerFrameFunctionalGroupsSequence" not in slice_
    assert_same_place_and_values(dcm2niix(folder / "sr"), image)
    assert_complete(after[0])
    return after


def assert_complete(slice_: Dataset) -> None:
    """Nothing is missing that PS3.3 demands of every MR image, by highdicom's tables of its modules."""
    standard = pytest.importorskip("highdicom._standard_utils", reason="pip install highdicom")
    modules, iod = standard.get_module_attribute_map(), standard.get_iod_module_map()["mr-image"]
    demanded = [
        (attribute["keyword"], attribute["type"])
        for module in iod
        if module["usage"] == "M"
        for attribute in modules[module["key"]]
        if not attribute["path"] and attribute["type"] in ("1", "2")
    ]
    assert len(demanded) > 30
    assert [keyword for keyword, _ in demanded if keyword not in slice_] == []
    assert [keyword for keyword, kind in demanded if kind == "1" and slice_[keyword].is_empty] == []


# What a series is among other files


def test_order_is_where_slices_lie(tmp_path: Path) -> None:
    slices = [make_slice(k, InstanceNumber=n) for k, n in enumerate((3, 1, 4, 2))]
    folder = fill(tmp_path / "scan", slices, ("b.dcm", "d", "a.IMA", "c.dcm"))
    (folder / "below").mkdir()
    (folder / "c.dcm").rename(folder / "below" / "c.dcm")
    (series,) = find_series(folder)
    assert series.problem == ""
    for k, slice_ in enumerate(slices):
        np.testing.assert_array_equal(values(series.volume())[:, :, k].T, slice_.pixel_array)


def test_two_series_and_a_localizer_are_told_apart(tmp_path: Path) -> None:
    other = f"{SERIES}.77"
    tripod = [np.eye(3)[[0, 1]], np.eye(3)[[1, 2]], np.eye(3)[[0, 2]]]
    more = {"series": f"{SERIES}.8", "SeriesNumber": 1, "SeriesDescription": "x"}
    scout = [make_slice(10 + n, ImageOrientationPatient=axes.ravel().tolist(), **more) for n, axes in enumerate(tripod)]
    flagged = make_series(3, series=f"{SERIES}.9", SeriesNumber=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    mixed = [*make_series(), *scout, *make_series(5, series=other, SeriesNumber=9, SeriesDescription="T2"), *flagged]
    series = find_series(fill(tmp_path / "scan", mixed))
    volumes = [one for one in series if not one.doubt]
    assert [(one.uid, one.description, one.shape[2]) for one in volumes] == [(SERIES, "T1 oblique", 4), (other, "T2", 5)]
    assert [one.doubt for one in series if one.doubt] == ["is a localizer, slices to plan others by"] * 4
    assert [one.problem for one in series] == [""] * 6
    np.testing.assert_array_equal(values(series[0].volume())[:, :, 0].T, scout[0].pixel_array)  # all may be taken


def jittered(k: int, size: int, angle: float) -> Dataset:
    """Slice `k` of a stack whose odd slices are turned by an angle, in radians."""
    down = [0, round(float(np.cos(angle * (k % 2))), 9), round(float(np.sin(angle * (k % 2))), 9)]
    return make_slice(
        k,
        pixels=np.zeros((size, size), np.uint16),
        ImageOrientationPatient=[1, 0, 0, *down],
        ImagePositionPatient=[0, 0, STEP * k],
        SliceLocation=None,
    )


def test_slices_that_are_not_quite_parallel_are_one_series_that_is_doubted() -> None:
    doubted = found(jittered(k, 300, 3e-4) for k in range(4))
    assert (doubted.shape, doubted.problem) == ((300, 300, 4), "")
    # 300 rows of 0.75 mm end 0.0675 mm off, which is more than the 0.05 mm that places are held to
    assert "not quite parallel: their corners lie up to 0.068 mm" in doubted.doubt
    assert found(jittered(k, 200, 3e-4) for k in range(4)).doubt == ""


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_cosines_are_believed_to_the_digits_that_they_have(digits: int) -> None:
    angle = np.radians(44.6)
    exact = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)]])
    written = [f"{cosine:.{digits}f}" for cosine in exact.ravel()]  # 0.71 and 0.70: 0.6 % short of a unit vector
    normal = np.cross(*exact)
    stack = [
        make_slice(k, ImageOrientationPatient=written, ImagePositionPatient=[round(x, 6) for x in 4 * k * normal])
        for k in range(3)
    ]
    series = found(stack)
    assert (series.problem, series.doubt) == ("", "")
    orientation = series.frames[0].axes
    np.testing.assert_allclose(orientation @ orientation.T, np.eye(2), atol=1e-11)
    assert np.abs(orientation - exact).max() < 10.0**-digits
    (after, *_) = derived(series, enlarged(series.volume(), 2, 2, 1))
    np.testing.assert_allclose(np.array(after.ImageOrientationPatient, float), orientation.ravel(), atol=1e-12)


def test_slices_rounded_either_way_are_one_stack() -> None:
    cosines = (["1", "0", "0", "0", "0.71", "0.70"], ["1", "0", "0", "0", "0.70", "0.71"])
    stack = [
        make_slice(k, ImageOrientationPatient=cosines[k % 2], ImagePositionPatient=[0, -2.828 * k, 2.828 * k]) for k in range(4)
    ]
    series = found(stack)
    assert (series.shape[2], series.problem, series.doubt) == (4, "", "")


@pytest.mark.parametrize("cosines", [[1, 0, 0, 0, "0.7100", "0.7000"], [1, 0, 0, 0, "0.7", "0.6"], [0] * 6, [1, 1, 0, 0, 1, 1]])
def test_cosines_that_are_no_directions_are_refused(cosines: list[Any]) -> None:
    problem = found(make_series(ImageOrientationPatient=cosines)).problem
    assert problem.startswith("does not tell where it lies (ImageOrientationPatient): missing or impossible")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"PixelPaddingValue": 4095}, (4095, 4095)),
        ({"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 3990}, (3990, 4000)),
        ({"PixelPaddingValue": 4000, "RescaleSlope": "1", "RescaleIntercept": "-1024"}, (4000, 4000)),
        ({"PixelPaddingValue": 4000, "RescaleSlope": "0.5", "RescaleIntercept": "3"}, (4000, 4000)),
        ({"PixelPaddingValue": 95, "PhotometricInterpretation": "MONOCHROME1"}, (4000, 4000)),  # mirrored in 0 to 4095
        ({"PixelPaddingValue": 63488, "PixelRepresentation": 1, "pixels": np.full((7, 9), -2048, np.int16)}, (-2048, -2048)),
        ({"PixelPaddingValue": 0}, None),  # background
        ({"PixelPaddingValue": 5000}, None),  # more than its 12 bits hold
        ({}, None),
    ],
)
def test_padding_is_told_in_the_numbers_of_the_volume(more: dict[str, Any], expected: tuple[int, int] | None) -> None:
    slices = make_series(**{key: value for key, value in more.items() if key != "PixelPaddingValue"})
    if "PixelPaddingValue" in more:
        for slice_ in slices:
            slice_.add_new("PixelPaddingValue", "US", more["PixelPaddingValue"])
            if "PixelPaddingRangeLimit" in more:
                slice_.add_new("PixelPaddingRangeLimit", "US", more["PixelPaddingRangeLimit"])
            if "pixels" not in more and expected:
                set_pixels(slice_, np.full((7, 9), more["PixelPaddingValue"], np.uint16))
    scan = found(slices).volume()
    assert scan.padding == expected
    if expected:
        assert ((scan.pixels >= expected[0]) & (scan.pixels <= expected[1])).all()


def test_gap_is_reported() -> None:
    series = found(make_slice(k) for k in (0, 1, 2, 4, 5))
    assert series.problem == "has a gap: 1 of 6 slices are missing, the first between file 3 and file 4"
    uneven = found([*make_series(3), make_slice(4, ImagePositionPatient=list(ORIGIN + 9.3 * NORMAL))])
    assert "at uneven distances" in uneven.problem


def test_duplicates_are_left_out_with_a_line(tmp_path: Path) -> None:
    folder = fill(tmp_path / "scan", make_series())
    shutil.copy(folder / f"{SERIES}.1.dcm", folder / "copy.dcm")
    renamed = make_slice(2)
    renamed.SOPInstanceUID = renamed.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.99"
    fill(folder, [renamed], ["renamed.dcm"])
    (series,) = find_series(folder)
    assert (series.shape[2], series.problem) == (4, "")
    assert set(series.notes) == {
        f"copy.dcm was left out: the same slice as {SERIES}.1.dcm",
        f"renamed.dcm was left out: the same slice as {SERIES}.3.dcm",
    }


def test_slices_that_share_one_uid_are_all_there() -> None:
    slices = make_series()
    for one in slices:
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.1"
    series = found(slices)
    assert (series.shape[2], series.problem, series.notes) == (4, "", ())


def test_two_pictures_at_one_place_are_no_volume() -> None:
    twin = make_slice(2, pixels=np.zeros((7, 9), np.uint16))
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.99"
    assert "has several slices at one place" in found([*make_series(), twin]).problem


def test_echoes_in_one_series_are_two_volumes() -> None:
    late = [make_slice(k + 20, EchoTime="90", ImagePositionPatient=make_slice(k).ImagePositionPatient) for k in range(4)]
    early, second = series_of(map(to_bytes, [*make_series(), *late]))
    assert (early.shape, second.shape) == ((7, 9, 4), (7, 9, 4))
    assert "EchoTime 12" in early.notes[0]
    np.testing.assert_array_equal(values(second.volume())[:, :, 3].T, late[3].pixel_array)


def test_foreign_and_truncated_files_have_a_line_each(tmp_path: Path) -> None:
    folder = fill(tmp_path / "scan", make_series(3))
    (folder / "notes.txt").write_text("seen by me")
    (folder / "empty").touch()
    whole = to_bytes(make_slice(3))
    (folder / "cut.dcm").write_bytes(whole[:-40])
    (folder / "short.dcm").write_bytes(whole[:-140])
    (series,) = find_series(folder)
    assert (series.shape[2], series.problem) == (3, "")
    lines = dict(note.split(" was left out: ") for note in series.notes)
    assert lines["notes.txt"] == lines["empty"] == "not DICOM"
    assert lines["cut.dcm"] == "truncated: its header promises 126 bytes of pixels, it has 86; copy it again"
    assert lines["short.dcm"].startswith("truncated: ")
    assert [line.partition(":")[0] for line in series.damaged] == ["cut.dcm", "short.dcm"]


def test_a_series_that_may_lack_slices_is_refused_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "scan", make_series(3))
    (folder / "cut.dcm").write_bytes(to_bytes(make_slice(3))[:-40])
    out = tmp_path / "out.nii"
    assert main([str(folder), "--scale", "2", "-o", str(out)]) == 1
    assert "may lack 1 slices, the first by cut.dcm: truncated" in capsys.readouterr().err
    assert main([str(folder), "--scale", "2", "-o", str(out), "--allow-gaps"]) == 0
    assert "cut.dcm was left out" in (tmp_path / "out.nii.json").read_text()


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputFileError, match=r"holds no DICOM picture: notes.txt was left out: not DICOM"):
        find_series(tmp_path)
    with pytest.raises(InputFileError, match="does not exist"):
        find_series(tmp_path / "nowhere")


def test_zip_is_read_in_memory_and_its_names_go_nowhere(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for slice_ in make_series(3):
            archive.writestr(f"../../out{slice_.InstanceNumber}\n.dcm", to_bytes(slice_))
    before = sorted(tmp_path.parent.rglob("*"))
    (series,) = find_series(tmp_path / "scan.zip")
    save(tmp_path / "sr", series, enlarged(series.volume(), 2, 2, 1), description="x2", record=RECORD)
    assert [path for path in sorted(tmp_path.parent.rglob("*")) if path not in before] == [
        tmp_path / "sr",
        *(tmp_path / "sr" / f"000{k}.dcm" for k in (1, 2, 3)),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_sizes_are_believed_only_after_the_files_own(packed: bool) -> None:
    """60,000×60,000 pixels in a header would be 7 GB."""
    slice_ = make_slice()
    if packed:
        slice_.compress(RLELossless, generate_instance_uid=False)
    slice_.Rows = slice_.Columns = 60000
    content = to_bytes(slice_)
    tracemalloc.start()
    with pytest.raises(InputFileError, match="truncated: its header promises 7,200,000,000 bytes"):
        series_of([content])
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_too_little_memory_is_no_fault_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    (series,) = series_of(map(to_bytes, make_series()))
    monkeypatch.setattr("runtime.dicom.source.iter_pixels", full)
    with pytest.raises(MemoryError):
        series.volume()


def test_damaged_files_fail_in_one_line(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, or with any byte flipped, a file is a series or one line; neither a log nor a warning quotes it."""
    caplog.set_level(logging.DEBUG)
    whole = to_bytes(make_slice(WindowWidth=None, PatientComments="Doe"))
    said, rng = [], np.random.default_rng(0)
    for n in range(300):
        content = bytearray(whole)
        if n % 2:
            content[rng.integers(128, len(content))] = rng.integers(256)
        else:
            del content[rng.integers(len(content)) :]
        try:
            for series in series_of([bytes(content)]):
                if not series.problem:
                    derived(series, enlarged(series.volume(), 2, 2, 1))
        except MetasrganError as error:
            said.append(str(error))
    assert len(said) > 100  # every second file is cut
    assert not [line for line in said if "\n" in line or "Doe" in line]
    assert "Doe" not in caplog.text + "".join(capfd.readouterr())


def raw(tag: int, vr: bytes, value: bytes) -> bytes:
    """An element in explicit VR, whatever it holds."""
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    length = len(value).to_bytes(4 if long else 2, "little")
    return (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr + b"\0\0" * long + length + value


def with_raw(k: int, tag: int, vr: bytes, value: bytes) -> bytes:
    """Slice `k` with an element that no writer would write, in its place and instead of what is there."""
    slice_ = make_slice(k)
    if tag in slice_:
        del slice_[tag]
    whole = to_bytes(slice_)
    after = next(element for element in slice_ if element.tag > max(tag, 0x00080008))  # no file meta information
    start = after.tag.group.to_bytes(2, "little") + after.tag.element.to_bytes(2, "little") + after.VR.encode()
    at = whole.index(start, 132)
    return whole[:at] + raw(tag, vr, value) + whole[at:]


def nested(depth: int) -> bytes:
    body = b""
    for _ in range(depth):
        body = raw(0x00400275, b"SQ", b"\xfe\xff\x00\xe0" + len(body).to_bytes(4, "little") + body)
    return body[12:]  # the value of the outermost


ODD = {
    "SeriesNumber of two values": (0x00200011, b"IS", b"4\\5 "),
    "SeriesNumber of text": (0x00200011, b"LO", b"four"),
    "group 2 in the dataset": (0x00020010, b"UI", b"1.2.840.10008.1.2\0"),
    "sequences within each other": (0x00400275, b"SQ", nested(300)),
    "SliceThickness of text": (0x00180050, b"DS", b"thin"),
    "SliceThickness without end": (0x00180050, b"DS", b"1e300 "),
    "InstanceNumber as bytes": (0x00200013, b"OB", b"abcd"),
    "ImageType as a number": (0x00080008, b"FD", b"12345678"),
    "SoftwareVersions as bytes": (0x00181020, b"OB", b"VB17"),
    "Modality as a sequence": (0x00080060, b"SQ", b"\xfe\xff\x00\xe0\x08\0\0\0" + raw(0x45444952, b"VE", b"")),
    "zone that is none": (0x00080201, b"SH", b"+9999 "),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("anonymous", [False, True])
def test_odd_attributes_do_not_stop_a_series(odd: str, anonymous: bool, tmp_path: Path) -> None:
    series = series_of(with_raw(k, *ODD[odd]) for k in range(3))[0]
    assert (series.shape, series.problem) == ((7, 9, 3), "")
    image = enlarged(series.volume(), 2, 2, 1)
    save(tmp_path / "sr", series, image, description="x2", record=RECORD, anonymous=anonymous)
    assert [dcmread(path).Rows for path in (tmp_path / "sr").iterdir()] == [14] * 3


@pytest.mark.parametrize(
    ("tag", "vr", "value", "said"),
    [
        (0x00280010, b"LO", b"many", "its header lacks the picture's size and type"),
        (0x00280101, b"OB", b"\x0c\0\0\0", "its header lacks the picture's size and type"),
        (0x00281053, b"DS", b"1e300 ", "a slope of 1e+300"),
        (0x00200032, b"DS", b"1e300\\0\\0 ", "does not tell where it lies (ImagePositionPatient)"),
        (0x00280030, b"DS", b"wide", "does not tell where it lies (PixelSpacing)"),
        (0x00280004, b"CS", b"RGB\nDoe ", "is in colour (RGB Doe)"),
    ],
)
def test_odd_attributes_that_pixels_depend_on_are_named(tag: int, vr: bytes, value: bytes, said: str) -> None:
    with pytest.raises(MetasrganError, match=re.escape(said)) as caught:
        series_of(with_raw(k, tag, vr, value) for k in range(3))[0].volume()
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which pydicom makes an error that holds its whole traceback."""
    series = found(make_series())
    image = enlarged(series.volume(), 2, 2, 1)

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(28, "No space left on device")

        def fileno(self) -> int:
            return 0

    monkeypatch.setattr("runtime.files.open", lambda *_: Full(), raising=False)
    with pytest.raises(OutputFileError) as caught:
        save(tmp_path / "sr", series, image, description="x2", record=RECORD)
    assert str(caught.value).startswith(f"{tmp_path / 'sr'} could not be written (No space left on device)")
    assert list(tmp_path.iterdir()) == []


def test_only_this_thread_is_kept_quiet(caplog: pytest.LogCaptureFixture) -> None:
    logger, filters = logging.getLogger("pydicom"), warnings.filters[:]
    inside, done = threading.Event(), threading.Event()

    def read() -> None:
        with quiet("pydicom"):
            inside.set()
            done.wait(10)
            warnings.warn("Doe", stacklevel=1)
            logger.warning("Doe")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = warnings.filters[:]
        thread = threading.Thread(target=read)
        thread.start()
        assert inside.wait(10)
        warnings.warn("heard", stacklevel=1)
        logger.warning("heard too")
        assert not logger.disabled
        done.set()
        thread.join()
        assert warnings.filters[:] == before
    assert [str(one.message) for one in caught] == ["heard"]
    assert [one.message for one in caplog.records] == ["heard too"]
    assert (warnings.filters[:], logger.filters) == (filters, [])


def test_a_mosaic_colour_or_placeless_picture_is_no_volume() -> None:
    assert "mosaic" in found(make_series(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])).problem
    colour = make_slice(PhotometricInterpretation="RGB", SamplesPerPixel=3, pixels=np.zeros((21, 9), "u1"), Rows=7)
    assert "in colour" in found([colour]).problem
    assert "does not tell where it lies (PixelSpacing)" in found(make_series(PixelSpacing=None)).problem


# What a derived series says


def test_derived_attributes(tmp_path: Path) -> None:
    more = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "10", "BurnedInAnnotation": "YES"}
    source = make_series(**more, SoftwareVersions="VB17", TimezoneOffsetFromUTC="+0100", SmallestPixelValueInSeries=3)
    for slice_ in source:
        slice_.private_block(0x0019, "ACME", create=True).add_new(1, "LO", "secret recipe")
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = MRImageStorage, "1.2.3.9.9"
        slice_.ReferencedImageSequence = [reference]
    series = found(source)
    assert "the manufacturer's private data is not carried into a derived series" in series.notes
    save(tmp_path / "sr", series, enlarged(series.volume(), 2, 2, 1), description="enlarged ×2", record=RECORD)
    after = [dcmread(path) for path in sorted((tmp_path / "sr").iterdir())]
    assert len({slice_.SOPInstanceUID for slice_ in after}) == 4
    assert len({slice_.SeriesInstanceUID for slice_ in after}) == 1
    slice_ = after[0]
    assert uids(slice_) & uids(source[0]) == {STUDY, FRAME}
    assert slice_.ImageType == ["DERIVED", "SECONDARY", "M"]
    assert slice_.SeriesDescription == "T1 oblique enlarged x2"
    assert slice_.DerivationCodeSequence[0].CodeValue == "113085"  # spatial resampling
    assert "9x7x4 voxels of 0.5x0.75x4 mm" in slice_.DerivationDescription
    assert list(slice_.SoftwareVersions) == ["VB17", "metasrgan-edge 9.9"]
    (equipment,) = slice_.ContributingEquipmentSequence
    assert all(f'"{key}"' in equipment.ContributionDescription for key in RECORD)
    assert equipment.ContributionDateTime == "20260102030405.000000+0000"
    assert (slice_.ContentDate, slice_.ContentTime) == ("20260102", "040405.000000")  # by the source's clock
    for keyword in ("PatientName", "PatientID", "StudyDate", "AccessionNumber", "StudyID", "EchoTime", *more):
        assert slice_[keyword] == source[0][keyword]
    assert "SmallestPixelValueInSeries" not in slice_
    assert b"secret recipe" not in (tmp_path / "sr" / "0001.dcm").read_bytes()
    assert_complete(slice_)


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 87"]])
def test_names_in_every_script_come_through(charset: Any) -> None:
    name = "Yamada^Tarou=山田^太郎" if charset != "ISO_IR 100" else "Müller^Änne"
    series = found(make_series(SpecificCharacterSet=charset, PatientName=name))
    (first, *_) = (dcmread(io.BytesIO(to_bytes(s))) for s in derived(series, enlarged(series.volume(), 2, 2, 1)))
    assert (str(first.PatientName), first.AccessionNumber) == (name, "A77")


def test_history_of_lossy_compression_is_kept() -> None:
    pixels = np.arange(64 * 80, dtype=np.uint8).reshape(64, 80)
    packed = [as_jpeg(slice_) for slice_ in make_series(pixels=pixels, BitsStored=8)]
    for source, said in ((packed, "01"), (make_series(), None)):
        series = found(source)
        assert {s.get("LossyImageCompression") for s in derived(series, enlarged(series.volume(), 2, 2, 1))} == {said}


def test_a_picture_of_another_size_than_its_header_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = [as_jpeg(slice_) for slice_ in make_series(2, pixels=np.zeros((64, 80), np.uint8), BitsStored=8)]
    for slice_ in packed:
        slice_.Rows = 32
    monkeypatch.setattr("runtime.dicom.source.iter_pixels", None)
    with pytest.raises(InputFileError, match="a picture of 64×80 in a header of 32×80"):
        found(packed).volume()


def test_long_texts_are_cut_to_what_their_attributes_hold() -> None:
    series = found(make_series(SeriesDescription="T1 " * 21))
    record = {**RECORD, "slices": list(range(999))}
    for words in (10, 100):
        slice_ = next(datasets(series, enlarged(series.volume(), 2, 2, 1), "x2.5 " * words, record))
        assert slice_.SeriesDescription.endswith("x2.5")
        assert len(slice_.SeriesDescription) <= 64
        told = json.loads(slice_.ContributingEquipmentSequence[0].ContributionDescription)
        assert told == RECORD  # the longest entry gave way


def test_numbering_follows_the_source() -> None:
    series = found(make_slice(k, InstanceNumber=9 - k) for k in range(3))
    assert [slice_.InstanceNumber for slice_ in derived(series, enlarged(series.volume(), 2, 2, 2))] == [6, 5, 4, 3, 2, 1]


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, record in (("a", RECORD), ("b", RECORD), ("c", RECORD | {"bundle": "another"})):
        series = found(make_series())
        save(tmp_path / name, series, enlarged(series.volume(), 2, 2, 1), description="x2", record=record)
    a, b, c = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in "abc")
    assert a == b
    assert not {dcmread(io.BytesIO(x)).SOPInstanceUID for x in a} & {dcmread(io.BytesIO(x)).SOPInstanceUID for x in c}


def test_image_of_another_series_is_refused() -> None:
    series = found(make_series())
    image = enlarged(series.volume(), 2, 2, 1)
    with pytest.raises(ImageError, match="made of this series"):
        datasets(series, replace(image, pixels=np.zeros((3, 3, 3), np.int16)), "x", RECORD)
    with pytest.raises(ImageError, match="axes point elsewhere"):
        datasets(series, replace(image, affine=np.eye(4)), "x", RECORD)
    with pytest.raises(ImageError, match="NaN"):
        datasets(series, replace(image, pixels=np.full(image.shape, np.nan, np.float32)), "x", RECORD)


# The folder


def test_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = found(make_series())
    image = enlarged(series.volume(), 2, 2, 1)
    out = tmp_path / "sr"

    def save_it(**options: Any) -> None:
        save(out, series, image, description="x2", record=RECORD, **options)

    with monkeypatch.context() as patched:
        calls = iter((None, None))

        def full(*args: Any, **options: Any) -> None:
            if next(calls, 0) == 0:
                raise OSError(28, "No space left on device")

        patched.setattr("runtime.dicom.derive.dcmwrite", full)
        with pytest.raises(OutputFileError, match="No space left"):
            save_it()
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    save_it()  # an empty folder is as good as none
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    assert sorted(before) == [f"000{k}.dcm" for k in (1, 2, 3, 4)]
    with pytest.raises(OutputFileError, match="exists already"):
        save_it()
    save_it(overwrite=True)
    assert all(before[path.name] != path.stat().st_ino for path in out.iterdir())
    with monkeypatch.context() as patched:
        rename = os.rename

        def fail_in_the_middle(old: Path, new: Path) -> None:
            if str(old).endswith(".part"):
                raise OSError(5, "Input/output error")
            rename(old, new)

        patched.setattr("os.rename", fail_in_the_middle)
        with pytest.raises(OutputFileError, match="Input/output error"):
            save_it(overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted(before)
    (out / "diary.txt").touch()
    with pytest.raises(OutputFileError, match=r"holds 'diary.txt', which was not written here"):
        save_it(overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["sr"]


def test_source_is_not_replaced_by_what_is_made_of_it(tmp_path: Path) -> None:
    folder = fill(tmp_path / "scan", make_series(), (f"000{k}.dcm" for k in range(4)))
    (series,) = find_series(folder)
    with pytest.raises(OutputFileError, match="holds the series that is upscaled"):
        save(folder, series, enlarged(series.volume(), 2, 2, 1), description="x", record=RECORD, overwrite=True)
    with pytest.raises(OutputFileError, match="holds the series that is upscaled"):
        save(tmp_path, series, enlarged(series.volume(), 2, 2, 1), description="x", record=RECORD, overwrite=True)


def test_without_pydicom_says_what_to_install() -> None:
    code = """
import sys; sys.modules['pydicom'] = None
import runtime, runtime.__main__
try:
    import runtime.dicom
except runtime.MetasrganError as error:
    print(error)
"""
    assert run_python(code).stdout == "DICOM needs pydicom: pip install pydicom\n"
