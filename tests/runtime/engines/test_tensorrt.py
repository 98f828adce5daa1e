"""TensorRT for RTX builds, parses and caches for real on a machine without a GPU; to run an engine takes one."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime import DeviceError, Upscaler, bundle, engines
from runtime.bundle import Bundle
from runtime.engines import cuda, tensorrt
from runtime.engines.cache import EngineCache
from tests.runtime.engines.host import HostDriver

LARGEST = 64


@pytest.fixture(scope="module")
def library() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install tensorrt-rtx")
    return tensorrt.load_library(("tensorrt_rtx",))


class FakeDevice:
    def __init__(self, name: str = "a GPU", capability: tuple[int, int] = (8, 6)) -> None:
        self.properties = cuda.Properties(name, capability, 1 << 32, 12080)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The engines that would run."""
    ran: list[bytes] = []
    monkeypatch.setattr(tensorrt, "TensorRtTrunk", lambda library, device, engine, half: ran.append(engine))
    monkeypatch.setattr(tensorrt, "MODULES", ("tensorrt_rtx",))
    return ran


def open_trunk(bundle: Bundle, cache: Path, device: Any = None, half: bool = True, progress: Any = None) -> None:
    tensorrt.open_trunk(device or FakeDevice(), bundle, LARGEST, EngineCache(cache), progress, half)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("portable", [False, True], ids=["for one", "portable"])
def test_builds_the_shipped_trunk(shipped: Upscaler, library: Any, half: bool, portable: bool) -> None:
    said: list[tuple[str, int, int]] = []
    engine = tensorrt.build(library, shipped.bundle.trunk(half), LARGEST, portable, lambda *progress: said.append(progress))
    assert len(engine) > 400_000  # 439,398 weights
    assert said
    assert all(0 < done <= total for _, done, total in said)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
def test_builds_a_told_trunk(told: Bundle, library: Any, half: bool) -> None:
    """For Turing too, which TensorRT for RTX gives no matrix product in float32."""
    assert tensorrt.build(library, told.trunk(half), LARGEST, portable=True)


def test_a_graph_that_it_cannot_read_is_an_error(library: Any) -> None:
    with pytest.raises(DeviceError, match=r"tensorrt_rtx .* cannot read this bundle's trunk"):
        tensorrt.build(library, b"no graph", LARGEST, portable=True)


def test_an_engine_is_built_once_for_each_graph_and_gpu(
    shipped: Upscaler, library: Any, ran: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_trunk(shipped.bundle, tmp_path)
    assert "builds an engine for this GPU, once" in caplog.text
    caplog.clear()
    open_trunk(shipped.bundle, tmp_path, progress=lambda *_: pytest.fail("built again"))
    assert not caplog.records
    assert ran[0] == ran[1]
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    open_trunk(shipped.bundle, tmp_path)
    assert "is damaged" in caplog.text
    for other in (FakeDevice("another GPU"), FakeDevice(capability=(8, 9))):
        open_trunk(shipped.bundle, tmp_path, other)
    open_trunk(shipped.bundle, tmp_path, half=False)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_bundles_own_engine_spares_the_building(
    shipped: Upscaler, library: Any, ran: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "TILE", LARGEST - 2 * shipped.bundle.model.radius)
    carried, members = tensorrt.portable_engines(shipped.bundle)
    content = bundle.serialise(shipped.bundle.model, shipped.bundle.files | members, {"engines": carried})
    own = Bundle.parse(content, "test bundle")
    open_trunk(own, tmp_path)
    assert ran == [members["engines/rtx.engine"]]
    assert list(tmp_path.iterdir()) == []
    open_trunk(own, tmp_path, FakeDevice(capability=(9, 0)))  # an H100 is none of those that it is for
    assert len(ran) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_and_an_empty_library_are_said(shipped: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `tensorrt` of PyPI is a package without its libraries."""
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DeviceError) as error:
        tensorrt.load_library()
    assert "tensorrt: module 'tensorrt' has no attribute 'Builder'; tensorrt_rtx: " in error.value.problem
    assert error.value.repair == "pip install tensorrt-rtx"
    with pytest.raises(DeviceError, match=r"TensorRT is not installed .*; onnxruntime .* has no TensorrtExecutionProvider"):
        open_trunk(shipped.bundle, tmp_path)


@pytest.mark.skipif(engines.driver_is_installed(), reason="here is a driver: tests/gpu runs engines")
def test_to_run_an_engine_without_a_driver_is_an_error_in_tensorrts_own_words(shipped: Upscaler, library: Any) -> None:
    engine = tensorrt.build(library, shipped.bundle.trunk(True), LARGEST, portable=True)
    device = cuda.Device(HostDriver(None))
    with pytest.raises(DeviceError, match=r"cannot run its engine on this GPU: .*driver version is insufficient"):
        tensorrt.TensorRtTrunk(library, device, engine, half=True)
