"""The bundle format: what `export` writes and this package reads. docs/bundle-format.md is its specification."""

from __future__ import annotations

import hashlib
import io
import json
import operator
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from . import grid
from .acquired import Float
from .envelope import Envelope
from .errors import BundleError, reason
from .phases import WeightPredictor
from .uncertainty import INPUTS, OUTPUTS, Head

FORMAT = "metasrgan-edge bundle"
VERSION, OLDEST = 4, 2  # what is written, and what is read from
PREDICTOR = tuple(f"predictor/{part}.npy" for part in ("w1", "b1", "w2", "b2"))
HEAD = tuple(f"uncertainty/{part}.npy" for part in ("w1", "b1", "w2", "b2", "w3", "b3"))
GRAPHS = ("trunk.onnx", "stage.onnx", "table_free.onnx")
REQUIRED = (*GRAPHS, *PREDICTOR)
TRUNK_FP16 = "trunk_fp16.onnx"
Precision = Literal["float32", "float16", "int8"]
_LARGEST = 256 << 20  # bytes of a bundle's members
_ELSEWHERE = b"\x0a\x08location"  # in ONNX, the key of weights that lie in another file


@dataclass(frozen=True)
class Model:
    """What the runtime must know of the network."""

    projection: grid.Projection
    basis: int  # filters whose responses the trunk gives, the skip's nine neighbours not counted
    skip: bool
    mean: float  # of images scaled to [0, 1]
    std: float
    radius: int  # receptive radius in input pixels, trunk and stage: a tile's halo
    told: bool  # whether the trunk is told the noise and the band, as `told`
    precision: Precision  # of the trunk; "float16" can compute in float32 too
    weights: int  # bytes at the beginning of trunk.onnx that are its weights, for `TRUNK_FP16` too

    def __post_init__(self) -> None:
        numbers = (type(self.basis), type(self.radius)) == (int, int) and 0 < self.basis <= 1024 and 0 <= self.radius <= 1024
        if not numbers or not 1e-6 < self.std < 1e6 or not abs(self.mean) < 1e6:
            raise ValueError(f"{self} is no model: a number in it is out of bounds")
        if self.projection not in get_args(grid.Projection) or {type(self.skip), type(self.told)} != {bool}:
            raise ValueError(f"{self} is no model: its projection, skip or told is unknown")
        if self.precision not in get_args(Precision) or type(self.weights) is not int or self.weights < 0:
            raise ValueError(f"{self} is no model: its precision is unknown, or its weights have no size")


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. `sha256` is that of the whole file, and its identity; `envelope` is what it learned from."""

    manifest: dict[str, Any]
    model: Model
    files: dict[str, bytes]
    sha256: str
    envelope: Envelope | None = None

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read and check a bundle. Raises BundleError for anything but a whole bundle of these versions."""
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST:,} bytes")
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({reason(error)}): give a .bundle made by `metasrgan export`") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, name: str) -> Bundle:
        """A bundle from a file's bytes; `name` is for error messages."""

        def wrong(what: str, repair: str = "make it again with `metasrgan export`") -> BundleError:
            return BundleError(f"{name} {what}: {repair}")

        damaged = wrong("is damaged, its checksum differs", "copy it again, or make it with `metasrgan export`")
        try:
            archive = zipfile.ZipFile(io.BytesIO(content))
            size = sum(member.file_size for member in archive.infolist())
            if size > _LARGEST:
                raise wrong(f"would take {size:,} bytes, a bundle has less than {_LARGEST:,}", "it is no honest one")
            manifest = json.loads(archive.read("manifest.json"))
            kind, version = str(manifest["format"])[:40], operator.index(manifest["version"])
        except BundleError:
            raise
        except Exception:  # the readers of damaged archives and manifests raise whatever they stumble over
            raise wrong("is no bundle, or is damaged") from None
        if kind != FORMAT:
            raise wrong(f"is a {kind!r}, not a {FORMAT!r}", "give a bundle of `metasrgan export`")
        if version not in range(OLDEST, VERSION + 1):
            what = f"has format version {str(version)[:40]}, this release reads {OLDEST} to {VERSION}"
            raise wrong(what, "install a newer metasrgan-edge, or export the checkpoint with this one")
        if archive.comment != _seal(content[: len(content) - len(archive.comment)]):
            raise damaged
        try:
            stated = {key: value for key, value in manifest["model"].items() if key in Model.__dataclass_fields__}
            if version < 4:  # which left these out
                precision = "int8" if "psnr_lost_db" in manifest else "float32"
                stated = {"told": False, "precision": precision, "weights": 0} | stated
            model = Model(**stated)
            if version < 4 and model.told != (version == 3):
                raise ValueError(f"{model} is none of version {version}")
            envelope = Envelope.parse(manifest["envelope"]) if manifest.get("envelope") is not None else None
            listed = {member: (entry["bytes"], entry["sha256"]) for member, entry in manifest["files"].items()}
            held = {*archive.namelist()}
            files = {member: archive.read(member) for member in listed if member in held}
        except Exception:
            raise wrong("has a manifest that makes no sense") from None
        required = (*REQUIRED, TRUNK_FP16) if model.precision == "float16" else REQUIRED
        for member in (*required, *listed):
            if member not in files:
                raise wrong(f"lacks {ascii(member)[1:-1]:.60}")
        if any((len(data), hashlib.sha256(data).hexdigest()) != listed[member] for member, data in files.items()):
            raise damaged
        bundle = cls(manifest, model, files, hashlib.sha256(content).hexdigest(), envelope)
        if any(_ELSEWHERE in graph for graph in (*(files[graph] for graph in GRAPHS), bundle.trunk(bundle.has_half))):
            raise wrong("has weights in other files, which its checksum does not cover", "export it again")
        networks: list[tuple[str, tuple[str, ...], tuple[int, ...], int]]
        networks = [("weight predictor", PREDICTOR, (3, 4), model.basis)]  # and how many numbers go in and out
        if HEAD[0] in files:
            networks.append(("head", HEAD, (model.basis + 9 * model.skip + INPUTS,), OUTPUTS))
        for what, members, into, out in networks:
            try:
                parts = [bundle._array(member) for member in members]
            except Exception:
                raise wrong(f"has a {what} that is no array") from None
            if not _fit(parts, into, out):
                raise wrong(f"has a {what} that does not fit")
        return bundle

    @property
    def integers(self) -> bool:
        """Whether the trunk computes in 8-bit integers."""
        return self.model.precision == "int8"

    @property
    def has_half(self) -> bool:
        """Whether the trunk may compute in half precision."""
        return self.model.precision == "float16"

    def trunk(self, half: bool) -> bytes:
        """The trunk's graph; with `half`, the one that computes in half precision. Both have the same weights, stored once."""
        graph = self.files["trunk.onnx"]
        return graph[: self.model.weights] + self.files[TRUNK_FP16] if half else graph

    def predictor(self) -> WeightPredictor:
        """The weight predictor in float32."""
        (w1, b1), (w2, b2) = self._layers(PREDICTOR)
        return WeightPredictor(w1, b1, w2, b2, self.model.projection)

    def head(self) -> Head | None:
        """What tells the uncertainty, in float32; None where the bundle was exported without."""
        return Head(self._layers(HEAD)) if HEAD[0] in self.files else None

    def _layers(self, members: Sequence[str]) -> tuple[tuple[Float, Float], ...]:
        """The weights and biases of each layer, float32."""
        parts = [self._array(member).astype(np.float32) for member in members]
        return tuple(zip(parts[::2], parts[1::2]))

    def _array(self, member: str) -> NDArray[Any]:
        """An array whose header is held to the bytes behind it: np.load would make room for what it promises."""
        stream = io.BytesIO(self.files[member])
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{member} is of another version of the NPY format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        return np.frombuffer(stream.read(), dtype).reshape(shape, order="F" if fortran else "C")


def serialise(model: Model, files: dict[str, bytes], about: dict[str, Any]) -> bytes:
    """The bytes of a bundle, of the same content the same.

    `about` joins the manifest: who made it, from what, how well it was verified.
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(model),
        "files": {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()},
        **about,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = b"\0" * len(_seal(b""))
        for name, data in {"manifest.json": json.dumps(manifest, indent=1).encode(), **files}.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    body = buffer.getvalue()[: -len(_seal(b""))]
    return body + _seal(body)


def array_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of an NPY file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _fit(parts: Sequence[NDArray[Any]], into: tuple[int, ...], out: int) -> bool:
    """Whether weights and biases, alternately, are layers of an MLP from one of `into` numbers to `out`."""
    if any(part.dtype not in (np.float16, np.float32) or not np.isfinite(part).all() for part in parts):
        return False
    for w, b in zip(parts[::2], parts[1::2]):
        if b.ndim != 1 or not b.size or w.shape not in [(b.size, n) for n in into]:
            return False
        into = (b.size,)
    return into == (out,)


def _seal(body: bytes) -> bytes:
    """The archive comment: the SHA-256, in hexadecimal, of every byte before it."""
    return b"sha256 " + hashlib.sha256(body).hexdigest().encode()
