from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from export import uncertainty
from export.__main__ import main
from runtime import Upscaler, bundle
from runtime.bundle import HEAD, Bundle
from tests.conftest import SCAN, bundle_of, random_generator
from train import checkpoint, data, models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scan of seven slices as two subjects', and less work than an export does."""
    for name, value in {"VOLUMES": 12, "CALIBRATING": 12, "EPOCHS": 4}.items():
        monkeypatch.setattr(uncertainty, name, value)
    (tmp_path / "scans").mkdir()
    for name in ("sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"):
        shutil.copy(SCAN, tmp_path / "scans" / name)
    return tmp_path / "scans"


@pytest.fixture
def upscaler() -> Iterator[Upscaler]:
    with Upscaler.of(bundle_of(random_generator("told")), device="cpu", threads=1) as up:
        yield up


def test_other_subjects_lie_outside_as_often_as_they_may(folder: Path, upscaler: Upscaler) -> None:
    arrays = uncertainty.fit(upscaler, folder)
    files = {f"uncertainty/{name}.npy": bundle.array_bytes(part) for name, part in arrays.items()}
    assert set(files) == set(HEAD)
    whole = Bundle(upscaler.bundle.manifest, upscaler.bundle.model, upscaler.bundle.files | files, "")
    crops = data.load_crops([folder / "sub-02_T1w.nii.gz"], 64)
    held = []
    with Upscaler.of(whole, device="cpu", threads=1) as up:
        interval, rng = models.interval_by(up), np.random.default_rng(5)
        for crop in data.evenly(crops, 4):
            for _ in range(8):
                way, scales = uncertainty.draw(rng)
                lr = way.of(crop.pixels, scales)
                sr, half_width = interval(lr, scales, way.acquired)
                held.append((np.abs(sr - crop.pixels[: sr.shape[0], : sr.shape[1]]) <= half_width).mean())
    assert 0.82 < np.mean(held) < 0.97  # 0.9 of many; a head that is not scaled holds 0.6 or 1


def test_an_export_has_a_head(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random_generator("told")
    content = {"generator": vars(generator.config), "weights": generator.state_dict(), "training": {}}
    checkpoint.save(tmp_path / "x.pt", content)
    assert main(["--ckpt", str(tmp_path / "x.pt"), "--fp16", "--uncertainty", str(folder)]) == 0
    made = Bundle.read(tmp_path / "x.bundle")
    assert made.head() is not None
    assert all(made._array(member).dtype == np.float16 for member in HEAD)
    assert "within" in capsys.readouterr().out


def test_what_is_drawn_is_of_all_kinds() -> None:
    drawn = [uncertainty.draw(np.random.default_rng(k)) for k in range(200)]
    kinds = [way.kind for way, _ in drawn]
    assert {kind: kinds.count(kind) > 15 for kind in kinds} == dict.fromkeys(("bilinear", "bicubic", "kspace", "scan"), True)
    assert {way.noise > 0 for way, _ in drawn} == {True, False}
    assert {rows == cols for _, (rows, cols) in drawn} == {True, False}
    assert min(min(scales) for _, scales in drawn) == 1


def test_a_folder_of_one_subject_is_refused(tmp_path: Path, upscaler: Upscaler) -> None:
    shutil.copy(SCAN, tmp_path / "sub-01_T1w.nii.gz")
    with pytest.raises(OSError, match="subject"):
        uncertainty.fit(upscaler, tmp_path)
