"""`metasrgan qa`: acceptance criteria on a site's own scans and on a digital phantom, as one HTML page."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from fractions import Fraction
from operator import methodcaller
from pathlib import Path

from tqdm import tqdm

from .. import __version__, cohort, command, grid, io, job, sidecar, sizes
from ..engines import DEVICES
from ..errors import InputFileError, MetasrganError, ScaleError, line, told
from ..files import check_output, write_atomically
from ..upscaler import MODELS
from . import judge, phantom, report, scans

FORMAT = "metasrgan-edge site test"
LARGEST = 4  # scale: what networks are trained for


def qa(argv: list[str], prog: str) -> None:
    """Write the page and, beside it, its numbers as JSON. Raises MetasrganError where a criterion is not passed, too."""
    args = _parser(prog).parse_args(argv)
    scale, numbers = _scale(args.scale), sidecar.beside(args.out)
    for path in (args.out, numbers):
        check_output(path, args.overwrite)
    tasks = find(args.input)
    command.warn_of_inventions(args.bundle)
    with job.Computer(args.bundle, args.device, args.threads, args.cache_dir).load() as upscaler:
        series = []
        for task, problem in tqdm(tasks.items(), unit="series", disable=args.quiet or None, leave=False):
            figures, picture = None, None
            try:
                if not problem:
                    figures, picture = scans.examine(io.read(task.source, task.series), upscaler, (scale, scale))
            except (MetasrganError, OSError, MemoryError) as error:
                problem = told(error)
            series.append(report.Tested(_name(task, args.input), figures, picture, problem.replace(f"{args.input}/", "")))
        tested = [each.figures for each in series if each.figures]
        if not tested:
            raise InputFileError(f"{args.input} holds no series that can be tested. {series[0].name}: {series[0].problem}")
        outcome = phantom.examine(lambda image: upscaler(image, scale), scale)
        network = str(args.bundle or MODELS[0]), upscaler.runs_on
    criteria = [*judge.of_scans(tested), *judge.of_phantom(outcome)]
    verdict, time = judge.overall(criteria), sidecar.time_stamp(deterministic=False)
    folder = args.input.resolve().name
    facts = folder, f"{len(tested)} series", sizes.written([scale]), *network, f"metasrgan-edge {__version__}", time["time"]
    content = {
        "format": FORMAT,
        "verdict": verdict,
        "folder": folder,
        "scale": str(scale),
        "network": network,
        "software": f"metasrgan-edge {__version__}",
        **time,
        "criteria": [{**asdict(each), "source": each.source} for each in criteria],
        "series": [
            {"name": each.name, **(asdict(each.figures) if each.figures else {"problem": each.problem})} for each in series
        ],
        "phantom": [asdict(kept) for kept in outcome.kept],
    }
    page = report.page(facts, verdict, criteria, series, outcome, scale).encode("utf-8", "backslashreplace")
    write = methodcaller("write", page)
    write_atomically(
        args.out, write, args.overwrite, lambda finished: sidecar.write_json(numbers, content, args.overwrite), args.input
    )
    if failed := [each.name for each in criteria if each.passed is False]:
        raise MetasrganError(f"{verdict}, as {args.out} shows: {'; '.join(failed)}")
    if not args.quiet:
        print(f"{verdict}, as {args.out} shows")


def find(path: Path) -> dict[job.Task, str]:
    """All series in a folder and the folders in it, each with the reason if it cannot be tested. Raises InputFileError."""
    found: dict[job.Task, str] = {}
    for source in _sources(path):
        try:
            planned = cohort.plan([source], source.parent)
            found |= {task: result.problem if result else "" for task, result in planned.items()}
        except MetasrganError as error:  # a library that is missing
            found[job.Task(source, source)] = told(error)
    if not found:
        raise InputFileError(f"{path} holds no file of a known format: give a folder of {', '.join(io.READ)} or DICOM")
    return found


def _sources(path: Path) -> list[Path]:
    """What inputs of the command line would be: files, and of DICOM the folders in `path`, or `path` where slices lie in it."""
    if not path.is_dir():
        io.kind(path)
        return [path]
    found: dict[Path, None] = {}
    for file in io.files_of(path):
        try:
            is_slice = io.kind(file) == "dicom" and file.suffix.lower() != ".zip"
        except InputFileError:  # a licence, a sidecar, the pixels of a detached header
            continue
        within = file.relative_to(path).parts[:-1]
        found[path.joinpath(*within[:1]) if is_slice else file] = None
    return [path, *filter(Path.is_file, found)] if path in found else [*found]


def _name(task: job.Task, path: Path) -> str:
    """A series by where it lies in the folder, without the folder's own name."""
    name = task.source.name if task.source == path else task.source.relative_to(path)
    return line(f"{name}, series {task.number}" if task.number else name, 200)


def _scale(text: str) -> Fraction:
    scale = grid.parse_scale(text)
    if not 1 < scale <= LARGEST:
        raise ScaleError(f"scale {text} is not tested: give more than 1, and at most {LARGEST}, such as 2")
    return scale


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Exit status: 0 where all criteria passed, 1 where one did not, or after an error.",
    )
    add = parser.add_argument
    add("input", type=Path, metavar="FOLDER", help=f"the site's own series: {', '.join(io.READ)}, DICOM, also in folders")
    add("-o", "--out", type=Path, default=Path("qa.html"), help="the page; its numbers come beside it (default: qa.html)")
    add("--scale", default="2", metavar="R", help=f"more than 1, at most {LARGEST} (default: 2)")
    command.add_bundle_options(parser)
    add("--device", default="auto", help=f"one of {', '.join(DEVICES)} (default: auto)")
    add("--threads", type=int, help="processor threads (default: all that this process may use)")
    add("--force", dest="overwrite", action="store_true", help="replace an existing page")
    add("--quiet", action="store_true", help="no progress bar, no line at the end")
    return parser
