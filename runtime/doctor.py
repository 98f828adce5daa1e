"""`doctor | prepare | cache`: what each device would use here, and what of it lies ready."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Upscaler, __version__, engines
from .command import add_bundle_options
from .engines.cache import EngineCache
from .engines.ort import version_of
from .errors import DeviceError, MetasrganError
from .slices import TILE
from .upscaler import open_bundle

TIMED = 128  # pixels an axis of the image that each device is timed with

PACKAGES = (
    *("numpy", "nibabel", "onnxruntime", "onnxruntime-gpu"),
    *("onnxruntime-ep-webgpu", "openvino", "cuda-bindings", "tensorrt", "tensorrt-rtx"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)


def doctor(argv: list[str], prog: str) -> None:
    """Print how fast each device is on this machine, what it uses or what it lacks, and the command that would repair it."""
    args = _parsed(argv, prog, doctor, "--json", action="store_true", help="the same for a program")
    kept = EngineCache(args.cache_dir)
    found = {
        "metasrgan-edge": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "gpu": _gpu(),
        "cache": {"folder": str(kept.directory), "engines": len(kept.files())},
        "devices": {name: _try(name, args.bundle, args.cache_dir) for name in engines.DEVICES},
    }
    print(json.dumps(found, indent=1) if args.json else _described(found))


def prepare(argv: list[str], prog: str) -> None:
    """Do ahead of time what the first scan would wait for: build TensorRT's engine, and keep it."""
    devices = f"one of {', '.join(engines.DEVICES)} (default: auto)"
    args = _parsed(argv, prog, prepare, "--device", default="auto", help=devices)

    began = time.perf_counter()
    with Upscaler.load(args.bundle, device=args.device, cache_dir=args.cache_dir) as upscaler:
        upscaler.prepare((240, 240), 2)
        print(f"{upscaler.device} is ready: {upscaler.runs_on}, in {time.perf_counter() - began:.1f} s")


def cache(argv: list[str], prog: str) -> None:
    """List the engines that are kept on disk, or remove them."""
    args = _parsed(argv, prog, cache, "--clear", action="store_true", help="remove them all")
    kept = EngineCache(args.cache_dir)
    if args.clear:
        print(f"{kept.directory}: {kept.clear()} engines removed")
        return
    files = [(path.stem, path.stat()) for path in kept.files()]
    print(f"{kept.directory}: {len(files)} engines, {sum(stat.st_size for _, stat in files) / 1e6:,.1f} MB")
    for name, stat in files:
        built = time.strftime("%Y-%m-%d", time.localtime(stat.st_mtime))
        print(f"  {name}: {stat.st_size / 1e6:,.1f} MB, {built}")


def _described(found: dict[str, Any]) -> str:
    """What was found, for a person."""
    gpu, kept = found["gpu"], found["cache"]
    about = "{name}, compute capability {compute_capability}, {memory_mb:,} MB, {free_mb:,} MB of it free"
    about += "; its driver serves CUDA {cuda}"
    lines = [
        f"metasrgan-edge {found['metasrgan-edge']}, Python {found['python']}, {found['system']}",
        "packages  " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()),
        f"GPU       {gpu.get('problem') or about.format(**gpu)}",
        f"device    {TIMED}×{TIMED} ×2  runs on",
    ]
    for name, device in found["devices"].items():
        said = f"{device['ms']:7.1f} ms  {device['runs_on']}" if device["works"] else f"no: {device['problem']}"
        lines += [f"{name:<9} {said}", *([f"{'':<9} → {device['repair']}"] if device.get("repair") else [])]
    return "\n".join([*lines, f"cache     {kept['folder']}: {kept['engines']} engines"])


def _parsed(argv: list[str], prog: str, command: Callable[..., None], option: str, **about: Any) -> argparse.Namespace:
    """The arguments of a command, which has one option of its own."""
    parser = argparse.ArgumentParser(prog=prog, description=command.__doc__)
    add_bundle_options(parser)
    parser.add_argument(option, **about)
    return parser.parse_args(argv)


def _try(name: str, bundle: str | Path | None, cache_dir: Path | None) -> dict[str, Any]:
    """What a device does with an image: TensorRT builds its engine for it, if it is not kept."""
    try:
        opened = open_bundle(bundle)
        if name == "auto":
            engine, why, _ = engines.fastest(opened)
        else:
            engine, why = engines.load(opened, name, None, TILE, cache_dir), ""
        with contextlib.closing(engine):
            return {"works": True, "ms": 1e3 * engines.seconds(engine, TIMED), "runs_on": why or engine.runs_on}
    except DeviceError as error:
        return {"works": False, "problem": error.problem, "repair": error.repair}
    except MetasrganError as error:
        return {"works": False, "problem": str(error), "repair": ""}


def _gpu() -> dict[str, Any]:
    from .engines import cuda

    if not engines.driver_is_installed():
        return {"problem": "no NVIDIA driver is installed here"}
    try:
        device = cuda.Device()
        free, total = device.memory()
    except DeviceError as error:
        return {"problem": error.problem}
    return {
        "name": device.name,
        "compute_capability": "{}.{}".format(*device.capability),
        "memory_mb": total // 1_000_000,
        "free_mb": free // 1_000_000,
        "cuda": f"{device.driver // 1000}.{device.driver % 1000 // 10}",
    }
