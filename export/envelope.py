"""What a network learned from, for its bundle: ranges over a folder of training images, as training shows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.envelope import statistics
from runtime.errors import InputFileError
from runtime.intensity import Intensity
from runtime.measure import noise_of
from train import augment, data, subjects
from train.resample import Image, halved

# Acquired over stored: training stores up to 1.8 times the acquired matrix (`train.scanner`), docs/scanner.md tests twice it.
ACQUIRED = (0.5, 1.0)
_FILES, _SLICES = 1000, 3  # of a folder, and of a volume, at even distances
_CROP = (0.3, 0.9)  # of an axis
_ODD = 0.005  # of the images, at either end of a range, are left out of it
_LEAST = 64  # pixels an axis of a view


def of(folder: Path, pixel_mm: tuple[float, float], images: str) -> dict[str, Any]:
    """The manifest's entry. `pixel_mm` (from, to) and `images` are what a person says. Raises InputFileError."""
    rng, found = np.random.default_rng(0), defaultdict(list)
    for file in data.bar(data.evenly(subjects.find_files(folder), _FILES), desc="envelope", leave=False):
        for stack in data.read(file):
            for image in data.evenly([*stack.slices.values()], _SLICES):
                for view in _views(image, rng):
                    unit = Intensity.of(view).normalise(view)
                    for name, value in statistics([unit], noise_of([unit])).items():
                        found[name].append(value)
    if not found:
        raise InputFileError(f"{folder} holds no image with enough tissue to tell: give those that the network learned from")
    ends = {name: np.quantile(values, (_ODD, 1 - _ODD)) for name, values in sorted(found.items())}
    return {
        "images": images,
        "pixel_mm": list(pixel_mm),
        "acquired": list(ACQUIRED),
        "noise": [0.0, augment.NOISE[1]],
        "grey": {name: [round(float(end), 3) for end in pair] for name, pair in ends.items()},
    }


def _views(image: Image, rng: np.random.Generator) -> Iterator[Image]:
    """The slice, twice as large pixels of it, a crop, and noise: as far as they are large enough."""
    sizes = [round(n * rng.uniform(*_CROP)) for n in image.shape]
    top, left = (rng.integers(n - size + 1) for n, size in zip(image.shape, sizes))
    crop = image[top : top + sizes[0], left : left + sizes[1]]
    sigma = augment.NOISE[1] * rng.random()
    noisy = np.hypot(image + sigma * rng.standard_normal(image.shape), sigma * rng.standard_normal(image.shape))
    yield from (view.astype(np.float32) for view in (image, halved(image), crop, noisy) if min(view.shape) >= _LEAST)
