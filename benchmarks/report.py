"""A run's JSON → a page and a plot beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


def write(path: Path) -> None:
    """`RUN.json` → `RUN.md`, and `RUN.svg` where all scales were measured."""
    run = json.loads(path.read_text())
    drawn = len(_of(run, "stage")) > 10
    if drawn:
        _plot(run, path.with_suffix(".svg"))
    path.with_suffix(".md").write_text("\n".join(_page(run, path.with_suffix(".svg").name if drawn else None)) + "\n")


def _page(run: dict[str, Any], plot: str | None) -> Iterable[str]:
    machine = run["machine"]
    yield f"# Speed and footprint: {machine['processor']}, {machine['processors']} processors\n"
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if name not in ("processor", "processors"))
    yield f"`{run['command']}`, {run['date']}. {versions}.\n"
    yield "Two threads unless said. Medians of rounds in which all rows of a table's group take turns.\n"

    if facts := [fact for fact in run["facts"] if fact["what"].endswith("end to end") and "×" in fact["what"]]:
        yield "## Beside what a clinic would use instead\n"
        yield "End to end: from an array to an array, intensities and tiles included.\n"
        yield from _table(
            ["", "input", "row", "median", "times ours, fp16"],
            [
                [
                    fact["what"].split()[0],
                    _size(fact),
                    fact["row"],
                    _ms(fact["seconds"]),
                    f"{fact['seconds'] / _ours(facts, fact):.3g}",
                ]
                for fact in facts
            ],
        )
    if facts := _of(run, "fresh process"):
        yield "## A fresh process\n"
        yield "Peak memory is over what the process had with numpy alone.\n"
        yield from _table(
            ["row", "input", "scale", "peak memory", "load", "first slice", "next"],
            [
                [fact["row"], _size(fact), f"×{fact['scale']}", f"{fact['peak_kb'] / 1e3:.0f} MB"]
                + [_ms(fact.get(key)) for key in ("load_s", "first_s", "warm_s")]
                for fact in facts
            ],
        )
    if facts := _of(run, "bytes on disk"):
        yield "## Size\n"
        yield from _table(
            ["row", "parameters", "bytes on disk"], [[f["row"], f"{f['parameters']:,}", f"{f['bytes']:,}"] for f in facts]
        )
        for fact in _of(run, "installed by pip install '.[cpu]'"):
            yield f"`pip install '.[cpu]'` brings {fact['megabytes']:.0f} MB, onnxruntime and numpy most of it.\n"
    if facts := _of(run, "start"):
        (fact,) = facts
        yield "## Start\n"
        yield (
            f"Medians of five fresh processes: import {_ms(fact['import_s'])}, load {_ms(fact['load_s'])}, "
            f"first slice of 240×240 ×2 {_ms(fact['first_s'])}, the next ones {_ms(fact['warm_s'])}.\n"
        )
    if facts := _of(run, "roofline"):
        yield "## Beside the processor's limit\n"
        yield from _table(["float32, 2 threads", "GFLOP/s"], [[fact["of"], f"{fact['gflops']:.0f}"] for fact in facts])
    if facts := _of(run, "stage"):
        yield "## Every scale, 240×240\n"
        if plot:
            yield f"![time over scale]({plot})\n"
        tables = {fact["scale"]: fact["seconds"] for fact in _of(run, "table")}
        ends = {(fact["row"], fact["scale"]): fact["seconds"] for fact in _of(run, "end to end")}
        names = list(dict.fromkeys(row for row, _ in ends))
        yield from _table(
            ["scale", "trunk", "stage", "of the trunk", "new table", *(f"{name}, end to end" for name in names)],
            [
                [f"×{f['scale']}", _ms(f["trunk_seconds"]), _ms(f["seconds"]), f"{100 * f['of_trunk']:.1f} %"]
                + [_ms(tables.get(f["scale"]))]
                + [_ms(ends.get((name, f["scale"]))) for name in names]
                for f in facts
            ],
        )
    if facts := _of(run, "zoom of 512×512"):
        yield "## Zoom: a window of 512×512 of an encoded slice\n"
        yield from _table(["scale", "median"], [[f"×{fact['scale']}", _ms(fact["seconds"])] for fact in facts])
    if facts := _of(run, "growth with pixels, ×2"):
        yield "## How time grows\n"
        yield from _table(
            ["row", "input ×2", "median", "µs a pixel"],
            [[f["row"], _size(f), _ms(f["seconds"]), f"{1e6 * f['seconds'] / f['size'] ** 2:.2f}"] for f in facts],
        )
        yield from _table(["240×240", "median"], [[f["of"], _ms(f["seconds"])] for f in _of(run, "growth, 240×240")])
    for fact in _of(run, "volume of 181×217×181, ×2"):
        speed = f"{fact['seconds']:.1f} s, {fact['slices_a_second']:.1f} slices a second"
        yield f"A volume of 181×217×181, ×2, {fact['row']}: {speed}.\n"
    for fact in _of(run, "volume beyond its own arrays"):
        yield f"Peak memory of a volume of {fact['slices']} slices beyond its own arrays: {fact['peak_kb'] / 1e3:.1f} MB.\n"


def _plot(run: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "metasrgan-edge"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    lines: dict[str, list[tuple[float, float]]] = {}
    for fact in _of(run, "end to end"):
        lines.setdefault(fact["row"], []).append((float(fact["scale"]), 1e3 * fact["seconds"]))
    lines["stage alone"] = [(float(fact["scale"]), 1e3 * fact["seconds"]) for fact in _of(run, "stage")]
    for name, points in lines.items():
        axes.plot(*zip(*points), marker=".", label=name)
    axes.set(xlabel="scale", ylabel="ms", yscale="log", title="A slice of 240×240 pixels, 2 threads")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _of(run: dict[str, Any], what: str) -> list[Fact]:
    return [fact for fact in run["facts"] if fact["what"] == what]


def _ours(facts: list[Fact], beside: Fact) -> float:
    key = ("what", "size")
    wanted = [*(beside[k] for k in key), "ours, fp16"]
    seconds: float = next(f["seconds"] for f in facts if [*(f[k] for k in key), f["row"]] == wanted)
    return seconds


def _table(head: list[str], rows: list[list[str]]) -> Iterable[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def _size(fact: Fact) -> str:
    return f"{fact['size']}×{fact['size']}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
