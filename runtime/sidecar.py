"""The sidecar of an output, a JSON file: what it was made of, by what, and how. It holds neither pixels nor patient fields.

A sidecar gets its name before its output does, and holds the output's hash: what a crash leaves between the two is a sidecar
of nothing, never an output that nobody can account for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .files import sha256, write_atomically

Sidecar = dict[str, Any]

FORMAT = "metasrgan-edge record"
VERSION = 1
_LARGEST = 16 << 20  # bytes of a JSON file


def beside(output: Path) -> Path:
    """Where the sidecar of an output lies."""
    return output.with_name(f"{output.name}.json")


def fingerprint(*paths: Path) -> str:
    """The SHA-256 of a file; of several, or of all files in a folder, that of their sorted hashes, whatever their names."""
    each = [filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path] for path in paths]
    hashes = sorted(sha256(file) for files in each for file in files)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def read(output: Path) -> Sidecar:
    """The sidecar of an output, empty where there is none that this program wrote."""
    content = read_json(beside(output))
    ours = (content.get("format"), content.get("version")) == (FORMAT, VERSION) and isinstance(content.get("output"), dict)
    return content if ours else {}


def read_json(path: Path) -> dict[str, Any]:
    """The object that anybody's JSON file holds; an empty one where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _LARGEST else None
        return content if isinstance(content, dict) else {}
    return {}


def write_json(path: Path, content: dict[str, Any], overwrite: bool, like: Path | None = None) -> None:
    """Write an object as a JSON file, as `write_atomically` does."""
    text = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    write_atomically(path, text, overwrite, like=like)


def is_done(output: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether an output is there, whole, and made of just this: its sidecar agrees with `made_of`, its bytes with it."""
    found = read(output)
    with contextlib.suppress(OSError):
        agrees = bool(found) and all(found.get(key) == value for key, value in made_of.items())
        return agrees and found["output"].get("sha256") == fingerprint(output)
    return False


def write_with(output: Path, write: Callable[..., Any], content: Sidecar, overwrite: bool, like: Path) -> None:
    """Write an output and its sidecar, both or neither, no more open than the input `like`. Raises OutputFileError.

    `write(overwrite=, like=, first=)` writes the output as `files` does, and calls `first` as `write_atomically` does.
    """
    stale = bool(read(output)) and not os.path.lexists(output)
    with contextlib.ExitStack() as undo:

        def first(finished: Path) -> None:
            hashed = {**content["output"], "sha256": fingerprint(finished)}
            whole = {"format": FORMAT, "version": VERSION, **content, "output": hashed}
            write_json(beside(output), whole, overwrite or stale, like)
            if not overwrite:
                undo.callback(beside(output).unlink, missing_ok=True)

        write(overwrite=overwrite, like=like, first=first)
        undo.pop_all()


def time_stamp(deterministic: bool) -> dict[str, str]:
    """`time` in UTC, or what SOURCE_DATE_EPOCH says in its place; nothing of a run that is to give the same bytes again."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if deterministic and not told.isdecimal():
        return {}
    seconds = int(told) if told.isdecimal() else time.time()
    return {"time": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")}
