"""One engine for all of ONNX Runtime's devices. `cuda` in half precision is played by the CPU's provider."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from runtime import ClosedError, DeviceError, DeviceMemoryError, Upscaler, engines, grid
from runtime.acquired import Acquired, Band
from runtime.bundle import Bundle
from runtime.engines import graphs, ort
from runtime.engines.portable import PortableEngine
from runtime.intensity import Intensity

HALF = 3e-3  # of the range: of features, weights and sums of 576 products, each rounded to 5e-4 of itself


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and all that `cuda` needs."""
    played = dataclasses.replace(ort.DEVICES["cpu"], half=True, repair=ort.DEVICES["cuda"].repair)
    monkeypatch.setitem(ort.DEVICES, "cuda", played)
    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)


@pytest.fixture
def gpu(cuda: None, shipped: Upscaler) -> Iterator[Upscaler]:
    with Upscaler.load(shipped.bundle, device="cuda") as up:
        yield up


@pytest.mark.parametrize(
    "graph",
    [graphs.BLEND, graphs.PROBE, "stage.onnx", "table_free.onnx", "trunk.onnx"],
    ids=["blend", "probe", "s", "t", "trunk"],
)
def test_what_is_added_makes_valid_graphs(shipped: Upscaler, graph: bytes | str) -> None:
    if isinstance(graph, str):
        graph = shipped.bundle.files[graph] + (graphs.TRUNK_END if graph == "trunk.onnx" else graphs.STAGE_END)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


@pytest.mark.parametrize("half", [False, True])
def test_planes_make_valid_graphs(shipped: Upscaler, half: bool) -> None:
    onnx.checker.check_model(onnx.load_from_string(shipped.bundle.trunk(half) + graphs.planes(half)), full_check=True)


@pytest.mark.parametrize("scale", ["2", "2.1", "4", "1.7320508", ("2", "3")])
def test_half_precision_is_near_the_cpus_pixels(gpu: Upscaler, shipped: Upscaler, head: np.ndarray, scale: Any) -> None:
    assert "float16" in gpu.runs_on
    assert gpu.device == "cuda"
    actual, expected = gpu(head, scale), shipped(head, scale)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=HALF * np.ptp(head))
    assert np.abs(actual - expected).max() > 1e-5 * np.ptp(head)  # it is half precision


