"""Arrays that are in the GPU's memory, through `Upscaler`: what comes back is there too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from runtime import ImageError, Upscaler
from runtime.intensity import Intensity
from tests.fake.test_native_engine import Foreign, moved, read

IMAGE = np.random.default_rng(0).random((24, 30)) * 900


@pytest.fixture(scope="module")
def gpu() -> Iterator[Upscaler]:
    with Upscaler.load(device="tensorrt") as up:
        yield up


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int16])
@pytest.mark.parametrize("scale", ["2", "2.1", "1.7320508", ("2", "3")], ids=str)
def test_equals_the_same_array_on_the_host(gpu: Upscaler, dtype: type, scale: str) -> None:
    image = IMAGE.astype(dtype)
    actual = gpu(Foreign(image), scale, acquired="stored")
    expected = gpu(image, scale, acquired="stored")
    assert actual.__cuda_array_interface__["typestr"] == "<f4"
    np.testing.assert_allclose(read(actual), expected, rtol=0, atol=3e-3 * np.ptp(image))  # half precision: other roundings


def test_pixels_stay_on_the_gpu(gpu: Upscaler) -> None:
    image = IMAGE.astype(np.float32)
    foreign = Foreign(image)
    gpu(foreign, 2, acquired="stored")  # the scale's table goes up
    up, down = moved()
    gpu(foreign, 2, acquired="stored")
    now_up, now_down = moved()
    assert now_up - up < 16
    assert now_down - down <= image.nbytes + 16  # once, for its range


def test_nothing_is_copied_where_the_volume_was_measured_before(gpu: Upscaler) -> None:
    volume = np.stack([IMAGE, 0.5 * IMAGE]).astype(np.float32)
    known = {"acquired": gpu.measure(volume), "levels": Intensity.of(volume)}
    foreign = Foreign(volume[1])
    gpu(foreign, 2, **known)  # the scale's table goes up
    before = moved()
    actual = gpu(foreign, 2, **known)
    assert np.subtract(moved(), before).tolist() == [4, 4]  # whether a pixel was not finite
    np.testing.assert_allclose(read(actual), gpu(volume, 2, **known)[1], rtol=0, atol=3e-3 * 900)


def test_a_volume_and_tiles(gpu: Upscaler) -> None:
    stack = np.stack([IMAGE, IMAGE[::-1], 0.5 * IMAGE]).astype(np.float32)
    foreign = Foreign(stack.reshape(-1, 30))
    foreign.__cuda_array_interface__ |= {"shape": stack.shape}
    expected = gpu(stack, "2.1", acquired="stored")
    with Upscaler.load(device="tensorrt", tile=16) as small:
        for up in (gpu, small):
            actual = read(up(foreign, "2.1", acquired="stored"))
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-3 * np.ptp(stack))


@pytest.mark.parametrize("arguments", [{"grain": 0.5}, {"acquired": (18, 30)}, {}])
def test_what_the_host_must_do_gives_an_array_on_the_gpu_too(gpu: Upscaler, arguments: dict[str, object]) -> None:
    image = IMAGE.astype(np.float32)
    if not arguments:
        image[3:5] = -32768  # set aside
    expected = gpu(image, 2, **arguments)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read(gpu(Foreign(image), 2, **arguments)), expected)  # type: ignore[arg-type]


def test_an_ensemble_takes_arrays_of_the_host(gpu: Upscaler) -> None:
    with Upscaler.load(device="cpu", ensemble=True) as cpu:
        expected = cpu(IMAGE, "2.1")
    with Upscaler.load(device="tensorrt", ensemble=True) as mean:
        np.testing.assert_allclose(mean(IMAGE, "2.1"), expected, rtol=0, atol=3e-3 * np.ptp(IMAGE))
        with pytest.raises(ImageError, match=r"mean of 8\) computes: copy it"):
            mean(Foreign(IMAGE), 2)


def test_an_engine_elsewhere_and_shapes_that_are_no_slices_are_refused(gpu: Upscaler) -> None:
    with Upscaler.load(device="cpu") as cpu, pytest.raises(ImageError, match=r"memory, and cpu \(.* computes: copy it"):
        cpu(Foreign(IMAGE), 2)
    with pytest.raises(ImageError, match="holds no structure"):
        gpu(Foreign(IMAGE[:1]), 2)
