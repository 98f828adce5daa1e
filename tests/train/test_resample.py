from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest

from runtime.acquired import Acquired, Band
from tests import reference
from train import resample


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", ["1.1", "2", "2.5", "3.9", "4"])
def test_downsampling_equals_its_definition(scale: str, method: resample.Method) -> None:
    image = np.random.default_rng(0).random((90, 80), np.float32)
    r = Fraction(scale)
    whole = resample.downsample(image, (r, r), method)
    assert whole.shape == (math.floor(90 / r), math.floor(80 / r))
    np.testing.assert_allclose(whole, reference.downsample(image, r, method, (0, 0), whole.shape), atol=1e-5)
    part = resample.downsample(image, (r, r), method, (20, 7), (12, 15))
    np.testing.assert_allclose(part, reference.downsample(image, r, method, (20, 7), (12, 15)), atol=1e-5)


@pytest.mark.parametrize("scale", ["1.1", "2", "2.1", "4"])
def test_upsampling_is_exact_and_half_pixel_centred(scale: str) -> None:
    r = Fraction(scale)
    y, x = np.mgrid[:30, :20]
    hr = resample.upsample((0.01 * y + 0.02 * x).astype(np.float32), (r, r))  # a plane stays a plane
    assert hr.shape == (math.floor(30 * r), math.floor(20 * r))
    row, col = ((np.arange(n) + 0.5) / float(r) - 0.5 for n in hr.shape)
    inner = slice(12, -12)  # bicubic reads two pixels, 4·2 outputs, beyond each
    np.testing.assert_allclose(hr[inner, inner], (0.01 * row[:, None] + 0.02 * col)[inner, inner], atol=1e-5)


def test_downsampling_averages_away_what_it_cannot_hold() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))
    lr = resample.downsample(stripes, (Fraction(2), Fraction(2)), "bilinear")
    np.testing.assert_allclose(lr[4:-4, 4:-4], 0.5, atol=1e-6)  # a plain subsampling would give 0 or 1


@pytest.mark.parametrize("taper", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("scale", ["1.1", "2", "2.1", "4"])
def test_kspace_equals_its_definition(scale: str, taper: float) -> None:
    r, image = Fraction(scale), np.random.default_rng(0).random((21, 26), np.float32)
    actual = resample.downsample(image, (r, r), "kspace", taper=taper)
    rows = np.stack([reference.kspace(column, r, taper) for column in image.T], 1)
    np.testing.assert_allclose(actual, np.stack([reference.kspace(row, r, taper) for row in rows]), atol=1e-5)


@pytest.mark.parametrize("taper", [0.0, 0.5])
def test_canonical_is_what_the_runtime_makes_of_kspace(taper: float) -> None:
    image, scales = np.random.default_rng(0).random((96, 80), np.float32), (Fraction(2), Fraction(2))
    stored = resample.downsample(image, scales, "kspace", taper=taper)
    expected, _ = Acquired((Band(taper=taper),) * 2).canonical(stored)
    np.testing.assert_allclose(resample.downsample(image, scales, "canonical", taper=taper), expected, atol=1e-5)


def test_kspace_keeps_what_it_resolves_and_drops_the_rest() -> None:
    """A cosine below the band comes back as it is, sampled; one above it is gone, where averaging would alias it."""
    n, r = 96, Fraction(3)
    coarse = (np.arange(32) + 0.5) * 3
    for periods, kept in ((8, 1), (20, 0)):  # the coarse grid resolves 16
        line = np.cos(2 * np.pi * periods * (np.arange(n) + 0.5) / n)
        lr = resample.downsample(np.tile(line, (n, 1)).astype(np.float32), (r, r), "kspace")
        np.testing.assert_allclose(lr[5], kept * np.cos(2 * np.pi * periods * coarse / n), atol=1e-5)


@pytest.mark.parametrize("method", get_args(resample.Method))
def test_every_method_keeps_a_constant_and_an_axis_at_scale_one(method: resample.Method) -> None:
    constant = np.full((30, 41), 0.7, np.float32)
    np.testing.assert_allclose(resample.downsample(constant, (Fraction(5, 2), Fraction(7, 3)), method), 0.7, atol=1e-6)
    image = np.random.default_rng(1).random((30, 41), np.float32)
    columns = resample.downsample(image, (Fraction(1), Fraction(2)), method, (4, 0), (20, 20))
    alone = np.stack([resample.downsample(row[None], (Fraction(1), Fraction(2)), method, (0, 0), (1, 20))[0] for row in image])
    np.testing.assert_allclose(columns, alone[4:24], atol=1e-6)
