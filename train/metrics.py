"""How close an image is to the truth. Images are (H, W), float32, scaled to [0, 1]; both are clamped to it first.

PSNR and SSIM are scikit-image's, which is imported by whoever scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from .losses import Perceptual

Image = NDArray[np.float32]
Distance = Callable[[Image, Image], float]  # (truth, image) of one shape
_WINDOW, _TISSUE = 7, 0.15  # pixels an axis, and a part of white


@dataclass(frozen=True)
class Measure:
    """A score, how it is written, and which end of it is good."""

    key: str
    label: str
    unit: str
    digits: int
    higher_is_better: bool
    how: str
    of: Distance


def psnr(truth: Image, image: Image) -> float:
    """Peak signal-to-noise ratio in dB, data range 1, both clamped to [0, 1]; infinity for equal images."""
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(np.clip(truth, 0, 1), np.clip(image, 0, 1), data_range=1.0))


def ssim(truth: Image, image: Image) -> float:
    """Mean structural similarity, data range 1, uniform 7×7 window, both clamped to [0, 1]; 7 pixels an axis or more."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(np.clip(truth, 0, 1), np.clip(image, 0, 1), data_range=1.0))


def ssim_of_tissue(truth: Image, image: Image) -> float:
    """The same where the truth shows tissue: the window's mean is above 15 % of white, or such pixels enclose it.

    The dark background, whose noise nobody wants back, does not count. NaN without tissue.
    """
    from scipy import ndimage
    from skimage.metrics import structural_similarity

    truth, image = np.clip(truth, 0, 1), np.clip(image, 0, 1)
    each = structural_similarity(truth, image, data_range=1.0, full=True)[1]
    tissue = ndimage.binary_fill_holes(ndimage.uniform_filter(truth, _WINDOW) > _TISSUE)
    inside = (slice(_WINDOW // 2, -(_WINDOW // 2)),) * 2
    return float(each[inside][tissue[inside]].mean()) if tissue[inside].any() else float("nan")


def perceptual(path: Path) -> Measure:
    """The distance of the features that `losses.Perceptual` computes with a file's weights. Raises InputFileError."""
    from .losses import Perceptual

    how = f"VGG distance: `train.losses.Perceptual`, features of {path}"
    return Measure("vgg", "VGG distance", "", 4, False, how, perceptual_with(Perceptual(path)))


def perceptual_with(network: Perceptual, device: torch.device | str = "cpu") -> Distance:
    """The same of a network that is loaded already, on its device. The last truth's features are kept for its other images."""
    import torch

    def tensor(image: Image) -> torch.Tensor:
        return torch.from_numpy(np.clip(image, 0, 1))[None, None].to(device)

    last: tuple[Image, torch.Tensor] | None = None

    @torch.no_grad()
    def distance(truth: Image, image: Image) -> float:
        nonlocal last
        if last is None or not np.array_equal(last[0], truth):
            last = truth.copy(), network.features(tensor(truth))
        return float(network.distance(tensor(image), last[1]))

    return distance


PSNR = Measure("psnr", "PSNR", "dB", 2, True, "PSNR in dB: data range 1, the whole crop, no border cut", psnr)
SSIM = Measure("ssim", "SSIM", "", 4, True, "SSIM: data range 1, uniform 7×7 window, wherever it fits into the crop", ssim)
TISSUE = Measure(
    "tissue",
    "SSIM of tissue",
    "",
    4,
    True,
    "SSIM of tissue: where the truth's 7×7 mean is above 15 % of white, or enclosed",
    ssim_of_tissue,
)
