"""Thick slices made thin: geometry, what is given back to them, and that it is worth it."""

from __future__ import annotations

import itertools
from fractions import Fraction

import nibabel as nib
import numpy as np
import pytest

from runtime import ImageError, ScaleError, Upscaler, grid, through_plane
from runtime.acquired import STORED
from runtime.intensity import Intensity
from tests.conftest import SCAN


def blobs(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Smooth random structure of a few voxels' size, int16, 0 to 1000."""
    noise = np.fft.rfftn(np.random.default_rng(seed).random(shape))
    frequencies = np.meshgrid(*map(np.fft.fftfreq, shape[:2]), np.fft.rfftfreq(shape[2]), indexing="ij")
    smooth = np.fft.irfftn(noise * np.exp(-60 * sum(f**2 for f in frequencies)), shape, axes=(0, 1, 2))
    return np.rint((smooth - smooth.min()) / np.ptp(smooth) * 1000).astype(np.int16)


def psnr(truth: np.ndarray, image: np.ndarray) -> float:
    return float(20 * np.log10(np.ptp(truth) / np.sqrt(np.mean((truth - image) ** 2))))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("scale", ["2", "3", "5/2", "1.3"])
def test_a_spot_keeps_its_place_in_millimetres(linear: Upscaler, axis: int, scale: str) -> None:
    shape, spot = [13, 14, 15], [6, 7, 8]
    data = np.zeros(shape, np.float32)
    data[tuple(spot)] = 1
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ np.diag([1.0, 2.0, 3.0]), [5, 6, 7])
    scales = tuple(scale if k == axis else 1 for k in range(3))
    result = linear.volume(nib.Nifti1Image(data, affine), scales, axis=axis)
    assert result.shape == tuple(int(n * Fraction(r)) for n, r in zip(shape, scales))
    bright = result.get_fdata()
    centre = [(bright * i).sum() / bright.sum() for i in np.indices(bright.shape)]
    moved = np.linalg.inv(affine) @ result.affine @ [*centre, 1] - [*spot, 1]
    # In input voxels. Symmetric to rounding at whole scales; elsewhere the samples of a spot have their centre of mass up to
    # 0.06 off; half an output voxel wrong in the grid or the affine is 0.17 and more.
    assert np.abs(moved).max() < (1e-4 if scale in "23" else 0.08)


@pytest.mark.parametrize("scale", [2, 3, 6])
def test_thin_slices_are_in_the_mean_the_thick_one(linear: Upscaler, scale: int) -> None:
    thick = blobs((12, 13, 5)).astype(np.float32)
    thin = through_plane.upscale(linear.slices, thick, 2, Fraction(scale), Intensity.of(thick))
    means = thin.reshape(12, 13, 5, scale).mean(-1)
    inside = (thick > thick.min() + 200) & (thick < thick.max() - 200)  # where nothing is clipped to the range
    assert inside.mean() > 0.3
    np.testing.assert_allclose(means[inside], thick[inside], atol=0.01)  # float32 of 1000
    assert thin.min() >= thick.min()
    assert thin.max() <= thick.max()


def test_overlap_is_the_length_that_slices_share() -> None:
    assert grid.overlap(2, Fraction(2)).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert grid.overlap(3, Fraction(3, 2)).tolist() == [[1, 0.5, 0, 0], [0, 0.5, 1, 0], [0, 0, 0, 1]]
    for size, scale in itertools.product((2, 7, 31), ("11/10", "7/3", "50/9")):
        shared = grid.overlap(size, Fraction(scale))
        np.testing.assert_allclose(shared.sum(0), 1)  # each thin slice lies in thick ones, wholly
        assert (shared.sum(1) > 0).all()


