"""The bundle format: what `export` writes and this package reads. docs/bundle-format.md is its specification."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from . import grid
from .errors import BundleError, reason
from .files import write_atomically
from .phases import WeightPredictor

FORMAT = "metasrgan-edge bundle"
VERSIONS = (2, 3)  # of a network that is not told the noise, and of one that is
PREDICTOR = tuple(f"predictor/{part}.npy" for part in ("w1", "b1", "w2", "b2"))
GRAPHS = ("trunk.onnx", "stage.onnx", "table_free.onnx")
REQUIRED = (*GRAPHS, *PREDICTOR)
_LARGEST = 256 << 20  # bytes of a bundle's members: a TensorRT engine may be 20 MB
_ELSEWHERE = b"\x0a\x08location"  # in ONNX, the key of weights that lie in another file
_FLOAT, _FLOAT16 = 1, 10  # ONNX's numbers for its types

# What reading an archive or a manifest that somebody damaged may raise.
_DAMAGE = (zipfile.BadZipFile, zlib.error, LookupError, ValueError, TypeError, AttributeError, OSError, RuntimeError, EOFError)


@dataclass(frozen=True)
class Model:
    """What the runtime must know of the network."""

    projection: grid.Projection
    basis: int  # filters whose responses the trunk gives, the skip's nine neighbours not counted
    skip: bool
    mean: float  # of images scaled to [0, 1]
    std: float
    radius: int  # receptive radius in input pixels, trunk and stage: a tile's halo
    told: bool = False  # whether the trunk is told the noise and the band, as `told`

    def __post_init__(self) -> None:
        numbers = (type(self.basis), type(self.radius)) == (int, int) and 0 < self.basis <= 1024 and 0 <= self.radius <= 1024
        if not numbers or not 0 < float(self.std) < np.inf or not np.isfinite(float(self.mean)):
            raise ValueError(f"{self} is no model: a number in it is out of bounds")
        if self.projection not in get_args(grid.Projection) or {type(self.skip), type(self.told)} != {bool}:
            raise ValueError(f"{self} is no model: its projection, skip or told is unknown")


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. `sha256` is that of the whole file, and its identity."""

    manifest: dict[str, Any]
    model: Model
    files: dict[str, bytes]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read and check a bundle. Raises BundleError for anything but a whole bundle of these versions."""
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({reason(error)}): give a .bundle made by `python -m export`") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, name: str) -> Bundle:
        """A bundle from a file's bytes; `name` is for error messages."""
        try:
            archive = zipfile.ZipFile(io.BytesIO(content))
            manifest = json.loads(archive.read("manifest.json"))
            kind, version = manifest["format"], manifest["version"]
        except _DAMAGE:
            raise BundleError(f"{name} is no bundle, or is damaged: make it again with `python -m export`") from None
        if kind != FORMAT:
            raise BundleError(f"{name} is a {kind!r}, not a {FORMAT!r}: give a bundle of `python -m export`")
        if version not in VERSIONS:
            raise BundleError(
                f"{name} has format version {version}, this release reads {' and '.join(map(str, VERSIONS))}: "
                "install a newer metasrgan-edge, or export the checkpoint with this one"
            )
        if archive.comment != _seal(content[: len(content) - len(archive.comment)]):
            raise _damaged(name)
        try:
            known = {field.name for field in fields(Model)}
            model = Model(**{name: value for name, value in manifest["model"].items() if name in known})
            if version != VERSIONS[model.told]:
                raise ValueError(f"{model} is none of version {version}")
            size = sum(member.file_size for member in archive.infolist())
            if size > _LARGEST:
                raise BundleError(f"{name} would take {size:,} bytes, a bundle has less than {_LARGEST:,}: it is no honest one")
            files = {member: archive.read(member) for member in manifest["files"] if member in archive.namelist()}
            listed = {member: (entry["bytes"], entry["sha256"]) for member, entry in manifest["files"].items()}
        except BundleError:
            raise
        except _DAMAGE:
            raise BundleError(f"{name} has a manifest that makes no sense: make it again with `python -m export`") from None
        missing = [m for m in {**dict.fromkeys(REQUIRED), **listed} if m not in files]
        if missing:
            raise BundleError(f"{name} lacks {', '.join(missing)}: make it again with `python -m export`")
        if any((len(data), hashlib.sha256(data).hexdigest()) != listed[m] for m, data in files.items()):
            raise _damaged(name)
        if not _switches(manifest.get("half", []), files["trunk.onnx"]):
            raise BundleError(f"{name} has a manifest that makes no sense: make it again with `python -m export`")
        if any(_ELSEWHERE in files[graph] for graph in GRAPHS):
            raise BundleError(f"{name} has weights in other files, which its checksum does not cover: export it again")
        bundle = cls(manifest, model, files, hashlib.sha256(content).hexdigest())
        bundle._check_predictor(name)
        return bundle

    @property
    def integers(self) -> bool:
        """Whether the trunk computes in 8-bit integers."""
        return "psnr_lost_db" in self.manifest

    @property
    def has_half(self) -> bool:
        """Whether the trunk may compute in half precision."""
        return "half" in self.manifest

    def trunk(self, half: bool) -> bytes:
        """The trunk's graph, as it is stored, in float32; or the same one that computes in half precision.

        Both are one graph but for a type here and there: the manifest says at which bytes.
        """
        graph = bytearray(self.files["trunk.onnx"])
        for offset in self.manifest["half"] if half else ():
            graph[offset] = _FLOAT16
        return bytes(graph)

    def engine(self, key: Mapping[str, str]) -> bytes | None:
        """The engine that the bundle carries for exactly this key (`engines.tensorrt.key`), or None."""
        carried = self.manifest.get("engines", {})
        return next((self.files[name] for name in carried if name in self.files and carried[name] == key), None)

    def predictor(self) -> WeightPredictor:
        """The weight predictor in float32."""
        w1, b1, w2, b2 = (self._array(member).astype(np.float32) for member in PREDICTOR)
        return WeightPredictor(w1, b1, w2, b2, self.model.projection)

    def _check_predictor(self, name: str) -> None:
        """Raise BundleError for arrays that are none, or do not fit one another."""
        try:
            w1, b1, w2, b2 = (self._array(member) for member in PREDICTOR)
        except _DAMAGE:
            raise BundleError(
                f"{name} has a weight predictor that is no array: make it again with `python -m export`"
            ) from None
        hidden, basis = len(b1), self.model.basis
        fit = w1.shape in ((hidden, 3), (hidden, 4)) and w2.shape == (basis, hidden) and b2.shape == (basis,) and b1.ndim == 1
        if not fit or not all(part.dtype in (np.float16, np.float32) and np.isfinite(part).all() for part in (w1, b1, w2, b2)):
            raise BundleError(f"{name} has a weight predictor that does not fit: make it again with `python -m export`")

    def _array(self, member: str) -> NDArray[Any]:
        return cast(NDArray[Any], np.load(io.BytesIO(self.files[member]), allow_pickle=False))


