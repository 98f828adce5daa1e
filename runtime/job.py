"""One input → one output and its sidecar, whatever their formats: what the command line does once, and a cohort many times."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

from . import __version__, io, preview, sidecar, sizes, volume
from .acquired import Consistency
from .errors import InputFileError, OutputFileError, reason
from .files import Write, check_output, write_atomically
from .io import pictures
from .sizes import Size
from .uncertainty import COVERAGE
from .upscaler import GRAIN, Upscaler
from .volume import Progress

# Of a request, what the output depends on.
_DECIDE = ("axis", "dtype", "acquired", "noise", "grain", "anonymous", "allow_gaps", "uncertainty")


@dataclass(frozen=True)
class Computer:
    """What every process that takes part loads: the arguments of `Upscaler.load`."""

    bundle: str | Path | None = None
    device: str = "auto"
    threads: int | None = None
    cache_dir: Path | None = None
    ensemble: bool = False

    def load(self) -> Upscaler:
        return Upscaler.load(**vars(self))


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
    uncertainty: bool = False
    secret: bytes = field(default_factory=partial(secrets.token_bytes, 32), compare=False, repr=False)  # where there is no key

    def options(self, task: Task) -> dict[str, Any]:
        """All of it that the output's values depend on, as a sidecar holds it."""
        asked = {name: getattr(self, name) for name in _DECIDE} | {"series": task.number}
        if not isinstance(self.acquired, str):
            asked["acquired"] = list(self.acquired)
        return self.size.asked() | _known(asked)


@dataclass(frozen=True)
class Task:
    """An input and where its output goes; of a DICOM input, which of its series, from 0."""

    source: Path
    output: Path
    series: int | None = None

    @property
    def preview(self) -> Path:
        """Where the output's preview goes, where one is asked for."""
        return self._beside("_preview.png")

    @property
    def uncertainty(self) -> Path:
        """Where the output's uncertainty goes: of a picture that may not hold floats an array, of a DICOM series a volume."""
        suffix = io.suffix(self.output) or ".nii.gz"
        return self._beside("_uncertainty" + (".npy" if suffix.lower() in pictures.SUFFIXES else suffix))

    def _beside(self, end: str) -> Path:
        return self.output.with_name(self.output.name.removesuffix(io.suffix(self.output)) + end)

    def beside(self, preview: bool, uncertainty: bool) -> list[Path]:
        """What else is written of those that are asked for."""
        return [self.preview] * preview + [self.uncertainty] * uncertainty

    @property
    def number(self) -> int | None:
        """The series, from 1."""
        return None if self.series is None else self.series + 1

    @property
    def name(self) -> str:
        """The input, as a person is told of it."""
        return f"{self.source} (series {self.number})" if self.number else str(self.source)


