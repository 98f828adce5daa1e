from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from train import augment
from train.augment import Augment

NONE = Augment(gain=(1, 1))


@pytest.fixture
def head() -> np.ndarray:
    y, x = np.mgrid[-1:1:120j, -1:1:110j]
    return np.where(np.hypot(y, x) < 0.95, 0.4 + 0.2 * np.sin(20 * x), 0).astype(np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_without_probabilities_nothing_changes(head: np.ndarray) -> None:
    assert NONE.crop(head, 96, rng()) is head
    np.testing.assert_array_equal(NONE.patch(head, (0, 0), head.shape, rng()), head)
    lr, hr = NONE.pair(head[::2, ::2], head, (Fraction(2), Fraction(2)), rng())
    assert hr is head
    np.testing.assert_array_equal(lr, head[::2, ::2])


@pytest.mark.parametrize("kind", ["smooth", "curve", "strip"])
def test_a_certain_change_keeps_shape_type_and_black(head: np.ndarray, kind: str) -> None:
    changed = Augment(gain=(1, 1), **{kind: 1.0}).patch(head, (0, 0), head.shape, rng())
    assert changed.shape == head.shape
    assert changed.dtype == np.float32
    assert not np.array_equal(changed, head)
    assert changed[0, 0] == 0  # a corner is air, whatever the scanner
    assert changed.min() >= 0


def test_zoom_keeps_room_for_a_patch(head: np.ndarray) -> None:
    shapes = {Augment(zoom=1.0).crop(head, 96, np.random.default_rng(k)).shape for k in range(60)}
    assert all(96 <= min(shape) and max(shape) <= 1.25 * 120 + 1 for shape in shapes)
    assert min(min(s) for s in shapes) == 96  # 0.8 · 110 would be too few
    assert max(max(s) for s in shapes) > 130


def test_strip_blackens_the_rim_and_fills_the_range(head: np.ndarray) -> None:
    for k in range(10):
        stripped = Augment(gain=(1, 1), strip=1.0).patch(head, (0, 0), head.shape, np.random.default_rng(k))
        rim = np.concatenate([stripped[0], stripped[-1], stripped[:, 0], stripped[:, -1]])
        assert not rim.any()
        assert stripped[60, 55] > 0
        assert np.percentile(stripped, 99.9) == pytest.approx(1, abs=1e-3)
        patch = Augment(gain=(1, 1), strip=1.0).patch(head[20:116, 8:104], (20, 8), head.shape, np.random.default_rng(k))
        np.testing.assert_array_equal(patch > 0, (stripped > 0)[20:116, 8:104])  # the blob is the crop's, not the patch's


def test_noise_is_drawn_from_the_best_to_the_worst_scans() -> None:
    sigmas = np.array([Augment(noise=0.5).sigma(np.random.default_rng(k)) for k in range(400)])
    noisy = sigmas[sigmas > 0]
    assert len(noisy) == pytest.approx(200, abs=40)  # four standard deviations
    assert 0.003 <= noisy.min() < 0.004
    assert 0.06 < noisy.max() <= 0.08
    assert Augment().sigma(rng()) == 0


def test_dots_lie_at_the_same_place_of_both_images() -> None:
    """Also where an axis' scale is no whole number: their centres of mass agree in low-resolution pixels."""
    scales = (Fraction(5, 2), Fraction(17, 10))
    for k in range(40):
        lr, hr = np.zeros((40, 40), np.float32), np.zeros((100, 68), np.float32)
        lr, hr = augment._dotted(lr, hr, scales, np.random.default_rng(k))
        row, col = np.unravel_index(lr.argmax(), lr.shape)
        assert 0.2 <= lr.max() <= 1.0
        for axis, pixel in ((0, row), (1, col)):
            if 3 <= pixel < 37:  # not cut off by the rim
                profile = hr.sum(1 - axis)
                centre = profile @ (np.arange(len(profile)) + 0.5) / profile.sum() / float(scales[axis])
                # Samples of a Gaussian 0.45·1.7 pixels wide have their centre of mass within 0.01 pixels of its own.
                assert centre == pytest.approx(pixel + 0.5, abs=0.01)


def test_gain_is_drawn_between_its_bounds(head: np.ndarray) -> None:
    gains = [Augment().patch(head, (0, 0), head.shape, np.random.default_rng(k)).max() / head.max() for k in range(50)]
    assert 0.7 <= min(gains) < 0.75 < 1.05 < max(gains) <= 1.1


@pytest.mark.parametrize("wrong", [{"strip": 1.5}, {"noise": -0.1}, {"gain": (1.1, 0.7)}, {"gain": (0.0, 1.0)}])
def test_a_change_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Augment(**wrong)  # type: ignore[arg-type]
