"""Pictures and arrays: read as their file says, or refused by one line that says what to do."""

from __future__ import annotations

import io
import itertools
import logging
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from runtime import InputFileError, MetasrganError, OutputFileError
from runtime import io as files
from runtime.inputs import quiet
from runtime.io import pictures
from runtime.scan import Scan
from tests.conftest import ROOT

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
RNG = np.random.default_rng(4)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
STACK = RNG.integers(0, 4000, (3, 20, 30), dtype=np.uint16)


def scan(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels that all differ, up to the ends of their type."""
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if pixels.dtype.kind == "f":
        return pixels / np.asarray(7, dtype)
    pixels.flat[0], pixels.flat[-1] = np.iinfo(dtype).min, np.iinfo(dtype).max
    return pixels


def tiff(path: Path, pixels: np.ndarray, photometric: str = "minisblack", **options: Any) -> Path:
    tifffile.imwrite(path, pixels, photometric=photometric, **options)
    return path


def png(path: Path, pixels: bytes, width: int, height: int, bits: int, colours: int, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG file of rows that need no filter, of types that Pillow does not write."""
    size = len(pixels) // height
    rows = b"".join(b"\0" + pixels[k * size : (k + 1) * size] for k in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    parts = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    content = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def assert_same(read: np.ndarray, expected: np.ndarray) -> None:
    assert (read.shape, read.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape"),
    [
        (".png", "uint8", (5, 4)),
        (".png", "uint16", (5, 4)),
        (".bmp", "uint8", (5, 4)),
        *((".tif", dtype, shape) for dtype in (*DTYPES, "float16") for shape in ((5, 4), (3, 5, 4), (4, 5, 3))),
        *((".npy", dtype, (3, 5, 4)) for dtype in DTYPES),
    ],
)
def test_pictures_and_arrays_keep_values_and_type(tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, ...]) -> None:
    pixels = scan(dtype, shape)
    files.write(tmp_path / f"a{suffix}", Scan(pixels))
    assert_same(pictures.load(tmp_path / f"a{suffix}"), pixels)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_colours_keep_their_values(tmp_path: Path, suffix: str) -> None:
    files.write(tmp_path / f"a{suffix}", Scan(np.moveaxis(COLOUR, -1, 0), colour=True))
    assert_same(pictures.load(tmp_path / f"a{suffix}"), COLOUR)


LAYOUTS: tuple[dict[str, Any], ...] = (
    {"byteorder": ">", "bigtiff": True},
    {"tile": (16, 16), "compression": "lzw", "predictor": True},
    {"rowsperstrip": 3, "compression": "zlib"},
    {"compression": "zstd", "byteorder": ">"},
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "uint32", "float16", "float64"])
def test_tiff_pixels_are_the_files_in_every_layout(tmp_path: Path, dtype: str, layout: dict[str, Any]) -> None:
    pixels = scan(dtype, (20, 30))
    assert_same(pictures.load(tiff(tmp_path / "a.tif", pixels, **layout)), pixels)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "group3", "group4", "packbits", "tiff_adobe_deflate"])
