"""A digital phantom: a T1-weighted head with line pairs, low-contrast discs and lesions, scanned with them and without.

Everything is analytic and deterministic. Lengths are in input pixels, grey values parts of white. All edges are as soft as
partial volume makes them: one pixel from 10 to 90 %. A scan is the band that a full matrix measures, by the cosine transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import grid
from ..acquired import Float, resampling
from .criteria import bicubic, flat_tissue, signed, smooth

SIZE = 256  # pixels an axis: 0.9 mm in a head
NOISES = (0.0, 0.02)  # σ, parts of white
TOLERANCE = 0.05  # of contrast and area
NOTHING = 0.01  # of white, which is 5 % of the fainter lesions' contrast: what may be there beyond the noise of bicubic
_SCANS = 3  # with noise
_POINTS = 8  # of the analytic phantom, for each pixel along an axis
_SOFT = 1 / (2 * math.log(9))  # of the logistic function that rises from 10 to 90 % within 1
_FIELD, _MARGIN = 7, 5  # half of a field of line pairs; what is looked at around a disc
_SPECK = 1.0  # σ of the Gaussian after which something invented is looked for

# Half axes along rows and columns, and grey values: scalp, skull, fluid, grey matter, white matter. The last two are folded.
_LAYERS = ((105, 87, 0.85), (98, 80, 0.06), (92, 74, 0.18), (88, 70, 0.5), (80, 62, 0.68))
_FOLDED, _FOLDS = 3, ((13, 0.035), (29, 0.02))  # layers from which on; waves around, and their height
_VENTRICLES, _FLUID = ((-5, -9, 22, 6), (-5, 9, 22, 6)), 0.18  # row, column, half axes

Kind = Literal["lesions", "low-contrast discs", "line pairs"]


@dataclass(frozen=True)
class Insert:
    """A disc of a diameter, or a field of so many line pairs a pixel: its place from the centre, its contrast in white."""

    kind: Kind
    row: float
    col: float
    contrast: float
    diameter: float = 0.0
    pairs: float = 0.0
    horizontal: bool = False

    @property
    def name(self) -> str:
        if self.pairs:
            return f"{self.pairs:g} {'horizontal' if self.horizontal else 'vertical'} line pairs a pixel"
        return f"{self.kind.split()[-1][:-1]} of {self.diameter:g} pixels, {signed(self.contrast)} of white"

    @property
    def reach(self) -> float:
        return self.diameter / 2 + _MARGIN if self.diameter else _FIELD + 2


INSERTS = (
    *(
        Insert("lesions", r, c, 0.25, d)
        for d, r, c in ((3, -28.3, -38.3), (4, -8.1, -44.3), (6, 12.4, -43.3), (8, 32.2, -37.3))
    ),
    *(Insert("lesions", r, c, -0.2, d) for d, r, c in ((3, -28.2, 38.8), (4, -8.4, 43.8), (6, 12.1, 42.8), (8, 32.3, 36.8))),
    *(Insert("low-contrast discs", r, c, v, d) for d, r in ((6, 12.3), (10, -10.2)) for c, v in ((-26, 0.05), (26, -0.05))),
    *(
        Insert("line pairs", r, c, 0.15, pairs=f, horizontal=c > 0)
        for f, r in ((0.25, -50), (0.35, 34), (0.425, 54))
        for c in (-14, 14)
    ),
)


@dataclass(frozen=True)
class Kept:
    """How many times as large as the truth's an insert's contrast and area are, of ours and of bicubic's."""

    insert: Insert
    noise: float
    ours: tuple[float, ...]
    bicubic: tuple[float, ...]

    @property
    def passed(self) -> bool:
        return all(abs(part - 1) <= TOLERANCE for part in self.ours)


@dataclass(frozen=True)
class Outcome:
    """`removed`: the largest contrast where a lesion was and is no more; `invented`: the largest deviation in flat tissue; each
    of ours and of bicubic's, in parts of white, by noise. `scans` are input, ours and truth of the last scan.
    """

    kept: list[Kept]
    removed: dict[float, tuple[float, float]]
    invented: dict[float, tuple[float, float]]
    scans: tuple[Float, Float, Float]


def examine(upscale: Callable[[Float], Float], scale: Fraction) -> Outcome:
    """Scan the phantom, upscale it, and compare it with its scan with `scale` times the matrix and no noise."""
    scales, kept, removed, invented = (scale, scale), [], {}, {}
    without = head()
    phantom = add(without, INSERTS)
    truth, empty = scanned(phantom, scale), scanned(without, scale)
    true = [contrast_and_area(truth - empty, insert, scale) for insert in INSERTS]
    flat = flat_tissue(empty, scales)
    for noise in NOISES:
        alone, false = np.zeros((2, *truth.shape), np.float32), np.zeros((2, 2))
        scans = _SCANS if noise else 1
        for seed in range(scans):
            inputs = scanned(phantom, noise=noise, seed=seed), scanned(without, noise=noise, seed=seed)
            full, none = ((upscale(image), bicubic(image, scales)) for image in inputs)
            alone += (np.array(full) - none) / scans
            for k, error in enumerate(image - empty for image in none):
                lesions = (contrast_and_area(error, insert, scale)[0] for insert in INSERTS if insert.kind == "lesions")
                found = max(map(abs, lesions)), np.abs(smooth(error, _SPECK, scales)[flat]).max()
                false[k] = np.maximum(false[k], found)
        for insert, its in zip(INSERTS, true):
            both = (contrast_and_area(image, insert, scale) for image in alone)
            ours, other = (tuple(part / whole for part, whole in zip(parts, its)) for parts in both)
            kept.append(Kept(insert, noise, ours, other))
        removed[noise], invented[noise] = ((float(ours), float(other)) for ours, other in false.T)
    return Outcome(kept, removed, invented, (inputs[0], full[0], truth))


