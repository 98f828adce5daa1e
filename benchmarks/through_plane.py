"""Thick slices made thin again, in PSNR: `python -m benchmarks.through_plane VOLUME` prints what docs/through-plane.md has.

The volume's slices across an axis are averaged in groups (a box profile), upscaled as many times, and compared with
what they were made of.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from runtime import Upscaler, through_plane
from runtime.bundle import Bundle, array_bytes
from runtime.intensity import Intensity
from runtime.io import nifti
from runtime.upscaler import SHIPPED
from train import resample

Pixels = NDArray[np.float32]
ONE = Fraction(1)


def thick(pixels: Pixels, axis: int, scale: int) -> tuple[Pixels, Pixels]:
    """The slices that make whole groups, and the means of the groups; `axis` comes last."""
    moved = np.moveaxis(pixels, axis, -1)
    whole = moved[..., : moved.shape[-1] // scale * scale]
    return whole, whole.reshape(*whole.shape[:-1], -1, scale).mean(-1)


def ways(upscaler: Upscaler, told_one: Upscaler, low: Pixels, scale: int) -> Iterator[tuple[str, Pixels]]:
    """The thin slices by each way; the axis across which they lie is the last."""
    scales = (ONE, Fraction(scale))
    intensity = Intensity.of(low)
    for kernel in ("bilinear", "bicubic"):
        yield {"bilinear": "linear", "bicubic": "cubic"}[kernel], np.stack([resample.upsample(p, scales, kernel) for p in low])

    def planes(up: Upscaler, across: int) -> Pixels:
        moved = np.moveaxis(low, across, 0)
        return np.moveaxis(np.stack([up.slices.upscale(p, intensity, scales, np.float32) for p in moved]), 0, across)

    one, other = planes(upscaler, 0), planes(upscaler, 1)
    yield "one orientation", one
    yield "the other", other
    yield "averaged", (one + other) / 2
    yield "averaged, told one scale", (planes(told_one, 0) + planes(told_one, 1)) / 2
    cubic = np.stack([resample.upsample(p, scales) for p in low])
    yield "averaged, half cubic", (one + other) / 4 + cubic / 2
    yield "**ours**", through_plane.upscale(upscaler.slices, low, 2, Fraction(scale), intensity)


def psnr(truth: Pixels, image: Pixels) -> float:
    """dB, both in units of the truth's white (its 99.9th percentile) and clamped to [0, 1], over all voxels."""
    white = np.percentile(truth, 99.9)
    error = np.clip(truth / white, 0, 1) - np.clip(image / white, 0, 1)
    return float(-10 * np.log10(np.mean(error**2)))


def told_one_scale(bundle: Bundle) -> Bundle:
    """The bundle with a predictor of three inputs: the same weights, told one scale for both axes."""
    w1 = bundle.predictor().w1
    three = np.column_stack([w1[:, :2], w1[:, 2:].sum(1)])
    return replace(bundle, files={**bundle.files, "predictor/w1.npy": array_bytes(three)}, sha256="")


def orders(upscaler: Upscaler, pixels: Pixels, axis: int) -> Iterator[tuple[str, float]]:
    """×2 within slices and ×3 through them, in either order."""
    whole, low = thick(pixels, axis, 3)
    whole = whole[: whole.shape[0] // 2 * 2, : whole.shape[1] // 2 * 2]
    low = low[: whole.shape[0], : whole.shape[1]]
    small = [
        resample.downsample(np.ascontiguousarray(p), (Fraction(2), Fraction(2)), "bilinear") for p in np.moveaxis(low, 2, 0)
    ]
    image = nib.Nifti1Image(np.stack(small, -1), np.diag([2.0, 2.0, 3.0, 1.0]))

    def then(image: Any, *scales: tuple[int, int, int]) -> Pixels:
        for three in scales:
            image = upscaler.volume(image, three, axis=2)
        return np.asarray(image.dataobj)

    yield "through the plane first", psnr(whole, then(image, (1, 1, 3), (2, 2, 1)))
    yield "within the plane first", psnr(whole, then(image, (2, 2, 1), (1, 1, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--axis", type=int, default=2)
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--bundle", type=Path, default=Path(__file__).parents[1] / "runtime" / SHIPPED)
    args = parser.parse_args()
    pixels = np.asarray(nifti.load(args.volume).dataobj).astype(np.float32)
    bundle = Bundle.read(args.bundle)
    with Upscaler.load(bundle) as upscaler, Upscaler.load(told_one_scale(bundle)) as told_one:
        for k, scale in enumerate(args.scales):
            whole, low = thick(pixels, args.axis, scale)
            scores = {name: psnr(whole, image) for name, image in ways(upscaler, told_one, low, scale)}
            if not k:
                print("| thickness |", " | ".join(scores), "|")
                print("|---" * (len(scores) + 1) + "|")
            print(f"| ×{scale} |", " | ".join(f"{score:.2f}" for score in scores.values()), "|", flush=True)
        print()
        for name, score in orders(upscaler, pixels, args.axis):
            print(f"×2 within and ×3 through the plane, {name}: {score:.2f} dB")


if __name__ == "__main__":
    main()
