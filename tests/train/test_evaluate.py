from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from runtime import Upscaler
from tests.conftest import ROOT, SCAN
from train import evaluate, metrics

VALIDATION = ROOT.parent / "shared" / "data" / "t1ce-validation"


def test_psnr_and_ssim_by_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth, image = rng.random((2, 40, 30), np.float32)
    assert metrics.psnr(truth, image) == pytest.approx(-10 * np.log10(np.mean((truth - image) ** 2)), abs=1e-4)
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    assert metrics.psnr(truth, truth + 0.1) > metrics.psnr(truth, truth + 0.2)
    assert metrics.psnr(np.ones_like(truth), 5 * np.ones_like(truth) - truth * 1e-3) > 100  # clamped to 1


def test_shipped_model_beats_bicubic_on_the_shipped_scan(shipped: Upscaler) -> None:
    rows, subjects, slices = evaluate.evaluate(shipped, SCAN.parent, progress=False)
    assert (subjects, slices) == (1, 7)
    assert [r.scale for r in rows] == list(evaluate.SCALES)
    for row in rows:
        assert row.bundle[0] > row.bicubic[0] + 1  # dB; on the validation set it is 2 and more
        assert row.bundle[1] > row.bicubic[1]


@pytest.mark.skipif(not VALIDATION.is_dir(), reason=f"the validation volumes are not at {VALIDATION}")
def test_shipped_model_keeps_its_promise_on_the_validation_set(shipped: Upscaler) -> None:
    rows, subjects, slices = evaluate.evaluate(shipped, VALIDATION, progress=False)
    assert (subjects, slices) == (3, 120)
    for row in rows:
        assert row.bundle[0] > row.bicubic[0] + (2 if row.scale == Fraction(2) else 0)
        assert row.bundle[1] > row.bicubic[1]


def test_command_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert evaluate.main(["--data", str(SCAN.parent), "--scales", "2"]) == 0
    out = capsys.readouterr().out
    assert "7 brain crops of 1 subjects" in out
    assert "| bilinear | ×2 |" in out
    assert evaluate.main(["--data", str(tmp_path)]) == 1
    assert "holds no image" in capsys.readouterr().err
