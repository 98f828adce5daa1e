from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import InputFileError, ScaleError, grid
from runtime.acquired import Acquired, Band
from runtime.qa import criteria
from tests.conftest import DATA, ROOT, SCAN
from train import data, degradations, evaluate, models, probes, resample, scores
from train.augment import disc
from train.data import Crop, Stack
from train.models import BICUBIC, Model

BUNDLE, CHECKPOINT = ROOT / "runtime" / "brain.bundle", ROOT / "models" / "fidelity.pt"
DICOM = DATA / "samples" / "dicom-t1"
TWO, UNEVEN = (Fraction(2),) * 2, (Fraction(2), Fraction(3, 2))
FOUND = Acquired((Band(0.75), Band()), 0.01, "spectrum")


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the estimate, which always finds the same."""
    for module in (probes, scores):
        monkeypatch.setattr(module, "estimate", lambda slices: FOUND)


def phantom(shape: tuple[int, int] = (96, 80), seed: int = 0) -> np.ndarray:
    """A head: black outside, brighter towards one side within, with a fine grain everywhere."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    grain = 0.03 * np.random.default_rng(seed).standard_normal(shape)
    return ((np.hypot(y, x) < 0.9) * (0.5 + 0.1 * np.sin(5 * x) + grain)).clip(0, 1).astype(np.float32)


def changed(name: str, change: float, told: models.Told = "stored") -> Model:
    """Bicubic interpolation in which all contrast is so many times as large."""

    def upscale(lr: models.Image, scales: grid.Scales, acquired: Acquired) -> models.Image:
        return 0.3 + np.float32(change) * (resample.upsample(lr, scales) - 0.3)

    return Model(name, "nothing", upscale, told=told)


def never() -> Model:
    def upscale(lr: models.Image, scales: grid.Scales, acquired: Acquired) -> models.Image:
        raise ScaleError("this network serves nothing")

    return Model("never", "nothing", upscale)


def slow_smooth(image: np.ndarray, sigma: float, scales: grid.Scales) -> np.ndarray:
    """A Gaussian of so many input pixels, out to four times σ, of an image mirrored at its borders: as a matrix an axis."""
    image = image.astype(np.float64)
    for axis, r in enumerate(scales):
        n, wide = image.shape[axis], sigma * float(r)
        reach = int(4 * wide + 0.5)
        matrix = np.zeros((n, n))
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / wide) ** 2)
        for i in range(n):
            for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum()):
                j = (i + offset) % (2 * n)
                matrix[i, j if j < n else 2 * n - 1 - j] += weight
        image = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
    return image


def slow_gradient(image: np.ndarray, scales: grid.Scales) -> np.ndarray:
    """Central differences, at the borders one-sided ones, in grey values an input pixel."""
    slope = np.zeros(image.shape)
    for (i, j), _ in np.ndenumerate(image):
        above, below = max(0, i - 1), min(image.shape[0] - 1, i + 1)
        left, right = max(0, j - 1), min(image.shape[1] - 1, j + 1)
        dy = (float(image[below, j]) - float(image[above, j])) / (below - above) * float(scales[0])
        dx = (float(image[i, right]) - float(image[i, left])) / (right - left) * float(scales[1])
        slope[i, j] = np.hypot(dy, dx)
    return slope


@pytest.mark.parametrize("scales", [TWO, UNEVEN])
def test_ripple_and_steepness_by_their_definitions(scales: grid.Scales) -> None:
    bicubic, sr = phantom(), phantom(seed=1)
    coarse = slow_smooth(bicubic, 1.5, scales)
    slope = slow_gradient(coarse, scales)
    inside = np.zeros(bicubic.shape, bool)
    reach = [int(4 * r) for r in scales]
    for i in range(reach[0], bicubic.shape[0] - reach[0]):
        for j in range(reach[1], bicubic.shape[1] - reach[1]):
            inside[i, j] = coarse[i - reach[0] : i + reach[0] + 1, j - reach[1] : j + reach[1] + 1].min() > 0.15
    assert inside.sum() > 500
    flat = inside & (slope <= np.quantile(slope[inside], 0.3))
    np.testing.assert_array_equal(criteria.flat_tissue(bicubic, scales), flat)
    fine = sr - slow_smooth(sr, 0.75, scales)

    slope = slow_gradient(slow_smooth(bicubic, 0.5, scales), scales)
    steep = (bicubic > 0.15) & (slope >= np.quantile(slope[bicubic > 0.15], 0.95))
    np.testing.assert_array_equal(criteria.steepest(bicubic, scales), steep)
    of_sr = slow_gradient(slow_smooth(sr, 0.5, scales), scales)
    expected = np.std(fine[flat]), of_sr[steep].mean()
    assert criteria.ripple_and_edges(sr, flat, steep, scales) == pytest.approx(expected, rel=1e-4)


