"""Damaged files through the product, a summary by format: `python -m tests.fuzz --inputs 20000 --seed 1 --jobs 2`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from . import mutate
from .harness import Outcome, outcomes
from .seeds import seeds, tiny_bundle

_KEPT = 3  # inputs of a kind of fault that are written down


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first input; a fault's replays it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for the inputs that broke a rule")
    args = parser.parse_args()
    network = tiny_bundle()
    starts = seeds(network)
    numbers = range(args.first, args.first + args.inputs)
    counts: Counter[tuple[str, str]] = Counter()
    faults: dict[tuple[str, str, str], list[Outcome]] = {}
    with contextlib.suppress(KeyboardInterrupt):  # what was found until then is told
        for outcome in tqdm(outcomes(numbers, starts, args.seed, network, args.jobs), total=len(numbers), unit=" inputs"):
            counts[outcome.format, "fault" if outcome.is_fault else outcome.verdict] += 1
            if outcome.is_fault:
                same = faults.setdefault((outcome.format, outcome.verdict, outcome.where), [])
                same.append(outcome)
                if len(same) <= _KEPT:
                    folder = args.out / f"{outcome.format}-{args.seed}-{outcome.number}"
                    mutate.case(starts, args.seed, outcome.number).write(folder)
    print(table(counts))
    for (format, verdict, where), same in sorted(faults.items(), key=lambda item: -len(item[1])):
        examples = ", ".join(str(outcome.number) for outcome in same[:_KEPT])
        print(f"\n{format}: {verdict}, {len(same)} inputs, such as {examples}\n  {where}\n  {same[0].said!r}")
    return bool(faults)


def table(counts: Counter[tuple[str, str]]) -> str:
    """What became of the inputs of each format, in Markdown."""
    lines = ["| format | inputs | finished | refused | faults |", "|---|---|---|---|---|"]
    verdicts = ("finished", "refused", "fault")
    rows = {format: [counts[format, verdict] for verdict in verdicts] for format in sorted({format for format, _ in counts})}
    rows["all"] = [sum(column) for column in zip(*rows.values())]
    lines += [f"| {format} | {sum(row):,} | {' | '.join(f'{n:,}' for n in row)} |" for format, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
