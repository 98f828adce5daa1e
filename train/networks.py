"""Every network that can be trained, by kind and configuration: the generator, and EDSR and SRGAN, which it is compared with.

Lim et al., *EDSR*, CVPRW 2017; Ledig et al., *SRGAN*, CVPR 2017. Both get one channel and the generator's standardisation,
serve one whole scale, and end in sub-pixel convolution: Shi et al., *ESPCN*, CVPR 2016.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from runtime import grid
from runtime.errors import ScaleError

from . import generator
from .generator import Generator, GeneratorConfig, Mean, ResidualBlock, Size, Std, conv
from .tables import checked, require


@dataclass(frozen=True)
class OneScaleConfig:
    """What rebuilds an EDSR or SRGAN's generator. `mean` and `std` are of images scaled to [0, 1]."""

    kind: Literal["edsr", "srgan"] = "edsr"
    channels: Size = 64
    blocks: Size = 16
    residual_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # of EDSR's blocks
    scale: Literal[2, 3, 4] = 2
    mean: Mean = 0.370
    std: Std = 0.117


Config = Annotated[GeneratorConfig | OneScaleConfig, Field(discriminator="kind")]
NAMED: dict[str, GeneratorConfig | OneScaleConfig] = {
    **generator.CONFIGS,
    "edsr": OneScaleConfig("edsr", channels=256, blocks=32, residual_scale=0.1),  # 40,720,385 parameters
    "edsr-small": OneScaleConfig("edsr"),  # the size of EDSR's own baseline model: 1,367,553 parameters
    "srgan": OneScaleConfig("srgan"),  # 1,381,011 parameters
    "srgan-small": OneScaleConfig("srgan", blocks=5),  # the trunk of the authors' Meta-SRGAN: 565,768 parameters
}


class OneScale(nn.Module):
    """EDSR or SRGAN's generator, for `config.scale` alone."""

    def __init__(self, config: OneScaleConfig) -> None:
        super().__init__()
        self.config, C, srgan = config, config.channels, config.kind == "srgan"
        kernel, act = (9, nn.PReLU) if srgan else (3, nn.Identity)
        parts = (nn.BatchNorm2d, nn.PReLU) if srgan else (nn.Identity, nn.ReLU, config.residual_scale)
        self.head = nn.Sequential(conv(1, C, kernel), nn.PReLU()) if srgan else conv(1, C, kernel)
        self.blocks = nn.Sequential(*(ResidualBlock(C, *parts) for _ in range(config.blocks)))
        self.tail = nn.Sequential(conv(C, C), nn.BatchNorm2d(C)) if srgan else conv(C, C)
        steps = (2, 2) if config.scale == 4 else (config.scale,)
        self.upscale = nn.Sequential(*(nn.Sequential(conv(C, C * s * s), nn.PixelShuffle(s), act()) for s in steps))
        self.last = conv(C, 1, kernel)

    def forward(self, image: Tensor, scales: grid.Scales, told: Tensor | None = None) -> Tensor:
        """(N, 1, H, W), black 0 and white 1 → (N, 1, H·s, W·s), float32. Raises ScaleError unless s is `config.scale`."""
        scale, (rows, cols) = self.config.scale, scales
        if scales != (scale, scale):
            raise ScaleError(f"scale {rows} by {cols} (rows, columns) is not this network's: give {scale}")
        first = self.head((image - self.config.mean) / self.config.std)
        y: Tensor = self.last(self.upscale(first + self.tail(self.blocks(first)))).float()
        return y * self.config.std + self.config.mean


def named(table: Any, where: str) -> dict[str, Any]:
    """A network's table with the fields of the one that its `name` names, where it has one. Raises ConfigError."""
    require(isinstance(table, dict), f"{where}: generator", table, "a table")
    if "name" not in table:
        return {"kind": "meta", **table}
    name = table["name"]
    require("kind" not in table, f"{where}: generator", "both a kind and a name", "one of the two")
    require(isinstance(name, str) and name in NAMED, f"{where}: generator.name", name, f"one of {', '.join(NAMED)}")
    return asdict(NAMED[name]) | {key: value for key, value in table.items() if key != "name"}


def configure(table: dict[str, Any], where: str = "the network") -> Config:
    """A network's configuration from a table: its `kind` (meta without it), or the `name` of one, and the fields that differ.

    Raises ConfigError for an unknown kind, name or field and for a value that no network can have.
    """
    config: Config = checked(Config, named(table, where), where)
    return config


def build(config: Config) -> nn.Module:
    """A network with new weights: `forward(image (N, 1, H, W), scales, told) → (N, 1, h, w)`, and its `config`."""
    return Generator(config) if isinstance(config, GeneratorConfig) else OneScale(config)
