from __future__ import annotations

import logging
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from runtime import Upscaler
from runtime.phases import Tables, WeightPredictor

SCALES = (Fraction(21, 10), Fraction(2))


@pytest.fixture
def predictor(shipped: Upscaler) -> WeightPredictor:
    return shipped.bundle.predictor()


def test_kept_table_is_read_again(predictor: WeightPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made" / "when needed"
    first = Tables(predictor, directory=folder)[SCALES]
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(WeightPredictor, "table", lambda *_: pytest.fail("predicted again"))
    np.testing.assert_array_equal(Tables(predictor, directory=folder)[SCALES], first)


def test_damaged_table_is_predicted_again(predictor: WeightPredictor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Tables(predictor, directory=tmp_path)[SCALES]
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[1000] ^= 1
    for bad in (bytes(flipped), good[:-4], b"", good + b"1234"):
        file.write_bytes(bad)
        caplog.clear()
        np.testing.assert_array_equal(Tables(predictor, directory=tmp_path)[SCALES], first)
        assert "damaged" in caplog.text
        assert file.read_bytes() == good


def test_another_model_does_not_read_this_ones_tables(predictor: WeightPredictor, tmp_path: Path) -> None:
    Tables(predictor, directory=tmp_path)[SCALES]
    other = WeightPredictor(predictor.w1, predictor.b1, predictor.w2 * np.float32(1.5), predictor.b2, "centred")
    table = Tables(other, directory=tmp_path)[SCALES]
    np.testing.assert_array_equal(table, Tables(other)[SCALES])
    assert len(list(tmp_path.iterdir())) == 2


def test_folder_that_cannot_be_written_costs_a_warning_only(
    predictor: WeightPredictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with caplog.at_level(logging.WARNING):
        table = Tables(predictor, directory=tmp_path / "file")[SCALES]
    np.testing.assert_array_equal(table, Tables(predictor)[SCALES])
    assert "table" in caplog.text


def test_two_writers_leave_one_whole_table(predictor: WeightPredictor, tmp_path: Path) -> None:
    threads = [threading.Thread(target=lambda: Tables(predictor, directory=tmp_path)[SCALES]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 32 + 4 * 21 * 2 * predictor.w2.shape[0]
