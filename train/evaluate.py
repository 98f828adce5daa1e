"""How bundles and checkpoints compare with bicubic interpolation, by input, scale, noise and
subject; with --out also as JSON and in pictures. --real and --discs measure what such scores do not show.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import runtime
from runtime import InputFileError, OutputFileError, ScaleError, command, grid, volume
from runtime.acquired import Acquired
from runtime.errors import reason
from runtime.files import check_output, write_atomically
from runtime.preview import upright
from runtime.upscaler import SHIPPED

from . import data, degradations, metrics, realscans, report, resample
from .degradations import Degradation
from .models import BICUBIC, Image, Model, Told, Upscale, load_model
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
    volume: str = ""  # its file, for all crops of which one estimate is made


def load_subjects(folder: Path, subject: str | None = None, progress: bool = True) -> dict[str, list[Crop]]:
    """Every subject's brain crops of `MIN_CROP` pixels an axis or more; an empty list where a subject has none.

    `subject` as in `subjects.split_by_subject`. Raises InputFileError where no subject has any.
    """
    files = find_files(folder)
    names = subjects_of(folder, files, subject)
    subjects: dict[str, list[Crop]] = {name: [] for name in names}
    for file, name in tqdm([*zip(files, names)], desc="reading", unit="file", disable=not progress, leave=False):
        axes = realscans.axes_of(volume.load(file)) if volume.is_nifti(file) else ""
        pixels = [crop.pixels for crop in data.load_crops([file], MIN_CROP, progress=False)]
        subjects[name] += [Crop(crop, axes, k == len(pixels) // 2, str(file)) for k, crop in enumerate(pixels)]
    if not any(subjects.values()):
        raise InputFileError(f"{folder} holds no slice with a brain of {MIN_CROP}×{MIN_CROP} pixels: give larger images")
    return subjects


def score_crop(
    upscales: Sequence[Upscale],
    hr: Image,
    scales: grid.Scales,
    degradation: Degradation,
    measures: Sequence[metrics.Distance] = (metrics.psnr, metrics.ssim),
) -> NDArray[np.float64]:
    """(upscales, measures) of one crop (H, W) made an input of exactly 1/`scales`, of which models are told the truth."""
    told = [degradation.acquired] * len(upscales)
    return score(upscales, told, degradation.of(hr, scales), hr, scales, measures)


def score(
    upscales: Sequence[Upscale],
    told: Sequence[Acquired],
    lr: Image,
    hr: Image,
    scales: grid.Scales,
    measures: Sequence[metrics.Distance],
) -> NDArray[np.float64]:
    """(upscales, measures) of one input, of which each model is told something; NaN where a model does not serve the scales."""
    scores = np.full((len(upscales), len(measures)), np.nan)
    for m, (upscale, acquired) in enumerate(zip(upscales, told)):
        try:
            sr = upscale(lr, scales, acquired)
        except ScaleError:  # a network of one scale
            continue
        truth = hr[: sr.shape[0], : sr.shape[1]]
        scores[m] = [measure(truth, sr) for measure in measures]
    return scores


def evaluate(
    models: Sequence[Model],
    subjects: dict[str, list[Crop]],
    inputs: Sequence[Degradation],
    scales: Sequence[grid.Scales],
    measures: Sequence[metrics.Measure] = (metrics.PSNR, metrics.SSIM),
    count: int | None = None,
    factor: float = 1.0,
    progress: bool = True,
) -> report.Results:
    """Score every model on every crop at every scale and input; subjects without a crop are left out.

    With a `count`, so many crops of each subject are scored; estimates are made of all. `factor` is what σ is told times.
    """
    subjects = {name: crops for name, crops in subjects.items() if crops}
    upscales = [model.upscale for model in models]
    scores = np.empty((len(inputs), len(scales), len(models), len(measures), len(subjects)))
    scored = [data.evenly(range(len(crops)), count or len(crops)) for crops in subjects.values()]
    estimated = any(model.told == "auto" for model in models)
    estimates: dict[tuple[int, int, str], Acquired] = {}
    total = len(inputs) * len(scales) * sum(map(len, scored))
    with tqdm(total=total, desc="scoring", unit="crop", disable=not progress, leave=False) as bar:
        for d, s, n in np.ndindex(len(inputs), len(scales), len(subjects)):
            crops, each = [*subjects.values()][n], []
            lrs, found = degradations.inputs(crops, scored[n], inputs[d], scales[s], estimated)
            estimates |= {(d, s, name): acquired for name, acquired in found.items()}
            for k, lr in zip(scored[n], lrs):
                told = [model.hears(found.get(crops[k].volume), inputs[d].acquired, factor) for model in models]
                each.append(score(upscales, told, lr, crops[k].pixels, scales[s], [m.of for m in measures]))
                bar.update()
            scores[d, s, :, :, n] = np.mean(each, axis=0)
    counts = dict(zip(subjects, map(len, scored)))
    return report.Results(tuple(inputs), tuple(scales), tuple(models), tuple(measures), counts, scores, estimates)


def main(argv: list[str] | None = None, prog: str = "python -m train.evaluate") -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="folder of volumes or slices that nothing was trained on")
    add("--subject", metavar="REGEX", help="what in a file's path is its subject (default: a BIDS label, folders, or names)")
    add(
        "--models",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH[@TOLD]",
        help="bundles and checkpoints (default: the shipped bundle); @auto, @true or @stored behind one is its own --acquired",
    )
    add(
        "--acquired",
        default="auto",
        choices=get_args(Told),
        help="what models are told of an input: what the runtime's estimate says was measured (the default), what is true, or "
        "nothing, so that all that is stored counts as measured",
    )
    add("--tell", type=float, default=1.0, metavar="FACTOR", help="tell models a σ so many times as large")
    add("--scales", nargs="+", default=SCALES, metavar="R", help="as 2.5 or 5/2, or 2,3 for rows and columns")
    add(
        "--inputs",
        nargs="+",
        default=resample.KERNELS,
        metavar="INPUT",
        help="how inputs are made: bilinear, bicubic or kspace, which make the truth smaller (the default: all three); scan, "
        "for 18 ways of a scanner; scan:ROWS,COLUMNS:WINDOW for one, such as scan:.7,1:hard",
    )
    add("--noise", nargs="+", type=float, metavar="SIGMA", help="Rician noise in the inputs, as parts of white, such as 0 0.02")
    add("--crops", type=int, metavar="N", help="score so many crops of each subject, evenly from all of them (default: all)")
    add("--features", type=Path, metavar="PATH", help="VGG weights: adds the perceptual distance")
    add("--discs", action="store_true", help="in place of scores: how much of faint discs is kept, 1 to 3 σ (default: of 3 %%)")
    add(
        "--real",
        nargs="+",
        type=Path,
        metavar="SCAN",
        help="in place of scores: ripple and edges of real scans, volumes or folders of DICOM, which need no --data",
    )
    add("--out", type=Path, metavar="FOLDER", help="folder for results.md, results.json and pictures")
    add("--force", action="store_true", help="replace files in --out")
    args = parser.parse_args(argv)
    called = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    return command.run(lambda: _evaluate(args, called))


def _evaluate(args: argparse.Namespace, called: str) -> None:
    scales = [*dict.fromkeys(map(_scales, args.scales))]
    levels = [*dict.fromkeys(args.noise or [0.03 if args.discs else 0.0])]
    for level in levels:
        fits = 0 <= level <= 1 and (level > 0 or not args.discs)
        require(fits, "--noise", level, "parts of white up to 1, such as 0.02" + ", above 0 for --discs" * args.discs)
    require(args.tell >= 0, "--tell", args.tell, "a factor, such as 2")
    require(args.crops is None or args.crops > 0, "--crops", args.crops, "1 or more")
    require(bool(args.real) != bool(args.data), "--data", args.data and str(args.data), "a folder, or --real SCAN; not both")
    named = [same for text in args.inputs for same in zip(*(degradations.named(text, level) for level in levels))]
    inputs = [*{d.name: d for same in named for d in same}.values()]
    if args.real:
        _real(args, scales, called)
    elif args.discs:
        _discs(args, inputs, scales, called)
    else:
        _scores(args, inputs, scales, called)


def _scores(args: argparse.Namespace, inputs: list[Degradation], scales: list[grid.Scales], called: str) -> None:
    # At which scales crops are shown: the paper's, or where none of them is scored, the first. Scans have no pictures here.
    shrunk = [d for d in inputs if d.kind != "scan"]
    panels = [(d, s) for d in shrunk for s in [s for s in scales if s in PANEL_SCALES] or scales[:1]]
    curves = CURVES if shrunk else ()
    if args.out:
        from . import figures  # matplotlib, whose absence is told before the long work, like a file in the way

        _check_folder(args.out, [*FILES, *curves, *(_panel_file(*panel) for panel in panels)], args.force)
    models = _models(args)
    measures = [metrics.PSNR, metrics.SSIM]
    measures += [metrics.TISSUE] if any(d.noise for d in inputs) else []  # the rest is noise that nobody wants back
    measures += [metrics.perceptual(args.features)] if args.features else []
    progress = sys.stderr.isatty()
    subjects = load_subjects(args.data, args.subject, progress)

    results = evaluate(models, subjects, inputs, scales, measures, args.crops, args.tell, progress)
    how = [
        *_how_made(args, subjects, results.crops, inputs),
        *(measure.how for measure in results.measures),
        "truth and output are clamped to [0, 1]; a score is the mean over a subject's crops, then over subjects"
        + (f", ± its standard error, s/√{len(results.crops)}" if len(results.crops) > 1 else ""),
        "bold: the best of its row; in brackets: the gain over bicubic in dB; –: a scale that the model does not serve",
    ]
    pictures = [*curves[:1], *(_panel_file(*panel) for panel in panels)]
    content = {"subjects_without_crops": [name for name, crops in subjects.items() if not crops], **report.as_json(results)}
    _hand_out(args, called, report.markdown(results), how, content, pictures)
    if not args.out:
        return
    write = partial(_write, args.out, args.force)
    if shrunk:
        drawn = figures.curves(results)
        for name in curves:
            write(name, partial(figures.save, drawn, name[-3:]))
    middles = {name: [crop for crop in crops if crop.middle] for name, crops in subjects.items() if crops}
    shown = [(name, crops[len(crops) // 2]) for name, crops in middles.items()][:PANEL_SUBJECTS]
    for degradation, pair in tqdm(panels, desc="pictures", disable=not progress, leave=False):
        rows = []
        for name, crop in shown:
            estimate = results.estimates.get((inputs.index(degradation), scales.index(pair), crop.volume))
            rows.append((name, _images(models, crop, pair, degradation, estimate, args.tell)))
        figure = figures.panel(f"{report.name_of(pair)}, inputs made by {degradation.name}", rows)
        write(_panel_file(degradation, pair), partial(figures.save, figure, "png"))


def _discs(args: argparse.Namespace, inputs: list[Degradation], scales: list[grid.Scales], called: str) -> None:
    if args.out:
        _check_folder(args.out, FILES, args.force)
    models, progress = _models(args), sys.stderr.isatty()
    subjects = load_subjects(args.data, args.subject, progress)
    crops = {name: data.evenly(range(len(crops)), args.crops or len(crops)) for name, crops in subjects.items()}
    records = realscans.keep_discs(models, subjects.values(), crops.values(), inputs, scales, args.tell, progress)
    how = [*_how_made(args, subjects, {name: len(k) for name, k in crops.items() if k}, inputs), *realscans.HOW_DISCS]
    text = "## How much of faint discs is kept\n\n" + report.table(realscans.disc_rows(models, records)) + "\n\n"
    text += report.models_table(models)
    _hand_out(args, called, text, how, {"models": report.facts(models), "discs": records})


def _real(args: argparse.Namespace, scales: list[grid.Scales], called: str) -> None:
    scans = [scan for path in args.real for scan in realscans.load_scans(path)]
    names = [scan.name for scan in scans]
    require(len({*names}) == len(names), "--real", ", ".join(names), "scans of different names")
    pictures = {(s, pair): f"{s}_{_in_file(report.name_of(pair))}.png" for s in names for pair in scales}
    if args.out:
        from . import figures

        _check_folder(args.out, [*FILES, *pictures.values()], args.force)
    models = _models(args)
    for model in models:
        require(model.told != "true", "--acquired", "true", "auto or stored: nobody knows the truth of a real scan")
    progress = sys.stderr.isatty()
    found = [
        realscans.examine(models, scan, pair, args.tell)
        for scan, pair in tqdm([(a, b) for a in scans for b in scales], disable=not progress, leave=False)
    ]
    text = realscans.markdown(models, found) + report.models_table(models)
    content = {"models": report.facts(models), "scans": [scan.record for scan in found]}
    _hand_out(args, called, text, realscans.HOW_REAL, content, [*pictures.values()])
    if args.out:
        for scan in found:
            figure = figures.crops(f"{scan.name} {report.name_of(scan.scales)}", scan.crops)
            _write(args.out, args.force, pictures[scan.name, scan.scales], partial(figures.save, figure, "png"))


FILES = ("results.json", "results.md")
CURVES = ("psnr_ssim.png", "psnr_ssim.svg")


def _models(args: argparse.Namespace) -> list[Model]:
    specs = args.models or [str(Path(runtime.__file__).with_name(SHIPPED))]
    models = [BICUBIC, *(load_model(spec, args.acquired) for spec in specs)]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InputFileError(f"two models are called {name}: give one another name, as in --models first=PATH second=PATH")
    return models


def _hand_out(
    args: argparse.Namespace,
    called: str,
    text: str,
    how: Iterable[str],
    content: dict[str, Any],
    pictures: Sequence[str] = (),
) -> None:
    """Print what was found and how, and write both where --out says, with links to the pictures that follow."""
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    versions = {"metasrgan-edge": runtime.__version__, "python": platform.python_version()}
    versions |= {name: installed[name] for name in VERSIONS if name in installed}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    how = [
        *how,
        *([f"models are told a σ {args.tell:g} times as large"] if args.tell != 1 else []),
        f"{date}, `{called}`",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    text += "\n## How it was measured\n\n" + "".join(f"- {line}\n" for line in how)
    print(text, end="")
    if not args.out:
        return
    whole = {"command": called, "date": date, "versions": versions, "how": how, "data": args.data and str(args.data), **content}
    _write(args.out, args.force, "results.json", json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False).encode())
    if pictures:
        text += "\n## Pictures\n\n" + "\n\n".join(f"![{name}]({name})" for name in pictures) + "\n"
    _write(args.out, args.force, "results.md", f"# Evaluation\n\n{text}".encode())


def _panel_file(degradation: Degradation, scales: grid.Scales) -> str:
    return f"crops_{_in_file(degradation.name)}_{_in_file(report.name_of(scales))}.png"


def _in_file(name: str) -> str:
    """A name as part of a file's."""
    return name.replace("×", "x").replace(" %", "%").replace(" ", "_").replace(",", "_")


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
    models: Sequence[Model],
    crop: Crop,
    scales: grid.Scales,
    degradation: Degradation,
    estimate: Acquired | None = None,
    factor: float = 1.0,
) -> list[tuple[str, Image, str]]:
    """(heading, upright image, its score): the input, what each model that serves the scale makes of it, the truth."""
    lr = degradation.of(crop.pixels, scales)
    truth = crop.pixels[tuple(slice(grid.output_size(n, r)) for n, r in zip(lr.shape, scales))]
    outputs = [("input, nearest", nearest(lr, scales))]
    for model in models:
        sr = model.output(lr, scales, model.hears(estimate, degradation.acquired, factor))
        outputs += [(model.name, sr)] if sr is not None else []
    images = [(name, sr, f"{metrics.psnr(truth, sr):.2f} dB, {metrics.ssim(truth, sr):.4f}") for name, sr in outputs]
    images.append(("truth", truth, "PSNR, SSIM"))
    return [(heading, upright(np.clip(image, 0, 1), crop.axes), score) for heading, image, score in images]


