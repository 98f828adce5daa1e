from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from runtime import ScaleError, grid
from runtime.sizes import Size
from tests import reference

SCALES = (*grid.PAPER_SCALES, Fraction(5, 4), Fraction(32, 15), Fraction(75, 56), Fraction("1.5707963267948966"))


@pytest.mark.parametrize("projection", ["corner", "centred"])
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_projection_equals_exact_rational_arithmetic_for_all_sizes(scale: Fraction, projection: grid.Projection) -> None:
    exact = [reference.project(i, scale, projection) for i in range(math.floor(300 * scale))]
    source, offset = np.array([s for s, _ in exact]), [o for _, o in exact]
    for size in range(1, 301):
        axis = grid.project(size, scale, projection)
        assert axis.n_out == math.floor(size * scale) == grid.output_size(size, scale)
        np.testing.assert_array_equal(axis.source, source[: axis.n_out])
        assert axis.source.max(initial=0) < size
    # Correctly rounded while the phases are below 2⁵³, so the period short; else to the last bit or two.
    np.testing.assert_allclose(axis.offset, [float(o) for o in offset], rtol=0, atol=0 if scale.numerator < 1000 else 3e-16)
    if scale.numerator < 1000:
        # A phase is the rank of its offset among the p that occur.
        phases = {o: k for k, o in enumerate(sorted(set(offset)))}
        assert len(phases) == scale.numerator
        assert axis.phase.tolist() == [phases[o] for o in offset]
        assert grid.phase_offsets(scale, projection).tolist() == [float(o) for o in phases]


@pytest.mark.parametrize("scale", grid.PAPER_SCALES, ids=str)
def test_centred_projection_is_symmetric_under_flips(scale: Fraction) -> None:
    size = 10 * scale.denominator  # whole periods: the output covers the input exactly
    axis = grid.project(size, scale, "centred")
    np.testing.assert_allclose(axis.source + axis.offset, (size - 1) - (axis.source + axis.offset)[::-1], atol=1e-12)


@pytest.mark.parametrize("projection", ["corner", "centred"])
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_a_mirrored_axis_has_the_same_outputs_in_reverse(scale: Fraction, projection: grid.Projection) -> None:
    for size in (1, 2, 7, 30, 31):
        axis = grid.project(size, scale, projection, mirrored=True)
        places = [size * scale - 1 - i for i in reversed(range(math.floor(size * scale)))]  # from the mirrored image's edge
        exact = [reference.project(place, scale, projection) for place in places]
        assert (axis.source + size).tolist() == [source for source, _ in exact]
        np.testing.assert_allclose(axis.offset, [float(offset) for _, offset in exact], rtol=0, atol=3e-16)


def test_projections_agree_on_sources_at_integer_scales() -> None:
    for r in (2, 3, 4):
        corner, centred = (grid.project(17, Fraction(r), p) for p in ("corner", "centred"))
        np.testing.assert_array_equal(corner.source, centred.source)


@pytest.mark.parametrize("projection", ["corner", "centred"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_slots_hold_every_output_of_every_input_pixel(projection: grid.Projection, mirrored: bool) -> None:
    for scale in SCALES[:-1]:
        axis = grid.project(2 * scale.denominator + 1, scale, projection, mirrored)
        phases = axis.slot_phases()
        assert axis.rank.max() < axis.slots
        np.testing.assert_array_equal(phases[axis.source % scale.denominator, axis.rank], axis.phase)


def test_45_pixels_at_1_4_are_63() -> None:
    assert grid.output_size(45, grid.parse_scale(1.4)) == 63
    assert int(45 * 1.4) == 62  # the trap


@pytest.mark.parametrize(
    "value",
    [2.1, "2.1", " 21/10 ", Fraction(21, 10), Decimal("2.1"), np.float64(2.1), np.float32(2.1)],
)
def test_scale_is_read_from_its_decimal_text(value: grid.ScaleLike) -> None:
    assert grid.parse_scale(value) == Fraction(21, 10)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_scale_may_be_a_numpy_integer(kind: type) -> None:
    scale = grid.parse_scale(kind(3))
    assert scale == 3
    assert type(scale.numerator) is int  # a small numpy integer would overflow in the products of the grid


ABSURD = {
    "numbers": [0, -2, 0.5, 16.01, 1e9, math.inf, math.nan, 10**5000],
    "texts": ["0.99", "two", "", "1/0", "1..2", "1." + "1" * 40, "9" * 5000, "1e99999999", "inf", "1e400"],
    "others": [None, True, 2j, [2]],
}


@pytest.mark.parametrize("kind", ABSURD)
def test_scale_that_cannot_be_served_is_refused_with_what_was_received(kind: str) -> None:
    for value in ABSURD[kind]:
        with pytest.raises(ScaleError, match=r"scale .* (give a number from 1 to 16|round it)") as error:
            grid.parse_scale(value)
        said = str(error.value)
        assert len(said) < 200
        assert value == 10**5000 or str(value)[:8] in said


def test_scale_pair_must_be_a_pair() -> None:
    assert grid.parse_scales(("2", 3)) == (2, 3)
    with pytest.raises(ScaleError, match="3 entries"):
        grid.parse_scales((1, 2, 3))


@pytest.mark.parametrize("shape", [(10, 4), (100, 10_000), (12.5, 20), ("a", 3), (20,), 7])
def test_shape_that_cannot_be_made_is_refused(shape: object) -> None:
    with pytest.raises(ScaleError, match="shape"):
        Size(shape=shape).of((10, 10), (), 2)


def test_shape_is_met_exactly() -> None:
    for size in range(2, 300, 7):
        for wanted in (size, size + 1, 2 * size - 1, 4 * size):
            rows, _, _ = Size(shape=(wanted, wanted)).of((size, size), (), 2)
            assert grid.output_size(size, rows) == grid.project(size, rows, "centred").n_out == wanted


def test_affine_keeps_the_outer_corner_and_shrinks_voxels() -> None:
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3] = rng.standard_normal((3, 4))
    scales = (Fraction(5, 2), Fraction(1), Fraction(39, 10))
    new = grid.upscaled_affine(affine, scales)
    # A point at old index v (pixel centres at whole numbers) has new index (v + 1/2)·r - 1/2.
    for old in rng.uniform(-0.5, 20, (20, 3)):
        index = (old + 0.5) * [float(r) for r in scales] - 0.5
        np.testing.assert_allclose(new @ [*index, 1], affine @ [*old, 1], atol=1e-12)
