from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import InputFileError, grid
from runtime.acquired import Band
from runtime.intensity import Intensity
from tests import reference
from tests.conftest import SCAN
from train import data, resample
from train.augment import Augment
from train.config import Stage
from train.scanner import Acquisition, acquire

STAGE = Stage(batch=4, patch=48, patches_per_crop=3, degradations=("bilinear", "bicubic"))


@pytest.fixture(scope="module")
def crops() -> list[data.Crop]:
    return [data.Crop(np.random.default_rng(k).random((70 + k, 64), np.float32) + 10 * k, f"{k}.png") for k in range(5)]


def test_batches_are_a_pure_function_of_seed_and_update(crops: list[data.Crop]) -> None:
    augment = Augment(zoom=0.5, smooth=0.5, curve=0.5, strip=0.5, noise=0.5)
    stage = replace(STAGE, anisotropic=0.5, augment=augment)
    for update in (0, 3, 1000):
        first, again = data.Batches(crops, stage)[update], data.Batches(crops, stage)[update]
        other = data.Batches(crops, replace(stage, seed=1))[update]
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_an_epoch_takes_every_crop_equally_often(crops: list[data.Crop]) -> None:
    b = data.Batches(crops, STAGE)
    drawn = [source for update in range(15) for source in b.sources_of(update)]  # 60 patches: 4 epochs of 5·3
    assert [drawn.count(crop.source) for crop in crops] == [12] * 5
    assert sorted(drawn[:15]) == sorted(drawn[15:30]) != drawn[:15]


def test_processes_share_an_update(crops: list[data.Crop]) -> None:
    """Two processes of batch 2 see what one of batch 4 does: the same patches, in order."""
    whole = data.Batches(crops, STAGE)
    half = replace(STAGE, batch=2)
    for update in (0, 7):
        parts = [data.Batches(crops, half, rank, world=2)[update] for rank in (0, 1)]
        for side in (0, 1, 2):
            np.testing.assert_array_equal(np.concatenate([part[side] for part in parts]), whole[update][side])
        assert parts[0][3] == parts[1][3] == whole[update][3]


def test_a_batch_has_one_scale_of_the_paper_and_shapes_of_the_shared_grid(crops: list[data.Crop]) -> None:
    seen = set()
    for update in range(200):
        lr, hr, _, (scale, other) = data.Batches(crops, STAGE)[update]
        n = int(48 / scale)
        assert scale == other
        assert lr.shape == (4, 1, n, n)
        assert hr.shape == (4, 1, *[grid.output_size(n, scale)] * 2)
        seen.add(scale)
    assert seen <= set(grid.PAPER_SCALES)
    assert len(seen) > 25


def test_anisotropic_batches_draw_a_scale_for_each_axis(crops: list[data.Crop]) -> None:
    b = data.Batches(crops, replace(STAGE, anisotropic=0.5))
    drawn = [b.scales_of(update) for update in range(400)]
    # A half, and of that half one in thirty by chance is equal: 400 draws of 0.5 lie within 0.4…0.6 but for one in 10,000.
    assert 0.4 < sum(y != x for y, x in drawn) / 400 < 0.6
    assert sum(y == 1 for y, _ in drawn) > 0 < sum(x == 1 for _, x in drawn)
    assert (1, 1) not in drawn
    lr, hr, _, scales = b[next(u for u, (y, x) in enumerate(drawn) if 1 < y < x)]
    assert lr.shape[2:] == tuple(int(48 / r) for r in scales)
    assert hr.shape[2:] == tuple(grid.output_size(n, r) for n, r in zip(lr.shape[2:], scales))


