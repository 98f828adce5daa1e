from __future__ import annotations

import numpy as np
import pytest

from runtime.intensity import Intensity, to_dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_normalise_and_restore_are_inverses(dtype: type) -> None:
    values = np.linspace(3, 120, 64).reshape(8, 8).astype(dtype)
    intensity = Intensity.of(values)
    assert intensity.normalise(values).dtype == np.float32
    np.testing.assert_allclose(intensity.restore(intensity.normalise(values), dtype), values, rtol=1e-6)


def test_hot_voxels_do_not_darken_the_rest() -> None:
    values = np.tile(np.arange(100.0), (100, 1))
    values[0, 0] = 1e6
    intensity = Intensity.of(values)
    assert intensity.white < 100
    assert intensity.aside == 1
    out = np.zeros((200, 200), np.float32)
    intensity.put_back(out, values, (np.arange(200) // 2, np.arange(200) // 2))
    assert (np.argwhere(out) == [[0, 0], [0, 1], [1, 0], [1, 1]]).all()
    assert out.max() == 1e6


@pytest.mark.parametrize("value", [-200, -1000, -32768])
def test_a_dead_voxel_changes_neither_black_nor_white(value: float) -> None:
    values = np.tile(np.arange(1000.0), (100, 1))
    values[0, 0] = value
    intensity = Intensity.of(values)
    assert intensity.black == pytest.approx(0, abs=2)
    assert intensity.white == pytest.approx(999, abs=2)


def test_a_background_of_zeros_is_no_fill_value() -> None:
    values = np.zeros((50, 50))
    values[10:40, 10:40] = np.random.default_rng(0).uniform(100, 101, (30, 30))
    assert Intensity.of(values).black == 0
    assert Intensity.of(values).aside == 0


def test_a_phantom_of_few_levels_has_no_fill_value() -> None:
    values = np.zeros((50, 50))
    values[5:20], values[30:40] = 100, 1000
    assert Intensity.of(values).aside == 0
    assert (Intensity.of(values).black, Intensity.of(values).white) == (0, 1000)


def test_padding_is_set_aside() -> None:
    values = np.tile(np.arange(1000, dtype=np.int16), (100, 1))
    values[:, :300] = -32768
    intensity = Intensity.of(values)
    assert intensity.aside == 100 * 300
    assert intensity.black == pytest.approx(300, abs=3)
    assert intensity.normalise(values)[:, :300].max() == pytest.approx(0, abs=1e-3)
    assert "30,000 values" in intensity.said


def test_masked_values_are_refused() -> None:
    from runtime import ImageError
    from runtime.intensity import real_array

    image = np.ma.masked_greater(np.arange(9.0).reshape(3, 3), 7)
    with pytest.raises(ImageError, match=r"masked.*filled"):
        real_array(image)
    assert real_array(np.ma.asarray(np.eye(2))).shape == (2, 2)


def test_a_single_bright_voxel_is_white() -> None:
    phantom = np.zeros((50, 50), np.uint8)
    phantom[20, 20] = 9
    assert Intensity.of(phantom).normalise(phantom).max() == 1


def test_small_contrast_on_a_large_offset_survives() -> None:
    values = (1_000_000_000 + np.arange(64).reshape(8, 8)).astype(np.int32)
    intensity = Intensity.of(values)
    np.testing.assert_array_equal(intensity.restore(intensity.normalise(values), np.int32), values)


def test_the_whole_range_of_floats_does_not_overflow() -> None:
    values = np.array([[-3e38, 3e38], [0, 1]], np.float32)
    intensity = Intensity.of(values)
    assert np.isfinite(intensity.normalise(values)).all()
    assert np.isfinite(intensity.restore(intensity.normalise(values), np.float32)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("source", [np.float32, np.float64])
def test_conversion_to_integers_clips_and_never_wraps(source: type, dtype: type) -> None:
    limits = np.iinfo(dtype)
    converted = to_dtype(np.array([-1e30, -0.6, 0.5, 1.5, 2.4999, 1e30], source), dtype)
    assert converted.dtype == dtype
    # The largest float32 below 2⁶³ is 2⁶³ - 2³⁹; 128 is exact in all types that reach it.
    assert int(converted[-1]) >= limits.max * (1 - 2**-24)
    assert converted[0] == limits.min
    assert converted[1:5].tolist() == [-1 if limits.min else 0, 0, 2, 2]


def test_conversion_between_integers_clips() -> None:
    values = np.array([-40_000, -5, 300, 70_000], np.int32)
    assert to_dtype(values, np.uint8).tolist() == [0, 0, 255, 255]
    assert to_dtype(values, np.int16).tolist() == [-32768, -5, 300, 32767]
    assert to_dtype(np.array([2**63 + 5], np.uint64), np.int64).tolist() == [2**63 - 1]


def test_padding_that_a_header_names_is_set_aside() -> None:
    """Even where it lies among the other values, as 0 does in a scan that reaches below it."""
    image = np.random.default_rng(0).normal(0, 100, (40, 40)).astype(np.int16)
    padded = image.copy()
    padded[:, :15] = 7
    intensity = Intensity.of(padded, padding=(5, 9))
    named = (padded >= 5) & (padded <= 9)
    assert intensity.aside == named.sum()
    assert "padding" in intensity.said
    rest = padded[~named]
    assert (intensity.low, intensity.high) == (rest.min(), rest.max())
    np.testing.assert_array_equal(intensity.is_aside(padded), named)
    out = np.zeros((80, 80), np.int16)
    intensity.put_back(out, padded, [np.arange(80) // 2] * 2)
    np.testing.assert_array_equal(out[:, :30], 7)
