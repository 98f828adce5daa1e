"""The Meta-Upscale stage: tables, table-free, and a per-pixel loop must be the same function."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch

from runtime import Upscaler, grid
from runtime.acquired import NOTHING
from runtime.engines.engine import Features
from runtime.intensity import Intensity
from tests import reference

SHAPE = (7, 11)  # odd, not square, no multiple of any q
# Sums of up to 257 products of sums of 27 in float32: each rounding is 6e-8 of a term.
RELATIVE = 1e-5


class Encoded(NamedTuple):
    """What a trunk would give: its features, its basis, the image behind a skip, and the responses that they make."""

    features: np.ndarray
    basis: np.ndarray
    image: np.ndarray | None
    responses: np.ndarray


@pytest.fixture
def encoded(random_upscaler: Upscaler) -> Encoded:
    model = random_upscaler.bundle.model
    rng = np.random.default_rng(1)
    features = rng.standard_normal((*SHAPE, 3))
    basis = rng.standard_normal((model.basis, 27)) / 27**0.5
    image = rng.random(SHAPE, np.float32) if model.skip else None
    wide = np.pad(features, ((1, 1), (1, 1), (0, 0)))
    responses = np.zeros((*SHAPE, model.basis + 9 * model.skip), np.float32)
    for y, x in np.ndindex(SHAPE):
        responses[y, x, : model.basis] = basis @ wide[y : y + 3, x : x + 3].ravel()
        if image is not None:
            responses[y, x, model.basis :] = np.pad(image, 1, mode="edge")[y : y + 3, x : x + 3].ravel()
    return Encoded(features, basis, image, responses)


def _spans(up: Upscaler, scales: tuple[Fraction, Fraction]) -> tuple[grid.Span, grid.Span]:
    axes = [grid.project(n, r, up.bundle.model.projection) for n, r in zip(SHAPE, scales)]
    rows, cols = (grid.Span(a, 0, a.n_out, 0, a.n_in) for a in axes)
    return rows, cols


def rendered(up: Upscaler, encoded: Encoded, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    """The engine's pixels, in the network's own units."""
    model, engine = up.bundle.model, up.slices.engine
    rows, cols = _spans(up, scales)
    out = np.empty((len(rows), len(cols)), np.float32)
    value = encoded.responses.reshape(-1, encoded.responses.shape[-1])
    features = Features(onnxruntime.OrtValue.ortvalue_from_numpy(value), out, NOTHING, half=False)
    standard = Intensity(-np.inf, np.inf, black=-model.mean / model.std, white=(1 - model.mean) / model.std)
    engine.render(features, rows, cols, scales, standard, out)
    return out


def by_table(up: Upscaler, encoded: Encoded, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    assert grid.has_table(scales)
    return rendered(up, encoded, scales)


def table_free(up: Upscaler, encoded: Encoded, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "has_table", lambda scales: False)
        return rendered(up, encoded, scales)


def loop(up: Upscaler, encoded: Encoded, scales: tuple[Fraction, Fraction]) -> np.ndarray:
    return reference.meta_upscale(encoded.features, encoded.basis, up.bundle.predictor(), scales, encoded.image)


@pytest.mark.parametrize("scale", grid.PAPER_SCALES, ids=str)
def test_table_equals_table_free_equals_per_pixel_loop(random_upscaler: Upscaler, encoded: Encoded, scale: Fraction) -> None:
    expected = loop(random_upscaler, encoded, (scale, scale))
    for path in (by_table, table_free):
        actual = path(random_upscaler, encoded, (scale, scale))
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("scales", [("2", "3"), ("1.1", "3.9"), ("32/15", "1"), ("15/11", "16")], ids=str)
def test_axes_may_have_scales_of_their_own(random_upscaler: Upscaler, encoded: Encoded, scales: tuple[str, str]) -> None:
    both = (Fraction(scales[0]), Fraction(scales[1]))
    expected = loop(random_upscaler, encoded, both)
    for path in (by_table, table_free):
        actual = path(random_upscaler, encoded, both)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_irrational_scale_needs_no_table(random_upscaler: Upscaler, encoded: Encoded) -> None:
    scales = (Fraction("1.5707963267948966"), Fraction("2.718281828459045"))
    assert not grid.has_table(scales)
    expected = loop(random_upscaler, encoded, scales)
    actual = table_free(random_upscaler, encoded, scales)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("r", [2, 3, 4])
def test_integer_scale_equals_convolution_and_pixel_shuffle(random_upscaler: Upscaler, encoded: Encoded, r: int) -> None:
    scales = (Fraction(r), Fraction(r))
    table = random_upscaler.bundle.predictor().table(scales)  # (r, r, B)
    filters = table.reshape(r * r, -1) @ encoded.basis  # (r², 9C)
    weight = torch.tensor(filters.reshape(r * r, 3, 3, -1).transpose(0, 3, 1, 2))
    x = torch.tensor(encoded.features.transpose(2, 0, 1))[None]
    shuffled = torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(x, weight, padding=1), r)[0, 0].numpy()
    if encoded.image is not None:
        shuffled = shuffled + reference.linear(encoded.image, scales)
    for path in (by_table, table_free):
        actual = path(random_upscaler, encoded, scales)
        np.testing.assert_allclose(actual, shuffled, rtol=0, atol=RELATIVE * np.abs(shuffled).max())


def test_strips_do_not_show(random_upscaler: Upscaler, encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = (Fraction(21, 10), Fraction(21, 10))
    paths = (by_table, table_free)
    whole = [path(random_upscaler, encoded, scales) for path in paths]
    monkeypatch.setattr("runtime.engines.stage._STRIP_SLOTS", 1)
    monkeypatch.setattr("runtime.engines.stage._STRIP_PIXELS", 1)
    for path, expected in zip(paths, whole):
        np.testing.assert_allclose(path(random_upscaler, encoded, scales), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
