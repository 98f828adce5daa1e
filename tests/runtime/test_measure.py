from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import ImageError, Upscaler, measure, volume
from runtime.acquired import Acquired, Band
from runtime.intensity import Intensity
from runtime.scan import Scan
from runtime.sizes import Size

SLICE = np.random.default_rng(0).random((40, 60)).astype(np.float32)
UNIT = Intensity(0, 1, 0, 1)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Band | None]:
    """What the spectrum shows of rows and columns, for a test to set."""
    bands: list[Band | None] = [None, None]
    monkeypatch.setattr(measure, "bands_of", lambda slices: tuple(bands))
    monkeypatch.setattr(measure, "noise_of", lambda slices: 0.01)
    return bands


def test_clear_spectrum_decides(seen: list[Band | None]) -> None:
    seen[:] = [Band(0.7, 0.25), None]
    found = measure.of(SLICE, (0, 1), UNIT, header=(0.7, 0.5, None))
    assert found == Acquired((Band(0.7, 0.25), Band(0.5)), 0.01, "spectrum and header")


def test_contradicting_header_is_mentioned_once(seen: list[Band | None]) -> None:
    seen[:] = [Band(0.7), Band()]
    found = measure.of(SLICE, (0, 1), UNIT, header=(0.5, 1.0, None))
    assert found.bands == (Band(0.7), Band())
    assert found.notes == ("of 40 along axis 0 the header says 20 measured, the spectrum 28",)


def test_without_spectrum_and_header_the_whole_matrix_counts(seen: list[Band | None]) -> None:
    assert measure.of(SLICE, (0, 1), UNIT) == Acquired((Band(), Band()), 0.01, "stored")


def test_given_matrix_and_noise_override_everything(seen: list[Band | None]) -> None:
    seen[:] = [Band(0.7, 0.25), Band()]
    found = measure.of(SLICE, (0, 1), UNIT, (29, 30), 0.03, (0.5, 0.5, None))
    assert found == Acquired((Band(29 / 40, 0.25), Band(0.5)), 0.03, "given")  # the window of a spectrum that agrees


def test_stored_turns_it_off(seen: list[Band | None]) -> None:
    seen[:] = [Band(0.7), Band(0.7)]
    assert measure.of(SLICE, (0, 1), UNIT, "stored", header=(0.5, 0.5, None)).bands == (Band(), Band())


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ((41, 60), r"acquired 41 60 cannot be: axis 0 has 40 stored samples, give it 3 to 40"),
        ((40, 0), r"axis 1 has 60 stored samples, give it 4 to 60"),
        ((-20, 60), r"cannot be"),
        ((20.5, 60), r"cannot be"),
        (("many", 60), r"acquired many 60 cannot be"),
        ((float("nan"), 60), r"cannot be"),
        ((True, 60), r"cannot be"),
        ((20,), r"has 1 entries: give 2"),
        ((20, 20, 20), r"has 3 entries: give 2"),
        ("half", r"acquired 'half' is no matrix"),
    ],
)
def test_impossible_matrix_is_refused_in_one_line(matrix: Any, said: str, shipped: Upscaler) -> None:
    for call in (lambda: shipped(SLICE, 2, acquired=matrix), lambda: shipped.encode(SLICE, acquired=matrix)):
        with pytest.raises(ImageError, match=said) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("noise", [-0.1, 1.5, float("nan"), "some", True])
def test_impossible_noise_is_refused(noise: Any, shipped: Upscaler) -> None:
    with pytest.raises(ImageError, match="is no part of white"):
        shipped(SLICE, 2, noise=noise)


@pytest.mark.parametrize("grain", [-0.1, 1.5, float("nan"), "some"])
def test_impossible_grain_is_refused(grain: Any, shipped: Upscaler) -> None:
    with pytest.raises(ImageError, match=r"grain .* is no part"):
        shipped(SLICE, 2, grain=grain)


def test_estimate_of_some_slices_serves_for_all(shipped: Upscaler) -> None:
    stack = np.stack([SLICE, SLICE[::-1]])
    found = shipped.measure(stack, acquired=(30, 60), noise=0.02)
    assert found.bands == (Band(0.75), Band())
    np.testing.assert_array_equal(shipped(stack, 2, acquired=found), shipped(stack, 2, acquired=(30, 60), noise=0.02))


def measured(up: Upscaler, shape: tuple[int, ...], size: Size, **asked: Any) -> Acquired:
    """What is measured of a volume of thick slices."""
    data = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    scan = Scan(data, (1, 1, 3), np.diag([1.0, 1, 3, 1]))
    out = volume.prepared(scan, size)
    assert out.shape[:3] == tuple(n * r for n, r in zip(shape, out.scales))
    return volume.upscale(up.slices, scan, out, **asked)


@pytest.mark.parametrize(("matrix", "expected"), [((20, 30), (0.5, 0.75, 1)), ((20, 30, 6), (0.5, 0.75, 0.5))])
def test_matrix_of_a_volume_is_of_its_array_axes(shipped: Upscaler, matrix: Sequence[int], expected: tuple[float, ...]) -> None:
    """Two numbers are of the axes within a slice. The slice axis is cropped where slices are made of it."""
    found = measured(shipped, (40, 40, 12), Size((1, 1, 2)), acquired=matrix)
    assert tuple(band.fraction for band in found.bands) == expected


def test_slice_axis_is_looked_at_where_it_is_upscaled(shipped: Upscaler, seen: list[Band | None]) -> None:
    seen[:] = [None, Band(0.75)]
    found = measured(shipped, (20, 30, 12), Size((1, 1, 2)))
    assert [band.fraction for band in found.bands] == [1, 0.75, 0.75]
    found = measured(shipped, (20, 30, 12), Size(2))
    assert [band.fraction for band in found.bands] == [1, 0.75, 1]


def test_four_dimensional_volume_is_measured_once(shipped: Upscaler, seen: list[Band | None]) -> None:
    seen[:] = [Band(0.75), None]
    found = measured(shipped, (20, 30, 4, 2), Size(2))
    assert [band.fraction for band in found.bands[:3]] == [0.75, 1, 1]


def test_a_small_smooth_phantom_is_taken_as_it_is() -> None:
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    body = np.asarray((0.7 + 0.3 * np.cos(4 * x)) / (1 + np.exp(12 * (x**2 + y**2 - 0.7))), np.float32)
    assert measure.estimate([body]) == Acquired((Band(), Band()), 0.0, "spectrum")
