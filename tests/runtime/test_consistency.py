"""How well an output, brought back to what was measured, equals the input."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.fft import dctn, idctn

from runtime import Upscaler, job, sidecar, volume
from runtime.acquired import LARGEST, STORED, Acquired, Band, Consistency
from runtime.intensity import Intensity
from runtime.job import Request, Task
from runtime.scan import Scan
from runtime.sizes import Size
from tests.runtime.test_acquired import zero_filled
from tests.runtime.test_through_plane import blobs

TWO = (Fraction(2), Fraction(2))


def found(up: Upscaler, scan: Scan, size: Size, dtype: Any = None, **asked: Any) -> tuple[Consistency, np.ndarray]:
    out, consistency = volume.prepared(scan, size, dtype), Consistency()
    volume.upscale(up.slices, scan, out, consistency=consistency, **({"acquired": "stored", "noise": 0.0} | asked))
    return consistency, out.pixels


def test_the_difference_is_that_of_the_measured_part_of_k_space() -> None:
    """By SciPy's cosine transform: the output without the frequencies that the measured matrix does not have."""
    rng = np.random.default_rng(0)
    measured, sr = rng.random((24, 30)).astype(np.float32), rng.random((64, 80)).astype(np.float32)
    back = idctn(dctn(sr, norm="ortho")[:24, :30], norm="ortho") * np.sqrt(measured.size / sr.size)
    difference = Acquired((Band(0.75), Band(0.75))).difference(zero_filled(measured, (32, 40)), sr, TWO)
    np.testing.assert_allclose(difference, measured - back, atol=1e-5)


def test_sums_are_those_of_all_slices() -> None:
    consistency = Consistency()
    assert (consistency.plain(), str(consistency)) == (None, "")
    consistency.add(np.array([[0.5, -0.25]], np.float32), 100.0)
    consistency.add(np.array([[0.0, 0.25]], np.float32), 200.0)
    assert consistency.plain() == {"rmse": 37.5, "worst": 50.0}  # the root of (50² + 25² + 50²) / 4
    assert str(consistency) == "consistency with what was measured: RMSE 37.5 (19 % of white), worst 50 (25 % of white)"


def test_all_grain_is_consistent_and_none_is_not(shipped: Upscaler) -> None:
    # Noise, of which the network takes a part off; far from the range's ends, where nothing is clipped.
    image = 500 + 20 * np.random.default_rng(0).standard_normal((40, 44)).astype(np.float32)
    image[0, :2] = 0, 1000
    none, half, whole = (found(shipped, Scan(image), Size(2), noise=0.02, grain=grain)[0] for grain in (0.0, 0.5, 1.0))
    assert none.rmse > 5
    assert half.rmse < 0.7 * none.rmse  # half, and what is clipped at the spot
    assert whole.rmse < none.rmse / 2  # what is clipped is left


