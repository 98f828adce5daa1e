"""A generator that rounds as the 8-bit trunk of `export.int8` does, so that training makes it bear the rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import data
from .config import Stage
from .generator import Generator

CALIBRATED = 64  # inputs, by which ranges are found


def calibration(stage: Stage) -> Stage:
    """The inputs by which ranges are found: a stage's own, whole patches, and as bright as the runtime makes them.

    Smaller or darker ones give ranges that clip: bicubic inputs at ×4 lost 0.08 dB.
    """
    return replace(stage, batch=1, faint=0.0, input_patch=0, augment=replace(stage.augment, gain=(1.0, 1.0)))


class Rounded(Generator):
    """A generator without batch norm, rounded from its first block to its tail, and itself in float as its `teacher`.

    Weights have 7 bits and a scale for each channel. Activations have 8 bits, between `ranges` (activations, 2), which `watch`
    finds. Parameters have the generator's names. The state has ranges and teacher too, all that a resumed run needs.
    """

    def __init__(self, teacher: Generator) -> None:
        super().__init__(teacher.config)
        self.load_state_dict(teacher.state_dict())
        self.teacher = teacher.requires_grad_(False)
        self.upscale.predictor[:3].requires_grad_(False)  # it is not in the trunk, and the teacher's serves better
        self.register_buffer("ranges", torch.zeros(4 * teacher.config.blocks + 3, 2))

    def encode(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        ranges = iter(self.get_buffer("ranges"))
        return self._trunk(x, told, lambda y: round_activation(y.float(), *next(ranges)), round_weight)

    def _trunk(
        self, x: Tensor, told: Tensor | None, activation: Callable[[Tensor], Tensor], weight: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`Generator.encode`, with a function of every activation that the exported graph rounds, and one of every weight."""

        def conv(x: Tensor, of: nn.Module) -> Tensor:
            return activation(F.conv2d(x, weight(of.get_parameter("weight")), of.get_parameter("bias"), padding=1))

        first = x = activation(self.first(x, told))
        for block in self.blocks:
            conv1, act, conv2 = (block.get_submodule(name) for name in ("conv1", "act", "conv2"))
            x = activation(x + conv(activation(act(conv(x, conv1))), conv2))
        return activation(first + conv(x, self.tail))

    @torch.no_grad()
    def watch(self, batches: Iterable[data.Batch]) -> Rounded:
        """Set the ranges by the float network: the means of the images' extremes, and 0, as export does. Returns itself."""
        ranges, extremes = self.get_buffer("ranges"), []

        def note(x: Tensor) -> Tensor:
            extremes.append(torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))], 1))  # (images, 2)
            return x

        for lr, _, told, _ in batches:
            x = (torch.from_numpy(lr) - self.config.mean) / self.config.std
            self._trunk(x, torch.from_numpy(told), note, lambda weight: weight)
        low, high = torch.stack([torch.cat(extremes[k :: len(ranges)]) for k in range(len(ranges))]).mean(1).T
        ranges.copy_(torch.stack([low.clamp(max=0), high.clamp(min=0)], 1))
        return self

    def mean_with_teacher(self, part: float) -> Rounded:
        """A copy whose weights are the mean with the teacher's, of which it has this part."""
        mean = copy.deepcopy(self)
        with torch.no_grad():
            for name, weight in self.teacher.named_parameters():
                mean.get_parameter(name).lerp_(weight, part)
        return mean

    def plain(self) -> Generator:
        """The generator of these weights, in float."""
        generator = Generator(self.config)
        state = self.state_dict()
        generator.load_state_dict({name: state[name] for name in generator.state_dict()})
        return generator


def round_activation(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x in 256 steps between two numbers, of which one may be 0; gradients pass between them."""
    step = (high - low).clamp(min=1e-12) / 255
    return torch.fake_quantize_per_tensor_affine(x, step, (-low / step).round().to(torch.int32), 0, 255)


def round_weight(weight: Tensor) -> Tensor:
    """The weights of a convolution in 7 bits with a scale for each output channel; gradients pass as if not rounded."""
    step = weight.detach().abs().amax((1, 2, 3)).clamp(min=1e-12) / 64
    return torch.fake_quantize_per_channel_affine(weight, step, torch.zeros_like(step, dtype=torch.int32), 0, -64, 64)
