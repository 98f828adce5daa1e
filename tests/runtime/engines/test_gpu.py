"""The GPU's engine on the host: the same source of the kernel, the same way of a pixel, the same result as the CPU's engine."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from runtime import ClosedError, DeviceError, DeviceMemoryError, Upscaler, engines, grid
from runtime.acquired import Acquired, Band
from runtime.bundle import Bundle
from runtime.engines import cuda, gpu
from runtime.intensity import Intensity
from runtime.phases import WeightPredictor
from tests.runtime.engines import host

# Tables are half precision on a GPU, coefficients to 5e-4 of themselves; everything else is float32 here.
FLOAT, HALF = 1e-3, 3e-3


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host.compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def driver(kernels: ctypes.CDLL) -> host.HostDriver:
    return host.HostDriver(kernels)


def upscaler(bundle: Bundle, driver: host.HostDriver, half: bool = True, tile: int = 512) -> Upscaler:
    return Upscaler(bundle, host.load(bundle, driver, half), tile)


@pytest.fixture(scope="session")
def exact(shipped: Upscaler) -> Upscaler:
    """The CPU's engine with the tables that a GPU has: what is left of a difference is arithmetic."""

    class Half(WeightPredictor):
        def table(self, scales: grid.Scales) -> np.ndarray:
            return super().table(scales).astype(np.float16).astype(np.float32)

    engine = engines.CpuEngine.load(shipped.bundle)
    engine._predictor = Half(**vars(engine._predictor))
    return Upscaler(shipped.bundle, engine, 512)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
def test_equals_the_cpus_at_every_scale_of_the_paper(
    exact: Upscaler, driver: host.HostDriver, head: np.ndarray, half: bool
) -> None:
    """In half precision: of responses, weights and sums of 576 products, each rounded to 5e-4 of itself."""
    with upscaler(exact.bundle, driver, half) as up:
        ours, theirs = up.encode(head), exact.encode(head)
        for scale in grid.PAPER_SCALES:
            actual, expected = ours.render(scale), theirs.render(scale)
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=0, atol=(HALF if half else 1e-4) * np.ptp(head))


@pytest.mark.parametrize("scale", [("2", "3"), ("1.1", "3.9"), ("32/15", "1"), ("15/11", "16"), ("1.5707963", "2.7182818")])
def test_axes_windows_batches_and_scales_without_a_table(
    random_upscaler: Upscaler, driver: host.HostDriver, head: np.ndarray, scale: tuple[str, str]
) -> None:
    with upscaler(random_upscaler.bundle, driver, half=False) as up:
        pair = np.stack([head, head[::-1]])
        actual, expected = up(pair, scale), random_upscaler(pair, scale)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT * np.ptp(expected))
        window = (3, 5, 20, 17)
        part = up.encode(pair[0]).render(scale, window=window)
        whole = up.encode(pair[0]).render(scale)
        np.testing.assert_array_equal(part, whole[3:23, 5:22])


def test_tiles_do_not_show(exact: Upscaler, driver: host.HostDriver, head: np.ndarray) -> None:
    with upscaler(exact.bundle, driver, half=False) as up:
        whole = up(head, "2.1")
    with upscaler(exact.bundle, host.HostDriver(driver._kernels), half=False, tile=17) as up:
        np.testing.assert_allclose(up(head, "2.1"), whole, rtol=0, atol=1e-5 * np.ptp(head))


