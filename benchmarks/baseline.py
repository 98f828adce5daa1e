"""`python -m benchmarks.baseline RUN.json …`: the committed baseline of each processor that the runs come from.

A ratio is taken in one run, so it says little of how fast a machine is; it does say how its memory and its arithmetic compare:
the stage moves numbers, the trunk multiplies them. So each processor has its own, and one that has none is held to the most
lenient. A ratio's usual value is the median of a processor's runs. Its margin is three times as far as the worst run lies from
it, at least 30 % (hours differ more than runs that follow each other) and at most 100 %. Bytes do not vary: 2 %.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from benchmarks.measure import BASELINE, worse

LEAST, MOST, TIMES, BYTES = 0.3, 1.0, 3, 0.02


def baseline(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Name → median, margin, number of runs, of all ratios that any of a processor's runs has."""
    held = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if name in run]
        usual = statistics.median(values)
        worst = max(worse(name, value, usual) for value in values)
        margin = BYTES if name.startswith("less: bytes") else min(MOST, max(LEAST, TIMES * (worst - 1)))
        held[name] = {"median": round(usual, 4), "margin": round(margin, 3), "runs": len(values)}
    return held


if __name__ == "__main__":
    runs: dict[str, list[dict[str, float]]] = {}
    for name in sys.argv[1:]:
        run = json.loads(Path(name).read_text())
        runs.setdefault(run["machine"]["processor"], []).append(run["ratios"])
    content = json.loads(BASELINE.read_text()) | {processor: baseline(ratios) for processor, ratios in runs.items()}
    BASELINE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for processor, ratios in runs.items():
        print(f"{BASELINE}: {len(content[processor])} ratios of {len(ratios)} runs on {processor}")
