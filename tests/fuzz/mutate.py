"""Damage to files: to their bytes, and to what a format's own reader believes.

Everything depends on the generator alone, so that a number names an input for ever.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

import nibabel as nib
import numpy as np

from runtime import bundle
from runtime.bundle import Bundle

from .seeds import Case

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]
Item = TypeVar("Item")

_EDGES = [0, 1, 2, 3, 4, 7, 8, 16, 100, 1000, *(2**n + d for n in (7, 8, 15, 16, 24, 31, 32, 62, 63, 64) for d in (-1, 0, 1))]
INTEGERS = [*_EDGES, *(-n for n in _EDGES)]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-5, 1e5, 3.4e38, 1e308, np.inf, -np.inf, np.nan]
_WORDS = ["", " ", "nan", "inf", "-inf", "1e400", "1e-400", "0x10", "½", "true", "none", "NULL", "a b", "1 2 3 4 5 6 7 8 9 10"]
_WORDS += ["\0", "\x1b[31mred", "\x85", "\u2028", "%s%n%d", "{0}", "../a", "/etc/passwd", "LIST", "LOCAL", "9" * 5000]
_WORDS += ["(1,0,0) (0,nan,0) (0,0,1)", "1\\2\\3", "\\" * 90, "a" * 70_000, "(" * 3000]
_PICKLE = pickle.dumps(np.array([{}], object), protocol=2)


def case(seeds: Sequence[Case], seed: int, number: int) -> Case:
    """Input `number` of the run `seed`: the seeds come in turn, each damaged in one file, seldom in more."""
    rng = np.random.default_rng([seed, number])
    chosen = seeds[number % len(seeds)]
    files = dict(chosen.files)
    with warnings.catch_warnings(action="ignore"):  # of numbers that do not fit, and of a zip's names that are there twice
        for _ in range(1 + (rng.random() < 0.1)):
            names = list(files)
            name = names[0] if rng.random() < 0.7 else _one(names, rng)
            other = _one(list(_one(seeds, rng).files.values()), rng)
            for _ in range(rng.geometric(0.6)):
                files[name] = _damaged(name, files[name], rng, other)
    return replace(chosen, files=files)


def _damaged(name: str, content: bytes, rng: Rng, other: bytes) -> bytes:
    if rng.random() < 0.1:
        return _spliced(content, rng, other)
    aware = _BY_SUFFIX.get(PurePath(name).suffix)
    if aware and rng.random() < 0.65:
        try:
            return aware(content, rng)
        except Exception:  # it was damaged before, and is no more of its format
            pass
    return _one(_BYTES, rng)(content, rng)


def _one(items: Sequence[Item], rng: Rng) -> Item:
    return items[int(rng.integers(len(items)))]


def _place(content: bytes, rng: Rng) -> int:
    """An offset, in the header rather than in the pixels."""
    reach = len(content) if rng.random() < 0.6 else min(len(content), 400)
    return int(rng.integers(reach + 1))


def _number(rng: Rng) -> int:
    return _one(INTEGERS, rng) if rng.random() < 0.7 else int(rng.integers(0, 12))


def _text(rng: Rng) -> str:
    return _one([str(_number(rng)), str(_one(FLOATS, rng)), _one(_WORDS, rng)], rng)


# Any bytes


def _flipped(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.geometric(0.3)):
        changed[min(_place(content, rng), len(changed) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwritten(content: bytes, rng: Rng) -> bytes:
    at, size = _place(content, rng), _one([1, 2, 4, 8], rng)
    number = (_number(rng) % 256**size).to_bytes(size, _one(["little", "big"], rng))  # type: ignore[arg-type]
    return content[:at] + number + content[at + size :]


def _cut(content: bytes, rng: Rng) -> bytes:
    return content[: _place(content, rng)]


def _grown(content: bytes, rng: Rng) -> bytes:
    at, size = _one([_place(content, rng), len(content)], rng), _one([1, 2, 7, 100, 5000, 70_000], rng)
    return content[:at] + _one([bytes(size), b"\xff" * size, rng.bytes(size)], rng) + content[at:]


def _without(content: bytes, rng: Rng) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + _one([1, 2, 4, 12, 100], rng) :]


def _repeated(content: bytes, rng: Rng) -> bytes:
    at, size = _place(content, rng), _one([1, 4, 12, 50, 200], rng)
    return content[:at] + content[at : at + size] * _one([2, 3, 50], rng) + content[at + size :]


def _worded(content: bytes, rng: Rng) -> bytes:
    at = _place(content, rng)
    return content[:at] + _text(rng).encode() + content[at:]


def _spliced(content: bytes, rng: Rng, other: bytes) -> bytes:
    return content[: _place(content, rng)] + other[_place(other, rng) :]


_BYTES: list[Mutation] = [_flipped, _flipped, _overwritten, _overwritten, _cut, _grown, _without, _repeated, _worded]


# Formats


def _nifti(content: bytes, rng: Rng) -> bytes:
    """A field of the header."""
    dtype = (nib.Nifti1Header if content[:4] == b"\x5c\1\0\0" else nib.Nifti2Header).template_dtype
    header = np.frombuffer(content[: dtype.itemsize], dtype).copy()
    values = header[_one(dtype.names, rng)].reshape(-1)
    at, kind = int(rng.integers(values.size)), values.dtype.kind
    size = values.dtype.itemsize
    raw = (_number(rng) % 256**size).to_bytes(size, "little") if kind in "iu" else rng.bytes(size)
    values[at] = np.array(_one(FLOATS, rng), values.dtype) if kind == "f" else np.frombuffer(raw, values.dtype)[0]
    return header.tobytes() + content[dtype.itemsize :]


def _gzip(content: bytes, rng: Rng) -> bytes:
    inner = gzip.decompress(content)
    if rng.random() < 0.03:
        inner += bytes(1_000_000)
    return gzip.compress(_damaged("a.nii", inner, rng, inner), mtime=0)


_NRRD_LINES = """dimension: 17; dimension: 0; sizes: 8 9 99999999999; sizes: -8 9 3; encoding: hex; encoding: ascii
encoding: bzip2; encoding: zrl; data file: ../a; data file: LIST; data file: /dev/zero; line skip: -1; line skip: 9999999
byte skip: -1; byte skip: 99999999999; type: block; type: float; block size: 99999999; old min: x; space dimension: 9
endian: big; space directions: none none none; kinds: list domain domain; data file: a%03d.raw 1 100000 1; key:=value
content: \xff; measurement frame: (1,0); spacings: nan nan nan"""
_META_LINES = """NDims = 100; NDims = 0; NDims = -1; DimSize = 8 9 99999999999; DimSize = -8 9 3; HeaderSize = -1; Comment = (
HeaderSize = 999999999; ElementDataFile = ../a; ElementDataFile = LIST; ElementDataFile = /dev/zero; BinaryData = False
ElementDataFile = a%03d.raw 1 100000 1; ElementNumberOfChannels = 0; ElementNumberOfChannels = 100000000; ObjectType = Mesh
CompressedData = True; CompressedDataSize = 99999999999; CompressedDataSize = -1; ElementType = MET_STRING
ObjectSubType = Scene; ElementType = MET_DOUBLE; TransformMatrix = 0 0 0 0 0 0 0 0 0; ElementSpacing = 0 0 0
Modality = MET_MOD_X; DistanceUnits = \xff"""


def _lines(content: bytes, rng: Rng) -> bytes:
    """A text header, NRRD's or MetaImage's, by line."""
    nrrd = content.startswith(b"NRRD")
    end, mark = (content.find(b"\n\n"), b":") if nrrd else (content.find(b"\n", content.find(b"ElementDataFile")), b"=")
    end = end if end >= 0 else len(content)
    lines, rest = content[:end].split(b"\n"), content[end:]
    at = int(rng.integers(len(lines)))
    name, _, value = lines[at].partition(mark)
    odd = _one(re.split("; |\n", _NRRD_LINES if nrrd else _META_LINES), rng)
    numbers = value.split()
    if numbers:
        numbers[int(rng.integers(len(numbers)))] = _text(rng).encode()
    new = _one(
        [
            [name + mark + b" " + _text(rng).encode()],
            [name + mark + b" " + b" ".join(numbers)],
            [lines[at]] * 2,
            [],
            [lines[at] + b" " + b"x" * _one([300, 1100, 5000, 200_000], rng)],
            [lines[at] + rng.bytes(5)],
            [lines[at], _text(rng).encode() + mark + _text(rng).encode()],
        ],
        rng,
    )
    if rng.random() < 0.4:  # in the place of the line that has its name, or before the last
        key = odd.encode("latin-1")
        same = [k for k, line in enumerate(lines) if line.partition(mark)[0].strip() == key.partition(mark)[0].strip()]
        at = same[0] if same else max(len(lines) - 1, 0)
        new = [key] if same else [key, *lines[at : at + 1]]
    lines[at : at + 1] = new
    return b"\n".join(lines) + rest


def _json(content: bytes, rng: Rng) -> bytes:
    whole = json.loads(content)
    place: Any = whole
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = _one(list(keys), rng) if keys else "new"
        if not (keys and isinstance(place[key], (dict, list)) and rng.random() < 0.7):
            break
        place = place[key]
    odd = [_number(rng), _one(FLOATS, rng), _text(rng), None, True, [], {}, [1, "a", None], {"a": {"b": []}}, "\ud800", "@nest"]
    if isinstance(place, dict) and rng.random() < 0.2:
        place[_text(rng)] = _one(odd, rng)
    elif keys and rng.random() < 0.15:
        del place[key]
    elif keys:
        place[key] = _one(odd, rng)
    depth = _one([100, 900, 100_000], rng)
    nests = [
        b"[" * depth,
        b"[" * depth + b"]" * depth,
        b'{"a":' * depth + b"1" + b"}" * depth,
        b"9" * 400,
        b"9" * 5000,
        b"1e9999",
    ]
    text = json.dumps(whole).encode().replace(b'"@nest"', _one(nests, rng))
    return _one([*[text] * 6, b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), text[:-1] + b',"a":1,"a":2}'], rng)


_DTYPES = "|O |O <f8 >f4 <f2 <c8 <M8[ns] <m8 <U4 |S3 |V8 |b1 <i8 <f16 ? x <i4,<f8 "


def _npy(content: bytes, rng: Rng) -> bytes:
    array = np.load(io.BytesIO(content))
    descr: Any = _one([array.dtype.str, _one(_DTYPES.split(" "), rng), [("a", "<i4"), ("b", "|O")]], rng)
    shape: Any = list(array.shape)
    shape[int(rng.integers(len(shape)))] = _one([_number(rng), True, 1.0], rng)
    shape = _one([array.shape, tuple(shape), (), (1,), (0, 5), (2,) * 33, (2,) * 70, shape, (2**40, 2**40)], rng)
    header = repr({"descr": descr, "fortran_order": bool(rng.integers(2)), "shape": shape})
    if rng.random() < 0.3:
        header = _one([header[:-1], header + "+", "{}", "[" * 5000, "(" * 99 + ")" * 99, header.replace("shape", "size")], rng)
    text = (header + " " * _one([0, 16, 11_000, 60_000], rng) + "\n").encode("latin-1")
    version = _one([1, 1, 2, 3, 4], rng)
    length = struct.pack("<H", len(text) % 65536) if version == 1 else struct.pack("<I", len(text))
    body = _PICKLE if descr == "|O" else array.tobytes()
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + body


def _png(content: bytes, rng: Rng) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    at = int(rng.integers(len(chunks)))
    name, data = chunks[at]
    if name == b"IDAT" and rng.random() < 0.6:
        data = zlib.compress(_one(_BYTES, rng)(zlib.decompress(data), rng))
    elif name == b"IHDR" and rng.random() < 0.7:
        fields = [_one([n, n, _number(rng)], rng) for n in struct.unpack(">IIBBBBB", data)]
        data = struct.pack(">IIBBBBB", *(n % 2**32 for n in fields[:2]), *(n % 256 for n in fields[2:]))
    else:
        data = _one(_BYTES, rng)(data, rng)
    extra = b"acTL fcTL fdAT tRNS PLTE iCCP zTXt iTXt tEXt eXIf pHYs gAMA IEND xYZw".split()
    bomb = b"a\0\0" + zlib.compress(bytes(2_000_000))
    body = _one([rng.bytes(8), b"", bomb, b"a\0" + rng.bytes(20), struct.pack(">II", 2**31, 9)], rng)
    new = _one([[(name, data)], [(name, data)], chunks[at : at + 1] * 2, [], [(_one(extra, rng), body), chunks[at]]], rng)
    chunks[at : at + 1] = new
    return content[:8] + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)


def _tiff(content: bytes, rng: Rng) -> bytes:
    """An entry of the first directory: its tag, type, count or value."""
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    at, size = _one([(0, 2), (2, 2), (4, 4), (8, 4), (8, 4)], rng)
    where = directory + 2 + 12 * int(rng.integers(count)) + at
    tags = [256, 257, 258, 259, 262, 273, 277, 278, 279, 282, 317, 320, 322, 324, 330, 338, 339, 347, 513, 34665, 34675, 37724]
    number = _one([_number(rng), _number(rng), _one(tags, rng), int(rng.integers(len(content)))], rng)
    return content[:where] + (number % 256**size).to_bytes(size, "little") + content[where + size :]


_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
_VRS = [*_LONG, *b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US ZZ".split(), b"\0\0"]
_TAGS = """00020010 00020000 00029999 00000002 00080005 00080008 00080201 00082112 00090010 00091001 00100010 00181310 0018A001
00200032 00200037 00280002 00280004 00280008 00280010 00280030 00280100 00280101 00280103 00280120 00281052 00281053 00283000
0040A30A 52009229 52009230 60003000 7FE00008 7FE00010 FFFCFFFC FFFEE000 FFFEE0DD"""


def _element(tag: tuple[int, int], vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    head = struct.pack("<HH", *tag) + vr
    return head + (struct.pack("<HI", 0, length % 2**32) if vr in _LONG else struct.pack("<H", length % 2**16)) + value


def _dicom(content: bytes, rng: Rng) -> bytes:
    """An element of the top level, in Explicit VR Little Endian: changed, doubled, taken out or put in."""
    elements, at = [], 132
    while at + 8 <= len(content):
        tag, vr = struct.unpack_from("<HH", content, at), content[at + 4 : at + 6]
        begin, form = (at + 12, "<I") if vr in _LONG else (at + 8, "<H")
        (length,) = struct.unpack_from(form, content, begin - struct.calcsize(form))
        end = len(content) if length == 0xFFFFFFFF or begin + length > len(content) else begin + length
        elements.append((tag, vr, content[begin:end], content[at:end]))
        at = end
    at = int(rng.integers(len(elements)))
    tag, vr, value, whole = elements[at]
    depth = _one([1, 10, 400, 3000], rng)
    nested = (struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + _element((0x0008, 0x2112), b"SQ", b"", 0xFFFFFFFF)) * depth
    words = [_text(rng), "\\".join(_text(rng)[:40] for _ in range(int(rng.integers(2, 8)))), "1.2.840.10008.1.2.4.90", "1" * 64]
    binary = struct.pack("<Q", _number(rng) % 2**64)[: _one([1, 2, 4, 8], rng)]
    odd = _one([_one(words, rng).encode(), binary, rng.bytes(6), b""], rng)
    odd += b" " * (len(odd) % 2)
    wrong, tags = _one([None, None, _number(rng)], rng), [(int(name[:4], 16), int(name[4:], 16)) for name in _TAGS.split()]
    new = _one(
        [
            [_element(tag, vr, odd)],
            [_element(tag, vr, odd[:60_000], wrong)],
            [_element(tag, _one(_VRS, rng), value)],
            [_element(tag, vr, value, _number(rng))],
            [_element(_one(tags, rng), _one(_VRS, rng), odd, wrong), whole],
            [_element(_one(tags, rng), _one([b"US", b"DS", b"IS", b"CS", b"UI"], rng), odd), whole],
            [_element(_one([tag, *tags], rng), b"SQ", nested, 0xFFFFFFFF), whole],
            [whole] * 2,
            [],
        ],
        rng,
    )
    return content[:132] + b"".join([*(e[3] for e in elements[:at]), *new, *(e[3] for e in elements[at + 1 :])])


def _zip(content: bytes, rng: Rng) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = int(rng.integers(len(members)))
    name, data = members[at]
    names = [
        "../evil.dcm",
        "/tmp/evil.dcm",
        "a/" * 100 + "b",
        "\x1b[31m.dcm",
        "a\nb.dcm",
        "é" * 90,
        ".",
        "x" * 3000,
        "n.zip",
        "d/",
    ]
    new = _one(
        [
            [(name, _damaged("a.dcm", data, rng, content))],
            [(name, _damaged("a.dcm", data, rng, content))],
            [(_one(names, rng), data)],
            [(name, data), ("n.zip", content)],
            [(name, data + bytes(100_000))],
            [(name, data)] * 2,
            [],
        ],
        rng,
    )
    members[at : at + 1] = new
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            method = _one([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], rng)
            archive.writestr(info, data, method)
    packed = stream.getvalue()
    return _one(_BYTES, rng)(packed, rng) if rng.random() < 0.2 else packed


def _bundle(content: bytes, rng: Rng) -> bytes:
    """A member, or the manifest's own words, by somebody who seals the bundle again."""
    parsed = Bundle.parse(content, "seed")
    files, about = dict(parsed.files), {k: v for k, v in parsed.manifest.items() if k != "files"}
    name = _one([*files, "manifest"], rng)
    if name == "manifest":
        about = json.loads(_json(json.dumps(about).encode(), rng))
        about = about if isinstance(about, dict) else {"model": about}
    else:
        files[name] = _damaged(name, files[name], rng, files["trunk.onnx"])
    return bundle.serialise(parsed.model, files, about)


_BY_SUFFIX: dict[str, Mutation] = {
    **{".nii": _nifti, ".gz": _gzip, ".nrrd": _lines, ".nhdr": _lines, ".mha": _lines, ".mhd": _lines, ".json": _json},
    **{".npy": _npy, ".png": _png, ".tif": _tiff, ".dcm": _dicom, ".zip": _zip, ".bundle": _bundle},
}
