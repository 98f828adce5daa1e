"""NRRD and MetaImage headers: read as SimpleITK reads them where they are sound, and refused where they are damaged."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime import ImageError, InputFileError
from runtime.io import itk

DATA = np.arange(24).reshape(2, 3, 4)
STEPS = nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([0.9, -1.1, 3.0])
ORIGIN = (-70.0, 12.5, 33.0)
NRRD = """NRRD0005
# a comment
type: short
dimension: 3
space: left-posterior-superior
sizes: 2 3 4
space directions: {steps}
kinds: domain domain domain
endian: little
encoding: raw
space origin: (-70, 12.5,33)
encoding:=a key and its value

""".format(steps=" ".join("({},{},{})".format(*step) for step in STEPS.T))
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = {cosines}
Offset = -70 12.5 33
CenterOfRotation = 1 2 3
AnatomicalOrientation = RAI
ElementSpacing = 0.9 1.1 3
ElementNumberOfChannels = 1
HeaderSize = 0
DimSize = 2 3 4
ElementType = MET_SHORT
ElementDataFile = LOCAL
""".format(cosines=" ".join(map(str, (STEPS / (0.9, 1.1, 3.0)).T.ravel())))


def replaced(header: str, **fields: object) -> str:
    """A header with other values of its fields, whose names are written with _ in place of a space; None takes one away."""
    for name, value in fields.items():
        pattern = rf"(?m)^({name.replace('_', ' ')} ?[:=] ).*\n"
        assert re.search(pattern, header), name
        header = re.sub(pattern, "" if value is None else rf"\g<1>{value}\n", header)
    return header


def write(path: Path, header: str, pixels: bytes = DATA.astype("<i2").tobytes(order="F")) -> Path:
    path.write_bytes(header.encode("utf-8", "surrogateescape") + pixels)
    return path