def test_it_is_the_mean_of_both_orientations_plus_what_is_given_back(shipped: Upscaler) -> None:
    """The slow and obvious twin."""
    thick = blobs((9, 10, 4)).astype(np.float32)
    intensity, scales = Intensity.of(thick), (Fraction(1), Fraction(3))
    result = np.zeros((9, 10, 12))
    for x in range(9):
        result[x] += shipped.slices.upscale(thick[x], intensity, scales, np.float32) / 2
    for y in range(10):
        result[:, y] += shipped.slices.upscale(thick[:, y], intensity, scales, np.float32) / 2
    for z in range(4):
        lacks = thick[:, :, z] - result[:, :, 3 * z : 3 * z + 3].mean(-1)
        result[:, :, 3 * z : 3 * z + 3] += lacks[..., None]
    result = result.clip(intensity.low, intensity.high)
    np.testing.assert_allclose(through_plane.upscale(shipped.slices, thick, 2, Fraction(3), intensity), result, atol=0.01)


@pytest.mark.parametrize("scale", [2, 4])
def test_it_beats_linear_interpolation(shipped: Upscaler, linear: Upscaler, scale: int) -> None:
    """On a real scan whose rows are averaged: within a slice is the only place where it has detail to lose."""
    thin = np.asarray(nib.load(SCAN).dataobj)[64:192, 80:176, 2:6].astype(np.float32)
    thick = thin.reshape(-1, scale, *thin.shape[1:]).mean(1)
    ours = through_plane.upscale(shipped.slices, thick, 0, Fraction(scale), Intensity.of(thick))
    places = (np.arange(len(thin)) + 0.5) / scale - 0.5
    simple = np.apply_along_axis(lambda line: np.interp(places, np.arange(len(line)), line), 0, thick)
    assert psnr(thin, ours) > psnr(thin, simple) + 0.5  # dB; 1 to 4 on whole volumes (docs/through-plane.md)


def test_within_and_through_the_plane_at_once(shipped: Upscaler) -> None:
    data = blobs((16, 14, 4))
    scan = nib.Nifti1Image(data, np.diag([1.0, 1.0, 4.0, 1.0]))
    seen: list[tuple[int, int]] = []
    result = shipped.volume(scan, spacing=("0.5", "0.5", "1"), progress=lambda done, total: seen.append((done, total)))
    assert result.shape == (32, 28, 16)
    np.testing.assert_allclose(result.header.get_zooms(), (0.5, 0.5, 1.0))
    assert result.get_data_dtype() == np.int16
    assert seen[-1] == (16 + 14 + 16, 46)  # planes both ways, then slices
    corner = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(result.affine @ corner, scan.affine @ corner, atol=1e-9)
    thin = shipped.volume(scan, (1, 1, 4), dtype=np.float32)
    after = shipped.volume(thin, 2, axis=2, dtype=np.float32)
    assert np.abs(np.asarray(result.dataobj) - np.asarray(after.dataobj)).mean() < 3  # of 1000: another 99.9th percentile


def test_isotropic_is_as_fine_as_the_finest(shipped: Upscaler) -> None:
    scan = nib.Nifti1Image(blobs((8, 9, 4)), np.diag([0.8, 0.8, 2.0, 1.0]))
    result = shipped.volume(scan, isotropic=True)
    assert result.shape == (8, 9, 10)
    np.testing.assert_allclose(result.header.get_zooms(), 0.8, rtol=1e-6)


def test_times_of_a_series_are_upscaled_each_by_itself(shipped: Upscaler) -> None:
    data = np.stack([blobs((8, 9, 4)), blobs((8, 9, 4), 1)], -1)
    image = nib.Nifti1Image(data, np.diag([1.0, 1.0, 2.0, 1.0]))
    result = shipped.volume(image, (1, 1, 2), axis=2, dtype=np.float32, acquired=STORED)
    intensity = Intensity.of(data)
    for k in range(2):
        alone = through_plane.upscale(shipped.slices, data[..., k], 2, Fraction(2), intensity)
        np.testing.assert_array_equal(np.asarray(result.dataobj)[..., k], alone)


def test_one_slice_has_nothing_between_slices(shipped: Upscaler) -> None:
    for shape in ((8, 9), (8, 9, 1)):
        scan = nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4))
        with pytest.raises((ScaleError, ImageError), match="more slices of one"):
            shipped.volume(scan, (2, 2, 2))
