"""The losses beside L1: of faint discs, adversarial by a discriminator, and perceptual by the features of a VGG network.

Tan, Zhu, Liò, AIAI 2020: L1 + 0.001 adversarial + 0.006 perceptual. Goodfellow et al., *GAN*, NIPS 2014; Ledig et al.,
*SRGAN*, CVPR 2017; Simonyan, Zisserman, *VGG*, ICLR 2015.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import ImageError, InputFileError

from . import checkpoint

MIN_SIZE = 16  # pixels an axis that survive VGG's four poolings
_STAGES = ((64, 64, 2), (64, 128, 1), (128, 128, 2), (128, 256, 1), (256, 256, 2), (256, 512, 1), (512, 512, 2))


def faint(sr: Tensor, hr: Tensor, twins: int, size: tuple[int, int]) -> Tensor:
    """What outputs lose of faint discs: the mean of (1 - kept)² over the last `twins` images, which are the first with discs.

    Images are (N, 1, H, W). Kept is the part of the truth's change that the output shows, both averaged over each of the
    `size` input pixels. L1 alone irons out what is as faint as the noise, because that has the smallest error on average.
    """
    shown, there = (F.adaptive_avg_pool2d(image[-twins:] - image[:twins], size) for image in (sr, hr))
    kept = (shown * there).sum((1, 2, 3)) / (there**2).sum((1, 2, 3)).clamp_min(1e-9)
    return ((1 - kept) ** 2).mean()


class Discriminator(nn.Module):
    """Does an image look like a real high-resolution one? SRGAN's, with a global average in place of flattened features.

    5,214,273 parameters; every convolution has a bias, also those before a batch norm: so the authors' count has it.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1), nn.LeakyReLU(0.2)]
        for c_in, c_out, stride in _STAGES:
            layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)  # (N, 1, H, W) → (N, 512, ⌈H/16⌉, ⌈W/16⌉)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(512, 1024, 1), nn.LeakyReLU(0.2), nn.Conv2d(1024, 1, 1), nn.Flatten(0)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) of any size, black 0 and white 1 → logits (N,), float32, high for real; the sigmoid is in the losses."""
        logits: Tensor = self.classifier(self.features(image)).float()
        return logits


def adversarial_generator(fake: Tensor) -> Tensor:
    """How well the discriminator tells fakes, by its logits (N,) for them: mean -log sigmoid(fake), ln 2 at a guess.

    Goodfellow's non-saturating form, whose gradient is largest where the discriminator is surest.
    """
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def adversarial_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's own loss, by its logits (N,) each: real should be 1 and fake 0; the sum, 2 ln 2 at a guess."""
    return adversarial_generator(real) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


class _Vgg(NamedTuple):
    """A published VGG: the names of its convolutions a block; its input is (image - mean) / std, of images in [0, 1]."""

    blocks: list[list[str]]
    mean: list[float]
    std: list[float]
    feature_scale: float  # that its features are divided by


_VGGS = (
    _Vgg(  # VGG-16, Oxford's weights: BGR, 0…255
        [[f"block{b}_conv{c}" for c in range(1, n + 1)] for b, n in enumerate((2, 2, 3, 3, 3), 1)],
        [103.939 / 255, 116.779 / 255, 123.68 / 255],
        [1 / 255] * 3,
        12.75,
    ),
    _Vgg(  # VGG-19, torchvision's: RGB, standardised
        [[f"features.{k}" for k in ks] for ks in ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28, 30, 32, 34))],
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
        1.0,
    ),
)
_HINT = (
    "give torchvision's VGG-19 weights (vgg19-dcbb9e9d.pth) or the project's VGG-16 (vgg16_conv_fp16.npz), "
    "or train without (perceptual = 0)"
)


class Perceptual(nn.Module):
    """Mean squared difference of two images' VGG features: the last convolution's, before its activation.

    `path` is a file of torchvision's VGG-19 weights or of Oxford's VGG-16 convolutions as .npz (`blockB_convC.weight` and
    `.bias`), told apart by content. Raises InputFileError for any other file.

    Scale. Features of Oxford's weights, which see 0…255, are large and divided by 12.75, as in SRGAN. On 31 random 96×96
    patches of T1ce brain crops, shrunk by 2 and enlarged again (bilinear), the distance is then 2.2 (1.1…4.7 over patches),
    so that 0.006 of it is 0.013 beside an L1 of 0.026. torchvision's weights see standardised images, and their features are
    left as they are, as in ESRGAN.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        content = checkpoint.read(path, _HINT)
        held = content.keys() if isinstance(content, dict) else ()
        known = [vgg for vgg in _VGGS if all(f"{c}.weight" in held and f"{c}.bias" in held for c in chain(*vgg.blocks))]
        if not known:
            raise InputFileError(f"{path} holds neither of the two networks that are known here: {_HINT}")
        self._vgg, c_in = known[0], 3
        layers: list[nn.Module] = []
        for names in self._vgg.blocks:
            layers.append(nn.MaxPool2d(2))
            for name in names:
                weight, bias = content[f"{name}.weight"].float(), content[f"{name}.bias"].float()
                if weight.shape[1:] != (c_in, 3, 3) or bias.shape != weight.shape[:1]:
                    shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                    raise InputFileError(f"{path}: {name} has shapes {shapes}, which cannot follow {c_in} channels: {_HINT}")
                conv = nn.Conv2d(c_in, len(bias), 3, padding=1)
                conv.load_state_dict({"weight": weight, "bias": bias})
                layers += [conv, nn.ReLU()]
                c_in = len(bias)
        self.layers = nn.Sequential(*layers[1:-1]).requires_grad_(False)
        for name, values in (("mean", self._vgg.mean), ("std", self._vgg.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The distance of (N, 1, H, W) images, black 0 and white 1: a float32 scalar, whose gradient reaches `sr` alone.

        Raises ImageError below 16 pixels an axis.
        """
        with torch.no_grad():
            target = self.features(hr)
        return F.mse_loss(self.features(sr), target)

    def features(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 512, H // 16, W // 16), float32. Grey is clamped to [0, 1] and fed as all three colours."""
        if min(image.shape[-2:]) < MIN_SIZE:
            height, width = image.shape[-2:]
            raise ImageError(f"an image of {height}×{width} is too small for VGG: give {MIN_SIZE}×{MIN_SIZE} or more")
        x: Tensor = self.layers((image.clamp(0, 1) - self.get_buffer("mean")) / self.get_buffer("std"))
        return x.float() / self._vgg.feature_scale
