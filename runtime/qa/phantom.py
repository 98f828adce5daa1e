"""A digital phantom: a T1-weighted head with line pairs, low-contrast discs and lesions, and how a scanner would store it.

Everything is analytic and deterministic. Lengths are in input pixels, grey values parts of white. All edges are as soft as
partial volume makes them: a pixel from 10 to 90 %. The scan is the band that a full matrix measures, by the cosine transform.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..acquired import Float, resampling

SIZE = 256  # pixels an axis: 0.9 mm in a head
NOISE = 0.02  # of white: a scan at the end of what sites accept
_FINE = 8  # points of the analytic phantom, for each pixel along an axis
_SOFT = 1 / (2 * np.log(9))  # of the logistic edge that rises from 10 to 90 % within a pixel
_HALF = 7.0  # half of a field of line pairs

# Half axes along rows and columns, and grey values: scalp, skull, fluid, grey matter, white matter. The last two are folded.
_LAYERS = ((105, 87, 0.85), (98, 80, 0.06), (92, 74, 0.18), (88, 70, 0.5), (80, 62, 0.68))
_FOLDED, _FOLDS = 3, ((13, 0.035), (29, 0.02))  # layers from which on; waves around, and their height
_VENTRICLES = ((-5, -9, 22, 6), (-5, 9, 22, 6))  # row, column, half axes
_FLUID = 0.18


@dataclass(frozen=True)
class Insert:
    """A lesion or a disc of a diameter, or a field of line pairs with so many cycles a pixel; its place from the centre."""

    kind: str
    row: float
    col: float
    contrast: float
    diameter: float = 0.0
    cycles: float = 0.0
    upright: bool = False  # lines that run along rows

    @property
    def name(self) -> str:
        if self.cycles:
            return f"{self.cycles:g} line pairs a pixel, {'across rows' if self.upright else 'across columns'}"
        return f"{self.kind} of {self.diameter:g} pixels, {100 * self.contrast:+.0f} % of white"


INSERTS = (
    *(Insert("lesion", row, col - 40.3, 0.25, d) for row, col, d in ((-28.3, 2, 3), (-8.1, -4, 4), (12.4, -3, 6), (32.2, 3, 8))),
    *(Insert("lesion", row, col + 39.8, -0.2, d) for row, col, d in ((-28.2, -1, 3), (-8.4, 4, 4), (12.1, 3, 6), (32.3, -3, 8))),
    *(Insert("disc", row, col, contrast, d) for row, d in ((-10.2, 10), (12.3, 6)) for col, contrast in ((-26, 0.05), (26, -0.05))),
    *(
        Insert("lines", row, col, 0.15, cycles=cycles, upright=col > 0)
        for row, cycles in ((-50, 0.25), (34, 0.35), (54, 0.425))
        for col in (-14, 14)
    ),
)


def head(inserts: tuple[Insert, ...] = ()) -> Float:
    """The phantom (8·SIZE, 8·SIZE), at the centres of eighths of pixels."""
    rows, cols = _grid()
    image = np.zeros((len(rows), cols.size), np.float32)
    waves = np.zeros_like(image)
    angle = np.arctan2(rows / _LAYERS[0][0], cols / _LAYERS[0][1], dtype=np.float32)
    for count, height in _FOLDS:
        waves += np.float32(height) * np.cos(np.float32(count) * angle)
    for k, (height, width, grey) in enumerate(_LAYERS):
        inside = _inside(rows, cols, height, width, waves if k >= _FOLDED else np.float32(0))
        image += inside * (grey - image)
    for row, col, height, width in _VENTRICLES:
        image += _inside(rows - row, cols - col, height, width, np.float32(0)) * (_FLUID - image)
    for insert in inserts:
        image += shape_of(insert)
    return image


def shape_of(insert: Insert) -> Float:
    """What an insert adds to the phantom (8·SIZE, 8·SIZE)."""
    rows, cols = (axis - at for axis, at in zip(_grid(), (insert.row, insert.col)))
    if not insert.cycles:
        return np.float32(insert.contrast) * _edge(np.hypot(rows, cols) - insert.diameter / 2)
    phase = rows if insert.upright else cols
    field = _edge(np.abs(rows) - _HALF) * _edge(np.abs(cols) - _HALF)
    return np.asarray(insert.contrast * field * np.cos(2 * np.pi * insert.cycles * phase), np.float32)


def scanned(phantom: Float, scale: Fraction = Fraction(1), noise: float = 0.0, seed: int = 0) -> Float:
    """The magnitude image that a scanner stores whose matrix is `scale` times `SIZE`, with complex noise of this σ."""
    count = SIZE * scale.numerator // scale.denominator
    places = (np.arange(count) + 0.5) * (_FINE / float(scale))
    band = resampling(len(phantom), places, np.ones(count))
    real = band @ phantom @ band.T
    if not noise:
        return np.abs(real)
    parts = noise * np.random.default_rng(seed).standard_normal((2, count, count), np.float32)
    return np.hypot(real + parts[0], parts[1])


def contrast_and_area(image: Float, insert: Insert, scale: Fraction) -> tuple[float, float]:
    """An insert's contrast in the image of itself alone, and the area in pixels that lies above half of it.

    A disc's contrast is the mean of its inner half less that of a ring 2 to 4 pixels outside; line pairs have the amplitude
    of their frequency, and no area.
    """
    reach = insert.diameter / 2 + 5 if insert.diameter else _HALF - 2
    count = 2 * round(reach * _FINE)
    middle = [(SIZE / 2 + at) * float(scale) for at in (insert.col, insert.row)]
    half = count / 2 / _FINE * float(scale)
    box = middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half
    patch = np.asarray(Image.fromarray(image).resize((count, count), Image.Resampling.BICUBIC, box), np.float64)
    at = (np.arange(count) + 0.5) / _FINE - count / 2 / _FINE
    if insert.cycles:
        wave = 2 * np.exp(2j * np.pi * insert.cycles * at) * np.hanning(count + 2)[1:-1] / (count + 1) * 2
        return float(abs((patch.mean(1) if insert.upright else patch.mean(0)) @ wave)), np.nan
    far = np.hypot(at[:, None], at) - insert.diameter / 2
    around = patch[(far >= 2) & (far <= 4)].mean()
    contrast = patch[far <= -insert.diameter / 4].mean() - around
    area = np.count_nonzero((patch - around > contrast / 2) == (contrast > 0)) if contrast else 0
    return float(contrast), area / _FINE**2


def _grid() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    at = ((np.arange(SIZE * _FINE) + 0.5) / _FINE - SIZE / 2).astype(np.float32)
    return at[:, None], at[None]


def _inside(rows: Float, cols: Float, height: float, width: float, waves: Float | np.float32) -> Float:
    """1 within an ellipse, 0 outside, soft at its edge; `waves` are parts by which its radius changes."""
    part = np.hypot(rows / np.float32(height), cols / np.float32(width)) + np.float32(1e-6)
    slope = np.hypot(rows / np.float32(height**2), cols / np.float32(width**2)) / part
    return _edge((part - 1 - waves) / (slope + np.float32(1e-6)))


def _edge(distance: Float) -> Float:
    """1 far inside (negative distances in pixels), 0 far outside."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / np.float32(_SOFT), -30, 30))), np.float32)
