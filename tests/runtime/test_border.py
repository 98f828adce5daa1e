"""Inputs of kinds that went wrong elsewhere: read rightly, or refused by one line that says what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime import InputFileError, io
from runtime.io import itk, nifti

NIFTI = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(4, 5, 3), np.eye(4)).to_bytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("plain.nii.gz", NIFTI, r"not compressed by gzip.*rename it to \.nii$"),
        ("packed.nii", gzip.compress(NIFTI), r"compressed by gzip.*rename it to \.nii\.gz$"),
        ("cut.nii", NIFTI[:463], r"truncated: its header promises 472 bytes, it has 463; copy it again"),
    ],
)
def test_a_wrong_suffix_is_not_called_a_truncated_file(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputFileError, match=said):
        nifti.load(tmp_path / name)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_pixels_of_an_unset_offset_begin_behind_the_header(tmp_path: Path, kind: type, suffix: str) -> None:
    pixels = np.arange(60, dtype=np.int16).reshape(4, 5, 3)
    content = bytearray(kind(pixels, np.eye(4)).to_bytes())
    where = slice(108, 112) if kind is nib.Nifti1Image else slice(168, 176)
    content[where] = bytes(where.stop - where.start)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    np.testing.assert_array_equal(np.asarray(nifti.load(path).dataobj), pixels)


META = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_USHORT\n"
META += "ElementSpacing = 1 1 4\n{more}ElementDataFile = {data}\n"


def test_text_pixels_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.mha").write_text(META.format(more="BinaryData = False\n", data="LOCAL") + "1 2 3 4 5 6 7 8\n")
    with pytest.raises(InputFileError, match=r"as text .*save it as binary"):
        itk.read(tmp_path / "text.mha")


def test_names_of_other_scripts_are_read(tmp_path: Path) -> None:
    (tmp_path / "脳.raw").write_bytes(np.arange(8, dtype="<u2").tobytes())
    (tmp_path / "Köpf.mhd").write_text(META.format(more="BinaryData = True\n", data="脳.raw"), "utf-8")
    assert itk.read(tmp_path / "Köpf.mhd").pixels.sum() == 28


@pytest.mark.parametrize("first", [True, False])
def test_a_list_axis_of_an_nrrd_is_the_fourth(tmp_path: Path, first: bool) -> None:
    data = np.arange(2 * 3 * 4 * 5, dtype="<i2").reshape(2, 3, 4, 5)
    sizes, kinds, directions = ["2", "3", "4"], ["domain"] * 3, ["(1.5,0,0)", "(0,1.5,0)", "(0,0,3)"]
    for names, one in ((sizes, "5"), (kinds, "list"), (directions, "none")):
        names.insert(0 if first else 3, one)
    header = (
        "NRRD0005\ntype: short\ndimension: 4\nspace: left-posterior-superior\n"
        f"sizes: {' '.join(sizes)}\nkinds: {' '.join(kinds)}\nspace directions: {' '.join(directions)}\n"
        "endian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    stored = np.moveaxis(data, -1, 0) if first else data
    (tmp_path / "a.nrrd").write_bytes(header.encode() + stored.tobytes(order="F"))
    scan = io.read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(scan.pixels, data)
    assert scan.spacing == (1.5, 1.5, 3)
