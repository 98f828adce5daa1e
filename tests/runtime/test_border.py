"""Inputs of kinds that went wrong elsewhere: read rightly, or refused by one line that says what to do."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import InputFileError, formats, images, itk, volume

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
        volume.load(tmp_path / name)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_pixels_of_an_unset_offset_begin_behind_the_header(tmp_path: Path, kind: type, suffix: str) -> None:
    pixels = np.arange(60, dtype=np.int16).reshape(4, 5, 3)
    content = bytearray(kind(pixels, np.eye(4)).to_bytes())
    where = slice(108, 112) if kind is nib.Nifti1Image else slice(168, 176)
    content[where] = bytes(where.stop - where.start)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    np.testing.assert_array_equal(np.asarray(volume.load(path).dataobj), pixels)


def test_a_deep_colour_png_is_refused(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes(3 * 2 * 8) for _ in range(8))
    parts = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(InputFileError, match="16 bits a channel"):
        images.read(tmp_path / "deep.png")


def tiff(path: Path, bits: int, kind: int, photometric: int = 1) -> Path:
    """Four grey pixels of so many bits, unsigned (1), signed (2) or float (3)."""
    pixels = bytes(4 * bits // 8)
    tags = [(256, 3, 2), (257, 3, 2), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1), (278, 3, 2)]
    tags += [(279, 4, len(pixels)), (339, 3, kind)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, f, 1, v) for t, f, v in tags) + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory)
    return path


@pytest.mark.parametrize(("bits", "kind"), [(8, 2), (16, 2), (32, 1), (64, 3), (16, 3)])
def test_tiff_pixels_that_would_change_are_refused(tmp_path: Path, bits: int, kind: int) -> None:
    with pytest.raises(InputFileError, match=r"not read exactly|cannot be read"):
        images.read(tiff(tmp_path / "a.tif", bits, kind))


@pytest.mark.parametrize(("bits", "kind", "dtype"), [(8, 1, "uint8"), (16, 1, "uint16"), (32, 2, "int32"), (32, 3, "float32")])
def test_other_tiff_pixels_keep_their_type(tmp_path: Path, bits: int, kind: int, dtype: str) -> None:
    assert images.read(tiff(tmp_path / "a.tif", bits, kind)).dtype == dtype


def test_deep_white_is_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="WhiteIsZero"):
        images.read(tiff(tmp_path / "a.tif", 16, 1, photometric=0))


def test_a_picture_beyond_pillows_limit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)
    assert images.read(tmp_path / "a.png").shape == (100, 100)  # above it Pillow warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(InputFileError, match="more pixels than Pillow reads safely: cut it"):
        images.read(tmp_path / "a.png")


META = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_USHORT\n"
META += "ElementSpacing = 1 1 4\n{more}ElementDataFile = {data}\n"


def test_text_pixels_and_percent_signs_are_named(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "text.mha").write_text(META.format(more="BinaryData = False\n", data="LOCAL") + "1 2 3 4 5 6 7 8\n")
    with pytest.raises(InputFileError, match=r"as text .*save it as binary"):
        itk.load(tmp_path / "text.mha")
    (tmp_path / "77 %.mhd").write_text(META.format(more="", data="77 %.raw"))
    with pytest.raises(InputFileError, match="percent sign"):
        itk.load(tmp_path / "77 %.mhd")


def test_names_of_other_scripts_are_read(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "脳.raw").write_bytes(np.arange(8, dtype="<u2").tobytes())
    (tmp_path / "Köpf.mhd").write_text(META.format(more="BinaryData = True\n", data="脳.raw"), "utf-8")
    assert np.asarray(itk.load(tmp_path / "Köpf.mhd").dataobj).sum() == 28


@pytest.mark.parametrize("first", [True, False])
def test_a_list_axis_of_an_nrrd_is_the_fourth(tmp_path: Path, first: bool) -> None:
    pytest.importorskip("SimpleITK")
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
    image = formats.load(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    assert volume.voxel_size(image) == (1.5, 1.5, 3)
