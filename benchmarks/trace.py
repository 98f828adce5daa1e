"""How much of the code one NIfTI file goes through: `python -m benchmarks.trace` lists the files and functions that run."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from runtime.__main__ import main

ROOT = Path(__file__).parents[1]


def traced() -> set[tuple[str, str]]:
    """(file, function) of this project that the command line runs for the example scan, imports not counted."""
    seen: set[CodeType] = set()
    changes = 0
    last = ""

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal changes, last
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT / "runtime")) and code.co_name != "<module>":
            seen.add(code)
            changes, last = changes + (code.co_filename != last), code.co_filename

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(look)
        try:
            main([str(ROOT / "examples" / "t1ce_thick.nii.gz"), "--scale", "2", "-o", f"{folder}/sr.nii.gz", "--quiet"])
        finally:
            sys.setprofile(None)
    print(f"changes of file: {changes}")
    return {(str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname) for code in seen}


if __name__ == "__main__":
    found = traced()
    for file in sorted({file for file, _ in found}):
        print(f"{file}: {', '.join(sorted(name for one, name in found if one == file))}")
    print(f"{len({file for file, _ in found})} files, {len(found)} functions")