def assert_is_as_simpleitk_reads_it(path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    expected, image = sitk.ReadImage(str(path)), itk.read(path)
    assert image.shape == expected.GetSize()
    np.testing.assert_array_equal(image.pixels, sitk.GetArrayFromImage(expected).T)
    assert image.pixels.dtype == sitk.GetArrayFromImage(expected).dtype
    for voxel in ((0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 3)):
        left, back, head = expected.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose((image.affine @ [*voxel, 1])[:3], (-left, -back, head), atol=1e-4)  # mm


@pytest.mark.parametrize("space", ["RAS", "LAS", "LPS", "right-anterior-superior", "scanner-xyz", "3D-right-handed"])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_nrrd_equals_simpleitk(tmp_path: Path, space: str, order: str, encoding: str) -> None:
    pixels = DATA.astype("<f8" if order == "little" else ">f8").tobytes(order="F")
    header = replaced(NRRD, type="double", space=space, endian=order, encoding=encoding)
    assert_is_as_simpleitk_reads_it(write(tmp_path / "a.nrrd", header, gzip.compress(pixels) if encoding == "gzip" else pixels))
    assert_is_as_simpleitk_reads_it(write(tmp_path / "b.nrrd", NRRD.replace("\n", "\r\n")))


@pytest.mark.parametrize("matrix", ["TransformMatrix", "Rotation", "Orientation"])
@pytest.mark.parametrize("offset", ["Offset", "Position", "Origin"])
@pytest.mark.parametrize("order", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_equals_simpleitk(tmp_path: Path, matrix: str, offset: str, order: str, compressed: bool) -> None:
    pixels = DATA.astype(">u4").tobytes(order="F")
    packed = zlib.compress(pixels)
    header = replaced(META, ElementType="MET_UINT", BinaryDataByteOrderMSB=True, CompressedData=compressed)
    for name, other in (("TransformMatrix", matrix), ("Offset", offset), ("BinaryDataByteOrderMSB", order)):
        header = header.replace(name, other)
    if compressed:
        header = header.replace("HeaderSize = 0", f"CompressedDataSize = {len(packed)}")
    assert_is_as_simpleitk_reads_it(write(tmp_path / "a.mha", header, packed if compressed else pixels))


def test_pixels_behind_other_bytes_equal_simpleitk(tmp_path: Path) -> None:
    pixels = DATA.astype("<i2").tobytes(order="F")
    write(tmp_path / "a.raw", "another header", pixels)
    for skipped in (-1, len("another header")):
        meta = replaced(META, HeaderSize=skipped, ElementDataFile="a.raw")
        nrrd = NRRD.replace("\n\n", f"\nbyte skip: {skipped}\ndata file: a.raw\n\n")
        assert_is_as_simpleitk_reads_it(write(tmp_path / "a.mhd", meta, b""))
        assert_is_as_simpleitk_reads_it(write(tmp_path / "a.nhdr", nrrd, b""))


def test_headers_that_simpleitk_misreads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without it: a compressed image of unknown length, a named space with time, a percent sign, a line of 5,000 bytes."""
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    packed = zlib.compress(DATA.astype("<i2").tobytes(order="F"))
    image = itk.read(write(tmp_path / "a.mha", replaced(META, CompressedData=True), packed))
    np.testing.assert_array_equal(image.pixels, DATA)

    write(tmp_path / "77 %.raw", "")
    image = itk.read(write(tmp_path / "77 %.mhd", replaced(META, ElementDataFile="77 %.raw"), b""))
    np.testing.assert_array_equal(image.pixels, DATA)

    with_time = replaced(
        NRRD,
        dimension=4,
        sizes="2 3 2 2",
        kinds="domain domain domain time",
        space="right-anterior-superior-time",
        space_directions="(1,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,1.5)",
        space_origin="(4,5,6,0)",
    )
    image = itk.read(write(tmp_path / "b.nrrd", with_time.replace("#", "#" * 5000)))
    np.testing.assert_array_equal(image.affine, [[1, 0, 0, 4], [0, 2, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1]])
    assert (image.seconds, image.alike) == (1.5, True)


DAMAGED = {
    "a hundred axes.mha": replaced(META, NDims=100),
    "no axes.mha": replaced(META, NDims=0),
    "negative axes.mha": replaced(META, NDims=-3),
    "axes in words.mha": replaced(META, NDims="three"),
    "too few sizes.mha": replaced(META, DimSize="2 3"),
    "a size of zero.mha": replaced(META, DimSize="2 0 4"),
    "a size of many digits.mha": replaced(META, DimSize="2 3 " + "9" * 4000),
    "channels in words.mha": replaced(META, ElementNumberOfChannels="one"),
    "two channels.mha": replaced(META, ElementNumberOfChannels=2),
    "an unknown type.mha": replaced(META, ElementType="MET_FLOAT_MATRIX"),
    "decimal commas.mha": replaced(META, ElementSpacing="0,9 1,1 3"),
    "a spacing of zero.mha": replaced(META, ElementSpacing="0 1 3"),
    "a spacing of many digits.mha": replaced(META, ElementSpacing="0 1 " + "x" * 100_000),
    "an infinite spacing.mha": replaced(META, ElementSpacing="inf 1 3"),
    "an offset of nan.mha": replaced(META, Offset="nan 0 0"),
    "a singular matrix.mha": replaced(META, TransformMatrix="1 0 0 1 0 0 0 0 1"),
    "pixels before the file.mha": replaced(META, HeaderSize=-2),
    "pixels behind the file.mha": replaced(META, HeaderSize=10**30),
    "no data file.mha": META.replace("ElementDataFile", "DataFile"),
    "an unknown version.nrrd": NRRD.replace("NRRD0005", "NRRD0009"),
    "sixteen axes.nrrd": replaced(NRRD, dimension=16, sizes="1 " * 16, kinds=None, space_directions=None),
    "an unlike dimension.nrrd": replaced(NRRD, dimension=4),
    "a kind too few.nrrd": replaced(NRRD, kinds="domain domain"),
    "a vector.nrrd": replaced(NRRD, kinds="vector domain domain"),
    "no order.nrrd": replaced(NRRD, endian=None),
    "an unknown order.nrrd": replaced(NRRD, endian="middle"),
    "an unknown type.nrrd": replaced(NRRD, type="block"),
    "an unknown space.nrrd": replaced(NRRD, space="outer"),
    "directions in words.nrrd": replaced(NRRD, space_directions="(a,b,c) (0,1,0) (0,0,1)"),
    "directions of nan.nrrd": replaced(NRRD, space_directions="(nan,0,0) (0,1,0) (0,0,1)"),
    "a direction too few.nrrd": replaced(NRRD, space_directions="(1,0,0) (0,1,0)"),
    "a direction of two.nrrd": replaced(NRRD, space_directions="(1,0) (0,1) (0,0)"),
    "an axis without direction.nrrd": replaced(NRRD, space_directions="(1,0,0) (0,1,0) none"),
    "an infinite origin.nrrd": replaced(NRRD, space_origin="(0,0,1e999)"),
    "places by axis.nrrd": replaced(NRRD, space_directions=None).replace("\n\n", "\naxis mins: 1 2 3\n\n"),
    "a header without end.nrrd": "NRRD0005\n" + "# \n" * 400_000,
    "not utf-8.nrrd": NRRD.replace("type", "t\udcffpe"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, DAMAGED[name])
    with pytest.raises((InputFileError, ImageError), match=rf"^{re.escape(str(path))} [^\n]{{,1200}}$"):
        itk.read(path)