@dataclass(frozen=True)
class Result:
    """What became of a task. `problem` is the one line that says why it failed or was skipped, `notes` what else to know."""

    task: Task
    status: Literal["done", "skipped", "failed"]
    problem: str = ""
    scales: tuple[Fraction, ...] = ()
    shape_in: tuple[int, ...] = ()
    shape_out: tuple[int, ...] = ()
    device: str = ""
    seconds: float = 0.0
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
    options = request.options(task) | _known({"ensemble": upscaler.ensemble})
    made_of = {"bundle": {"sha256": upscaler.bundle.sha256}, "input": _input(task, request), "request": options}
    if request.resume and sidecar.is_done(task.output, made_of) and (task.uncertainty.exists() or not request.uncertainty):
        return Result(task, "skipped", f"{task.output} is there and whole")
    check(task, request)
    scan = io.read(task.source, task.series, request.allow_gaps).across(request.axis)
    out = volume.prepared(scan, request.size, request.dtype)
    write = io.writer(task.output, out, request.anonymous) if io.suffix(task.output) else None
    uncertain = volume.uncertainty(out) if request.uncertainty else None
    extras = {task.uncertainty: io.writer(task.uncertainty, uncertain, request.anonymous)} if uncertain else {}
    asked: Any = {name: getattr(request, name) for name in ("acquired", "noise", "grain")}
    asked |= {"consistency": (consistency := Consistency()), "half_width": uncertain.pixels if uncertain else None}
    ranges = [] if scan.labels else volume.intensities(scan)
    acquired = volume.upscale(upscaler.slices, scan, out, **asked, ranges=ranges, progress=progress)
    known = upscaler.bundle.envelope
    outside = known.outside(scan, ranges[0], acquired) if known and ranges else ()
    axes = scan.in_plane if scan.affine is None else range(min(3, scan.pixels.ndim))
    measured, stored = acquired.along(*axes), [scan.shape[k] for k in axes]
    said = "" if scan.labels else measured.said(stored)
    notes = tuple(note for note in (said, str(consistency), *outside, *acquired.notes, *scan.notes) if note)
    scales, device = tuple(out.scales[k] for k in axes), f"{upscaler.device} ({upscaler.runs_on})"
    # Colours come last in files.
    before, after = ((*each.shape[1:], each.shape[0]) if each.colour else each.shape for each in (scan, out))
    seconds = time.perf_counter() - began
    content: sidecar.Sidecar = {
        "software": f"metasrgan-edge {__version__}",
        **made_of,
        "device": device,
        "scale": [str(r) for r in scales],
        "acquired": measured.plain(stored),
        "consistency": consistency.plain(),
        "grid": {"projection": upscaler.bundle.model.projection, "edges": "aligned", "size": "floor(n*p/q)"},
        "from": {"shape": before, "spacing_mm": [round(size, 6) for size in scan.spacing]},
        "output": {"shape": after, "spacing_mm": [round(size, 6) for size in out.spacing], "dtype": str(out.pixels.dtype)},
        "seconds": None if request.deterministic else round(seconds, 3),
        "notes": None if request.anonymous else notes,  # they name files
        **sidecar.time_stamp(request.deterministic),
    }
    if write:
        save = partial(write_atomically, task.output, write)
    else:
        record = {  # as DICOM's own fields hold it; they must have a date
            "software": content["software"],
            "bundle": upscaler.bundle.sha256,
            "device": device,
            "scale": " ".join(content["scale"]),
            "grid": f"{upscaler.bundle.model.projection}, edges aligned",
            "input": made_of["input"].get("sha256", ""),
            "time": content.get("time", "1970-01-01T00:00:00+00:00"),
        }
        description, key = "SR " + sizes.written(out.scales).replace("×", "x"), request.key or request.secret
        told: Any = {"record": record, "description": description, "acquired": said}
        save = partial(io.dicom().save, task.output, out.header, out, **told, anonymous=request.anonymous, key=key)
    finish = partial(sidecar.write_with, task.output, save, _known(content), request.overwrite, task.source)
    if request.preview:
        extras[task.preview] = partial(preview.of(scan, out).save, format="PNG")
    _write([*extras.items()], finish, request.overwrite, task.source)
    if request.uncertainty:
        notes = (*notes, f"uncertainty: {task.uncertainty}, the truth lies within ± it at {100 * COVERAGE:g} % of the pixels")
    if request.preview:
        notes = (*notes, f"preview: {task.preview}")
    return Result(task, "done", "", scales, before, after, device, seconds, notes)


def _write(extras: Sequence[tuple[Path, Write]], output: Callable[[], Any], overwrite: bool, like: Path) -> None:
    """Write an output and what lies beside it, all or nothing; the output gets its name first."""
    if not extras:
        output()
        return
    (path, write), *rest = extras
    write_atomically(path, write, overwrite, lambda finished: _write(rest, output, overwrite, like), like)


def check(task: Task, request: Request) -> None:
    """Raise MetasrganError, before any work is done, where the input cannot become the output, or that cannot be written."""
    output, kind = task.output, io.kind(task.source)
    taken = os.path.lexists(output) and not request.overwrite
    io.check_becomes(task.source, kind, output)
    if task.source.is_dir() and output.absolute().is_relative_to(task.source.absolute()):
        raise OutputFileError(f"{output} would lie within its own input: name another place")
    if request.resume and taken:
        raise OutputFileError(
            f"{output} exists already, and by its sidecar it is not what this would make, or has changed since: "
            "name another place, or allow replacing it (--force)"
        )
    if kind != "dicom" or not os.path.isdir(output):
        check_output(output, request.overwrite)
    elif taken:
        raise OutputFileError(f"{output} exists already: name another folder, or allow replacing it (--force)")
    check_output(sidecar.beside(output), request.overwrite or bool(sidecar.read(output)))
    for path in task.beside(request.preview, request.uncertainty):
        check_output(path, request.overwrite)


def _input(task: Task, request: Request) -> dict[str, str]:
    """The input by its name and hash; of an anonymous one, by what only the holder of the key can compare."""
    try:
        hashed = sidecar.fingerprint(*io.files_of(task.source))
    except FileNotFoundError as error:
        raise InputFileError(f"{error.filename} does not exist, or no longer: check the name") from None
    except OSError as error:
        raise InputFileError(f"{task.source} cannot be read ({reason(error)}): check it, and the names in it") from None
    if request.anonymous:
        return {"hmac_sha256": hmac.new(request.key, hashed.encode(), "sha256").hexdigest()} if request.key else {}
    return {"name": task.source.name, "sha256": hashed}


def _known(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None and value is not False}
