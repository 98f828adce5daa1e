"""Upscale a volume, a DICOM series, a picture or an array; or many of them into a folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import __version__, cohort, command, doctor, io, job, qa, sidecar, viewer
from .engines import DEVICES
from .errors import InputFileError, MetasrganError, OutputFileError
from .grid import MAX_SCALE
from .sizes import Size
from .upscaler import GRAIN

_KEY = 16  # bytes that a key has at least
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def main(argv: list[str] | None = None, prog: str = "python -m runtime") -> int:
    """Run the command that the first word names, or upscale where it names none. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    commands = {
        "upscale": upscale,
        "view": viewer.view,
        "qa": qa.qa,
        "doctor": doctor.doctor,
        "prepare": doctor.prepare,
        "cache": doctor.cache,
    }
    if argv and argv[0] in commands:  # what follows `upscale` is an input, whatever its name
        return command.run(partial(commands[argv[0]], argv[1:], f"{prog} {argv[0]}"))
    return command.run(partial(upscale, argv, prog))


def upscale(argv: list[str], prog: str) -> None:
    parser = _parser(prog)
    args = parser.parse_args(argv)
    for numbers in (args.scale, args.shape, args.spacing, args.acquired):
        args.input = args.input or _inputs_among(numbers or [])  # --scale 2.5 scan.nii.gz
    args.input = [path if path.name not in ("", "..") else path.resolve() for path in args.input]
    if not args.input:
        parser.error("no input file was given")
    args.size = Size(args.scale, args.shape, args.spacing, args.isotropic)
    args.acquired, args.key = command.matrix(args.acquired), _key(args)
    args.series = None if args.series is None else args.series - 1
    request = job.Request(**{name: value for name, value in vars(args).items() if name in job.Request.__dataclass_fields__})
    computer = job.Computer(args.bundle, args.device, args.threads, args.cache_dir, args.ensemble)
    command.warn_of_inventions(args.bundle)
    out = Path(args.out or "")  # a folder of outputs if it ends in a slash, or is one, but no output itself
    folder = args.out is not None and (args.out.endswith("/") or (os.path.isdir(out) and not sidecar.read(out)))
    (_upscale_many if folder or len(args.input) > 1 else _upscale_one)(args, computer, request)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="`metasrgan view` shows a scan in a browser; `qa` tests a folder of a site's own. `doctor` says what each "
        "device would use here; `prepare` builds ahead of time what it needs; `cache` lists what is kept of that. `train`, "
        "`export` and `evaluate`, which need torch, make networks of your own.",
    )
    add = parser.add_argument
    add("input", type=Path, nargs="*", help=f"{', '.join(io.READ)}, or DICOM: a folder, a file or a zip; one or many")
    size = parser.add_mutually_exclusive_group(required=True).add_argument
    size("--scale", nargs="+", metavar="R", help=f"1 to {MAX_SCALE}, as 5/2; two for a slice's axes, or three for a volume's")
    size("--spacing", nargs="+", metavar="MM", help="size of the output's voxels in mm; one, two or three likewise")
    size("--isotropic", action="store_true", help="every axis as fine as the finest, slices too")
    size("--shape", nargs="+", metavar="N", help="output size in pixels: rows and columns, or three array axes")
    add("-o", "--out", help="output file, of the format that its suffix names; or FOLDER/ for many (default: named INPUT_sr)")
    add("--format", metavar="SUFFIX", help="format of the outputs in a folder, such as .nii.gz (default: the input's)")
    command.add_bundle_options(parser)
    add("--device", default="auto", help=f"one of {', '.join(DEVICES)} (default: auto)")
    add("--threads", type=int, help="processor threads (default: all that this process may use)")
    add("--ensemble", action="store_true", help="the mean over the eight flips and turns of each slice: takes 8 times as long")
    add("--axis", type=int, choices=(0, 1, 2), help="array axis across which a volume's slices lie (default: the thickest)")
    add("--series", type=int, metavar="K", help="which series of a DICOM input, from 1 (default: all, into a folder)")
    add("--allow-gaps", action="store_true", help="upscale a DICOM series of which some files are damaged")
    add("--dtype", choices=_DTYPES, help="type of the output's values (default: the input's)")
    add(
        "--acquired",
        nargs="+",
        type=_real,
        default=["auto"],
        metavar="N",
        help="the matrix that the scanner measured, such as 192 256; or `stored`: the whole (default: the spectrum tells)",
    )
    add("--noise", type=_real, metavar="S", help="standard deviation of the noise, such as 0.02 of white (default: estimated)")
    add("--grain", type=_real, metavar="G", default=GRAIN, help=f"0 (denoised) to 1 (all grain is kept; default: {GRAIN:g})")
    add("--anonymous", action="store_true", help="no patient fields in the output; no input name in its sidecar")
    add("--key", type=Path, metavar="FILE", help="secret bytes, with --anonymous: the same UIDs again (default: new ones)")
    add("--deterministic", action="store_true", help="the same bytes again: no times but SOURCE_DATE_EPOCH in any file")
    add("--resume", action="store_true", help="leave alone what is done already, by its sidecar and its content")
    where = parser.add_mutually_exclusive_group().add_argument
    where("--workers", type=int, default=1, metavar="N", help="inputs at a time, each in a process of its own (default: 1)")
    where("--dask", metavar="ADDRESS", help="do them as tasks of a Dask cluster, such as tcp://scheduler:8786")
    add("--uncertainty", action="store_true", help="also a file beside each output: how far each pixel may be off the truth")
    add("--preview", action="store_true", help="a picture beside each output: input, bicubic and ours, where there is detail")
    add("--force", dest="overwrite", action="store_true", help="replace an existing output")
    add("--quiet", action="store_true", help="no progress bar, no summary")
    add("--version", action="version", version=f"metasrgan-edge {__version__}")
    return parser


