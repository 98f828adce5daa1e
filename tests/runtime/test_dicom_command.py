"""`python -m runtime FOLDER`: DICOM by the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs pydicom: pip install 'metasrgan-edge[dicom]'")

import pydicom

from runtime.__main__ import main
from tests.runtime.test_dicom import SERIES, fill, make_series


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two series, a localizer and a foreign file in one folder."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "readme.txt").write_text("no picture")
    fill(folder / "a", make_series(4))
    fill(folder / "b", make_series(3, series=f"{SERIES}.7"))
    fill(folder / "c", make_series(1, series=f"{SERIES}.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    return folder


def test_each_series_becomes_one_with_its_record(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(study), "--scale", "2", "5/2", "-o", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["series-1", "series-1.json", "series-2", "series-2.json"]
    said = capsys.readouterr().out
    assert "readme.txt was left out: not DICOM" in said
    assert "is left out: it" in said  # the localizer
    assert "7×9×4" in said
    assert "Doe" not in said + (out / "series-1.json").read_text()
    files = [pydicom.dcmread(file) for file in sorted((out / "series-1").iterdir())]
    assert [(f.Rows, f.Columns) for f in files] == [(14, 22)] * len(files)  # 7·2 rows, 9·5 // 2 columns
    record = json.loads((out / "series-1.json").read_text())
    assert record["scale"] == "2, 5/2"
    assert record["device"].startswith("cpu (")
    assert len(record["bundle"]) == len(record["input"]) == 64


def test_same_input_and_date_give_the_same_bytes(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        assert main([str(study), "--scale", "2.3", "-o", str(out), "--quiet"]) == 0
    one, two = ({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in outs)
    assert one == two
    assert len(one) == 9  # seven slices, two records


def test_anonymous_output_names_nobody(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(study), "--scale", "2", "-o", str(out), "--anonymous", "--quiet"]) == 0
    assert not any(b"Doe" in file.read_bytes() or b"PID-77" in file.read_bytes() for file in out.rglob("*.dcm"))


def test_what_is_there_is_kept(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (out / "series-2").mkdir(parents=True)
    (out / "series-2" / "mine.txt").write_text("precious")
    for extra in ([], ["--force"]):
        assert main([str(study), "--scale", "2", "-o", str(out), *extra]) == 1
        assert capsys.readouterr().err.count("\n") == 1
        assert [p.name for p in out.rglob("*") if p.is_file()] == ["mine.txt"]  # and no work was begun


def test_nothing_that_can_be_upscaled_is_an_error(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(study / "c"), "--scale", "2", "-o", str(tmp_path / "out")]) == 1
    assert "has no series that can be upscaled: 1 found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_pydicom_the_command_is_named(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("runtime.dicom")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert main([str(study), "--scale", "2"]) == 1
    assert "pip install 'metasrgan-edge[dicom]'" in capsys.readouterr().err


def test_a_picture_is_not_anonymised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.eye(8))
    assert main([str(tmp_path / "x.npy"), "--scale", "2", "--anonymous"]) == 1
    assert "which is no DICOM" in capsys.readouterr().err
