"""The head that tells the uncertainty of a finished bundle. It learns from inputs of all kinds that went through the runtime.

It is a quantile regression: Koenker, Bassett, *Regression Quantiles*, Econometrica 1978. Other subjects then scale it, so that
the truth lies outside as often as it may: Angelopoulos et al., *Conformal Risk Control*, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime import Upscaler, grid
from runtime.acquired import Acquired
from runtime.measure import estimate
from runtime.slices import TILE, Extent, output_shape
from runtime.uncertainty import COVERAGE, INPUTS, OUTPUTS, plain
from train import data, degradations, models, resample, subjects
from train.augment import NOISE, Augment
from train.degradations import Degradation

VOLUMES, CALIBRATING = 400, 100  # to learn from, and to calibrate on
CROPS, SLICES = 1_000, 4  # of either side, evenly from all; of a volume, whose crops are degraded alike and estimated together
EPOCHS, RATE, HIDDEN = 12, 3e-3, 32
SMALLEST, WINDOW = 64, 56  # pixels of a crop, at least; canonical pixels that are looked at, at most
LEAST = 1e-5  # of white: a smaller error is none
PIXELS = 10_000  # of a volume that calibrate
OTHERS = Augment(zoom=0.5, smooth=0.1, curve=0.5)  # the held-out truth is another scanner's

Rng = np.random.Generator


class Example(NamedTuple):
    """Part of a slice: responses (H, W, B' + what is told), scales, |output - truth| (h, w), and what interpolates to it."""

    inputs: Tensor
    scales: grid.Scales
    error: Tensor
    up: tuple[Tensor, Tensor]


def fit(upscaler: Upscaler, folder: Path) -> dict[str, NDArray[np.float32]]:
    """The head's arrays by their names in a bundle, from images in a folder: a tenth of their subjects calibrates.

    Raises InputFileError for a folder without two subjects.
    """
    split = subjects.split_by_subject(folder, subjects.find_files(folder))
    training, others = (data.load_crops(data.evenly([*side], CROPS), SMALLEST) for side in (split.train, split.validation))
    torch.manual_seed(0)
    model = upscaler.bundle.model
    layers = nn.Linear(model.basis + 9 * model.skip + INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
    nn.init.zeros_(layers[2].weight)
    head = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimiser = torch.optim.Adam(head.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * VOLUMES)
    volumes = [*_volumes(upscaler, training, VOLUMES)]
    for k in data.bar(range(EPOCHS * VOLUMES), desc="learning the uncertainty", unit="volume"):
        optimiser.zero_grad()
        for example in volumes[k % VOLUMES]:
            outside = _outside(head, example)
            loss = torch.maximum(COVERAGE * outside, (COVERAGE - 1) * outside).mean()
            loss.backward()
        optimiser.step()
        schedule.step()
    _calibrate(head, layers[2].bias, [*_volumes(upscaler, others, CALIBRATING)])
    arrays = {f"{name}{k}": part for k, layer in enumerate(layers, 1) for name, part in zip("wb", layer.parameters())}
    return {name: part.detach().numpy() for name, part in arrays.items()}


@torch.no_grad()
def _calibrate(head: nn.Module, bias: Tensor, volumes: Sequence[Sequence[Example]]) -> None:
    """Move the last biases so that the truth of volumes lies outside as often as it may, at small and large scales."""
    rng = np.random.default_rng(0)
    each = [np.concatenate([_outside(head, example).ravel() for example in volume]) for volume in volumes]
    pixels = np.stack([rng.choice(outside, PIXELS) for outside in each])
    finer = np.array([sum(1 / float(r) for r in volume[0].scales) for volume in volumes])
    groups = np.array_split(finer.argsort(), 4)
    slope = np.polyfit([finer[k].mean() for k in groups], [np.quantile(pixels[k], COVERAGE) for k in groups], 1)[0]
    bias[1:] += float(slope)
    bias[0] += float(np.quantile(pixels - slope * finer[:, None], COVERAGE + (1 - COVERAGE) / len(volumes)))


def _outside(head: nn.Module, example: Example) -> Tensor:
    """log(error / half width) of each pixel: above 0 the truth lies outside."""
    a, *slopes = head(example.inputs.float()).movedim(-1, 0)
    log = a + sum(b / float(r) for b, r in zip(slopes, example.scales))
    up_y, up_x = example.up
    return example.error.log() - (up_y @ log.clamp(max=0).exp() @ up_x.T).log()


def _volumes(upscaler: Upscaler, crops: Sequence[data.Crop], count: int) -> Iterator[list[Example]]:
    """So many volumes of a few crops: degraded in one way, and upscaled as the runtime does it."""
    for k in data.bar(range(count), desc="making inputs", unit="volume", leave=False):
        rng = np.random.default_rng([count, k])
        degradation, scales = draw(rng)
        noise = rng.uniform(0.003, 0.015) if rng.random() < 0.5 else 0.0  # truths are scans too
        truths = [_truth(crops[n].pixels, rng) for n in rng.integers(len(crops), size=SLICES)]
        truths = [resample.rician(truth, noise, rng) if noise else truth for truth in truths]
        lrs = [degradation.of(truth, scales) for truth in truths]
        found = estimate(lrs)
        yield [_example(upscaler, lr, truth, scales, found, rng) for lr, truth in zip(lrs, truths)]


def _truth(crop: resample.Image, rng: Rng) -> resample.Image:
    """A crop as another scanner would show it, at most a tile."""
    crop = OTHERS.crop(crop, SMALLEST, rng)[:TILE, :TILE]
    return np.minimum(OTHERS.patch(crop, (0, 0), crop.shape, rng), 1)


def draw(rng: Rng) -> tuple[Degradation, grid.Scales]:
    """A way to make an input, and scales."""
    sigma = rng.uniform(*NOISE) if rng.random() < 0.7 else 0.0
    kind = int(rng.integers(2 * len(resample.METHODS)))  # half of them are scans
    rows, cols = (rng.uniform(0.45, 1) if rng.random() < 0.7 else 1.0 for _ in range(2))
    window = [*degradations.WINDOWS][rng.integers(len(degradations.WINDOWS))]
    resampled = kind < len(resample.METHODS)
    way = degradations.resampled(resample.METHODS[kind], sigma) if resampled else degradations.scan((rows, cols), window, sigma)
    y, x = (Fraction(int(n), 10) for n in rng.integers(11, 46, size=2))
    how = rng.random()  # most scans have square pixels, and are to have them
    return way, (y, y) if how < 0.7 else (y, Fraction(1)) if how < 0.8 else (y, x)


def _example(
    upscaler: Upscaler, lr: resample.Image, truth: resample.Image, scales: grid.Scales, found: Acquired, rng: Rng
) -> Example:
    """A part of a slice (H, W), wherever it lies."""
    slices = upscaler.slices
    encoded = slices.encode(lr, found)
    (tile,) = encoded.tiles
    larger = scales[0] * encoded.spacing[0], scales[1] * encoded.spacing[1]
    responses = slices.engine.responses(tile.features).reshape(*encoded.shape, -1)
    spans = []
    for n, most, r in zip(encoded.shape, output_shape(lr.shape, scales), larger):
        size = min(n, WINDOW)
        first = int(rng.integers(n - size + 1))
        axis = grid.project(n, r, slices.model.projection)
        spans.append(Extent(first, first + size, first, first + size).outputs(axis, 0, most))
    rows, cols = spans
    window = rows.start, cols.start, len(rows), len(cols)
    output = slices.render(encoded, scales, window, models.UNIT)
    error = np.abs(output - truth[rows.start : rows.stop, cols.start : cols.stop]) + np.float32(LEAST)
    part = responses[rows.first : rows.first + rows.size, cols.first : cols.first + cols.size]
    told = np.broadcast_to(plain(found.told), (*part.shape[:2], INPUTS))
    inputs = torch.from_numpy(np.concatenate([part, told], -1).astype(np.float16))
    up = torch.from_numpy(rows.interpolation()), torch.from_numpy(cols.interpolation())
    return Example(inputs, larger, torch.from_numpy(error), up)
