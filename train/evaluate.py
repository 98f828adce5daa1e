"""`python -m train.evaluate`: the paper's table. How bundles and checkpoints compare with bicubic interpolation, by scale,
degradation and subject; with --out also as JSON and in pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import runtime
from runtime import InputFileError, OutputFileError, ScaleError, command, grid, volume
from runtime.errors import reason
from runtime.files import check_output, write_atomically
from runtime.upscaler import SHIPPED

from . import data, metrics, report, resample
from .models import BICUBIC, Image, Model, Upscale, load_model
from .subjects import find_files
from .subjects import subjects as subjects_of
from .tables import require

SCALES = ("1.5", "2", "2.5", "3", "4")
MIN_CROP = 64  # pixels an axis: at ×4 there must be something left
PANEL_SCALES = tuple((r, r) for r in (Fraction(2), Fraction(5, 2), Fraction(4)))
PANEL_SUBJECTS = 3
VERSIONS = ("numpy", "pillow", "scikit-image", "onnxruntime", "onnxruntime-gpu", "torch", "matplotlib")


class Crop(NamedTuple):
    """A brain crop (H, W), black 0 and white about 1."""

    pixels: Image
    axes: str  # where its two axes lead, in nibabel's letters, or nothing
    middle: bool  # of its file's crops: what shows most of the brain


def load_subjects(folder: Path, subject: str | None = None, progress: bool = True) -> dict[str, list[Crop]]:
    """Every subject's brain crops of `MIN_CROP` pixels an axis or more; an empty list where a subject has none.

    `subject` as in `subjects.split_by_subject`. Raises InputFileError where no subject has any.
    """
    files = find_files(folder)
    names = subjects_of(folder, files, subject)
    subjects: dict[str, list[Crop]] = {name: [] for name in names}
    for file, name in tqdm([*zip(files, names)], desc="reading", unit="file", disable=not progress, leave=False):
        axes = volume_axes(file) if volume.is_nifti(file) else ""
        pixels = [crop.pixels for crop in data.load_crops([file], MIN_CROP, progress=False)]
        subjects[name] += [Crop(crop, axes, k == len(pixels) // 2) for k, crop in enumerate(pixels)]
    if not any(subjects.values()):
        raise InputFileError(f"{folder} holds no slice with a brain of {MIN_CROP}×{MIN_CROP} pixels: give larger images")
    return subjects


def volume_axes(file: Path) -> str:
    """Where the in-plane axes of a volume's slices lead, such as "LP"."""
    import nibabel

    image = volume.load(file)
    codes = [code or "?" for code in nibabel.aff2axcodes(image.affine)]
    if len(image.shape) > 2:
        del codes[volume.slice_axis(image)]
    return "".join(codes[:2])


def score_crop(
    upscales: Sequence[Upscale],
    hr: Image,
    scales: grid.Scales,
    kernel: resample.Kernel,
    measures: Sequence[metrics.Distance] = (metrics.psnr, metrics.ssim),
    noise: float = 0.0,
) -> NDArray[np.float64]:
    """(upscales, measures) of one crop (H, W) made smaller by exactly `scales`; NaN where a model does not serve them.

    `noise` is the standard deviation of Rician noise in the input, always the same noise; the truth has none of it.
    """
    lr = _input(hr, scales, kernel, noise)
    scores = np.full((len(upscales), len(measures)), np.nan)
    for m, upscale in enumerate(upscales):
        try:
            sr = upscale(lr, scales)
        except ScaleError:  # a network of one scale
            continue
        truth = hr[: sr.shape[0], : sr.shape[1]]
        scores[m] = [measure(truth, sr) for measure in measures]
    return scores


def _input(hr: Image, scales: grid.Scales, kernel: resample.Kernel, noise: float) -> Image:
    lr = resample.downsample(hr, scales, kernel)
    return resample.rician(lr, noise, np.random.default_rng(0)) if noise else lr


