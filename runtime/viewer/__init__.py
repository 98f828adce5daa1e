"""`metasrgan view`: a local page to look at a scan with. One process, loopback only, nothing from outside."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from pathlib import Path

from .. import command, io
from ..errors import line
from ..upscaler import Upscaler


def view(argv: list[str], prog: str) -> None:
    """Serve a scan to this machine's browser until Ctrl-C. Raises MetasrganError for what cannot be read or shown."""
    args = _parser(prog).parse_args(argv)
    from .opened import Opened  # those who do not look need no server
    from .server import Server

    command.warn_of_inventions(args.bundle)
    scan = io.read(args.input, None if args.series is None else args.series - 1, args.allow_gaps)
    with Upscaler.load(args.bundle, device="cpu", threads=args.threads) as upscaler:
        opened = Opened(scan, upscaler, args.input.resolve().name, command.matrix(args.acquired), args.noise)
        with Server(opened, args.port) as server:
            print(f"{line(args.input, 200)} is shown at {server.address} to this machine alone; Ctrl-C ends it", flush=True)
            if not args.no_browser and _has_browser():
                webbrowser.open(server.invitation())
            try:
                server.serve_forever()
            except KeyboardInterrupt:  # the way to end it
                print()


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("input", type=Path, help=f"{', '.join(io.READ)}, or DICOM: a folder, a file or a zip")
    command.add_bundle_options(parser)
    add("--series", type=int, metavar="K", help="which series of a DICOM input, from 1")
    add("--allow-gaps", action="store_true", help="show a DICOM series of which some files are damaged")
    add(
        "--acquired",
        nargs="+",
        type=lambda text: int(text) if text.isdecimal() else text,
        default=["auto"],
        metavar="N",
        help="the matrix that the scanner measured, such as 192 256; or `stored`: the whole (default: the spectrum tells)",
    )
    add("--noise", type=float, metavar="S", help="standard deviation of the noise, such as 0.02 of white (default: estimated)")
    add("--threads", type=int, help="processor threads (default: all that this process may use)")
    add("--port", type=int, default=0, help="port of 127.0.0.1 (default: a free one)")
    add("--no-browser", action="store_true", help="print the address only")
    return parser


def _has_browser() -> bool:
    """Whether this session has a screen: a browser in the terminal would take the terminal."""
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
