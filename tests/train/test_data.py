from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import InputFileError, grid
from tests import reference
from train import data, resample


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", ["1.1", "2", "2.5", "3.9", "4"])
def test_downsampling_equals_its_definition(scale: str, kernel: resample.Kernel) -> None:
    image = np.random.default_rng(0).random((90, 80), np.float32)
    r = Fraction(scale)
    whole = resample.downsample(image, (r, r), kernel)
    assert whole.shape == (math.floor(90 / r), math.floor(80 / r))
    np.testing.assert_allclose(whole, reference.downsample(image, r, kernel, (0, 0), whole.shape), atol=1e-5)
    part = resample.downsample(image, (r, r), kernel, (20, 7), (12, 15))
    np.testing.assert_allclose(part, reference.downsample(image, r, kernel, (20, 7), (12, 15)), atol=1e-5)


@pytest.mark.parametrize("scale", ["1.1", "2", "2.1", "4"])
def test_upsampling_is_exact_and_half_pixel_centred(scale: str) -> None:
    r = Fraction(scale)
    y, x = np.mgrid[:30, :20]
    hr = resample.upsample((0.01 * y + 0.02 * x).astype(np.float32), (r, r))  # a plane stays a plane
    assert hr.shape == (math.floor(30 * r), math.floor(20 * r))
    row, col = ((np.arange(n) + 0.5) / float(r) - 0.5 for n in hr.shape)
    inner = slice(12, -12)  # bicubic reads two pixels, 4·2 outputs, beyond each
    np.testing.assert_allclose(hr[inner, inner], (0.01 * row[:, None] + 0.02 * col)[inner, inner], atol=1e-5)


def test_downsampling_averages_away_what_it_cannot_hold() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))
    lr = resample.downsample(stripes, (Fraction(2), Fraction(2)), "bilinear")
    np.testing.assert_allclose(lr[4:-4, 4:-4], 0.5, atol=1e-6)  # a plain subsampling would give 0 or 1


def test_brain_crop_is_the_smallest_rectangle_of_tissue() -> None:
    image = np.zeros((50, 60), np.float32)
    image[10:30, 25:41] = 1
    image[5, 5] = 0.01  # noise
    assert resample.brain_crop(image) == (slice(10, 30), slice(25, 41))
    assert resample.brain_crop(np.zeros((5, 5), np.float32)) == (slice(0, 0), slice(0, 0))


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return [np.random.default_rng(k).random((70 + k, 64), np.float32) + 10 * k for k in range(5)]


def batches(crops: list[np.ndarray], seed: int = 0) -> data.Batches:
    return data.Batches(crops, batch=4, patch=48, patches_per_crop=3, kernels=("bilinear", "bicubic"), seed=seed)


def test_batches_are_a_pure_function_of_seed_and_update(crops: list[np.ndarray]) -> None:
    for update in (0, 3, 1000):
        first, again, other = batches(crops)[update], batches(crops)[update], batches(crops, seed=1)[update]
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_an_epoch_takes_every_crop_equally_often(crops: list[np.ndarray]) -> None:
    b = batches(crops)
    drawn = [k for update in range(15) for k in b._crops_of(update)]  # 60 patches: 4 epochs of 5·3
    assert np.bincount(drawn).tolist() == [12] * 5
    assert sorted(drawn[:15]) == sorted(drawn[15:30]) != drawn[:15]


def test_a_batch_has_one_scale_of_the_paper_and_shapes_of_the_shared_grid(crops: list[np.ndarray]) -> None:
    seen = set()
    for update in range(200):
        lr, hr, scale = batches(crops)[update]
        n = int(48 / scale)
        assert lr.shape == (4, 1, n, n)
        assert hr.shape == (4, 1, *[grid.output_size(n, scale)] * 2)
        seen.add(scale)
    assert seen <= set(grid.PAPER_SCALES)
    assert len(seen) > 25


def test_lr_is_the_downsampled_hr_in_every_flip(crops: list[np.ndarray]) -> None:
    for update in range(60):
        lr, hr, scale = batches(crops)[update]
        for small, large in zip(lr[:, 0], hr[:, 0]):
            inner = slice(2, -3)  # what the patch itself decides: a bicubic kernel reaches two lr pixels
            ways = [reference.downsample(large, scale, k, (0, 0), small.shape) for k in ("bilinear", "bicubic")]
            assert min(np.abs(small - way)[inner, inner].max() for way in ways) < 1e-4  # of values up to 50


def _image(path: Path, size: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size), 128, np.uint8)).save(path)


