from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from runtime.acquired import Acquired
from tests.conftest import ROOT, SCAN
from train import coverage, data, evaluate, models, scores
from train.data import Crop
from train.degradations import resampled
from train.models import BICUBIC, Model

TWO = (Fraction(2),) * 2
BRAIN = ROOT / "runtime" / "brain.bundle"


def test_what_is_held_is_counted_in_all_and_in_tissue() -> None:
    truth = np.zeros((64, 64), np.float32)
    truth[:, 32:] = 0.5  # tissue

    def interval(lr: models.Image, scales: object, acquired: Acquired) -> tuple[models.Image, models.Image]:
        output, half_width = truth.copy(), np.full_like(truth, 0.1)
        output[:16, 32:] += 0.2  # a quarter of the half that is tissue lies outside
        return output, half_width

    model = Model("ours", "", BICUBIC.upscale, interval=interval)
    compared = scores.Comparison([BICUBIC, model], {"": [Crop(truth, "x")]}, [resampled("bicubic")], [TWO])
    (record,) = coverage.examine(compared)
    assert (record["model"], record["crops"]) == ("ours", 1)
    assert record["held"] == pytest.approx(7 / 8)
    assert record["held_of_tissue"] == pytest.approx(3 / 4)
    assert record["half_width"] == pytest.approx(0.1)
    text = coverage.markdown([record, {**record, "held": 0.5, "noise": 0.02}])
    assert [cell.strip() for cell in text.splitlines()[4].split("|")[1:-1]] == [
        "ours",
        "all",
        "",
        "2",
        "0.688",
        "0.750",
        "10.0",
    ]


def test_the_shipped_intervals_hold_a_scan_of_another_scanner_as_often_as_they_say() -> None:
    crops = data.load_crops([SCAN], 64)
    degradations = [resampled("bilinear"), resampled("kspace", 0.02)]
    model = replace(models.load_model(str(BRAIN), "true"), name="brain")
    records = coverage.examine(scores.Comparison([BICUBIC, model], {"": crops}, degradations, [TWO], 3))
    assert 0.84 < np.mean([record["held"] for record in records]) < 0.96


def test_command_prints_it_and_wants_a_bundle_that_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--data", str(SCAN.parent), "--coverage", "--inputs", "bicubic", "--scales", "2", "--crops", "1"]
    assert evaluate.main([*asked, "--models", str(BRAIN), "--out", str(tmp_path)]) == 0
    assert "## What intervals hold" in capsys.readouterr().out
    assert "held" in (tmp_path / "results.json").read_text()
    assert evaluate.main([*asked, "--models", str(ROOT / "models" / "fidelity.pt")]) == 1
    assert "a bundle that tells uncertainty" in capsys.readouterr().err
