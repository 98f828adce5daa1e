"""How an evaluation makes its inputs from a truth: shrunk, or as a scanner stores them. The same noise every time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from runtime import grid
from runtime.acquired import Acquired, Band

from . import resample, scanner
from .scanner import Image
from .tables import ConfigError

WINDOWS = {"hard": Band(), "tukey": Band(taper=0.25), "hamming": scanner.HAMMING}
FRACTIONS = ((1.0, 1.0), (0.85, 1.0), (0.7, 1.0), (0.5, 1.0), (0.7, 0.7), (0.5, 0.5))


@dataclass(frozen=True)
class Degradation:
    """`of` makes the input (h, w) of a truth (H, W) at scales; `acquired` is what is true of every such input."""

    kind: str  # a kernel of `train.resample`, or "scan"
    case: str  # which of the scans: the fractions that were measured, and the window
    noise: float  # σ as a part of white, of the real part of what is measured, where the window is 1
    of: Callable[[Image, grid.Scales], Image]
    acquired: Acquired

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.kind, self.case, percent(self.noise) if self.noise else "")))


def resampled(kernel: resample.Kernel, sigma: float = 0.0) -> Degradation:
    """A truth made smaller by a kernel of `train.resample`, with Rician noise."""

    def of(truth: Image, scales: grid.Scales) -> Image:
        lr = resample.downsample(truth, scales, kernel)
        return resample.rician(lr, sigma, np.random.default_rng(0)) if sigma else lr

    band = Band(taper=resample.TAPER) if kernel == "kspace" else Band()
    return Degradation(kernel, "", sigma, of, Acquired((band, band), sigma))


def scan(fractions: tuple[float, float], window: str, sigma: float = 0.0) -> Degradation:
    """A scan of a truth, of which these fractions of rows and columns are measured through a window of `WINDOWS`."""
    rows, cols = (replace(WINDOWS[window], fraction=fraction) for fraction in fractions)
    bands = (rows, cols)

    def of(truth: Image, scales: grid.Scales) -> Image:
        size = tuple(int(n / r) for n, r in zip(truth.shape, scales))
        return scanner.acquire(truth, scales, scanner.Acquisition(bands, sigma), size, np.random.default_rng(0))[0]

    left = float(np.prod([_left(band) for band in bands]))
    return Degradation("scan", f"{fractions[0]:g},{fractions[1]:g} {window}", sigma, of, Acquired(bands, left * sigma))


def _left(band: Band) -> float:
    """What the canonical form of an axis leaves of the noise's σ, where its window is too deep to be undone whole."""
    size = 4096  # of any axis, finely
    count = round(band.fraction * size)
    return float(np.sqrt(np.mean((band.gains(count, size) * band.window(count, size)) ** 2)))


def named(text: str, sigma: float = 0.0) -> list[Degradation]:
    """What a word names: a kernel, all 18 scans (`scan`), or one of any fractions (`scan:.7,1:hard`). Raises ConfigError."""
    words: dict[str, list[Degradation]] = {kernel: [resampled(kernel, sigma)] for kernel in resample.KERNELS}
    words["scan"] = [scan(fractions, window, sigma) for fractions in FRACTIONS for window in WINDOWS]
    if text in words:
        return words[text]
    fraction = r"(1(?:\.0*)?|0?\.\d*[1-9]\d*)"
    parts = re.fullmatch(f"scan:{fraction},{fraction}:({'|'.join(WINDOWS)})", text)
    if not parts:
        one = f"a scan such as scan:.7,1:hard ({', '.join(WINDOWS)})"
        raise ConfigError(f"an input is {text!r}: give {', '.join(resample.KERNELS)}, scan for all scans, or {one}")
    return [scan((float(parts[1]), float(parts[2])), parts[3], sigma)]


def percent(part: float) -> str:
    return f"{100 * part:.3g} %"
