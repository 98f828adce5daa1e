from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from runtime.acquired import Band
from train import degradations, scanner
from train.scanner import Acquisition, acquire, canonical_patch

TWO = (Fraction(2), Fraction(2))


def truth(shape: tuple[int, int] = (96, 80)) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    head = 0.5 * (np.hypot(y, x) < 0.8) + 0.2 * (np.hypot(y - 0.1, x + 0.2) < 0.3)
    return head.astype(np.float32)


def scan_of(image: np.ndarray, how: Acquisition, **options: float) -> tuple[np.ndarray, np.ndarray]:
    shape = tuple(n // 2 for n in image.shape)
    return acquire(image, TWO, how, shape, np.random.default_rng(0), **options)


def spectrum(image: np.ndarray) -> np.ndarray:
    """|DCT-II|, by the Fourier transform of the image mirrored at its borders."""
    mirrored = np.block([[image, image[:, ::-1]], [image[::-1], image[::-1, ::-1]]])
    return np.abs(np.fft.fft2(mirrored))[: image.shape[0], : image.shape[1]]


def test_scan_holds_nothing_beyond_the_acquired_matrix() -> None:
    image = np.random.default_rng(0).random((96, 80)).astype(np.float32) + 5  # so bright that the magnitude changes nothing
    scan, _ = scan_of(image, Acquisition((Band(0.75), Band(0.5))))
    power = spectrum(scan)
    assert power[37:].max() < 1e-3 * power[1:36, 1:20].mean()
    assert power[:, 21:].max() < 1e-3 * power[1:36, 1:20].mean()


def test_ellipse_leaves_the_corners_out() -> None:
    image = np.random.default_rng(0).random((96, 80)).astype(np.float32) + 5
    power = spectrum(scan_of(image, Acquisition((Band(), Band()), ellipse=True))[0])
    y, x = np.mgrid[:48, :40] / np.array([48, 40])[:, None, None]
    assert power[np.hypot(y, x) > 1.05].max() < 1e-3 * power[np.hypot(y, x) < 0.95].mean()


@pytest.mark.parametrize("window", ["hard", "tukey", "hamming"])
@pytest.mark.parametrize("fraction", [1.0, 0.7])
def test_noise_is_as_strong_as_it_says_in_canonical_form(fraction: float, window: str) -> None:
    flat = np.full((256, 256), 0.8, np.float32)
    degradation = degradations.scan((fraction, fraction), window, 0.02)
    canonical, _ = degradation.acquired.canonical(degradation.of(flat, TWO))
    assert canonical.std() == pytest.approx(degradation.acquired.sigma, rel=0.05)
    assert 0.013 < degradation.acquired.sigma <= 0.02


def test_background_is_rician() -> None:
    """The magnitude of noise alone: Rayleigh's mean, σ·√(π/2)."""
    scan, _ = scan_of(np.zeros((256, 256), np.float32), Acquisition((Band(), Band()), sigma=0.02))
    assert scan.mean() == pytest.approx(0.02 * np.sqrt(np.pi / 2), rel=0.02)


def test_seen_noise_is_in_the_truth() -> None:
    """All of it: then the scan is that of a noisy object, and nothing is left to be taken off."""
    image = truth((128, 128)) + 0.5
    how = Acquisition((Band(), Band()), sigma=0.05)
    scan, noisy = scan_of(image, how, seen=1.0)
    again, _ = scan_of(noisy, Acquisition((Band(), Band())))
    assert np.std(noisy - image) > 0.02
    assert np.std(scan - again) < 0.003
    assert np.std(scan - scan_of(image, Acquisition((Band(), Band())))[0]) > 0.04


def test_partial_fourier_blurs_and_leaves_the_mean() -> None:
    image = truth() + 0.2
    whole, part = (scan_of(image, Acquisition((Band(), Band()), partial=p))[0] for p in (None, 0))
    assert part.mean() == pytest.approx(whole.mean(), rel=0.01)
    steepness = [np.abs(np.diff(scan, axis=0)).max() for scan in (part, whole)]
    assert steepness[0] < 0.95 * steepness[1]


@pytest.mark.parametrize("scale", ["2", "2.9", "6"])
def test_canonical_patch_lies_on_its_truth(scale: str) -> None:
    image = np.pad(truth((168, 168)), 12)
    r = Fraction(scale)
    rng = np.random.default_rng(3)
    for _ in range(8):
        lr, hr, told = canonical_patch(image, (r, r), (6, 6), (24, 24), 0.0, rng)
        assert told[0] == 0
        assert hr is image
        places = 6 + (np.arange(24) + 0.5) * float(r) - 0.5
        inside = places < 191
        nearest = image[np.ix_(*[places[inside].round().astype(int)] * 2)]
        assert np.corrcoef(lr[np.ix_(inside, inside)].ravel(), nearest.ravel())[0, 1] > 0.85


def test_told_sigma_is_that_of_the_patch() -> None:
    """Over many draws of windows and their estimates, where all of the noise is told: to the error that is drawn with it.

    Not where the corners of k-space are left out, or one side of it: those have less noise than they are told.
    """
    flat = np.full((160, 160), 0.8, np.float32)
    rng, ratios = np.random.default_rng(0), []
    for _ in range(150):
        lr, hr, told = canonical_patch(flat, TWO, (0, 0), (80, 80), 0.03, rng)
        if hr is flat:
            ratios.append(told[0] / lr.std())
    assert len(ratios) > 90
    assert np.median(ratios) == pytest.approx(1, abs=0.1)
    assert np.quantile(ratios, 0.2) > 0.85
    assert np.quantile(ratios, 0.7) < 1.2


def test_scan_degradation_tells_what_is_true_of_it() -> None:
    degradation = degradations.scan((0.7, 1.0), "tukey", 0.02)
    lr = degradation.of(truth(), TWO)
    assert lr.shape == (48, 40)
    assert degradation.acquired.bands == (Band(0.7, 0.25), Band(1.0, 0.25))
    np.testing.assert_array_equal(degradation.of(truth(), TWO), lr)  # the same noise every time
    assert scanner.HAMMING.window(2, 2)[0] == 1