def test_two_levels_are_black_and_white(tmp_path: Path, compression: str | None) -> None:
    picture = Image.fromarray(GREY > 99)
    picture.save(tmp_path / "a.tif", compression=compression)
    assert_same(pictures.load(tmp_path / "a.tif"), np.asarray(picture.convert("L")))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_become_eight(tmp_path: Path, bits: int) -> None:
    levels = GREY[:, :24] >> 8 - bits
    expected = levels * np.uint8(255 // (2**bits - 1))
    packed = np.packbits(np.unpackbits(levels[..., None], axis=2)[..., -bits:]).tobytes()
    assert_same(pictures.load(png(tmp_path / "a.png", packed, 24, 20, bits, 0)), expected)
    assert_same(pictures.load(tiff(tmp_path / "a.tif", levels, bitspersample=bits)), expected)
    assert_same(pictures.load(tiff(tmp_path / "b.tif", levels, "miniswhite", bitspersample=bits)), 255 - expected)


def test_white_is_zero_is_inverted_exactly(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16", "uint32", "uint64"):
        pixels = scan(dtype, (20, 30))
        assert_same(pictures.load(tiff(tmp_path / "a.tif", pixels, "miniswhite")), np.iinfo(dtype).max - pixels)
    for dtype in ("int16", "float32"):
        with pytest.raises(InputFileError, match="WhiteIsZero"):
            pictures.load(tiff(tmp_path / "a.tif", scan(dtype, (20, 30)), "miniswhite"))


def test_colours_of_every_kind_are_red_green_blue(tmp_path: Path) -> None:
    path, opaque = tmp_path / "a.tif", np.full((20, 30, 1), 255, np.uint8)
    assert_same(pictures.load(tiff(path, np.moveaxis(COLOUR, -1, 0), "rgb", planarconfig="separate")), COLOUR)
    assert_same(pictures.load(tiff(path, np.dstack([COLOUR, opaque]), "rgb", extrasamples=["unassalpha"])), COLOUR)
    table = RNG.integers(0, 1 << 16, (3, 256), dtype=np.uint16)
    for colours in (table >> 8, table):  # old files have 8 bits in 16
        expected = (colours >> 8 if colours is table else colours).astype(np.uint8).T[GREY]
        assert_same(pictures.load(tiff(path, GREY, "palette", colormap=colours)), expected)
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    for name in ("a.tif", "a.jpg"):
        cmyk.save(tmp_path / name)
        assert_same(pictures.load(tmp_path / name), np.asarray(Image.open(tmp_path / name).convert("RGB")))
    Image.fromarray(COLOUR).convert("YCbCr").save(path, compression="jpeg")
    assert_same(pictures.load(path), np.asarray(Image.open(path).convert("RGB")))


def test_opaque_grey_stays_grey_and_transparent_is_refused(tmp_path: Path) -> None:
    for alpha in (255, 254):
        both = np.dstack([GREY, np.full_like(GREY, alpha)])
        for path in (tmp_path / "a.png", tiff(tmp_path / "a.tif", both, extrasamples=["unassalpha"], planarconfig="contig")):
            if path.suffix == ".png":
                Image.fromarray(both).save(path)
            if alpha == 255:
                assert_same(pictures.load(path), GREY)
            else:
                with pytest.raises(InputFileError, match="transparent in parts: flatten it"):
                    pictures.load(path)


@pytest.mark.parametrize("value", [7, 5000])
def test_a_transparent_level_of_a_deep_png_matters_where_it_is_used(tmp_path: Path, value: int) -> None:
    path = png(tmp_path / "a.png", STACK[0].astype(">u2").tobytes(), 30, 20, 16, 0, (b"tRNS", struct.pack(">H", value)))
    if value in STACK[0]:
        with pytest.raises(InputFileError, match="transparent in parts"):
            pictures.load(path)
    else:
        assert_same(pictures.load(path), STACK[0])


@pytest.mark.parametrize("turned", range(1, 9))
def test_turned_pictures_are_turned_upright(tmp_path: Path, turned: int) -> None:
    exif = Image.Exif()
    exif[274] = turned
    for name, pixels in (("a.png", GREY), ("a.jpg", GREY), ("b.png", COLOUR)):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)))
        assert_same(pictures.load(tmp_path / name), expected)
        if name != "a.jpg":
            photometric = "rgb" if pixels is COLOUR else "minisblack"
            assert_same(pictures.load(tiff(tmp_path / "a.tif", pixels, photometric, extratags=[(274, 3, 1, turned)])), expected)
    pages = pictures.load(tiff(tmp_path / "a.tif", STACK, extratags=[(274, 3, 1, turned, False)], metadata=None))
    for page, read in zip(STACK, pages, strict=True):
        Image.fromarray(page).save(tmp_path / "a.png", exif=exif)
        assert_same(read, pictures.load(tmp_path / "a.png"))


@pytest.mark.parametrize("text", [{"imagej": True}, {"metadata": {"axes": "ZYX"}}, {"ome": True}, {"metadata": None}])
def test_pages_of_a_tiff_are_a_stack_whoever_describes_them(tmp_path: Path, text: dict[str, Any]) -> None:
    assert_same(pictures.load(tiff(tmp_path / "a.tif", STACK, **text)), STACK)


OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a"><Image ID="i:0">
<Pixels ID="p:0" DimensionOrder="XYZTC" Type="uint16" SizeX="30" SizeY="20" SizeZ="2" SizeC="1" SizeT="1">
<TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="a.tif">urn:uuid:a</UUID></TiffData>
<TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="b.tif">urn:uuid:b</UUID></TiffData></Pixels></Image></OME>"""


def test_an_ome_file_leads_to_no_other_file(tmp_path: Path) -> None:
    for name, page in (("b", STACK[1]), ("a", STACK[0])):
        path = tiff(tmp_path / f"{name}.tif", page, description=OME.replace("uuid:a", f"uuid:{name}", 1), metadata=None)
    assert tifffile.imread(path).shape == (2, 20, 30)  # which follows the name
    assert_same(pictures.load(path), STACK[0])


def pages(path: Path, *several: tuple[np.ndarray, dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as file:
        for pixels, options in several:
            file.write(pixels, **options)
    return path


def test_what_a_tiff_has_and_cannot_be_kept_is_refused_by_its_name(tmp_path: Path) -> None:
    folder, grey, colour = tmp_path, {"photometric": "minisblack"}, {"photometric": "rgb"}
    channels = np.zeros((20, 30, 5), np.uint8)
    Image.fromarray(COLOUR).convert("LAB").save(folder / "lab.tif")
    Image.fromarray(COLOUR).convert("YCbCr").save(folder / "ycc.tif")
    for path, said in (
        (pages(folder / "sizes.tif", (GREY, grey), (GREY[:9], grey)), "several sizes"),
        (pages(folder / "types.tif", (GREY, grey), (GREY.astype(np.int8), grey)), "several sizes or kinds"),
        (pages(folder / "in.tif", (GREY, grey), (GREY, {"photometric": "miniswhite"})), "several sizes or kinds"),
        (pages(folder / "colours.tif", (COLOUR, colour), (COLOUR, colour)), "several pages in colour"),
        (tiff(folder / "deep.tif", COLOUR.astype(np.uint16), "rgb"), "16 bits a channel of several"),
        (tiff(folder / "complex.tif", GREY.astype(np.complex64)), "64 bits in the format .*COMPLEX"),
        (tiff(folder / "odd.tif", GREY >> 5, bitspersample=3), "pixels of 3 bits"),
        (tiff(folder / "channels.tif", channels, planarconfig="contig"), "5 channels of .*MINISBLACK"),
        (tiff(folder / "layers.tif", STACK, volumetric=True, tile=(1, 16, 16)), "3 deep"),
        (folder / "lab.tif", "3 channels of .*CIELAB"),
        (folder / "ycc.tif", "3 channels of .*YCBCR"),
        (tiff(folder / "wavelets.tif", GREY, compression="jpeg2000"), "compressed as .*JPEG2000"),
        (tiff(folder / "hidden.tif", STACK, metadata={}, truncate=True), "pictures without pages of their own"),
    ):
        with pytest.raises(InputFileError, match=said):
            pictures.load(path)


@pytest.mark.parametrize("silent", [False, True])
def test_a_chain_of_pages_that_does_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    """Whether or not the process has silenced tifffile, which only logs it."""
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", silent)
    path = tiff(tmp_path / "a.tif", np.zeros((150, 2, 2), np.uint8), metadata=None)
    with tifffile.TiffFile(path) as file:
        at, end = [page.offset for page in file.pages], file.pages.next_page_offset
    content = bytearray(path.read_bytes())
    for offset, said in ((at[7], "in a circle"), (1 << 30, "invalid page offset|chain of pages is broken")):
        content[end : end + 4] = offset.to_bytes(4, "little")
        path.write_bytes(content)
        with pytest.raises(InputFileError, match=said):
            pictures.load(path)


@pytest.mark.parametrize("tag", ["StripOffsets", "StripByteCounts"])
def test_missing_strips_are_not_taken_for_black(tmp_path: Path, tag: str) -> None:
    for pixels, value in itertools.product((GREY, STACK), (0, 60_000)):
        path = tiff(tmp_path / "a.tif", pixels, rowsperstrip=5, compression="lzw")
        with tifffile.TiffFile(path, mode="r+") as file:
            entry = file.pages[-1].tags[tag]
            entry.overwrite([*entry.value[:-1], value])
        with pytest.raises(InputFileError, match="lacks parts: copy it again"):
            pictures.load(path)


def test_missing_libraries_are_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = tiff(tmp_path / "a.tif", GREY), tiff(tmp_path / "b.tif", GREY, compression="lzw")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert_same(pictures.load(plain), GREY)
    with pytest.raises(
        MetasrganError, match=r"b\.tif, which is compressed or packed, needs imagecodecs: pip install imagecodecs"
    ):
        pictures.load(packed)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MetasrganError, match="TIFF needs tifffile: pip install tifffile"):
        pictures.load(plain)
    with pytest.raises(MetasrganError, match="pip install tifffile"):
        pictures.writer(tmp_path / "c.tif", Scan(GREY))


def test_what_a_library_logs_is_kept_from_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiff(tmp_path / "a.tif", STACK, metadata=None)
    path.write_bytes(path.read_bytes()[:-300])
    logger = logging.getLogger("tifffile")
    before = logger.filters[:], logger.handlers[:], logger.level, logger.disabled
    with pytest.raises(InputFileError):
        pictures.load(path)
    assert not caplog.records
    assert (logger.filters, logger.handlers, logger.level, logger.disabled) == before
    with quiet("tifffile") as errors:
        other = threading.Thread(target=logger.error, args=("of another thread",))
        other.start()
        other.join()
        logger.error("of this one")
    assert (caplog.messages, errors) == (["of another thread"], ["of this one"])


def test_large_and_oddly_tagged_pictures_warn_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the process's filters, which other threads see, are not changed for it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # beyond it Pillow warns, beyond twice it refuses
    exif = Image.Exif()
    exif[282], exif[305] = 3.5, "a name" * 30
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(GREY).save(tmp_path / name, exif=exif.tobytes()[:-90])
        with monkeypatch.context() as patch:
            patch.setattr(warnings, "catch_warnings", None)
            assert pictures.load(tmp_path / name).shape == GREY.shape


def test_damage_in_a_png_is_seen_in_every_byte(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY[:8, :8]).save(stream, "PNG")
    content = stream.getvalue()
    for k in range(8, len(content) - 12):  # of which the last chunk says only that it is the last
        for damaged in (content[:k] + bytes([content[k] ^ 16]) + content[k + 1 :], content[:k]):
            (tmp_path / "a.png").write_bytes(damaged)
            with pytest.raises(InputFileError, match="cannot be read as a picture"):
                pictures.load(tmp_path / "a.png")


def test_deep_colour_and_moving_pngs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="16 bits a channel"):
        pictures.load(png(tmp_path / "a.png", bytes(8 * 8 * 6), 8, 8, 16, 2))
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InputFileError, match="has 2 pictures"):
        pictures.load(tmp_path / "b.png")
    still = png(tmp_path / "c.png", bytes(64), 8, 8, 8, 0, (b"acTL", bytes(8)))  # of no frames, of which Pillow warns
    assert_same(pictures.load(still), np.zeros((8, 8), np.uint8))


def test_other_kinds_of_pictures_are_not_opened(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(InputFileError, match="is no PNG, JPEG, TIFF or BMP file"):
        pictures.load(tmp_path / "a.png")
    tiff(tmp_path / "b.tif", GREY).rename(tmp_path / "b.jpg")  # its content counts
    assert_same(pictures.load(tmp_path / "b.jpg"), GREY)


def test_an_array_that_promises_more_than_its_file_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000, 10000, 10000), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header + bytes(500))
    with pytest.raises(InputFileError, match=r"a\.npy is truncated: its header promises 8,000,000,000,000 bytes, it has 500"):
        pictures.load(tmp_path / "a.npy")


def test_headers_of_arrays_that_python_warns_of_warn_of_nothing(tmp_path: Path) -> None:
    """Those of Python 2, which are read, and odd ones, which are refused."""
    for shape in (b"(2L, 2L)", b"(2, 2\\,)"):
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + b", }"
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n" + bytes(4))
        if b"L" in shape:
            assert_same(pictures.load(tmp_path / "a.npy"), np.zeros((2, 2), np.uint8))
        else:
            with pytest.raises(InputFileError, match="Cannot parse header"):
                pictures.load(tmp_path / "a.npy")


def test_a_stack_that_promises_more_than_its_file_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank pages deflate to a thousandth; what is denser than any deflated picture lies."""
    tiff(tmp_path / "a.tif", np.zeros((40, 1200, 1200), np.uint8), compression="zlib")
    monkeypatch.setattr(pictures, "_DENSEST", 100)  # a page takes 1.6 kB of 1.4 MB
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("pages were read"))
    with pytest.raises(InputFileError, match="promises 57,600,000 bytes, more than a file of"):
        pictures.load(tmp_path / "a.tif")


