from __future__ import annotations

from fractions import Fraction as F
from typing import Any

import numpy as np
import pytest

from runtime import ScaleError, grid
from runtime.sizes import Size, exact_spacing, parse_spacing, written

THICK = (0.9, 0.9, 5.0)  # mm, axis 2 across the slices
SHAPE = (200, 240, 24)


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        (Size(scale="2.5"), ("5/2", "5/2", "1")),
        (Size(scale=(2, 3)), ("2", "3", "1")),
        (Size(scale=("2", "2", "5")), ("2", "2", "5")),
        (Size(shape=(300, 480)), ("3/2", "2", "1")),
        (Size(shape=(200, 240, 120)), ("1", "1", "5")),
        (Size(spacing="0.5"), ("9/5", "9/5", "1")),
        (Size(spacing=(0.5, 0.45)), ("9/5", "2", "1")),
        (Size(spacing=("0.9", "0.9", "1.0")), ("1", "1", "5")),
        (Size(isotropic=True), ("1", "1", "50/9")),
    ],
    ids=str,
)
def test_each_way_to_ask_is_an_exact_scale_for_each_axis(size: Size, scales: tuple[str, ...]) -> None:
    assert size.of(SHAPE, THICK, axis=2) == tuple(map(F, scales))


def test_one_and_two_numbers_are_of_the_axes_within_a_slice_wherever_they_lie() -> None:
    spacing = (5, 1, 2)
    assert Size(scale=2).of((9, 30, 40), spacing, axis=0) == (1, 2, 2)
    assert Size(shape=(60, 40)).of((9, 30, 40), spacing, axis=0) == (1, 2, 1)
    assert Size(spacing="0.5").of((9, 30, 40), spacing, axis=0) == (1, 2, 4)


def test_spacing_asked_for_is_met_and_the_size_is_what_fits() -> None:
    """For spacings that scanners have: new voxel = asked for, to float64, and n·old/new voxels, whole ones."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        old = exact_spacing([float(np.float32(round(rng.uniform(0.4, 6), rng.integers(1, 5)))) for _ in range(3)])
        new = tuple(F(str(round(float(v) / rng.uniform(1, 15), 3))) for v in old)
        scales = Size(spacing=tuple(map(str, (float(v) for v in new)))).of(SHAPE, old, axis=2)
        for n, r, before, after in zip(SHAPE, scales, old, new):
            if r != 1:  # spacings that are equal but for rounding stay as they are
                assert before / r == after
            assert grid.output_size(n, r) == n * before / after // 1 or r == 1


def test_a_headers_single_precision_is_read_as_the_decimal_that_it_stands_for() -> None:
    assert exact_spacing([np.float32(0.9), np.float32(0.46875), 6.5]) == (F(9, 10), F(15, 32), F(13, 2))
    assert exact_spacing([900.0 * 0.001]) == (F(9, 10),)


def test_spacings_that_differ_by_a_headers_rounding_are_equal() -> None:
    nearly = (0.9375, 0.93749994, 0.9375)
    assert Size(isotropic=True).of(SHAPE, nearly, 2) == (1, 1, 1)
    assert Size(spacing="0.9375").of(SHAPE, nearly, 2) == (1, 1, 1)


def test_a_single_slice_has_no_thickness_to_be_isotropic_in() -> None:
    assert Size(isotropic=True).of((20, 20, 1), (1, 0.5, 5), 2) == (2, 1, 1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"spacing": "1"}, "axis 0 has voxels of 0.9 mm already, finer than the 1 mm asked for"),
        ({"spacing": ("0.5", "0.5", "6")}, "ask for 5 mm on that axis, or average it down"),
        ({"spacing": ("0.9", "0.9", "0.1")}, "axis 2 would grow ×50"),
        ({"spacing": "0"}, "no length of a voxel"),
        ({"spacing": "thin"}, "spacing 'thin' is not a number"),
        ({"spacing": (1, 1, 1, 1)}, "4 entries"),
        ({"shape": (100, 100)}, r"shape \(100, 100\) cannot be made of an image of 200×240"),
        ({"shape": (512,)}, "1 entries"),
        ({"scale": ("2", "2", "0.5")}, "scale 0.5 is outside"),
        ({"scale": (1, 2, 3, 4)}, "4 entries"),
    ],
    ids=str,
)
def test_what_cannot_be_upscaled_is_refused_with_advice(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ScaleError, match=said):
        Size(**asked).of(SHAPE, THICK, axis=2)


def test_exactly_one_way_is_asked_for() -> None:
    for wrong in ({}, {"scale": 2, "isotropic": True}, {"shape": (2, 2), "spacing": 1}):
        with pytest.raises(ScaleError, match="exactly one"):
            Size(**wrong)


@pytest.mark.parametrize("zooms", [(0.0, 1.0, 1.0), (1.0, np.nan, 1.0), (1.0, 1.0, -1.0)])
def test_a_header_without_spacing_is_refused(zooms: tuple[float, ...]) -> None:
    with pytest.raises(ScaleError, match="repair the header"):
        exact_spacing(zooms)


def test_pictures_have_pixels_only() -> None:
    assert Size(shape=(40, 90)).of((20, 30), (), 2) == (2, 3, 1)
    assert Size(shape=(40, 90)).of((7, 20, 30), (), 0) == (1, 2, 3)
    for size, said in ((Size(spacing="1"), "no spacing"), (Size((1, 2, 3)), "three numbers")):
        with pytest.raises(ScaleError, match=said):
            size.of((7, 20, 30), (), 0)


def test_what_is_recorded_does_not_depend_on_how_a_number_is_written() -> None:
    assert Size(scale="2.5").asked() == Size(scale="5/2").asked() == {"scale": ["5/2"]}
    assert Size(spacing=(0.5, 0.5, 1.0)).asked() == {"spacing": ["1/2", "1/2", "1"]}
    assert Size(shape=(40, 50)).asked() == {"shape": ["40", "50"]}
    assert Size(isotropic=True).asked() == {"isotropic": True}
    assert written((F(5, 2), F(5, 2), F(1))) == "×5/2 ×5/2 ×1"
    assert written((F(2), F(2))) == "×2"
    assert parse_spacing("0.5") == F(1, 2)
