from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from runtime import Upscaler
from runtime.phases import WeightPredictor


@pytest.fixture
def predictor(shipped: Upscaler) -> WeightPredictor:
    return shipped.bundle.predictor()


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