def test_nothing_is_measured_where_there_is_no_tissue() -> None:
    black = np.zeros((40, 40), np.float32)
    flat, steep = criteria.flat_tissue(black, TWO), criteria.steepest(black, TWO)
    assert not flat.any()
    assert not steep.any()
    assert np.isnan(criteria.ripple_and_edges(black, flat, steep, TWO)).all()
    with pytest.raises(InputFileError, match="stripes shows no flat tissue"):  # nowhere farther than 4 pixels from black
        probes.examine([BICUBIC], Stack("stripes", {"0": np.eye(40, dtype=np.float32)}, "LA"), TWO)


def test_contrast_times_two_is_ripple_and_edges_times_two() -> None:
    heard: list[Acquired] = []

    def upscale(lr: models.Image, scales: grid.Scales, acquired: Acquired) -> models.Image:
        heard.append(acquired)
        return resample.upsample(lr, scales)

    compared = [BICUBIC, changed("half", 0.5), changed("twice", 2), never(), Model("spy", "", upscale, told="auto")]
    scan = Stack("head", {str(k): phantom(seed=k) for k in range(11)}, "LA")
    records, panel = probes.examine(compared, scan, TWO)
    of = {line["model"]: line for line in records}
    for name, ratio in (("bicubic", 1), ("half", 0.5), ("twice", 2), ("spy", 1)):
        assert (of[name]["ripple"], of[name]["edges"]) == pytest.approx((ratio, ratio), rel=1e-4)
    assert "never" not in of
    assert heard == [FOUND] * 9  # slices of eleven
    assert {(*line["stored"], *line["acquired"]) for line in records} == {(96, 80, 72, 80)}
    text = scores.by_model(records, {key: scores.plain(key) for key in ("ripple", "edges")})
    row = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    ratios = ["1.00", "0.50", "2.00", "1.00"] * 2  # nothing of what never serves
    assert row == ["head", "96×80", "72×80", "0, 0", "×2", "1 %", *ratios]
    for _, images in panel:
        assert [name for name, _, _ in images] == ["bicubic", "half", "twice", "spy"]
        assert {image.shape for _, image, _ in images} == {(80, 80)}  # 40 input pixels


def test_pictures_show_flat_tissue_and_an_edge() -> None:
    y, x = np.mgrid[:128, :128]
    lr = np.where(x < 40, 0, np.where(x < 100, 0.5, 0.6 + 0.2 * np.sin(x / 2) * np.sin(y / 2)))
    lr = (lr + 0.003 * np.random.default_rng(0).standard_normal(lr.shape)).astype(np.float32)
    (_, flat), (_, edge) = probes.examine([BICUBIC], Stack("a", {"0": lr}, ""), TWO)[1]
    assert flat[0][1].std() < 0.01  # between the edge and the waves
    bright = (edge[0][1] > 0.25).mean()
    assert 0.3 < bright < 0.8  # air and tissue


def test_scans_are_read_as_the_runtime_reads_them(tmp_path: Path) -> None:
    (scan,) = probes.load_scans(SCAN)
    assert (scan.name, scan.axes) == ("t1ce_thick", "LA")
    slices = nib.load(SCAN).get_fdata()
    low, white = slices.min(), np.percentile(slices, 99.9)
    np.testing.assert_allclose([*scan.slices.values()], np.moveaxis((slices - low) / (white - low), 2, 0), atol=1e-5)
    across = tmp_path / "x.nii"  # thick along the first axis
    nib.save(nib.Nifti1Image(np.stack([phantom()] * 3), np.diag([5, 1, 1, 1])), across)
    (other,) = probes.load_scans(across)
    assert [s.shape for s in other.slices.values()] == [(96, 80)] * 3
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 2), np.int16), np.eye(4)), across)
    with pytest.raises(InputFileError, match="no volume that shows tissue"):
        probes.load_scans(across)


