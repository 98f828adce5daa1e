"""`python -m train.evaluate`: how a bundle, served by `runtime` as a clinic would, compares with bicubic interpolation.

Ground truth is the brain crop of every slice that shows tissue, scaled to [0, 1] by its volume's range; inputs are made
from it by an antialiased resize by exactly 1/r. Scores are means over a subject's slices, then over subjects.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime import Upscaler, command, grid
from runtime.intensity import Intensity

from . import data, metrics, resample

SCALES = tuple(Fraction(s) for s in ("1.5", "2", "2.5", "3", "4"))
MIN_CROP = 64  # pixels an axis: at ×4 there must be something left


@dataclass(frozen=True)
class Row:
    """Mean scores of one scale and kernel: PSNR in dB and SSIM, of bicubic interpolation and of the bundle."""

    kernel: str
    scale: Fraction
    bicubic: tuple[float, float]
    bundle: tuple[float, float]


def evaluate(
    upscaler: Upscaler,
    folder: Path,
    scales: Sequence[Fraction] = SCALES,
    kernels: Sequence[resample.Kernel] = ("bilinear",),
    progress: bool = True,
) -> tuple[list[Row], int, int]:
    """One row a kernel and scale, and the numbers of subjects and of slices that they are means of."""
    subjects: dict[str, list[data.Image]] = defaultdict(list)
    files = data.find_files(folder)
    for file, subject in zip(files, data.subjects(folder, files)):
        subjects[subject] += data.load_crops([file], MIN_CROP, progress=False)
    rows = []
    unit = Intensity(low=0.0, high=np.inf, black=0.0, white=1.0)  # crops are scaled by their volume already
    cases = [(kernel, scale) for kernel in kernels for scale in scales]
    for kernel, scale in tqdm(cases, unit="case", disable=not progress, leave=False):
        both = (scale, scale)
        means = []
        for crops in subjects.values():
            scores = []
            for hr in crops:
                lr = resample.downsample(hr, both, kernel)
                ours, bicubic = upscaler.upscale_slice(lr, unit, both, np.float32), resample.upsample(lr, both)
                truth = hr[: ours.shape[0], : ours.shape[1]]
                scores.append([f(truth, sr) for sr in (bicubic, ours) for f in (metrics.psnr, metrics.ssim)])
            means.append(np.mean(scores, axis=0))
        mean = [float(v) for v in np.mean(means, axis=0)]
        rows.append(Row(kernel, scale, (mean[0], mean[1]), (mean[2], mean[3])))
    return rows, len(subjects), sum(map(len, subjects.values()))


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| input made by | scale | PSNR bicubic | PSNR ours | gain | SSIM bicubic | SSIM ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        gain = r.bundle[0] - r.bicubic[0]
        lines.append(
            f"| {r.kernel} | ×{float(r.scale):g} | {r.bicubic[0]:.2f} dB | {r.bundle[0]:.2f} dB | {gain:+.2f} dB "
            f"| {r.bicubic[1]:.4f} | {r.bundle[1]:.4f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of volumes or slices that nothing was trained on")
    parser.add_argument("--bundle", type=Path, help="the bundle to score (default: the shipped one)")
    parser.add_argument("--scales", nargs="+", default=[str(s) for s in SCALES], metavar="R")
    parser.add_argument("--kernels", nargs="+", default=["bilinear"], choices=("bilinear", "bicubic"))
    args = parser.parse_args(argv)
    return command.run(lambda: _score(args))


def _score(args: argparse.Namespace) -> None:
    scales = [grid.parse_scale(s) for s in args.scales]
    with Upscaler.load(args.bundle) as upscaler:
        rows, subjects, slices = evaluate(upscaler, args.data, scales, args.kernels, sys.stderr.isatty())
        print(f"{slices} brain crops of {subjects} subjects in {args.data}, bundle {upscaler.bundle.sha256[:12]}\n")
    print(markdown(rows))


if __name__ == "__main__":
    sys.exit(main())
