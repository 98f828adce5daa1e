"""`make gpu`: the tests and the measurements of a machine with a GPU, in under ten minutes, without a network.

Wants Python, numpy, onnxruntime and a driver, and measures every device that works with what is installed; pytest, where it is
there, runs tests/gpu first. Each device and each network has a process of its own. Writes RESULTS/GPU-NAME.json and a page.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from runtime import MetasrganError, Upscaler, engines
from runtime.engines import graphs, ort
from runtime.grid import parse_scales
from runtime.intensity import Intensity
from runtime.upscaler import open_bundle

DEVICES = ("cpu", *(name for name in engines.DEVICES if name not in ("auto", "cpu")))
SLICES = ((240, 2), (512, 2), (512, 4))
SMALL = ((16, 2), (24, 2))  # for a program that does as if it were a GPU
SCALES = (*(f"{n / 10}" for n in range(11, 41, 2)), "1.05", "2.37", "6", "1.7320508", ("2", "3"))
EDSR_CHANNELS, EDSR_BLOCKS, EDSR_RESIDUAL = 256, 32, 0.1
BUDGET_S, LIMIT_S = 6.0, 180  # of one measurement, and of one process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", default=DEVICES, choices=DEVICES)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--small", action="store_true", help="tiny images, to try it out on a software device")
    parser.add_argument("--one", choices=("ours", "edsr"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps({"ours": ours, "edsr": edsr}[args.one](args.device[0], args.small)))
        return
    began = time.perf_counter()
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "machine": machine(),
        "tests": tests(),
        "host_ms": host_ms(SMALL if args.small else SLICES),
        "devices": {},
    }
    for device in args.device:
        print(f"{device} …", flush=True)
        found["devices"][device] = one = in_a_process("ours", device, args.small)
        if "runs_on" in one:
            one["edsr"] = in_a_process("edsr", device, args.small)
    found["seconds"] = time.perf_counter() - began
    path = args.results / f"{re.sub('[^a-z0-9]+', '-', found['machine']['gpu'].lower()).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(page(found))
    print(f"{page(found)}\n{path} and {path.with_suffix('.md')}, in {found['seconds']:.0f} s")


def machine() -> dict[str, Any]:
    """What the numbers depend on, beside the code."""
    names = ("numpy", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-webgpu", "tensorrt-rtx", "tensorrt", "cuda-bindings")
    asked = nvidia_smi("name,driver_version")
    gpu, driver = asked.split(", ") if asked else ("", "")
    try:
        gpu = gpu or ort.processor(ort.adapter())
    except MetasrganError:
        gpu = gpu or "no GPU"
    found = {"gpu": gpu, "driver": driver, "system": platform.platform(), "processors": ort.available_processors()}
    return found | {"python": platform.python_version()} | {name: said for name in names if (said := ort.version_of(name))}


def tests() -> list[str]:
    """The last lines of tests/gpu."""
    if importlib.util.find_spec("pytest") is None:
        return ["not run: pytest is not installed"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT_S).stdout.splitlines()[-30:]
    except subprocess.TimeoutExpired:
        return [f"took more than {2 * LIMIT_S} s"]


def in_a_process(what: str, device: str, small: bool) -> dict[str, Any]:
    """What a process says in its last line, or why it says nothing."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", what, "--device", device, *(["--small"] if small else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"problem": f"took more than {LIMIT_S} s"}
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said
    except (IndexError, ValueError):
        return {"problem": f"ended with status {done.returncode}: {(done.stderr.splitlines() or ['it says nothing'])[-1]}"}


def ours(device: str, small: bool) -> dict[str, Any]:
    """The shipped network on a device: how far its pixels are from the CPU's, milliseconds of a slice of a volume, memory."""
    before, began = memory(device), time.perf_counter()
    try:
        up = Upscaler.load(device=device)
    except MetasrganError as error:
        return {"problem": str(error)}
    found: dict[str, Any] = {"runs_on": up.runs_on, "load_s": time.perf_counter() - began}
    with up, Upscaler.load(device="cpu") as cpu:
        image = np.random.default_rng(0).random((16 if small else 96,) * 2, np.float32)
        scales = SCALES[::7] if small else SCALES
        pairs = {str(scale): (up(image, scale, acquired="stored"), cpu(image, scale, acquired="stored")) for scale in scales}
        found["largest_error_of_range"] = {scale: float(np.abs(a - b).max() / np.ptp(b)) for scale, (a, b) in pairs.items()}
        for size, scale in SMALL if small else SLICES:
            image = np.random.default_rng(0).random((size, size), np.float32)
            intensity, scales_ = Intensity.of(image), parse_scales(scale)
            out = np.empty((size * scale,) * 2, np.float32)
            found[f"{size}² ×{scale}"] = times(lambda: up.slices.fill(out, image, intensity, scales_))  # noqa: B023
        count, size = (3, 16) if small else (155 if device != "cpu" else 8, 240)
        volume = np.random.default_rng(0).random((count, size, size), np.float32)
        began = time.perf_counter()
        up(volume, 2)
        found["volume"] = {"shape": [count, size, size], "s": time.perf_counter() - began}
        found["memory_mb"] = grown(before, memory(device))
    return found


