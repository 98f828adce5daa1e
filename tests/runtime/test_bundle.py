from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from runtime import BundleError, Upscaler, bundle
from runtime.bundle import Bundle
from tests.conftest import bundle_of, random_generator


@pytest.fixture(scope="module")
def content() -> bytes:
    parsed = bundle_of(random_generator("shallow"), half=True)
    return bundle.serialise(parsed.model, parsed.files, {"parameters": 1})


def test_the_same_content_gives_the_same_bytes(content: bytes) -> None:
    parsed = Bundle.parse(content, "x")
    assert bundle.serialise(parsed.model, parsed.files, {"parameters": 1}) == content
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None  # any unzip program opens it


def test_bundle_with_flipped_byte_is_refused(content: bytes) -> None:
    rng = np.random.default_rng(0)
    # The first and last bytes (zip structures, manifest, checksum) and a sample of all the others.
    places = {*range(64), *range(len(content) - 1200, len(content), 7), *rng.integers(len(content), size=60)}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        with pytest.raises(BundleError, match=r"^x (is|lacks|has)"):
            Bundle.parse(bytes(damaged), "x")


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1, -200])
def test_truncated_bundle_is_refused(content: bytes, keep: int) -> None:
    with pytest.raises(BundleError, match="damaged"):
        Bundle.parse(content[:keep], "x")


def _rewritten(content: bytes, change: dict[str, object], drop: str = "") -> bytes:
    """A bundle that was made, seal and all, with another manifest or without a file."""
    parsed = Bundle.parse(content, "x")
    files = {n: b for n, b in parsed.files.items() if n != drop}
    return bundle.serialise(parsed.model, files, change)


def test_bundle_of_a_newer_version_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="version 5, this release reads 2 to 4: install a newer"):
        Bundle.parse(_rewritten(content, {"version": 5}), "x")


def test_an_older_reader_refuses_a_bundle(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "VERSION", 3)
    with pytest.raises(BundleError, match="version 4, this release reads 2 to 3: install a newer"):
        Bundle.parse(content, "x")


@pytest.mark.parametrize(
    ("version", "said", "precision"),
    [(2, {}, "float32"), (2, {"psnr_lost_db": {"×2": 0.1}}, "int8"), (3, {"half": [44, 91]}, "float32")],
)
def test_what_an_older_bundle_leaves_out_follows_from_its_version(
    content: bytes, version: int, said: dict[str, object], precision: str
) -> None:
    model = asdict(Bundle.parse(content, "x").model)
    older = {name: value for name, value in model.items() if name not in ("told", "precision", "weights")}
    older |= {"told": True} if version == 3 else {}
    parsed = Bundle.parse(_rewritten(content, {"version": version, "model": older, **said}), "x")
    assert (parsed.model.told, parsed.model.precision) == (version == 3, precision)
    assert parsed.integers == (precision == "int8")
    assert not parsed.has_half


@pytest.mark.parametrize(("version", "said"), [(2, True), (3, False)])
def test_told_in_the_wrong_version_is_refused(content: bytes, version: int, said: bool) -> None:
    model = asdict(Bundle.parse(content, "x").model) | {"told": said}
    with pytest.raises(BundleError, match="makes no sense"):
        Bundle.parse(_rewritten(content, {"version": version, "model": model}), "x")


def test_bundle_of_another_kind_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="'recipe'"):
        Bundle.parse(_rewritten(content, {"format": "recipe"}), "x")
    for other in (b"", b"hello", json.dumps({"a": 1}).encode()):
        with pytest.raises(BundleError, match="no bundle"):
            Bundle.parse(other, "x")


@pytest.mark.parametrize("missing", ["trunk.onnx", "trunk_fp16.onnx", "stage.onnx", "table_free.onnx", "predictor/w2.npy"])
def test_bundle_that_lacks_a_file_is_refused(content: bytes, missing: str) -> None:
    with pytest.raises(BundleError, match=f"lacks {missing}"):
        Bundle.parse(_rewritten(content, {}, drop=missing), "x")


@pytest.mark.parametrize(
    "change",
    [
        {"radius": "9"},
        {"radius": -9},
        {"std": 0},
        {"projection": "zz"},
        {"skip": 1},
        {"told": 0},
        {"precision": "int4"},
        {"weights": -1},
    ],
)
def test_manifest_that_makes_no_sense_is_refused(content: bytes, change: dict[str, object]) -> None:
    model = json.loads(zipfile.ZipFile(io.BytesIO(content)).read("manifest.json"))["model"]
    with pytest.raises(BundleError, match="makes no sense"):
        Bundle.parse(_rewritten(content, {"model": model | change}), "x")


