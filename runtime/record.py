"""What made an output: the record that is written beside it, and into DICOM's own fields."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import __version__
from .files import write_atomically
from .upscaler import Upscaler


def record_of(upscaler: Upscaler, scale: object, digests: Iterable[str]) -> dict[str, Any]:
    """Software, bundle, device, scale, grid convention, input and time, in JSON's own types. It names no file.

    `digests` are the SHA-256 of the input's files, in any order. The time is SOURCE_DATE_EPOCH's where that is set, so that
    the same input gives the same bytes again.
    """
    now = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC) if "SOURCE_DATE_EPOCH" in os.environ else None
    return {
        "software": f"metasrgan-edge {__version__}",
        "bundle": upscaler.bundle.sha256,
        "device": f"{upscaler.device} ({upscaler.runs_on})",
        "scale": scale,
        "grid": f"{upscaler.bundle.model.projection}, outer edges of the first voxel aligned",
        "input": hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        "time": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
    }


def write_record(path: Path, record: dict[str, Any], overwrite: bool) -> None:
    """As JSON, whole or not at all."""
    content = json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n"
    write_atomically(path, lambda file: file.write(content), overwrite)
