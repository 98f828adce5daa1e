"""The losses beside L1: of faint discs, adversarial, and perceptual by the features of a VGG network.

Tan, Zhu, Liò, AIAI 2020: L1 + 0.001 adversarial + 0.006 perceptual. Goodfellow et al., *GAN*, NIPS 2014; Ledig et al.,
*SRGAN*, CVPR 2017; Simonyan, Zisserman, *VGG*, ICLR 2015.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import ImageError, InputFileError, reason

MIN_SIZE = 16  # pixels an axis that survive VGG's four poolings


def faint(sr: Tensor, hr: Tensor, twins: int, size: tuple[int, int]) -> Tensor:
    """What outputs lose of faint discs: the mean of (1 - kept)² over the last `twins` images, which are the first with discs.

    Images are (N, 1, H, W). Kept is the part of the truth's change that the output shows, both averaged over each of the
    `size` input pixels. L1 alone irons out what is as faint as the noise, because that has the smallest error on average.
    """
    shown, there = (F.adaptive_avg_pool2d(image[-twins:] - image[:twins], size) for image in (sr, hr))
    kept = (shown * there).sum((1, 2, 3)) / (there**2).sum((1, 2, 3)).clamp_min(1e-9)
    return ((1 - kept) ** 2).mean()


def adversarial_generator(fake: Tensor) -> Tensor:
    """How well the discriminator tells fakes, by its logits (N,) for them: mean -log sigmoid(fake), ln 2 at a guess.

    Goodfellow's non-saturating form, whose gradient is largest where the discriminator is surest.
    """
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def adversarial_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's own loss, by its logits (N,) each: real should be 1 and fake 0; the sum, 2 ln 2 at a guess."""
    on_real = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    return on_real + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


@dataclass(frozen=True)
class _Vgg:
    """A published VGG: its convolutions' names, how many a block, and its units.

    The network's input is (image - mean) / std, a channel at a time, of images in [0, 1]; its features are divided by
    `feature_scale`.
    """

    convs: tuple[str, ...]
    blocks: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    feature_scale: float


_VGG16 = _Vgg(  # Oxford's weights: BGR, 0…255
    convs=tuple(f"block{b}_conv{c}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)),
    blocks=(2, 2, 3, 3, 3),
    mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    feature_scale=12.75,
)
_VGG19 = _Vgg(  # torchvision's: RGB, standardised
    convs=tuple(f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)),
    blocks=(2, 2, 4, 4, 4),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    feature_scale=1.0,
)
# What reading a file of weights that is damaged, or something else, may raise.
_DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, TypeError, LookupError, EOFError)
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
    so that 0.006 of it is 0.013 beside an L1 of 0.026; by 4, 0.030 beside 0.043. Undivided, it would be 80 times L1.
    torchvision's weights see standardised images, and their features are left as they are, as in ESRGAN, whose public logs
    (×4, BasicSR issue 204, mmagic issue 82) show mean absolute differences of 0.8…1.0: the same size. Not measured here.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._vgg, convs = _load(path)
        self._pooled = set(accumulate(self._vgg.blocks[:-1]))  # the convolutions that follow a pooling
        # Buffers that are not persistent: they move with the module, never learn, and stay out of checkpoints.
        for name, values in (("mean", self._vgg.mean), ("std", self._vgg.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        for k, (weight, bias) in enumerate(convs):
            self.register_buffer(f"weight{k}", weight, persistent=False)
            self.register_buffer(f"bias{k}", bias, persistent=False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The distance of (N, 1, H, W) images, black 0 and white 1: a float32 scalar, whose gradient reaches `sr` alone.

        Raises ImageError below 16 pixels an axis.
        """
        with torch.no_grad():
            target = self.features(hr)
        return self.distance(sr, target)

    def distance(self, sr: Tensor, target: Tensor) -> Tensor:
        """The same from images (N, 1, H, W) and the features that they should have, as `features` gives them."""
        return F.mse_loss(self.features(sr), target)

    def features(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 512, H // 16, W // 16), float32. Grey is clamped to [0, 1] and fed as all three colours."""
        if min(image.shape[-2:]) < MIN_SIZE:
            height, width = image.shape[-2:]
            raise ImageError(f"an image of {height}×{width} is too small for VGG: give {MIN_SIZE}×{MIN_SIZE} or more")
        x = (image.clamp(0, 1) - self.get_buffer("mean")) / self.get_buffer("std")  # (N, 3, H, W)
        for k in range(len(self._vgg.convs)):
            if k:
                x = F.relu(x)
            if k in self._pooled:
                x = F.max_pool2d(x, 2)
            x = F.conv2d(x, self.get_buffer(f"weight{k}"), self.get_buffer(f"bias{k}"), padding=1)
        return x.float() / self._vgg.feature_scale


def _load(path: Path) -> tuple[_Vgg, list[tuple[Tensor, Tensor]]]:
    """Which network a file holds, and each convolution's weight (out, in, 3, 3) and bias (out,), float32."""
    try:
        content = _read(path)
    except FileNotFoundError:
        raise InputFileError(f"{path} does not exist: {_HINT}") from None
    except OSError as error:
        raise InputFileError(f"{path} cannot be read ({error.strerror or reason(error)}): {_HINT}") from None
    except _DAMAGE:
        raise InputFileError(f"{path} is damaged, or no file of weights: {_HINT}") from None
    for vgg in (_VGG16, _VGG19):
        if content.keys() >= {f"{conv}.{part}" for conv in vgg.convs for part in ("weight", "bias")}:
            break
    else:
        raise InputFileError(f"{path} holds neither of the two networks that are known here: {_HINT}")
    convs = [(content[f"{conv}.weight"].float(), content[f"{conv}.bias"].float()) for conv in vgg.convs]
    c_in = 3
    for name, (weight, bias) in zip(vgg.convs, convs):
        if weight.shape[1:] != (c_in, 3, 3) or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise InputFileError(f"{path}: {name} has shapes {shapes}, which cannot follow {c_in} channels: {_HINT}")
        c_in = len(bias)
    return vgg, convs


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npz or the tensors of a PyTorch file, by name; neither runs code from it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch itself does not look at the checksums
                raise ValueError("a checksum differs")
            is_npz = all(name.endswith(".npy") for name in archive.namelist())
        if is_npz:
            with np.load(path) as arrays:
                return {name: torch.from_numpy(array) for name, array in arrays.items()}
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError("not a dictionary of tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
