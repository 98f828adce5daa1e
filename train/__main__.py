"""Train a network on folders of MR slices or volumes, as a configuration says."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

# Before NumPy is imported: its threads and PyTorch's would wait for each other, and an update take up to 20 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from runtime import command


def main(argv: list[str] | None = None, prog: str = "python -m train") -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("--config", metavar="NAME", help="a .toml file, or the name of one in train/configs (default: fidelity)")
    add("--data", type=Path, help="folder of image slices or NIfTI volumes, for every stage that names none")
    changes = "change the configuration: updates=1000, generator.blocks=3"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=changes)
    add("--out", type=Path, help="folder for last.pt, best.pt and tensorboard/")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="go on with the run in --out, as it was configured")
    add("--dry-run", action="store_true", help="say what the run would be and how long it would take; write nothing")
    args = parser.parse_args(argv)
    if not (args.out or args.dry_run):
        parser.error("--out is needed: the folder for the run's checkpoints")
    return command.run(lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    import torch  # whose absence is an error with advice

    from . import checkpoint, config, loop

    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.resume and not args.config:
        last = args.out / "last.pt"
        chosen = config.parse(checkpoint.load(last).get("training", {}), args.set, args.data, str(last))
    else:
        chosen = config.load(args.config or "fidelity", args.set, args.data)
    try:
        for line in loop.dry_run(chosen) if args.dry_run else [str(loop.train(chosen, args.out, args.resume))]:
            if first:
                print(line, flush=True)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise loop.TrainingError("there is not enough memory: give a smaller batch or patch, such as --set batch=4") from None


if __name__ == "__main__":
    sys.exit(main())
