"""Is a bundle true to its checkpoint? `runtime` itself answers, over scales, shapes, noise and both of its paths."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np

from runtime import Upscaler
from runtime.acquired import STORED, Acquired, Band
from runtime.errors import MetasrganError
from runtime.intensity import Intensity
from train.generator import Generator
from train.models import upscale_with

# Largest difference as a part of the output's range. float32 differs by the order of sums; half-precision weights have
# 11 significant bits each.
TOLERANCE = {False: 1e-4, True: 2e-3}

# Integer, rational with short and long periods, irrational; square and not, odd sizes, one axis scaled differently.
CASES: tuple[tuple[tuple[int, int], tuple[str, str]], ...] = (
    ((48, 48), ("2", "2")),
    ((37, 61), ("3", "3")),
    ((40, 33), ("4", "4")),
    ((51, 46), ("1.1", "1.1")),
    ((45, 64), ("2.5", "2.5")),
    ((64, 45), ("2.1", "2.1")),
    ((33, 29), ("3.9", "3.9")),
    ((40, 56), ("32/15", "32/15")),
    ((41, 39), ("1.5707963267948966", "1.5707963267948966")),  # π/2
    ((36, 50), ("2", "3")),
    ((50, 35), ("1.7320508075688772", "1.25")),  # √3
)

# What is measured of a case, and told to a network that is told: nothing, noise, noise and the soft end of a band.
SCANS = (STORED, Acquired((Band(), Band()), 0.01), Acquired((Band(0.8, 0.5), Band(taper=0.5)), 0.05))


class VerificationError(MetasrganError, RuntimeError):
    """A bundle that does not give its checkpoint's pixels."""


def verify(upscaler: Upscaler, generator: Generator, half: bool) -> dict[str, float]:
    """The largest error of each case, as a part of the output's range.

    A network that is told the noise has each case as each of `SCANS`. Raises VerificationError over the tolerance.
    """
    errors = {}
    for (shape, texts), scan in product(CASES, SCANS if generator.config.told else SCANS[:1]):
        scales = (Fraction(texts[0]), Fraction(texts[1]))
        case = f"{shape[0]}×{shape[1]} ×{texts[0]},{texts[1]}" + (f" σ {scan.sigma}" if scan.sigma else "")
        image = _phantom(shape)
        expected = upscale_with(generator)(image, scales, scan)
        actual = upscaler.slices.upscale(image, Intensity(-np.inf, np.inf, black=0.0, white=1.0), scales, np.float32, scan)
        errors[case] = float(np.abs(actual - expected).max() / np.ptp(expected))
    worst = max(errors, key=lambda case: np.inf if np.isnan(errors[case]) else errors[case])
    if not errors[worst] <= TOLERANCE[half]:  # a NaN is the worst, and is not below it
        raise VerificationError(
            f"the bundle differs from its checkpoint by {errors[worst]:.1e} of the range at {worst}, more than "
            f"{TOLERANCE[half]:.0e}: {'export without --fp16' if half else 'report it, with the checkpoint'}"
        )
    return errors


def _phantom(shape: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A head: an ellipse with a bright rim, smooth and fine texture inside, and sharp spots; 0 to 1."""
    rng = np.random.default_rng(shape)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.hypot(y / 0.9, x / 0.75)
    image = np.where(radius < 1, 0.4 + 0.15 * np.sin(9 * x + 4 * y) + 0.05 * rng.standard_normal(shape), 0.0)
    image[(radius > 0.85) & (radius < 0.95)] = 0.8
    spots = rng.random(shape) > 0.995
    image[spots & (radius < 0.8)] = 0.95
    return np.clip(image, 0, 1).astype(np.float32)
