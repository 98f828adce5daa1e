from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from runtime import measure
from runtime.acquired import Acquired, Band
from runtime.intensity import Intensity
from tests.conftest import SCAN
from train import resample
from train.scanner import HAMMING, Acquisition, acquire


@pytest.fixture(scope="module")
def truths() -> list[np.ndarray]:
    """Slices of a real scan, so far reduced that they are measured to their own Nyquist along both axes."""
    volume = np.asarray(nib.load(SCAN).dataobj, np.float32)
    slices = np.moveaxis(Intensity.of(volume).normalise(volume), 2, 0)
    return [resample.downsample(slice_, (Fraction(3, 2), Fraction(3, 2)), "bicubic") for slice_ in slices]


def scans(truths: list[np.ndarray], bands: tuple[Band, Band], sigma: float = 0.01) -> list[np.ndarray]:
    """Of which the zeros are filled in to the truth's own matrix."""
    rng, one = np.random.default_rng(1), (Fraction(1), Fraction(1))
    return [acquire(truth, one, Acquisition(bands, sigma), truth.shape, rng)[0] for truth in truths]


@pytest.mark.parametrize("fraction", [0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("window", [Band(), Band(taper=0.25), HAMMING])
def test_band_of_a_zero_filled_scan_is_found(truths: list[np.ndarray], fraction: float, window: Band) -> None:
    band = Band(fraction, window.taper, window.floor)
    rows, cols = measure.bands_of(scans(truths, (band, Band())))
    assert rows is not None
    assert abs(end(rows) - end(band)) <= 0.05
    assert cols in (None, Band())
    rows, cols = measure.bands_of(scans(truths, (Band(), band)))
    assert cols is not None
    assert abs(end(cols) - end(band)) <= 0.05


@pytest.mark.parametrize("scale", ["3/2", "2"])  # to 85 pixels: a band's end is as wide there as a taper
def test_taper_at_the_end_of_a_full_matrix_is_not_taken_for_a_smaller_one(truths: list[np.ndarray], scale: str) -> None:
    r, band = (Fraction(scale), Fraction(scale)), Band(taper=0.25)
    how, rng = Acquisition((band, band)), np.random.default_rng(1)
    size = tuple(int(n / r[0]) for n in truths[0].shape)
    for found in measure.bands_of([acquire(truth, r, how, size, rng)[0] for truth in truths]):
        assert found is not None
        assert found.fraction >= 0.96
        assert found.taper == band.taper


def end(band: Band) -> float:
    """Where the window has fallen to a fifth, as a part of Nyquist's frequency: beyond it little is left to be seen."""
    return float(np.argmax(band.window(1001, 1000) < 0.2)) / 1000


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "kspace"])
@pytest.mark.parametrize("scale", ["3/2", "2"])
def test_full_band_is_not_cropped(truths: list[np.ndarray], kernel: Any, scale: str) -> None:
    r = (Fraction(scale), Fraction(scale))
    for band in measure.bands_of([resample.downsample(truth, r, kernel) for truth in truths]):
        assert band is None or band.fraction > 0.9
        assert kernel == "kspace" or band in (None, Band())  # that one has a window


def smooth(scale: Fraction) -> list[np.ndarray]:
    """Slices of a real scan, blurred by half a pixel of an image that is smaller by `scale`, as denoised scans are."""
    volume = np.asarray(nib.load(SCAN).dataobj, np.float32)
    return [gaussian_filter(slice_, float(scale / 2)) for slice_ in np.moveaxis(Intensity.of(volume).normalise(volume), 2, 0)]


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", ["3/2", "3"])
def test_smooth_image_has_no_window(kernel: Any, scale: str) -> None:
    r = Fraction(scale)
    assert measure.bands_of([resample.downsample(slice_, (r, r), kernel) for slice_ in smooth(r)]) == (Band(), Band())


@pytest.mark.parametrize("rows", [0.7, 1.0])
def test_mild_window_of_a_smooth_image_is_not_taken_for_a_deep_one(rows: float) -> None:
    r, how, rng = Fraction(2), Acquisition((Band(rows, 0.25), Band(taper=0.25))), np.random.default_rng(0)
    for band in measure.bands_of([acquire(slice_, (r, r), how, (128, 128), rng)[0] for slice_ in smooth(r)]):
        assert band is not None
        assert band.taper <= 0.25


@pytest.mark.parametrize("kernel", ["bilinear", "kspace"])
def test_image_whose_spectrum_falls_steeply_has_no_deep_window(kernel: Any) -> None:
    frequency = np.fft.fftfreq(256) * 256
    falls = (1 + frequency[:, None] ** 2 + frequency**2) ** -1.25  # the power by the fifth power
    white = np.random.default_rng(0).normal(size=(256, 256))
    field = np.fft.ifft2(np.fft.fft2(white) * falls).real[:192, :160]
    image = np.asarray((field - field.min()) / np.ptp(field), np.float32)
    assert measure.bands_of([resample.downsample(image, (Fraction(2), Fraction(2)), kernel)]) == (Band(), Band())


@pytest.mark.parametrize("k", [0, 3, 4])
def test_small_single_slice_is_not_taken_for_a_windowed_one(k: int) -> None:
    volume = np.asarray(nib.load(SCAN).dataobj, np.float32)
    image = resample.downsample(Intensity.of(volume).normalise(volume)[..., k], (Fraction(4), Fraction(4)), "kspace")
    assert all(band is not None and band.taper <= resample.TAPER for band in measure.bands_of([image]))


@pytest.mark.parametrize("sigma", [0.02, 0.03, 0.05, 0.08])
def test_noise_is_found(truths: list[np.ndarray], sigma: float) -> None:
    band = Band(0.7)
    canonical = [Acquired((band, Band())).canonical(scan)[0] for scan in scans(truths, (band, Band()), sigma)]
    assert measure.noise_of(canonical) == pytest.approx(sigma, rel=0.15)


def test_noise_of_a_flat_image_is_its_standard_deviation() -> None:
    flat = np.random.default_rng(0).normal(0.5, 0.05, (200, 200)).astype(np.float32)
    assert measure.noise_of([flat]) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 300), (64, 64)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1e-30, -3.0])
def test_image_that_tells_nothing_is_taken_as_it_is(shape: tuple[int, int], value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = np.full(shape, value, np.float32)
        assert all(band in (None, Band()) for band in measure.bands_of([image]))
        assert measure.noise_of([image]) == pytest.approx(0, abs=1e-6)
    assert measure.noise_of([]) == 0
