"""`metasrgan`: all commands by one name. Training, export and evaluation are imported only when they are called.

A script does not put the current folder on the import path, as `python -m` does: a user's train.py there is never run.
"""

from __future__ import annotations

import importlib
import sys

MODULES = {"train": "train.__main__", "export": "export.__main__", "evaluate": "train.evaluate"}


def main() -> int:
    """Run the command that the first word names, or upscale where it names none. Returns the exit status."""
    name, *rest = sys.argv[1:] or [""]
    if name in MODULES:
        try:  # before anything of ours, as train says how many threads NumPy starts with
            module = importlib.import_module(MODULES[name])
        except ModuleNotFoundError as error:
            from runtime import command

            return command.not_installed(error)
        status: int = module.main(rest, f"metasrgan {name}")
        return status
    from runtime import __main__ as runtime

    if name == "upscale":  # what follows is an input, whatever its name
        return runtime.upscale(rest, "metasrgan upscale")
    return runtime.main(sys.argv[1:], "metasrgan")
