from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.fft import dctn, idctn

from runtime import Upscaler
from runtime.acquired import STORED, Acquired, Band
from runtime.intensity import Intensity
from tests.reference import crop_to_acquired

UNIT = Intensity(low=-np.inf, high=np.inf, black=0.0, white=1.0)


@pytest.mark.parametrize("band", [Band(0.7), Band(0.75, 0.25), Band(1.0, 0.5), Band(0.6, 1.0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_canonical_form_is_the_central_part_of_k_space(band: Band, axis: int) -> None:
    image = np.random.default_rng(0).random((44, 52)).astype(np.float32)
    canonical, spacing = Acquired((band, Band()) if axis == 0 else (Band(), band)).canonical(image)
    assert spacing[axis] == band.spacing
    assert spacing[1 - axis] == 1
    expected = crop_to_acquired(image, axis, band.spacing, band.fraction, band.taper)
    np.testing.assert_allclose(canonical, expected, atol=2e-6)


def test_whole_matrix_is_left_alone() -> None:
    image = np.random.default_rng(0).random((31, 40)).astype(np.float32)
    canonical, spacing = STORED.canonical(image)
    assert canonical is image
    assert spacing == (1, 1)


@pytest.mark.parametrize("fraction", np.linspace(0.3, 0.95, 27))
def test_canonical_spacing_is_simple_and_near_what_was_measured(fraction: float) -> None:
    spacing = Band(fraction).spacing
    assert abs(1 / spacing - fraction) <= 0.01
    assert spacing.denominator <= 20
    assert spacing > 1
    assert Band(0.7).spacing == Fraction(10, 7)
    assert Band(0.75).spacing == Fraction(4, 3)


def test_measured_scan_comes_back_exactly() -> None:
    """What zero filling interpolated is what it was interpolated from: same values, outer edges in place."""
    stored = zero_filled(measured := np.random.default_rng(0).random((48, 60)).astype(np.float32), (64, 90))
    canonical, spacing = Acquired((Band(0.75), Band(2 / 3))).canonical(stored)
    assert spacing == (Fraction(4, 3), Fraction(3, 2))
    np.testing.assert_allclose(canonical, measured, atol=1e-5)


def zero_filled(measured: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """By SciPy's cosine transform: more of it, the rest zero."""
    scale = np.sqrt(np.prod(shape) / measured.size)
    return (scale * idctn(dctn(measured, norm="ortho"), s=shape, norm="ortho")).astype(np.float32)


def test_white_noise_keeps_its_sigma() -> None:
    stored = zero_filled(np.random.default_rng(0).standard_normal((200, 200)), (400, 400))
    canonical, _ = Acquired((Band(0.5), Band(0.5))).canonical(stored)
    assert stored.std() == pytest.approx(1, abs=0.02)
    assert canonical.std() == pytest.approx(1, abs=0.02)


def test_undone_window_gains_no_more_than_12_db() -> None:
    gains = Band(1.0, 1.0).gains(100, 100)
    assert gains[0] == 1
    assert gains.max() == 4
    assert (np.diff(gains) >= 0).all()
    assert Band(0.5).gains(4, 6).tolist() == [1, 1, 1, 0]  # and nothing where nothing was measured


@pytest.mark.parametrize("band", [Band(0.8), Band(0.8, 0.25), Band(0.9, 1.0), Band(0.9, 1.0, 0.08), Band(1.0, 0.5, 0.3)])
def test_soft_is_the_part_of_the_band_that_is_not_wholly_undone(band: Band) -> None:
    size = 10_000
    measured = round(band.fraction * size)
    undone = band.window(measured, size) * band.gains(measured, size)
    assert band.soft == pytest.approx(np.mean(undone < 0.9999), abs=2e-3)


@pytest.mark.parametrize("scale", ["2", "3/2", "2.1", "1.7320508"])
@pytest.mark.parametrize("band", [Band(), Band(0.7), Band(0.8, 0.25)])
def test_full_grain_gives_the_measured_image_back(random_upscaler: Upscaler, scale: str, band: Band) -> None:
    """Brought down again, the output is the input: also where its size is no whole multiple."""
    image = np.random.default_rng(1).random((47, 60)).astype(np.float32)
    acquired, scales = Acquired((band, Band())), (Fraction(scale), Fraction(scale))
    kept, left_out = (random_upscaler.slices.upscale(image, UNIT, scales, np.float32, acquired, grain) for grain in (1, 0))
    assert np.abs(acquired.lacking(image, left_out, scales)).max() > 0.01
    np.testing.assert_allclose(acquired.lacking(image, kept, scales), 0, atol=1e-5 * np.ptp(left_out))


def test_full_grain_on_nothing_is_zero_filling() -> None:
    measured = np.random.default_rng(0).random((48, 60)).astype(np.float32)
    stored, scales = zero_filled(measured, (64, 60)), (Fraction(2), Fraction(2))
    acquired = Acquired((Band(0.75), Band()))
    lacks = acquired.lacking(stored, np.zeros((128, 120), np.float32), scales)
    given = acquired.given_back(lacks, stored.shape, scales)
    np.testing.assert_allclose(given, zero_filled(measured, (128, 120)), atol=1e-5)
    part = acquired.given_back(lacks, stored.shape, scales, slice(3, 9), slice(100, 120))
    np.testing.assert_allclose(part, given[3:9, 100:], atol=1e-6)


def test_grain_of_a_window_is_that_of_the_whole(random_upscaler: Upscaler) -> None:
    image = np.random.default_rng(1).random((47, 60)).astype(np.float32)
    view = random_upscaler.encode(image, acquired=(33, 60))
    whole = random_upscaler(image, 2.1, acquired=(33, 60), grain=0.5)
    np.testing.assert_allclose(view.render(2.1, grain=0.5), whole, atol=1e-5)
    part = view.render(2.1, window=(7, 20, 31, 50), grain=0.5)
    np.testing.assert_allclose(part, whole[7:38, 20:70], atol=1e-5)


@pytest.mark.parametrize("scale", ["2", "2.1", "1.7320508"])
@pytest.mark.parametrize("matrix", [(33, 60), (33, 41), (47, 41)])
def test_acquired_matrix_changes_no_size(random_upscaler: Upscaler, scale: str, matrix: tuple[int, int]) -> None:
    image = np.random.default_rng(1).random((47, 60)).astype(np.float32)
    assert random_upscaler(image, scale, acquired=matrix).shape == random_upscaler(image, scale, acquired="stored").shape


@pytest.mark.parametrize("matrix", [(33, 60), (33, 41)])
def test_cropped_slices_show_no_tiles(random_upscaler: Upscaler, matrix: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((83, 101), np.float32)
    whole = random_upscaler(image, 2.1, acquired=matrix)
    tiled = Upscaler.load(random_upscaler.bundle, tile=23)(image, 2.1, acquired=matrix)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5 * np.ptp(whole))


def test_edges_stay_where_they_are(linear: Upscaler) -> None:
    """A block between two edges stays between them, however little of k-space its scan measured."""
    measured = np.zeros((48, 48), np.float32)
    measured[12:36, 16:32] = 1
    stored = zero_filled(measured, (96, 96)).clip(0, 1)
    sr = linear(stored, 2, acquired=(48, 48))
    places = np.arange(192) + 0.5
    for axis, (low, high) in enumerate(((48, 144), (64, 128))):
        weights = sr.sum(1 - axis)
        assert (weights * places).sum() / weights.sum() == pytest.approx((low + high) / 2, abs=0.05)


def test_constant_stays_constant(random_upscaler: Upscaler) -> None:
    sr = random_upscaler(np.full((60, 60), 7, np.uint8), 2, acquired=(30, 44))
    np.testing.assert_array_equal(sr, 7)
