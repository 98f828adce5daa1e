"""The background that is skipped, and the noise that a trunk is told: what is kept of one depends on the other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from runtime import Upscaler
from runtime.acquired import NOTHING, Told
from runtime.bundle import Bundle
from runtime.engines import portable
from runtime.engines.portable import PortableEngine
from runtime.intensity import UNIT
from tests.conftest import bundle_of, random_generator

SIGMAS = (0.0, 0.05, 0.01, 0.05, 0.0)  # the last two are kept from before


@pytest.fixture(scope="module")
def engine(told: Bundle) -> PortableEngine:
    return PortableEngine(told)


@pytest.fixture
def island() -> np.ndarray:
    """Content amid black, wider than the receptive radius on two sides only."""
    image = np.zeros((90, 110), np.float32)
    image[30:50, 70:100] = np.random.default_rng(0).random((20, 30))
    return image


def features(engine: PortableEngine, image: np.ndarray, told: Told = NOTHING) -> np.ndarray:
    return engine.encode(image, UNIT, told).value.numpy()


def test_skipped_background_equals_the_whole_trunk_at_every_noise(
    engine: PortableEngine, island: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = island, np.zeros_like(island)
    skipped = [features(engine, image, (sigma, 0.1, 0.3)) for sigma in SIGMAS for image in images]
    monkeypatch.setattr(portable, "_WORTH_SKIPPING", -1.0)
    whole = [features(engine, image, (sigma, 0.1, 0.3)) for sigma in SIGMAS for image in images]
    for actual, expected in zip(skipped, whole):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_features_follow_the_noise_from_a_thousandth_of_white(engine: PortableEngine, island: np.ndarray) -> None:
    none, little, some, more = (features(engine, island, (sigma, 0.0, 0.0)) for sigma in (0.0, 1e-3, 2e-3, 0.05))
    np.testing.assert_array_equal(features(engine, island), none)
    np.testing.assert_array_equal(little, none)
    assert np.abs(some - none).max() > 1e-3 * np.abs(none).max()  # far more than arithmetic's 1e-6
    assert np.abs(more - some).max() > 1e-3 * np.abs(none).max()
    rows, cols = (features(engine, island, told) for told in ((0.0, 0.3, 0.0), (0.0, 0.0, 0.3)))
    assert min(np.abs(rows - none).max(), np.abs(rows - cols).max()) > 1e-3 * np.abs(none).max()


def test_a_model_that_is_not_told_ignores_the_noise(island: np.ndarray) -> None:
    engine = PortableEngine(bundle_of(random_generator("shallow")))
    for image in (island, island[30:50, 70:100]):
        np.testing.assert_array_equal(features(engine, image, (0.05, 0.1, 0.0)), features(engine, image))
    assert len(engine._kept._values) == 1


def test_what_is_kept_keeps_within_its_bytes(told: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "_KEPT", 1 << 20)  # five backgrounds of 33×33 pixels
    with Upscaler.load(told, device="cpu") as up:
        for k in range(12):
            view = up.encode(np.zeros((40, 40), np.float32), noise=0.001 * k)
            view.render(1 + Fraction(k, 10), window=(k, 0, 40, 30 + k // 2))
            view.render(1 + Fraction(k, 1009), window=(0, 0, 40, 30 + k // 2))
            assert 0 < up.slices.engine._kept.bytes <= 1 << 20
