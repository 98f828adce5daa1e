"""The mean over the eight flips and turns equals eight runs where sizes are whole, and loops over pixels where not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from runtime import ClosedError, Upscaler, grid
from runtime.acquired import NOTHING, Told
from runtime.bundle import Bundle
from runtime.engines.portable import PortableEngine
from runtime.grid import Span
from runtime.intensity import Intensity
from tests import reference

# Sums of up to 257 products of sums of 27 in float32: each rounding is 6e-8 of a term.
RELATIVE = 1e-5
Turn = tuple[int, int, int]  # whether rows and columns are in reverse, and are exchanged then
TURNS: tuple[Turn, ...] = tuple(product((0, 1), (0, 1), (0, 1)))
STORED: dict[str, Any] = {"acquired": "stored", "noise": 0}


@pytest.fixture(scope="module")
def ensemble(random_upscaler: Upscaler) -> Iterator[Upscaler]:
    with Upscaler.load(random_upscaler.bundle, device="cpu", ensemble=True) as up:
        yield up


def turned(image: np.ndarray, turn: Turn) -> np.ndarray:
    for axis in (0, 1):
        image = np.flip(image, axis) if turn[axis] else image
    return image.T if turn[2] else image


def turned_back(image: np.ndarray, turn: Turn) -> np.ndarray:
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
def test_at_whole_sizes_it_turns_with_its_input(ensemble: Upscaler, head: np.ndarray, turn: Turn) -> None:
    scales = Fraction(3, 2), Fraction(2)  # of 3/2, some outputs lie on the border of two pixels
    scales_there = scales[::-1] if turn[2] else scales
    same(ensemble(turned(head, turn), scales_there, **STORED), turned(ensemble(head, scales, **STORED), turn))


@pytest.mark.parametrize(
    "scale", [("3/2", "3/2"), ("2.1", "1.1"), ("32/15", "3.9"), ("1.5707963267948966", "2.718281828459045")], ids=str
)
def test_at_other_sizes_it_is_the_mean_of_loops_over_pixels(ensemble: Upscaler, scale: tuple[str, str]) -> None:
    image, scales = np.random.default_rng(1).random((7, 11), np.float32), (Fraction(scale[0]), Fraction(scale[1]))
    same(rendered(ensemble, image, scales), np.mean([loop(ensemble.bundle, image, scales, turn) for turn in TURNS], 0))


def as_it_is(bundle: Bundle) -> Intensity:
    """Grey values that are the network's own units, of no range."""
    mean, std = bundle.model.mean, bundle.model.std
    return Intensity(-np.inf, np.inf, black=-mean / std, white=(1 - mean) / std)


def rendered(up: Upscaler, image: np.ndarray, scales: tuple[Fraction, Fraction], told: Told = NOTHING) -> np.ndarray:
    """The pixels of an image in the network's own units."""
    engine, levels = up.slices.engine, as_it_is(up.bundle)
    axes = [grid.project(n, r, up.bundle.model.projection) for n, r in zip(image.shape, scales)]
    rows, cols = (Span(axis, 0, axis.n_out, 0, axis.n_in) for axis in axes)
    out = np.empty((len(rows), len(cols)), np.float32)
    engine.render(engine.encode(image, levels, told), rows, cols, scales, levels, out)
    return out


def loop(bundle: Bundle, image: np.ndarray, scales: tuple[Fraction, Fraction], turn: Turn) -> np.ndarray:
    """The pixels that one flip or turn gives, each from the place where the turned image has it."""
    model, predictor = bundle.model, bundle.predictor()
    value = PortableEngine(bundle).encode(turned(image, turn), as_it_is(bundle)).value.numpy()
    responses = value.reshape(*turned(image, turn).shape, -1)
    sizes = [n * r for n, r in zip(image.shape, scales)]  # in output pixels, no whole numbers
    larger = scales[::-1] if turn[2] else scales
    inverse = [float(1 / r) for r in larger] if predictor.w1.shape[1] == 4 else [1 / math.sqrt(scales[0] * scales[1])]
    out = np.zeros([math.floor(size) for size in sizes])
    for place in np.ndindex(out.shape):
        there = [size - 1 - k if mirrored else k for k, size, mirrored in zip(place, sizes, turn)]
        there = there[::-1] if turn[2] else there
        (y, dy), (x, dx) = (reference.project(k, r, model.projection) for k, r in zip(there, larger))
        hidden = np.maximum(predictor.w1 @ [float(dy), float(dx), *inverse] + predictor.b1, 0)
        out[place] = (predictor.w2 @ hidden + predictor.b2) @ responses[y, x, : model.basis]
    return out + reference.linear(image, scales) if model.skip else out


@pytest.mark.parametrize("scale", ["3/2", "2", "1.7320508"])
def test_tiles_and_windows_do_not_show(random_upscaler: Upscaler, ensemble: Upscaler, scale: str) -> None:
    image = np.random.default_rng(0).random((83, 101), np.float32)
    whole = ensemble(image, scale)
    same(Upscaler.load(random_upscaler.bundle, device="cpu", tile=37, ensemble=True)(image, scale), whole)
    same(ensemble.encode(image).render(scale, window=(20, 31, 40, 50)), whole[20:60, 31:81])


def test_a_turned_image_is_told_of_its_own_rows_and_columns(told: Bundle, head: np.ndarray) -> None:
    scales = Fraction(2), Fraction(3, 2)
    head = head[:, :52] / 1000
    with Upscaler.load(told, device="cpu", ensemble=True) as up:
        expected = rendered(up, head, scales, (0.03, 0.4, 0.1))
        same(rendered(up, head.T, scales[::-1], (0.03, 0.1, 0.4)).T, expected)
        assert np.abs(rendered(up, head.T, scales[::-1], (0.03, 0.4, 0.1)).T - expected).max() > 0.01 * np.ptp(expected)


def test_its_radius_is_how_far_an_impulse_reaches(random_upscaler: Upscaler, ensemble: Upscaler) -> None:
    """Tiles with less of a halo would show: an output between two pixels reads both."""
    radius, scales = random_upscaler.bundle.model.radius, (Fraction(3, 2), Fraction(3, 2))
    blank = np.zeros((4 * radius + 12, 8), np.float32)
    source = grid.project(len(blank), scales[0], ensemble.bundle.model.projection).source
    expected, reach = rendered(ensemble, blank, scales), 0
    for pixel in (2 * radius + 6, 2 * radius + 7):  # only every other pixel has such outputs
        image = blank.copy()
        image[pixel] = 1e4
        reached = source[(rendered(ensemble, image, scales) != expected).any(1)]
        reach = max(reach, *np.abs(reached - pixel))
    assert reach == ensemble.bundle.model.radius == radius + 1


def test_it_says_what_it_is_and_closes_its_engine(random_upscaler: Upscaler, head: np.ndarray) -> None:
    with Upscaler.load(random_upscaler.bundle, device="cpu", ensemble=True) as up:
        engine = up.slices.engine
        assert (up.ensemble, random_upscaler.ensemble) == (True, False)
        assert (up.device, up.runs_on) == ("cpu", f"{random_upscaler.runs_on}, mean of 8")
    with pytest.raises(ClosedError):
        engine.encode(head, as_it_is(up.bundle))
