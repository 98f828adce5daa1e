"""Is a bundle true to its checkpoint? `runtime` itself answers, over scales, shapes, noise and both of its paths."""

from __future__ import annotations

from fractions import Fraction
from itertools import cycle, product

import numpy as np
from numpy.typing import NDArray

from runtime import Upscaler
from runtime.acquired import STORED, Acquired, Band
from runtime.errors import BundleError
from runtime.intensity import UNIT
from train.generator import Generator
from train.models import upscale_with

# Largest difference as a part of the output's range. float32 differs by the order of sums; half-precision weights have
# 11 significant bits each.
TOLERANCE = {False: 1e-4, True: 2e-3}

# Integer, rational with short and long periods, irrational (π/2); then axes that differ (√3). Shapes square and not, odd.
_SCALES = ("2", "3", "4", "1.1", "2.5", "2.1", "3.9", "32/15", "1.5707963267948966")
CASES = list(zip(cycle([(48, 48), (37, 61), (64, 45)]), [*zip(_SCALES, _SCALES), ("2", "3"), ("1.7320508075688772", "1.25")]))

# What is measured of a case, and told to a network that is told: nothing, noise, noise and the soft end of a band.
SCANS = (STORED, Acquired((Band(), Band()), 0.01), Acquired((Band(0.8, 0.5), Band(taper=0.5)), 0.05))


def verify(upscaler: Upscaler, generator: Generator, half: bool) -> dict[str, float]:
    """The largest error of each case, as a part of the output's range.

    A network that is told the noise has each case as each of `SCANS`. Raises BundleError over the tolerance.
    """
    errors = {}
    for (shape, texts), scan in product(CASES, SCANS if generator.config.told else SCANS[:1]):
        scales = (Fraction(texts[0]), Fraction(texts[1]))
        case = f"{shape[0]}×{shape[1]} ×{texts[0]},{texts[1]}" + (f" σ {scan.sigma}" if scan.sigma else "")
        image = _phantom(shape)
        expected = upscale_with(generator)(image, scales, scan)
        actual = upscaler.slices.upscale(image, UNIT, scales, np.float32, scan)
        errors[case] = float(np.abs(actual - expected).max() / np.ptp(expected))
    worst = max(errors, key=lambda case: np.inf if np.isnan(errors[case]) else errors[case])
    if not errors[worst] <= TOLERANCE[half]:  # a NaN is the worst, and is not below it
        raise BundleError(
            f"the bundle differs from its checkpoint by {errors[worst]:.1e} of the range at {worst}, more than "
            f"{TOLERANCE[half]:.0e}: {'export without --fp16' if half else 'report it, with the checkpoint'}"
        )
    return errors


def _phantom(shape: tuple[int, int]) -> NDArray[np.float32]:
    """A head: an ellipse of smooth and fine texture, with sharp edges; 0 to 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    texture = 0.5 + 0.15 * np.sin(9 * x + 4 * y) + 0.1 * np.random.default_rng(shape).standard_normal(shape)
    return np.where(np.hypot(y / 0.9, x / 0.75) < 1, texture, 0).clip(0, 1).astype(np.float32)
