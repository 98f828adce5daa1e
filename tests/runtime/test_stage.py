"""The Meta-Upscale stage: tables, table-free, and a per-pixel loop must be the same function."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from runtime import Upscaler, grid, tiles
from runtime.phases import slot_filters
from tests import reference

SHAPE = (7, 11)  # odd, not square, no multiple of any q
Render = Callable[[np.ndarray, tuple[Fraction, Fraction]], np.ndarray]

# Sums of 585 products in float32: each rounding is 6e-8 of a term.
RELATIVE = 1e-5


@pytest.fixture
def features(random_upscaler: Upscaler) -> np.ndarray:
    """Random features with the border that the trunk gives: zeros, and the repeated edge in the image channel."""
    model = random_upscaler.bundle.model
    rng = np.random.default_rng(1)
    inner = rng.standard_normal((*SHAPE, model.channels)).astype(np.float32)
    padded = np.pad(inner, ((1, 1), (1, 1), (0, 0)))
    if model.skip:
        image = np.pad(rng.random(SHAPE, np.float32), 1, mode="edge")
        padded = np.concatenate([padded, image[..., None]], -1)
    return padded


def _spans(up: Upscaler, scales: tuple[Fraction, Fraction]) -> tuple[tiles.Span, tiles.Span]:
    axes = [grid.project(n, r, up.bundle.model.projection) for n, r in zip(SHAPE, scales)]
    rows, cols = (tiles.Span(a, 0, a.n_out, 0, a.n_in) for a in axes)
    return rows, cols


def by_table(up: Upscaler, features: np.ndarray, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    model, predictor = up.bundle.model, up.bundle.predictor()
    filters = slot_filters(predictor.table(scales), scales, model.projection, model.skip)
    return up._running.render(features, *_spans(up, scales), filters)


def table_free(up: Upscaler, features: np.ndarray, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    model, predictor = up.bundle.model, up.bundle.predictor()
    rows, cols = _spans(up, scales)
    hidden = predictor.hidden_parts(rows.offset, cols.offset, scales)
    taps_rows, taps_cols = (
        grid.skip_taps(r, model.projection, s.offset).astype(np.float32) for r, s in zip(scales, (rows, cols))
    )
    return up._running.render_table_free(features, rows, cols, predictor.units(model.skip), hidden, (taps_rows, taps_cols))


def loop(up: Upscaler, features: np.ndarray, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    model = up.bundle.model
    inner = features[1:-1, 1:-1]
    image = inner[..., -1] if model.skip else None
    return reference.meta_upscale(inner[..., : model.channels], up.bundle.predictor(), scales, image)


@pytest.mark.parametrize("scale", grid.PAPER_SCALES, ids=str)
def test_table_equals_table_free_equals_per_pixel_loop(
    random_upscaler: Upscaler, features: np.ndarray, scale: Fraction
) -> None:
    expected = loop(random_upscaler, features, (scale, scale))
    for path in (by_table, table_free):
        actual = path(random_upscaler, features, (scale, scale))
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("scales", [("2", "3"), ("1.1", "3.9"), ("32/15", "1"), ("15/11", "16")], ids=str)
def test_axes_may_have_scales_of_their_own(random_upscaler: Upscaler, features: np.ndarray, scales: tuple[str, str]) -> None:
    both = (Fraction(scales[0]), Fraction(scales[1]))
    expected = loop(random_upscaler, features, both)
    for path in (by_table, table_free):
        actual = path(random_upscaler, features, both)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_irrational_scale_needs_no_table(random_upscaler: Upscaler, features: np.ndarray) -> None:
    scales = (Fraction("1.5707963267948966"), Fraction("2.718281828459045"))
    assert not grid.has_table(scales)
    expected = loop(random_upscaler, features, scales)
    actual = table_free(random_upscaler, features, scales)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("r", [2, 3, 4])
def test_integer_scale_equals_convolution_and_pixel_shuffle(random_upscaler: Upscaler, features: np.ndarray, r: int) -> None:
    channels = random_upscaler.bundle.model.channels
    scales = (Fraction(r), Fraction(r))
    table = random_upscaler.bundle.predictor().table(scales)  # (r, r, 9C)
    weight = torch.tensor(table.reshape(r * r, 3, 3, channels).transpose(0, 3, 1, 2))
    x = torch.tensor(features[1:-1, 1:-1, :channels].transpose(2, 0, 1))[None]
    shuffled = torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(x, weight, padding=1), r)[0, 0].numpy()
    if random_upscaler.bundle.model.skip:
        shuffled = shuffled + reference.linear(features[1:-1, 1:-1, -1], scales)
    for path in (by_table, table_free):
        actual = path(random_upscaler, features, scales)
        np.testing.assert_allclose(actual, shuffled, rtol=0, atol=RELATIVE * np.abs(shuffled).max())


def test_strips_do_not_show(random_upscaler: Upscaler, features: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = (Fraction(21, 10), Fraction(21, 10))
    paths = (by_table, table_free)
    whole = [path(random_upscaler, features, scales) for path in paths]
    monkeypatch.setattr("runtime.engine._STRIP_PATCHES", 1)
    monkeypatch.setattr("runtime.engine._STRIP_PIXELS", 1)
    for path, expected in zip(paths, whole):
        np.testing.assert_allclose(
            path(random_upscaler, features, scales), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )
