"""The native engine on a GPU that is none: the real cuda-bindings on a driver that executes the kernels on the host."""

from __future__ import annotations

import ctypes
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tensorrt as fake_tensorrt

from runtime import ClosedError, DeviceError, DeviceMemoryError, ImageError, Upscaler, bundle, grid
from runtime.bundle import Bundle
from runtime.engines import native, tensorrt
from runtime.engines.tensorrt import TensorRtEngine
from runtime.grid import Span
from runtime.intensity import Intensity

ROOT = Path(__file__).parents[2]
cuda = ctypes.CDLL("libcuda.so.1")
cuda.fake_stream.restype = ctypes.c_long
OTHER_CONTEXT = 0x20
LEGACY = 0
OUT_OF_MEMORY, NO_DEVICE, ILLEGAL_ADDRESS, UNSUPPORTED_PTX = 2, 100, 700, 222
SHAPE = 20, 26
FLOAT, HALF = 1e-5, 3e-3  # of the range: sums in another order; 11 significant bits in the trunk
TOLD = (0.03, 0.1, 0.0)


class Foreign:
    """An array of another library's, in memory that it allocated; kernels of its own write it on a stream."""

    def __init__(self, array: np.ndarray, stream: int | None = None, context: int = 0x10, step: int = 1, **face: Any) -> None:
        memory = np.zeros((array.shape[0], array.shape[1] * step), array.dtype)
        memory[:, ::step] = array
        pointer = ctypes.c_uint64()
        assert not cuda.fake_allocate(ctypes.byref(pointer), ctypes.c_size_t(memory.nbytes), ctypes.c_void_p(context))
        self.pointer, self.shape = pointer.value, array.shape
        where = ctypes.c_void_p(stream or LEGACY)
        cuda.fake_write(pointer, ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), where)
        strides = None if step == 1 else (memory.strides[0], memory.strides[1] * step)
        base = {"shape": array.shape, "typestr": array.dtype.str, "data": (self.pointer, False), "version": 3}
        self.__cuda_array_interface__ = base | {"strides": strides, "stream": stream} | face

    def __del__(self) -> None:
        cuda.fake_free(ctypes.c_uint64(self.pointer))


def read(array: Any) -> np.ndarray:
    """What lies in the GPU's memory now, whether or not it is done."""
    face = array.__cuda_array_interface__
    out = np.empty(face["shape"], face["typestr"])
    cuda.fake_read(ctypes.c_void_p(out.ctypes.data), ctypes.c_uint64(face["data"][0]), ctypes.c_size_t(out.nbytes))
    return out


def count(what: str) -> int:
    return int(cuda.fake_calls(what.encode()))