def evaluate(
    models: Sequence[Model],
    subjects: dict[str, list[Crop]],
    kernels: Sequence[resample.Kernel],
    scales: Sequence[grid.Scales],
    measures: Sequence[metrics.Measure] = (metrics.PSNR, metrics.SSIM),
    noise: float = 0.0,
    progress: bool = True,
) -> report.Results:
    """Score every model on every crop at every scale and kernel; subjects without a crop are left out."""
    subjects = {name: crops for name, crops in subjects.items() if crops}
    upscales = [model.upscale for model in models]
    scores = np.empty((len(kernels), len(scales), len(models), len(measures), len(subjects)))
    total = len(kernels) * len(scales) * sum(map(len, subjects.values()))
    with tqdm(total=total, desc="scoring", unit="crop", disable=not progress, leave=False) as bar:
        for k, s, n in np.ndindex(len(kernels), len(scales), len(subjects)):
            each = []
            for crop in [*subjects.values()][n]:
                each.append(score_crop(upscales, crop.pixels, scales[s], kernels[k], [m.of for m in measures], noise))
                bar.update()
            scores[k, s, :, :, n] = np.mean(each, axis=0)
    counts = {name: len(crops) for name, crops in subjects.items()}
    return report.Results(tuple(kernels), tuple(scales), tuple(models), tuple(measures), counts, scores)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of volumes or slices that nothing was trained on")
    add("--subject", metavar="REGEX", help="what in a file's path is its subject (default: a BIDS label, folders, or names)")
    add("--models", nargs="+", default=[], metavar="[NAME=]PATH", help="bundles and checkpoints (default: the shipped bundle)")
    add("--scales", nargs="+", default=SCALES, metavar="R", help="as 2.5 or 5/2, or 2,3 for rows and columns")
    add(
        "--kernels",
        nargs="+",
        default=resample.KERNELS,
        choices=resample.KERNELS,
        help="how inputs are made smaller (default: every way)",
    )
    add(
        "--noise", type=float, default=0.0, metavar="SIGMA", help="Rician noise in the inputs, as a part of white, such as 0.02"
    )
    add("--features", type=Path, metavar="PATH", help="VGG weights: adds the perceptual distance")
    add("--out", type=Path, metavar="FOLDER", help="folder for results.md, results.json and pictures")
    add("--force", action="store_true", help="replace files in --out")
    args = parser.parse_args(argv)
    called = shlex.join(["python", "-m", "train.evaluate", *(sys.argv[1:] if argv is None else argv)])
    return command.run(lambda: _evaluate(args, called))


