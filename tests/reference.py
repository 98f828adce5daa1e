"""Slow, obvious twins of the fast code: exact fractions, one output pixel at a time, float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from runtime.phases import WeightPredictor

HALF = Fraction(1, 2)


def project(i: int | Fraction, scale: Fraction, projection: str) -> tuple[int, Fraction]:
    """Source pixel and sub-pixel offset of output i, in exact rational arithmetic: Meta-SR's definition, or the centred one.

    Those of a mirrored image may lie between whole numbers."""
    if projection == "corner":
        position = Fraction(i) / scale
        return math.floor(position), position - math.floor(position)
    position = (i + HALF) / scale
    return math.floor(position), position - math.floor(position) - HALF


def meta_upscale(
    features: np.ndarray,
    basis: np.ndarray,
    predictor: WeightPredictor,
    scales: tuple[Fraction, Fraction],
    image: np.ndarray | None,
) -> np.ndarray:
    """(H, W, C) features → pixels, by a loop that predicts each pixel's filter, a sum of the `basis` (B, 9·C); plus linear
    interpolation of `image`."""
    height, width, _ = features.shape
    w1, b1, w2, b2 = (a.astype(np.float64) for a in (predictor.w1, predictor.b1, predictor.w2, predictor.b2))
    padded = np.pad(features.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    inverse = [float(1 / r) for r in scales] if w1.shape[1] == 4 else [1 / math.sqrt(scales[0] * scales[1])]
    out = np.zeros((math.floor(height * scales[0]), math.floor(width * scales[1])))
    for i, j in np.ndindex(out.shape):
        y, dy = project(i, scales[0], predictor.projection)
        x, dx = project(j, scales[1], predictor.projection)
        hidden = np.maximum(w1 @ [float(dy), float(dx), *inverse] + b1, 0)
        out[i, j] = padded[y : y + 3, x : x + 3].ravel() @ (basis.T @ (w2 @ hidden + b2))
    return out if image is None else out + linear(image, scales)


def linear(image: np.ndarray, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    """Half-pixel-centred linear interpolation with repeated edges."""
    height, width = image.shape
    image = image.astype(np.float64)
    out = np.zeros((math.floor(height * scales[0]), math.floor(width * scales[1])))
    for i, j in np.ndindex(out.shape):
        (y0, y1, v), (x0, x1, u) = _between(i, height, scales[0]), _between(j, width, scales[1])
        out[i, j] = (1 - v) * ((1 - u) * image[y0, x0] + u * image[y0, x1]) + v * ((1 - u) * image[y1, x0] + u * image[y1, x1])
    return out


def _between(i: int, size: int, scale: Fraction) -> tuple[int, int, float]:
    position = (i + HALF) / scale - HALF
    low = math.floor(position)
    return max(low, 0), min(low + 1, size - 1), float(position - low)


def downsample(image: np.ndarray, scale: Fraction, kernel: str, start: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Antialiased resize by 1/scale: every output averages all pixels by a kernel as wide as `scale`, float64."""
    matrices = []
    for size, first, count in zip(image.shape, start, shape):
        centre = first + (np.arange(count)[:, None] + 0.5) * float(scale) - 0.5
        x = np.abs((np.arange(size) - centre) / float(scale))
        if kernel == "bilinear":
            weights = np.maximum(1 - x, 0)
        else:  # Keys, a = -1/2
            weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        matrices.append(weights / weights.sum(1, keepdims=True))
    return matrices[0] @ image.astype(np.float64) @ matrices[1].T


def kspace(line: np.ndarray, scale: Fraction, taper: float) -> np.ndarray:
    """A line of pixels, mirrored at its ends, low-passed to 1/scale of its spectrum and sampled r pixels apart, float64."""
    n = len(line)
    spectrum = np.fft.fft(np.concatenate([line, line[::-1]]).astype(np.float64))
    period = np.abs(np.fft.fftfreq(2 * n) * 2 * n)  # periods over the mirrored line; the coarse grid resolves n/scale
    band = n / float(scale)
    out = np.zeros(math.floor(n / scale))
    for i in range(len(out)):
        x = (i + 0.5) * float(scale) - 0.5
        for k, coefficient in enumerate(spectrum):
            if period[k] < band:
                outer = max(0.0, (period[k] - (1 - taper) * band) / (taper * band)) if taper else 0.0
                wave = np.exp(2j * np.pi * np.fft.fftfreq(2 * n)[k] * x)
                out[i] += (coefficient * wave).real * (1 + np.cos(np.pi * outer)) / 2 / (2 * n)
    return out


def crop_to_acquired(image: np.ndarray, axis: int, spacing: Fraction, fraction: float, taper: float) -> np.ndarray:
    """An axis cropped to its acquired samples by a Fourier transform of the image mirrored at its borders, with Tukey's window
    of `taper` over the first `fraction` of the band undone to -12 dB. Samples lie `spacing` apart, from the outer edge."""
    x = np.moveaxis(image.astype(np.float64), axis, 0)
    n = len(x)
    m = math.ceil(n / spacing)
    spectrum = np.fft.fft(np.concatenate([x, x[::-1]]), axis=0)
    out = np.zeros((m, *x.shape[1:]))
    for i in range(m):
        place = (i + 0.5) * float(spacing) - 0.5  # in old pixels, from the first one's centre
        for k in range(-(m - 1), m):  # frequency k/2 over the axis
            if abs(k) >= fraction * n:
                continue
            edge = (abs(k) / (fraction * n) - 1 + taper) / taper if taper else -1.0
            window = 0.5 + 0.5 * math.cos(math.pi * min(max(edge, 0), 1))
            out[i] += np.real(spectrum[k % (2 * n)] * np.exp(1j * np.pi * k * place / n)) / (2 * n) / max(window, 0.25)
    return np.moveaxis(out, 0, axis)