def test_pixels_count_as_they_are_stored(linear: Upscaler) -> None:
    """Rounded, in units of values with their slope, whichever dtype the output has."""
    scan = Scan(blobs((30, 32, 3)), (1, 1, 3), np.diag([1.0, 1, 3, 1]))
    exact = found(linear, Scan(scan.pixels.astype(np.float32), (1, 1, 3), np.diag([1.0, 1, 3, 1])), Size(2))[0]
    assert found(linear, scan, Size(2))[0].rmse == pytest.approx(exact.rmse, abs=0.05)
    coarse = Scan(scan.pixels // 100, (1, 1, 3), np.diag([1.0, 1, 3, 1]))
    (rounded, whole), (smooth, pixels) = (found(linear, coarse, Size(2), dtype) for dtype in (None, np.float32))
    np.testing.assert_array_equal(whole, np.rint(pixels))
    off = [
        STORED.difference(*(coarse.pixels[..., k].astype(np.float32), whole[..., k].astype(np.float32)), TWO) for k in range(3)
    ]
    assert rounded.rmse == pytest.approx(float(np.sqrt(np.mean(np.square(off)))), rel=1e-4)
    assert rounded.rmse != pytest.approx(smooth.rmse, rel=1e-3)
    for dtype in (None, np.float32):  # stored numbers, and real values
        sloped = Scan(scan.pixels, (1, 1, 3), np.diag([1.0, 1, 3, 1]), slope=-0.5, inter=40.0)
        assert found(linear, sloped, Size(2), dtype)[0].rmse == pytest.approx(exact.rmse / 2, rel=0.02)


def test_values_that_are_set_aside_count_as_black(linear: Upscaler) -> None:
    data = blobs((30, 32, 3)).astype(np.float32)
    data[3:5, 4:6] = data.min()
    known = found(linear, Scan(data, (1, 1, 3), np.diag([1.0, 1, 3, 1])), Size(2))[0]
    data[3:5, 4:6] = np.nan
    consistency, pixels = found(linear, Scan(data, (1, 1, 3), np.diag([1.0, 1, 3, 1])), Size(2))
    assert np.isnan(pixels).sum() == 4 * 4 * 3
    assert consistency.rmse == pytest.approx(known.rmse, rel=0.1)  # black is no longer just the same


def test_nothing_is_said_where_the_network_was_not_used_or_a_slice_is_too_large(linear: Upscaler) -> None:
    labels = Scan(np.eye(20, dtype=np.uint8), labels=True)
    assert found(linear, labels, Size(2))[0].plain() is None
    assert found(linear, Scan(np.ones((2, LARGEST + 1), np.uint8)), Size((1, 1.1)))[0].plain() is None


@pytest.mark.parametrize("scale", [(1, 1, 3), (2, 2, 3), (1, 1, 2.5)])
def test_thick_slices_are_compared_with_the_mean_of_the_thin_ones_in_them(linear: Upscaler, scale: tuple[float, ...]) -> None:
    scan = Scan(blobs((24, 26, 5)).astype(np.float32), (1, 1, 3), np.diag([1.0, 1, 3, 1]))
    consistency, pixels = found(linear, scan, Size(scale), grain=1.0)
    assert consistency.count == scan.pixels.size
    assert consistency.rmse < 0.01 * np.ptp(scan.pixels)  # what is clipped to the range
    pixels[..., 0] += 200
    into, intensity = Consistency(), Intensity.of(scan.pixels)
    by_axis = Size(scale).of(scan.shape, scan.spacing, 2)
    volume._compare(into, scan, scan.pixels, pixels, by_axis, intensity, STORED)
    share = 1 / scale[2]  # of the first thick slice lies in the first thin one
    assert into.rmse == pytest.approx(200 * share / np.sqrt(5), rel=0.05)


def test_a_view_has_the_same_figures(shipped: Upscaler) -> None:
    image = blobs((60, 64, 1))[..., 0]
    view = shipped.encode(image, noise=0.02)
    for grain in (0.0, 1.0):
        of_view = view.consistency(2, grain=grain)
        of_run = found(shipped, Scan(image), Size(2), np.float32, acquired="auto", noise=0.02, grain=grain)[0]
        assert (of_view.rmse, of_view.worst) == pytest.approx((of_run.rmse, of_run.worst), rel=1e-3)


def test_a_run_says_it_and_so_does_its_sidecar(shipped: Upscaler, tmp_path: Path) -> None:
    image = nib.Nifti1Image(blobs((30, 32, 3)), np.diag([1.0, 1, 3, 1]))
    nib.save(image, tmp_path / "in.nii")
    for anonymous in (False, True):
        task = Task(tmp_path / "in.nii", tmp_path / f"out{anonymous}.nii")
        result = job.run(shipped, task, Request(Size(2), anonymous=anonymous))
        told = sidecar.read(task.output)["consistency"]
        expected = found(shipped, Scan(blobs((30, 32, 3)), (1, 1, 3), image.affine), Size(2), acquired="auto", noise=None)[0]
        assert told == expected.plain()
        assert 0 < told["rmse"] < told["worst"]
        assert result.notes[1] == str(expected)
