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


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.1, 0.2), (0.3, 0.3)])
def test_few_units_bend_between_offsets_that_are_close(predictor: WeightPredictor, low: float, high: float) -> None:
    scales = (Fraction("1.5707963"), Fraction("2.7182818"))
    rows, cols = np.random.default_rng(0).uniform(low, high, (2, 20))  # in no order
    whole_rows, whole_cols = predictor.hidden_parts(rows, cols, scales)
    hidden_rows, hidden_cols, w2, b2 = predictor.bending(whole_rows, whole_cols, rows, cols)
    actual = np.maximum(hidden_rows[:, None] + hidden_cols[None], 0) @ w2 + b2
    expected = np.maximum(whole_rows[:, None] + whole_cols[None], 0) @ predictor.w2.T + predictor.b2
    # Sums of 256 products in float32. Of the shipped predictor's 256 units 163 bend at all, 2 carry the offsets.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(w2) <= {1.0: 170, 0.1: 30, 0.0: 2}[round(high - low, 1)]


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