def test_subfolders_are_subjects(tmp_path: Path) -> None:
    for subject in range(10):
        for k in range(3):
            _image(tmp_path / f"s{subject}" / "scan" / f"{k}.png")
    files = data.find_files(tmp_path)
    split = data.split_by_subject(tmp_path, files, 0.2)
    of = {f: f.relative_to(tmp_path).parts[0] for f in files}
    train, validation = ({of[f] for f in side} for side in (split.train, split.validation))
    assert not train & validation
    assert len(validation) == 2
    assert len(split.train) + len(split.validation) == 30


@pytest.mark.parametrize(
    ("names", "subjects"),
    [
        (["btp01_pre", "btp01_post", "btp02_pre"], ["btp01", "btp01", "btp02"]),
        (["sub-03_ses-1_T1w", "sub-03_ses-2_T1w", "sub-4_T1w"], ["sub-03", "sub-03", "sub-4"]),
        (["BraTS20_Training_001_t1ce", "BraTS20_Training_002_t1ce"], ["BraTS20_Training_001", "BraTS20_Training_002"]),
        (["anna", "bert"], ["anna", "bert"]),
    ],
)
def test_flat_volumes_name_their_subjects(tmp_path: Path, names: list[str], subjects: list[str]) -> None:
    assert data.subjects(tmp_path, [tmp_path / f"{n}.nii.gz" for n in names]) == subjects


def test_numbered_slices_are_split_in_blocks_with_gaps(tmp_path: Path) -> None:
    files = [tmp_path / f"{n:04}_glioma.jpg" for n in range(1000)]
    split = data.split_by_subject(tmp_path, files)
    train, validation = ({int(f.name[:4]) for f in side} for side in (split.train, split.validation))
    assert len(validation) == 100
    assert len(train) == 1000 - 100 - 4 * 2 * data.GAP
    assert all(abs(t - v) > data.GAP for v in validation for t in train)
    assert len([v for v in validation if v + 1 not in validation]) == 4


def test_numbers_without_leading_zeros_are_counted_not_spelled(tmp_path: Path) -> None:
    split = data.split_by_subject(tmp_path, sorted(tmp_path / f"{n}.png" for n in range(600)))
    train, validation = ({int(f.stem) for f in side} for side in (split.train, split.validation))
    assert min(abs(t - v) for t in train for v in validation) > data.GAP


@pytest.mark.parametrize("count", [1, 20, 300])
def test_too_few_loose_slices_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputFileError, match="too few to tell subjects apart"):
        data.split_by_subject(tmp_path, [tmp_path / f"{n}.png" for n in range(count)])


def test_one_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"one subject only \(anna\)"):
        data.split_by_subject(tmp_path, [tmp_path / "anna_1.nii", tmp_path / "anna_2.nii"])


def test_a_file_on_both_sides_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    assert data.split_as_given([one], [two]).validation == (two,)
    with pytest.raises(InputFileError, match="would train and validate"):
        data.split_as_given([one, two], [tmp_path / "x" / ".." / "2.png"])


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="holds no image"):
        data.find_files(tmp_path)
    with pytest.raises(InputFileError, match="not a folder"):
        data.find_files(tmp_path / "nowhere")


def test_jpeg_slices_are_averaged_two_by_two(tmp_path: Path) -> None:
    pixels = np.zeros((80, 90), np.uint8)
    pixels[10:70, 11:81] = 200
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert data.load_crops([tmp_path / "a.jpg"], 16, progress=False)[0].shape == (30, 36)  # columns 11 and 80 half bright
    assert data.load_crops([tmp_path / "a.png"], 16, progress=False)[0].shape == (60, 70)


def test_volumes_give_their_filled_slices_with_one_range(tmp_path: Path) -> None:
    volume = np.zeros((40, 36, 5), np.int16)
    volume[5:35, 4:30, 1] = 100
    volume[5:35, 4:30, 3] = 1000
    nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 5, 1])), tmp_path / "v.nii.gz")
    crops = data.load_crops([tmp_path / "v.nii.gz"], 16, progress=False)
    assert [c.shape for c in crops] == [(30, 26)] * 2
    assert [float(c.max()) for c in crops] == [pytest.approx(0.1), pytest.approx(1.0)]


def test_small_crops_are_widened_and_small_images_left_out(tmp_path: Path) -> None:
    pixels = np.zeros((50, 60), np.uint8)
    pixels[2:6, 50:58] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (crop,) = data.load_crops([tmp_path / "a.png"], 32, progress=False)
    assert crop.shape == (32, 32)
    assert (crop > 0).sum() == 32
    assert data.load_crops([tmp_path / "a.png"], 51, progress=False) == []
