"""Who does the arithmetic: which engines there are, and which of them serves a device by name."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from .. import grid
from ..bundle import Bundle
from ..errors import DeviceError, reason
from ..grid import Span
from ..intensity import UNIT
from . import ort
from .engine import Engine as Engine
from .portable import PortableEngine
from .tensorrt import TensorRtEngine

log = logging.getLogger(__name__)

DEVICES = ("auto", *ort.DEVICES, "tensorrt")
_PROOF, _TIMED = 16, 128  # pixels an axis of the image that proves that an engine works, and of the one that times it


def load(bundle: Bundle, device: str, threads: int | None, tile: int, cache_dir: Path | None) -> Engine:
    """The engine for a device by name. One small image has gone through it, unless it is the CPU's.

    `auto` takes cuda where it works; else gpu, if it is hardware and faster than the CPU; else the CPU. One line of the log
    says which and why: a warning where there is a GPU that does not work. Raises DeviceError for an unknown device, and for a
    known one that cannot run here: nothing else falls back.
    """
    if device not in DEVICES:
        raise DeviceError(f"device {device!r} is unknown", f"use one of {', '.join(DEVICES)}")
    if device == "auto":
        taken, why, faulty = fastest(bundle, threads)
        log.log(logging.WARNING if faulty else logging.INFO, why)
        return taken
    if device == "cpu":
        return PortableEngine(bundle, device, threads)
    if bundle.integers:
        repair = "use device 'cpu', or give the one exported without --int8"
        raise DeviceError(f"this bundle computes in 8-bit integers, which {device} does not", repair)
    if device in ("cuda", "tensorrt") and not driver_is_installed():
        raise DeviceError("no NVIDIA driver is installed here", "install one, or use device 'gpu' or 'cpu'")
    native = device == "tensorrt"
    engine: Engine = TensorRtEngine(bundle, tile, cache_dir) if native else PortableEngine(bundle, device, threads)
    try:
        seconds(engine, _PROOF)
    except Exception as error:  # such as a library that is missing, which nobody saw so far
        engine.close()
        ours = error if isinstance(error, DeviceError) else DeviceError(f"{engine.runs_on}: {reason(error)}")
        known = "" if native else ort.DEVICES[device].repair
        raise type(ours)(ours.problem, ours.repair or known) from error
    return engine


def seconds(engine: Engine, pixels: int) -> float:
    """The shortest time that an engine takes for an image of pixels × pixels, twice as large; of three, unless it is slow."""
    twice, image = Fraction(2), np.random.default_rng(0).random((pixels, pixels), np.float32)
    axis = grid.project(pixels, twice, "centred")
    span, out = Span(axis, 0, axis.n_out, 0, pixels), np.empty((2 * pixels, 2 * pixels), np.float32)
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < 1:
        began = time.perf_counter()
        engine.render(engine.encode(image, UNIT), span, span, (twice, twice), UNIT, out)
        taken.append(time.perf_counter() - began)
    return min(taken)


def driver_is_installed() -> bool:
    """Whether this machine has an NVIDIA driver: looks for its library, and imports nothing of CUDA."""
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"))
    return False


def fastest(bundle: Bundle, threads: int | None = None) -> tuple[Engine, str, bool]:
    """What `auto` takes, why, and whether a GPU that is here failed."""
    cpu = PortableEngine(bundle, "cpu", threads)
    if bundle.integers:
        return cpu, "the CPU computes: this bundle is in 8-bit integers, which is for CPUs", False
    driver, said, faulty = driver_is_installed(), [], False
    if driver:
        try:
            return load(bundle, "cuda", None, 0, None), "cuda computes: an NVIDIA GPU that works comes first", False
        except DeviceError as error:
            faulty = not isinstance(error, ort.Absent)
            said.append(f"this machine has an NVIDIA driver, but cuda fails: {error}")
    try:
        if not ort.is_hardware(ort.adapter()):
            raise ort.Absent("the only adapter for WebGPU is software")
        gpu = load(bundle, "gpu", None, 0, None)
        there, here = seconds(gpu, _TIMED), seconds(cpu, _TIMED)
        why = f"{_TIMED}×{_TIMED} pixels take {1e3 * there:.1f} ms on gpu and {1e3 * here:.1f} ms on the CPU"
        if there < here:
            cpu.close()
            return gpu, "; ".join((f"gpu computes: {why}", *(said if faulty else ()))), faulty
        gpu.close()
        said.append(why)
    except DeviceError as error:
        absent = isinstance(error, ort.Absent)
        faulty = faulty or not absent
        said.append(error.problem if absent else f"gpu fails: {error}")
    return cpu, f"the CPU computes: {'; '.join(said)}", faulty or driver
