"""Round trips between all formats of volumes, and files that lie."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from runtime import InputFileError, OutputFileError, io
from runtime.inputs import believe, inflated
from runtime.io import itk, nifti, pictures
from runtime.scan import Scan
from runtime.sizes import Size

SPACING = (0.9, 1.1, 3.0)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([-0.9, 1.1, 3.0]), [-70.0, 12.5, 33.0])
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


def scan(dtype: str = "int16", shape: tuple[int, ...] = (5, 4, 3), **more: Any) -> Scan:
    """Voxels that all differ, up to the ends of their type, obliquely placed."""
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if np.dtype(dtype).kind in "iu":
        data.flat[0], data.flat[-1] = np.iinfo(dtype).min, np.iinfo(dtype).max
    else:
        data = data / np.asarray(7, dtype)
    return Scan(data, SPACING, OBLIQUE, **more)


def save(path: Path, scan: Scan) -> Path:
    io.write(path, scan, overwrite=True)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(io.VOLUMES, 2)))
def test_volumes_keep_values_type_and_place_from_format_to_format(tmp_path: Path, one: str, other: str, dtype: str) -> None:
    before = scan(dtype)
    first = io.read(save(tmp_path / f"a{one}", before))
    after = io.read(save(tmp_path / f"b{other}", first))
    assert after.pixels.dtype == before.pixels.dtype
    np.testing.assert_array_equal(after.pixels, before.pixels)
    np.testing.assert_allclose(after.spacing, SPACING, rtol=1e-6)
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)  # mm; NIfTI-1 keeps single precision


@pytest.mark.parametrize("suffix", itk.WRITTEN)
def test_left_and_right_are_not_swapped(tmp_path: Path, suffix: str) -> None:
    """By ITK's own word: a voxel's point in ITK's millimetres (left, posterior, head) is NIfTI's with two signs turned."""
    sitk = pytest.importorskip("SimpleITK")
    image = scan()
    there = sitk.ReadImage(str(save(tmp_path / f"a{suffix}", image)))
    for voxel in ((0, 0, 0), (4, 0, 0), (1, 3, 2)):
        right, front, head = (image.affine @ [*voxel, 1])[:3]
        np.testing.assert_allclose(there.TransformIndexToPhysicalPoint(voxel), (-right, -front, head), atol=1e-6)
        assert there[voxel] == image.pixels[voxel]


@pytest.mark.parametrize("suffix", itk.WRITTEN)
def test_sheared_two_and_four_dimensional_volumes(tmp_path: Path, suffix: str) -> None:
    sheared = OBLIQUE.copy()
    sheared[0, 1] += 0.3
    image = scan()
    image = replace(image, affine=sheared)
    np.testing.assert_allclose(io.read(save(tmp_path / f"s{suffix}", image)).affine, sheared, atol=1e-5)

    moving = nib.Nifti1Image(scan("float32", (5, 4, 3, 2)).pixels, OBLIQUE)
    moving.header.set_zooms((*moving.header.get_zooms()[:3], 2500.0))
    moving.header.set_xyzt_units("mm", "msec")
    again = io.read(save(tmp_path / f"t{suffix}", nifti.of_image(moving)))
    np.testing.assert_array_equal(again.pixels, moving.dataobj)
    np.testing.assert_allclose(again.affine, moving.affine, atol=1e-5)
    assert (again.seconds, again.alike) == (2.5, True)
    back = nifti.load(save(tmp_path / "back.nii", again))
    assert (back.header.get_zooms()[3], back.header.get_xyzt_units()) == (2.5, ("mm", "sec"))

    flat = io.read(save(tmp_path / f"f{suffix}", scan("int16", (5, 4))))
    assert flat.shape == (5, 4, 1)
    np.testing.assert_allclose(flat.affine, OBLIQUE, atol=1e-5)


def test_units_and_slopes_are_applied_where_a_format_has_none(tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan().pixels, OBLIQUE)
    image.header.set_xyzt_units("micron")
    image.header.set_slope_inter(0.25, -40)
    nib.save(image, tmp_path / "a.nii")
    image = nifti.load(tmp_path / "a.nii")
    again = io.read(save(tmp_path / "a.nrrd", io.read(tmp_path / "a.nii")))
    np.testing.assert_allclose(again.affine, np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE, atol=1e-6)
    assert again.pixels.dtype == np.float32
    np.testing.assert_array_equal(again.pixels, image.get_fdata())


def test_spacing_is_asked_for_in_millimetres_whatever_the_headers_unit(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([900.0, 900.0, 3000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    assert Size(spacing="0.45").of((4, 4, 4), nifti.of_image(image).spacing, 2) == (2, 2, 1)


@pytest.mark.parametrize(("attached", "detached"), [(".nrrd", ".nhdr"), (".mha", ".mhd")])
def test_a_header_and_its_pixels_beside_it_are_read(tmp_path: Path, attached: str, detached: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    whole = sitk.ReadImage(str(save(tmp_path / f"a{attached}", scan())))
    sitk.WriteImage(whole, str(tmp_path / f"b{detached}"))
    image = io.read(tmp_path / f"b{detached}")
    np.testing.assert_array_equal(image.pixels, scan().pixels)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    header, data = io.files_of(tmp_path / f"b{detached}")
    assert (header.name, data.parent, data.stem) == (f"b{detached}", tmp_path, "b")
    with pytest.raises(OutputFileError, match=r"end its name in .*\.nrrd, \.mha"):  # of two files one may be lost
        io.check_becomes(tmp_path / "a.nii", "nifti", tmp_path / f"c{detached}")


NRRD = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: {encoding}\nspace origin: (0,0,0)\n"  # noqa: E501
META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = {compressed}\nDimSize = {sizes}\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"  # noqa: E501


def nrrd(sizes: str = "2 2 2", encoding: str = "raw", last: str = "") -> bytes:
    return (NRRD.format(sizes=sizes, encoding=encoding) + last + "\n").encode()


def meta(sizes: str = "2 2 2", compressed: bool = False, data: str = "LOCAL") -> bytes:
    return (META.format(sizes=sizes, compressed=compressed) + f"ElementDataFile = {data}\n").encode()


@pytest.mark.parametrize(
    "named", ["../secret.raw", "/etc/passwd", "a/b.raw", "..", "LIST", "part%03d.raw 1 3", "..\\secret.raw"]
)
def test_pixels_anywhere_but_beside_the_header_are_refused(tmp_path: Path, named: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(16))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.nhdr").write_bytes(nrrd(last=f"data file: {named}\n"))
    (inner / "b.nrrd").write_bytes(nrrd(last=f"DataFile: {named}\n") + bytes(16))
    (inner / "c.mhd").write_bytes(meta(data=named))
    for path in sorted(inner.iterdir()):
        with pytest.raises(InputFileError, match=r"put one file beside it|percent sign"):
            io.read(path)


LIES = {
    "huge.nrrd": nrrd("10000 10000 10000") + bytes(500),
    "huge.gz.nrrd": nrrd("10000 10000 10000", "gzip") + gzip.compress(bytes(500)),
    "bomb.nrrd": nrrd("1000 1000 100", "gzip") + gzip.compress(bytes(1_000_000)),
    "cut.nrrd": nrrd("2 2 2", "gzip") + gzip.compress(bytes(16))[:-4],
    "flipped.nrrd": nrrd("2 2 2", "gzip") + gzip.compress(bytes(16))[:-8] + bytes(8),
    "huge.mha": meta("10000 10000 10000") + bytes(500),
    "huge.z.mha": meta("10000 10000 10000", True) + zlib.compress(bytes(500)),
    "bomb.mha": meta("1000 1000 100", True) + zlib.compress(bytes(1_000_000)),
    "cut.mha": meta("2 2 2", True) + zlib.compress(bytes(range(16)))[:-4],
    "short.mha": meta("2 2 2") + bytes(15),
    "text.mha": b"nothing of the kind",
    "text.nrrd": b"nothing of the kind",
    "empty.nrrd": b"",
    "negative.mha": meta("-2 -2 2") + bytes(16),
    "overflow.mha": meta("4294967296 4294967296 4294967296") + bytes(16),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_is_believed_only_as_far_as_the_file_goes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LIES[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputFileError, match=rf"{name} (cannot be read as an NRRD or MetaImage file|is truncated)"):
            io.read(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 40e6  # bytes; the honest half of the bombs would be 200 MB
    finally:
        tracemalloc.stop()


def test_what_is_honest_but_larger_than_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="more than this machine's memory"):
        believe(tmp_path / "x.nii", 1 << 60, 1 << 60)


def test_inflating_goes_on_to_the_checksum(tmp_path: Path) -> None:
    content = bytes(range(256)) * 300
    for packed in (gzip.compress(content), zlib.compress(content)):
        (tmp_path / "x").write_bytes(b"header" + packed)
        assert b"".join(inflated(tmp_path / "x", 6)) == content
        (tmp_path / "x").write_bytes(b"header" + packed[:-1])
        with pytest.raises(EOFError):
            list(inflated(tmp_path / "x", 6))


def test_several_members_of_gzip_are_one_stream(tmp_path: Path) -> None:
    """As pigz and bgzip write them; what follows the last one is no part of it."""
    pixels = np.arange(8, dtype="<i2").tobytes()
    for cut in (3, 8):
        packed = gzip.compress(pixels[:cut]) + gzip.compress(b"") + gzip.compress(pixels[cut:])
        (tmp_path / "a.nrrd").write_bytes(nrrd("2 2 2", "gzip") + packed + b"more")
        assert io.read(tmp_path / "a.nrrd").pixels.ravel(order="F").tolist() == list(range(8))


def test_pixels_in_this_folder_are_beside_their_header(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(np.arange(8, dtype="<i2").tobytes())
    (tmp_path / "a.mhd").write_bytes(meta(data="./a.raw"))
    assert io.read(tmp_path / "a.mhd").pixels.sum() == 28


def test_vectors_and_bzip2_are_refused(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    from runtime import ImageError

    sitk.WriteImage(sitk.Image([2, 2, 2], sitk.sitkVectorUInt8, 3), str(tmp_path / "v.nrrd"))
    with pytest.raises(ImageError, match="one real number a voxel"):
        io.read(tmp_path / "v.nrrd")
    (tmp_path / "b.nrrd").write_bytes(nrrd(encoding="bzip2") + bytes(16))
    with pytest.raises(InputFileError, match="save it raw or as gzip"):
        io.read(tmp_path / "b.nrrd")


def test_kinds(tmp_path: Path) -> None:
    for name, kind in (("a.nii.gz", "nifti"), ("b.NRRD", "itk"), ("c.mhd", "itk"), ("d.tif", "picture"), ("e.zip", "dicom")):
        (tmp_path / name).touch()
        assert io.kind(tmp_path / name) == kind
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert io.kind(tmp_path / "IM0001") == io.kind(tmp_path) == "dicom"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputFileError, match="no suffix of a known format"):
        io.kind(tmp_path / "notes.txt")
    with pytest.raises(InputFileError, match="does not exist"):
        io.kind(tmp_path / "gone.nii")


@pytest.mark.parametrize(
    ("source", "out", "said"),
    [
        ("nifti", "x.png", io.VOLUMES),
        ("nifti", "x.npy", io.VOLUMES),
        ("nifti", "x", io.VOLUMES),
        ("nifti", "x.dcm", io.VOLUMES),
        ("picture", "x.nii", pictures.SUFFIXES),
        ("picture", "x", pictures.SUFFIXES),
        ("picture", ".png", pictures.SUFFIXES),
        ("dicom", "x.jpg", io.VOLUMES),
        ("itk", "x.mhd", io.VOLUMES),
    ],
)
def test_what_cannot_become_what(source: io.Kind, out: str, said: tuple[str, ...]) -> None:
    with pytest.raises(OutputFileError, match=f"in cannot become {out}: end its name in {', '.join(said)}$"):
        io.check_becomes(Path("in"), source, Path(out))
