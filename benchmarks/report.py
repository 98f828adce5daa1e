"""A run's JSON → a page and a plot beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


def write(path: Path) -> None:
    """`RUN.json` → `RUN.md`, and `RUN.svg` where all scales were measured."""
    run = json.loads(path.read_text())
    drawn = len(_of(run, "stage")) > 10
    if drawn:
        _plot(run, path.with_suffix(".svg"))
    path.with_suffix(".md").write_text("\n".join(_page(run, path.with_suffix(".svg").name if drawn else "")) + "\n")


def _page(run: dict[str, Any], plot: str) -> Iterator[str]:
    machine = run["machine"]
    yield f"# Speed and footprint: {machine['processor']}, {machine['processors']} processors\n"
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if name not in ("processor", "processors"))
    yield f"`{run['command']}`, {run['date']}. {versions}.\n"
    yield "Two threads unless said. Medians of rounds in which all rows of a table's group take turns.\n"

    facts = [fact for fact in run["facts"] if fact["what"].endswith("end to end") and "×" in fact["what"]]
    ours = {(fact["what"], fact["size"]): fact["seconds"] for fact in facts if fact["row"] == "ours, fp16"}
    yield from _section(
        "Beside what a clinic would use instead",
        "End to end: from an array to an array, intensities and tiles included.",
        ["", "input", "row", "median", "times ours, fp16"],
        [
            [f["what"].split()[0], _size(f), f["row"], _ms(f["seconds"]), f"{f['seconds'] / ours[f['what'], f['size']]:.3g}"]
            for f in facts
        ],
    )
    yield from _section(
        "A fresh process",
        "Peak memory is over what the process had with numpy alone.",
        ["row", "input", "scale", "peak memory", "load", "first slice", "next"],
        [
            [f["row"], _size(f), f"×{f['scale']}", f"{f['peak_kb'] / 1e3:.0f} MB"]
            + [_ms(f.get(key)) for key in ("load_s", "first_s", "warm_s")]
            for f in _of(run, "fresh process")
        ],
    )
    sizes = [[f["row"], f"{f['parameters']:,}", f"{f['bytes']:,}"] for f in _of(run, "bytes on disk")]
    yield from _section("Size", "", ["row", "parameters", "bytes on disk"], sizes)
    for f in _of(run, "installed by pip install '.[cpu]'"):
        yield f"`pip install '.[cpu]'` brings {f['megabytes']:.0f} MB, onnxruntime and numpy most of it.\n"
    for f in _of(run, "start"):
        yield "## Start\n"
        yield (
            f"Medians of five fresh processes: import {_ms(f['import_s'])}, load {_ms(f['load_s'])}, "
            f"first slice of 240×240 ×2 {_ms(f['first_s'])}, the next ones {_ms(f['warm_s'])}.\n"
        )
    speeds = [[f["of"], f"{f['gflops']:.0f}"] for f in _of(run, "roofline")]
    yield from _section("Beside the processor's limit", "", ["float32, 2 threads", "GFLOP/s"], speeds)
    tables = {f["scale"]: f["seconds"] for f in _of(run, "table")}
    ends = {(f["row"], f["scale"]): f["seconds"] for f in _of(run, "end to end")}
    names = list(dict.fromkeys(row for row, _ in ends))
    yield from _section(
        "Every scale, 240×240",
        f"![time over scale]({plot})" if plot else "",
        ["scale", "trunk", "stage", "of the trunk", "new table", *(f"{name}, end to end" for name in names)],
        [
            [f"×{f['scale']}", _ms(f["trunk_seconds"]), _ms(f["seconds"]), f"{100 * f['of_trunk']:.1f} %"]
            + [_ms(seconds) for seconds in (tables.get(f["scale"]), *(ends.get((name, f["scale"])) for name in names))]
            for f in _of(run, "stage")
        ],
    )
    zooms = [[f"×{f['scale']}", _ms(f["seconds"])] for f in _of(run, "zoom of 512×512")]
    yield from _section("Zoom: a window of 512×512 of an encoded slice", "", ["scale", "median"], zooms)
    growth = [
        [f["row"], _size(f), _ms(f["seconds"]), f"{1e6 * f['seconds'] / f['size'] ** 2:.2f}"]
        for f in _of(run, "growth with pixels, ×2")
    ]
    yield from _section("How time grows", "", ["row", "input ×2", "median", "µs a pixel"], growth)
    yield from _section("", "", ["240×240", "median"], [[f["of"], _ms(f["seconds"])] for f in _of(run, "growth, 240×240")])
    for f in _of(run, "volume of 181×217×181, ×2"):
        speed = f"{f['seconds']:.1f} s, {f['slices_a_second']:.1f} slices a second"
        yield f"A volume of 181×217×181, ×2, {f['row']}: {speed}.\n"
    for f in _of(run, "volume beyond its own arrays"):
        yield f"Peak memory of a volume of {f['slices']} slices beyond its own arrays: {f['peak_kb'] / 1e3:.1f} MB.\n"


def _section(title: str, said: str, head: list[str], rows: list[list[str]]) -> Iterable[str]:
    """A title, a paragraph and a table; nothing without rows."""
    if not rows:
        return []
    begins = [f"## {title}\n"] * bool(title) + [f"{said}\n"] * bool(said)
    names, *cells = ("| " + " | ".join(row) + " |" for row in (head, *rows))
    return [*begins, names, "|" + "---|" * len(head), *cells, ""]


def _plot(run: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "metasrgan-edge"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="tight")
    lines: dict[str, list[tuple[float, float]]] = {}
    for fact in _of(run, "end to end"):
        lines.setdefault(fact["row"], []).append((float(fact["scale"]), 1e3 * fact["seconds"]))
    lines["stage alone"] = [(float(fact["scale"]), 1e3 * fact["seconds"]) for fact in _of(run, "stage")]
    for name, points in lines.items():
        axes.plot(*zip(*points), marker=".", label=name)
    axes.set(xlabel="scale", ylabel="ms", yscale="log", title="A slice of 240×240 pixels, 2 threads")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _of(run: dict[str, Any], what: str) -> list[Fact]:
    return [fact for fact in run["facts"] if fact["what"] == what]


def _size(fact: Fact) -> str:
    return f"{fact['size']}×{fact['size']}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
