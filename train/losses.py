"""The losses beside L1: of faint discs, adversarial by a discriminator, and perceptual by the features of a VGG network.

Goodfellow et al., *GAN*, NIPS 2014; Ledig et al., *SRGAN*, CVPR 2017; Simonyan, Zisserman, *VGG*, ICLR 2015.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import ImageError, InputFileError

from . import checkpoint

MIN_SIZE = 16  # pixels an axis that survive VGG's four poolings
_STAGES = ((64, 64, 2), (64, 128, 1), (128, 128, 2), (128, 256, 1), (256, 256, 2), (256, 512, 1), (512, 512, 2))


def faint(sr: Tensor, hr: Tensor, twins: int, size: tuple[int, int]) -> Tensor:
    """What outputs (N, 1, H, W) lose of faint discs: mean (1 - kept)² over the last `twins` images, the first ones with discs.

    Kept is the part of the truth's change that the output shows, both averaged over each of the `size` input pixels.
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
    """Goodfellow's non-saturating form: mean -log sigmoid of the discriminator's logits (N,) for fakes, ln 2 at a guess."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def adversarial_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's own loss, by its logits (N,) each: real should be 1 and fake 0; the sum, 2 ln 2 at a guess."""
    return adversarial_generator(real) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


# Two published VGGs: the names of their convolutions by block, mean and std of their inputs, and what features are divided by.
_OXFORD = [[f"block{b}_conv{c}" for c in range(1, n + 1)] for b, n in enumerate((2, 2, 3, 3, 3), 1)]
_TORCHVISION = [[f"features.{k}" for k in ks] for ks in ((0, 2), (5, 7), range(10, 17, 2), range(19, 26, 2), range(28, 35, 2))]
_VGGS = (
    (_OXFORD, [103.939 / 255, 116.779 / 255, 123.68 / 255], [1 / 255] * 3, 12.75),  # VGG-16: BGR, 0…255
    (_TORCHVISION, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 1.0),  # VGG-19: RGB, standardised
)
_HINT = (
    "give torchvision's VGG-19 weights (vgg19-dcbb9e9d.pth) or the project's VGG-16 (vgg16_conv_fp16.npz), "
    "or train without (perceptual = 0)"
)


class Perceptual(nn.Module):
    """Mean squared difference of two images' VGG features: the last convolution's, before its activation.

    `path` is a file of torchvision's VGG-19 weights or of Oxford's VGG-16 convolutions as .npz (`blockB_convC.weight` and
    `.bias`), told apart by content. Raises InputFileError for any other file. Features of Oxford's weights are divided by
    12.75, as in SRGAN: 0.006 of the distance is then about half of the L1 loss. torchvision's are left, as in ESRGAN.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        content = checkpoint.read(path, _HINT)
        held = content.keys() if isinstance(content, dict) else ()
        known = [vgg for vgg in _VGGS if all(f"{c}.weight" in held and f"{c}.bias" in held for c in chain(*vgg[0]))]
        if not known:
            raise InputFileError(f"{path} holds neither of the two networks that are known here: {_HINT}")
        blocks, mean, std, scale = known[0]
        layers: list[nn.Module] = []
        c_in, self.scale = 3, scale
        for names in blocks:
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
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The distance of (N, 1, H, W) images, black 0 and white 1: a float32 scalar, whose gradient reaches `sr` alone.

        Raises ImageError below 16 pixels an axis.
        """
        return F.mse_loss(self.features(sr), self.features(hr.detach()))

    def features(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 512, H // 16, W // 16), float32. Grey is clamped to [0, 1] and fed as all three colours."""
        if min(image.shape[-2:]) < MIN_SIZE:
            height, width = image.shape[-2:]
            raise ImageError(f"an image of {height}×{width} is too small for VGG: give {MIN_SIZE}×{MIN_SIZE} or more")
        x: Tensor = self.layers((image.clamp(0, 1) - self.get_buffer("mean")) / self.get_buffer("std"))
        return x.float() / self.scale