def _evaluate(args: argparse.Namespace, called: str) -> None:
    scales = [*dict.fromkeys(map(_scales, args.scales))]
    require(0 <= args.noise <= 1, "--noise", args.noise, "a part of white from 0 to 1, such as 0.02")
    kernels: list[resample.Kernel] = [*dict.fromkeys(args.kernels)]
    # At which scales crops are shown: the paper's, or where none of them is scored, the first.
    panels = [(k, s) for k in kernels for s in [s for s in scales if s in PANEL_SCALES] or scales[:1]]
    if args.out:
        from . import figures  # matplotlib, whose absence is told before the long work, like a file in the way

        _check_folder(args.out, [*FILES, *(_panel_file(*panel) for panel in panels)], args.force)
    specs = args.models or [str(Path(runtime.__file__).with_name(SHIPPED))]
    models = [BICUBIC, *map(load_model, specs)]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InputFileError(f"two models are called {name}: give one another name, as in --models first=PATH second=PATH")
    measures = [metrics.PSNR, metrics.SSIM, *([metrics.perceptual(args.features)] if args.features else [])]
    progress = sys.stderr.isatty()
    subjects = load_subjects(args.data, args.subject, progress)

    results = evaluate(models, subjects, kernels, scales, measures, args.noise, progress)
    account = _account(args.data, subjects, results, args.noise, called)
    text = report.markdown(results, account["how"])
    print(text, end="")
    if not args.out:
        return
    content = {**account, "data": str(args.data), **report.as_json(results)}
    pictures = "\n\n".join(f"![{name}]({name})" for name in ["psnr_ssim.png", *(_panel_file(*panel) for panel in panels)])
    write = partial(_write, args.out, args.force)
    write("results.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode())
    write("results.md", f"# Evaluation\n\n{text}\n## Pictures\n\n{pictures}\n".encode())
    curves = figures.curves(results)
    for kind in ("png", "svg"):
        write(f"psnr_ssim.{kind}", partial(figures.save, curves, kind))
    middles = {name: [crop for crop in crops if crop.middle] for name, crops in subjects.items() if crops}
    shown = [(name, crops[len(crops) // 2]) for name, crops in middles.items()][:PANEL_SUBJECTS]
    for kernel, pair in tqdm(panels, desc="pictures", disable=not progress, leave=False):
        rows = [(name, _images(models, crop, pair, kernel, args.noise)) for name, crop in shown]
        figure = figures.panel(f"{report.name_of(pair)}, inputs made by {kernel}", rows)
        write(_panel_file(kernel, pair), partial(figures.save, figure, "png"))


FILES = ("results.json", "results.md", "psnr_ssim.png", "psnr_ssim.svg")


def _panel_file(kernel: str, scales: grid.Scales) -> str:
    return f"crops_{kernel}_{report.name_of(scales).replace('×', 'x').replace(',', '_')}.png"


def _check_folder(folder: Path, names: Sequence[str], force: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFileError(f"{folder} cannot be made a folder ({reason(error)}): name another --out") from None
    for name in names:
        check_output(folder / name, force)


def _write(folder: Path, force: bool, name: str, content: bytes | Callable[[Any], Any]) -> None:
    write_atomically(folder / name, content if callable(content) else lambda file: file.write(content), force)


def _scales(text: str) -> grid.Scales:
    pair = grid.parse_scales([*text.split(",")] if "," in text else text)
    if pair == (1, 1):
        raise ScaleError("scale 1 leaves nothing to be scored: give a larger one, such as 2")
    return pair


def _images(
    models: Sequence[Model], crop: Crop, scales: grid.Scales, kernel: resample.Kernel, noise: float = 0.0
) -> list[tuple[str, Image, str]]:
    """(heading, upright image, its score): the input, what each model that serves the scale makes of it, the truth."""
    from .figures import upright

    lr = _input(crop.pixels, scales, kernel, noise)
    truth = crop.pixels[tuple(slice(grid.output_size(n, r)) for n, r in zip(lr.shape, scales))]
    images = []
    for name, upscale in [("input, nearest", nearest), *((model.name, model.upscale) for model in models)]:
        try:
            sr = upscale(lr, scales)
        except ScaleError:
            continue
        images.append((name, sr, f"{metrics.psnr(truth, sr):.2f} dB, {metrics.ssim(truth, sr):.4f}"))
    images.append(("truth", truth, "PSNR, SSIM"))
    return [(heading, upright(np.clip(image, 0, 1), crop.axes), score) for heading, image, score in images]


def nearest(lr: Image, scales: grid.Scales) -> Image:
    """(H, W) → (H·p_y // q_y, W·p_x // q_x): every pixel as a block, to look at an input."""
    rows, cols = (grid.project(n, r, "centred").source for n, r in zip(lr.shape, scales))
    return lr[rows][:, cols]


def _account(
    folder: Path, subjects: dict[str, list[Crop]], results: report.Results, noise: float, called: str
) -> dict[str, Any]:
    """Where the numbers come from: sentences for people, and facts for programs."""
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    versions = {"metasrgan-edge": runtime.__version__, "python": platform.python_version()}
    versions |= {name: installed[name] for name in VERSIONS if name in installed}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    empty = [name for name, crops in subjects.items() if not crops]
    count = len(results.crops)
    how = [
        f"{sum(results.crops.values())} brain crops of {count} subject{'s' * (count > 1)} in {folder}: the smallest rectangle "
        f"with every pixel above 5 % of its slice's maximum, {MIN_CROP}×{MIN_CROP} or more, scaled to [0, 1] by its volume",
        *([f"no crop of that size, so left out: {', '.join(empty)}"] if empty else []),
        "colour is luminance (ITU-R BT.601) and JPEGs are averaged 2×2 before anything else",
        "inputs: the crop made smaller by exactly 1/r on the shared grid (`train.resample`), as a table's title says",
        *([f"Rician noise of {noise:g} of white in the inputs, none in the truth"] if noise else []),
        *(measure.how for measure in results.measures),
        "truth and output are clamped to [0, 1]; a score is the mean over a subject's crops, then over subjects"
        + (f", ± its standard error, s/√{count}" if count > 1 else ""),
        "bold: the best of its row; in brackets: the gain over bicubic in dB; –: a scale that the model does not serve",
        f"{date}, `{called}`",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return {"command": called, "date": date, "versions": versions, "subjects_without_crops": empty, "how": how}


if __name__ == "__main__":
    sys.exit(main())
