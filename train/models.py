"""What can be scored, as functions of an image: bicubic interpolation, bundles served by `runtime`, checkpoints by PyTorch."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from .resample import Image

# lr (H, W) in [0, 1], scales, what was measured of it → sr (H·p_y // q_y, W·p_x // q_x); or a ScaleError
Upscale = Callable[[Image, grid.Scales, Acquired], Image]
Interval = Callable[[Image, grid.Scales, Acquired], tuple[Image, Image]]  # the same with half widths beside it

# What a model is told of an input: the runtime's estimate, the truth, or nothing: that all of what is stored was measured
Told = Literal["auto", "true", "stored"]
_ASKED = re.compile(rf"(.*)@(({'|'.join(get_args(Told))})(?:\+grain(0|1|0?\.\d+))?)")  # a path, and what of it

UNIT = Intensity(low=0.0, high=np.inf, black=0.0, white=1.0)  # of crops, which are scaled by their volume already


@dataclass(frozen=True)
class Model:
    """Something that upscales, what it is told, and facts: its file, its size, multiply-adds of convolutions an lr pixel."""

    name: str
    served_by: str
    upscale: Upscale
    told: Told = "stored"
    facts: dict[str, Any] = field(default_factory=dict)
    interval: Interval | None = None  # where it tells half widths

    def output(self, lr: Image, scales: grid.Scales, known: Mapping[Told, Acquired]) -> Image | None:
        """What it makes of an input of which this is known; None where it does not serve the scales."""
        try:
            return self.upscale(lr, scales, known[self.told])
        except ScaleError:  # a network of one scale
            return None


_KEYS = "interpolation on the shared grid (Keys, a = -1/2)"
BICUBIC = Model("bicubic", _KEYS, lambda lr, scales, acquired: resample.upsample(lr, scales))


def load_models(specs: Sequence[str], told: Told = "auto") -> list[Model]:
    """Bicubic interpolation and the models of `load_model`. Raises InputFileError for two of one name."""
    models = [BICUBIC, *(load_model(spec, told) for spec in specs)]
    names = [model.name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputFileError(f"two models are called {twice[0]}: give one another name, as in --models first=PATH second=PATH")
    return models


def load_model(spec: str, told: Told = "auto") -> Model:
    """The bundle or checkpoint that [NAME=]PATH[@TOLD[+grainG]][+] names, where TOLD (auto, true or stored) is what it is told,
    and G how much of what was measured is added back. A bundle with a + at the end gives its ensemble's output.

    Raises BundleError or InputFileError for a file that is missing, damaged or neither of the two.
    """
    name, is_named, named = spec.partition("=")
    if not is_named or Path(spec).exists():  # a path may hold an = of its own
        name, named = "", spec
    plus = "+" * (named.endswith("+") and not Path(named).exists())
    named = named.removesuffix(plus)
    asked = None if Path(named).exists() else _ASKED.fullmatch(named)  # or an @
    path, grain = Path(asked[1] if asked else named), float(asked[4] or 0) if asked else 0.0
    told = asked[3] if asked else told  # type: ignore[assignment]
    network: nn.Module | None = None
    interval = None
    if path.suffix == ".bundle" or (zipfile.is_zipfile(path) and "manifest.json" in zipfile.ZipFile(path).namelist()):
        upscaler = Upscaler.load(path, ensemble=bool(plus))
        manifest, parameters = upscaler.bundle.manifest, upscaler.bundle.manifest.get("parameters")
        upscale, served_by = upscale_by(upscaler, grain), f"runtime on {upscaler.device}"
        served_by += ", mean of 8" * upscaler.ensemble
        interval = interval_by(upscaler, grain) if upscaler.bundle.head() else None
        # The manifest's account of the checkpoint is for people, and nothing that a bundle must have.
        with contextlib.suppress(LookupError, TypeError, ValueError):
            network = networks.build(networks.configure(manifest["checkpoint"]["generator"]))
    else:
        if plus:
            raise InputFileError(f"{path} is a checkpoint, and {spec} asks for its ensemble: export it, and give the bundle")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = checkpoint.load_network(path)[0].to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        upscale, served_by = upscale_with(network, grain), f"PyTorch on {device}, float32"
        parameters = sum(p.numel() for p in network.parameters())
    facts = {"file": str(path), "sha256": sha256(path), "bytes": path.stat().st_size, "parameters": parameters}
    facts["multiply_adds"] = multiply_adds(network) * (8 if plus else 1) if network else None
    return Model(name or path.stem + (f"@{asked[2]}" if asked else "") + plus, served_by, upscale, told, facts, interval)


def upscale_by(upscaler: Upscaler, grain: float = 0.0) -> Upscale:
    """The runtime as a function of an image with black 0 and white 1; its output is not darker than black."""
    return lambda lr, scales, acquired: upscaler.slices.upscale(lr, UNIT, scales, np.float32, acquired, grain)


def interval_by(upscaler: Upscaler, grain: float = 0.0) -> Interval:
    """The same with the half widths beside the output."""

    def interval(lr: Image, scales: grid.Scales, acquired: Acquired) -> tuple[Image, Image]:
        sr, half_width = (np.empty(output_shape(lr.shape, scales), np.float32) for _ in range(2))
        upscaler.slices.fill(sr, lr, UNIT, scales, acquired, grain, half_width)
        return sr, half_width

    return interval


def upscale_with(model: nn.Module, grain: float = 0.0) -> Upscale:
    """A network in evaluation mode as a function of an image, in float32 on its own device.

    One with a Meta-Upscale stage gets the canonical form, as in the runtime; one for a single scale the image as it is.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def upscale(lr: Image, scales: grid.Scales, acquired: Acquired = STORED) -> Image:
        stored, asked, (height, width) = lr, scales, output_shape(lr.shape, scales)
        if isinstance(model, Generator):
            lr, spacing = acquired.canonical(lr)
            scales = (scales[0] * spacing[0], scales[1] * spacing[1])
        batch = torch.tensor(lr)[None, None].to(device, memory_format=torch.channels_last)
        sr: Image = model(batch, scales, torch.tensor([acquired.told], dtype=torch.float32, device=device))[0, 0].cpu().numpy()
        sr = sr[:height, :width]
        if grain:
            sr += np.float32(grain) * acquired.given_back(acquired.lacking(stored, sr, asked), stored.shape, asked)
        return sr

    return upscale


def multiply_adds(model: nn.Module, side: int = 16) -> int:
    """Multiply-adds of a network's convolutions for each lr pixel, at ×2 or at the one scale that it serves."""
    r = Fraction(getattr(model.config, "scale", 2))
    with FlopCounterMode(display=False) as counter:
        upscale_with(model)(np.zeros((side, side), np.float32), (r, r), STORED)
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.convolution]) // 2 // side**2