def head() -> Float:
    """The phantom without inserts, at the centres of eighths of pixels."""
    rows, cols = _axis()[:, None], _axis()[None]
    angle = np.arctan2(rows / _LAYERS[0][0], cols / _LAYERS[0][1])
    waves: Float = np.sum([height * np.cos(count * angle) for count, height in _FOLDS], axis=0, dtype=np.float32)
    image = np.zeros(angle.shape, np.float32)
    for k, (height, width, grey) in enumerate(_LAYERS):
        image += _ellipse(rows, cols, height, width, waves if k >= _FOLDED else 0.0) * (grey - image)
    for row, col, height, width in _VENTRICLES:
        image += _ellipse(rows - row, cols - col, height, width) * (_FLUID - image)
    return image


def add(phantom: Float, inserts: tuple[Insert, ...]) -> Float:
    """A phantom with inserts."""
    image, axis = phantom.copy(), _axis()
    for insert in inserts:
        window = tuple(slice(*np.searchsorted(axis, (at - insert.reach, at + insert.reach))) for at in (insert.row, insert.col))
        rows, cols = axis[window[0], None] - np.float32(insert.row), axis[window[1]] - np.float32(insert.col)
        if insert.pairs:
            shape = _within(np.abs(rows) - _FIELD) * _within(np.abs(cols) - _FIELD)
            shape *= np.cos(2 * np.pi * insert.pairs * (rows if insert.horizontal else cols))
        else:
            shape = _within(np.hypot(rows, cols) - insert.diameter / 2)
        image[window] += insert.contrast * shape
    return image


def scanned(phantom: Float, scale: Fraction = Fraction(1), noise: float = 0.0, seed: int = 0) -> Float:
    """The magnitude image that a scanner stores whose matrix is `scale` times `SIZE`, with complex noise of this σ."""
    count = grid.output_size(SIZE, scale)
    band = resampling(len(phantom), (np.arange(count) + 0.5) * (_POINTS / float(scale)), np.ones(count))
    real, imaginary = noise * np.random.default_rng(seed).standard_normal((2, count, count), np.float32)
    magnitude: Float = np.hypot(band @ phantom @ band.T + real, imaginary)
    return magnitude


def contrast_and_area(image: Float, insert: Insert, scale: Fraction) -> tuple[float, ...]:
    """An insert's contrast in the image of itself alone, and the area in input pixels that lies above half of it.

    A disc's contrast is the mean of its inner half less that of a ring 2 to 4 pixels outside; that of line pairs is the
    amplitude of their frequency in the field's middle, and they have no area.
    """
    reach = round(insert.reach if insert.diameter else _FIELD - 2)
    count = 2 * reach * _POINTS
    ends = [(SIZE / 2 + at + side) * float(scale) for side in (-reach, reach) for at in (insert.col, insert.row)]
    box = ends[0], ends[1], ends[2], ends[3]
    patch = np.asarray(Image.fromarray(image).resize((count, count), Image.Resampling.BICUBIC, box), np.float64)
    at = (np.arange(count) + 0.5) / _POINTS - reach
    if insert.pairs:
        fading = np.cos(np.pi / 2 / reach * at) ** 2
        wave = np.exp(2j * np.pi * insert.pairs * at) * fading / fading.sum()
        return (float(2 * abs(patch.mean(int(insert.horizontal)) @ wave)),)
    far = np.hypot(at[:, None], at) - insert.diameter / 2
    patch -= patch[(far >= 2) & (far <= 4)].mean()
    contrast = float(patch[far <= -insert.diameter / 4].mean())
    return contrast, int((patch * np.sign(contrast) > abs(contrast) / 2).sum()) / _POINTS**2


def _axis() -> Float:
    return ((np.arange(SIZE * _POINTS) + 0.5) / _POINTS - SIZE / 2).astype(np.float32)


def _ellipse(rows: Float, cols: Float, height: float, width: float, waves: Float | float = 0.0) -> Float:
    """1 within an ellipse, 0 outside; `waves` are the parts by which its radius changes."""
    radius = np.hypot(rows / height, cols / width) + 1e-6
    slope = np.hypot(rows / height**2, cols / width**2) / radius + 1e-6
    return _within((radius - 1 - waves) / slope)


def _within(distance: NDArray[np.float32]) -> Float:
    """1 far inside, where distances in pixels are negative, and 0 far outside."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / _SOFT, -30, 30))), np.float32)
