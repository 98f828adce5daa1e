"""Times side by side, what is recorded of them, and the bounds that they are held to."""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BASELINE = Path(__file__).parent / "baseline.json"


def seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """Of one call, from so many in a row."""
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - began) / repeats


def side_by_side(ways: Mapping[str, Callable[[], Any]], rounds: int, least_s: float = 0.4) -> dict[str, float]:
    """Seconds of each way, the median of its rounds. A round runs all of them, so that they see the same machine.

    A first round does not count. What takes less than `least_s` is repeated within a round until it lasts as long: what others
    left in the caches is theirs.
    """
    repeats = {name: max(1, round(least_s / seconds(way))) for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(seconds(way, repeats[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def gate(test: Callable[..., None]) -> Callable[..., None]:
    """A test of time, for --gate alone. One that fails is run twice more: another's work spoils one try, a slow-down all three.

    What a failed try recorded is forgotten.
    """

    @functools.wraps(test)
    def tried(record: Record, **fixtures: Any) -> None:
        before = len(record.facts)
        for _ in range(2):
            try:
                return test(record=record, **fixtures)
            except (AssertionError, pytest.fail.Exception) as error:
                print(f"once more: {error}")
                del record.facts[before:]
        return test(record=record, **fixtures)

    return pytest.mark.gate(tried)


def processor() -> str:
    """The processor's name, as the machine gives it, and its widest vectors: the name alone may stand for generations."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in lines}
        name, flags = facts["model name"], facts["flags"].split()
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
    return name + (", AVX-512" if "avx512f" in flags else ", AVX2" if "avx2" in flags else "")


def machine() -> dict[str, Any]:
    """What times depend on, beside the code."""
    from runtime.engines.ort import available_processors, version_of

    names = ("numpy", "onnxruntime", "onnxruntime-gpu", "cuda-bindings", "pycuda", "tensorrt-rtx", "torch", "nibabel", "pillow")
    versions = {name: version for name in names if (version := version_of(name))}
    return {"processor": processor(), "processors": available_processors(), "python": platform.python_version()} | versions


def worse(name: str, value: float, usual: float) -> float:
    """How many times as bad as usual. A name that begins with `less:` is better the smaller it is; all others the larger."""
    return value / usual if name.startswith("less:") else usual / value


@dataclass
class Record:
    """All that a run measured: facts in the order in which they came, and the ratios that are held."""

    full: bool
    facts: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, dict[str, dict[str, float]]] = field(default_factory=lambda: json.loads(BASELINE.read_text()))

    @property
    def renewing(self) -> bool:
        """Whether this run only measures, for a new baseline."""
        return bool(os.environ.get("NEW_BASELINE"))

    def add(self, what: str, **fact: Any) -> None:
        """A fact: what was measured, under which circumstances, and numbers."""
        self.facts.append({"what": what, **fact})
        print(what, *(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fact.items()), sep=", ")

    def usual(self, name: str) -> tuple[float, float]:
        """Median and margin that a ratio is held to: this processor's, or the most lenient of all that have been measured."""
        own = self.baseline.get(processor(), {})
        known = [own] if name in own else [ratios for ratios in self.baseline.values() if name in ratios]
        assert known, f"{name!r} has no baseline: CONTRIBUTING.md says how to make one"
        bounds = [(ratios[name]["median"], ratios[name]["margin"]) for ratios in known]
        if name.startswith("less:"):
            return max(bounds, key=lambda bound: bound[0] * (1 + bound[1]))
        return min(bounds, key=lambda bound: bound[0] / (1 + bound[1]))

    def hold(self, name: str, value: float) -> None:
        """Hold a ratio to the committed baseline: AssertionError where it is worse by more than its margin."""
        self.ratios[name] = value
        if self.renewing:
            return
        usual, margin = self.usual(name)
        times = worse(name, value, usual)
        assert times <= 1 + margin, (
            f"{name}: {value:.4g}, where {usual:.4g} is usual: worse by {times - 1:.0%}, more than {margin:.0%}"
        )

    def write(self, path: Path, command: str) -> None:
        """The run as JSON."""
        content = {"date": time.strftime("%Y-%m-%d"), "command": command, "machine": machine(), "full": self.full}
        path.write_text(json.dumps(content | {"ratios": self.ratios, "facts": self.facts}, indent=1, ensure_ascii=False) + "\n")
