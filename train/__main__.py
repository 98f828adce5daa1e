"""`python -m train`: train a generator on a folder of MR slices or volumes."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from runtime import command


def main(argv: list[str] | None = None) -> int:
    return command.run(lambda: _train(argv))


def _train(argv: list[str] | None) -> None:
    from . import data  # torch, whose absence is an error with advice
    from .generator import CONFIGS
    from .loop import TrainConfig, train

    default = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of image slices or NIfTI volumes; a sub-folder is a subject")
    add("--validation", type=Path, help="folder of other subjects (default: a tenth of --data's subjects)")
    add("--pattern", default="*", help="only files whose name matches, such as '*t1ce*'")
    add("--out", type=Path, required=True, help="folder for last.pt and best.pt")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--generator", choices=CONFIGS, default=default.generator)
    add("--updates", type=int, default=default.updates)
    add("--batch", type=int, default=default.batch)
    add("--patch", type=int, default=default.patch, help="high-resolution patch size in pixels")
    add("--patches-per-crop", type=int, default=default.patches_per_crop)
    add("--learning-rate", type=float, default=default.learning_rate)
    add("--kernels", nargs="+", choices=("bilinear", "bicubic"), default=default.kernels, help="how inputs are downsampled")
    add("--seed", type=int, default=default.seed)
    add("--validate-every", type=int, default=default.validate_every, help="updates between validations and checkpoints")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    chosen = {name: getattr(args, name) for name in TrainConfig.__dataclass_fields__}
    config = TrainConfig(**{**chosen, "kernels": tuple(args.kernels)})
    files = data.find_files(args.data, args.pattern)
    if args.validation:
        split = data.split_as_given(files, data.find_files(args.validation, args.pattern))
    else:
        split = data.split_by_subject(args.data, files)
    print(train(config, split, args.out, args.resume, progress=sys.stderr.isatty()))


if __name__ == "__main__":
    sys.exit(main())
