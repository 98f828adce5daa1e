"""How close an image is to the truth. Images are (H, W), float32, scaled to [0, 1]; both are clamped to it first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from .losses import Perceptual
from .resample import Image

_WINDOW, _TISSUE = 7, 0.15  # pixels an axis, and a part of white


@dataclass(frozen=True)
class Measure:
    """A score, how it is written, and which end of it is good. `of` gets the truth and an image of its shape."""

    key: str
    label: str
    of: Callable[[Image, Image], float]
    how: str
    unit: str = ""
    digits: int = 4
    higher_is_better: bool = True

    def score(self, hr: Image, sr: Image | None) -> float:
        """Of an output, than which the truth may be a few pixels larger; NaN where there is no output."""
        return np.nan if sr is None else self.of(hr[: sr.shape[0], : sr.shape[1]], sr)


def psnr(truth: Image, image: Image) -> float:
    """Peak signal-to-noise ratio in dB, data range 1; infinity for equal images."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(*np.clip((truth, image), 0, 1), data_range=1.0))


def ssim(truth: Image, image: Image) -> float:
    """Mean structural similarity, data range 1, uniform 7×7 window; 7 pixels an axis or more."""
    return float(structural_similarity(*np.clip((truth, image), 0, 1), data_range=1.0))


def ssim_of_tissue(truth: Image, image: Image) -> float:
    """The same where the truth shows tissue: the window's mean is above 15 % of white, or such pixels enclose it.

    The dark background, whose noise nobody wants back, does not count. NaN without tissue.
    """
    truth, image = np.clip((truth, image), 0, 1)
    each = structural_similarity(truth, image, data_range=1.0, full=True)[1]
    tissue = ndimage.binary_fill_holes(ndimage.uniform_filter(truth, _WINDOW) > _TISSUE)
    inside = (slice(_WINDOW // 2, -(_WINDOW // 2)),) * 2
    return float(each[inside][tissue[inside]].mean()) if tissue[inside].any() else np.nan


PSNR = Measure("psnr", "PSNR", psnr, "PSNR in dB: data range 1, the whole crop, no border cut", "dB", 2)
SSIM = Measure("ssim", "SSIM", ssim, "SSIM: data range 1, uniform 7×7 window, wherever it fits into the crop")
_WHERE = "SSIM of tissue: where the truth's 7×7 mean is above 15 % of white, or enclosed"
TISSUE = Measure("tissue", "SSIM of tissue", ssim_of_tissue, _WHERE)


def vgg(network: Perceptual, device: torch.device | str = "cpu") -> Measure:
    """The distance of a VGG's features, by a network on its device."""

    @torch.no_grad()
    def distance(truth: Image, image: Image) -> float:
        hr, sr = (torch.from_numpy(np.clip(side, 0, 1))[None, None].to(device) for side in (truth, image))
        return float(network(sr, hr))

    how = f"VGG distance: `train.losses.Perceptual`, features of {network.path}"
    return Measure("vgg", "VGG distance", distance, how, higher_is_better=False)
