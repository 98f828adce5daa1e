"""Arrays that are in the GPU's memory, through `Upscaler`: what comes back is there too.

The CPU's provider plays ONNX Runtime's CUDA: memory of the GPU is the host's here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime import ClosedError, DeviceError, ImageError, Upscaler
from runtime.engines import ort
from runtime.intensity import Intensity
from tests.fake.test_native_engine import Foreign, cuda, moved, read

IMAGE = np.random.default_rng(0).random((24, 30)) * 900


@pytest.fixture(scope="module", params=["tensorrt", "cuda"], autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ort.DEVICES, "cuda", replace(ort.DEVICES["cpu"], half=True))
        yield request.param


@pytest.fixture(scope="module")
def gpu(device: str) -> Iterator[Upscaler]:
    with Upscaler.load(device=device) as up:
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


def test_a_volume_and_tiles(gpu: Upscaler, device: str) -> None:
    stack = np.stack([IMAGE, IMAGE[::-1], 0.5 * IMAGE]).astype(np.float32)
    foreign = Foreign(stack.reshape(-1, 30))
    foreign.__cuda_array_interface__ |= {"shape": stack.shape}
    expected = gpu(stack, "2.1", acquired="stored")
    with Upscaler.load(device=device, tile=16) as small:
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


def test_an_ensemble_takes_arrays_of_the_host(device: str) -> None:
    with Upscaler.load(device="cpu", ensemble=True) as cpu:
        expected = cpu(IMAGE, "2.1")
    with Upscaler.load(device=device, ensemble=True) as mean:
        np.testing.assert_allclose(mean(IMAGE, "2.1"), expected, rtol=0, atol=3e-3 * np.ptp(IMAGE))
        with pytest.raises(ImageError, match=r"mean of 8\) computes: copy it"):
            mean(Foreign(IMAGE), 2)


def test_an_engine_elsewhere_and_shapes_that_are_no_slices_are_refused(gpu: Upscaler) -> None:
    with Upscaler.load(device="cpu") as cpu, pytest.raises(ImageError, match=r"memory, and cpu \(.* computes: copy it"):
        cpu(Foreign(IMAGE), 2)
    with pytest.raises(ImageError, match="holds no structure"):
        gpu(Foreign(IMAGE[:1]), 2)


def test_an_image_that_another_library_still_computes_is_waited_for(gpu: Upscaler) -> None:
    image = IMAGE.astype(np.float32)
    known = {"acquired": "stored", "levels": Intensity.of(image)}
    source = Foreign(image, stream=cuda.fake_stream())
    assert np.isnan(read(source)).all()
    out = read(gpu(source, 2, **known))  # type: ignore[arg-type]
    np.testing.assert_allclose(out, gpu(image, 2, **known), rtol=0, atol=3e-3 * 900)  # type: ignore[arg-type]


def test_arrays_need_cuda_bindings_and_images_of_the_host_do_not(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "tensorrt":
        pytest.skip("tensorrt needs them for both")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with Upscaler.load(device=device) as up:
        up(IMAGE, 2)
        with pytest.raises(DeviceError, match=r"cuda-bindings cannot be used .*: pip install cuda-bindings"):
            up(Foreign(IMAGE.astype(np.float32)), 2)


def test_closing_lets_go_of_the_gpu_and_results_stay(device: str) -> None:
    image, left = Foreign(IMAGE.astype(np.float32)), cuda.fake_left()
    with Upscaler.load(device=device) as up:
        out = up(image, 2, acquired="stored")
        before = read(out)
    np.testing.assert_array_equal(read(out), before)
    with pytest.raises(ClosedError):
        up(image, 2)
    del out
    assert cuda.fake_left() == left


def test_in_single_precision_it_equals_the_cpu(device: str, gpu: Upscaler) -> None:
    image, single = IMAGE.astype(np.float32), replace(gpu.bundle, model=replace(gpu.bundle.model, precision="float32"))
    with Upscaler.load(single, device=device) as up, Upscaler.load(device="cpu") as cpu:
        for scale in ("2", "1.7320508"):
            actual, expected = read(up(Foreign(image), scale)), cpu(image, scale)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.ptp(image))


def test_a_trunk_that_fails_is_an_error_and_what_lacks_memory_gets_smaller_tiles(
    gpu: Upscaler, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "tensorrt":
        pytest.skip("tests/fake/test_native_engine.py has these")
    run, image, said = ort.Opener._run, np.zeros((200, 30), np.float32), ["out of memory"]
    image[:, ::3] = 900
    expected = read(gpu(Foreign(image), 2, acquired="stored"))

    def failing(self: ort.Opener, session: Any, feeds: Any, outputs: Any) -> Any:
        if "image" in feeds and feeds["image"].shape[2] > 190:
            raise self.failure(RuntimeError(said[0]))
        return run(self, session, feeds, outputs)

    monkeypatch.setattr(ort.Opener, "_run", failing)
    with Upscaler.load(device=device) as up:
        np.testing.assert_allclose(read(up(Foreign(image), 2, acquired="stored")), expected, rtol=0, atol=3e-3 * 900)
        said[0] = "an illegal memory access was encountered"
    with Upscaler.load(device=device) as up, pytest.raises(DeviceError, match="CUDA: an illegal memory access"):
        up(Foreign(image), 2)
