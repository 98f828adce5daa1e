"""How much of the code one NIfTI file goes through: `python -m benchmarks.trace` lists the files and functions that run.

A comprehension or generator expression, which Python runs as a function of its own, counts as part of the one that holds it.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

from runtime.__main__ import main

ROOT = Path(__file__).parents[1]


def traced() -> list[tuple[str, str]]:
    """(file, function) of this project each time that the command line calls one for the example scan, imports not counted."""
    calls = []

    def look(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{ROOT}/runtime") and code.co_name != "<module>":
            function = re.sub(r"\.<locals>\.<(genexpr|\w+comp)>", "", code.co_qualname)
            calls.append((str(Path(code.co_filename).relative_to(ROOT)), function))

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(look)
        try:
            main([str(ROOT / "examples" / "t1ce_thick.nii.gz"), "--scale", "2", "-o", f"{folder}/sr.nii.gz", "--quiet"])
        finally:
            sys.setprofile(None)
    return calls


if __name__ == "__main__":
    calls, functions = traced(), defaultdict[str, set[str]](set)
    for file, function in calls:
        functions[file].add(function)
    for file, names in sorted(functions.items()):
        print(f"{file}: {', '.join(sorted(names))}")
    changes = sum(one[0] != other[0] for one, other in itertools.pairwise(calls))
    print(f"{len(functions)} files, {sum(map(len, functions.values()))} functions, {changes} changes of file")
