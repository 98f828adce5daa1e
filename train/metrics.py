"""PSNR and SSIM of images scaled to [0, 1]: scikit-image's, over the whole image, no border cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def psnr(truth: NDArray[np.float32], image: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB, data range 1, both clamped to [0, 1]."""
    with np.errstate(divide="ignore"):  # equal images: infinity
        return float(peak_signal_noise_ratio(np.clip(truth, 0, 1), np.clip(image, 0, 1), data_range=1.0))


def ssim(truth: NDArray[np.float32], image: NDArray[np.float32]) -> float:
    """Mean structural similarity, data range 1, uniform 7×7 window, both clamped to [0, 1]."""
    return float(structural_similarity(np.clip(truth, 0, 1), np.clip(image, 0, 1), data_range=1.0))
