"""On a real GPU: `python -m pytest -m gpu`, or `python -m benchmarks.gpu`, which measures too. Needs no network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from runtime import DeviceError, Upscaler, engines, grid
from runtime.engines import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not engines.driver_is_installed(), reason="needs an NVIDIA GPU: this machine has no NVIDIA driver"),
]


@pytest.fixture(scope="module", params=["cuda", "tensorrt"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Upscaler]:
    try:
        up = Upscaler.load(device=request.param)
    except DeviceError as error:
        pytest.skip(f"{request.param} could not be loaded here: {error}")
    assert up.device == request.param
    with up:
        yield up


@pytest.fixture(scope="module", params=["cuda", "tensorrt"])
def gpu_in_float32(request: pytest.FixtureRequest, shipped: Upscaler) -> Iterator[Upscaler]:
    from dataclasses import replace

    model = replace(shipped.bundle.model, precision="float32")
    try:
        up = Upscaler.of(replace(shipped.bundle, model=model), device=request.param)
    except DeviceError as error:
        pytest.skip(f"{request.param} could not be loaded here: {error}")
    with up:
        yield up


@pytest.mark.parametrize("scale", grid.PAPER_SCALES, ids=str)
def test_equals_the_cpu(gpu: Upscaler, shipped: Upscaler, head: np.ndarray, scale: object) -> None:
    np.testing.assert_allclose(gpu(head, scale), shipped(head, scale), rtol=0, atol=3e-3 * np.ptp(head))


@pytest.mark.parametrize("scale", [*grid.PAPER_SCALES, "1.7320508"], ids=str)
def test_equals_the_cpu_in_float32(gpu_in_float32: Upscaler, shipped: Upscaler, head: np.ndarray, scale: object) -> None:
    np.testing.assert_allclose(gpu_in_float32(head, scale), shipped(head, scale), rtol=0, atol=1e-4 * np.ptp(head))


def test_windows_axes_tiles_and_threads(gpu: Upscaler, head: np.ndarray) -> None:
    whole = gpu.encode(head).render((2, "2.5"))
    np.testing.assert_array_equal(gpu.encode(head).render((2, "2.5"), window=(3, 5, 20, 17)), whole[3:23, 5:22])
    with ThreadPoolExecutor(8) as pool:
        for actual in pool.map(lambda _: gpu(head, (2, "2.5")), range(64)):
            np.testing.assert_array_equal(actual, whole)


def test_a_thousand_calls_leave_device_memory_flat(gpu: Upscaler) -> None:
    image = np.random.default_rng(0).random((64, 64), np.float32)
    free = []
    for k in range(1000):
        gpu(image[: 32 + k % 32], f"{1 + k % 97 / 32}")
        free.append(gpu.slices.engine._gpu.free_bytes())  # type: ignore[attr-defined]
    # Others on the machine may use the GPU too; what leaks a slice's responses would take 300 MB.
    assert free[200] - free[-1] < 32 << 20


def test_twenty_lifetimes_leave_device_memory_flat(head: np.ndarray) -> None:
    device = cuda.Device(cuda.open_driver())
    free = []
    for _ in range(20):
        try:
            with Upscaler.load(device="cuda") as up:
                up(head, 2)
        except DeviceError as error:
            pytest.skip(f"cuda could not be loaded here: {error}")
        free.append(device.free_bytes())
    assert free[3] - free[-1] < 32 << 20
    device.close()


def test_it_lives_beside_torch(gpu: Upscaler, head: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    before = gpu(head, 2)
    square = torch.ones(64, 64, device="cuda")
    np.testing.assert_array_equal(gpu(head, 2), before)
    assert float((square @ square).sum()) == 64.0**3


@pytest.mark.parametrize("library", ["pycuda", "cuda.bindings"])
def test_the_kernel_by_either_library(library: str, head: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library)
    if library == "cuda.bindings":
        monkeypatch.setitem(sys.modules, "pycuda", None)
    try:
        with Upscaler.load(device="cuda") as up, Upscaler.load(device="cpu") as cpu:
            np.testing.assert_allclose(up(head, "2.1"), cpu(head, "2.1"), rtol=0, atol=3e-3 * np.ptp(head))
    except DeviceError as error:
        pytest.skip(f"cuda could not be loaded here: {error}")