@pytest.mark.skipif(not DICOM.is_dir(), reason=f"the DICOM series is not at {DICOM}")
def test_folder_of_dicom_is_a_scan() -> None:
    (scan,) = probes.load_scans(DICOM)
    assert scan.name == "dicom-t1"
    assert {s.shape for s in scan.slices.values()} == {(256, 256)}
    assert len(scan.slices) == 24


def test_disc_and_contrast_by_loops() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((40, 44)).astype(np.float32)
    for diameter in (3, 5, 8):
        its = disc(image.shape, (20, 17), diameter)
        inside, ring = [], []
        for (i, j), value in np.ndenumerate(image):
            far = np.sqrt((i - 20) ** 2 + (j - 17) ** 2)
            inside += [value] * int(far <= diameter / 2)
            ring += [value] * int(diameter / 2 + 3 <= far <= diameter / 2 + 6)
            assert its[i, j] == pytest.approx(min(1, max(0, diameter / 2 - far + 0.5)), abs=1e-6)
        assert probes.contrast(image, (20, 17), diameter) == pytest.approx(np.mean(inside) - np.mean(ring), abs=1e-6)
        assert its.sum() == pytest.approx(np.pi * diameter**2 / 4, rel=0.3)


def test_discs_lie_apart_in_flat_tissue() -> None:
    truth = phantom((160, 140))
    places = probes.flat_places(truth)
    assert len(places) == 4
    for k, (row, col) in enumerate(places):
        assert truth[row - 10 : row + 11, col - 10 : col + 11].min() > 0.15  # the widest disc's radius, and its ring
        assert all(max(abs(row - y), abs(col - x)) > 20 for y, x in places[:k])
    assert probes.flat_places(np.zeros((60, 60), np.float32)) == []


def test_what_is_kept_of_discs() -> None:
    crops = [Crop(phantom((100, 90), k), "", volume="v") for k in range(3)]
    compared = [BICUBIC, changed("half", 0.5), changed("all", 1), never()]
    case = degradations.resampled("bilinear", 0.02)
    records = probes.keep_discs(scores.Comparison(compared, {"a": crops}, [case], [TWO], 2))
    by_model = {m.name: [record for record in records if record["model"] == m.name] for m in compared}
    for name, expected in {"half": pytest.approx(0.5, rel=1e-3), "all": pytest.approx(1, rel=1e-3), "never": None}.items():
        assert [r["kept"] for r in by_model[name]] == [expected] * 9
    bicubic = by_model["bicubic"]
    assert [(r["diameter"], r["contrast"]) for r in bicubic] == [(d, c) for d in (3, 5, 8) for c in (1, 2, 3)]
    assert bicubic[0]["kept"] < bicubic[-1]["kept"] < 1  # interpolation blurs the small most
    # Slowly, for the last: the widest and brightest discs.
    kept, true = [], []
    for k in (0, 2):
        truth = crops[k].pixels
        for place in (places := probes.flat_places(truth)):
            discs = sum(0.06 * disc(truth.shape, p, 8) for p in places).astype(np.float32)
            outputs = [resample.upsample(case.of(t, TWO), TWO) for t in (truth + discs, truth)]
            kept.append(probes.contrast(outputs[0] - outputs[1], place, 8))
            true.append(probes.contrast(discs, place, 8))
    assert bicubic[-1]["kept"] == pytest.approx(sum(kept) / sum(true), rel=1e-4)
    assert records[-1]["discs"] == len(kept)
    text = scores.by_model(records, {"kept": scores.plain("kept")})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[2][:5] == ["bilinear", "×2", "2 %", "3", "1 σ"]
    assert [row[-3:] for row in rows][-2] == ["0.50", "1.00", "–"]
    black = {"a": [Crop(np.zeros((64, 64), np.float32), "")]}
    with pytest.raises(InputFileError, match="no crop shows flat tissue"):
        probes.keep_discs(scores.Comparison([BICUBIC], black, [case], [TWO]))


