"""What the generator is compared with: EDSR and SRGAN's generator, each for one whole scale.

Lim et al., *Enhanced Deep Residual Networks for Single Image Super-Resolution*, CVPRW 2017; Ledig et al., *Photo-Realistic
Single Image Super-Resolution Using a Generative Adversarial Network*, CVPR 2017. One channel in and out, and the paper's
standardisation, as for the generator. Both end in sub-pixel convolution: Shi et al., *ESPCN*, CVPR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime import grid
from runtime.errors import ScaleError

from .generator import GeneratorConfig, ResidualBlock, check_sizes
from .tables import require


@dataclass(frozen=True)
class EdsrConfig:
    """What rebuilds an EDSR. `mean` and `std` are of images scaled to [0, 1]."""

    channels: int = 256
    blocks: int = 32
    residual_scale: float = 0.1
    scale: int = 2
    mean: float = 0.370
    std: float = 0.117

    def __post_init__(self) -> None:
        check_sizes(self, ("channels", "blocks"))
        require(0 < self.residual_scale < math.inf, "residual_scale", self.residual_scale, "a positive number such as 0.1")
        require(self.scale in _STEPS, "scale", self.scale, "2, 3 or 4")


@dataclass(frozen=True)
class SrganConfig:
    """What rebuilds SRGAN's generator. `mean` and `std` are of images scaled to [0, 1]."""

    channels: int = 64
    blocks: int = 16
    scale: int = 2
    mean: float = 0.370
    std: float = 0.117

    def __post_init__(self) -> None:
        check_sizes(self, ("channels", "blocks"))
        require(self.scale in _STEPS, "scale", self.scale, "2, 3 or 4")


_STEPS = {2: (2,), 3: (3,), 4: (2, 2)}  # pixel shuffles

CONFIGS: dict[str, EdsrConfig | SrganConfig] = {
    "edsr": EdsrConfig(),  # 40,720,385 parameters, 40,709,376 multiply-adds an lr pixel
    # A small variant, the size of EDSR's own baseline model: 1,367,553 parameters. Not what the paper compares with.
    "edsr-small": EdsrConfig(channels=64, blocks=16, residual_scale=1.0),
    "srgan": SrganConfig(),  # 1,381,011 parameters, 1,389,888 multiply-adds an lr pixel
    # A small variant with the trunk of the authors' Meta-SRGAN, 5 blocks: 565,768 parameters.
    "srgan-small": SrganConfig(blocks=5),
}


class EdsrBlock(nn.Module):
    """conv3×3-ReLU-conv3×3, scaled, and the input added."""

    def __init__(self, channels: int, residual_scale: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(channels, channels), _conv(channels, channels)
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.conv2(torch.relu(self.conv1(x)))


class Edsr(nn.Module):
    """EDSR for `config.scale`."""

    def __init__(self, config: EdsrConfig) -> None:
        super().__init__()
        self.config = config
        C = config.channels
        self.head = _conv(1, C)
        self.blocks = nn.Sequential(*(EdsrBlock(C, config.residual_scale) for _ in range(config.blocks)))
        self.tail = _conv(C, C)
        self.upscale = _upsampler(C, config.scale)
        self.last = _conv(C, 1)

    def forward(self, image: Tensor, scales: grid.Scales, told: Tensor | None = None) -> Tensor:
        """(N, 1, H, W), black 0 and white 1 → (N, 1, H·s, W·s), float32. Raises ScaleError unless s is `config.scale`."""
        _check(scales, self.config.scale)
        first = self.head((image - self.config.mean) / self.config.std)
        y = self.last(self.upscale(first + self.tail(self.blocks(first)))).float()
        return y * self.config.std + self.config.mean


class Srgan(nn.Module):
    """SRGAN's generator for `config.scale`."""

    def __init__(self, config: SrganConfig) -> None:
        super().__init__()
        self.config = config
        C = config.channels
        self.head = nn.Sequential(_conv(1, C, 9), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(GeneratorConfig(channels=C)) for _ in range(config.blocks)))
        self.tail = nn.Sequential(_conv(C, C), nn.BatchNorm2d(C))
        self.upscale = _upsampler(C, config.scale, nn.PReLU)
        self.last = _conv(C, 1, 9)

    def forward(self, image: Tensor, scales: grid.Scales, told: Tensor | None = None) -> Tensor:
        """(N, 1, H, W), black 0 and white 1 → (N, 1, H·s, W·s), float32. Raises ScaleError unless s is `config.scale`."""
        _check(scales, self.config.scale)
        first = self.head((image - self.config.mean) / self.config.std)
        y = self.last(self.upscale(first + self.tail(self.blocks(first)))).float()
        return y * self.config.std + self.config.mean


def _conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)


def _upsampler(channels: int, scale: int, act: Callable[[], nn.Module] = nn.Identity) -> nn.Sequential:
    """(N, C, H, W) → (N, C, H·s, W·s) by pixel shuffle; ×4 is twice ×2."""
    return nn.Sequential(*(nn.Sequential(_conv(channels, channels * s * s), nn.PixelShuffle(s), act()) for s in _STEPS[scale]))


def _check(scales: grid.Scales, scale: int) -> None:
    if scales != (scale, scale):
        rows, cols = scales
        raise ScaleError(f"scale {rows} by {cols} (rows, columns) is not this network's: give {scale}, the one that it can do")
