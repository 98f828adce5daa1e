"""One input → one output and its sidecar, whatever their formats: what the command line does once, and a cohort many times."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

from . import __version__, io, preview, sidecar, sizes, volume
from .acquired import Consistency
from .errors import OutputFileError
from .files import Write, check_output, write_atomically, writing
from .inputs import reading
from .sizes import Size
from .uncertainty import COVERAGE
from .upscaler import GRAIN, Upscaler
from .volume import Progress

Status = Literal["done", "skipped", "failed"]

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
class Task:
    """An input and where its output goes; of a DICOM input, which of its series, from 0."""

    source: Path
    output: Path
    series: int | None = None

    @property
    def number(self) -> int | None:
        """The series, from 1."""
        return None if self.series is None else self.series + 1

    @property
    def name(self) -> str:
        """The input, as a person is told of it."""
        return f"{self.source} (series {self.number})" if self.number else str(self.source)


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

    def beside(self, output: Path) -> dict[str, Path]:
        """What else is asked for, and where it goes: of a picture that may not hold floats an array, of DICOM a volume."""
        own = io.suffix(output)
        values = ".npy" if own.lower() in io.PICTURES else own or ".nii.gz"
        ends = {"uncertainty": f"_uncertainty{values}", "preview": "_preview.png"}
        stem = output.name.removesuffix(own)
        return {what: output.with_name(stem + end) for what, end in ends.items() if getattr(self, what)}


@dataclass(frozen=True)
class Result:
    """What became of a task. `problem` is the one line that says why it failed or was skipped, `notes` what else to know."""

    task: Task
    status: Status
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


def check(task: Task, request: Request) -> None:
    """Raise MetasrganError, before any work is done, where the input cannot become the output, or that cannot be written."""
    source, output, overwrite = task.source, task.output, request.overwrite
    io.check_becomes(source, io.kind(source), output)
    if source.is_dir() and output.absolute().is_relative_to(source.absolute()):
        raise OutputFileError(f"{output} would lie within its own input: name another place")
    if request.resume and os.path.lexists(output) and not overwrite:
        raise OutputFileError(
            f"{output} exists already, and by its sidecar it is not what this would make, or has changed since: "
            "name another place, or allow replacing it (--force)"
        )
    check_output(output, overwrite, folder=not io.suffix(output))
    check_output(sidecar.beside(output), overwrite or bool(sidecar.read(output)))
    for path in request.beside(output).values():
        check_output(path, overwrite)


def run(upscaler: Upscaler, task: Task, request: Request, progress: Progress | None = None) -> Result:
    """Upscale one input. Raises MetasrganError or OSError, and has then written nothing."""
    began = time.perf_counter()
    bundle, output, beside = upscaler.bundle, task.output, request.beside(task.output)
    options = request.options(task) | _known({"ensemble": upscaler.ensemble})
    made_of = {"bundle": {"sha256": bundle.sha256}, "input": _input(task, request), "request": options}
    there = request.resume and sidecar.is_done(output, made_of)
    if there and ("uncertainty" not in beside or beside["uncertainty"].exists()):
        return Result(task, "skipped", f"{output} is there and whole")
    check(task, request)
    scan = io.read(task.source, task.series, request.allow_gaps).across(request.axis)
    out = volume.prepared(scan, request.size, request.dtype)
    write = io.writer(output, out, request.anonymous) if io.suffix(output) else None
    extras: dict[Path, Write] = {}
    asked: Any = {name: getattr(request, name) for name in ("acquired", "noise", "grain")}
    asked["consistency"] = consistency = Consistency()
    if "uncertainty" in beside:
        uncertain = volume.uncertainty(out)
        asked["half_width"] = uncertain.pixels
        extras[beside["uncertainty"]] = io.writer(beside["uncertainty"], uncertain, request.anonymous)
    ranges = [] if scan.labels else volume.intensities(scan)
    acquired = volume.upscale(upscaler.slices, scan, out, **asked, ranges=ranges, progress=progress)
    if "preview" in beside:
        extras[beside["preview"]] = partial(preview.of(scan, out).save, format="PNG")
    axes = scan.in_plane if scan.affine is None else range(min(3, scan.pixels.ndim))
    measured, stored = acquired.along(*axes), [scan.shape[k] for k in axes]
    said = "" if scan.labels else measured.said(stored)
    outside = bundle.envelope.outside(scan, ranges[0], acquired) if bundle.envelope and ranges else ()
    notes = tuple(note for note in (said, str(consistency), *outside, *acquired.notes, *scan.notes) if note)
    # Colours come last in files.
    before, after = ((*each.shape[1:], each.shape[0]) if each.colour else each.shape for each in (scan, out))
    scales, device = tuple(out.scales[k] for k in axes), f"{upscaler.device} ({upscaler.runs_on})"
    seconds = time.perf_counter() - began
    content: sidecar.Sidecar = {
        "software": f"metasrgan-edge {__version__}",
        **made_of,
        "device": device,
        "scale": [str(r) for r in scales],
        "acquired": measured.plain(stored),
        "consistency": consistency.plain(),
        "grid": {"projection": bundle.model.projection, "edges": "aligned", "size": "floor(n*p/q)"},
        "from": {"shape": before, "spacing_mm": [round(size, 6) for size in scan.spacing]},
        "output": {"shape": after, "spacing_mm": [round(size, 6) for size in out.spacing], "dtype": str(out.pixels.dtype)},
        "seconds": None if request.deterministic else round(seconds, 3),
        "notes": None if request.anonymous else notes,  # they name files
        **sidecar.time_stamp(request.deterministic),
    }
    if write:
        save = partial(write_atomically, output, write)
    else:
        record = {  # as DICOM's own fields hold it; they must have a date
            "software": content["software"],
            "bundle": bundle.sha256,
            "device": device,
            "scale": " ".join(content["scale"]),
            "grid": f"{bundle.model.projection}, edges aligned",
            "input": made_of["input"].get("sha256", ""),
            "time": content.get("time", "1970-01-01T00:00:00+00:00"),
        }
        description, key = "SR " + sizes.written(out.scales).replace("×", "x"), request.key or request.secret
        told: Any = {"record": record, "description": description, "acquired": said}
        save = partial(io.dicom().save, output, out.header, out, **told, anonymous=request.anonymous, key=key)
    with contextlib.ExitStack() as finished:  # all or nothing; the output gets its name first
        for path, write in extras.items():
            finished.enter_context(writing(path, write, request.overwrite, task.source))
        sidecar.write_with(output, save, _known(content), request.overwrite, task.source)
    truth = f", the truth lies within ± it at {100 * COVERAGE:g} % of the pixels"
    notes += tuple(f"{what}: {path}{truth if what == 'uncertainty' else ''}" for what, path in beside.items())
    return Result(task, "done", "", scales, before, after, device, seconds, notes)


def _input(task: Task, request: Request) -> dict[str, str]:
    """The input by its name and hash; of an anonymous one, by what only the holder of the key can compare."""
    with reading(task.source, "an input"):
        hashed = sidecar.fingerprint(*io.files_of(task.source))
    if request.anonymous:
        return {"hmac_sha256": hmac.new(request.key, hashed.encode(), "sha256").hexdigest()} if request.key else {}
    return {"name": task.source.name, "sha256": hashed}


def _known(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None and value is not False}