def edsr(device: str, small: bool) -> dict[str, Any]:
    """EDSR ×2 with random weights, in the precision of ours, on the same device by ONNX Runtime; on cuda for tensorrt."""
    name = "cuda" if device == "tensorrt" else device
    half = ort.DEVICES[name].half
    before = memory(device)
    try:
        run = edsr_session(name, half)
    except MetasrganError as error:
        return {"problem": str(error)}
    found: dict[str, Any] = {"runs_on": f"ONNX Runtime, {name}, {'float16' if half else 'float32'}"}
    for size in sorted({size for size, scale in (SMALL[:1] if small else SLICES)}):
        image = np.random.default_rng(0).random((1, 1, size, size), np.float32)
        found[f"{size}² ×2"] = times(lambda: run(image))  # noqa: B023
        if 5 * found[f"{size}² ×2"]["p50_ms"] > 30_000:
            break
    return found | {"memory_mb": grown(before, memory(device))}


def edsr_session(name: str, half: bool) -> Callable[[Any], Any]:
    """EDSR (Lim et al. 2017) ×2, image (1, 1, H, W) → (1, 1, 2H, 2W), float32."""
    parts, count = [], 0

    def constant(shape: tuple[int, ...], fill: float) -> str:
        nonlocal count
        count += 1
        values = np.full(shape, fill) if len(shape) < 2 else np.random.default_rng(0).standard_normal(shape) * fill
        kind, data = (graphs.FLOAT16, np.float16) if half else (graphs.FLOAT, np.float32)
        dims = b"".join(graphs.field(1, n) for n in shape)
        tensor = dims + graphs.field(2, kind) + graphs.field(8, f"w{count}") + graphs.field(9, values.astype(data).tobytes())
        parts.append(graphs.field(5, tensor))
        return f"w{count}"

    def op(kind: str, inputs: str, **attributes: Any) -> str:
        nonlocal count
        count += 1
        parts.append(graphs.node(kind, inputs, f"x{count}", **attributes))
        return f"x{count}"

    def conv(x: str, c_in: int, c_out: int) -> str:
        weights = constant((c_out, c_in, 3, 3), 1 / math.sqrt(9 * c_in))
        return op("Conv", f"{x} {weights} {constant((c_out,), 0)}", pads=[1] * 4)

    c = EDSR_CHANNELS
    x = first = conv(op("Cast", "image", to=graphs.FLOAT16 if half else graphs.FLOAT), 1, c)
    for _ in range(EDSR_BLOCKS):
        y = op("Mul", f"{conv(op('Relu', conv(x, c, c)), c, c)} {constant((), EDSR_RESIDUAL)}")
        x = op("Add", f"{x} {y}")
    x = op("DepthToSpace", conv(op("Add", f"{first} {conv(x, c, c)}"), c, 4 * c), blocksize=2)
    parts.append(graphs.node("Cast", conv(x, c, 1), "pixels", to=graphs.FLOAT))
    ends = graphs.graph_input("image", "N C H W"), graphs.graph_output("pixels", "N C h w")
    run = ort.Opener(name, None).open(graphs.model(*parts, *ends))
    return lambda image: run({"image": image}, {"pixels": "cpu"})[0].numpy()


