"""One input → one output and its record, whatever their formats: what the command line does once, and a cohort many times."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from . import __version__, io, preview, record, sizes, volume
from .errors import InputFileError, OutputFileError, reason
from .files import check_output, draft
from .scan import Scan
from .sizes import Size
from .upscaler import GRAIN, Upscaler

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What is asked of every input."""

    size: Size
    axis: int | None = None
    dtype: str | None = None
    acquired: Literal["auto", "stored"] | Sequence[int] = "auto"
    noise: float | None = None
    grain: float = GRAIN
    overwrite: bool = False
    resume: bool = False  # leave alone what is done already
    deterministic: bool = False
    anonymous: bool = False
    key: bytes | None = field(default=None, repr=False)  # of an anonymous output: the same key gives the same UIDs again
    allow_gaps: bool = False  # take a DICOM series of which files are damaged
    preview: bool = False
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), compare=False, repr=False)  # where there is no key

    def options(self, task: Task) -> dict[str, Any]:
        """All of it that the output's values depend on, as a record holds it."""
        series = None if task.series is None else task.series + 1
        acquired = self.acquired if isinstance(self.acquired, str) else list(self.acquired)
        asked: dict[str, Any] = {"axis": self.axis, "dtype": self.dtype, "series": series, "acquired": acquired}
        asked |= {"noise": self.noise, "grain": self.grain, "anonymous": self.anonymous or None}
        asked["allow_gaps"] = self.allow_gaps or None
        return self.size.asked() | {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Task:
    """An input and where its output goes; of a DICOM input, which of its series, from 0."""

    source: Path
    output: Path
    series: int | None = None

    @property
    def preview(self) -> Path:
        """Where the output's preview goes, where one is asked for."""
        return self.output.with_name(f"{self.output.name.removesuffix(io.suffix(self.output))}_preview.png")

    @property
    def name(self) -> str:
        """The input, as a person is told of it."""
        return str(self.source) if self.series is None else f"{self.source} (series {self.series + 1})"


@dataclass(frozen=True)
class Result:
    """What became of a task. `problem` is the one line that says why it failed or was skipped, `notes` what else to know."""

    task: Task
    status: str  # done, skipped or failed
    shape_in: tuple[int, ...] = ()
    shape_out: tuple[int, ...] = ()
    scales: tuple[Fraction, ...] = ()
    device: str = ""
    seconds: float = 0.0
    problem: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.status != "done":
            return f"{self.task.name}: {self.problem}"
        before, after = ("×".join(map(str, shape)) for shape in (self.shape_in, self.shape_out))
        said = f"{self.task.name} {before} {sizes.written(self.scales)} → {self.task.output} {after}"
        return "\n  ".join((f"{said}, on {self.device} in {self.seconds:.1f} s", *self.notes))


def run(upscaler: Upscaler, task: Task, request: Request, progress: Progress | None = None) -> Result:
    """Upscale one input. Raises MetasrganError or OSError, and has then written nothing."""
    began = time.perf_counter()
    io.kind(task.source)
    made_of = {
        "bundle": {"sha256": upscaler.bundle.sha256},
        "input": _input(task, request),
        "request": request.options(task),
    }
    if request.resume and record.is_done(task.output, made_of):
        return Result(task, "skipped", problem=f"{task.output} is there and whole")
    check(task, request)
    scan = io.read(task.source, task.series, request.allow_gaps).across(request.axis)
    out = volume.prepared(scan, request.size, request.dtype)
    write = io.writer(task.output, out, request.anonymous) if io.suffix(task.output) else None
    asked: Any = {"acquired": request.acquired, "noise": request.noise, "grain": request.grain}
    acquired = volume.upscale(upscaler.slices, scan, out, **asked, progress=progress)
    axes = scan.in_plane if scan.affine is None else range(min(3, scan.pixels.ndim))
    measured, stored = acquired.along(*axes), [scan.shape[k] for k in axes]
    line = "" if scan.labels else measured.said(stored)
    notes = tuple(note for note in (line, *acquired.notes, *scan.notes) if note)
    scales = tuple(out.scales[k] for k in axes)
    content: record.Record = {
        "software": f"metasrgan-edge {__version__}",
        **made_of,
        "device": runs_on(upscaler),
        "scale": [str(r) for r in scales],
        "acquired": measured.plain(stored),
        "grid": {"projection": upscaler.bundle.model.projection, "edges": "aligned", "size": "floor(n*p/q)"},
        "from": {"shape": list(_shape(scan)), "spacing_mm": _rounded(scan.spacing)},
        "output": {"shape": list(_shape(out)), "spacing_mm": _rounded(out.spacing), "dtype": str(out.pixels.dtype)},
    }
    seconds = time.perf_counter() - began
    if not request.deterministic:
        content["seconds"] = round(seconds, 3)
    if not request.anonymous:  # notes name files
        content["notes"] = list(notes)
    if moment := record.time_stamp(request.deterministic):
        content["time"] = moment
    with _previewed(task, preview.of(scan, out) if request.preview else None, request.overwrite):
        if write:
            record.write_with(task.output, write, content, request.overwrite, task.source)
        else:
            save = partial(_save_dicom, task, request, out, line, content)
            record.write_around(task.output, save, content, request.overwrite, task.source)
    notes = (*notes, f"preview: {task.preview}") if request.preview else notes
    return Result(task, "done", _shape(scan), _shape(out), scales, runs_on(upscaler), seconds, notes=notes)


def check(task: Task, request: Request) -> None:
    """Raise MetasrganError, before any work is done, where the input cannot become the output, or that cannot be written."""
    io.check_becomes(task.source, io.kind(task.source), task.output)
    if task.source.is_dir() and task.output.absolute().is_relative_to(task.source.absolute()):
        raise OutputFileError(f"{task.output} would lie within its own input: name another place")
    if request.resume and os.path.lexists(task.output) and not (request.overwrite or record.is_unfinished(task.output)):
        raise OutputFileError(
            f"{task.output} exists already, and by its record it is not what this would make, or has changed since: "
            "name another place, or allow replacing it (--force)"
        )
    record.check(task.output, request.overwrite)
    if request.preview:
        check_output(task.preview, request.overwrite)


def runs_on(upscaler: Upscaler) -> str:
    """What computes, for a person and for the record."""
    return f"{upscaler.device} ({upscaler.runs_on})"


def failed(task: Task, error: BaseException) -> Result:
    """The result of a task that raised something."""
    if isinstance(error, MemoryError) and not str(error):
        return Result(task, "failed", problem="there is not enough memory for this: give a smaller scale or shape")
    return Result(task, "failed", problem=" ".join(str(error).splitlines()) or reason(error))


def _input(task: Task, request: Request) -> dict[str, str]:
    """The input by its name and hash; of an anonymous one, by what only the holder of the key can compare."""
    try:
        hashed = record.fingerprint(io.files_of(task.source))
    except FileNotFoundError as error:
        raise InputFileError(f"{error.filename} does not exist, or no longer: check the name") from None
    except OSError as error:
        raise InputFileError(f"{task.source} cannot be read ({reason(error)}): check it, and the names in it") from None
    if request.anonymous:
        return {"hmac_sha256": hmac.new(request.key, hashed.encode(), "sha256").hexdigest()} if request.key else {}
    return {"name": task.source.name, "sha256": hashed}


def _save_dicom(task: Task, request: Request, out: Scan, line: str, content: record.Record, again: bool) -> None:
    io.dicom().save(
        task.output,
        out.header,
        out,
        description="SR " + sizes.written(out.scales).replace("×", "x"),
        acquired=line,
        record=_flat(content),
        anonymous=request.anonymous,
        key=request.key or request.secret,
        overwrite=again,
        like=task.source,
    )


@contextlib.contextmanager
def _previewed(task: Task, picture: Image.Image | None, overwrite: bool) -> Iterator[None]:
    """Write a preview before the output, and give it its name afterwards, so that there is none of an output that failed."""
    if picture is None:
        yield
        return
    with draft(task.preview, overwrite, task.source) as new:
        picture.save(new.file, "PNG")
        new.finish()
        yield
        new.publish()


def _flat(content: record.Record) -> Mapping[str, str]:
    """A record as DICOM's own fields hold it; they must have a date, which is 1970 where nothing may tell the time."""
    return {
        "software": content["software"],
        "bundle": content["bundle"]["sha256"],
        "device": content["device"],
        "scale": " ".join(content["scale"]),
        "grid": f"{content['grid']['projection']}, edges {content['grid']['edges']}",
        "input": content["input"].get("sha256", ""),
        "time": content.get("time", "1970-01-01T00:00:00+00:00"),
    }


def _shape(scan: Scan) -> tuple[int, ...]:
    """Of its pixels as a file has them."""
    return (*scan.shape[1:], scan.shape[0]) if scan.colour else scan.shape


def _rounded(spacing: Sequence[float]) -> list[float]:
    return [round(size, 6) for size in spacing]
