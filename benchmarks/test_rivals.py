"""Ours beside EDSR ×2, the network that the paper compares with, in the same ONNX Runtime with the same two threads.

Each round runs all of them, so that they see the same machine; ratios of medians hold on any machine, milliseconds do not.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from benchmarks import rivals
from runtime import Upscaler

ROOT = Path(__file__).parent.parent
SHIPPED, INT8 = ROOT / "runtime" / "brain.bundle", ROOT / "models" / "fidelity-int8.bundle"
SIZE, ROUNDS = 120, 5
# End to end. Seen in repeated runs: 78 and 81×, 178 and 197× on two cores, 65× and 226× on one; less than the bound is a
# change for the worse. What the project wants, 80× and 180×, is not kept in every run yet.
TIMES_FASTER = {"float32": 55, "int8": 140}
OF_BARE = 0.85  # of the multiply-adds a second of bare convolutions 3×3 64→64: what the project promises of the trunk; 88 seen
MEMORY = 1 / 8  # of EDSR's at 240×240, likewise; 1/12 seen


def seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def test_times_faster_than_edsr() -> None:
    scan = np.asanyarray(nib.load(ROOT / "examples" / "t1ce_thick.nii.gz").dataobj)
    image = np.ascontiguousarray(scan[68 : 68 + SIZE, 68 : 68 + SIZE, 3], np.float32)
    edsr = rivals.session(rivals.edsr(2))
    with Upscaler.load(SHIPPED, threads=2) as exact, Upscaler.load(INT8, threads=2) as fast:
        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "edsr": (lambda: edsr.run(None, {"image": image[None, None]}), 1),
            "float32": (lambda: exact(image, 2), 5),  # so short that one of them is no measurement
            "int8": (lambda: fast(image, 2), 5),
        }
        # Fast is no good if wrong: the same picture, within what 40 dB is (seen: 50 dB).
        assert np.sqrt(np.mean((fast(image, 2) - exact(image, 2)) ** 2)) < 0.01 * np.ptp(image)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(ROUNDS + 1):
            for name, (function, repeats) in ways.items():
                taken = [seconds(function) for _ in range(repeats)]
                times[name] += taken if round_ else []  # the first round warms up
    median = {name: statistics.median(taken) for name, taken in times.items()}
    ratios = {name: median["edsr"] / median[name] for name in TIMES_FASTER}
    said = ", ".join(f"{name} {1e3 * median[name]:.1f} ms ({ratio:.0f}×)" for name, ratio in ratios.items())
    print(f"×2 of {SIZE}×{SIZE}: EDSR {1e3 * median['edsr']:.0f} ms; {said}")
    for name, least in TIMES_FASTER.items():
        assert ratios[name] >= least, f"{name} is {ratios[name]:.0f}× as fast as EDSR, not {least}×"


def test_trunk_is_as_fast_as_bare_convolutions() -> None:
    image = np.random.default_rng(0).random((2 * SIZE, 2 * SIZE), np.float32)
    bare = rivals.session(rivals.convolutions(11))
    with Upscaler.load(SHIPPED, threads=2) as up:
        rounds = [
            (seconds(lambda: bare.run(None, {"image": image[None, None]})), seconds(lambda: up._running.encode(image)))
            for _ in range(12)
        ][2:]
    bare_s, trunk_s = (statistics.median(column) for column in zip(*rounds))
    # Multiply-adds a pixel: the trunk has a head of 81·64 and 11 convolutions of 9·64·64, the stack a head of 9·64 and 10.
    of_bare = (410_688 / trunk_s) / (369_216 / bare_s)
    print(f"trunk {1e3 * trunk_s:.0f} ms, {100 * of_bare:.0f} % of bare convolutions' speed")
    assert of_bare >= OF_BARE


_PEAK = """
import numpy as np, sys
from benchmarks import rivals
from runtime import Upscaler
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
image = np.random.default_rng(0).random((240, 240), np.float32)
idle = peak()
if sys.argv[1] == "edsr":
    rivals.session(sys.argv[2]).run(None, {"image": image[None, None]})
else:
    Upscaler.load(sys.argv[2], threads=2)(image, 2)
print(peak() - idle)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status tells a process's peak on Linux alone")
def test_memory_beside_edsr(tmp_path: Path) -> None:
    """A fresh process's peak over what it had before it loaded anything."""
    graph = tmp_path / "edsr.onnx"
    graph.write_bytes(rivals.edsr(2))

    def kilobytes(kind: str, path: Path) -> int:
        done = subprocess.run([sys.executable, "-c", _PEAK, kind, path], cwd=ROOT, capture_output=True, text=True, check=True)
        return int(done.stdout)

    edsr, exact, fast = kilobytes("edsr", graph), kilobytes("ours", SHIPPED), kilobytes("ours", INT8)
    print(f"×2 of 240×240: EDSR {edsr / 1e3:.0f} MB, ours {exact / 1e3:.0f} MB ({edsr / exact:.1f}×), int8 {fast / 1e3:.0f} MB")
    assert exact <= MEMORY * edsr
    assert fast <= MEMORY * edsr
