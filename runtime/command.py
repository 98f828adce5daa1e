"""What the project's commands have in common: one line for an error, an exit status, no half-done work at a stop."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from .errors import MetasrganError


def run(command: Callable[[], None]) -> int:
    """Run a command in the process that is its own, and return its exit status: 0, 1 for an error, 130 for a stop."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal or pipe that has no ×
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its remarks on headers that are accepted anyway
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
        sys.stdout.flush()
    except MetasrganError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed: pip install 'metasrgan-edge[export]' for training and export")
    except BrokenPipeError:  # the reader of the output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush would complain
        return 1
    except OSError as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("there is not enough memory for this: give a smaller scale or shape, or a machine with more")
    except KeyboardInterrupt:
        print("stopped: nothing was left half-written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
