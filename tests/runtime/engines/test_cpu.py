"""The noise that a trunk is told: what the engine keeps of the background depends on it."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.engines import cpu
from runtime.engines.cpu import CpuEngine
from tests.conftest import bundle_of, random_generator

SIGMAS = (0.0, 0.05, 0.01, 0.05, 0.0)  # the last two are kept from before


@pytest.fixture(scope="module")
def engine(told: Bundle) -> CpuEngine:
    return CpuEngine.load(told)


@pytest.fixture
def island() -> np.ndarray:
    """Content amid black, wider than the receptive radius on two sides only."""
    image = np.zeros((90, 110), np.float32)
    image[30:50, 70:100] = np.random.default_rng(0).random((20, 30))
    return image


def test_skipped_background_equals_the_whole_trunk_at_every_noise(engine: CpuEngine, island: np.ndarray) -> None:
    for sigma in SIGMAS:
        told = (sigma, 0.1, 0.3)
        for image in (island, np.zeros_like(island)):
            expected = engine._run_trunk(image, told)
            np.testing.assert_allclose(engine.encode(image, told), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_responses_follow_the_noise_from_a_thousandth_of_white(engine: CpuEngine, island: np.ndarray) -> None:
    none, little, some, more = (engine.encode(island, (sigma, 0.0, 0.0)) for sigma in (0.0, 1e-3, 2e-3, 0.05))
    np.testing.assert_array_equal(engine.encode(island), none)
    np.testing.assert_array_equal(little, none)
    assert np.abs(some - none).max() > 1e-3 * np.abs(none).max()  # far more than arithmetic's 1e-6
    assert np.abs(more - some).max() > 1e-3 * np.abs(none).max()
    rows, cols = (engine.encode(island, told) for told in ((0.0, 0.3, 0.0), (0.0, 0.0, 0.3)))
    assert min(np.abs(rows - none).max(), np.abs(rows - cols).max()) > 1e-3 * np.abs(none).max()


def test_a_model_that_is_not_told_ignores_the_noise(island: np.ndarray) -> None:
    bundle = bundle_of(random_generator("fast"))
    engine = CpuEngine.load(bundle)
    for image in (island, island[30:50, 70:100]):
        np.testing.assert_array_equal(engine.encode(image, (0.05, 0.1, 0.0)), engine.encode(image))
    assert len(engine._blanks._values) == 1


def test_backgrounds_of_many_noises_keep_within_their_bytes(told: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_BLANKS", 1 << 20)  # five of 33×33 pixels
    engine = CpuEngine.load(told)
    for k in range(12):
        engine.encode(np.zeros((40, 40), np.float32), (0.001 * k, 0.0, 0.0))
        assert 0 < engine._blanks.bytes <= 1 << 20
