"""`python -m runtime`: upscale a NIfTI volume, a picture or an array."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import Upscaler, __version__, command, images, volume
from .engines import DEVICES
from .errors import ImageError, InputFileError, OutputFileError
from .files import check_output
from .grid import MAX_SCALE
from .intensity import to_dtype

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("doctor", "prepare", "cache"):
        from .doctor import COMMANDS

        return command.run(lambda: COMMANDS[argv[0]](argv[1:]))
    parser = _parser()
    args = parser.parse_args(argv)
    if args.input is None and args.scale and len(args.scale) > 1:  # --scale 2.5 scan.nii.gz
        args.input = Path(args.scale.pop())
    if args.input is None:
        parser.error("no input file was given")
    return command.run(lambda: _upscale_file(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description=__doc__,
        epilog="`python -m runtime doctor` says what each device would use here; `prepare` builds ahead of time what it needs; "
        "`cache` lists what is kept of that.",
    )
    add = parser.add_argument
    add(
        "input",
        type=Path,
        nargs="?",
        help=f"a .nii or .nii.gz volume, a picture or an array ({', '.join(images.SUFFIXES)}), DICOM",
    )
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--scale", nargs="+", metavar="R", help=f"1 to {MAX_SCALE}, as 2.5 or 5/2; or two, for rows and columns")
    size.add_argument("--shape", nargs=2, type=int, metavar=("ROWS", "COLUMNS"), help="exact output size of a slice, in pixels")
    add("-o", "--out", type=Path, help="output file; its suffix chooses the format (default: INPUT with _sr in its name)")
    add("--bundle", type=Path, help="the network (default: the shipped one)")
    add("--device", default="auto", metavar="DEVICE", help=f"one of {', '.join(DEVICES)} (default: auto)")
    add("--threads", type=int, help="processor threads (default: all that this process may use)")
    add("--axis", type=int, choices=(0, 1, 2), help="array axis across which a volume's slices lie (default: the thickest)")
    add("--dtype", choices=DTYPES, help="type of the output's values (default: the input's)")
    add("--cache-dir", type=Path, help="folder that keeps phase tables between runs")
    add(
        "--anonymous",
        action="store_true",
        help="drop what identifies a patient from DICOM output, by the standard's basic profile",
    )
    add("--force", action="store_true", help="replace an existing output")
    add("--quiet", action="store_true", help="no progress bar, no summary")
    add("--version", action="version", version=f"metasrgan-edge {__version__}")
    return parser


def _upscale_file(args: argparse.Namespace) -> None:
    path: Path = args.input
    nifti = volume.is_nifti(path)
    if _is_dicom(path):
        return _dicom(args)
    if not nifti and not images.is_image(path):
        raise InputFileError(
            f"{path} has no suffix of a known format: give .nii, .nii.gz, {', '.join(images.SUFFIXES)}, or DICOM as a folder, "
            "a .dcm file or a .zip"
        )
    if not os.path.exists(path):
        raise InputFileError(f"{path} does not exist, or may not be read: check the name")
    if args.anonymous:
        raise InputFileError(f"--anonymous was given for {path}, which is no DICOM: leave it out")
    out = args.out or _default_output(path)
    check_output(out, args.force)
    if volume.is_nifti(out) != nifti:
        raise OutputFileError(f"{path} cannot become {out}: volumes stay NIfTI, pictures and arrays stay pictures or arrays")
    if args.axis is not None and not nifti:
        raise ImageError(f"--axis {args.axis} was given for {path}, which has no slices to lie across it: leave it out")
    size = _wanted(args)
    began = time.perf_counter()
    with Upscaler.load(args.bundle, device=args.device, threads=args.threads, cache_dir=args.cache_dir) as upscaler:
        before, after = (_nifti if nifti else _image)(upscaler, path, out, size, args)
        device = f"{upscaler.device} ({upscaler.runs_on})"
    if not args.quiet:
        seconds = time.perf_counter() - began
        print(f"{path} {before} → {out} {after}, on {device} in {seconds:.1f} s")


def _is_dicom(path: Path) -> bool:
    """A folder, a zip, or what begins as DICOM files do."""
    if path.is_dir() or path.suffix.lower() in (".zip", ".dcm"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _dicom(args: argparse.Namespace) -> None:
    from .dicom.command import upscale_series  # pydicom, for those who need it

    path: Path = args.input
    if not os.path.exists(path):
        raise InputFileError(f"{path} does not exist, or may not be read: check the name")
    if args.axis is not None or args.dtype:
        raise ImageError("--axis and --dtype are not for DICOM: its slices and its bits are the header's")
    out = args.out or path.with_name(f"{path.name.removesuffix(path.suffix) if path.is_file() else path.name}_sr")
    say = (lambda line: None) if args.quiet else print
    with Upscaler.load(args.bundle, device=args.device, threads=args.threads, cache_dir=args.cache_dir) as upscaler:
        upscale_series(upscaler, path, out, _wanted(args), anonymous=args.anonymous, overwrite=args.force, say=say)


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    return {"scale": _scale(args.scale)} if args.scale else {"shape": tuple(args.shape)}


def _nifti(upscaler: Upscaler, path: Path, out: Path, size: dict[str, Any], args: argparse.Namespace) -> tuple[str, str]:
    image = volume.load(path)
    with tqdm(unit="slice", disable=args.quiet or not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = volume.upscale(upscaler, image, **size, axis=args.axis, dtype=args.dtype, progress=show)
    volume.save(out, result, args.force)
    return _size(image.shape), _size(result.shape)


def _image(upscaler: Upscaler, path: Path, out: Path, size: dict[str, Any], args: argparse.Namespace) -> tuple[str, str]:
    pixels = images.read(path)
    dtype = np.dtype(args.dtype) if args.dtype else pixels.dtype.newbyteorder("=")
    colour = pixels.ndim == 3 and path.suffix.lower() != ".npy"
    images.check_writable_as(out, dtype, pixels.ndim, colour)
    planes = np.moveaxis(pixels, -1, 0) if colour else pixels  # a picture's colours share one intensity range
    result = to_dtype(upscaler(planes, **size), dtype)
    result = np.ascontiguousarray(np.moveaxis(result, 0, -1)) if colour else result
    images.write(out, result, colour, args.force)
    return _size(pixels.shape), _size(result.shape)


def _scale(texts: list[str]) -> Any:
    return texts[0] if len(texts) == 1 else tuple(texts)


def _default_output(path: Path) -> Path:
    suffix = volume.nifti_suffix(path) or path.suffix
    return path.with_name(f"{path.name.removesuffix(suffix)}_sr{suffix}")


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


if __name__ == "__main__":
    sys.exit(main())
