"""`python -m benchmarks.gpu`: the tests and the measurements of a machine with an NVIDIA GPU. Needs no network.

Runs `pytest -m gpu` and then measures each device that loads: a slice of 240×240 and of 512×512, a volume of 240×240×155,
device memory, and EDSR ×2 in ONNX Runtime's CUDA provider beside them. Writes RESULTS/GPU.json and prints it. Wants pytest,
onnx, and what `pip install '.[gpu]'` or '.[tensorrt]' brings; no torch. `--device cpu` tries the script out without a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from benchmarks import measure, rivals, rows
from runtime import DeviceError, Upscaler
from runtime.engines import cuda
from runtime.engines.gpu import GpuEngine

SIZES = (240, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", default=["cuda", "tensorrt"])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--no-tests", action="store_true")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}".strip(),
        "machine": measure.machine(),
    }
    if not args.no_tests:
        done = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-ra"], capture_output=True, text=True)
        found["tests"] = done.stdout.splitlines()[-40:]
    name = measure.processor()
    for device in args.device:
        try:
            found[device] = measured(device)
            name = found[device].get("gpu", name)
        except DeviceError as error:
            found[device] = {"could not be loaded": str(error)}
    found["EDSR ×2"], found["float16 matrix product"] = edsr(args.device), peak(args.device)
    path = args.results / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(path.read_text())


def measured(device: str) -> dict[str, Any]:
    """Seconds, and bytes of device memory over what was in use before; medians, each beside its floor."""
    free = _free_bytes() if device != "cpu" else 0
    began = time.perf_counter()
    with Upscaler.load(device=device) as up:
        found: dict[str, Any] = {"runs on": up.runs_on, "load_s": time.perf_counter() - began}
        engine = up.slices.engine
        wait: Callable[[], None] = engine._gpu.synchronise if isinstance(engine, GpuEngine) else lambda: None
        if isinstance(engine, GpuEngine):
            found["gpu"] = engine._gpu.properties.name
        multiply_adds = rivals.multiply_adds(up.bundle.trunk(half=False))
        for size in SIZES:
            image = np.random.default_rng(0).random((size, size), np.float32)
            began = time.perf_counter()
            view = up.encode(image)
            view.render(2)
            first = time.perf_counter() - began

            def trunk(image: Any = image) -> None:
                engine.encode(image)
                wait()

            ways = {"end to end": lambda image=image: up(image, 2), "up and trunk": trunk}
            times = measure.side_by_side(ways | {"stage and down": lambda view=view: view.render(2)}, 20)
            work = 2 * multiply_adds * size**2
            # The floor: the image up, responses of 41 numbers written and read, the pixels written and down.
            moved = size**2 * (2 * 41 * (2 if up.bundle.has_half else 4) + 4 * 4)
            found[f"{size}×{size} ×2"] = times | {"first_s": first, "trunk_flop": work, "stage_bytes": moved}
            found[f"{size}×{size} ×2"]["trunk_tflops"] = 1e-12 * work / times["up and trunk"]
            del view
        if device != "cpu":
            found["device_bytes"] = free - _free_bytes()
        volume = np.random.default_rng(0).random((155 if device != "cpu" else 4, 240, 240), np.float32)
        up(volume[:1], 2)
        began = time.perf_counter()
        up(volume, 2)
        found[f"volume of {len(volume)}×240×240 ×2, s"] = time.perf_counter() - began
    return found


def edsr(devices: list[str]) -> dict[str, Any]:
    """EDSR ×2 in the same provider, by ONNX Runtime's own copies."""
    free = _free_bytes() if devices != ["cpu"] else 0
    try:
        session = _session(str(rows.file("EDSR ×2")), devices)
    except Exception as error:
        return {"could not be loaded": str(error)}
    found: dict[str, Any] = {}
    for size in SIZES if devices != ["cpu"] else (24,):
        image = np.random.default_rng(0).random((1, 1, size, size), np.float32)
        found[f"{size}×{size}"] = measure.side_by_side({"s": partial(session.run, None, {"image": image})}, 5)["s"]
    if devices != ["cpu"]:
        found["device_bytes"] = free - _free_bytes()
    return found


def peak(devices: list[str], size: int = 4096, times: int = 50) -> dict[str, Any]:
    """What the card's matrix units reach: a chain of products, TFLOP/s."""
    if devices == ["cpu"]:
        size, times = 256, 2
    try:
        session = _session(rivals.matrix_product(size, TensorProto.FLOAT16, times), devices)
    except Exception as error:
        return {"could not be loaded": str(error)}
    image = np.zeros((size, size), np.float32)
    taken = measure.side_by_side({"s": lambda: session.run(None, {"image": image})}, 5)["s"]
    return {"tflops, copies included": 1e-12 * 2 * size**3 * times / taken}


def _session(model: str | bytes, devices: list[str]) -> Any:
    import onnxruntime as ort

    provider = "CPUExecutionProvider" if devices == ["cpu"] else "CUDAExecutionProvider"
    session = ort.InferenceSession(model, providers=[provider])
    if session.get_providers()[0] != provider:
        raise DeviceError(f"{provider} was not used")
    return session


def _free_bytes() -> int:
    device = cuda.Device(cuda.open_driver())
    free = device.free_bytes()
    device.close()
    return free


if __name__ == "__main__":
    main()
