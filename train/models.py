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
from typing import TYPE_CHECKING

import numpy as np

from runtime import ScaleError, Upscaler, grid
from runtime.intensity import Intensity

from . import resample
from .metrics import Image

if TYPE_CHECKING:
    from torch import nn

Upscale = Callable[[Image, grid.Scales], Image]  # lr (H, W) in [0, 1] → sr (H·p_y // q_y, W·p_x // q_x); or a ScaleError

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


BICUBIC = Model("bicubic", "interpolation on the shared grid (Keys, a = -1/2)", resample.upsample)


def load_model(spec: str) -> Model:
    """The bundle, served by `runtime`, or checkpoint, by PyTorch, that PATH or NAME=PATH names.

    Raises BundleError or InputFileError for a file that is missing, damaged or neither of the two.
    """
    name, is_named, named = spec.partition("=")
    if not is_named or Path(spec).exists():  # a path may hold an = of its own
        name, named = "", spec
    path = Path(named)
    model = _load_bundle(path) if _is_bundle(path) else _load_checkpoint(path)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return replace(model, name=name or path.stem, file=str(path), sha256=sha256, bytes=len(content))


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
    return lambda lr, scales: upscaler.upscale_slice(lr, UNIT, scales, np.float32)


def upscale_with(model: nn.Module) -> Upscale:
    """A network in evaluation mode, `model((1, 1, H, W), scales)`, as a function of an image; float32, on its own device."""
    import torch

    device = next(model.parameters()).device

    @torch.no_grad()
    def upscale(lr: Image, scales: grid.Scales) -> Image:
        batch = torch.tensor(lr)[None, None].to(device, memory_format=torch.channels_last)
        sr: Image = model(batch, scales)[0, 0].cpu().numpy()
        return sr

    return upscale


def multiply_adds(model: nn.Module, side: int = 16) -> int | None:
    """Multiply-adds of a network's convolutions for each lr pixel, at the first whole scale from 2 to 4 that it serves."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(side, side).numpy()
    for r in (Fraction(2), Fraction(3), Fraction(4)):
        try:
            with FlopCounterMode(display=False) as counter:
                upscale_with(model)(image, (r, r))
        except ScaleError:
            continue
        flops = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
        return flops // 2 // side**2
    return None
