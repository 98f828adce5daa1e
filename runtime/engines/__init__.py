"""Who does the arithmetic: which engines there are, and which of them serves a device by name."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import NOTHING, Told
from ..bundle import Bundle
from ..errors import DeviceError
from ..tiles import Span
from .cpu import CpuEngine

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
Progress = Callable[[str, int, int], None]  # of an engine that is built: phase, steps done, steps in all


class Engine(Protocol):
    """A loaded bundle. Safe to share between threads."""

    device: str  # cpu, cuda or tensorrt
    runs_on: str  # for a person: library, version, precision, processor

    def encode(self, image: NDArray[np.float32], told: Told = NOTHING) -> Any:
        """A standardised image (H, W) → its responses, wherever the engine keeps them.

        `told` is what `acquired.Acquired.told` says of it; a model that is not told ignores it.
        """

    def render(self, responses: Any, rows: Span, cols: Span, scales: grid.Scales) -> NDArray[np.float32]:
        """The pixels rows × cols from responses; (len(rows), len(cols)), float32."""

    def close(self) -> None:
        """Give back what the engine holds. Harmless when repeated."""


def load(
    bundle: Bundle, device: str, threads: int | None, tile: int, cache_dir: Path | None, progress: Progress | None = None
) -> Engine:
    """The engine for a device by name.

    `auto` takes a GPU where there is one and it works; where it does not, a warning says why and the CPU computes. Raises
    DeviceError for an unknown device, and for a known one that cannot run here: nothing else falls back.
    """
    if device not in DEVICES:
        raise DeviceError(f"device {device!r} is unknown", f"use one of {', '.join(DEVICES)}")
    if device == "cpu" or (device == "auto" and not driver_is_installed()):
        return CpuEngine.load(bundle, threads)
    from . import gpu  # nobody without a GPU imports any of it

    try:
        return gpu.load(bundle, "cuda" if device == "auto" else device, tile, cache_dir, progress)
    except DeviceError as error:
        if device != "auto":
            raise
        log.warning("this machine has an NVIDIA driver, but the CPU computes, not cuda: %s", error)
        return CpuEngine.load(bundle, threads)


def driver_is_installed() -> bool:
    """Whether this machine has an NVIDIA driver: looks for its library, and imports nothing of CUDA."""
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
