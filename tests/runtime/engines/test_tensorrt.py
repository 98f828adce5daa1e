"""TensorRT for RTX builds engines without a GPU; what runs them here is the GPU of tests/fake, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime import DeviceError, Upscaler, engines
from runtime.bundle import Bundle
from runtime.engines import graphs, tensorrt
from tests.fake.environment import ROOT, environment

CAPABILITIES = 75, 80, 86, 89, 120, 121  # that TensorRT for RTX 1.7 serves


@pytest.fixture(scope="module")
def library() -> Any:
    """TensorRT for RTX, which builds for all of these GPUs in place of the one that is not here."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install tensorrt-rtx")

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._builder = rtx.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._builder, name)

        def create_builder_config(self) -> Any:
            config = self._builder.create_builder_config()
            config.num_compute_capabilities = len(CAPABILITIES)
            for k, capability in enumerate(CAPABILITIES):
                config.set_compute_capability(rtx.ComputeCapability(capability), k)
            return config

    ahead = ModuleType("tensorrt_rtx")
    vars(ahead).update(vars(rtx), Builder=Builder)
    return ahead


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
def test_builds_the_shipped_trunk(shipped: Upscaler, library: Any, half: bool) -> None:
    engine = tensorrt.build(library, shipped.bundle.trunk(half) + graphs.planes(half), 64)
    assert len(engine) > 700_000  # of 393,000 weights, in half precision


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
def test_builds_a_told_trunk(told: Bundle, library: Any, half: bool) -> None:
    """For Turing too, which TensorRT for RTX gives no matrix product in float32."""
    assert tensorrt.build(library, told.trunk(half) + graphs.planes(half), 64)


def test_the_real_library_has_all_that_the_engine_calls(library: Any) -> None:
    context = ("set_input_shape", "set_tensor_address", "update_device_memory_size_for_shapes", "set_device_memory")
    assert all(hasattr(library.IExecutionContext, name) for name in (*context, "execute_async_v3"))
    assert hasattr(library.ICudaEngine, "create_execution_context")
    assert hasattr(library.Runtime, "deserialize_cuda_engine")
    assert library.ExecutionContextAllocationStrategy.USER_MANAGED


def test_a_graph_that_it_cannot_read_is_an_error(library: Any) -> None:
    with pytest.raises(DeviceError, match=r"tensorrt_rtx .* cannot read this bundle's trunk"):
        tensorrt.build(library, b"no graph", 64)


def test_a_missing_and_an_empty_library_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `tensorrt` of PyPI is a package without its libraries."""
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DeviceError) as error:
        tensorrt.load_library()
    assert "tensorrt: module 'tensorrt' has no attribute 'Builder'; tensorrt_rtx: " in error.value.problem
    assert error.value.repair == "pip install tensorrt-rtx"


def test_missing_cuda_bindings_are_said(shipped: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"cuda-bindings cannot be used .*: pip install cuda-bindings"):
        tensorrt.TensorRtEngine(shipped.bundle, 64)


@pytest.mark.skipif(engines.driver_is_installed(), reason="here is a driver")
def test_a_missing_driver_is_said(shipped: Upscaler) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings: pip install cuda-bindings")
    with pytest.raises(DeviceError, match=r"cuda-bindings cannot be used .*: install an NVIDIA driver"):
        tensorrt.TensorRtEngine(shipped.bundle, 64)


def test_integers_are_refused() -> None:
    with pytest.raises(DeviceError, match="8-bit integers, which tensorrt does not: use device 'cpu'"):
        Upscaler.load("fast", device="tensorrt")


@pytest.mark.parametrize("tests", [["tests/fake"], ["tests/gpu", "-k", "tensorrt"]], ids=lambda tests: tests[0])
def test_on_a_gpu_that_the_host_plays(tests: list[str], tmp_path: Path) -> None:
    """By the real cuda-bindings, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
