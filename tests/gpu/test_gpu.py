"""On a GPU, or on a program that does as if it were one: `python -m pytest -m gpu`, or `make gpu`, which measures too.

Needs no network, and of the packages only pytest beside the runtime's own. `.ci/run` runs it on lavapipe, which computes Vulkan
on the CPU: images are small there.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime import DeviceError, Upscaler, engines, grid
from runtime.acquired import STORED
from runtime.bundle import Bundle
from runtime.engines import ort
from runtime.intensity import Intensity
from runtime.scan import Scan

pytestmark = pytest.mark.gpu

SINGLE, HALF = 1e-5, 3e-3  # of the range: float32 sums in another order; half precision has 11 bits of each number
SCALES = ("2", "2.1", "4", "1.7320508", ("2", "3"))


def reason_to_skip(device: str) -> str:
    """Why a device is not tested here; nothing where it is there, whether it works or not."""
    if device != "gpu":
        return "" if engines.driver_is_installed() else "needs an NVIDIA GPU: this machine has no NVIDIA driver"
    try:
        ort.adapter()
    except ort.Absent as error:
        return f"needs a GPU, or ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 and lavapipe: {error.problem}"
    return ""


def is_software() -> bool:
    """Whether a program does as if it were the GPU: lavapipe, or the driver of tests/fake."""
    return bool(os.environ.get("FAKE_GPU")) or (not engines.driver_is_installed() and not ort.is_hardware(ort.adapter()))


@pytest.fixture(scope="module", params=["gpu", "cuda", "tensorrt"])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if said := reason_to_skip(name):
        pytest.skip(said)
    return name


@pytest.fixture(scope="module")
def gpu(device: str) -> Iterator[Upscaler]:
    try:
        up = Upscaler.load(device=device)
    except DeviceError as error:
        if "not installed" in error.problem or "has no" in error.problem:  # the packages are of another device
            pytest.skip(f"{device} could not be loaded here: {error}")
        raise
    with up:
        yield up


@pytest.fixture
def single(gpu: Upscaler, device: str) -> Iterator[Upscaler]:
    """In single precision."""
    bundle = gpu.bundle
    with Upscaler.load(replace(bundle, model=replace(bundle.model, precision="float32")), device=device) as up:
        yield up


@pytest.fixture
def image() -> np.ndarray:
    size = 16 if is_software() else 96
    return np.random.default_rng(0).random((size, size), np.float32) * 900


def tolerance(up: Upscaler) -> float:
    return HALF if "float16" in up.runs_on else SINGLE


def near(actual: np.ndarray, expected: np.ndarray, part: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=part * np.ptp(expected))


def test_it_is_the_device_that_computes(gpu: Upscaler, device: str) -> None:
    assert gpu.device == device
    assert gpu.slices.engine.in_flight == 2


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_equals_the_cpu(gpu: Upscaler, shipped: Upscaler, image: np.ndarray, scale: grid.ScaleLike) -> None:
    near(gpu(image, scale), shipped(image, scale), tolerance(gpu))


def test_equals_the_cpu_at_every_scale_of_the_paper(gpu: Upscaler, shipped: Upscaler, image: np.ndarray) -> None:
    if is_software():
        pytest.skip("a program that does as if takes seconds for each scale")
    for scale in grid.PAPER_SCALES:
        near(gpu(image, scale), shipped(image, scale), tolerance(gpu))


def test_in_single_precision_it_is_nearer(single: Upscaler, shipped: Upscaler, image: np.ndarray) -> None:
    for scale in SCALES[:2]:
        near(single(image, scale), shipped(image, scale), SINGLE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_any_type_of_pixels_and_values_that_are_set_aside(
    gpu: Upscaler, shipped: Upscaler, image: np.ndarray, dtype: type
) -> None:
    pixels = (image / 4).astype(dtype)
    if dtype != np.uint8:
        pixels[3:6] = -32768
    for grain in (0.0, 0.7):
        near(gpu(pixels, 2, grain=grain), shipped(pixels, 2, grain=grain), tolerance(gpu))


def test_it_tells_the_uncertainty_of_the_cpu(gpu: Upscaler, shipped: Upscaler, image: np.ndarray) -> None:
    for scale in (2, ("1.7320508", "3")):
        found, expected = (up(image, scale, uncertainty=True)[1] for up in (gpu, shipped))
        near(found, expected, 10 * tolerance(gpu))  # an exponential


def test_a_window_is_that_part_of_the_whole(gpu: Upscaler, image: np.ndarray) -> None:
    for scale in ("2", "1.7320508"):
        view = gpu.encode(image)
        whole = view.render(scale)
        near(view.render(scale, window=(3, 5, 20, 17)), whole[3:23, 5:22], SINGLE)


def test_tiles_and_skipped_background_do_not_show(device: str, gpu: Upscaler) -> None:
    """A network with a small radius, whose tiles and background are small too."""
    pytest.importorskip("torch", reason="the network with a small radius is made by torch")
    from tests.conftest import bundle_of, random_generator

    bundle: Bundle = bundle_of(random_generator("told"), half=False)
    image = np.zeros((40, 76), np.float32)
    image[2:8, 60:70] = np.random.default_rng(0).random((6, 10))
    for scale in ("2", "1.7320508"):
        with Upscaler.load(bundle, device="cpu") as cpu:
            expected = cpu(image, scale, acquired=STORED)
        for tile in (512, 38):
            with Upscaler.load(bundle, device=device, tile=tile) as up:
                near(up(image, scale, acquired=STORED), expected, SINGLE)


def test_an_acquired_matrix_smaller_than_the_stored_one(gpu: Upscaler, shipped: Upscaler, image: np.ndarray) -> None:
    matrix = (len(image) * 3 // 4, len(image))
    near(gpu(image, 2, acquired=matrix), shipped(image, 2, acquired=matrix), tolerance(gpu))


def test_threads_get_what_one_alone_gets(gpu: Upscaler, image: np.ndarray) -> None:
    whole = gpu(image, 2)
    with ThreadPoolExecutor(4) as pool:
        for actual in pool.map(lambda _: gpu(image, 2), range(12)):
            np.testing.assert_array_equal(actual, whole)


def test_a_volume_through_plane(gpu: Upscaler, shipped: Upscaler, image: np.ndarray) -> None:
    scan = Scan(np.stack([image, image[::-1], image.T, image[:, ::-1]]), (2.0, 1.0, 1.0), np.diag([2.0, 1, 1, 1]))
    actual, expected = (up.volume(scan, isotropic=True).pixels for up in (gpu, shipped))
    assert actual.shape == (8, *image.shape)
    near(actual, expected, tolerance(gpu))


def test_two_hundred_slices_leave_memory_where_it_was(gpu: Upscaler, image: np.ndarray) -> None:
    intensity = Intensity.of(image)
    scales = grid.parse_scales("2")

    def slices(count: int) -> int:
        for _ in range(count):
            gpu.slices.upscale(image, intensity, scales, np.float32)
        gc.collect()
        return used(gpu.device)

    slices(20)
    before = slices(1)
    assert slices(200) - before < 8 << 20  # the features of one slice of 16×16 would be 8 MB by now, those of a larger one more


def test_lifetimes_leave_memory_where_it_was(device: str, gpu: Upscaler, image: np.ndarray) -> None:
    curve = []
    for _ in range(6):
        with Upscaler.load(device=device) as up:
            up(image, 2)
        gc.collect()
        curve.append(used(device))
    assert curve[-1] - curve[2] < 24 << 20  # three times the weights, in the memory of host and device, would be 30 MB


def test_it_lives_beside_torch(gpu: Upscaler, image: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    before = gpu(image, 2)
    square = torch.ones(64, 64, device="cuda")
    np.testing.assert_array_equal(gpu(image, 2), before)
    assert float((square @ square).sum()) == 64.0**3


def used(device: str) -> int:
    """Bytes of this process, or on the NVIDIA GPU."""
    if device != "gpu":
        from runtime.engines import cuda

        free, total = cuda.Device().memory()
        return total - free
    if sys.platform != "linux":
        pytest.skip("/proc/self/statm tells a process's memory on Linux alone")
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