def test_input_patch_bounds_what_a_small_scale_costs(crops: list[data.Crop]) -> None:
    """From anywhere in a crop, its far edges included, and with the pixels around that downsampling wants."""
    ramp = np.add.outer(1000.0 * np.arange(70), np.arange(64)).astype(np.float32)
    stage = replace(STAGE, input_patch=16, degradations=("bilinear",), augment=Augment(gain=(1, 1)))
    b = data.Batches([data.Crop(ramp, "ramp")], stage)
    corners = set()
    for update in range(300):
        lr, hr, _, (scale, _) = b[update]
        n = min(int(48 / scale), 16)
        assert lr.shape == (4, 1, n, n)
        assert hr.shape == (4, 1, *[grid.output_size(n, scale)] * 2)
        corners |= {(int(h.min()) // 1000, int(h.max()) // 1000) for h in hr[:, 0]}
    assert {first for first, _ in corners} >= set(range(40))
    assert max(last for _, last in corners) >= 69


def test_lr_is_the_downsampled_hr_in_every_flip(crops: list[data.Crop]) -> None:
    for update in range(60):
        lr, hr, _, (scale, _) = data.Batches(crops, STAGE)[update]
        for small, large in zip(lr[:, 0], hr[:, 0]):
            inner = slice(2, -3)  # what the patch itself decides: a bicubic kernel reaches two lr pixels
            ways = [reference.downsample(large, scale, k, (0, 0), small.shape) for k in STAGE.degradations]
            assert min(np.abs(small - way)[inner, inner].max() for way in ways) < 1e-4  # of values up to 50


def test_jpeg_slices_are_averaged_two_by_two(tmp_path: Path) -> None:
    pixels = np.zeros((80, 90), np.uint8)
    pixels[10:70, 11:81] = 200
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert data.load_crops([tmp_path / "a.jpg"], 16)[0].pixels.shape == (
        30,
        36,
    )  # columns 11 and 80 half bright
    assert data.load_crops([tmp_path / "a.png"], 16)[0].pixels.shape == (60, 70)


def test_volumes_give_their_filled_slices_with_one_range(tmp_path: Path) -> None:
    volume = np.zeros((40, 36, 5), np.int16)
    volume[5:35, 4:30, 1] = 100
    volume[5:35, 4:30, 3] = 1000
    nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 5, 1])), tmp_path / "v.nii.gz")
    crops = data.load_crops([tmp_path / "v.nii.gz"], 16)
    assert [c.pixels.shape for c in crops] == [(30, 26)] * 2
    assert [c.source for c in crops] == ["v.nii.gz slice 1", "v.nii.gz slice 3"]
    assert [float(c.pixels.max()) for c in crops] == [pytest.approx(0.1), pytest.approx(1.0)]


def test_small_crops_are_widened_and_small_images_left_out(tmp_path: Path) -> None:
    pixels = np.zeros((50, 60), np.uint8)
    pixels[2:6, 50:58] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (crop,) = data.load_crops([tmp_path / "a.png"], 32)
    assert crop.pixels.shape == (32, 32)
    assert (crop.pixels > 0).sum() == 32
    assert data.load_crops([tmp_path / "a.png"], 51) == []


def test_slices_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, size in (("small.png", 20), ("large.png", 60)):
        Image.fromarray(np.eye(size, dtype=np.uint8) * 200).save(tmp_path / name)
    with caplog.at_level("INFO"):
        assert len(data.load_crops(sorted(tmp_path.iterdir()), 32)) == 1
    assert "1 slices smaller than 32 pixels" in caplog.text


def test_npy_stacks_are_slices_with_one_range_and_colour_is_luminance(tmp_path: Path) -> None:
    stack = np.zeros((3, 40, 44), np.float32)
    stack[0] += 100
    stack[2] += 1000
    np.save(tmp_path / "a.npy", stack)
    first, third = data.load_crops([tmp_path / "a.npy"], 32)  # the second is black
    assert (first.source, third.source) == ("a.npy slice 0", "a.npy slice 2")
    assert (float(first.pixels.max()), float(third.pixels.max())) == (pytest.approx(0.1), pytest.approx(1.0))
    colours = np.full((40, 40, 3), 255, np.uint8)
    colours[0], colours[10:30] = 0, (0, 255, 0)
    Image.fromarray(colours).save(tmp_path / "b.png")
    (crop,) = data.load_crops([tmp_path / "b.png"], 32)
    assert crop.pixels[20, 20] == pytest.approx(0.587, abs=1e-3)  # BT.601's weight of green


@pytest.mark.parametrize(
    ("array", "said"),
    [(np.zeros(7), r"shape \(7,\)"), (np.full((40, 40), np.nan), "NaN"), (np.zeros((2, 3, 4, 5)), r"shape \(2, 3, 4, 5\)")],
)
def test_a_file_that_is_no_slice_is_named(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "odd.npy", array)
    with pytest.raises(InputFileError, match=f"odd.npy.*{said}"):
        data.load_crops([tmp_path / "odd.npy"], 32)


