"""One input → one output and its record, whatever their formats: what the command line does once, and a cohort many times."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from . import __version__, formats, headers, images, preview, record, sizes, volume
from .errors import ImageError, InputFileError, OutputFileError, reason
from .files import check_output, draft
from .intensity import to_dtype
from .sizes import Size
from .upscaler import GRAIN, Upscaler

Progress = Callable[[int, int], None]
_LISTED = 5  # series, at most, in an error's line


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
    allow_gaps: bool = False  # take a DICOM series of which files are damaged
    preview: bool = False

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
        return self.output.with_name(f"{self.output.name.removesuffix(formats.suffix(self.output))}_preview.png")

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


@dataclass(frozen=True)
class _Made:
    """An upscaled input that is not written yet."""

    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    scales: tuple[Fraction, ...]
    dtype: str
    acquired: dict[str, Any]
    write: Callable[[IO[bytes]], Any] | None = None  # to an open file
    save: Callable[[record.Record, bool], Any] | None = None  # as a folder, with its record
    spacing_in: tuple[float, ...] = ()
    spacing_out: tuple[float, ...] = ()
    preview: Image.Image | None = None
    notes: tuple[str, ...] = ()


def run(upscaler: Upscaler, task: Task, request: Request, progress: Progress | None = None) -> Result:
    """Upscale one input. Raises MetasrganError or OSError, and has then written nothing."""
    began = time.perf_counter()
    kind = formats.kind(task.source)
    made_of = {
        "bundle": {"sha256": upscaler.bundle.sha256},
        "input": _input(task, request),
        "request": request.options(task),
    }
    if request.resume and record.is_done(task.output, made_of):
        return Result(task, "skipped", problem=f"{task.output} is there and whole")
    check(task, request)
    make = _picture if kind == "picture" else _volume
    made = make(upscaler, task, kind, request, progress)
    content: record.Record = {
        "software": f"metasrgan-edge {__version__}",
        **made_of,
        "device": runs_on(upscaler),
        "scale": [str(r) for r in made.scales],
        "acquired": made.acquired,
        "grid": {"projection": upscaler.bundle.model.projection, "edges": "aligned", "size": "floor(n*p/q)"},
        "from": {"shape": list(made.shape_in), "spacing_mm": list(made.spacing_in)},
        "output": {"shape": list(made.shape_out), "spacing_mm": list(made.spacing_out), "dtype": made.dtype},
    }
    seconds = time.perf_counter() - began
    if not request.deterministic:
        content["seconds"] = round(seconds, 3)
    if not request.anonymous:  # notes name files
        content["notes"] = list(made.notes)
    if moment := record.time_stamp(request.deterministic):
        content["time"] = moment
    with _previewed(task, made.preview, request.overwrite):
        if made.write:
            record.write_with(task.output, made.write, content, request.overwrite, task.source)
        elif made.save:
            save = made.save
            record.write_around(task.output, lambda again: save(content, again), content, request.overwrite, task.source)
    notes = (*made.notes, f"preview: {task.preview}") if made.preview else made.notes
    return Result(task, "done", made.shape_in, made.shape_out, made.scales, runs_on(upscaler), seconds, notes=notes)


def check(task: Task, request: Request) -> None:
    """Raise MetasrganError, before any work is done, where the input cannot become the output, or that cannot be written."""
    formats.check_becomes(task.source, formats.kind(task.source), task.output)
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


def usable_series(found: Sequence[Any]) -> list[int]:
    """Which of the series that were found can be upscaled."""
    return [number for number, series in enumerate(found) if not series.problem]


def failed(task: Task, error: BaseException) -> Result:
    """The result of a task that raised something."""
    if isinstance(error, MemoryError) and not str(error):
        return Result(task, "failed", problem="there is not enough memory for this: give a smaller scale or shape")
    return Result(task, "failed", problem=" ".join(str(error).splitlines()) or reason(error))


def _input(task: Task, request: Request) -> dict[str, str]:
    """The input by its hash, and by its name where that may be told."""
    try:
        hashed = record.fingerprint(formats.files_of(task.source))
    except FileNotFoundError as error:
        raise InputFileError(f"{error.filename} does not exist, or no longer: check the name") from None
    return {"sha256": hashed} if request.anonymous else {"name": task.source.name, "sha256": hashed}


def _volume(upscaler: Upscaler, task: Task, kind: formats.Kind, request: Request, progress: Progress | None) -> _Made:
    series = None
    if kind == "dicom":
        series = _series(task, request.allow_gaps)
        image = series.volume()
    else:
        image = formats.load(task.source)
    axis = volume.slices_across(image, request.axis)
    scales = volume.scales_of(image, request.size, axis)
    result, acquired = volume.upscale(
        upscaler.slices,
        image,
        request.size,
        axis=request.axis,
        dtype=request.dtype,
        acquired=request.acquired,
        noise=request.noise,
        grain=request.grain,
        header=series.acquired if series else headers.beside(task.source, image.shape),
        progress=progress,
    )
    shown = preview.of_volume(image, result, axis, scales) if request.preview else None
    line = acquired.said(image.shape[:3])
    if request.anonymous:
        _make_anonymous(result)
    write, save = None, None
    if formats.suffix(task.output):
        write = formats.writer(task.output, result)
    else:
        description = "SR " + sizes.written(scales).replace("×", "x")
        upscaled = volume.reopened(result)

        def save(content: record.Record, again: bool) -> Any:
            return formats.dicom().save(
                task.output,
                series,
                upscaled,
                description=description,
                acquired=line,
                record=_flat(content),
                anonymous=request.anonymous,
                overwrite=again,
                like=task.source,
            )

    return _Made(
        image.shape,
        result.shape,
        scales[: len(image.shape)],
        str(result.get_data_dtype()),
        acquired.plain(image.shape[:3]),
        write,
        save,
        _millimetres(image),
        _millimetres(result),
        shown,
        (line, *acquired.notes, *(series.notes if series else ())),
    )


def _picture(upscaler: Upscaler, task: Task, kind: formats.Kind, request: Request, progress: Progress | None) -> _Made:
    if request.axis is not None:
        raise ImageError(
            f"--axis {request.axis} was given for {task.source}, which has no slices to lie across it: leave it out"
        )
    pixels = images.read(task.source)
    dtype = np.dtype(request.dtype) if request.dtype else pixels.dtype.newbyteorder("=")
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8 and task.source.suffix.lower() != ".npy"
    images.check_writable_as(task.output, dtype, pixels.ndim, colour)
    planes = np.moveaxis(pixels, -1, 0) if colour else pixels  # a picture's colours share one intensity range
    scales = request.size.in_slice(planes.shape[-2:])
    acquired = upscaler.measure(planes, acquired=request.acquired, noise=request.noise)
    result = to_dtype(upscaler(planes, scales, acquired=acquired, grain=request.grain, progress=progress), dtype)
    shown = preview.of_planes(planes, result, scales, colour) if request.preview else None
    result = np.ascontiguousarray(np.moveaxis(result, 0, -1)) if colour else result
    write = images.writer(task.output, result, colour)
    shape = planes.shape[-2:]
    mask = ("a mask of true and false: nearest neighbour, the network was not used",)
    notes = mask if pixels.dtype == bool else (acquired.said(shape), *acquired.notes)
    return _Made(pixels.shape, result.shape, scales, str(dtype), acquired.plain(shape), write, preview=shown, notes=notes)


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


def _series(task: Task, allow_gaps: bool) -> Any:
    """The DICOM series that a task means: the only one that can be upscaled, where it does not say which.

    Raises InputFileError for one that may lack slices, unless that is allowed.
    """
    found = formats.dicom().find_series(task.source)
    if task.series is None:
        usable = usable_series(found)
        if len(usable) > 1:
            listed = ", ".join(f"{k + 1} of {'×'.join(map(str, found[k].shape))}" for k in usable[:_LISTED])
            listed += f", and {len(usable) - _LISTED} more" if len(usable) > _LISTED else ""
            raise InputFileError(
                f"{task.source} holds several series ({listed}): choose one by --series, or give a folder, -o DIR/"
            )
        number = (usable or [0])[0]
    else:
        number = task.series
    if not 0 <= number < len(found):
        raise InputFileError(f"{task.source} holds {len(found)} series, none of which is number {number + 1}")
    if found[number].problem:
        raise InputFileError(f"{task.name} cannot be upscaled: it {found[number].problem}")
    if (damaged := found[number].damaged) and not allow_gaps:
        raise InputFileError(
            f"{task.name} may lack {len(damaged)} slices, the first by {damaged[0]}: copy it again, or take what is there by "
            "--allow-gaps"
        )
    return found[number]


def _flat(content: record.Record) -> Mapping[str, str]:
    """A record as DICOM's own fields hold it; they must have a date, which is 1970 where nothing may tell the time."""
    return {
        "software": content["software"],
        "bundle": content["bundle"]["sha256"],
        "device": content["device"],
        "scale": " ".join(content["scale"]),
        "grid": f"{content['grid']['projection']}, edges {content['grid']['edges']}",
        "input": content["input"]["sha256"],
        "time": content.get("time", "1970-01-01T00:00:00+00:00"),
    }


def _make_anonymous(image: Any) -> None:
    """Empty what a NIfTI header says in words, and its extensions, which may hold a whole DICOM header."""
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        if name in image.header:  # NIfTI-2 has no db_name
            image.header[name] = b""
    image.header.extensions.clear()


def _millimetres(image: Any) -> tuple[float, ...]:
    return tuple(round(size * volume.millimetres(image), 6) for size in volume.voxel_size(image))
