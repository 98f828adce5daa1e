"""`metasrgan`: all commands by one name. Training, export and evaluation are imported only when they are called.

A script does not put the current folder on the import path, as `python -m` does: a user's train.py there is never run.
"""

from __future__ import annotations

import importlib
import sys

MODULES = {"train": "train.__main__", "export": "export.__main__", "evaluate": "train.evaluate"}


def main() -> int:
    """Run the command that the first word names; `runtime` has those that are not in `MODULES`. Returns the exit status."""
    name, *rest = sys.argv[1:] or [""]
    if name not in MODULES:
        from runtime import __main__ as runtime

        return runtime.main(prog="metasrgan")
    try:  # before anything of ours, as train says how many threads NumPy starts with
        module = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        from runtime import command

        return command.fail(error)
    status: int = module.main(rest, f"metasrgan {name}")
    return status