def test_an_envelope_may_be_there(content: bytes) -> None:
    assert Bundle.parse(content, "x").envelope is None
    known = Bundle.parse(_rewritten(content, {"envelope": {"noise": [0, 0.08], "of a later version": 1}}), "x").envelope
    assert known is not None
    assert known.noise == (0, 0.08)
    for damaged in (1, [], {"noise": [1, 0]}, {"grey": 3}):
        with pytest.raises(BundleError, match="makes no sense"):
            Bundle.parse(_rewritten(content, {"envelope": damaged}), "x")


@pytest.mark.parametrize("missing", ["told", "precision", "weights"])
def test_a_bundle_that_does_not_say_what_its_version_requires_is_refused(content: bytes, missing: str) -> None:
    model = {name: value for name, value in asdict(Bundle.parse(content, "x").model).items() if name != missing}
    with pytest.raises(BundleError, match="makes no sense"):
        Bundle.parse(_rewritten(content, {"model": model}), "x")


def test_manifest_without_files_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="makes no sense"):
        Bundle.parse(_rewritten(content, {"files": [1]}), "x")


def test_graph_that_onnxruntime_cannot_read_is_a_bundle_error(content: bytes) -> None:
    parsed = Bundle.parse(content, "x")
    junk = bundle.serialise(parsed.model, parsed.files | {"trunk.onnx": b"junk"}, {})
    with pytest.raises(BundleError, match="cannot run this bundle"):
        Upscaler.of(Bundle.parse(junk, "x"))


def test_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.bundle cannot be read"):
        Upscaler.load(tmp_path / "none.bundle")
    with pytest.raises(BundleError, match="cannot be read"):
        Upscaler.load(tmp_path)


def test_half_precision_halves_the_size() -> None:
    generator = random_generator("shallow")
    sizes = [sum(map(len, bundle_of(generator, half).files.values())) for half in (False, True)]
    assert sizes[1] < 0.52 * sizes[0]  # all but the graphs' structure


def _changed(content: bytes, changes: dict[str, bytes]) -> bytes:
    """A bundle whose members were exchanged by somebody who seals it again."""
    parsed = Bundle.parse(content, "x")
    return bundle.serialise(parsed.model, {**parsed.files, **changes}, {})


@pytest.mark.parametrize(
    ("member", "array", "said"),
    [
        ("w2", np.zeros((3, 4), np.float32), "does not fit"),
        ("b1", np.full(256, np.nan, np.float32), "does not fit"),
        ("w1", np.zeros((256, 4), np.complex64), "does not fit"),
        ("b2", np.array([{"a": "pickle"}], object), "is no array"),
    ],
)
def test_a_predictor_that_does_not_fit_is_refused(content: bytes, member: str, array: np.ndarray, said: str) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    with pytest.raises(BundleError, match=said):
        Bundle.parse(_changed(content, {f"predictor/{member}.npy": buffer.getvalue()}), "x")


def test_a_bundle_that_would_fill_the_memory_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"would take .* bytes"):
        Bundle.parse(_changed(content, {"more": bytes(300 << 20)}), "x")


@pytest.mark.parametrize("member", ["trunk.onnx", "trunk_fp16.onnx", "stage.onnx"])
def test_weights_in_other_files_are_refused(content: bytes, member: str) -> None:
    graph = Bundle.parse(content, "x").files[member] + b"\x0a\x08location\x12\x09local.bin"
    with pytest.raises(BundleError, match="other files"):
        Bundle.parse(_changed(content, {member: graph}), "x")


@pytest.mark.parametrize("change", [{"radius": 2_000_000_000}, {"basis": 1_000_000_000}])
def test_a_model_out_of_bounds_is_refused(content: bytes, change: dict[str, int]) -> None:
    model = asdict(Bundle.parse(content, "x").model) | change
    with pytest.raises(BundleError, match="makes no sense"):
        Bundle.parse(_rewritten(content, {"model": model}), "x")


@pytest.mark.parametrize("change", [{"format": "x" * 9000}, {"version": 10**400}, {"version": "3"}])
def test_a_manifest_that_says_odd_things_is_refused_in_a_short_line(content: bytes, change: dict[str, object]) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.parse(_rewritten(content, change), "x")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("shape", ["(1 << 40,)", "(1099511627776,)", "(3, "])
def test_an_array_that_promises_more_than_its_bytes_is_refused(content: bytes, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\0v\0" + header.encode() + bytes(64)
    with pytest.raises(BundleError, match="is no array"):
        Bundle.parse(_changed(content, {"predictor/b1.npy": array}), "x")