def times(work: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds: median and 99th percentile of as many runs as fit, at least one; the first counts where it is slow."""
    taken = [clock(work)]
    first = taken[0]
    if first < BUDGET_S:
        taken = [clock(work) for _ in range(min(200, max(3, int(BUDGET_S / first))))]
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99), "runs": len(taken), "first_ms": 1e3 * first}


def clock(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def host_ms(slices: tuple[tuple[int, int], ...]) -> dict[str, float]:
    """Milliseconds of a slice around an engine that does nothing but what the ONNX Runtime engine does before its graphs."""
    bundle = open_bundle(None)

    class Nothing:
        device, runs_on, in_flight = "none", "nothing", 1

        def encode(self, image: Any, levels: Intensity, told: Any = None) -> Any:
            standard = (levels.normalise(image) - np.float32(bundle.model.mean)) / np.float32(bundle.model.std)
            return [(standard != 0).any(axis) for axis in (1, 0)]

        def render(self, *arguments: Any) -> None:
            pass

        def close(self) -> None:
            pass

    up, found = Upscaler(bundle, Nothing(), 512), {}
    for size, scale in slices:
        image, both = np.random.default_rng(0).random((size, size), np.float32), (Fraction(scale), Fraction(scale))
        intensity, out = Intensity.of(image), np.empty((size * scale,) * 2, np.float32)
        taken = [clock(lambda: up.slices.fill(out, image, intensity, both)) for _ in range(50)]  # noqa: B023
        found[f"{size}² ×{scale}"] = 1e3 * float(np.median(taken))
    return found


def memory(device: str) -> float | None:
    """Megabytes in use: of the NVIDIA GPU, or else of this process, which is what a program that does as if works in."""
    if device != "cpu" and (said := nvidia_smi("memory.used", "nounits")):
        return float(said)
    with contextlib.suppress(MetasrganError):
        if device == "gpu" and ort.is_hardware(ort.adapter()):
            return None
    if sys.platform != "linux":
        return None
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def grown(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before


def nvidia_smi(asked: str, *more: str) -> str:
    """What nvidia-smi says of the first GPU; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={asked}", ",".join(["--format=csv,noheader", *more])]
    return next(iter(subprocess.run(command, capture_output=True, text=True).stdout.splitlines()), "")


def page(found: dict[str, Any]) -> str:
    """The run for a person."""
    machine, devices = found["machine"], {n: d for n, d in found["devices"].items() if "runs_on" in d}
    rows = [name for name in next(iter(devices.values()), {}) if "²" in name]
    lines = [
        f"# {machine['gpu']}",
        "",
        f"{found['date']}, `{found['command']}`, "
        + ", ".join(f"{name} {said}" for name, said in machine.items() if said and name != "gpu"),
        "",
        "Milliseconds of a slice: p50 / p99. The volume in seconds. Memory in MB. EDSR ×2 has random weights.",
        "",
        f"| | {' | '.join(f'{name} | EDSR ×2, {name}' for name in devices)} |",
        "|---|" + "---|---|" * len(devices),
    ]

    def cells(row: Callable[[dict[str, Any]], str]) -> str:
        return " | ".join(f"{row(device)} | {row(device.get('edsr', {}))}" for device in devices.values())

    def ms(row: str) -> Callable[[dict[str, Any]], str]:
        return lambda one: f"{one[row]['p50_ms']:.2f} / {one[row]['p99_ms']:.2f}" if row in one else "—"

    lines += [f"| {row} | {cells(ms(row))} |" for row in rows]

    def volume(one: dict[str, Any]) -> str:
        return f"{one['volume']['s']:.2f} ({'×'.join(map(str, one['volume']['shape']))})" if "volume" in one else "—"

    def megabytes(one: dict[str, Any]) -> str:
        return f"{one['memory_mb']:.0f}" if one.get("memory_mb") is not None else "—"

    lines += [f"| volume ×2 | {cells(volume)} |", f"| memory | {cells(megabytes)} |", ""]
    for name, device in found["devices"].items():
        if "runs_on" in device:
            errors = device["largest_error_of_range"]
            worst = max(errors, key=errors.__getitem__)
            lines.append(
                f"- `{name}`: {device['runs_on']}; loaded in {device['load_s']:.1f} s; largest difference from the CPU "
                f"{errors[worst]:.1e} of the range, at ×{worst}, of {len(errors)} scales."
            )
        else:
            lines.append(f"- `{name}`: no: {device['problem']}")
    host = ", ".join(f"{row} {ms:.2f} ms" for row, ms in found["host_ms"].items())
    return "\n".join([*lines, f"- The host's part of a slice: {host}.", f"- Tests: {found['tests'][-1]}", ""])


if __name__ == "__main__":
    main()