def moved() -> tuple[int, int]:
    """Bytes that went up to the GPU, and down."""
    return int(cuda.fake_bytes(b"up")), int(cuda.fake_bytes(b"down"))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Every test leaves the GPU as it found it: nothing that is held, no context, nothing written beside an array."""
    yield
    gc.collect()
    cuda.fake_limit(ctypes.c_size_t(1 << 40))
    fake_tensorrt.failing.clear()
    fake_tensorrt.overflowing.clear()
    assert (cuda.fake_left(), cuda.fake_depth(), cuda.fake_broken(), fake_tensorrt.alive) == (0, 0, 0, [])


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.read(ROOT / "runtime" / "brain.bundle")


@pytest.fixture(scope="module")
def single(shipped: Bundle) -> Bundle:
    """The same, whose trunk computes in float32."""
    return replace(shipped, model=replace(shipped.model, precision="float32"))


@pytest.fixture(scope="module", params=["half", "float"])
def bundle_(request: pytest.FixtureRequest, shipped: Bundle, single: Bundle) -> Bundle:
    return shipped if request.param == "half" else single


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.float32)


def load(bundle: Bundle, folder: Path) -> TensorRtEngine:
    return tensorrt.TensorRtEngine(bundle, 64, folder)


def spans(scales: grid.Scales, window: tuple[int, int, int, int] | None = None) -> tuple[Span, Span]:
    axes = [grid.project(n, r, "centred") for n, r in zip(SHAPE, scales)]
    top, left, height, width = window or (0, 0, axes[0].n_out, axes[1].n_out)
    return Span(axes[0], top, top + height, 0, SHAPE[0]), Span(axes[1], left, left + width, 0, SHAPE[1])


def upscaled(engine: TensorRtEngine, image: Any, levels: Intensity, *scale: str, out: Any = None, told: Any = TOLD) -> Any:
    scales = Fraction(scale[0]), Fraction(scale[-1])
    rows, cols = spans(scales)
    out = np.empty((len(rows), len(cols)), np.float32) if out is None else out
    engine.render(engine.encode(image, levels, told), rows, cols, scales, levels, out)
    return out


def expected(bundle: Bundle, image: np.ndarray, levels: Intensity, *scale: str) -> np.ndarray:
    """The same by docs/bundle-format.md: the trunk on the CPU, and the predictor for every pixel."""
    model, scales = bundle.model, (Fraction(scale[0]), Fraction(scale[-1]))
    width = levels.white - levels.black
    standard = ((image - levels.black) / width - model.mean) / model.std
    session = onnxruntime.InferenceSession(bundle.trunk(False), providers=["CPUExecutionProvider"])
    feeds = {"image": standard[None, None].astype(np.float32), "told": np.array(TOLD, np.float32)}
    features = session.run(None, feeds)[0][0]
    rows, cols = spans(scales)
    own = features[rows.axis.source[:, None], cols.axis.source]
    hidden_rows, hidden_cols = bundle.predictor().hidden_parts(rows.offset, cols.offset, scales)
    coefficients = np.maximum(hidden_rows[:, None] + hidden_cols, 0) @ bundle.predictor().w2.T + bundle.predictor().b2
    taps = [grid.skip_taps(span.axis.scale, "centred", span.offset) for span in (rows, cols)]
    skip = np.einsum("ik,jl,ijkl->ij", *taps, own[..., model.basis :].reshape(*own.shape[:2], 3, 3))
    y = (own[..., : model.basis] * coefficients).sum(-1) + skip
    return np.clip((y * model.std + model.mean) * width + levels.black, levels.low, levels.high)


@pytest.mark.parametrize("scale", [("2",), ("2.1",), ("4",), ("1.7320508",), ("2", "3"), ("1.5707963", "16/15")], ids=str)
def test_pixels_are_those_of_the_specification(bundle_: Bundle, image: np.ndarray, scale: Any, tmp_path: Path) -> None:
    levels = Intensity(low=10.0, high=900.0, black=50.0, white=850.0)  # narrower than the pixels: the clip shows
    engine = load(bundle_, tmp_path)
    tolerance = (HALF if bundle_.has_half else FLOAT) * 900
    wanted = expected(bundle_, image, levels, *scale)
    np.testing.assert_allclose(upscaled(engine, image, levels, *scale), wanted, rtol=0, atol=tolerance)
    assert {10.0, 900.0} <= {*wanted.ravel()}
    engine.close()


def test_windows_and_strided_outputs_hold_the_pixels_of_the_whole(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, levels, scales = load(single, tmp_path), Intensity.of(image), (Fraction("2.1"), Fraction("1.7320508"))
    whole = upscaled(engine, image, levels, "2.1", "1.7320508")
    features, wide = engine.encode(image, levels, TOLD), np.zeros((20, 50), np.float32)
    engine.render(features, *spans(scales, (3, 5, 20, 17)), scales, levels, wide[:, 30:47])
    np.testing.assert_array_equal(wide[:, 30:47], whole[3:23, 5:22])
    assert not wide[:, :30].any()
    assert not wide[:, 47:].any()
    engine.close()


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("kind", ["f4", "f2", "u2", "i2", "u1", "i1"])
def test_arrays_on_the_gpu_are_read_as_they_are(single: Bundle, kind: str, step: int, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 100, SHAPE).astype(kind)
    engine, levels = load(single, tmp_path), Intensity.of(image)
    on_host = upscaled(engine, image.astype(np.float32), levels, "2")
    np.testing.assert_array_equal(upscaled(engine, Foreign(image, step=step), levels, "2"), on_host)
    engine.close()


def test_what_is_set_aside_counts_as_black(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    image[3:5] = -32768
    engine, levels = load(single, tmp_path), Intensity.of(image)
    assert levels.aside
    black = np.where(image < 0, np.float32(levels.black), image)
    on_host, filled = (upscaled(engine, x, replace(levels, aside=n), "2") for x, n in ((image, levels.aside), (black, 0)))
    np.testing.assert_allclose(on_host, filled, rtol=0, atol=FLOAT * 1000)
    engine.close()


def test_a_trunk_is_told_the_noise_of_each_image(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, levels = load(single, tmp_path), Intensity.of(image)
    little, much, again = (upscaled(engine, image, levels, "2", told=(sigma, 0.0, 0.0)) for sigma in (0.01, 0.05, 0.01))
    np.testing.assert_array_equal(again, little)
    assert np.abs(much - little).max() > 1e-3 * 1000
    engine.close()


def test_a_small_contrast_on_a_large_offset_is_kept(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, offset = load(single, tmp_path), np.float32(1 << 20)
    plain, shifted = (upscaled(engine, Foreign(x), Intensity.of(x), "2") for x in (image, image + offset))
    np.testing.assert_allclose(shifted, plain + offset, rtol=0, atol=0.2)  # float32 has steps of 0.125 there
    engine.close()


def test_what_float32_cannot_hold_is_refused(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine = load(single, tmp_path)
    for kind in ("f8", "i4", "c8", ">f4"):
        with pytest.raises(ImageError, match=r"on the GPU: give float32, or integers of at most 16 bits"):
            engine.encode(Foreign(image.astype(kind)), Intensity.of(image))
    with pytest.raises(ImageError, match="a mask or negative strides"):
        engine.encode(Foreign(image, mask=image), Intensity.of(image))
    with pytest.raises(ImageError, match="a mask or negative strides"):
        engine.encode(Foreign(image, strides=(104, -4)), Intensity.of(image))
    engine.close()


def test_an_array_stays_on_the_gpu_and_is_waited_for_once(shipped: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, levels = load(shipped, tmp_path), Intensity.of(image)
    wanted = upscaled(engine, image, levels, "2")
    with engine.working() as gpu:
        out = gpu.empty((40, 52), np.float32)
    upscaled(engine, Foreign(image), levels, "2", out=out)
    source, before, waits = Foreign(image), moved(), count("cuMemcpyDtoHAsync_v2")
    upscaled(engine, source, levels, "2", out=out)
    assert np.subtract(moved(), before).tolist() == [4, 4]  # whether a pixel was not finite
    assert count("cuMemcpyDtoHAsync_v2") == waits + 1
    np.testing.assert_array_equal(read(out), wanted)
    part = dict(out.__cuda_array_interface__, shape=(30, 10), strides=(208, 12))
    with engine.working() as gpu:
        np.testing.assert_array_equal(gpu.download(gpu.borrow(out)), wanted)
        borrowed = gpu.borrow(type("Part", (), {"__cuda_array_interface__": part}))
        np.testing.assert_array_equal(gpu.download(borrowed), wanted[:30, :30:3])
    engine.close()
    np.testing.assert_array_equal(read(out), wanted)  # it is the caller's


@pytest.mark.parametrize("whose", ["the default stream", "its own"])
def test_what_another_library_still_computes_is_waited_for(
    single: Bundle, image: np.ndarray, whose: str, tmp_path: Path
) -> None:
    engine, levels = load(single, tmp_path), Intensity.of(image)
    wanted = upscaled(engine, image, levels, "2")
    source = Foreign(image, stream=None if whose == "the default stream" else cuda.fake_stream())
    assert np.isnan(read(source)).all()
    np.testing.assert_array_equal(upscaled(engine, source, levels, "2"), wanted)
    engine.close()


def test_an_array_of_another_context_is_refused_with_the_repair(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine = load(single, tmp_path)
    on_host = type("OnHost", (), {"__cuda_array_interface__": image.__array_interface__})
    for array in (Foreign(image, context=OTHER_CONTEXT), on_host):
        with pytest.raises(DeviceError, match=r"not in the primary context of Fake T400: .*pycuda\.autoprimaryctx"):
            engine.encode(array, Intensity.of(image))
    engine.encode(Foreign(image, context=0), Intensity.of(image))  # a pool's memory has no context
    engine.close()


def test_a_context_of_another_library_stays_current(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    cuda.fake_push(ctypes.c_void_p(OTHER_CONTEXT))
    engine = load(single, tmp_path)
    upscaled(engine, image, Intensity.of(image), "2")
    engine.close()
    assert (cuda.fake_depth(), cuda.fake_context()) == (1, 2)
    cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def test_close_frees_everything_in_both_precisions(bundle_: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, levels = load(bundle_, tmp_path), Intensity.of(image)
    fake_tensorrt.overflowing.append(True)  # in half precision, so that there is a second trunk
    upscaled(engine, image, levels, "2")
    assert len(fake_tensorrt.alive) == 1 + bundle_.has_half
    features = engine.encode(image, levels, TOLD)
    engine.close()
    assert fake_tensorrt.alive == []
    engine.close()
    for use in (
        lambda: engine.encode(image, levels),
        lambda: upscaled(engine, image, levels, "2"),
        lambda: engine.render(features, *spans((Fraction(2),) * 2), (Fraction(2),) * 2, levels, np.empty((40, 52), "f4")),
        lambda: engine.working().__enter__(),
    ):
        with pytest.raises(ClosedError):
            use()


def test_close_after_an_error_of_the_driver_frees_the_rest(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine = load(single, tmp_path)
    upscaled(engine, image, Intensity.of(image), "2")
    cuda.fake_fail(b"cuStreamSynchronize", ILLEGAL_ADDRESS)
    engine.close()
    cuda.fake_fail(b"cuStreamSynchronize", 0)
    assert (fake_tensorrt.alive, cuda.fake_left()) == ([], 0)  # though somebody holds the engine


def test_only_a_lack_of_memory_is_one(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, levels = load(single, tmp_path), Intensity.of(image)
    fake_tensorrt.failing.append("an illegal memory access was encountered")
    with pytest.raises(DeviceError, match="illegal memory access") as error:
        engine.encode(image, levels, TOLD)
    assert not isinstance(error.value, DeviceMemoryError)
    fake_tensorrt.failing.clear()
    cuda.fake_fail(b"cuMemcpyDtoHAsync_v2", ILLEGAL_ADDRESS)
    with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS") as error:
        upscaled(engine, image, levels, "2")
    assert not isinstance(error.value, DeviceMemoryError)
    cuda.fake_fail(b"cuMemcpyDtoHAsync_v2", 0)
    wanted = upscaled(engine, image, levels, "2")
    cuda.fake_limit(ctypes.c_size_t(cuda.fake_used() + 50_000))
    with pytest.raises(DeviceMemoryError, match="the GPU is out of memory"):
        upscaled(engine, image, levels, "2")
    cuda.fake_limit(ctypes.c_size_t(1 << 40))
    np.testing.assert_array_equal(upscaled(engine, image, levels, "2"), wanted)
    engine.close()


def test_memory_comes_back(single: Bundle, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_CACHED", 1 << 18)
    engine, levels, seen = load(single, tmp_path), Intensity.of(image), []
    for k in range(40):
        upscaled(engine, image, levels, f"{1 + k / 16}", f"{1 + k / 8}")
        seen.append(int(cuda.fake_used()))
    assert max(seen) < 2 << 18  # the largest of what is kept, 0.2 MB, may come on top
    for _ in range(2):
        before = int(cuda.fake_used())
        upscaled(engine, image, levels, "2")
    assert int(cuda.fake_used()) == before
    features = 4 * image.size * (single.model.basis + 9)
    assert int(cuda.fake_most()) < max(seen) + features + 256 * image.size + (1 << 18)  # and TensorRT's, and the pixels
    engine.close()


def test_half_precision_that_overflows_is_computed_again_in_float32(
    shipped: Bundle, single: Bundle, image: np.ndarray, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    engine, exact, levels = load(shipped, tmp_path), load(single, tmp_path), Intensity.of(image)
    fake_tensorrt.overflowing.append(True)
    features, twice = engine.encode(image, levels, TOLD), (Fraction(2), Fraction(2))
    out, again = np.empty((40, 52), np.float32), np.empty((40, 52), np.float32)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        engine.render(features, *spans(twice), twice, levels, out)
        said = [record.getMessage() for record in caplog.records]
        engine.render(features, *spans(twice), twice, levels, again)
    assert "half precision overflowed: this image is computed again in float32" in said
    assert len(caplog.records) == len(said)  # the features are the better ones now
    np.testing.assert_array_equal(out, upscaled(exact, image, levels, "2"))
    np.testing.assert_array_equal(again, out)
    for one in (engine, exact):
        one.close()


def test_what_is_not_finite_in_float32_either_is_an_error(single: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    b2 = np.full(single.model.basis, np.inf, np.float32)
    broken = replace(single, files=single.files | {"predictor/b2.npy": bundle.array_bytes(b2)})
    engine = load(broken, tmp_path)
    with pytest.raises(
        DeviceError, match=r"tensorrt 10\.13\.0, float32, Fake T400: the result is not finite: use device 'cpu'"
    ):
        upscaled(engine, image, Intensity.of(image), "2")
    engine.close()


def test_threads_share_an_engine(shipped: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, levels = load(shipped, tmp_path), Intensity.of(image)
    scales = ["2", "2.1", "1.7320508", "3"] * 3
    alone = [upscaled(engine, image, levels, scale) for scale in scales]
    with ThreadPoolExecutor(8) as pool:
        for together, wanted in zip(pool.map(lambda scale: upscaled(engine, image, levels, scale), scales), alone):
            np.testing.assert_array_equal(together, wanted)
    engine.close()


def test_closing_amid_the_work_of_others_is_an_error_for_them_only(shipped: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    engine, said = load(shipped, tmp_path), []

    def work() -> None:
        try:
            while True:
                upscaled(engine, image, Intensity.of(image), "2")
        except BaseException as error:
            said.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    upscaled(engine, image, Intensity.of(image), "2")
    engine.close()
    for thread in threads:
        thread.join(timeout=30)
    assert said == [ClosedError] * 3


def test_an_engine_is_built_once_for_each_graph(
    shipped: Bundle, single: Bundle, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for _ in range(2):
        load(shipped, tmp_path).close()
    assert [record.getMessage() for record in caplog.records] == [
        "tensorrt 10.13.0 builds an engine for this GPU, once: this takes up to some minutes"
    ]
    load(single, tmp_path).close()
    tensorrt.TensorRtEngine(shipped, 65, tmp_path).close()
    assert len([*tmp_path.iterdir()]) == 3
    for path in tmp_path.iterdir():
        assert path.name.startswith("tensorrt_10.13.0_Fake_T400_7_5_1")  # 156 and 157 pixels, with the halo
        path.write_bytes(path.read_bytes()[:-1])
    load(shipped, tmp_path).close()
    assert "is damaged" in caplog.text


def test_an_engine_that_does_not_load_is_an_error_and_is_let_go(single: Bundle, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tensorrt, "build", lambda *_: b"of another version")
    with pytest.raises(
        DeviceError, match=r"load its engine: the serialization does not match: .*: metasrgan cache --clear"
    ) as error:
        load(single, tmp_path)
    assert not isinstance(error.value, DeviceMemoryError)


def test_a_process_that_ends_with_an_open_engine_says_nothing() -> None:
    code = """
