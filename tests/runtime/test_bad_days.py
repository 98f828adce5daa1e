"""What a clinic's box does to a program: too few processors, huge inputs, long days, many at once, full disks."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import DeviceError, Upscaler
from runtime.engines.ort import available_processors
from tests.conftest import run_python


@pytest.mark.parametrize(
    ("said", "processors"),
    [
        ("150000 100000", 2),
        ("100000 100000", 1),
        ("20000 100000", 1),
        ("99900000 100000", None),
        ("max 100000", None),
        ("", None),
    ],
)
def test_a_containers_share_bounds_the_threads(tmp_path: Path, said: str, processors: int | None) -> None:
    """A container of 1.5 processors' time on a machine of 64 is stopped again and again if 64 threads use it up at once."""
    unbounded = available_processors(tmp_path)  # no such file there
    (tmp_path / "cpu.max").write_text(said)
    assert available_processors(tmp_path) == min(unbounded, processors or unbounded)


def test_more_threads_than_processors_give_the_same_picture(head: np.ndarray) -> None:
    processors = available_processors()
    with Upscaler.load(threads=processors) as few, Upscaler.load(threads=8 * processors) as many:
        image = np.tile(head, (4, 4))
        np.testing.assert_allclose(many(image, 2), few(image, 2), rtol=0, atol=1e-5 * np.ptp(image))


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory holds on Linux alone")
@pytest.mark.parametrize("work", ["up.slices.engine.encode(image, UNIT)", "np.linalg.inv(image)"])
def test_too_little_memory_is_an_error_with_a_type(work: str) -> None:
    """ONNX Runtime's own error has none, and OpenBLAS ends a process that has no memory for its first product."""
    code = f"""
import os
import resource
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each of its threads takes memory when it first works
import numpy as np
from runtime import Upscaler
from runtime.intensity import UNIT
image = np.random.default_rng(0).random((400, 400)).astype(np.float32)
with Upscaler.load(threads=1) as up:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20),) * 2)
    try:
        {work}
        print("done")
    except MemoryError as error:
        print(type(error).__name__)
"""
    assert run_python(code).stdout == ("DeviceMemoryError\n" if "engine" in work else "done\n")


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory holds on Linux alone")
def test_threads_that_cannot_be_started_are_an_error() -> None:
    """ONNX Runtime waits for ever where it is refused a thread."""
    code = """
import resource
from runtime import DeviceMemoryError, Upscaler
resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)
try:
    Upscaler.load(threads=64)
except DeviceMemoryError as error:
    print(error)
"""
    assert run_python(code).stdout == "this process may not start 192 threads: give fewer, or raise its limits\n"


@pytest.mark.parametrize("send", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_upscaler_stays_in_its_process(shipped: Upscaler, send: Callable[[Upscaler], object]) -> None:
    with pytest.raises(DeviceError, match="neither be copied nor sent to another process: load it there"):
        send(shipped)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status tells a process's peak on Linux alone")
def test_a_very_large_image_takes_a_tile_at_a_time() -> None:
    """8,000×8,000 pixels with a head in a corner: exact there, soon done, in memory for its own arrays and a tile."""
    code = """
import numpy as np
from runtime import Upscaler
from runtime.acquired import STORED
from runtime.grid import parse_scales
from runtime.intensity import Intensity
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
image = np.zeros((8000, 8000), np.uint8)
head = np.random.default_rng(0).integers(1, 200, (300, 300)).astype(np.uint8)
image[7600:7900, 40:340] = head
with Upscaler.load() as up:
    up(image[7500:, :500], "1.1")
    idle = peak()
    found = up.measure(image, noise=0)  # of black, for the most part: nothing is cropped
    out = up(image, "1.1", acquired=found)
    assert out.shape == (8800, 8800)
    crop = up.slices.upscale(image[7500:, :500], Intensity.of(image), parse_scales("1.1"), np.float32, STORED)
    assert np.abs(out[8250:, :550] - crop)[35:, :-35].max() < 0.02, "differs from the crop"
    assert np.ptp(out[:8200]) < 0.5, "the background is not the background"
    print((peak() - idle) // 1024)
"""
    # In MB: 310 of output, 256 each of the unit image, the standardised one and what is in flight; 64 of input are in `idle`.
    assert int(run_python(code).stdout) < 1500


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/statm tells a process's memory on Linux alone")
def test_memory_stays_bounded_over_a_thousand_scales_and_shapes() -> None:
    """A long day: every call another scale and another shape, with tables kept and responses dropped."""
    code = """
import resource
import numpy as np
from runtime import Upscaler
image = np.random.default_rng(0).random((64, 64)).astype(np.float32)
curve = []
with Upscaler.load(threads=1) as up:
    for k in range(1000):
        up(image[: 16 + k % 47, : 16 + k % 43], f"{1 + (k * 387 % 1000 + 1) / 400:.4f}")
        if k % 100 == 99:
            curve.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024)
print(*curve)
"""
    curve = [int(kilobytes) for kilobytes in run_python(code).stdout.split()]
    # From the fifth hundred on, when the 8 MB of tables are full; a leak of one 24 kB output a call would be 12 MB.
    assert max(curve) - curve[4] < 6_000, f"kilobytes after each hundred calls: {curve}"