def test_half_precision_that_overflows_is_computed_again_in_float32(
    exact: Upscaler, driver: host.HostDriver, head: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    engine = host.load(exact.bundle, driver, half=True)
    run = engine._trunk.run

    def overflow(image: cuda.Array, told: cuda.Array | None, responses: cuda.Array) -> None:
        run(image, told, responses)
        ctypes.memmove(responses.pointer + 2 * 41 * 500, np.float16(np.inf).tobytes(), 2)  # one number of one pixel

    engine._trunk.run = overflow  # type: ignore[method-assign]
    with Upscaler(exact.bundle, engine, 512) as up, caplog.at_level(logging.WARNING):
        view = up.encode(head)
        actual = view.render(2)
        assert [record.getMessage() for record in caplog.records] == [
            "half precision overflowed: this image is computed again in float32"
        ]
        np.testing.assert_allclose(actual, exact(head, 2), rtol=0, atol=1e-4 * np.ptp(head))
        view.render(3)
        assert len(caplog.records) == 1  # the view keeps the better responses


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
def test_a_told_trunk_equals_the_cpus(told: Bundle, driver: host.HostDriver, head: np.ndarray, half: bool) -> None:
    with upscaler(told, driver, half) as up, Upscaler.of(told, device="cpu") as cpu:
        for sigma in (0.0, 0.02, 0.05):
            tolerance = (HALF if half else FLOAT) * np.ptp(head)
            np.testing.assert_allclose(noisy(up, head, sigma), noisy(cpu, head, sigma), rtol=0, atol=tolerance)


def test_what_is_computed_again_is_told_the_same_noise(told: Bundle, driver: host.HostDriver, head: np.ndarray) -> None:
    engine = host.load(told, driver, half=True)
    run = engine._trunk.run

    def overflow(image: cuda.Array, told: cuda.Array | None, responses: cuda.Array) -> None:
        run(image, told, responses)
        ctypes.memset(responses.pointer, 0xFF, responses.nbytes)  # NaN

    engine._trunk.run = overflow  # type: ignore[method-assign]
    with Upscaler(told, engine, 512) as up, Upscaler.of(told, device="cpu") as cpu:
        np.testing.assert_allclose(noisy(up, head, 0.05), noisy(cpu, head, 0.05), rtol=0, atol=FLOAT * np.ptp(head))


def noisy(up: Upscaler, image: np.ndarray, sigma: float) -> np.ndarray:
    """Twice as large, told that noise."""
    twice = (Fraction(2), Fraction(2))
    return up.slices.upscale(image, Intensity.of(image), twice, np.float32, Acquired((Band(), Band()), sigma))


def test_what_is_not_finite_in_float32_either_is_an_error(exact: Upscaler, driver: host.HostDriver, head: np.ndarray) -> None:
    class Wrong(WeightPredictor):
        def table(self, scales: grid.Scales) -> np.ndarray:
            return np.full((2, 2, exact.bundle.model.basis), np.nan, np.float32)

    wrong = Wrong(**vars(exact.bundle.predictor()))
    with Upscaler(exact.bundle, host.load(exact.bundle, driver, True, wrong), 512) as up:
        with pytest.raises(DeviceError, match="not finite"):
            up(head, 2)
        assert np.isfinite(up(head, 1.7320508)).all()  # by the predictor: it is usable


def test_out_of_memory_halves_the_tiles_and_says_so(
    exact: Upscaler, driver: host.HostDriver, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.random.default_rng(0).random((400, 380), np.float32)
    with upscaler(exact.bundle, driver, half=False, tile=400) as up:
        expected, needed = up(image, 2), driver.most
    # A tile half as large has, with its halo of 46 pixels on one side, 0.38 of the pixels.
    small = host.HostDriver(driver._kernels, limit=needed // 2)
    with upscaler(exact.bundle, small, half=False, tile=400) as up, caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(up(image, 2), expected, rtol=0, atol=1e-5)
        assert "going on with tiles of 200 pixels in place of 400" in caplog.text
        view = up.encode(image[:60, :60])
        np.testing.assert_allclose(view.render(2), up(image[:60, :60], 2), rtol=0, atol=1e-5)
    tiny = host.HostDriver(driver._kernels, limit=1 << 17)
    with upscaler(exact.bundle, tiny, half=False) as up, pytest.raises(DeviceMemoryError, match="out of memory"):
        up(image, 2)


def test_a_thousand_scales_and_shapes_leave_memory_flat(
    exact: Upscaler, driver: host.HostDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_CACHED", 1 << 20)  # or they would take two thousand calls to fill it
    rng = np.random.default_rng(0)
    image = rng.random((24, 24), np.float32)
    curve = []
    with upscaler(exact.bundle, driver) as up:
        for k in range(1000):
            up(image[: 8 + k % 16, : 9 + k % 15], f"{1 + k % 97 / 32}")
            curve.append(driver.used)
    # The cache, a quarter more for whole blocks, and spare blocks of each size that was ever needed: 4 MB seen.
    assert max(curve) < 5 << 20
    assert max(curve[500:]) <= 1.05 * max(curve[:500])


def test_threads_take_turns(exact: Upscaler, driver: host.HostDriver, head: np.ndarray) -> None:
    scales = [grid.PAPER_SCALES[k % 6] for k in range(24)]
    with upscaler(exact.bundle, driver) as up, ThreadPoolExecutor(8) as pool:
        expected = [up(head, r) for r in scales]
        for actual, wanted in zip(pool.map(lambda r: up(head, r), scales), expected):
            np.testing.assert_array_equal(actual, wanted)


def test_close_frees_everything_once_and_is_final(exact: Upscaler, driver: host.HostDriver, head: np.ndarray) -> None:
    up = upscaler(exact.bundle, driver)
    view = up.encode(head)
    view.render(2)
    engine = up.slices.engine
    up.close()
    up.close()
    assert (driver.used, driver.streams, driver.released, driver.depth) == (0, 0, True, 0)
    for use in (lambda: view.render(2), lambda: up(head, 2), lambda: engine.encode(head)):
        with pytest.raises(ClosedError):
            use()
    gc.collect()  # arrays that outlive their device are no trouble
    engine.close()


def test_closing_amid_the_work_of_others_is_an_error_for_them_only(
    exact: Upscaler, driver: host.HostDriver, head: np.ndarray
) -> None:
    up = upscaler(exact.bundle, driver)
    said: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                up(head, 2)
        except BaseException as error:
            said.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    up(head, 2)
    up.close()
    for thread in threads:
        thread.join(timeout=30)
    assert [type(error) for error in said] == [ClosedError] * 3
    assert driver.used == 0


def test_a_device_that_fails_to_load_is_let_go(
    shipped: Upscaler, driver: host.HostDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No silent fallback: `cuda` fails, `auto` says from what to what and why, and computes on the CPU."""
    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)
    monkeypatch.setattr(cuda, "open_driver", lambda: driver)
    with pytest.raises(DeviceError, match=r"onnxruntime.*has no CUDAExecutionProvider.*pip uninstall"):
        Upscaler.of(shipped.bundle, device="cuda")
    assert driver.released
    monkeypatch.setattr(cuda, "open_driver", lambda: host.HostDriver(driver._kernels))
    with caplog.at_level(logging.WARNING), Upscaler.of(shipped.bundle, device="auto") as up:
        assert up.device == "cpu"
    assert len(caplog.records) == 1
    assert "the CPU computes, not cuda: onnxruntime" in caplog.text


def test_integers_are_refused_on_a_gpu(driver: host.HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.read(Path(__file__).parents[3] / "runtime" / "fast.bundle")
    with pytest.raises(DeviceError, match="8-bit integers, which is for CPUs: give the one exported without --int8"):
        gpu.load(bundle, "cuda", 512, None)
