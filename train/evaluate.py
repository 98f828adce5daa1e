"""How bundles and checkpoints compare with bicubic interpolation, by input, scale, noise and
subject; with --out also as JSON and in pictures. --real and --discs measure what such scores do not show.
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
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import runtime
from runtime import OutputFileError, ScaleError, command, grid
from runtime.errors import reason
from runtime.files import check_output, write_atomically
from runtime.upscaler import SHIPPED

from . import degradations, figures, metrics, realscans, scores
from .data import Crop
from .degradations import Degradation
from .losses import Perceptual
from .models import Model, load_models
from .scores import name_of, table
from .tables import require

VERSIONS = ("numpy", "pillow", "scikit-image", "onnxruntime", "onnxruntime-gpu", "torch", "matplotlib")


class Findings(NamedTuple):
    text: str
    how: list[str]  # it was measured, a sentence each
    content: dict[str, Any]
    pictures: dict[str, bytes]  # by the name of their file


def main(argv: list[str] | None = None, prog: str = "python -m train.evaluate") -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="folder of volumes or slices that nothing was trained on")
    add("--subject", metavar="REGEX", help="what in a file's path is its subject (default: a BIDS label, folders, or names)")
    add(
        "--models",
        nargs="+",
        metavar="[NAME=]PATH[@TOLD]",
        help="bundles and checkpoints (default: the shipped bundle); @auto, @true or @stored behind one is its own --acquired",
    )
    add(
        "--acquired",
        default="auto",
        choices=("auto", "true", "stored"),
        help="what models are told of an input: what the runtime's estimate says was measured (the default), what is true, or "
        "nothing, so that all that is stored counts as measured",
    )
    add("--tell", type=float, default=1.0, metavar="FACTOR", help="tell models a σ so many times as large")
    add("--scales", nargs="+", default=("1.5", "2", "2.5", "3", "4"), metavar="R", help="as 2.5 or 5/2; 2,3: rows, columns")
    add(
        "--inputs",
        nargs="+",
        default=("bilinear", "bicubic", "kspace"),
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
    if args.out:
        _check_folder(args.out, args.force)  # before the long work
    models = load_models(args.models or [str(Path(runtime.__file__).with_name(SHIPPED))], args.acquired, args.tell)
    found = _of_scans(args, models, scales) if args.real else _of_inputs(args, models, inputs, scales)

    rows = [["model", "told", "parameters", "bytes on disk", "multiply-adds an lr pixel", "served by", "file"]]
    for m in models:
        counts = ("–" if n is None else f"{n:,}" for n in (m.parameters, m.bytes, m.multiply_adds))
        rows.append([m.name, m.told, *counts, m.served_by, m.file or "–"])
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    versions = {"metasrgan-edge": runtime.__version__, "python": platform.python_version()}
    versions |= {name: installed[name] for name in VERSIONS if name in installed}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    how = [*found.how, *[f"models are told a σ {args.tell:g} times as large"] * (args.tell != 1)]
    how += [f"{date}, `{called}`", ", ".join(f"{name} {version}" for name, version in versions.items())]
    text = f"{found.text}## Models\n\n{table(rows)}\n\n## How it was measured\n\n" + "".join(f"- {line}\n" for line in how)
    print(text, end="")
    if not args.out:
        return
    if linked := [name for name in found.pictures if name.endswith(".png")]:  # the svg is another form of one of them
        text += "\n## Pictures\n\n" + "\n\n".join(f"![{name}]({name})" for name in linked) + "\n"
    content = {"command": called, "date": date, "versions": versions, "how": how, "data": args.data and str(args.data)}
    content |= {"models": [model.facts for model in models], **found.content}
    plain = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()
    for name, written in {"results.json": plain, "results.md": f"# Evaluation\n\n{text}".encode(), **found.pictures}.items():
        write_atomically(args.out / name, methodcaller("write", written), args.force)


def _check_folder(folder: Path, force: bool) -> None:
    """Make the folder of --out, or raise OutputFileError where it holds results already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFileError(f"{folder} cannot be made a folder ({reason(error)}): name another --out") from None
    for name in ("results.json", "results.md"):
        check_output(folder / name, force)


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
    scans = [scan for path in args.real for scan in realscans.load_scans(path)]
    names = [scan.name for scan in scans]
    require(len({*names}) == len(names), "--real", ", ".join(names), "scans of different names")
    records, pictures = [], {}
    for scan, pair in product(scans, scales):
        record, panel = realscans.examine(models, scan, pair)
        records.append(record)
        title = scan.name, name_of(pair)
        if args.out:
            pictures[_file(*title)] = figures.panel(" ".join(title), panel, errors=False)
    return Findings(realscans.markdown(models, records), [*realscans.HOW_REAL], {"scans": records}, pictures)


