"""Upscale the T1ce volume beside this file ×2.5 with the shipped model; write a NIfTI, and a picture to judge it by.

The volume is slices 11 to 17 of pyradiomics' test case `brain1` (BSD-3, see LICENSE-t1ce_thick.txt).
"""

from __future__ import annotations

import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from runtime import Upscaler, volume
from train import resample

SCALE = Fraction(5, 2)
SLICE = 5  # shows the tumour
DETAIL = (112, 132, 84, 84)  # row, column, height, width of the lower pictures, in input pixels


def picture(before: np.ndarray, bicubic: np.ndarray, ours: np.ndarray, white: float) -> Image.Image:
    """Input, bicubic and ours side by side: the whole slice above, a detail below."""
    row, col, height, width = (int(v * SCALE) for v in DETAIL)
    side = before.shape[1] * SCALE
    nearest = np.kron(before, np.ones((5, 5)))[::2, ::2]  # ×2.5
    font = ImageFont.load_default(22)
    sheet = Image.new("L", (3 * int(side) + 20, 2 * int(side) + 100))
    draw = ImageDraw.Draw(sheet)
    for k, (label, pixels) in enumerate({"input": nearest, "bicubic": bicubic, "ours": ours}.items()):
        grey = Image.fromarray(np.clip(pixels * (255 / white), 0, 255).astype(np.uint8))
        left = k * (int(side) + 10)
        draw.text((left + 8, 8), label, 255, font)
        sheet.paste(grey, (left, 40))
        detail = grey.crop((col, row, col + width, row + height)).resize((int(side), int(side)), Image.Resampling.NEAREST)
        sheet.paste(detail, (left, int(side) + 90))
        draw.text((left + 8, int(side) + 56), f"{label}, detail", 255, font)
    return sheet


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scan = volume.load(Path(__file__).with_name("t1ce_thick.nii.gz"))
    with Upscaler.load() as up:
        began = time.perf_counter()
        result = up.volume(scan, scale=SCALE)
        seconds = time.perf_counter() - began
        device = up.device
    volume.save(folder / "sr.nii.gz", result, overwrite=True)

    before, ours = (np.rot90(np.asarray(image.dataobj[..., SLICE], dtype=np.float32)) for image in (scan, result))
    bicubic = resample.upsample(np.ascontiguousarray(before), (SCALE, SCALE))
    picture(before, bicubic, ours, white=float(np.percentile(before, 99.5))).save(folder / "compare.png")

    spacing = " × ".join(f"{z:g}" for z in result.header.get_zooms())
    print(f"{scan.shape} → {result.shape}, voxels {spacing} mm, {seconds:.1f} s on {device}")
    print(f"wrote {folder / 'sr.nii.gz'} and {folder / 'compare.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo"))
