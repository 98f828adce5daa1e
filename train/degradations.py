"""How an evaluation makes its inputs from a truth: shrunk, or as a scanner stores them. The same noise every time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from runtime import grid
from runtime.acquired import Acquired, Band

from . import resample, scanner
from .resample import Image
from .tables import ConfigError

WINDOWS = {"hard": Band(), "tukey": Band(taper=0.25), "hamming": scanner.HAMMING}
FRACTIONS = ((1.0, 1.0), (0.85, 1.0), (0.7, 1.0), (0.5, 1.0), (0.7, 0.7), (0.5, 0.5))


@dataclass(frozen=True)
class Degradation:
    """`of` makes the input (h, w) of a truth (H, W) at scales; `acquired` is what is true of every such input."""

    kind: str  # a method of `train.resample`, or "scan"
    case: str  # which of the scans: the fractions that were measured, and the window
    noise: float  # σ as a part of white, of the real part of what is measured, where the window is 1
    of: Callable[[Image, grid.Scales], Image]
    acquired: Acquired

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.kind, self.case, percent(self.noise) if self.noise else "")))


def resampled(method: resample.Method, sigma: float = 0.0) -> Degradation:
    """A truth made smaller by a method of `train.resample`, with Rician noise."""

    def of(truth: Image, scales: grid.Scales) -> Image:
        lr = resample.downsample(truth, scales, method)
        return resample.rician(lr, sigma, np.random.default_rng(0)) if sigma else lr

    band = Band(taper=resample.TAPER) if method == "kspace" else Band()
    return Degradation(method, "", sigma, of, Acquired((band, band), sigma))


def scan(fractions: tuple[float, float], window: str, sigma: float = 0.0) -> Degradation:
    """A scan of a truth, of which these fractions of rows and columns are measured through a window of `WINDOWS`."""
    rows, cols = bands = tuple(replace(WINDOWS[window], fraction=fraction) for fraction in fractions)

    def of(truth: Image, scales: grid.Scales) -> Image:
        size = tuple(int(n / r) for n, r in zip(truth.shape, scales))
        return scanner.acquire(truth, scales, scanner.Acquisition((rows, cols), sigma), size, np.random.default_rng(0))[0]

    def left(band: Band, size: int = 4096) -> float:  # of σ in canonical form, where a window is too deep to be undone whole
        count = round(band.fraction * size)
        return float(np.sqrt(np.mean((band.gains(count, size) * band.window(count, size)) ** 2)))

    acquired = Acquired(bands, left(rows) * left(cols) * sigma)
    return Degradation("scan", f"{fractions[0]:g},{fractions[1]:g} {window}", sigma, of, acquired)


def named(text: str, sigma: float = 0.0) -> list[Degradation]:
    """What a word names: a method, all 18 scans (`scan`), or one of any fractions (`scan:.7,1:hard`). Raises ConfigError."""
    if text in resample.METHODS:
        return [resampled(text, sigma)]
    if text == "scan":
        return [scan(fractions, window, sigma) for fractions in FRACTIONS for window in WINDOWS]
    fraction = r"(1(?:\.0*)?|0?\.\d*[1-9]\d*)"
    if parts := re.fullmatch(f"scan:{fraction},{fraction}:({'|'.join(WINDOWS)})", text):
        return [scan((float(parts[1]), float(parts[2])), parts[3], sigma)]
    one = f"a scan such as scan:.7,1:hard ({', '.join(WINDOWS)})"
    raise ConfigError(f"an input is {text!r}: give {', '.join(resample.METHODS)}, scan for all scans, or {one}")


def percent(part: float) -> str:
    return f"{100 * part:.3g} %"
