"""`python -m benchmarks.tried`: what could make the trunk faster, side by side, as rows for docs/experiments.md.

OpenVINO's rows are there where it is installed (`pip install openvino`).
"""

from __future__ import annotations

import importlib.util
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from benchmarks import measure, rows
from benchmarks.conftest import slice_of
from runtime import Upscaler
from runtime.bundle import Bundle
from runtime.engines.openvino import load_openvino
from runtime.engines.ort import load_onnxruntime

SIZE, ROUNDS = 240, 12
TOLD = np.zeros(3, np.float32)
FLOAT, INT8 = (Bundle.read(path).trunk(half=False) for path in rows.BUNDLES.values())  # one network in both


def session(content: bytes, spin: bool = False, pattern: bool = False, arena: bool = True) -> Callable[[Any], Any]:
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.enable_mem_pattern, options.enable_cpu_mem_arena = pattern, arena
    made = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda image: made.run(None, {"image": image, "told": TOLD})[0]


def with_prelu(content: bytes) -> bytes:
    """The same trunk with PyTorch's own activation in place of the LeakyRelu that it is."""
    model = onnx.load_from_string(content)
    for k, node in enumerate(model.graph.node):
        if node.op_type == "LeakyRelu":
            slope = onnx.numpy_helper.from_array(np.full((32, 1, 1), node.attribute[0].f, np.float32), f"slope_{k}")
            model.graph.initializer.append(slope)
            node.CopyFrom(onnx.helper.make_node("PRelu", [node.input[0], slope.name], list(node.output), node.name))
    return model.SerializeToString()


def openvino(content: bytes, precision: str) -> Callable[[Any], Any]:
    core = load_openvino().Core()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trunk.onnx")
        path.write_bytes(content)
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 2})
    request = compiled.create_infer_request()
    return lambda image: request.infer({"image": image, "told": TOLD})[compiled.output(0)]


def main() -> None:
    image = slice_of(SIZE)
    standard = image[None, None] / np.float32(0.117)
    trunks = {
        "as it is": session(FLOAT),
        "PReLU in place of LeakyRelu": session(with_prelu(FLOAT)),
        "threads that spin": session(FLOAT, spin=True),
        "a plan of memory for each shape": session(FLOAT, pattern=True),
        "no arena": session(FLOAT, arena=False),
        "8-bit integers (U8S8)": session(INT8),
    }
    if importlib.util.find_spec("openvino"):
        for precision in ("f32", "bf16"):
            trunks[f"OpenVINO, {precision}"] = openvino(FLOAT, precision)
        trunks["OpenVINO, 8-bit integers"] = openvino(INT8, "f32")
    expected = trunks["as it is"](standard)
    ways = {name: (lambda run=run: run(standard)) for name, run in trunks.items()}
    times = measure.side_by_side(ways, ROUNDS)
    print("| trunk at 240×240, 2 threads | ms | times as fast | responses differ by (rms of their own) |\n|---|---|---|---|")
    for name, seconds in times.items():
        error = np.sqrt(np.mean((trunks[name](standard) - expected) ** 2)) / np.std(expected)
        print(f"| {name} | {1e3 * seconds:.1f} | {times['as it is'] / seconds:.2f} | {error:.1e} |")

    stack = np.stack([image] * 8)
    with Upscaler.load(threads=2) as two, Upscaler.load(threads=1) as one, ThreadPoolExecutor(2) as pool:
        volumes: dict[str, Callable[[], Any]] = {
            "two threads a slice": lambda: two(stack, 2),
            "two slices at once, a thread each": lambda: list(pool.map(lambda part: one(part, 2), stack)),
        }
        times = measure.side_by_side(volumes, ROUNDS)
    print("\n| 8 slices of 240×240, ×2 | ms a slice |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * seconds / 8:.1f} |")

    large = slice_of(960)
    tiled = {n: Upscaler.load(threads=2, tile=n) for n in (128, 192, 256, 512, 960)}
    times = measure.side_by_side({str(n): (lambda up=up: up(large, 2)) for n, up in tiled.items()}, 5)
    print("\n| tiles of a slice of 960×960, ×2 | s |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.2f} |")

    # A stripped brain as large as one is in a field of view of 240 mm, from its lowest slice to its highest, and empty ones.
    # A bright pixel in each corner leaves no background to skip.
    z, y, x = np.ogrid[-1.2:1.2:16j, -1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    stripped = np.where(z**2 + (y / 0.78) ** 2 + (x / 0.6) ** 2 < 1, image, np.float32(0))
    cornered = stripped.copy()
    cornered[:, :: SIZE - 1, :: SIZE - 1] = 1
    times = {}
    for row in rows.BUNDLES:
        with Upscaler.load(rows.file(row), threads=2) as up:
            for name, stack in (("skipped", stripped), ("not skipped", cornered)):
                times[f"{row}, {name}"] = statistics.median(measure.seconds(partial(up, stack, 2)) for _ in range(3))
    print("\n| background of a stripped volume of 16 slices | ms a slice |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * seconds / 16:.1f} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
