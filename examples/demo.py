"""Upscale the T1ce volume beside this file ×2.5 with the shipped model; write a NIfTI, and a picture to judge it by.

The volume is slices 11 to 17 of pyradiomics' test case `brain1` (BSD-3, see LICENSE-t1ce_thick.txt).
"""

from __future__ import annotations

import sys
import time
from fractions import Fraction
from pathlib import Path

from runtime import Upscaler, io, preview, volume
from runtime.sizes import Size

SCALE = Fraction(5, 2)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scan = io.read(Path(__file__).with_name("t1ce_thick.nii.gz"))
    result = volume.prepared(scan, Size(SCALE))
    with Upscaler.load() as up:
        began = time.perf_counter()
        acquired = volume.upscale(up.slices, scan, result)
        seconds = time.perf_counter() - began
        device = up.device
    io.write(folder / "sr.nii.gz", result, overwrite=True)
    preview.of(scan, result).save(folder / "compare.png")

    spacing = " × ".join(f"{z:g}" for z in result.spacing)
    print(f"{scan.shape} → {result.shape}, voxels {spacing} mm, {seconds:.1f} s on {device}")
    print(acquired.said(scan.shape))
    print(f"wrote {folder / 'sr.nii.gz'} and {folder / 'compare.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo"))
