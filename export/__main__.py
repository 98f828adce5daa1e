"""Turn a checkpoint into a verified bundle, or say what a bundle is."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from runtime import Upscaler, bundle, command
from runtime.bundle import Bundle
from runtime.errors import OutputFileError
from runtime.files import check_output, write_atomically


def main(argv: list[str] | None = None, prog: str = "python -m export") -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["inspect"]:
        return command.run(lambda: _inspect(argv[1:], f"{prog} inspect"))
    return command.run(lambda: _export(argv, prog))


def _export(argv: list[str], prog: str) -> None:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, epilog=f"`{prog} inspect X.bundle` prints what it is.")
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="a checkpoint, as training keeps it")
    add("--out", type=Path, help="the bundle (default: the checkpoint's name with .bundle)")
    add("--fp16", action="store_true", help="weights in half precision: half the size")
    add("--int8", type=Path, metavar="FOLDER", help="8-bit trunk, calibrated on images in FOLDER: 2.7 times as fast with VNNI")
    add("--uncertainty", type=Path, metavar="FOLDER", help="tell the uncertainty too, learned from images in FOLDER in minutes")
    learned = "record the ranges of the images in FOLDER: the bundle's user is told of a scan that lies outside; needs --pixel"
    add("--envelope", type=Path, metavar="FOLDER", help=learned)
    add("--pixel", type=float, nargs=2, metavar="MM", help="the least and the largest pixel that the network is for")
    add("--images", default="images", metavar="TEXT", help="what the network learned from, in words for that line")
    add("--force", action="store_true", help="replace an existing bundle")
    args = parser.parse_args(argv)
    if (args.envelope is None) != (args.pixel is None):
        parser.error("--envelope needs --pixel MM MM, the pixels that the network is for, and --pixel needs --envelope")
    out = args.out or args.ckpt.with_suffix(".bundle")
    if out.resolve() == args.ckpt.resolve():
        raise OutputFileError(f"{out} is the checkpoint itself: name the bundle with --out")
    check_output(out, args.force)

    from train import checkpoint  # needs torch, as `inspect` does not

    from .build import about, build, trunk
    from .verify import verify

    generator, content = checkpoint.load_generator(args.ckpt)
    model, files = build(generator, args.fp16)
    manifest = about(generator, content, args.ckpt)
    if args.envelope:
        from . import envelope

        manifest["envelope"] = envelope.of(args.envelope, tuple(args.pixel), args.images)

    def draft() -> Bundle:
        return Bundle.parse(bundle.serialise(model, files, manifest), "the new bundle")

    with Upscaler.load(draft()) as exact:
        measure = partial(verify, generator=generator, half=args.fp16)
        errors = manifest["largest_error_of_range"] = measure(exact)
        said = f"within {max(errors.values()):.1e} of the checkpoint's range"
        if args.int8:
            from . import int8

            calibrate, judge = int8.load_crops(args.int8)
            files["trunk.onnx"] = int8.quantise(trunk(generator, half=False), int8.inputs(model, calibrate))
            files.pop(bundle.TRUNK_FP16, None)
            model = replace(model, precision="int8", weights=0)
            measure = partial(int8.measure_loss, exact=exact, crops=judge)
            with Upscaler.load(draft()) as upscaler:
                lost = manifest["psnr_lost_db"] = measure(upscaler)
            said += f"; 8-bit integers lose up to {max(lost.values()):.3f} dB"

        if args.uncertainty:
            from . import uncertainty

            with Upscaler.load(draft(), device="cpu") as upscaler:
                head = uncertainty.fit(upscaler, args.uncertainty)
            weights = np.float16 if args.fp16 else np.float32
            files |= {f"uncertainty/{name}.npy": bundle.array_bytes(part.astype(weights)) for name, part in head.items()}

        def check(finished: Path) -> None:
            with Upscaler.load(finished) as upscaler:
                measure(upscaler)

        write_atomically(out, bundle.serialise(model, files, manifest), args.force, check)
    print(f"{out}: {out.stat().st_size:,} bytes, {said}")


def _inspect(argv: list[str], prog: str) -> None:
    parser = argparse.ArgumentParser(prog=prog, description="Print a bundle's manifest, with what an older one leaves out.")
    parser.add_argument("bundle", type=Path)
    opened = Bundle.read(parser.parse_args(argv).bundle)
    print(json.dumps({"sha256": opened.sha256, **opened.manifest, "model": asdict(opened.model)}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
