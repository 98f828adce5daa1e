"""What the generator is compared with: EDSR and SRGAN's generator, each for one whole scale.

Lim et al., *Enhanced Deep Residual Networks for Single Image Super-Resolution*, CVPRW 2017; Ledig et al., *Photo-Realistic
Single Image Super-Resolution Using a Generative Adversarial Network*, CVPR 2017. One channel in and out, and the paper's
standardisation, as for the generator. Both end in sub-pixel convolution: Shi et al., *ESPCN*, CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from runtime import grid
from runtime.errors import ScaleError

from .generator import GeneratorConfig, Mean, ResidualBlock, Size, Std

Shuffled = Literal[2, 3, 4]  # scales


@dataclass(frozen=True)
class EdsrConfig:
    """What rebuilds an EDSR. `mean` and `std` are of images scaled to [0, 1]."""

    kind: Literal["edsr"] = "edsr"
    channels: Size = 256
    blocks: Size = 32
    residual_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    scale: Shuffled = 2
    mean: Mean = 0.370
    std: Std = 0.117


@dataclass(frozen=True)
class SrganConfig:
    """What rebuilds SRGAN's generator. `mean` and `std` are of images scaled to [0, 1]."""

    kind: Literal["srgan"] = "srgan"
    channels: Size = 64
    blocks: Size = 16
    scale: Shuffled = 2
    mean: Mean = 0.370
    std: Std = 0.117


CONFIGS: dict[str, EdsrConfig | SrganConfig] = {
    "edsr": EdsrConfig(),  # 40,720,385 parameters, 40,709,376 multiply-adds an lr pixel
    # A small variant, the size of EDSR's own baseline model: 1,367,553 parameters. Not what the paper compares with.
    "edsr-small": EdsrConfig(channels=64, blocks=16, residual_scale=1.0),
    "srgan": SrganConfig(),  # 1,381,011 parameters, 1,389,888 multiply-adds an lr pixel
    # A small variant with the trunk of the authors' Meta-SRGAN, 5 blocks: 565,768 parameters.
    "srgan-small": SrganConfig(blocks=5),
}


class OneScale(nn.Module):
    """A network for `config.scale` alone; its subclasses make the parts."""

    config: EdsrConfig | SrganConfig
    head: nn.Module
    blocks: nn.Module
    tail: nn.Module
    upscale: nn.Module
    last: nn.Module

    def forward(self, image: Tensor, scales: grid.Scales, told: Tensor | None = None) -> Tensor:
        """(N, 1, H, W), black 0 and white 1 → (N, 1, H·s, W·s), float32. Raises ScaleError unless s is `config.scale`."""
        scale, (rows, cols) = self.config.scale, scales
        if scales != (scale, scale):
            raise ScaleError(f"scale {rows} by {cols} (rows, columns) is not this network's: give {scale}")
        first = self.head((image - self.config.mean) / self.config.std)
        y: Tensor = self.last(self.upscale(first + self.tail(self.blocks(first)))).float()
        return y * self.config.std + self.config.mean


class EdsrBlock(nn.Module):
    """conv3×3-ReLU-conv3×3, scaled, and the input added."""

    def __init__(self, channels: int, residual_scale: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(channels, channels), _conv(channels, channels)
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.conv2(torch.relu(self.conv1(x)))


class Edsr(OneScale):
    def __init__(self, config: EdsrConfig) -> None:
        super().__init__()
        self.config, C = config, config.channels
        self.head = _conv(1, C)
        self.blocks = nn.Sequential(*(EdsrBlock(C, config.residual_scale) for _ in range(config.blocks)))
        self.tail = _conv(C, C)
        self.upscale = _upsampler(C, config.scale)
        self.last = _conv(C, 1)


class Srgan(OneScale):
    def __init__(self, config: SrganConfig) -> None:
        super().__init__()
        self.config, C = config, config.channels
        self.head = nn.Sequential(_conv(1, C, 9), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(GeneratorConfig(channels=C)) for _ in range(config.blocks)))
        self.tail = nn.Sequential(_conv(C, C), nn.BatchNorm2d(C))
        self.upscale = _upsampler(C, config.scale, nn.PReLU)
        self.last = _conv(C, 1, 9)


def _conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)


def _upsampler(channels: int, scale: int, act: Callable[[], nn.Module] = nn.Identity) -> nn.Sequential:
    """(N, C, H, W) → (N, C, H·s, W·s) by pixel shuffle; ×4 is twice ×2."""
    steps = (2, 2) if scale == 4 else (scale,)
    return nn.Sequential(*(nn.Sequential(_conv(channels, channels * s * s), nn.PixelShuffle(s), act()) for s in steps))
