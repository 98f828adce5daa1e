"""The generator: SRGAN's residual trunk and the Meta-Upscale stage. Shapes: N images, H×W low-resolution pixels, C channels.

Tan, Zhu, Liò, *Arbitrary Scale Super-Resolution for Brain MRI Images*, AIAI 2020; Hu et al., *Meta-SR*, CVPR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from runtime import grid
from runtime.acquired import LEAST_SIGMA, SOFT
from runtime.grid import Span

TOLD, TOLD_HIDDEN = 3, 16  # numbers that are told, and units of the network that turns them into biases

Size = Annotated[int, Field(ge=1, le=4096)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class GeneratorConfig:
    """What rebuilds a generator; a checkpoint carries it. `mean` and `std` are of images scaled to [0, 1]."""

    kind: Literal["meta"] = "meta"
    channels: Size = 64
    blocks: Size = 5
    head_kernel: Literal[1, 3, 5, 7, 9, 11] = 9
    batch_norm: bool = True
    projection: grid.Projection = "corner"
    skip: bool = False  # output = linear interpolation of the input + Meta-Upscale of the features
    predictor_hidden: Size = 256
    basis: Annotated[int, Field(ge=0, le=4096)] = 0  # 3×3×C filters that predicted ones are sums of; 0: none, all are predicted
    per_axis: bool = False  # the predictor is told 1/r_y and 1/r_x, not 1/r alone
    told: bool = False  # the trunk is told the input's noise and band (`TOLD`): a bias for each channel after the head
    mean: Mean = 0.370
    std: Std = 0.117


CONFIGS = {
    # The authors' generator: 561,926 parameters, 410,688 multiply-adds an lr pixel.
    "paper": GeneratorConfig(),
    # Without batch norm, projected from pixel centres, learning only what linear interpolation lacks; deep and narrow, which is
    # better at equal cost; black is zero, so that zero padding at the border is background. 32 basis filters are as good as any
    # (docs/training.md), and convolved with the features once they serve every scale.
    "edge": GeneratorConfig(
        channels=32, blocks=20, batch_norm=False, projection="centred", skip=True, basis=32, per_axis=True, told=True, mean=0.0
    ),
}


def conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)


class ResidualBlock(nn.Module):
    """conv3×3-norm-act-conv3×3-norm, times `scale`, and the input added."""

    def __init__(
        self, channels: int, norm: type[nn.Module], act: Callable[[], nn.Module] = nn.PReLU, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, channels), norm(channels)
        self.act, self.scale = act(), scale
        self.conv2, self.norm2 = conv(channels, channels), norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return x + (y if self.scale == 1 else self.scale * y)


class MetaUpscale(nn.Module):
    """Features → pixels at any scale: every output pixel is the 3×3 patch at its source times the filter of its phase."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.projection, self.per_axis = config.projection, config.per_axis
        taps = 9 * config.channels  # ordered (tap row, tap column, channel)
        hidden = nn.Linear(4 if config.per_axis else 3, config.predictor_hidden)
        last = nn.Linear(config.predictor_hidden, config.basis or taps)
        self.predictor = nn.Sequential(hidden, nn.ReLU(), last)
        # Filters of variance 1/(9C) keep the features' scale; behind a skip they start near zero.
        gain = 0.01 if config.skip else 1.0
        nn.init.normal_(last.weight, std=gain / (last.out_features * config.predictor_hidden) ** 0.5)
        nn.init.normal_(last.bias, std=gain / last.out_features**0.5)
        if config.basis:
            basis = nn.Linear(config.basis, taps, bias=False)
            nn.init.normal_(basis.weight, std=1 / taps**0.5)
            self.predictor.append(basis)

    def forward(self, features: Tensor, scales: grid.Scales) -> Tensor:
        """(N, C, H, W) → (N, 1, H·p_y // q_y, W·p_x // q_x), in the features' dtype."""
        rows, cols = (grid.project(n, r, self.projection) for n, r in zip(features.shape[-2:], scales))
        by_phase = self._by_table if grid.has_table(scales) else self._by_row
        return by_phase(features.permute(0, 2, 3, 1), rows, cols, scales)[:, None]

    def _by_table(self, x: Tensor, rows: grid.Axis, cols: grid.Axis, scales: grid.Scales) -> Tensor:
        """All p² filters are predicted at once; input pixels congruent modulo q, which need the same, share one product."""
        N, H, W, C = x.shape
        row_offsets, col_offsets = (grid.phase_offsets(r, self.projection) for r in scales)
        table = self.filters(row_offsets, col_offsets, scales)  # (p_y, p_x, 9C)
        (qy, qx), (ny, nx) = (r.denominator for r in scales), (rows.slots, cols.slots)
        phase_y, phase_x = (torch.from_numpy(axis.slot_phases()) for axis in (rows, cols))
        filters = table.to(x.dtype)[phase_y[:, None, :, None], phase_x[None, :, None, :]]  # (qy, qx, ny, nx, 9C)
        filters = filters.reshape(qy * qx, ny * nx, -1).transpose(1, 2)  # (qy·qx, 9C, ny·nx)

        R, S = -(-H // qy), -(-W // qx)  # blocks of qy×qx input pixels, the last ones padded
        patches = _patches(F.pad(x, (0, 0, 0, S * qx - W, 0, R * qy - H)))
        patches = patches.reshape(N, R, qy, S, qx, 9 * C).permute(2, 4, 0, 1, 3, 5)
        slots = patches.reshape(qy * qx, N * R * S, 9 * C) @ filters  # (qy·qx, N·R·S, ny·nx)

        slots = slots.reshape(qy, qx, N, R, S, ny, nx).permute(2, 3, 0, 5, 4, 1, 6)
        slots = slots.reshape(N, R * qy * ny, S * qx * nx)
        keep_y, keep_x = (torch.from_numpy(axis.source * axis.slots + axis.rank) for axis in (rows, cols))
        return slots[:, keep_y][:, :, keep_x]

    def _by_row(self, x: Tensor, rows: grid.Axis, cols: grid.Axis, scales: grid.Scales) -> Tensor:
        """For periods too long for a table: a filter for every pixel, one output row at a time."""
        patches = _patches(x)[:, :, torch.from_numpy(cols.source)]  # (N, H, w, 9C)
        out = []
        for source, offset in zip(rows.source, rows.offset):
            filters = self.filters(np.array([offset]), cols.offset, scales)  # (1, w, 9C)
            out.append((patches[:, source] * filters.to(x.dtype)).sum(-1))
        return torch.stack(out, 1)

    def filters(self, row_offsets: np.ndarray, col_offsets: np.ndarray, scales: grid.Scales) -> Tensor:
        """The filters of every pair of sub-pixel offsets, (rows, cols, 9C), float32."""
        device = next(self.parameters()).device
        row, col = (torch.tensor(offsets, dtype=torch.float32, device=device) for offsets in (row_offsets, col_offsets))
        inverse = torch.tensor(grid.inverse_scales(scales, self.per_axis), device=device)
        position = torch.stack(torch.broadcast_tensors(row[:, None], col[None, :], *inverse), -1)  # (rows, cols, 3 or 4)
        with torch.autocast(device.type, enabled=False):
            filters: Tensor = self.predictor(position)
        return filters


def _patches(x: Tensor) -> Tensor:
    """The 3×3 patch of every pixel, zeros beyond the border: (N, H, W, C) → (N, H, W, 9C)."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    return torch.cat([x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1)


class Generator(nn.Module):
    """Low-resolution images → images of any larger size. Images are (N, 1, H, W), black 0 and white 1."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        C, norm = config.channels, nn.BatchNorm2d if config.batch_norm else nn.Identity
        self.head = conv(1, C, config.head_kernel)
        self.head_act = nn.PReLU()
        if config.told:
            last = nn.Linear(TOLD_HIDDEN, C)
            nn.init.zeros_(last.weight)  # a network that was not told goes on as it was
            nn.init.zeros_(last.bias)
            self.condition = nn.Sequential(nn.Linear(TOLD, TOLD_HIDDEN), nn.ReLU(), last)
        self.blocks = nn.Sequential(*(ResidualBlock(C, norm) for _ in range(config.blocks)))
        self.tail, self.tail_norm = conv(C, C), norm(C)
        self.upscale = MetaUpscale(config)

    def forward(self, image: Tensor, scales: grid.Scales, told: Tensor | None = None) -> Tensor:
        """(N, 1, H, W) → (N, 1, H·p_y // q_y, W·p_x // q_x), float32. `told` (N, 3): `runtime.acquired.Told`; None: nothing."""
        x = (image - self.config.mean) / self.config.std
        y = self.upscale(self.encode(x, told), scales).float()
        if self.config.skip:
            y = y + interpolate(x, scales, self.config.projection)
        return y * self.config.std + self.config.mean

    def encode(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """The trunk: standardised images (N, 1, H, W) → features (N, C, H, W)."""
        first = self.first(x, told)
        return first + self.tail_norm(self.tail(self.blocks(first)))

    def first(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """What the first block sees: the head's features, with what is told as biases."""
        first = self.head(x)
        if self.config.told:
            told = torch.zeros(len(x), TOLD, device=x.device) if told is None else told
            noise = torch.log10(told[:, :1].clamp(min=LEAST_SIGMA)) - math.log10(LEAST_SIGMA)  # 0 is none, 2 is 10 % of white
            first = first + self.condition(torch.cat([noise, SOFT * told[:, 1:]], 1))[:, :, None, None]
        return self.head_act(first)


def interpolate(x: Tensor, scales: grid.Scales, projection: grid.Projection) -> Tensor:
    """Half-pixel-centred linear interpolation with repeated edges, by exactly the scales; (N, 1, H, W), float32."""

    def matrix(n_in: int, scale: Fraction) -> Tensor:
        axis = grid.project(n_in, scale, projection)
        return torch.from_numpy(Span(axis, 0, axis.n_out, 0, n_in).interpolation()).to(x)

    up_y, up_x = (matrix(n, r) for n, r in zip(x.shape[-2:], scales))
    with torch.autocast(x.device.type, enabled=False):
        return up_y @ x.float() @ up_x.T