def test_half_precision_that_overflows_is_computed_again_in_float32(
    gpu: Upscaler, shipped: Upscaler, head: np.ndarray, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = gpu.slices.engine
    run = engine._run_trunk

    def overflow(half: bool, image: np.ndarray, told: Any) -> Any:
        value = run(half, image, told).numpy()
        value[500 if half else [], 3] = np.inf
        return onnxruntime.OrtValue.ortvalue_from_numpy(value)

    monkeypatch.setattr(engine, "_run_trunk", overflow)
    with caplog.at_level(logging.WARNING):
        view, told = gpu.encode(head, noise=0.05), shipped.encode(head, noise=0.05)
        np.testing.assert_allclose(view.render(2), told.render(2), rtol=0, atol=1e-5 * np.ptp(head))
        view.render(3)  # the view keeps the better features
    said = "half precision overflowed: this image is computed again in float32"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_volume_with_two_slices_in_flight_equals_one_by_one(
    gpu: Upscaler, head: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, seen = np.stack([head, head[::-1], 0.5 * head, head[:, ::-1]]), []
    monkeypatch.setattr(gpu.slices.engine, "in_flight", 1)
    expected = gpu(stack, "2.1")
    monkeypatch.setattr(gpu.slices.engine, "in_flight", 2)
    np.testing.assert_array_equal(gpu(stack, "2.1", progress=lambda *counts: seen.append(counts)), expected)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu(stack, 2, progress=stop)
    assert seen[4:] == [(1, 4)]


def test_threads_take_turns(gpu: Upscaler, head: np.ndarray) -> None:
    scales = [grid.PAPER_SCALES[k % 6] for k in range(24)]
    expected = [gpu(head, r) for r in scales]
    with ThreadPoolExecutor(8) as pool:
        for actual, wanted in zip(pool.map(lambda r: gpu(head, r), scales), expected):
            np.testing.assert_array_equal(actual, wanted)


def test_memory_that_runs_out_halves_the_tiles_and_says_so(
    gpu: Upscaler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.random.default_rng(0).random((300, 280), np.float32)
    expected = gpu(image, 2)
    engine: Any = gpu.slices.engine
    run, limit = engine._run_trunk, [60_000]

    def small(half: bool, part: np.ndarray, told: Any) -> Any:
        if part.size > limit[0]:
            raise engine._opener.failure(RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 123"))
        return run(half, part, told)

    monkeypatch.setattr(engine, "_run_trunk", small)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(gpu(image, 2), expected, rtol=0, atol=HALF)
    assert "too little memory for the network: going on with tiles of 150 pixels in place of 300" in caplog.text
    limit[0] = 0
    with pytest.raises(DeviceMemoryError):
        gpu(image, 2)


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("Failed to allocate memory for requested buffer of size 1048576", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("std::bad_alloc", True),
        ("CUDA failure 700: an illegal memory access was encountered", False),
        ("cannot map shared memory: permission denied", False),
        ("MemoryType is not supported", False),
    ],
)
def test_only_memory_that_ran_out_counts_as_such(gpu: Upscaler, said: str, memory: bool) -> None:
    engine: Any = gpu.slices.engine
    assert isinstance(engine._opener.failure(RuntimeError(said)), DeviceMemoryError) == memory


def test_close_lets_go_of_the_sessions_once_and_is_final(cuda: None, shipped: Upscaler, head: np.ndarray) -> None:
    up = Upscaler.load(shipped.bundle, device="cuda")
    view, engine = up.encode(head), up.slices.engine
    view.render(2)
    trunks, *others = engine._sessions  # type: ignore[attr-defined]
    sessions = [weakref.ref(session) for session in (*trunks.values(), *others)]
    del trunks, others
    up.close()
    up.close()
    engine.close()
    gc.collect()
    assert [session() for session in sessions] == [None] * 4
    for use in (lambda: view.render(2), lambda: up(head, 2), lambda: engine.encode(head, Intensity.of(head))):
        with pytest.raises(ClosedError):
            use()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_closing_amid_the_work_of_others_is_an_error_for_them_only(
    cuda: None, shipped: Upscaler, head: np.ndarray, device: str
) -> None:
    up, said = Upscaler.load(shipped.bundle, device=device), []

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
        thread.join(timeout=60)
    assert [type(error) for error in said] == [ClosedError] * 3


def test_what_fails_at_the_first_image_fails_at_load(
    cuda: None, shipped: Upscaler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a cuDNN that is missing does since onnxruntime-gpu 1.31: `auto` would take cuda, and every image would fail."""
    run = PortableEngine._run_trunk

    def without_cudnn(self: PortableEngine, *arguments: Any) -> Any:
        if self.device == "cuda":
            raise self._opener.failure(RuntimeError("Failed to load libcudnn.so.9"))
        return run(self, *arguments)

    monkeypatch.setattr(PortableEngine, "_run_trunk", without_cudnn)
    with pytest.raises(DeviceError, match=r"onnxruntime .*: Failed to load libcudnn.so.9: pip install 'onnxruntime-gpu\[cuda"):
        Upscaler.load(shipped.bundle, device="cuda")
    with caplog.at_level(logging.INFO), Upscaler.load(shipped.bundle, device="auto") as up:
        assert up.device == "cpu"
    assert len(caplog.records) == 1
    assert "the CPU computes: this machine has an NVIDIA driver, but cuda fails: onnxruntime" in caplog.text
    assert "libcudnn.so.9" in caplog.text


def test_auto_takes_cuda_where_it_works_and_says_so(cuda: None, shipped: Upscaler, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Upscaler.load(shipped.bundle, device="auto") as up:
        assert up.device == "cuda"
    assert [record.getMessage() for record in caplog.records] == ["cuda computes: an NVIDIA GPU that works comes first"]


@pytest.mark.parametrize(
    ("kind", "ms", "device", "said"),
    [
        ("GPU", (3, 40), "gpu", "gpu computes: 128×128 pixels take 3.0 ms on gpu and 40.0 ms on the CPU"),
        ("GPU", (50, 40), "cpu", "the CPU computes: 128×128 pixels take 50.0 ms on gpu and 40.0 ms on the CPU"),
        ("driver", (3, 40), "gpu", "gpu computes: 128×128 pixels take 3.0 ms on gpu and 40.0 ms on the CPU"),
        ("CPU", (3, 40), "cpu", "the CPU computes: the only adapter for WebGPU is software"),
        ("none", (3, 40), "cpu", "the CPU computes: onnxruntime-ep-webgpu is not installed"),
    ],
)
def test_auto_takes_gpu_where_it_is_hardware_and_faster(
    shipped: Upscaler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    ms: tuple[float, float],
    device: str,
    said: str,
) -> None:
    # With NVIDIA's driver and the package for any GPU, which is what docs/gpu.md advises, nothing is amiss.
    monkeypatch.setattr(engines, "driver_is_installed", lambda: kind == "driver")
    monkeypatch.setitem(ort.DEVICES, "gpu", ort.DEVICES["cpu"])

    def adapter() -> Any:
        if kind == "none":
            raise ort.Absent("onnxruntime-ep-webgpu is not installed", "pip install onnxruntime-ep-webgpu")
        hardware = "CPU" if kind == "CPU" else "GPU"
        return SimpleNamespace(
            device=SimpleNamespace(type=hardware, metadata={"Description": "A GPU"}, vendor="V", device_id=1)
        )

    def seconds(engine: Any, pixels: int) -> float:
        return ms[0 if engine.device == "gpu" else 1] / 1e3

    monkeypatch.setattr(ort, "adapter", adapter)
    monkeypatch.setattr(onnxruntime.SessionOptions, "add_provider_for_devices", lambda *_: None)
    monkeypatch.setattr(engines, "seconds", seconds)
    with caplog.at_level(logging.INFO), Upscaler.load(shipped.bundle, device="auto") as up:
        assert up.device == device
    assert [record.getMessage() for record in caplog.records] == [said]
    assert caplog.records[0].levelno == logging.INFO


def test_integers_are_refused_on_a_gpu_and_auto_takes_the_cpu(cuda: None) -> None:
    with pytest.raises(DeviceError, match="8-bit integers, which cuda does not: use device 'cpu'"):
        Upscaler.load("fast", device="cuda")
    with Upscaler.load("fast", device="auto") as up:
        assert up.device == "cpu"


def test_a_provider_that_was_not_compiled_in(shipped: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong package: onnxruntime where onnxruntime-gpu is needed."""
    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="has no CUDAExecutionProvider") as error:
        Upscaler.load(shipped.bundle, device="cuda")
    assert "pip uninstall onnxruntime onnxruntime-gpu" in error.value.repair


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_whose_library_does_not_load_says_why_and_prints_nothing(
    shipped: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`get_available_providers` tells what was compiled in, not what works; why is in the log of ONNX Runtime alone."""
    (tmp_path / "onnxruntime.py").write_text("""
import sys
print("*************** EP Error ***************")
sys.stderr.write("\\x1b[1;31m[E:onnxruntime] Failed to load library x.so with error: libcudnn.so.9: cannot open\\x1b[m\\n")
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def preload() -> None:
        print("Failed to load libcudnn.so.9")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    with pytest.raises(DeviceError, match=r"CUDA does not work here: libcudnn.so.9: cannot open: pip install") as error:
        Upscaler.load(shipped.bundle, device="cuda")
    assert error.value.repair == ort.DEVICES["cuda"].repair
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="a library of Linux stands in for the provider's")
def test_a_providers_library_is_not_opened_in_this_process(tmp_path: Path) -> None:
    """Those of onnxruntime-gpu 1.20 to 1.22 end a process that opens them before ONNX Runtime does."""
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("needs a C++ compiler for a library that ends the process")
    (tmp_path / "capi").mkdir()
    (tmp_path / "a.cpp").write_text("#include <cstdlib>\nstatic int ends = (std::abort(), 0);\n")
    for name in ("shared", "cuda"):
        library = tmp_path / "capi" / f"libonnxruntime_providers_{name}.so"
        subprocess.run([compiler, "-shared", "-fPIC", str(tmp_path / "a.cpp"), "-o", str(library)], check=True)
    code = f"""
import onnxruntime, warnings
warnings.simplefilter("ignore")
onnxruntime.__file__ = {str(tmp_path / "__init__.py")!r}
onnxruntime.get_available_providers = lambda: ["CUDAExecutionProvider"]
from runtime import DeviceError, Upscaler, engines
engines.driver_is_installed = lambda: True
try:
    Upscaler.load(device="cuda")
except DeviceError as error:
    print("said", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("said onnxruntime")


def test_a_plug_in_that_is_not_there(shipped: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(DeviceError, match="onnxruntime-ep-webgpu is not installed: pip install onnxruntime-ep-webgpu"):
        Upscaler.load(shipped.bundle, device="gpu")


def test_a_plug_in_that_onnxruntime_refuses(shipped: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "libwebgpu.so"
    library.write_bytes(b"no library")
    plugin = SimpleNamespace(get_ep_name=lambda: "NoSuchProvider", get_library_path=lambda: str(library))
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", plugin)
    with pytest.raises(DeviceError, match=r"onnxruntime-ep-webgpu .*does not load into onnxruntime .*: update both"):
        Upscaler.load(shipped.bundle, device="gpu")
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(DeviceError, match="takes no plug-ins: pip install"):
        Upscaler.load(shipped.bundle, device="gpu")


def test_two_packages_that_share_a_name_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "installed", lambda: list(ort.PACKAGES))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="onnxruntime and onnxruntime-gpu share its files: pip uninstall"):
        ort.load_onnxruntime()


def test_a_told_trunk_is_told_on_any_device(cuda: None, told: Bundle, head: np.ndarray) -> None:
    twice = Fraction(2), Fraction(2)
    with Upscaler.load(told, device="cuda") as up, Upscaler.load(told, device="cpu") as cpu:
        for sigma in (0.0, 0.05):
            measured = Acquired((Band(), Band()), sigma)
            actual, expected = (u.slices.upscale(head, Intensity.of(head), twice, np.float32, measured) for u in (up, cpu))
            np.testing.assert_allclose(actual, expected, rtol=0, atol=HALF * np.ptp(head))