MEMORY = """
import re, sys
from pathlib import Path
import numpy, tifffile, imagecodecs
from runtime import io
from runtime.io import pictures

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

path, out = map(Path, sys.argv[1:])
before = most()
pixels = pictures.load(path)
read = most() - before
scan = pictures.read(path)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = most()
io.write(out, scan, overwrite=True)
print(read / pixels.nbytes, (most() - before) / pixels.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
@pytest.mark.parametrize(
    ("name", "colour", "most_read", "most_written"),
    [("a.png", False, 2.2, 0.2), ("a.png", True, 2.6, 1.5), ("a.tif", False, 1.2, 0.2), ("a.tif", True, 1.2, 0.2)],
)
def test_reading_and_writing_hold_one_copy(
    tmp_path: Path, name: str, colour: bool, most_read: float, most_written: float
) -> None:
    """Pillow holds the picture beside the array, in 4 bytes a pixel where it has colours; tifffile holds none."""
    pixels = np.zeros((5000, 5000, 3)[: 2 + colour], np.uint8)
    pixels[::16] = 90
    files.write(tmp_path / name, Scan(np.moveaxis(pixels, -1, 0) if colour else pixels, colour=colour))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / name), str(tmp_path / f"out{name}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    read, written = map(float, done.stdout.split())
    assert read < most_read
    assert written < most_written


FUZZ = """
import io, random, resource, signal, sys, warnings
from pathlib import Path
from runtime import InputFileError
from runtime.io import pictures

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
warnings.simplefilter("error")
seeds = sorted(Path(sys.argv[1]).iterdir())
for number in range(int(sys.argv[2])):
    chance = random.Random(number)
    seed = chance.choice(seeds)
    content = bytearray(seed.read_bytes())
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(min(len(content), chance.choice((60, 300, 1 << 30))))
        content[at : at + chance.choice((0, 1, 1, 1, 4))] = chance.choice((
            bytes([content[at] ^ 1 << chance.randrange(8)]), bytes([chance.randrange(9)]), b"", chance.randbytes(4),
            bytes(4), b"\\xff" * 4, b"\\xff\\xff\\xff\\x7f", len(content).to_bytes(4, "little"),
        ))
    path = seed.with_name("mutated" + seed.suffix)
    path.write_bytes(content[: chance.choice((None, None, None, chance.randrange(len(content) + 1)))])
    signal.alarm(10)
    try:
        pictures.load(path)
    except InputFileError as error:
        assert len(str(error).splitlines()) == 1 and str(path) in str(error), error
    except BaseException as error:
        raise AssertionError(f"mutation {number} of {seed.name}") from error
    path.unlink()
