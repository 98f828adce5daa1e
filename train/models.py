"""What can be scored, as functions of an image: bicubic interpolation, bundles served by `runtime`, checkpoints by PyTorch.

torch is imported by what needs it.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from runtime import ScaleError, Upscaler, grid
from runtime.acquired import STORED, Acquired
from runtime.intensity import Intensity
from runtime.slices import output_shape

from . import resample
from .metrics import Image

if TYPE_CHECKING:
    from torch import nn

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

    def hears(self, estimate: Acquired | None, truth: Acquired | None = None, factor: float = 1.0) -> Acquired:
        """What it is told of an input, σ times a factor."""
        acquired = {"auto": estimate, "true": truth, "stored": STORED}[self.told]
        assert acquired is not None, self.told
        return replace(acquired, sigma=factor * acquired.sigma)

    def output(self, lr: Image, scales: grid.Scales, acquired: Acquired) -> Image | None:
        """What it makes of an input; None where it does not serve the scales."""
        try:
            return self.upscale(lr, scales, acquired)
        except ScaleError:  # a network of one scale
            return None


BICUBIC = Model(
    "bicubic", "interpolation on the shared grid (Keys, a = -1/2)", lambda lr, scales, acquired: resample.upsample(lr, scales)
)


def load_model(spec: str, told: Told = "auto") -> Model:
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
    model = _load_bundle(path) if _is_bundle(path) else _load_checkpoint(path)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    name = name or path.stem + also
    return replace(model, name=name, file=str(path), sha256=sha256, bytes=len(content), told=told)


def _is_bundle(path: Path) -> bool:
    if path.suffix in (".bundle", ".pt"):
        return path.suffix == ".bundle"
    try:
        return "manifest.json" in zipfile.ZipFile(path).namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _load_bundle(path: Path) -> Model:
    upscaler = Upscaler.load(path)
    manifest = upscaler.bundle.manifest
    try:  # the manifest's account of the checkpoint is for people, and nothing that a bundle must have
        from . import networks

        cost = multiply_adds(networks.build(networks.configure(manifest["checkpoint"]["generator"])))
    except (LookupError, TypeError, ValueError):
        cost = None
    served_by = f"runtime on {upscaler.device}"
    return Model("", served_by, upscale_by(upscaler), parameters=manifest.get("parameters"), multiply_adds=cost)


def _load_checkpoint(path: Path) -> Model:
    import torch

    from . import checkpoint

    model, _ = checkpoint.load_network(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.float().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = sum(p.numel() for p in model.parameters())
    served_by = f"PyTorch on {device}, float32"
    return Model("", served_by, upscale_with(model), parameters=parameters, multiply_adds=multiply_adds(model))


def upscale_by(upscaler: Upscaler) -> Upscale:
    """The runtime as a function of an image with black 0 and white 1; its output is not darker than black."""
    return lambda lr, scales, acquired: upscaler.slices.upscale(lr, UNIT, scales, np.float32, acquired)


def upscale_with(model: nn.Module) -> Upscale:
    """A network in evaluation mode as a function of an image, in float32 on its own device.

    One with a Meta-Upscale stage gets the canonical form, as in the runtime; one for a single scale the image as it is.
    """
    import torch

    from .generator import Generator

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


def multiply_adds(model: nn.Module, side: int = 16) -> int | None:
    """Multiply-adds of a network's convolutions for each lr pixel, at the first whole scale from 2 to 4 that it serves."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(side, side).numpy()
    for r in (Fraction(2), Fraction(3), Fraction(4)):
        try:
            with FlopCounterMode(display=False) as counter:
                upscale_with(model)(image, (r, r), STORED)
        except ScaleError:
            continue
        flops = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
        return flops // 2 // side**2
    return None
