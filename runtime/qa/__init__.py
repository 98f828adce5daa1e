"""`metasrgan qa`: acceptance criteria on a site's own scans and on a digital phantom, as one HTML page."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from fractions import Fraction
from functools import partial
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
    found = find(args.input)
    command.warn_of_inventions(args.bundle)
    series: dict[str, scans.Tested] = {}
    with job.Computer(args.bundle, args.device, args.threads, args.cache_dir).load() as upscaler:
        for (source, number), problem in tqdm(found.items(), unit="series", disable=args.quiet or None, leave=False):
            name = _name(args.input, source, number)
            try:
                series[name] = problem or scans.examine(io.read(source, number), upscaler, (scale, scale))
            except (MetasrganError, OSError, MemoryError) as error:
                series[name] = told(error).replace(f"{args.input}/", "")
        tested = [its[0] for its in series.values() if not isinstance(its, str)]
        if not tested:
            name, problem = next(iter(series.items()))
            raise InputFileError(f"{args.input} holds no series that can be tested. {name}: {problem}")
        outcomes = phantom.examine(lambda image: upscaler(image, scale), scale)
        network = str(args.bundle or MODELS[0]), upscaler.runs_on
    criteria = [*judge.of_scans(tested), *judge.of_phantom(outcomes)]
    folder, software, time = args.input.resolve().name, f"metasrgan-edge {__version__}", sidecar.time_stamp(deterministic=False)
    content = {
        "format": FORMAT,
        "verdict": judge.overall(criteria),
        "folder": folder,
        "scale": str(scale),
        "network": network,
        "software": software,
        **time,
        "criteria": [asdict(each) for each in criteria],
        "series": [
            {"name": name, **({"problem": its} if isinstance(its, str) else asdict(its[0]))} for name, its in series.items()
        ],
        "phantom": [{"noise": each.noise, **asdict(kept)} for each in outcomes for kept in each.kept],
    }
    facts = folder, f"{len(tested)} series", sizes.written([scale]), *network, software, time["time"]
    page = report.page(facts, criteria, series, outcomes, scale).encode("utf-8", "backslashreplace")
    save = partial(sidecar.write_json, numbers, content, args.overwrite)
    write_atomically(args.out, page, args.overwrite, lambda finished: save(), args.input)
    said = f"{judge.overall(criteria)}, as {args.out} shows"
    if failed := [each.name for each in criteria if each.passed is False]:
        raise MetasrganError(f"{said}: {'; '.join(failed)}")
    if not args.quiet:
        print(said)


def find(path: Path) -> dict[tuple[Path, int | None], str]:
    """All series in a folder and the folders in it: the input and, of several series in it, which; why it cannot be tested.

    Raises InputFileError where there is none.
    """
    found: dict[tuple[Path, int | None], str] = {}
    for source in _sources(path):
        try:
            found |= {(source, number): problem for number, problem in cohort.series_of(source)}
        except MetasrganError as error:
            found[source, None] = told(error)
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


def _name(path: Path, source: Path, number: int | None) -> str:
    """A series by where it lies in the folder, without the folder's own name."""
    name = str(source.relative_to(path)) if source != path else source.name
    return line(name if number is None else f"{name}, series {number + 1}", 200)


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
