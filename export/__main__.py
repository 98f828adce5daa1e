"""Turn a checkpoint into a verified bundle, or say what a bundle is."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from runtime import Upscaler, bundle, command
from runtime.bundle import Bundle
from runtime.errors import DeviceError, InputFileError, OutputFileError
from runtime.files import check_output


def main(argv: list[str] | None = None, prog: str = "python -m export") -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["inspect"]:
        return command.run(lambda: _inspect(argv[1:], f"{prog} inspect"))
    return command.run(lambda: _export(argv, prog))


def _export(argv: list[str], prog: str) -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=f"`{prog} inspect X.bundle` prints what a bundle is."
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, as training keeps it")
    parser.add_argument("--out", type=Path, help="the bundle (default: the checkpoint's name with .bundle)")
    parser.add_argument("--fp16", action="store_true", help="weights in half precision: half the size")
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="FOLDER",
        help="the trunk in 8-bit integers, calibrated on slices or volumes of this folder: 2.5 times as fast on a CPU",
    )
    parser.add_argument(
        "--engine",
        choices=("rtx",),
        help="carry TensorRT for RTX's engine too, which a GPU of compute capability 7.5 to 8.9 or 12.0 then need not build",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    args = parser.parse_args(argv)

    from train import checkpoint  # torch, for those who need it

    from .build import about, build
    from .verify import verify

    out = args.out or args.ckpt.with_suffix(".bundle")
    if args.engine and args.int8:
        raise DeviceError("--engine is for GPUs, --int8 for CPUs", "export two bundles")
    if out.resolve() == args.ckpt.resolve():
        raise OutputFileError(f"{out} is the checkpoint itself: name the bundle with --out")
    check_output(out, args.force)
    generator, content = checkpoint.load_generator(args.ckpt)
    if args.int8 and generator.config.told:
        raise InputFileError(
            f"{args.ckpt} is told the noise, --int8 is for networks that are not: export without it, or train another "
            "(python -m train --set generator.name=fast)"
        )
    model, files = build(generator, args.fp16)
    origin = about(generator, content, args.ckpt, args.fp16, args.int8 is not None)

    def draft() -> Bundle:
        """What the bundle is so far."""
        return Bundle.parse(bundle.serialise(model, files, origin), "the new bundle")

    if args.engine:
        from runtime.engines import tensorrt  # which has its own library, too

        origin["engines"], built = tensorrt.portable_engines(draft())
        files |= built
    with Upscaler.of(draft()) as exact:
        origin["largest_error_of_range"] = verify(exact, generator, args.fp16)
        said = f"within {max(origin['largest_error_of_range'].values()):.1e} of the checkpoint's range"

        slices = None
        if args.int8 is not None:
            from . import graphs, int8  # ONNX Runtime's quantisation, likewise

            slices = int8.load_slices(args.int8)
            files["trunk.onnx"] = int8.quantise(graphs.trunk(generator, half=False), model, slices)
            with Upscaler.of(draft()) as upscaler:
                origin["psnr_lost_db"] = int8.measure_loss(upscaler, exact, slices)
            said += f"; 8-bit integers lose up to {max(origin['psnr_lost_db'].values()):.3f} dB"

        def check(finished: Path) -> None:
            with Upscaler.load(finished) as upscaler:
                if slices is None:
                    verify(upscaler, generator, args.fp16)
                else:
                    int8.measure_loss(upscaler, exact, slices)

        bundle.write(out, model, files, origin, args.force, check)
    print(f"{out}: {out.stat().st_size:,} bytes, {said}")


def _inspect(argv: list[str], prog: str) -> None:
    parser = argparse.ArgumentParser(prog=prog, description="Print what a bundle is.")
    parser.add_argument("bundle", type=Path)
    path = parser.parse_args(argv).bundle
    opened = Bundle.read(path)
    manifest = opened.manifest | {"model": asdict(opened.model)}
    print(f"{path}: {bundle.FORMAT}, version {manifest['version']}, {path.stat().st_size:,} bytes, sha256 {opened.sha256}")
    for section in ("made_by", "precision", "parameters"):
        print(f"  {section.replace('_', ' '):<12} {manifest.get(section)}")
    for section in ("model", "checkpoint", "largest_error_of_range", "psnr_lost_db"):
        if section in manifest:
            print(f"  {section.replace('_', ' ')}")
        for key, value in manifest.get(section, {}).items():
            print(f"    {key:<24} {value:.1e}" if section.startswith("largest") else f"    {key:<12} {value}")
    print("  files")
    for name, entry in manifest["files"].items():
        print(f"    {name:<24} {entry['bytes']:>9,} bytes  {entry['sha256']}")


if __name__ == "__main__":
    sys.exit(main())
