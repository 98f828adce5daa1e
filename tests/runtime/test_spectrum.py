from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest

from runtime import spectrum
from runtime.acquired import Acquired, Band
from train import resample
from train.scanner import HAMMING, Acquisition, acquire

TWO = (Fraction(2), Fraction(2))


@pytest.fixture(scope="module")
def truths() -> list[np.ndarray]:
    """Heads full of leaves that lie on each other, whose sizes follow a power law: nature's spectrum, to the finest pixel."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:340j, -1:1:340j]
    slices = []
    for _ in range(6):
        head = np.zeros((340, 340))
        for radius in 1 / np.linspace(1 / 0.4, 1 / 0.012, 600):
            place, stretch = rng.uniform(-0.9, 0.9, 2), rng.uniform(0.5, 1)
            head[np.hypot(y - place[0], (x - place[1]) / stretch) < radius] = rng.uniform(0.3, 1)
        slices.append((head * (np.hypot(y, x) < 0.85)).astype(np.float32))
    return slices


def scans(truths: list[np.ndarray], bands: tuple[Band, Band], sigma: float = 0.01) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [acquire(truth, TWO, Acquisition(bands, sigma), (170, 170), rng)[0] for truth in truths]


@pytest.mark.parametrize("fraction", [0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("window", [Band(), Band(taper=0.25), HAMMING])
def test_band_of_a_zero_filled_scan_is_found(truths: list[np.ndarray], fraction: float, window: Band) -> None:
    band = Band(fraction, window.taper, window.floor)
    rows, cols = spectrum.bands(scans(truths, (band, Band())))
    assert rows is not None
    assert abs(rows.kept - band.kept) <= 0.05
    assert cols is None or cols.kept > 0.95
    rows, cols = spectrum.bands(scans(truths, (Band(), band)))
    assert cols is not None
    assert abs(cols.kept - band.kept) <= 0.05


@pytest.mark.parametrize("kernel", resample.KERNELS)
@pytest.mark.parametrize("scale", ["3/2", "2", "3"])
def test_full_band_is_not_cropped(truths: list[np.ndarray], kernel: resample.Kernel, scale: str) -> None:
    r = (Fraction(scale), Fraction(scale))
    for band in spectrum.bands([resample.downsample(truth, r, kernel) for truth in truths]):
        assert band is None or band.fraction > 0.95
        assert kernel == "kspace" or band is None or band.kept > 0.95  # that one has a window


@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.08])
def test_noise_is_found(truths: list[np.ndarray], sigma: float) -> None:
    band = Band(0.7)
    canonical = [Acquired((band, Band())).canonical(scan)[0] for scan in scans(truths, (band, Band()), sigma)]
    assert spectrum.noise(canonical) == pytest.approx(sigma, rel=0.15)


def test_noise_of_a_flat_image_is_its_standard_deviation() -> None:
    flat = np.random.default_rng(0).normal(0.5, 0.05, (200, 200)).astype(np.float32)
    assert spectrum.noise([flat]) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 300), (64, 64)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1e-30, -3.0])
def test_image_that_tells_nothing_is_taken_as_it_is(shape: tuple[int, int], value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = np.full(shape, value, np.float32)
        assert all(band in (None, Band()) for band in spectrum.bands([image]))
        assert spectrum.noise([image]) == pytest.approx(0, abs=1e-6)
    assert spectrum.noise([]) == 0
