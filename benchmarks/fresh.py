"""What a row costs a fresh process: `python -m benchmarks.fresh ROW ROWS COLUMNS SCALE CALLS` prints it as JSON.

Memory is the peak of the resident set over what the process had with numpy alone, before it loaded anything.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parent.parent


def costs(row: str, shape: tuple[int, int], scale: str, calls: int) -> dict[str, float]:
    """Seconds to load, of the first call and the median of those after it, and peak kilobytes, of a process of its own."""
    from benchmarks import rows

    if row != "bicubic":
        rows.file(row)  # made here, where it costs nobody anything
    facts: dict[str, float] = _answer("-m", "benchmarks.fresh", row, *shape, scale, calls)
    return facts


def import_seconds() -> float:
    """What an embedding program pays for `import runtime`, numpy included."""
    code = "import time; began = time.perf_counter(); from runtime import Upscaler; print(time.perf_counter() - began)"
    return float(_answer("-c", code))


def volume_kilobytes(slices: int) -> int:
    """Peak memory of a volume of so many slices of 96×96, ×2, beyond its own arrays of input and output."""
    return int(_answer("-m", "benchmarks.fresh", "volume", slices))


def _answer(*arguments: object) -> Any:
    command = [sys.executable, *map(str, arguments)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def peak() -> int:
    """Kilobytes that this process has had at most."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))


def _row(row: str, shape: tuple[int, int], scale: Fraction, calls: int) -> dict[str, float]:
    import numpy as np

    image = np.random.default_rng(0).random(shape, np.float32)
    idle = peak()
    from benchmarks import rows

    times = [perf_counter()]
    upscale = rows.load(row, 2)
    times.append(perf_counter())
    for _ in range(calls):
        upscale(image, scale)
        times.append(perf_counter())
    load, first, *more = np.diff(times).tolist()
    warm = {"warm_s": statistics.median(more)} if more else {}
    return {"load_s": load, "first_s": first, **warm, "peak_kb": peak() - idle}


def _volume(slices: int) -> int:
    import nibabel as nib
    import numpy as np

    from runtime import Upscaler

    image = nib.Nifti1Image(np.random.default_rng(0).random((96, 96, slices), np.float32), np.eye(4))
    with Upscaler.load(threads=2) as up:
        up(np.asarray(image.dataobj[..., 0]), 2)
        idle = peak()
        result = up.volume(image, scale=2, axis=2)
    return peak() - idle - np.asarray(result.dataobj).nbytes // 1024


if __name__ == "__main__":
    if sys.argv[1] == "volume":
        print(_volume(int(sys.argv[2])))
    else:
        row, rows, columns, scale, calls = sys.argv[1:]
        print(json.dumps(_row(row, (int(rows), int(columns)), Fraction(scale), int(calls))))
