"""What can be scored, as functions of an image: bicubic interpolation, bundles served by `runtime`, checkpoints by PyTorch."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runtime import InputFileError, ScaleError, Upscaler, grid
from runtime.acquired import STORED, Acquired
from runtime.files import sha256
from runtime.intensity import Intensity
from runtime.slices import output_shape

from . import checkpoint, networks, resample
from .generator import Generator
from .metrics import Image

# lr (H, W) in [0, 1], scales, what was measured of it → sr (H·p_y // q_y, W·p_x // q_x); or a ScaleError
Upscale = Callable[[Image, grid.Scales, Acquired], Image]

# What a model is told of an input: the runtime's estimate, the truth, or nothing: that all of what is stored was measured
Told = Literal["auto", "true", "stored"]

UNIT = Intensity(low=0.0, high=np.inf, black=0.0, white=1.0)  # of crops, which are scaled by their volume already


@dataclass(frozen=True)
class Model:
    """Something that upscales, and what is known of it: None where a fact is unknown or makes no sense."""

    name: str
    served_by: str
    upscale: Upscale
    file: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None  # in convolutions, for each lr pixel
    told: Told = "stored"
    factor: float = 1.0  # σ is told so many times as large

    def output(self, lr: Image, scales: grid.Scales, estimate: Acquired | None, truth: Acquired | None = None) -> Image | None:
        """What it makes of an input of which these are known; None where it does not serve the scales."""
        acquired = {"auto": estimate, "true": truth, "stored": STORED}[self.told]
        assert acquired is not None, self.told
        try:
            return self.upscale(lr, scales, replace(acquired, sigma=self.factor * acquired.sigma))
        except ScaleError:  # a network of one scale
            return None

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("upscale", "factor")}


BICUBIC = Model(
    "bicubic", "interpolation on the shared grid (Keys, a = -1/2)", lambda lr, scales, acquired: resample.upsample(lr, scales)
)


def load_models(specs: Sequence[str], told: Told = "auto", factor: float = 1.0) -> list[Model]:
    """Bicubic interpolation and the models of `load_model`. Raises InputFileError for two of one name."""
    models = [BICUBIC, *(load_model(spec, told, factor) for spec in specs)]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InputFileError(f"two models are called {name}: give one another name, as in --models first=PATH second=PATH")
    return models


def load_model(spec: str, told: Told = "auto", factor: float = 1.0) -> Model:
    """The bundle, served by `runtime`, or checkpoint, by PyTorch, that PATH or NAME=PATH names; @auto, @true or @stored behind
    the path says what it is told.

    Raises BundleError or InputFileError for a file that is missing, damaged or neither of the two.
    """
    name, is_named, named = spec.partition("=")
    if not is_named or Path(spec).exists():  # a path may hold an = of its own
        name, named = "", spec
    also = ""
    for word in get_args(Told):
        if named.endswith(f"@{word}") and not Path(named).exists():  # or an @
            named, told, also = named.removesuffix(f"@{word}"), word, f"@{word}"
    path = Path(named)
    network: nn.Module | None = None
    if path.suffix == ".bundle" or (zipfile.is_zipfile(path) and "manifest.json" in zipfile.ZipFile(path).namelist()):
        upscaler = Upscaler.load(path)
        manifest = upscaler.bundle.manifest
        upscale, served_by, parameters = upscale_by(upscaler), f"runtime on {upscaler.device}", manifest.get("parameters")
        # The manifest's account of the checkpoint is for people, and nothing that a bundle must have.
        with contextlib.suppress(LookupError, TypeError, ValueError):
            network = networks.build(networks.configure(manifest["checkpoint"]["generator"]))
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = checkpoint.load_network(path)[0].float().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        upscale, served_by = upscale_with(network), f"PyTorch on {device}, float32"
        parameters = sum(p.numel() for p in network.parameters())
    cost = multiply_adds(network) if network else None
    facts = str(path), sha256(path), path.stat().st_size, parameters, cost
    return Model(name or path.stem + also, served_by, upscale, *facts, told, factor)


def upscale_by(upscaler: Upscaler) -> Upscale:
    """The runtime as a function of an image with black 0 and white 1; its output is not darker than black."""
    return lambda lr, scales, acquired: upscaler.slices.upscale(lr, UNIT, scales, np.float32, acquired)


def upscale_with(model: nn.Module) -> Upscale:
    """A network in evaluation mode as a function of an image, in float32 on its own device.

    One with a Meta-Upscale stage gets the canonical form, as in the runtime; one for a single scale the image as it is.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def upscale(lr: Image, scales: grid.Scales, acquired: Acquired = STORED) -> Image:
        height, width = output_shape(lr.shape, scales)
        if isinstance(model, Generator):
            lr, spacing = acquired.canonical(lr)
            scales = (scales[0] * spacing[0], scales[1] * spacing[1])
        batch = torch.tensor(lr)[None, None].to(device, memory_format=torch.channels_last)
        sr: Image = model(batch, scales, torch.tensor([acquired.told], dtype=torch.float32, device=device))[0, 0].cpu().numpy()
        return sr[:height, :width]

    return upscale


def nearest(lr: Image, scales: grid.Scales) -> Image:
    """(H, W) → (H·p_y // q_y, W·p_x // q_x): every pixel as a block, to look at an input."""
    rows, cols = (grid.project(n, r, "centred").source for n, r in zip(lr.shape, scales))
    return lr[rows][:, cols]


def multiply_adds(model: nn.Module, side: int = 16) -> int | None:
    """Multiply-adds of a network's convolutions for each lr pixel, at the first whole scale from 2 to 4 that it serves."""
    for r in (Fraction(2), Fraction(3), Fraction(4)):
        try:
            with FlopCounterMode(display=False) as counter:
                upscale_with(model)(np.zeros((side, side), np.float32), (r, r), STORED)
        except ScaleError:
            continue
        flops = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
        return flops // 2 // side**2
    return None
