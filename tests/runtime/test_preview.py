"""The picture beside an output."""

from __future__ import annotations

import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import OutputFileError, Upscaler, cohort, job, preview
from runtime.__main__ import main
from runtime.engines.portable import PortableEngine
from runtime.io import nifti
from runtime.job import Request, Task
from runtime.scan import Scan
from runtime.sizes import Size
from train.resample import upsample

TWICE = Request(Size(scale="2"), preview=True)


def panels(sheet: Image.Image) -> list[np.ndarray]:
    """The three pictures of a preview, without their names."""
    width = (sheet.width - 2 * preview._GAP) // 3
    pixels = np.asarray(sheet)[preview._TITLE :]
    return [pixels[:, left : left + width] for left in (0, width + preview._GAP, 2 * (width + preview._GAP))]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each call of the network."""
    seen: list[Any] = []
    encode = PortableEngine.encode

    def counted(self: PortableEngine, image: Any, *told: Any) -> Any:
        seen.append(image.shape)
        return encode(self, image, *told)

    monkeypatch.setattr(PortableEngine, "encode", counted)
    return seen


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).integers(0, 1000, (20, 16, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([0.8, 0.8, 6.5, 1])), tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz"


@pytest.mark.parametrize("scales", [("5/2", "5/2"), ("2", "3"), ("11/10", "181/50"), ("1", "16")])
def test_all_three_show_the_same_place(scales: tuple[str, str]) -> None:
    """If ours is bicubic of the whole slice, it is what the preview draws as bicubic; and the input is its nearest pixel."""
    before = np.random.default_rng(1).random((150, 130)).astype(np.float32)
    exact = Fraction(scales[0]), Fraction(scales[1])
    shown, bicubic, ours = panels(preview.side_by_side(before, upsample(before, exact), exact))
    assert np.abs(bicubic.astype(int) - ours).max() <= 1
    assert np.corrcoef(shown.ravel(), ours.ravel())[0, 1] > 0.8


def test_a_truth_comes_last() -> None:
    before = np.random.default_rng(1).random((150, 130)).astype(np.float32)
    two = Fraction(2), Fraction(2)
    ours, truth = upsample(before, two), upsample(before, two) ** 2
    three, four = preview.side_by_side(before, ours, two), preview.side_by_side(before, ours, two, truth=truth)
    np.testing.assert_array_equal(np.asarray(four)[:, : three.width], np.asarray(three))
    last = np.asarray(four)[preview._TITLE :, three.width + preview._GAP :]
    np.testing.assert_array_equal(last, panels(preview.side_by_side(before, truth, two))[2])
    assert not np.array_equal(last, panels(three)[2])


def test_it_is_cut_to_where_there_is_detail() -> None:
    """Texture of little contrast counts, a rim of much contrast does not; nor do fill values and NaN hide either."""
    y, x = np.mgrid[:300, :200]
    image = 1000.0 * (np.abs(np.hypot(y - 60, x - 60) - 50) < 3)
    image[190:280, 90:180] += 20 * np.random.default_rng(0).random((90, 90))
    (top, bottom), (left, right) = preview.most_detailed(image)
    assert (bottom - top, right - left) == (96, 96)
    assert 184 <= top <= 190
    assert 84 <= left <= 90
    before = panels(preview.side_by_side(image, image, (Fraction(1), Fraction(1))))[0]
    image[:40] = np.nan
    image[40:50] = -32768
    after = panels(preview.side_by_side(image, image, (Fraction(1), Fraction(1))))[0]
    assert np.abs(before.astype(int) - after).max() <= 1
    assert before.std() > 50  # of 255: its grey values are stretched


@pytest.mark.parametrize("shape", [(2, 2), (2, 300), (96, 97)])
def test_small_and_blank_slices(shape: tuple[int, int]) -> None:
    sheet = preview.side_by_side(np.zeros(shape), np.zeros((2 * shape[0], 2 * shape[1])), (Fraction(2), Fraction(2)))
    assert max(panels(sheet)[0].shape) >= 384


def test_a_volume_is_shown_upright_by_its_middle_slice(linear: Upscaler) -> None:
    """RAS: the first axis leads to the patient's right, the second to the face; a slope counts."""
    data = np.zeros((30, 40, 5), np.int16)
    data[3:10, 2:38, 2] = 100  # on the left of the patient, which is right in the picture
    data[3:27, 33:38, 2] = 100  # the face, which is above
    image = nib.Nifti1Image(data, np.diag([1.0, 1.0, 5.0, 1.0]))
    image.header.set_slope_inter(0.5, 7)
    before = nifti.of_image(nib.Nifti1Image.from_bytes(image.to_bytes()))
    for scales in ((2, 2, 1), (2, 2, 3)):  # the middle slice of five lies in the middle of fifteen
        for dtype in (None, np.float32):
            pictures = panels(preview.of(before, linear.volume(before, scales, dtype=dtype)))
            assert np.abs(pictures[1].astype(int) - pictures[2]).mean() < 10  # on one grey scale
        for picture in pictures:
            height, width = picture.shape
            assert height / width == pytest.approx(40 / 30, rel=0.01)
            assert picture[: height // 5].mean() > 100 > picture[-height // 5 :].mean()
            assert picture[:, -width // 3 :].mean() > 2 * picture[:, : width // 3].mean()


def test_thinner_slices_are_shown_from_the_side(linear: Upscaler) -> None:
    data = np.random.default_rng(0).random((20, 16, 9)).astype(np.float32)
    before = Scan(data, (1, 1, 4), np.diag([1.0, 1, 4, 1]))
    pictures = panels(preview.of(before, linear.volume(before, (1, 1, 4))))
    assert pictures[0].shape[0] / pictures[0].shape[1] == 36 / 20
    assert np.corrcoef(pictures[1].ravel(), pictures[2].ravel())[0, 1] > 0.9


def test_many_inputs_of_every_kind(scan: Path, dicom: types.SimpleNamespace, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "c.png")
    np.save(tmp_path / "d.npy", np.stack([pixels] * 3))
    nib.save(nib.Nifti1Image(pixels, np.eye(4)), tmp_path / "e.nii")
    nib.save(nib.Nifti1Image(np.stack([np.stack([pixels] * 3, -1)] * 2, -1), np.eye(4)), tmp_path / "f.nii")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "IM1").write_bytes(b"pixels")
    inputs = [str(tmp_path / name) for name in ("a.nii.gz", "b.png", "c.png", "d.npy", "e.nii", "f.nii", "g")]
    assert main([*inputs, "--scale", "1.5", "-o", f"{tmp_path}/out/", "--preview", "--quiet"]) == 0
    found = sorted(path.name for path in (tmp_path / "out").glob("*_preview.png"))
    assert found == [f"{name}_sr_preview.png" for name in ("a", "b", "c", "d", "e", "f", "g_1", "g_3")]
    for name in found:
        with Image.open(tmp_path / "out" / name) as sheet:
            assert sheet.mode == "L"
            assert all(picture.std() > 10 for picture in panels(sheet))


def test_a_preview_is_refused_before_any_work(
    scan: Path, tmp_path: Path, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "a_sr_preview.png"
    taken.write_bytes(b"precious")
    for inputs in ([], ["-o", f"{tmp_path}/"]):
        assert main([str(scan), "--scale", "2", "--preview", *inputs]) == 1
        assert f"{taken} exists already" in capsys.readouterr().err
        assert taken.read_bytes() == b"precious"
        assert not (tmp_path / "a_sr.nii.gz").exists()
    assert calls == []
    assert main([str(scan), "--scale", "2", "--preview", "--force"]) == 0
    assert f"preview: {taken}" in capsys.readouterr().out
    with Image.open(taken) as sheet:
        assert sheet.format == "PNG"
    assert len(calls) == 4


def test_no_preview_of_an_output_that_failed(
    shipped: Upscaler, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OutputFileError("the disk is full")

    monkeypatch.setattr("runtime.sidecar.write_with", fail)
    with pytest.raises(OutputFileError, match="the disk is full"):
        job.run(shipped, Task(scan, tmp_path / "out.nii"), TWICE)
    assert list(tmp_path.iterdir()) == [scan]


def test_two_previews_of_one_name_are_refused(scan: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    inputs = [scan, tmp_path / "a.png"]
    assert len(cohort.plan(inputs, tmp_path / "out", Request(Size(scale="2")))) == 2
    with pytest.raises(OutputFileError, match=r"both become .*a_sr_preview.png"):
        cohort.plan(inputs, tmp_path / "out", TWICE)