def nearest(lr: Image, scales: grid.Scales) -> Image:
    """(H, W) → (H·p_y // q_y, W·p_x // q_x): every pixel as a block, to look at an input."""
    rows, cols = (grid.project(n, r, "centred").source for n, r in zip(lr.shape, scales))
    return lr[rows][:, cols]


def _how_made(
    args: argparse.Namespace, subjects: dict[str, list[Crop]], crops: dict[str, int], inputs: Sequence[Degradation]
) -> list[str]:
    """Where the inputs come from, a sentence each."""
    empty = [name for name, its in subjects.items() if not its]
    every = sum(map(len, subjects.values()))
    of = f" (of {every:,})" if sum(crops.values()) < every else ""
    kinds = {d.kind for d in inputs}
    return [
        f"{sum(crops.values()):,} brain crops{of} of {len(crops)} subject{'s' * (len(crops) > 1)} in {args.data}: the smallest "
        f"rectangle with every pixel above 5 % of its slice's maximum, {MIN_CROP}×{MIN_CROP} or more, scaled to [0, 1] by its "
        "volume",
        *([f"no crop of that size, so left out: {', '.join(empty)}"] if empty else []),
        "colour is luminance (ITU-R BT.601) and JPEGs are averaged 2×2 before anything else",
        *(
            ["inputs: the crop made smaller by exactly 1/r on the shared grid (`train.resample`), as a table's title says"]
            * bool(kinds - {"scan"})
        ),
        *(
            [
                "inputs of a scanner (`train.scanner`): pixels r times as large, of whose k-space these fractions of rows and "
                "columns are measured, through this window; the rest are zeros, and the magnitude is stored"
            ]
            * ("scan" in kinds)
        ),
        *(["noise: Rician, σ as a part of white, in the inputs and not in the truth"] * any(d.noise for d in inputs)),
        "bicubic interpolates the input as it is stored; what a model is told of it is in its row: auto, the runtime's "
        "estimate from all inputs of a volume; true, the truth; stored, nothing: all that is stored counts as measured",
    ]


if __name__ == "__main__":
    sys.exit(main())
