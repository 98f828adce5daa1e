"""How bundles and checkpoints compare with bicubic interpolation, by input, scale, noise and
subject; with --out also as JSON and in pictures. --real, --discs and --coverage measure what such scores do not show.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import runtime
from runtime import OutputFileError, ScaleError, command, grid
from runtime.errors import reason
from runtime.files import check_output, write_atomically
from runtime.upscaler import SHIPPED

from . import degradations, figures, metrics, probes, scores
from .degradations import Degradation
from .losses import Perceptual
from .models import Model, load_models
from .scores import name_of, table
from .tables import require

VERSIONS = ("numpy", "pillow", "scikit-image", "onnxruntime", "onnxruntime-gpu", "torch", "matplotlib")
HOW_MADE = (
    f"a crop is the smallest rectangle with every pixel above 5 % of its slice's maximum, {scores.MIN_CROP} pixels an axis or "
    "more, scaled to [0, 1] by its volume; colour is luminance (ITU-R BT.601), JPEGs are averaged 2×2",
    "inputs: the crop made smaller by exactly 1/r (`train.resample`); scan: a scan of it with pixels r times as large, of "
    "whose k-space these fractions of rows and columns are measured through this window (`train.scanner`)",
    "noise: Rician, σ as a part of white, in the inputs and not in the truth",
    "bicubic interpolates the stored input; models are told: auto, the runtime's estimate from all inputs of a volume; true, "
    "the truth; stored, that all of it was measured",
)
HOW_SCORED = (
    "truth and output are clamped to [0, 1]; a score is the mean over a subject's crops, then over subjects, ± standard error",
    "bold: the best of its row; in brackets: the gain over bicubic; –: a scale that the model does not serve",
)
Findings = tuple[str, list[str], dict[str, Any], dict[str, bytes]]  # text, sentences on how, content, pictures by file's name


def main(argv: list[str] | None = None, prog: str = "python -m train.evaluate") -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="folder of volumes or slices that nothing was trained on")
    add("--subject", metavar="REGEX", help="what in a file's path is its subject (default: a BIDS label, folders, or names)")
    models = "bundles and checkpoints (default: the shipped bundle); @auto, @true or @stored is one's own --acquired, "
    models += "+grain1 its --grain, and a + at the end its --ensemble, as in @auto+grain0.5+"
    add("--models", nargs="+", metavar="[NAME=]PATH[@TOLD[+grainG]][+]", help=models)
    told = "what models are told was measured: auto, the runtime's estimate (default); true, the truth; stored, all of it"
    add("--acquired", default="auto", choices=("auto", "true", "stored"), help=told)
    add("--scales", nargs="+", default=("1.5", "2", "2.5", "3", "4"), metavar="R", help="as 2.5 or 5/2; 2,3: rows, columns")
    inputs = "how inputs are made: bilinear, bicubic, kspace; scan, 18 ways of a scanner; one of them, such as scan:.7,1:hard"
    add("--inputs", nargs="+", default=("bilinear", "bicubic", "kspace"), help=inputs)
    add("--noise", nargs="+", type=float, metavar="SIGMA", help="Rician noise in the inputs, as parts of white, such as 0 0.02")
    add("--crops", type=int, metavar="N", help="score so many crops of each subject, evenly from all of them (default: all)")
    add("--features", type=Path, metavar="PATH", help="VGG weights: adds the perceptual distance")
    instead = parser.add_mutually_exclusive_group().add_argument
    discs = "in place of scores: how much of faint discs is kept, 1 to 3 σ (default: of 3 %%)"
    instead("--discs", action="store_true", help=discs)
    held = "in place of scores: how often the truth lies within the uncertainty that bundles tell"
    instead("--coverage", action="store_true", help=held)
    real = "in place of scores: ripple and edges of real scans, volumes or folders of DICOM, which need no --data"
    instead("--real", nargs="+", type=Path, metavar="SCAN", help=real)
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
    require(args.crops is None or args.crops > 0, "--crops", args.crops, "1 or more")
    require(bool(args.real) != bool(args.data), "--data", args.data and str(args.data), "a folder, or --real SCAN; not both")
    named = [same for text in args.inputs for same in zip(*(degradations.named(text, level) for level in levels))]
    inputs = [*{d.name: d for same in named for d in same}.values()]
    if args.out:
        try:  # before the long work
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputFileError(f"{args.out} cannot be made a folder ({reason(error)}): name another --out") from None
        for name in ("results.json", "results.md"):
            check_output(args.out / name, args.force)
    models = load_models(args.models or [str(Path(runtime.__file__).with_name(SHIPPED))], args.acquired)
    made, how, content, pictures = _of_scans(args, models, scales) if args.real else _of_inputs(args, models, inputs, scales)

    rows = [["model", "told", "parameters", "bytes on disk", "multiply-adds an lr pixel", "served by", "file"]]
    for m in models:
        counts = (m.facts.get(key) for key in ("parameters", "bytes", "multiply_adds"))
        rows.append([m.name, m.told, *("–" if n is None else f"{n:,}" for n in counts), m.served_by, m.facts.get("file", "–")])
    installed = {str(d.metadata["Name"]).lower(): d.version for d in metadata.distributions()}
    versions = {"metasrgan-edge": runtime.__version__, "python": platform.python_version()}
    versions |= {name: installed[name] for name in VERSIONS if name in installed}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    how += [f"{date}, `{called}`", ", ".join(f"{name} {version}" for name, version in versions.items())]
    text = f"{made}## Models\n\n{table(rows)}## How it was measured\n\n" + "".join(f"- {line}\n" for line in how)
    print(text, end="")
    if args.out:
        text += "".join(["\n## Pictures\n", *(f"\n![{name}]({name})\n" for name in pictures)] if pictures else [])
        about = {"command": called, "date": date, "versions": versions, "how": how, "data": args.data and str(args.data)}
        facts = [{"name": m.name, "served_by": m.served_by, "told": m.told, **m.facts} for m in models]
        about |= {"models": facts, **content}
        plain = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False).encode()
        for name, written in {"results.json": plain, "results.md": f"# Evaluation\n\n{text}".encode(), **pictures}.items():
            write_atomically(args.out / name, written, args.force)


def _scales(text: str) -> grid.Scales:
    pair = grid.parse_scales([*text.split(",")] if "," in text else text)
    if pair == (1, 1):
        raise ScaleError("scale 1 leaves nothing to be scored: give a larger one, such as 2")
    return pair


def _file(*names: str) -> str:
    """The name of a picture of these."""
    return "_".join(names).replace("×", "x").replace(" %", "%").replace(" ", "_").replace(",", "_") + ".png"


def _of_scans(args: argparse.Namespace, models: Sequence[Model], scales: Sequence[grid.Scales]) -> Findings:
    for model in models:
        require(model.told != "true", "--acquired", "true", "auto or stored: nobody knows the truth of a real scan")
    scans = [scan for path in args.real for scan in probes.load_scans(path)]
    names = [scan.name for scan in scans]
    require(len({*names}) == len(names), "--real", ", ".join(names), "scans of different names")
    records, pictures = [], {}
    for scan, pair in product(scans, scales):
        found, panel = probes.examine(models, scan, pair)
        records += found
        title = scan.name, name_of(pair)
        if args.out:
            pictures[_file(*title)] = figures.panel(" ".join(title), panel, errors=False)
    ratios = scores.by_model(records, {key: scores.plain(key) for key in ("ripple", "edges")})
    return f"## Ripple in flat tissue and edges\n\n{ratios}", [*probes.HOW_REAL], {"scans": records}, pictures


def _of_inputs(
    args: argparse.Namespace, models: Sequence[Model], inputs: Sequence[Degradation], scales: Sequence[grid.Scales]
) -> Findings:
    subjects = scores.load_subjects(args.data, args.subject)
    counts = {name: min(len(crops), args.crops or len(crops)) for name, crops in subjects.items() if crops}
    empty = [name for name, crops in subjects.items() if not crops]
    several = f"{len(counts)} subject{'s' * (len(counts) > 1)} in {args.data}"
    how = [f"{sum(counts.values()):,} brain crops of {several}"]
    how += [f"no crop of that size, so left out: {', '.join(empty)}"] if empty else []
    how += HOW_MADE
    about: dict[str, Any] = {"subjects_without_crops": empty, "crops": counts}
    compared = scores.Comparison(models, subjects, inputs, scales, args.crops)
    if args.discs:
        kept = probes.keep_discs(compared)
        text = "## How much of faint discs is kept\n\n" + scores.by_model(kept, {"kept": scores.plain("kept")})
        return text, [*how, *probes.HOW_DISCS], {**about, "discs": kept}, {}
    if args.coverage:
        names = [model.name for model in models]
        require(any(model.interval for model in models), "--models", names, "a bundle that tells uncertainty")
        held = probes.hold_truths(compared)
        text = f"## What intervals hold\n\n{probes.coverage(held)}"
        return text, [*how, *probes.HOW_COVERAGE], {**about, "coverage": held}, {}
    measures = [metrics.PSNR, metrics.SSIM]
    measures += [metrics.TISSUE] if any(d.noise for d in inputs) else []  # nobody wants noise back
    measures += [metrics.vgg(Perceptual(args.features))] if args.features else []
    records, estimates, panels = scores.evaluate(compared, measures)
    about |= {"scores": records, "summary": scores.summary(records, measures), "estimates": estimates}
    shown, pictures = {names: rows for names, rows in panels.items() if not names[0].startswith("scan")}, {}
    if args.out and shown:
        pictures = {"gains.png": figures.gains(records, measures)}
        for (made, scale), rows in shown.items():
            pictures[_file("crops", made, scale)] = figures.panel(f"{scale}, inputs made by {made}", rows, errors=True)
    return scores.markdown(records, measures), [*how, *(measure.how for measure in measures), *HOW_SCORED], about, pictures


if __name__ == "__main__":
    sys.exit(main())
