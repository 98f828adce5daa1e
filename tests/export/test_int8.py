from __future__ import annotations

import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import int8
from export.__main__ import main
from runtime import bundle
from runtime.bundle import Bundle
from tests.conftest import ROOT, SCAN
from train import rounding

CKPT = ["--ckpt", str(ROOT / "models" / "fast.pt")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scan of seven slices, and fewer inputs than an export takes."""
    monkeypatch.setattr(int8, "SCALES", (Fraction(3, 2), Fraction(4)))
    monkeypatch.setattr(rounding, "CALIBRATED", 16)
    (tmp_path / "scans").mkdir()
    shutil.copy(SCAN, tmp_path / "scans")
    return tmp_path / "scans"


def test_what_works_on_features_is_in_integers_and_the_loss_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.bundle"
    assert main([*CKPT, "--out", str(out), "--fp16", "--int8", str(folder)]) == 0
    assert "8-bit integers lose up to 0.0" in capsys.readouterr().out
    made = Bundle.read(out)
    assert made.manifest["model"]["precision"] == "int8"
    assert made.integers
    assert made.model.told
    assert bundle.TRUNK_FP16 not in made.files
    lost = made.manifest["psnr_lost_db"]
    assert [*lost] == [f"{made} {r}" for made in ("bilinear", "kspace", "scan 0.7,1 hard 2 %") for r in ("×1.5", "×4")]
    assert 0 < max(lost.values()) <= 0.1  # what the project promises; exactly nothing would be no quantisation
    graph = onnx.load_from_string(made.files["trunk.onnx"]).graph
    by_output = {output: node.op_type for node in graph.node for output in node.output}
    weights = Counter(by_output.get(node.input[1], "float") for node in graph.node if node.op_type == "Conv")
    # Two in each of twenty blocks and the tail; the head, the ones behind what is told, the basis and the skip's neighbours.
    assert weights == {"DequantizeLinear": 41, "float": 4}
    assert out.stat().st_size < 600_000


def test_a_network_that_was_not_told_and_not_trained_for_it_loses_too_much(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = ["--ckpt", str(ROOT / "models" / "former.pt")]
    assert main([*former, "--out", str(tmp_path / "x.bundle"), "--int8", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "8-bit integers lose 0." in said
    assert "train --config int8" in said  # what to do
    assert list(tmp_path.iterdir()) == [folder]


def test_too_few_slices_are_an_error_that_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).random((170, 170)))
    assert main([*CKPT, "--out", str(tmp_path / "x.bundle"), "--int8", str(tmp_path)]) == 1
    assert f"error: {tmp_path} has 1 slices of 160×160 pixels or more: give two or more" in capsys.readouterr().err
