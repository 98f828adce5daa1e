from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metasrgan
from runtime import InputFileError, ScaleError, Upscaler, grid
from runtime.acquired import STORED, Acquired, Band
from runtime.io import pictures
from runtime.preview import upright
from tests.conftest import DATA, ROOT, SCAN
from train import degradations, evaluate, figures, metrics, models, networks, probes, resample, scores
from train.data import Crop, brain_crop
from train.degradations import resampled
from train.models import BICUBIC, Model

VALIDATION = DATA / "t1ce-validation"
BUNDLE, CHECKPOINT = ROOT / "runtime" / "brain.bundle", ROOT / "models" / "fidelity.pt"
SCALES = ("1.5", "2", "2.5", "3", "4")
TWO, TWO_AND_HALF = (Fraction(2),) * 2, (Fraction(5, 2),) * 2
FOUND = Acquired((Band(0.8), Band()), 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, of two slices and of one, and a third whose only slice is too small to be a crop."""
    root = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    for name, (height, width) in {"ann/0": (66, 70), "ann/1": (64, 71), "bob/0": (80, 64), "small/0": (40, 40)}.items():
        y, x = np.mgrid[:height, :width]
        waves = 120 + 60 * np.sin(x / rng.uniform(2, 5)) + 60 * np.sin(y / rng.uniform(2, 5))
        path = root / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(waves.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def found() -> Iterator[list[list[np.ndarray]]]:
    """A stand-in for the estimate, which always finds the same, and all that it was asked about."""
    asked: list[list[np.ndarray]] = []

    def estimate(slices: list[np.ndarray]) -> Acquired:
        asked.append([*slices])
        return FOUND

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "estimate", estimate)
        patch.setattr(probes, "estimate", estimate)
        yield asked


def bilinear(name: str, serves: grid.Scales | None = None, told: models.Told = "stored") -> Model:
    """Bilinear interpolation; of one scale alone, as EDSR ×2 is, where it serves one."""

    def upscale(lr: models.Image, scales: grid.Scales, acquired: Acquired) -> models.Image:
        if serves and scales != serves:
            raise ScaleError("this network serves one scale only")
        return resample.upsample(lr, scales, "bilinear")

    return Model(name, "nothing", upscale, told=told)


def spy(name: str, told: models.Told, heard: list[tuple[np.ndarray, Acquired]]) -> Model:
    """The same; it keeps its inputs and what it is told of them."""
    model = bilinear(name, told=told)
    return replace(
        model, upscale=lambda lr, scales, acquired: (heard.append((lr, acquired)), model.upscale(lr, scales, acquired))[1]
    )


def evaluated(*compared: Any, **most: int) -> scores.Results:
    return scores.evaluate(scores.Comparison(*compared, **most))


def means(results: scores.Results, key: str = "psnr") -> list[float]:
    return [line[key]["mean"] for line in results.records]


def slow_ssim(truth: np.ndarray, image: np.ndarray) -> float:
    """Wang et al. 2004 for a data range of 1, window by window."""
    values = []
    for i in range(truth.shape[0] - 6):
        for j in range(truth.shape[1] - 6):
            x, y = (side[i : i + 7, j : j + 7].ravel().astype(np.float64) for side in (truth, image))
            (xx, xy), (_, yy) = np.cov(x, y)
            light = (2 * x.mean() * y.mean() + 0.01**2) / (x.mean() ** 2 + y.mean() ** 2 + 0.01**2)
            values.append(light * (2 * xy + 0.03**2) / (xx + yy + 0.03**2))
    return float(np.mean(values))


def test_psnr_and_ssim_by_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth, image = rng.random((2, 24, 19), np.float32)
    # float32 pixels: about six digits of a score near 8 dB, and of one near 0.
    assert metrics.psnr(truth, image) == pytest.approx(-10 * np.log10(np.mean((truth - image) ** 2)), abs=1e-5)
    assert metrics.ssim(truth, image) == pytest.approx(slow_ssim(truth, image), abs=1e-6)
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    beyond = np.where(truth > 0.5, 7, -3).astype(np.float32)  # clamped to black and white, in truth and image alike
    bounded = np.clip(beyond, 0, 1)
    for score in (metrics.psnr, metrics.ssim):
        assert score(beyond, image) == score(bounded, image)
        assert score(image, beyond) == score(image, bounded)


def test_ssim_of_tissue_leaves_the_background_out() -> None:
    rng = np.random.default_rng(0)
    truth, image = (0.6 + 0.2 * rng.random((2, 40, 30))).astype(np.float32)
    assert metrics.ssim_of_tissue(truth, image) == pytest.approx(slow_ssim(truth, image), abs=1e-6)
    truth[:20] = image[:20] = 0
    image[:17] = rng.random((17, 30)) * 0.1  # noise of the air, three pixels from the tissue's windows
    quiet = np.where(np.arange(40)[:, None] < 17, 0, image).astype(np.float32)
    assert metrics.ssim_of_tissue(truth, image) == pytest.approx(metrics.ssim_of_tissue(truth, quiet), abs=1e-3)
    assert metrics.ssim(truth, image) < metrics.ssim(truth, quiet) - 0.1
    truth[28:32, 10:14] = 0  # a hole in tissue is tissue
    assert metrics.ssim_of_tissue(truth, image) < metrics.ssim_of_tissue(np.where(truth, truth, image), image)
    assert np.isnan(metrics.ssim_of_tissue(np.zeros_like(truth), image))


def test_noise_is_in_the_input_alone_and_the_same_for_all() -> None:
    heard: list[tuple[np.ndarray, Acquired]] = []
    spies = [spy(name, "true", heard) for name in "ab"]
    subjects = {"a": [Crop(np.zeros((128, 128), np.float32), "")]}
    psnr = means(evaluated(spies, subjects, [resampled("bilinear", 0.1)], [TWO]))[0]
    (one, told), (other, _) = heard
    np.testing.assert_array_equal(one, other)
    assert told.sigma == 0.1
    # Where there is no signal the noise is Rayleigh's, of mean square 2 σ²; 4,096 samples of it know that to 1.6 %.
    assert np.square(one).mean() == pytest.approx(2 * 0.1**2, rel=0.06)
    assert 16 < psnr < 22  # the truth has none: 10 log₁₀(1 / 0.02) = 17 dB, and interpolation averages some of it away


def test_pictures_show_the_noise_that_was_scored() -> None:
    subjects = {"a": [Crop(np.random.default_rng(1).random((64, 64), np.float32), "")]}
    noises = [resampled("bilinear", sigma) for sigma in (0.0, 0.2)]
    results = evaluated([BICUBIC], subjects, noises, [TWO])
    (_, quiet, _), (_, noisy, score) = (rows[0][1][1] for rows in results.panels.values())
    assert not np.array_equal(quiet, noisy)
    assert score.startswith(f"{means(results)[1]:.2f} dB")


def test_scores_equal_a_slow_loop(folder: Path, shipped: Upscaler) -> None:
    scales = [TWO, (Fraction(3, 2), Fraction(3))]
    methods: list[resample.Method] = ["bilinear", "bicubic"]
    subjects = scores.load_subjects(folder)
    compared = [BICUBIC, models.load_model(str(BUNDLE), "stored")]
    results = evaluated(compared, subjects, [*map(resampled, methods)], scales)
    for k, method in enumerate(methods):
        for s, pair in enumerate(scales):
            for n, files in enumerate([["ann/0", "ann/1"], ["bob/0"]]):
                expected = []
                for file in files:
                    hr = pictures.load(folder / f"{file}.png").astype(np.float64)
                    black, white = np.percentile(hr, [0.1, 99.9])
                    hr = ((hr - black) / (white - black)).astype(np.float32)
                    hr = hr[brain_crop(hr)]
                    shape = tuple(int(size / r) for size, r in zip(hr.shape, pair))
                    lr = resample.downsample(hr, pair, method, shape=(shape[0], shape[1]))
                    outputs = [resample.upsample(lr, pair), shipped.slices.upscale(lr, models.UNIT, pair, np.float32)]
                    truth = hr[: outputs[0].shape[0], : outputs[0].shape[1]]
                    expected.append([[metrics.psnr(truth, o), metrics.ssim(truth, o)] for o in outputs])
                # The slow range is computed in float64 and rounded once: the same pixels but for a last bit.
                found = results.records[2 * (len(scales) * k + s) :][:2]
                actual = [[line[key]["subjects"][("ann", "bob")[n]] for key in ("psnr", "ssim")] for line in found]
                np.testing.assert_allclose(actual, np.mean(expected, axis=0), atol=1e-4)


MEASURES = (metrics.PSNR, metrics.SSIM)
NONE = (np.nan,) * 3


def lines(scale: float, of: dict[str, tuple[tuple[float, ...], ...]], made: str = "bilinear") -> list[scores.Record]:
    """Records of models, by name: their PSNR and SSIM of subjects a, b, c."""
    kind, _, measured = made.partition(" ")
    case = {"input": kind, "measured": measured, "noise": 0.0, "scale": [scale, scale]}
    values = np.array([*of.values()], float)
    return [*scores.records_of(case, [*of], dict(zip("abc", np.moveaxis(values, -1, 0))), MEASURES)]


BY_HAND = [  # ×2.5 is served by bicubic only
    *lines(2, {"bicubic": ((30, 32, 37), (0.9,) * 3), "twice": ((34, 35, 39), (0.8,) * 3)}),
    *lines(2.5, {"bicubic": ((30, 32, 37), (0.9,) * 3), "twice": (NONE, NONE)}),
]


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_means_and_standard_errors_are_those_of_a_pocket_calculator() -> None:
    # Squared deviations of 30, 32, 37 from 33: 9 + 1 + 16 = 26; s² = 26 / 2; s / √3 = 2.0817. Of 34, 35, 39: 14, 1.5275.
    assert [line["psnr"]["mean"] for line in BY_HAND] == [33, 36, 33, None]
    assert [line["psnr"]["standard_error"] for line in BY_HAND[:2]] == pytest.approx([2.0817, 1.5275], abs=1e-4)
    rows = rows_of(scores.markdown(BY_HAND, MEASURES))
    assert ["input", "scale", "PSNR bicubic", "PSNR twice", "SSIM bicubic", "SSIM twice"] in rows
    twice = ["**36.00 ± 1.53** (+3.00)", "**0.9000 ± 0.0000**", "0.8000 ± 0.0000 (-0.1000)"]
    assert ["bilinear", "×2", "33.00 ± 2.08", *twice] in rows
    assert ["bilinear", "×2.5", "**33.00 ± 2.08**", "–", "**0.9000 ± 0.0000**", "–"] in rows


def test_one_subject_has_no_standard_error() -> None:
    one = lines(2, {"bicubic": ((30,), (0.9,)), "twice": ((34,), (0.8,))})
    assert "| **34.00** (+4.00)" in scores.markdown(one, MEASURES)
    assert one[1]["psnr"] == {"mean": 34, "standard_error": None, "gain": 4, "gain_error": None, "subjects": {"a": 34}}


def test_lower_is_better_where_a_measure_says_so() -> None:
    distance = replace(metrics.SSIM, higher_is_better=False)
    assert "| **0.8000 ± 0.0000** (-0.1000) |" in scores.markdown(BY_HAND, (metrics.PSNR, distance))


def test_network_of_one_scale_leaves_its_other_cells_empty(folder: Path) -> None:
    subjects = scores.load_subjects(folder)
    results = evaluated([BICUBIC, bilinear("twice", TWO)], subjects, [resampled("bilinear")], [TWO, TWO_AND_HALF])
    assert [mean is None for mean in means(results)] == [False, False, False, True]
    record = results.records[-1]
    assert (record["scale"], record["model"]) == ([2.5, 2.5], "twice")
    assert record["psnr"]["subjects"] == {"ann": None, "bob": None}
    assert {record["psnr"][key] for key in ("mean", "standard_error", "gain", "gain_error")} == {None}


def test_bundle_and_checkpoint_are_told_apart_and_are_one_model(tmp_path: Path) -> None:
    for k, original in enumerate((BUNDLE, CHECKPOINT)):
        shutil.copy(original, tmp_path / f"r=4_{k}")  # no suffix; a name of its own with an =
    bundle, checkpoint = (models.load_model(str(tmp_path / f"r=4_{k}")) for k in range(2))
    assert (bundle.name, models.load_model(f"ours={CHECKPOINT}").name) == ("r=4_0", "ours")
    assert (bundle.served_by, checkpoint.served_by.split()[0]) == ("runtime on cpu", "PyTorch")
    for model, file in ((bundle, BUNDLE), (checkpoint, CHECKPOINT)):
        # models/README.md; head 9²·32, 20 blocks and tail (2·20 + 1)·9·32², in multiply-adds.
        assert (model.facts["parameters"], model.facts["multiply_adds"]) == (401_141, 81 * 32 + 41 * 9 * 32**2)
        assert model.facts["bytes"] == file.stat().st_size
    lr = np.random.default_rng(0).random((20, 24), np.float32)
    one, other = (m.upscale(lr, TWO_AND_HALF, STORED) for m in (bundle, checkpoint))
    np.testing.assert_allclose(one, np.maximum(other, 0), atol=2e-3)  # export's bound for weights in half precision


def test_multiply_adds_of_a_network_of_one_scale() -> None:
    class Thrice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 9, 3, padding=1)
            self.config = networks.OneScaleConfig(scale=3)

        def forward(self, image: torch.Tensor, scales: grid.Scales, sigma: torch.Tensor) -> torch.Tensor:
            if scales != (3, 3):
                raise ScaleError("×3 only")
            return torch.nn.functional.pixel_shuffle(self.conv(image), 3)

    assert models.multiply_adds(Thrice()) == 9 * 9  # nine outputs of nine taps for each lr pixel


@pytest.mark.usefixtures("found")
def test_command_prints_the_shipped_model_against_bicubic(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--data", str(folder), "--scales", "2", "1.5,3"]) == 0
    out = capsys.readouterr().out
    for text in ("| bilinear |", "| bicubic ", "| ×2 ", "| ×1.5,3 ", "PSNR brain"):
        assert text in out
    assert "3 brain crops of 2 subjects" in out
    assert "no crop of that size, so left out: small" in out
    assert "uniform 7×7 window" in out
    assert f"`python -m train.evaluate --data {folder} --scales 2 1.5,3`" in out


@pytest.fixture(scope="module")
def written(found: object, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "new"
    arguments = ["--data", str(folder), "--models", str(BUNDLE), f"pt={CHECKPOINT}", "--scales", "2", "3", "--out", str(out)]
    assert evaluate.main([*arguments, "--inputs", "bicubic"]) == 0
    return out


def test_json_holds_what_the_table_shows(written: Path) -> None:
    content = json.loads((written / "results.json").read_text(encoding="utf-8"))
    assert content["command"].endswith("--inputs bicubic")
    assert content["versions"]["numpy"] == np.__version__
    assert content["subjects_without_crops"] == ["small"]
    assert content["crops"] == {"ann": 2, "bob": 1}
    assert [m["name"] for m in content["models"]] == ["bicubic", "brain", "pt"]
    assert len(content["scores"]) == 2 * 3  # scales × models
    text = (written / "results.md").read_text(encoding="utf-8")
    for record in content["scores"]:
        for key, digits in (("psnr", 2), ("ssim", 4)):
            ann, bob = (record[key]["subjects"][name] for name in ("ann", "bob"))
            assert record[key]["mean"] == pytest.approx((ann + bob) / 2)
            assert record[key]["standard_error"] == pytest.approx(abs(ann - bob) / 2)  # s = |a - b| / √2, then / √2
            assert f"{record[key]['mean']:.{digits}f} ± {record[key]['standard_error']:.{digits}f}" in text


def test_pictures_are_written_linked_and_show_something(written: Path) -> None:
    text = (written / "results.md").read_text(encoding="utf-8")
    linked = {line[line.index("(") + 1 : -1] for line in text.splitlines() if line.startswith("![")}
    assert linked == {path.name for path in written.glob("*.png")} == {"gains.png", "crops_bicubic_x2.png"}
    for name in linked:
        with Image.open(written / name) as picture:
            assert min(picture.size) > 500  # pixels: fit for print
            assert np.asarray(picture.convert("L")).std() > 10  # of 255; an empty page has 0


def test_pictures_of_a_network_of_one_scale(folder: Path) -> None:
    subjects = {"bob": scores.load_subjects(folder)["bob"]}
    compared = [BICUBIC, bilinear("twice", TWO)]
    results = evaluated(compared, subjects, [resampled("bilinear")], [TWO, TWO_AND_HALF])
    for ((_, shown),), names in zip(results.panels.values(), (["bicubic", "twice"], ["bicubic"])):
        assert [heading for heading, _, _ in shown] == ["input, nearest", *names, "truth"]
        assert {image.shape for _, image, _ in shown} == {shown[-1][1].shape}
        assert figures.panel("title", [("bob", shown)], errors=True)
    assert figures.gains(BY_HAND, MEASURES)
    oblong = [line | {"scale": [2.0, 3.0]} for line in BY_HAND]
    assert figures.gains(oblong, MEASURES) != figures.gains(BY_HAND, MEASURES)  # no place on an axis of one scale; no crash


@pytest.mark.parametrize(
    ("spec", "name", "told"),
    [
        ("{file}", "a@b", "true"),
        ("{file}@stored", "a@b@stored", "stored"),
        ("x={file}@auto", "x", "auto"),
        ("{file}@auto+grain0.5", "a@b@auto+grain0.5", "auto"),
        ("{whole}", "c@stored", "true"),  # a file of that name is that file
    ],
)
def test_model_says_what_it_is_told(spec: str, name: str, told: str, tmp_path: Path) -> None:
    file, whole = shutil.copy(CHECKPOINT, tmp_path / "a@b.pt"), shutil.copy(BUNDLE, tmp_path / "c@stored")
    model = models.load_model(spec.format(file=file, whole=whole), "true")
    assert (model.name, model.told) == (name, told)


@pytest.mark.parametrize("file", [CHECKPOINT, BUNDLE])
def test_model_with_all_grain_keeps_what_was_measured(file: Path) -> None:
    lr = 0.3 + 0.3 * np.random.default_rng(0).random((24, 30), np.float32)
    acquired = Acquired((Band(0.75), Band()), 0.05)
    lacks = []
    for grain in ("0", "0.5", "1"):
        sr = models.load_model(f"{file}@true+grain{grain}").output(lr, TWO, {"true": acquired})
        assert sr is not None
        lacks.append(float(np.abs(acquired.lacking(lr, sr, TWO)).max()))
    assert lacks[0] > 1e-3
    assert lacks[1] == pytest.approx(lacks[0] / 2, rel=1e-2)
    assert lacks[2] < 1e-5


def test_a_plus_asks_for_the_ensemble_of_a_bundle(tmp_path: Path) -> None:
    one, mean = (models.load_model(f"{BUNDLE}{plus}") for plus in ("@stored", "@stored+"))
    assert (mean.name, mean.told, mean.served_by) == (f"{one.name}+", "stored", f"{one.served_by}, mean of 8")
    assert mean.facts["multiply_adds"] == 8 * one.facts["multiply_adds"]
    image = np.random.default_rng(0).random((20, 24), np.float32)
    with Upscaler.load(BUNDLE, ensemble=True) as up:
        np.testing.assert_array_equal(mean.output(image, TWO, {"stored": STORED}), models.upscale_by(up)(image, TWO, STORED))
    with pytest.raises(InputFileError, match="export it, and give the bundle"):
        models.load_model(f"{CHECKPOINT}+")
    named = shutil.copy(BUNDLE, tmp_path / "c+")  # a file of that name is that file
    assert models.load_model(str(named)).served_by == one.served_by


def test_models_hear_what_they_ask_for(found: list[list[np.ndarray]], folder: Path) -> None:
    heard: dict[str, list[tuple[np.ndarray, Acquired]]] = {"auto": [], "true": [], "stored": []}
    compared = [BICUBIC, *(spy(told, told, heard[told]) for told in ("auto", "true", "stored"))]
    made: list[int] = []
    scan = degradations.scan((0.7, 1.0), "hard", 0.05)
    counted = replace(scan, of=lambda truth, scales: (made.append(id(truth)), scan.of(truth, scales))[1])
    subjects = scores.load_subjects(folder)
    found.clear()
    results = evaluated(compared, subjects, [counted], [TWO], most=1)
    assert len(made) == len({*made}) == 3  # every input once, the one too that is only looked at for the estimate
    assert [len(slices) for slices in found] == [1, 1, 1]  # each picture is a volume of its own
    assert [line["estimate"] for line in results.estimates] == [asdict(FOUND)] * 2
    for told, acquired in (("auto", FOUND), ("true", scan.acquired), ("stored", STORED)):
        assert [its for _, its in heard[told]] == [acquired] * 2
        np.testing.assert_array_equal(heard[told][0][0], heard["auto"][0][0])


def test_estimate_is_one_a_volume_and_none_where_nobody_asks(found: list[list[np.ndarray]]) -> None:
    subjects = scores.load_subjects(SCAN.parent)
    found.clear()
    evaluated([spy("true", "true", [])], subjects, [resampled("bicubic")], [TWO], most=2)
    assert not found
    heard: list[tuple[np.ndarray, Acquired]] = []
    evaluated([spy("auto", "auto", heard)], subjects, [resampled("bicubic")], [TWO], most=2)
    assert [len(slices) for slices in found] == [7]  # all of the volume's crops, of which two are scored: the first and last
    for (lr, _), expected in zip(heard, (found[0][0], found[0][-1]), strict=True):
        np.testing.assert_array_equal(lr, expected)


def test_estimate_sees_every_input_of_its_volume(found: list[list[np.ndarray]]) -> None:
    rng = np.random.default_rng(0)
    crops = [Crop(rng.random((16, 16), np.float32), "", volume=volume) for volume in "aba"]
    case = resampled("bilinear", 0.05)
    found.clear()
    ((sample,),) = scores.cases(scores.Comparison([spy("", "auto", [])], {"x": crops}, [case], [TWO], 1))
    assert (sample.crop.volume, sample.estimate) == ("a", FOUND)
    np.testing.assert_array_equal(sample.lr, case.of(crops[0].pixels, TWO))
    for slices, numbers in zip(found, ([0, 2], [1]), strict=True):
        np.testing.assert_array_equal(slices, [case.of(crops[k].pixels, TWO) for k in numbers])


def test_summary_is_that_of_a_pocket_calculator() -> None:
    worst, best = "1,1 hamming ×2", "1,1 hard ×2.5"
    records: list[scores.Record] = []
    for made, scale, psnr, ssim in (
        ("scan 1,1 hard", 2, 1, 0.01),  # dB over bicubic's 0
        ("scan 1,1 hard", 2.5, 3, 0.03),
        ("scan 1,1 hamming", 2, 0.5, 0.02),
        ("scan 1,1 hamming", 2.5, 4, -0.02),
        ("bilinear", 2, 9, 9),  # no scan, so no part of it
    ):
        twice = ((2.0,), (0.1,)) if scale == 2 else (NONE[:1], NONE[:1])
        records += lines(scale, {"bicubic": ((0,), (0,)), "new": ((psnr,), (ssim,)), "twice": twice}, made)
    rows = rows_of(scores.markdown(records, MEASURES))
    assert ["×2", "new", "2", "+0.75 dB", "+0.50 dB", worst, "+0.0150", "+0.0100", "1,1 hard ×2"] in rows
    assert ["×2.5", "new", "2", "+3.50 dB", "+3.00 dB", best, "+0.0050", "-0.0200", worst + ".5"] in rows
    assert ["all", "new", "4", "+2.12 dB", "+0.50 dB", worst, "+0.0100", "-0.0200", worst + ".5"] in rows
    assert ["×2", "twice", "2", "+2.00 dB", "+2.00 dB", "1,1 hard ×2", "+0.1000", "+0.1000", "1,1 hard ×2"] in rows
    assert ["×2.5", "twice"] not in [row[:2] for row in rows]  # not served
    assert ["scan", "1,1 hamming", "×2"] in [row[:3] for row in rows]
    assert ["all", "2", "+2.00 dB"] in [[row[0], *row[2:4]] for row in rows if row[1:2] == ["twice"]]


@pytest.mark.usefixtures("found")
def test_scans_and_noise_are_rows(folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(folder), "--models", f"new={CHECKPOINT}", f"former={CHECKPOINT}@stored", "--out", str(tmp_path)]
    assert evaluate.main([*arguments, "--scales", "2", "--inputs", "scan:.7,1:tukey", "kspace", "--noise", "0", "0.05"]) == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    for made in (["scan", "0.7,1 tukey", "×2"], ["kspace", "", "×2"]):
        assert {"0 %", "5 %"} == {row[3] for row in rows if row[:3] == made}
    assert "×2, noise 5 %" in [row[0] for row in rows if row]
    assert {"crops_kspace_x2.png", "crops_kspace_5%_x2.png", "gains.png"} < {path.name for path in tmp_path.iterdir()}
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [m["told"] for m in content["models"]] == ["stored", "auto", "stored"]
    assert len(content["estimates"]) == 2 * 2 * 3  # inputs, noises, files
    (first, *_) = content["estimates"]
    assert (first["input"], first["measured"], first["noise"], first["scale"]) == ("scan", "0.7,1 tukey", 0, [2, 2])
    assert first["estimate"] == json.loads(json.dumps(asdict(FOUND)))
    assert first["truth"]["bands"][0] == {"fraction": 0.7, "taper": 0.25, "floor": 0}
    assert {line["model"] for line in content["summary"]} == {"new", "former"}


def test_scans_alone_have_no_curves(found: object, folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(folder), "--models", str(CHECKPOINT), "--scales", "2", "--inputs", "scan:1,1:hard"]
    assert evaluate.main([*arguments, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.json"}


@pytest.mark.parametrize(
    "axes", ["LP", "LA", "RP", "RA", "PL", "AL", "PR", "AR", "PS", "AI", "SA", "IP", "LS", "RI", "SR", "IL"]
)
def test_pictures_are_upright(axes: str) -> None:
    top, right = "S" if {*axes} & {*"SI"} else "A", "L" if {*axes} & {*"LR"} else "P"
    image = np.zeros((3, 5), np.float32)
    rows, cols = (-1 if letter in (top, right) else 0 for letter in axes)
    image[rows, cols] = 1  # the corner of the head that a radiologist sees at the top right
    shown = upright(image, axes)
    assert (shown[0, -1], shown.sum()) == (1, 1)
    np.testing.assert_array_equal(upright(image, ""), image, strict=True)


def test_axes_of_the_shipped_scan_are_those_of_its_slices() -> None:
    crops = scores.load_subjects(SCAN.parent)
    assert {crop.axes for its in crops.values() for crop in its} == {"LA"}  # its affine says LAS, its slices lie across S


def test_existing_files_are_kept_unless_forced(
    written: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    arguments = ["--data", str(folder), "--scales", "3", "--out", str(written)]
    with monkeypatch.context() as patch:
        patch.setattr(scores, "load_subjects", lambda *args: pytest.fail("the long work began"))
        assert evaluate.main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    assert evaluate.main([*arguments, "--force", "--inputs", "bilinear"]) == 0
    assert (written / "results.json").read_bytes() != before["results.json"]
    assert (written / "crops_bilinear_x3.png").exists()  # none of the paper's scales was scored: the first is shown


@pytest.mark.usefixtures("found")
def test_stop_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.Measure, "score", interrupt)
    assert evaluate.main(["--data", str(folder), "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.startswith("stopped")
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("found")
def test_perceptual_distance_is_one_more_column(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def distance(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        assert sr.shape == hr.shape
        assert sr.shape[:2] == (1, 1)
        assert 0 <= min(sr.min(), hr.min()) <= max(sr.max(), hr.max()) <= 1
        return sr.new_tensor(0.25)

    def loaded(path: Path) -> object:
        assert path == Path("vgg.npz")
        return distance

    distance.path = "vgg.npz"  # type: ignore[attr-defined]
    monkeypatch.setattr(evaluate, "Perceptual", loaded)
    assert evaluate.main(["--data", str(folder), "--scales", "2", "--inputs", "bilinear", "--features", "vgg.npz"]) == 0
    out = capsys.readouterr().out
    assert "VGG distance brain" in out
    assert out.count("**0.2500 ± 0.0000**") == 2  # both models, equally good


def test_no_crop_at_all_is_an_error(folder: Path) -> None:
    with pytest.raises(InputFileError, match="64×64"):
        scores.load_subjects(folder / "small")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--data", "{empty}"], "holds no image"),
        (["--data", "{folder}/small"], "no slice with a brain of 64×64"),
        (["--data", "{folder}", "--models", "no.bundle"], "no.bundle cannot be read"),
        (["--data", "{folder}", "--models", "no.pt"], "no.pt does not exist"),
        (["--data", "{folder}", "--models", "{folder}/bob/0.png"], "is damaged, or no file of weights"),
        (["--data", "{folder}", "--models", str(BUNDLE), str(BUNDLE)], "two models are called brain"),
        (["--data", "{folder}", "--models", f"bicubic={BUNDLE}"], "two models are called bicubic"),
        (["--data", "{folder}", "--scales", "1"], "scale 1 leaves nothing"),
        (["--data", "{folder}", "--scales", "2,3,4"], "has 3 entries"),
        (["--data", "{folder}", "--out", "{folder}/bob/0.png"], "cannot be made a folder"),
        (["--data", "{folder}", "--inputs", "lanczos"], "an input is 'lanczos': give bilinear"),
        (["--data", "{folder}", "--noise", "2"], "--noise is 2.0"),
        (["--data", "{folder}", "--noise", "0", "--discs"], "above 0 for --discs"),
        (["--data", "{folder}", "--crops", "0"], "--crops is 0"),
        (["--models", str(BUNDLE)], "--data is None"),
        (["--data", "{folder}", "--real", "{folder}"], "not both"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], error: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([a.format(folder=folder, empty=tmp_path) for a in arguments]) == 1
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("library", ["matplotlib", "skimage"])
def test_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("evaluate", "figures", "scores", "metrics", "models", "probes"):
        monkeypatch.delattr(f"train.{name}")
        monkeypatch.delitem(sys.modules, f"train.{name}")
    monkeypatch.setattr(sys, "argv", ["metasrgan", "evaluate", "--data", "anywhere"])
    assert metasrgan.main() == 1
    assert f"{library} is not installed: pip install" in capsys.readouterr().err


def gains(results: scores.Results) -> np.ndarray:
    """(scales, PSNR and SSIM): of the second model over the first."""
    both = np.array([means(results), means(results, "ssim")]).T.reshape(-1, 2, 2)
    return both[:, 1] - both[:, 0]


def test_shipped_model_beats_bicubic_on_the_shipped_scan() -> None:
    subjects = scores.load_subjects(SCAN.parent)
    scales = [(Fraction(s),) * 2 for s in SCALES]
    compared = [BICUBIC, models.load_model(str(BUNDLE), "stored")]
    results = evaluated(compared, subjects, [resampled("bilinear")], scales)
    (crops,) = subjects.values()
    assert len(crops) == 7
    assert (gains(results) > (1, 0)).all()  # dB; on the validation set it is 2 and more


@pytest.mark.skipif(not VALIDATION.is_dir(), reason=f"the validation volumes are not at {VALIDATION}")
def test_shipped_model_keeps_its_promise_on_the_validation_set() -> None:
    subjects = scores.load_subjects(VALIDATION)
    assert [len(crops) for crops in subjects.values()] == [40, 40, 40]
    some = {name: crops[::4] for name, crops in subjects.items()}
    scales = [(Fraction(s),) * 2 for s in SCALES]
    compared = [BICUBIC, models.load_model(str(BUNDLE), "stored")]
    results = evaluated(compared, some, [resampled("bilinear")], scales)
    assert (gains(results) > (2, 0)).all()  # README: 3 dB and more on the whole set
