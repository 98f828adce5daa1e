"""The mean over the eight flips and turns: of eight runs where sizes are whole, and of a loop over pixels where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from runtime import ClosedError, Upscaler
from runtime.bundle import Bundle
from runtime.engines.ort import OrtEngine
from runtime.intensity import Intensity
from tests import reference

# Sums of up to 257 products of sums of 27 in float32: each rounding is 6e-8 of a term.
RELATIVE = 1e-5
TURNS = tuple(product((0, 1), (0, 1), (0, 1)))
STORED: dict[str, Any] = {"acquired": "stored", "noise": 0}


@pytest.fixture(scope="module")
def ensemble(random_upscaler: Upscaler) -> Iterator[Upscaler]:
    with Upscaler.of(random_upscaler.bundle, device="cpu", ensemble=True) as up:
        yield up


def turned(image: np.ndarray, turn: tuple[int, ...]) -> np.ndarray:
    for axis in (0, 1):
        image = np.flip(image, axis) if turn[axis] else image
    return image.T if turn[2] else image


def turned_back(image: np.ndarray, turn: tuple[int, ...]) -> np.ndarray:
    return turned(image.T if turn[2] else image, (*turn[:2], 0))


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.ptp(expected))


@pytest.mark.parametrize("shape", [(80, 106), (60, 106), (44, 212), (97, 101)], ids=str)  # the last one has no table
def test_at_whole_sizes_it_is_the_mean_of_eight_runs(
    random_upscaler: Upscaler, ensemble: Upscaler, head: np.ndarray, shape: tuple[int, int]
) -> None:
    runs = []
    for turn in TURNS:
        one = random_upscaler(turned(head, turn), shape=shape[::-1] if turn[2] else shape, **STORED)
        runs.append(turned_back(one, turn))
    same(ensemble(head, shape=shape, **STORED), np.mean(runs, 0))
    assert np.std(runs, 0).max() > 100 * RELATIVE * np.ptp(runs)  # eight different ones


@pytest.mark.parametrize("turn", TURNS[1:])
def test_at_whole_sizes_it_turns_with_its_input(ensemble: Upscaler, head: np.ndarray, turn: tuple[int, ...]) -> None:
    scales = Fraction(3, 2), Fraction(2)  # of 3/2, some outputs lie on the border of two pixels
    scales_there = scales[::-1] if turn[2] else scales
    same(ensemble(turned(head, turn), scales_there, **STORED), turned(ensemble(head, scales, **STORED), turn))


@pytest.mark.parametrize(
    "scale", [("3/2", "3/2"), ("2.1", "1.1"), ("32/15", "3.9"), ("1.5707963267948966", "2.718281828459045")], ids=str
)
def test_at_other_sizes_it_is_the_mean_of_loops_over_pixels(ensemble: Upscaler, scale: tuple[str, str]) -> None:
    model, predictor, scales = ensemble.bundle.model, ensemble.bundle.predictor(), (Fraction(scale[0]), Fraction(scale[1]))
    image = np.random.default_rng(1).random((7, 11), np.float32)
    standard = Intensity(-np.inf, np.inf, black=-model.mean / model.std, white=(1 - model.mean) / model.std)
    engine = OrtEngine(ensemble.bundle)
    outputs = []
    for turn in TURNS:
        value = engine.encode(turned(image, turn), standard).value.numpy()
        responses = turned_back(np.moveaxis(value.reshape(*turned(image, turn).shape, -1), -1, 0).transpose(1, 2, 0), (0, 0, 0))
        out = np.zeros([int(n * r) for n, r in zip(image.shape, scales)])
        for i, j in np.ndindex(out.shape):
            sizes = [n * r for n, r in zip(image.shape, scales)]
            places = [n - 1 - k if mirrored else k for k, n, mirrored in zip((i, j), sizes, turn)]
            there = [(place, r) for place, r in zip(places, scales)][:: -1 if turn[2] else 1]
            (y, dy), (x, dx) = (reference.project(place, r, model.projection) for place, r in there)  # type: ignore[arg-type]
            inverse = [float(1 / r) for _, r in there]
            inverse = inverse if predictor.w1.shape[1] == 4 else [float(np.sqrt(np.prod(inverse)))]
            hidden = np.maximum(predictor.w1 @ [float(dy), float(dx), *inverse] + predictor.b1, 0)
            out[i, j] = (predictor.w2 @ hidden + predictor.b2) @ responses[y, x, : model.basis]
        outputs.append(out)
    expected = np.mean(outputs, 0) + (reference.linear(image, scales) if model.skip else 0)
    encoded = ensemble.slices.engine.encode(image, standard)
    y, x = ensemble.slices._project(image.shape, scales)
    from runtime.tiles import Span

    actual = np.empty(expected.shape, np.float32)
    spans = Span(y, 0, y.n_out, 0, y.n_in), Span(x, 0, x.n_out, 0, x.n_in)
    ensemble.slices.engine.render(encoded, *spans, scales, standard, actual)
    same(actual, expected)