def test_real_scans_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([phantom((48, 40))] * 2, -1), np.diag([1, 1, 5, 1])), small)
    arguments = ["--real", str(small), "--models", f"former={CHECKPOINT}@stored", f"new={CHECKPOINT}", "--scales", "2"]
    out = tmp_path / "out"
    assert evaluate.main([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "| small | 48×40  | 36×40    | 0, 0  | ×2    | 1 %   |" in said
    assert {path.name for path in out.iterdir()} == {"results.json", "results.md", "small_x2.png"}
    assert "![small_x2.png](small_x2.png)" in (out / "results.md").read_text(encoding="utf-8")
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [line["model"] for line in content["scans"]] == ["bicubic", "former", "new"]
    with Image.open(out / "small_x2.png") as picture:
        assert picture.width > 900  # 40 input pixels a crop, three crops side by side: every pixel is 4 wide
        assert np.asarray(picture.convert("L")).std() > 10  # of 255; an empty page has 0
    assert evaluate.main([*arguments, "--acquired", "true"]) == 1
    assert "nobody knows the truth" in capsys.readouterr().err
    assert evaluate.main(["--real", str(small), str(small)]) == 1
    assert "scans of different names" in capsys.readouterr().err
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(picture_file := tmp_path / "a.png")
    assert evaluate.main(["--real", str(picture_file)]) == 1
    assert "is a picture" in capsys.readouterr().err


def test_discs_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    nib.save(nib.Nifti1Image(np.stack([phantom((80, 72))] * 2, -1), np.diag([1, 1, 5, 1])), data / "sub-1.nii.gz")
    arguments = ["--data", str(data), "--models", f"new={CHECKPOINT}", "--scales", "2", "--inputs", "scan:1,1:hard"]
    assert evaluate.main([*arguments, "--discs", "--crops", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "kept new" in said
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert len(content["discs"]) == 2 * 9
    assert {r["noise"] for r in content["discs"]} == {0.03}
    assert {path.name for path in out.iterdir()} == {"results.json", "results.md"}


def test_what_is_held_is_counted_in_all_and_in_tissue() -> None:
    truth = np.zeros((64, 64), np.float32)
    truth[:, 32:] = 0.5  # tissue

    def interval(lr: models.Image, scales: object, acquired: Acquired) -> tuple[models.Image, models.Image]:
        output, half_width = truth.copy(), np.full_like(truth, 0.1)
        output[:16, 32:] += 0.2  # a quarter of the half that is tissue lies outside
        return output, half_width

    model = Model("ours", "", BICUBIC.upscale, interval=interval)
    compared = scores.Comparison([BICUBIC, model], {"": [Crop(truth, "x")]}, [degradations.resampled("bicubic")], [TWO])
    (record,) = probes.hold_truths(compared)
    assert (record["model"], record["crops"]) == ("ours", 1)
    assert record["held"] == pytest.approx(7 / 8)
    assert record["held_of_tissue"] == pytest.approx(3 / 4)
    assert record["half_width"] == pytest.approx(0.1)
    text = probes.coverage([record, {**record, "held": 0.5, "noise": 0.02}])
    row = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert row == ["ours", "all", "", "2", "0.688", "0.750", "10.0"]


def test_the_shipped_intervals_hold_a_scan_of_another_scanner_as_often_as_they_say() -> None:
    crops = data.load_crops([SCAN], 64)
    inputs = [degradations.resampled("bilinear"), degradations.resampled("kspace", 0.02)]
    model = replace(models.load_model(str(BUNDLE), "true"), name="brain")
    records = probes.hold_truths(scores.Comparison([BICUBIC, model], {"": crops}, inputs, [TWO], 3))
    assert 0.84 < np.mean([record["held"] for record in records]) < 0.98


def test_command_prints_it_and_wants_a_bundle_that_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--data", str(SCAN.parent), "--coverage", "--inputs", "bicubic", "--scales", "2", "--crops", "1"]
    assert evaluate.main([*asked, "--models", str(BUNDLE), "--out", str(tmp_path)]) == 0
    assert "## What intervals hold" in capsys.readouterr().out
    assert "held" in (tmp_path / "results.json").read_text()
    assert evaluate.main([*asked, "--models", str(ROOT / "models" / "fidelity.pt")]) == 1
    assert "a bundle that tells uncertainty" in capsys.readouterr().err
