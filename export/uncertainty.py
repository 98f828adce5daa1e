"""The head that tells the uncertainty of a finished bundle. It learns from what the runtime itself computes.

It is a quantile regression: Koenker, Bassett, *Regression Quantiles*, Econometrica 1978. Other subjects then scale it, so that
the truth lies outside as often as it may: Angelopoulos et al., *Conformal Risk Control*, ICLR 2024.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime import Upscaler, grid
from runtime.intensity import UNIT
from runtime.tiles import Span
from runtime.uncertainty import COVERAGE, OUTPUTS
from train import config, data, loop, models, subjects
from train.generator import interpolate

UPDATES, CALIBRATED, RATE, HIDDEN = 2_000, 128, 3e-3, 32
LEAST = 1e-4  # standard deviations of the model: a smaller error is none
PIXELS = 10_000  # of a batch that calibrate
# Inputs are those that networks learn from, and k-space ones.
STAGE = config.load(
    "fidelity", ['degradations=["bilinear", "bicubic", "kspace", "scanner", "scanner", "scanner"]', "faint=0"]
).stage["brains"]


def fit(upscaler: Upscaler, folder: Path) -> dict[str, NDArray[np.float32]]:
    """The head's arrays by their names in a bundle, of a folder of images: a tenth of their subjects calibrates.

    Raises InputFileError for a folder without two subjects.
    """
    split = subjects.split_by_subject(folder, subjects.find_files(folder))
    batches, held_out = loop.load_stage(STAGE, split)
    torch.manual_seed(STAGE.seed)
    model = upscaler.bundle.model
    layers = nn.Linear(model.basis + 9 * model.skip, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
    nn.init.zeros_(layers[2].weight)
    head = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimiser = torch.optim.Adam(head.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, UPDATES)
    for update in data.bar(range(UPDATES), desc="uncertainty", unit="update"):
        short = _short(upscaler, head, batches[update])
        loss = torch.maximum(COVERAGE * short, (COVERAGE - 1) * short).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    rng, others = np.random.default_rng(STAGE.seed), data.Batches(held_out, STAGE)
    with torch.no_grad():
        each = [rng.choice(_short(upscaler, head, others[k]).numpy().ravel(), PIXELS) for k in range(CALIBRATED)]
        layers[2].bias[0] += float(np.quantile(each, COVERAGE + (1 - COVERAGE) / CALIBRATED))
    arrays = {f"{name}{k}": part for k, layer in enumerate(layers, 1) for name, part in zip("wb", layer.parameters())}
    return {name: part.detach().numpy() for name, part in arrays.items()}


def _short(upscaler: Upscaler, head: nn.Module, batch: data.Batch) -> Tensor:
    """log(error / half width) at the pixels of a batch: above 0 the truth lies outside."""
    (lr, hr, told, scales), model, engine = batch, upscaler.bundle.model, upscaler.slices.engine
    size, out = lr.shape[2:], np.empty_like(hr)
    axes = (grid.project(n, r, model.projection) for n, r in zip(size, scales))
    rows, cols = (Span(axis, 0, axis.n_out, 0, axis.n_in) for axis in axes)
    responses = []
    for image, numbers, target in zip(lr[:, 0], told, out[:, 0]):
        sigma, *soft = map(float, numbers)
        features = engine.encode(image, UNIT, (sigma, soft[0], soft[1]))
        engine.render(features, rows, cols, scales, models.UNIT, target)
        responses.append(engine.responses(features).copy())
    error = torch.from_numpy(np.abs(out - hr) / np.float32(model.std) + np.float32(LEAST))
    a, *slopes = head(torch.from_numpy(np.stack(responses))).unflatten(1, size).movedim(-1, 0)
    log = a + sum(b / float(r) for b, r in zip(slopes, scales))
    return error.log() - interpolate(log.exp()[:, None], scales, model.projection).log()
