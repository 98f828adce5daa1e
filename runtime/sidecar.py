"""The record beside an output, a JSON file: what it was made of, by what, and how. It holds neither pixels nor patient fields.

A record gets its name before its output does, and holds the output's hash: what a crash leaves between the two is a record
of nothing, never an output that nobody can account for.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from .errors import OutputFileError
from .files import check_output, draft, sha256, write_atomically

FORMAT = "metasrgan-edge record"
VERSION = 1
_LARGEST = 16 << 20  # bytes of a JSON file
Record = dict[str, Any]


def beside(output: Path) -> Path:
    """Where the record of an output lies."""
    return output.with_name(f"{output.name}.json")


def fingerprint(files: Iterable[Path]) -> str:
    """The SHA-256 of a file, or of several whatever their names and order: that of their sorted hashes."""
    hashes = sorted(sha256(file) for file in files)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def fingerprint_of(output: Path) -> str:
    """Of a file, or of all files in a folder."""
    return fingerprint(file for file in output.rglob("*") if file.is_file()) if output.is_dir() else sha256(output)


def read(output: Path) -> Record | None:
    """The record of an output, or None where there is none that this program wrote."""
    content = read_json(beside(output), FORMAT)
    ours = content is not None and content.get("version") == VERSION and isinstance(content.get("output"), dict)
    return content if ours else None


def read_json(path: Path, format: str) -> Record | None:
    """What a JSON file of this program's holds, by the `format` that it names; None where it is not there, or another's."""
    content = json_object(path)
    return content if content.get("format") == format else None


def json_object(path: Path) -> Record:
    """The object that a JSON file of anybody's holds; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_done(output: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether an output is there, whole, and made of just this: its record agrees with `made_of`, its bytes with its record."""
    found = read(output)
    if found is None or any(found.get(key) != value for key, value in made_of.items()):
        return False
    try:
        return bool(found["output"].get("sha256") == fingerprint_of(output))
    except OSError:
        return False


def is_unfinished(output: Path) -> bool:
    """Whether a folder was begun here by a run that did not come to its end."""
    found = read(output)
    return found is not None and found["output"].get("sha256") is None


def check(output: Path, overwrite: bool) -> None:
    """Raise OutputFileError, before any work is done, where an output and its record cannot become new files."""
    if os.path.isdir(output):
        if not (overwrite or is_unfinished(output)):
            raise OutputFileError(f"{output} exists already: name another folder, or allow replacing it (--force)")
    else:
        check_output(output, overwrite)
    check_output(beside(output), overwrite or read(output) is not None)


def write_with(output: Path, write: Callable[[IO[bytes]], Any], content: Record, overwrite: bool, like: Path) -> None:
    """Write a file and its record, both or neither, no more open than the input `like`. Raises OutputFileError."""
    stale = read(output) is not None and not os.path.lexists(output)
    with draft(output, overwrite, like) as new:
        write(new.file)
        new.finish()
        with draft(beside(output), overwrite or stale, like) as new_record:
            new_record.file.write(_serialised(content, new.sha256()))
            new_record.finish()
            new_record.publish()
        try:
            new.publish()
        except BaseException:
            if not overwrite:
                beside(output).unlink(missing_ok=True)
            raise


def write_around(folder: Path, save: Callable[[bool], Any], content: Record, overwrite: bool, like: Path) -> None:
    """Let `save(overwrite)` write a folder, with a record that is without the hash until the folder is there."""
    again = overwrite or is_unfinished(folder)

    def write(file: IO[bytes], hashed: str | None = None) -> None:
        file.write(_serialised(content, hashed))

    write_atomically(beside(folder), write, again or read(folder) is not None, like=like)
    try:
        save(again)
    except BaseException:
        if not folder.exists():
            beside(folder).unlink(missing_ok=True)
        raise
    write_atomically(beside(folder), lambda file: write(file, fingerprint_of(folder)), overwrite=True, like=like)


def time_stamp(deterministic: bool) -> str | None:
    """The time in UTC, or what SOURCE_DATE_EPOCH says in its place; None of a run that is to give the same bytes again."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if told.isdecimal():
        moment = datetime.datetime.fromtimestamp(int(told), datetime.UTC)
    elif deterministic:
        return None
    else:
        moment = datetime.datetime.now(datetime.UTC)
    return moment.isoformat(timespec="seconds")


def _serialised(content: Record, hashed: str | None) -> bytes:
    whole = {"format": FORMAT, "version": VERSION, **content}
    whole["output"] = {**content["output"], "sha256": hashed}
    return json.dumps(whole, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