def write(
    path: Path,
    model: Model,
    files: dict[str, bytes],
    about: dict[str, Any],
    overwrite: bool,
    check: Callable[[Path], Any] = lambda finished: None,
) -> None:
    """Write a bundle whole or not at all, and not if `check` of the finished file raises; the same content, the same bytes."""
    content = serialise(model, files, about)
    write_atomically(path, lambda file: file.write(content), overwrite, check)


def serialise(model: Model, files: dict[str, bytes], about: dict[str, Any]) -> bytes:
    """The bytes of a bundle. `about` joins the manifest: who made it, from what, how well it was verified."""
    manifest = {
        "format": FORMAT,
        "version": VERSIONS[model.told],
        "model": {name: value for name, value in asdict(model).items() if name != "told" or value},
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


def _damaged(name: str) -> BundleError:
    return BundleError(f"{name} is damaged, its checksum differs: copy it again, or make it with `python -m export`")


def _switches(offsets: Any, graph: bytes) -> bool:
    """Whether these bytes of a graph can be types that are to change."""
    return isinstance(offsets, list) and all(type(k) is int and graph[k : k + 1] == bytes([_FLOAT]) for k in offsets)


def half_switches(graph: bytes, half: bytes) -> list[int]:
    """What a manifest says as `half`: where a graph differs from its twin that computes in half precision."""
    differ = [k for k, pair in enumerate(zip(graph, half)) if pair[0] != pair[1]]
    if len(graph) != len(half) or not _switches(differ, graph) or any(half[k] != _FLOAT16 for k in differ):
        raise ValueError("the two graphs differ by more than types")
    return differ


def _seal(body: bytes) -> bytes:
    """The archive comment: the SHA-256, in hexadecimal, of every byte before it."""
    return b"sha256 " + hashlib.sha256(body).hexdigest().encode()
