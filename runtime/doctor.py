"""`doctor | prepare | cache`: what each device would use here, and what of it lies ready."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import Upscaler, __version__, engines
from .command import add_bundle_options
from .engines.cache import EngineCache, default_directory
from .engines.ort import version_of
from .errors import DeviceError, MetasrganError

PACKAGES = (
    *("numpy", "nibabel", "onnxruntime", "onnxruntime-gpu"),
    *("pycuda", "cuda-bindings", "tensorrt", "tensorrt-rtx"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)


def doctor(argv: list[str], prog: str) -> None:
    """Print what each device would use on this machine, what is missing, and the command that would repair it."""
    args = _parsed(argv, prog, doctor, "--json", action="store_true", help="the same for a program")
    found = examine(args.bundle, args.cache_dir)
    print(json.dumps(found, indent=1) if args.json else describe(found))


def prepare(argv: list[str], prog: str) -> None:
    """Do ahead of time what the first scan would wait for: build TensorRT's engine, and keep it."""
    devices = f"one of {', '.join(engines.DEVICES)} (default: auto)"
    args = _parsed(argv, prog, prepare, "--device", default="auto", help=devices)

    def show(phase: str, done: int, total: int) -> None:
        print(f"\r{phase}: {done} of {total}".ljust(79), end="", flush=True)

    began = time.perf_counter()
    with Upscaler.load(args.bundle, device=args.device, cache_dir=args.cache_dir, progress=show) as upscaler:
        upscaler.prepare((240, 240), 2)
        print(f"{upscaler.device} is ready: {upscaler.runs_on}, in {time.perf_counter() - began:.1f} s")


def cache(argv: list[str], prog: str) -> None:
    """List the engines that are kept on disk, or remove them."""
    args = _parsed(argv, prog, cache, "--clear", action="store_true", help="remove them all")
    kept = EngineCache(args.cache_dir or default_directory())
    if args.clear:
        print(f"{kept.directory}: {kept.clear()} engines removed")
        return
    entries = kept.entries()
    print(f"{kept.directory}: {len(entries)} engines, {sum(entry.bytes for entry in entries) / 1e6:,.1f} MB")
    for entry in entries:
        used = time.strftime("%Y-%m-%d", time.localtime(entry.used))
        about = ", ".join(entry.key[part] for part in ("library", "gpu", "largest") if part in entry.key)
        print(f"  {entry.path.name}  {entry.bytes / 1e6:,.1f} MB, used {used}: {about or 'damaged'}")


def examine(bundle: str | Path | None = None, cache_dir: Path | None = None) -> dict[str, Any]:
    """All that `describe` prints. A small image goes through all devices but TensorRT, whose engine may take minutes."""
    devices: dict[str, dict[str, Any]] = {}
    for name in engines.DEVICES:
        try:
            devices[name] = {"works": True, "runs_on": _try(name, bundle, cache_dir)}
        except MetasrganError as error:
            problem, repair = (error.problem, error.repair) if isinstance(error, DeviceError) else (str(error), "")
            devices[name] = {"works": False, "problem": problem, "repair": repair}
    kept = EngineCache(cache_dir or default_directory())
    entries = kept.entries()
    return {
        "metasrgan-edge": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "gpu": _gpu(),
        "devices": devices,
        "cache": {"folder": str(kept.directory), "engines": len(entries), "bytes": sum(entry.bytes for entry in entries)},
    }


def describe(found: dict[str, Any]) -> str:
    """What was found, for a person."""
    gpu, kept = found["gpu"], found["cache"]
    lines = [
        f"metasrgan-edge {found['metasrgan-edge']}, Python {found['python']}, {found['system']}",
        "packages  " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()),
        f"GPU       {gpu['problem']}"
        if "problem" in gpu
        else f"GPU       {gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_mb']:,} MB, "
        f"{gpu['free_mb']:,} MB of it free; its driver serves CUDA {gpu['cuda']}, by {gpu['library']}",
    ]
    for name, device in found["devices"].items():
        lines.append(f"{name:<9} {device.get('runs_on') or 'no: ' + device['problem']}")
        if device.get("repair"):
            lines.append(f"{'':<9} → {device['repair']}")
    lines.append(f"cache     {kept['folder']}: {kept['engines']} engines, {kept['bytes'] / 1e6:,.1f} MB")
    return "\n".join(lines)


def _parsed(argv: list[str], prog: str, command: Callable[..., None], option: str, **about: Any) -> argparse.Namespace:
    """The arguments of a command, which has one option of its own."""
    parser = argparse.ArgumentParser(prog=prog, description=command.__doc__)
    add_bundle_options(parser)
    parser.add_argument(option, **about)
    return parser.parse_args(argv)


def _try(name: str, bundle: str | Path | None, cache_dir: Path | None) -> str:
    if name == "tensorrt":
        from .engines import cuda, ort, tensorrt

        cuda.Device(cuda.open_driver()).close()
        try:
            library = tensorrt.describe(tensorrt.load_library())
        except DeviceError:
            library = ort.check_provider("tensorrt")
        return f"{library}; its engine is built at the first load, and kept"
    with Upscaler.load(bundle, device=name, cache_dir=cache_dir) as upscaler:
        upscaler(np.eye(16, dtype=np.float32), 2)
        return f"{upscaler.device}: {upscaler.runs_on}" if name == "auto" else upscaler.runs_on


def _gpu() -> dict[str, Any]:
    from .engines import cuda

    try:
        device = cuda.Device(cuda.open_driver())
    except DeviceError as error:
        return {"problem": error.problem}
    found = device.properties
    free = device.free_bytes()
    device.close()
    return {
        "name": found.name,
        "compute_capability": "{}.{}".format(*found.compute_capability),
        "memory_mb": found.memory // 1_000_000,
        "free_mb": free // 1_000_000,
        "cuda": f"{found.driver // 1000}.{found.driver % 1000 // 10}",
        "library": device.library,
    }