import numpy
from runtime import Upscaler
up = Upscaler.load(device="tensorrt")
with up.slices.engine.working() as gpu:
    kept = [up.encode(numpy.eye(16)), gpu.empty((3, 3), "f4")]
kept.append(kept)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr in ("", "tensorrt 10.13.0 builds an engine for this GPU, once: this takes up to some minutes\n")


def test_load_proves_itself_by_an_image() -> None:
    fake_tensorrt.failing.append("no kernel image for this GPU")
    with pytest.raises(DeviceError, match=r"tensorrt 10\.13\.0, float16, Fake T400: .* failed: no kernel image for this GPU"):
        Upscaler.load(device="tensorrt")


def test_a_gpu_that_is_too_old_is_said(single: Bundle, tmp_path: Path) -> None:
    cuda.fake_capability(61)
    try:
        with pytest.raises(DeviceError, match=r"Fake T400 is older than compute capability 7\.5: use device 'gpu'"):
            load(single, tmp_path)
    finally:
        cuda.fake_capability(75)


@pytest.mark.parametrize(
    ("function", "status", "said"),
    [
        (b"cuInit", NO_DEVICE, "CUDA_ERROR_NO_DEVICE: nvidia-smi should list a GPU"),
        (b"cuModuleLoadData", UNSUPPORTED_PTX, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: install an NVIDIA driver of version 525"),
        (b"cuMemPoolCreate", 801, "CUDA_ERROR_NOT_SUPPORTED: install a newer NVIDIA driver"),
        (b"cuDevicePrimaryCtxRetain", OUT_OF_MEMORY, "the GPU is out of memory"),
    ],
)
def test_a_driver_that_refuses_is_quoted_and_let_go(
    single: Bundle, function: bytes, status: int, said: str, tmp_path: Path
) -> None:
    cuda.fake_fail(function, status)
    try:
        with pytest.raises(DeviceError, match=said):
            load(single, tmp_path)
    finally:
        cuda.fake_fail(function, 0)


def test_the_kernels_and_python_have_the_same_structs() -> None:
    assert (cuda.fake_sizes(0), cuda.fake_sizes(1)) == (native.IMAGE.itemsize, native.STAGE.itemsize)