def _of_inputs(
    args: argparse.Namespace, models: Sequence[Model], inputs: Sequence[Degradation], scales: Sequence[grid.Scales]
) -> Findings:
    measures = [metrics.PSNR, metrics.SSIM]
    measures += [metrics.TISSUE] if any(d.noise for d in inputs) else []  # the rest is noise that nobody wants back
    measures += [metrics.vgg(Perceptual(args.features))] if args.features else []
    subjects = scores.load_subjects(args.data, args.subject)
    compared = scores.Comparison(models, subjects, inputs, scales, args.crops)
    if args.discs:
        discs = realscans.keep_discs(compared)
        text = "## How much of faint discs is kept\n\n" + table(realscans.disc_rows(models, discs)) + "\n\n"
        return Findings(text, [*_how_made(args, subjects, inputs), *realscans.HOW_DISCS], {"discs": discs}, {})
    found = scores.evaluate(compared, measures)
    counts = {name: min(len(crops), args.crops or len(crops)) for name, crops in subjects.items() if crops}
    how = [
        *_how_made(args, subjects, inputs),
        *(measure.how for measure in measures),
        "truth and output are clamped to [0, 1]; a score is the mean over a subject's crops, then over subjects"
        + f", ± its standard error, s/√{len(counts)}" * (len(counts) > 1),
        "bold: the best of its row; in brackets: the gain over bicubic in dB; –: a scale that the model does not serve",
    ]
    empty = [name for name, crops in subjects.items() if not crops]
    content: dict[str, Any] = {"subjects_without_crops": empty, "crops": counts}
    content |= {"scores": found.records, "summary": scores.summary(found.records, measures), "estimates": found.estimates}
    pictures = {}
    panels = {names: rows for names, rows in found.panels.items() if not names[0].startswith("scan")}
    if args.out and panels:
        for kind in ("png", "svg"):
            pictures[f"gains.{kind}"] = figures.gains(found.records, measures, kind)
        for (made, scale), rows in panels.items():
            pictures[_file("crops", made, scale)] = figures.panel(f"{scale}, inputs made by {made}", rows, errors=True)
    return Findings(scores.markdown(found.records, measures), how, content, pictures)


def _how_made(args: argparse.Namespace, subjects: dict[str, list[Crop]], inputs: Sequence[Degradation]) -> list[str]:
    """Where the inputs come from."""
    counts = {name: len(crops) for name, crops in subjects.items()}
    empty = [name for name, count in counts.items() if not count]
    every, used = sum(counts.values()), sum(min(count, args.crops or count) for count in counts.values())
    several = len(counts) - len(empty)
    of = f" (of {every:,})" if used < every else ""
    kinds = {d.kind for d in inputs}
    said = {
        f"{used:,} brain crops{of} of {several} subject{'s' * (several > 1)} in {args.data}: the smallest "
        f"rectangle with every pixel above 5 % of its slice's maximum, {scores.MIN_CROP}×{scores.MIN_CROP} or more, scaled to "
        "[0, 1] by its volume": True,
        f"no crop of that size, so left out: {', '.join(empty)}": empty,
        "colour is luminance (ITU-R BT.601) and JPEGs are averaged 2×2 before anything else": True,
        "inputs: the crop made smaller by exactly 1/r on the shared grid (`train.resample`), as a table's title says": kinds
        - {"scan"},
        "inputs of a scanner (`train.scanner`): pixels r times as large, of whose k-space these fractions of rows and "
        "columns are measured, through this window; the rest are zeros, and the magnitude is stored": "scan" in kinds,
        "noise: Rician, σ as a part of white, in the inputs and not in the truth": any(d.noise for d in inputs),
        "bicubic interpolates the input as it is stored; what a model is told of it is in its row: auto, the runtime's "
        "estimate from all inputs of a volume; true, the truth; stored, nothing: all that is stored counts as measured": True,
    }
    return [sentence for sentence, applies in said.items() if applies]


if __name__ == "__main__":
    sys.exit(main())
