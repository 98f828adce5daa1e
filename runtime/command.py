"""What the project's commands have in common: one line for an error, an exit status, no half-done work at a stop."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import MetasrganError, told

_INSTALL = "pip install torch scikit-image scipy matplotlib tensorboard pydantic onnx"  # of all that train and export import


def run(command: Callable[[], None]) -> int:
    """Run a command in the process that is its own, and return its exit status: 0, 1 for an error, 130 for a stop."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal or pipe that has no ×
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its remarks on headers that are accepted anyway
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush would complain
        return 1
    except (MetasrganError, OSError, MemoryError, ModuleNotFoundError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print("stopped: nothing was left half-written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def fail(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit status."""
    missing = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    print(f"error: {f'{missing} is not installed: {_INSTALL}' if missing else told(error)}", file=sys.stderr)
    return 1


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """Add --cache-dir, and --model and --bundle, of which one may be given: either is `bundle` of `Upscaler.load`."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--model",
        dest="bundle",
        metavar="NAME",
        help="a shipped network: brain (the default); fast, the same in 8-bit integers, which takes less time; best, a larger "
        "one, which takes three times as long; perceptual, which looks crisper and invents part of what it shows, never for "
        "measurement or diagnosis",
    )
    either.add_argument("--bundle", type=Path, help="another network, as `metasrgan export` makes it")
    parser.add_argument("--cache-dir", type=Path, help="folder that keeps TensorRT's engines (default: in this user's cache)")


def matrix(words: list[Any]) -> Any:
    """`acquired` of `Upscaler.__call__` by the words of --acquired: one word such as stored, or numbers."""
    return words[0] if len(words) == 1 and isinstance(words[0], str) else words


def warn_of_inventions(bundle: object) -> None:
    if bundle == "perceptual":
        print("note: the perceptual model invents part of what it shows: not for measurement or diagnosis", file=sys.stderr)
