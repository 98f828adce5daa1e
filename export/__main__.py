"""`python -m export`: turn a checkpoint into a verified bundle, or say what a bundle is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runtime import Upscaler, bundle, command, grid
from runtime.bundle import Bundle
from runtime.errors import OutputFileError
from runtime.files import check_output


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["inspect"]:
        return command.run(lambda: _inspect(argv[1:]))
    return command.run(lambda: _export(argv))


def _export(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, epilog="`python -m export inspect X.bundle` prints what a bundle is."
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of `python -m train`")
    parser.add_argument("--out", type=Path, help="the bundle (default: the checkpoint's name with .bundle)")
    parser.add_argument("--fp16", action="store_true", help="weights and tables in half precision: half the size")
    parser.add_argument(
        "--scales",
        nargs="*",
        metavar="R",
        help="scales whose tables to store (default: those of 1.1…4.0 that pay; none: --scales alone)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    args = parser.parse_args(argv)

    from train import checkpoint  # torch, for those who need it

    from .build import about, build
    from .verify import verify

    out = args.out or args.ckpt.with_suffix(".bundle")
    if out.resolve() == args.ckpt.resolve():
        raise OutputFileError(f"{out} is the checkpoint itself: name the bundle with --out")
    check_output(out, args.force)
    scales = None if args.scales is None else [grid.parse_scale(s) for s in args.scales]
    generator, content = checkpoint.load_generator(args.ckpt)
    model, files, kept = build(generator, scales, args.fp16)
    origin = about(generator, content, args.ckpt, args.fp16)
    candidate = Bundle.parse(bundle.serialise(model, files, origin), "the new bundle")
    with Upscaler.of(candidate) as upscaler:
        errors = verify(upscaler, generator, args.fp16, kept)

    def check(finished: Path) -> None:
        with Upscaler.load(finished) as upscaler:
            verify(upscaler, generator, args.fp16, kept)

    bundle.write(out, model, files, {**origin, "largest_error_of_range": errors}, args.force, check)
    print(
        f"{out}: {out.stat().st_size:,} bytes, {len(kept)} tables, within {max(errors.values()):.1e} of the checkpoint's range"
    )


def _inspect(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m export inspect", description="Print what a bundle is.")
    parser.add_argument("bundle", type=Path)
    path = parser.parse_args(argv).bundle
    opened = Bundle.read(path)
    manifest = opened.manifest
    print(f"{path}: {bundle.FORMAT}, version {manifest['version']}, {path.stat().st_size:,} bytes, sha256 {opened.sha256}")
    for section in ("made_by", "precision", "parameters"):
        print(f"  {section.replace('_', ' '):<12} {manifest.get(section)}")
    for section in ("model", "checkpoint", "largest_error_of_range"):
        print(f"  {section.replace('_', ' ')}")
        for key, value in manifest.get(section, {}).items():
            print(f"    {key:<24} {value:.1e}" if section.startswith("largest") else f"    {key:<12} {value}")
    print("  files")
    for name, entry in manifest["files"].items():
        print(f"    {name:<24} {entry['bytes']:>9,} bytes  {entry['sha256']}")


if __name__ == "__main__":
    sys.exit(main())
