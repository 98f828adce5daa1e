"""Meta-SR as its public code has it: a filter for each of ⌈r⌉² places of every pixel, the features repeated and unfolded.

Hu et al., *Meta-SR: A Magnification-Arbitrary Network for Super-Resolution*, CVPR 2019, whose code Meta-SRGAN's follows. Here
with a checkpoint of this project, so that both ways give the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from runtime import grid
from train import checkpoint
from train.generator import Generator, interpolate


def load(path: Path, threads: int) -> Callable[[NDArray[np.float32], Fraction], NDArray[np.float32]]:
    """A checkpoint's picture at one scale for both axes, computed as the public code does."""
    torch.set_num_threads(threads)
    upscale = formulation(checkpoint.load_generator(path)[0])
    return lambda image, scale: upscale(image, (scale, scale))


def formulation(generator: Generator) -> Callable[[NDArray[np.float32], grid.Scales], NDArray[np.float32]]:
    """A generator as a function (H, W) → (h, w) of an image, black 0 and white 1, computed the public way in float32."""
    config = generator.config
    # The public predictor has one layer after its hidden one, and filters that lie as (channel, tap), as unfold gives patches.
    hidden, relu, *linear = generator.upscale.predictor
    with torch.no_grad():
        weight, bias = linear[0].weight, linear[0].bias
        for layer in linear[1:]:
            weight, bias = layer.weight @ weight, layer.weight @ bias
        weight = weight.reshape(9, config.channels, -1).transpose(0, 1).reshape(9 * config.channels, -1)
        bias = bias.reshape(9, -1).T.reshape(-1)

    @torch.inference_mode()
    def upscale(image: NDArray[np.float32], scales: grid.Scales) -> NDArray[np.float32]:
        x = (torch.from_numpy(image)[None, None] - config.mean) / config.std
        features = generator.encode(x)
        height, width = image.shape
        rows, cols = (grid.project(n, r, config.projection) for n, r in zip(image.shape, scales))
        ny, nx = (math.ceil(r) for r in scales)

        # Every input pixel has ny·nx places for output pixels; some stay empty at scales that are no whole numbers. The public
        # code predicts filters for those too, and masks the picture at the end.
        places = [torch.from_numpy(a.source * n + a.rank) for a, n in ((rows, ny), (cols, nx))]
        offsets = [torch.ones(height * ny), torch.ones(width * nx)]
        for offset, place, axis in zip(offsets, places, (rows, cols)):
            offset[place] = torch.from_numpy(axis.offset.astype(np.float32))
        inverse = torch.tensor(grid.inverse_scales(scales, config.per_axis))
        position = torch.stack(torch.broadcast_tensors(*torch.meshgrid(*offsets, indexing="ij"), *inverse), -1)
        filters = F.linear(relu(hidden(position.reshape(-1, position.shape[-1]))), weight, bias)  # (H·ny·W·nx, 9C)

        filters = filters.reshape(height, ny, width, nx, -1).permute(1, 3, 0, 2, 4).reshape(ny * nx, height * width, -1)
        repeated = features.expand(ny * nx, -1, -1, -1).contiguous()
        patches = F.unfold(repeated, 3, padding=1).transpose(1, 2).contiguous()  # (ny·nx, H·W, 9C)
        out = torch.matmul(patches.unsqueeze(2), filters.unsqueeze(3))
        out = out.reshape(ny, nx, height, width).permute(2, 0, 3, 1).reshape(height * ny, width * nx)
        out = out[places[0][:, None], places[1]]
        if config.skip:
            out = out + interpolate(x, scales, config.projection)[0, 0]
        pixels: NDArray[np.float32] = (out * config.std + config.mean).numpy()
        return pixels

    return upscale