def _upscale_one(args: argparse.Namespace, computer: job.Computer, request: job.Request) -> None:
    path: Path = args.input[0]
    task = job.Task(path, Path(args.out) if args.out else path.with_name(cohort.output_name(path)), args.series)
    if not request.resume:
        job.check(task, request)
    with computer.load() as upscaler, tqdm(unit="slice", disable=args.quiet or None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = job.run(upscaler, task, request, show)
    if not args.quiet:
        print(result)


def _upscale_many(args: argparse.Namespace, computer: job.Computer, request: job.Request) -> None:
    if args.out is None:
        raise OutputFileError(f"{len(args.input)} inputs need a folder for their outputs: give it by -o FOLDER/")
    folder = Path(args.out)
    planned = cohort.plan(args.input, folder, request, args.format, args.series)
    work = cohort.on_dask(computer, request, args.dask) if args.dask else cohort.in_processes(computer, request, args.workers)
    results = cohort.run(planned, request, folder, work, args.quiet)
    if not args.quiet:
        print(cohort.table(results))
    if failed := cohort.counts(results)["failed"]:
        listed = f"each for its reason above; {folder / cohort.SUMMARY} lists them"
        raise MetasrganError(f"{failed} of {len(results)} failed, {listed}")


def _key(args: argparse.Namespace) -> bytes | None:
    """The bytes of --key. Raises InputFileError for a file that holds no secret, and where there must be one."""
    if args.key is None:
        if args.anonymous and (args.deterministic or args.resume):
            raise InputFileError("--anonymous makes new UIDs each time: with --deterministic or --resume, give a --key FILE")
        return None
    try:
        key: bytes = args.key.read_bytes()
    except OSError as error:
        why = f"{args.key} cannot be read ({error.strerror})"
        raise InputFileError(f"{why}: give --key a file of {_KEY} random bytes") from None
    if not args.anonymous or not _KEY <= len(key) <= 1 << 20:
        raise InputFileError(f"--key {args.key} has {len(key)} bytes: give {_KEY} random ones or more, with --anonymous")
    return key


def _inputs_among(numbers: list[Any]) -> list[Path]:
    """Take the input files that argparse took for numbers of --scale, --spacing or --shape off the end of these."""
    first = next((k for k, text in enumerate(numbers) if k and not re.fullmatch(r"[\d.,/eE+-]+", str(text))), len(numbers))
    files, numbers[first:] = numbers[first:], []
    return [Path(text) for text in files]


def _real(text: str) -> float | str:
    """What is no number is told of by who needs one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


if __name__ == "__main__":
    sys.exit(main())