def test_scales_are_of_the_stage(crops: list[data.Crop]) -> None:
    b = data.Batches(crops, replace(STAGE, scales=(Fraction(2),)))
    assert {b.scales_of(update) for update in range(20)} == {(Fraction(2), Fraction(2))}


def test_zero_filled_truths_are_cropped_to_what_was_measured(tmp_path: Path) -> None:
    """A slice of which three quarters of the columns were measured has three quarters of them left."""
    truth = resample.downsample(head_of(SCAN), (Fraction(3, 2), Fraction(3, 2)), "bicubic")
    one = (Fraction(1), Fraction(1))
    scan, _ = acquire(truth, one, Acquisition((Band(), Band(0.75)), 0.01), truth.shape, np.random.default_rng(0))
    np.save(tmp_path / "a.npy", scan)
    (stored,) = data.load_crops([tmp_path / "a.npy"], 32)
    (acquired,) = data.load_crops([tmp_path / "a.npy"], 32, truths="acquired")
    assert acquired.pixels.shape[0] == pytest.approx(stored.pixels.shape[0], abs=2)
    assert acquired.pixels.shape[1] == pytest.approx(0.75 * stored.pixels.shape[1], rel=0.08)  # of one slice alone


@pytest.mark.parametrize("degradation", ["bilinear", "scanner", "canonical"])
def test_noise_is_told_to_the_network(crops: list[data.Crop], degradation: str) -> None:
    stage = replace(STAGE, batch=32, degradations=(degradation,), augment=Augment(noise=0.5), scales=(Fraction(3, 2),))
    told = data.Batches(crops, stage)[0][2]
    assert told.dtype == np.float32
    assert told.shape == (32, 3)
    assert told[:, 0].min() < 0.011  # what an estimate finds where there is no noise
    assert told[:, 0].max() > 0.02
    assert told[:, 1:].any() == (degradation != "bilinear")  # soft ends of bands


@pytest.mark.parametrize("degradation", ["bilinear", "scanner", "canonical"])
def test_last_patches_are_the_first_ones_with_faint_discs(crops: list[data.Crop], degradation: str) -> None:
    stage = replace(
        STAGE, batch=8, degradations=(degradation,), augment=Augment(noise=1, spots=0.5), scales=(Fraction(2),), faint=0.1
    )
    lr, hr, told, _ = data.Batches(crops, stage)[0]
    assert stage.twins == 2
    changed = [twin - first for twin, first in ((hr[-2:], hr[:2]), (lr[-2:], lr[:2]))]
    for sigma, truth, seen in zip(told[:2, 0], *changed):
        assert (truth != 0).mean() < 0.5
        assert 0.5 * sigma < np.abs(truth).max() < 8 * sigma  # what is left of the noise is told: no more than there was
        assert 0.2 * np.abs(truth).max() < np.abs(seen).max() < 3 * np.abs(truth).max()
    np.testing.assert_array_equal(told[-2:], told[:2])
    none = data.Batches(crops, replace(stage, faint=0.0))[0]
    np.testing.assert_array_equal(hr[:6], none[1][:6])


def test_brain_crop_is_the_smallest_rectangle_of_tissue() -> None:
    image = np.zeros((50, 60), np.float32)
    image[10:30, 25:41] = 1
    image[5, 5] = 0.01  # noise
    assert data.brain_crop(image) == (slice(10, 30), slice(25, 41))
    assert data.brain_crop(np.zeros((5, 5), np.float32)) is None


def test_a_hot_voxel_does_not_shrink_the_brain_crop() -> None:
    image = np.zeros((40, 50), np.float32)
    image[5:35, 8:40] = 0.5
    image[20, 20] = 50.0  # a twentieth of it would be above the tissue
    assert data.brain_crop(image) == (slice(5, 35), slice(8, 40))


def head_of(scan: Path) -> np.ndarray:
    """The middle slice of a scan, black 0 and white 1."""
    volume = np.asarray(nib.load(scan).dataobj, np.float32)
    return Intensity.of(volume).normalise(volume)[..., volume.shape[2] // 2]