"""


def test_mutated_pictures_are_read_or_refused_by_one_line(tmp_path: Path) -> None:
    """In a process of its own with 4 GB: none may end it, hold it up, or make a library print or warn."""
    exif = Image.Exif()
    exif[274], exif[282], exif[305] = 6, 3.5, "a name" * 9
    for name, picture in (
        ("a.png", GREY),
        ("b.png", COLOUR),
        ("c.png", STACK[0]),
        ("a.jpg", GREY),
        ("b.jpg", COLOUR),
        ("a.bmp", GREY),
    ):
        Image.fromarray(picture).save(tmp_path / name, exif=exif)
    Image.fromarray(COLOUR).convert("P").save(tmp_path / "b.bmp")
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "c.jpg", exif=exif)
    for k, layout in enumerate(LAYOUTS):
        tiff(tmp_path / f"{k}.tif", STACK, **layout)
    for k, compression in enumerate(("group3", "group4", "jpeg", "packbits")):
        Image.fromarray(GREY).convert("1" if compression.startswith("group") else "L").save(
            tmp_path / f"p{k}.tif", compression=compression
        )
    np.save(tmp_path / "a.npy", STACK)
    command = [sys.executable, "-c", FUZZ, str(tmp_path), "3000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    for name, dtype, ndim, colour in (
        ("a.png", "float32", 2, False),
        ("a.png", "uint16", 3, True),
        ("a.png", "uint8", 3, False),
        ("a.jpg", "uint16", 2, False),
        ("a.bmp", "int16", 2, False),
        ("a.tif", "uint16", 3, True),
        ("a.tif", "bool", 2, False),
        ("a.tif", "uint8", 4, False),
        ("a.gif", "uint8", 2, False),
    ):
        with pytest.raises(OutputFileError, match="cannot be written: end its name in" if ".gif" in name else "cannot hold"):
            files.writer(tmp_path / name, Scan(np.zeros((3,) * ndim, dtype), colour=colour))


def test_pillow_reads_what_was_written(tmp_path: Path) -> None:
    files.write(tmp_path / "a.png", Scan(STACK[0]))
    with PngImageFile(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), STACK[0])
    files.write(tmp_path / "a.tif", Scan(STACK))
    with Image.open(tmp_path / "a.tif") as picture:
        assert picture.n_frames == 3
        np.testing.assert_array_equal(np.asarray(picture), STACK[0])
    assert re.match(b"II\\*\0|MM\0\\*", (tmp_path / "a.tif").read_bytes())


def test_a_picture_too_large_for_jpeg_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputFileError, match=r"JPEG ends at 65,500: write \.png"):
        pictures.writer(tmp_path / "a.jpg", Scan(np.zeros((2, 65_501), np.uint8)))
