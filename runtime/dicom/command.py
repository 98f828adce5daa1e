"""The command line's part: every series of a folder, file or zip → a derived series in a folder, its record beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ImageError, OutputFileError
from ..files import check_folder
from ..record import record_of, write_record
from ..upscaler import Upscaler, resolve_scales
from .derive import WRITTEN, save
from .series import Series, find_series
from .source import Source


def upscale_series(
    upscaler: Upscaler,
    path: Path,
    out: Path,
    size: dict[str, Any],
    *,
    anonymous: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Upscale each series that can be, in its slices' planes, into OUT/series-1 and so on; how many there were.

    `size` is `scale` or `shape` as of `Upscaler`; `say` is told in a line each what was left out, and what was made. Raises
    ImageError where no series can be upscaled.
    """
    found = find_series(path)
    usable = [series for series in found if not series.problem]
    for series in found:
        for note in series.notes:
            say(f"{path}: {note}")
        if series.problem:
            say(f"{path}: a series of {_size(series)} is left out: it {series.problem}")
    if not usable:
        raise ImageError(f"{path} has no series that can be upscaled: {len(found)} found, none of them a volume of slices")
    folders = [out / f"series-{k}" for k in range(1, len(usable) + 1)]
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise OutputFileError(f"{out} cannot be made ({error.strerror}): name another folder") from None
    for folder in folders:  # before any work is done
        check_folder(folder, overwrite, WRITTEN)
    for series, folder in zip(usable, folders):
        rows, cols = resolve_scales(series.shape[:2], size.get("scale"), size.get("shape"))
        image = upscaler.volume(series.volume(), (cols, rows), axis=2)  # as the array's axes lie
        scale = str(rows) if rows == cols else f"{rows}, {cols}"
        record = record_of(upscaler, scale, {_digest(source) for source in {frame.source for frame in series.frames}})
        save(folder, series, image, description=f"×{scale}", record=record, anonymous=anonymous, overwrite=overwrite)
        write_record(folder.with_suffix(".json"), record, overwrite=True)
        say(f"{path} {_size(series)} → {folder} {'×'.join(str(image.shape[k]) for k in (1, 0, 2))}, ×{scale}")
    return len(usable)


def _size(series: Series) -> str:
    return "×".join(map(str, series.shape))


def _digest(source: Source) -> str:
    with source.open() as file:
        return hashlib.sha256(file.read()).hexdigest()
