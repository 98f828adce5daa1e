from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from train import degradations
from train.degradations import named
from train.tables import ConfigError

TWO = (Fraction(2),) * 2


def test_words_name_inputs() -> None:
    assert [d.name for d in named("kspace", 0.02)] == ["kspace 2 %"]
    scans = named("scan", 0.03)
    assert len({d.name for d in scans}) == 18  # six pairs of fractions, three windows
    assert {(d.kind, d.noise) for d in scans} == {("scan", 0.03)}
    (one,) = named("scan:.7,1:hamming")
    assert (one.kind, one.case, one.name) == ("scan", "0.7,1 hamming", "scan 0.7,1 hamming")
    assert [(b.fraction, b.taper, b.floor) for b in one.acquired.bands] == [(0.7, 1, 0.08), (1, 1, 0.08)]
    assert one.name in {d.name for d in named("scan")}


@pytest.mark.parametrize(
    "word",
    [
        *("", "lanczos", "scan:", "scan:.7:hard", "scan:.7,1", "scan:.7,1:hann", "scan:0,1:hard", "scan:1.1,1:hard"),
        *("scan:nan,1:hard", "scan:.7,.7,1:hard", "scan:x,1:hard", "sc:.7,1:hard"),
    ],
)
def test_other_words_do_not(word: str) -> None:
    with pytest.raises(ConfigError, match="a scan such as"):
        named(word)


@pytest.mark.parametrize("window", degradations.WINDOWS)
def test_scan_without_noise_is_a_sum_of_cosines(window: str) -> None:
    rng = np.random.default_rng(0)
    truth = (5 + rng.random((16, 12))).astype(np.float32)  # so bright that nothing is below black, where the magnitude folds
    (case,) = named(f"scan:.7,.5:{window}")
    expected = np.zeros((8, 6))
    for k in range(6):  # of 8 rows, 0.7: cosines below 5.6
        for m in range(3):  # of 6 columns, the half
            y, x = np.cos(np.pi * k * (np.arange(16) + 0.5) / 16), np.cos(np.pi * m * (np.arange(12) + 0.5) / 12)
            coefficient = y @ truth @ x / (y @ y) / (x @ x)
            for part, (at, end) in {"row": (k, 5.6), "column": (m, 3)}.items():
                where = at / end
                if window == "tukey" and where > 0.75:
                    coefficient *= 0.5 + 0.5 * np.cos(np.pi * (where - 0.75) / 0.25)
                elif window == "hamming":
                    coefficient *= 0.54 + 0.46 * np.cos(np.pi * where)
                assert where < 1, part
            rows, cols = np.cos(np.pi * k * (2 * np.arange(8) + 1) / 16), np.cos(np.pi * m * (2 * np.arange(6) + 1) / 12)
            expected += coefficient * np.outer(rows, cols)
    np.testing.assert_allclose(case.of(truth, TWO), expected, atol=1e-5)  # float32 at 5.5
