"""DICOM series as volumes: slices are told apart, sorted and measured by where they lie, never by name or number."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import numpy as np

from .. import headers
from ..errors import ImageError, InputFileError
from ..inputs import quiet
from ..intensity import rescaled
from ..memory import allocate
from ..scan import Scan
from .frames import FARTHEST, Floats, Frame, Stored, frames_of
from .source import Skipped, Source, sources

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOLERANCE_MM = 0.05  # between a slice and where even steps would put it; or 1 % of a step
_ONE_PLACE = 1e-3  # mm
_SAME_DIRECTION = 2e-3  # of cosines; a tenth of a degree
_LOCALIZER = re.compile(r"\b(locali[sz]er|scout|survey|3[ -]?plane|aahead)", re.IGNORECASE)
_LISTED = 5  # series, at most, in an error's line
_FEW = 8  # slices an orientation, in a series of several: a localizer's

# What tells slices at one place apart, in this order; the first that does, does it for the whole series.
_KINDS = (
    *("ImageType", "FrameType", "ComplexImageComponent", "EchoTime", "EffectiveEchoTime", "EchoNumbers"),
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "DiffusionBValue", "DiffusionGradientOrientation"),
    *("InversionTime", "FlipAngle", "TriggerTime", "NominalCardiacTriggerDelayTime", "StackID", "AcquisitionNumber"),
    *("AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime"),
)


@dataclass(eq=False)
class Series:
    """A stack of slices that belong together, all of a DICOM series or a part that lies or means differently.

    `shape` is (rows, columns, slices) and `spacing` theirs in mm, zeros where unknown. `affine` maps (column, row, slice) to
    mm towards right, front and head. `notes` tell in a line each what was left out and why. `problem` says why it can be no
    volume, and `doubt` why it is only to be upscaled where a person chose it; each is empty where there is none. `damaged` has
    a line about each file that belongs to it and cannot be read: slices may be missing.
    """

    frames: list[Frame] = field(repr=False)  # in order along their normal
    notes: tuple[str, ...]
    problem: str
    doubt: str = ""
    damaged: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        first, affine = self.frames[0], np.eye(4)
        affine[:3] = np.transpose([*(first.axes * first.spacing[::-1, None]), _step(self.frames), first.position])
        placed = bool(np.isfinite(affine).all())
        self.affine = LPS_TO_RAS @ affine if placed else np.eye(4)
        self.shape = (*first.shape, len(self.frames))
        self.spacing = (*first.spacing.tolist(), float(np.linalg.norm(affine[:3, 2]))) if placed else (0.0, 0.0, 0.0)
        self.uid = first.text("SeriesInstanceUID")
        self.description = first.text("SeriesDescription")
        self.modality = first.text("Modality")

    @quiet("pydicom")
    def volume(self) -> Scan:
        """The values as stored, array axes (columns, rows, slices), with slope and intercept; or real ones where slices differ.

        Bright is large even where small numbers are shown bright (MONOCHROME1): those are mirrored in the range of their
        bits. Raises ImageError where there is a `problem`, InputFileError for pixels that are damaged or cannot be decoded.
        """
        if self.problem:
            raise ImageError(f"the series cannot be upscaled: it {self.problem}")
        rows, columns, slices = self.shape
        first, stored = self.frames[0], self.stored
        data = allocate((columns, rows, slices), stored.dtype if stored.rescale else np.float32, "F")
        by_file = _grouped(enumerate(self.frames), lambda numbered: numbered[1].source)  # which is dear to open for each frame
        for source, numbered in by_file.items():
            found = source.frames(numbered[0][1].header, [frame.index for _, frame in numbered])
            for (k, frame), pixels in zip(numbered, found, strict=True):
                values = stored.shown(pixels.astype(stored.dtype, copy=False))
                data[:, :, k] = values.T if stored.rescale else rescaled(values, *frame.rescale).T
        (slope, intercept), padding = stored.rescale or (1.0, 0.0), sorted(map(stored.shown, stored.padding or ()))
        return Scan(
            data,
            tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist()),
            self.affine,
            slope=slope,
            inter=intercept,
            acquired=headers.of_dicom(first.numbers, first.text("InPlanePhaseEncodingDirection"), first.shape),
            padding=(padding[0], padding[1]) if padding else None,
            header=self,
            notes=(f"it {self.doubt}", *self.notes) if self.doubt else self.notes,
        )

    @cached_property
    def stored(self) -> Stored:
        """What the numbers of all slices mean, if the series has no `problem`. Padding is known where they agree in it."""
        each, first = {frame.stored for frame in self.frames}, self.frames[0].stored
        low, high, dtype = min(s.low for s in each), max(s.high for s in each), np.result_type(*(s.dtype for s in each))
        rescale = first.rescale if all(s.rescale == first.rescale for s in each) else None
        padding = first.padding if rescale and all(s.padding == first.padding for s in each) else None
        return Stored(low, high, dtype, rescale, first.inverted, padding)


def read(path: Path, number: int | None = None, allow_gaps: bool = False) -> Scan:
    """The volume of the series of this number, from 0; without one, of the only one that can be upscaled without a doubt.

    Raises InputFileError where there is none, or where it may lack slices, unless that is allowed.
    """
    found = find_series(path)
    sure, chosen = usable(found), number is not None
    if len(sure) > 1 and not chosen:
        listed = ", ".join(f"{k + 1} of {'×'.join(map(str, found[k].shape))}" for k in sure[:_LISTED])
        listed += f", and {len(sure) - _LISTED} more" if len(sure) > _LISTED else ""
        raise InputFileError(f"{path} holds several series ({listed}): choose one by --series, or give a folder, -o DIR/")
    k = (sure or [0])[0] if number is None else number
    if not 0 <= k < len(found):
        raise InputFileError(f"{path} holds {len(found)} series, none of which is number {k + 1}")
    series, name = found[k], f"{path} (series {k + 1})" if chosen else str(path)
    if series.problem:
        raise InputFileError(f"{name} cannot be upscaled: it {series.problem}")
    if series.doubt and not chosen:
        raise InputFileError(f"{name} cannot be upscaled: it {series.doubt}; take it all the same by --series {k + 1}")
    if series.damaged and not allow_gaps:
        lost = f"{len(series.damaged)} slices, the first by {series.damaged[0]}"
        raise InputFileError(f"{name} may lack {lost}: copy it again, or take what is there by --allow-gaps")
    return series.volume()


def usable(found: Sequence[Series]) -> list[int]:
    """Which of the series that were found can be upscaled without a doubt."""
    return [number for number, series in enumerate(found) if not series.problem and not series.doubt]


def find_series(path: Path) -> list[Series]:
    """The series in a folder and all below it, in a file or in a zip. Raises InputFileError where there is none."""
    return _find(sources(path), str(path))


def series_of(files: Iterable[bytes]) -> list[Series]:
    """The series among DICOM files that are in memory, such as those that came over a network."""
    return _find((Source(f"file {k}", len(file), partial(bytes, file)) for k, file in enumerate(files, 1)), "what came")


@quiet("pydicom")
def _find(found: Iterable[Source], where: str) -> list[Series]:
    frames: list[Frame] = []
    lost: list[tuple[str, Skipped]] = []
    for source in found:
        try:
            frames += frames_of(source)
        except Skipped as why:
            lost.append((source.name, why))
    if not frames:
        said = [f"{name} was left out: {why}" for name, why in lost]
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        raise InputFileError(f"{where} holds no DICOM picture: {'; '.join(said[:3]) or 'no file'}{more}")
    by_uid = _grouped(frames, methodcaller("text", "SeriesInstanceUID"))
    series: list[Series] = []
    for uid, same in by_uid.items():
        mine = [(name, why) for name, why in lost if why.uid == uid or why.uid not in by_uid]
        notes = [f"{name} was left out: {why}" for name, why in mine]
        may_be = (uid, "") if len(by_uid) == 1 else (uid,)  # of a file that does not say which series it is of
        damaged = tuple(f"{name}: {why}" for name, why in mine if why.damaged and why.uid in may_be)
        series += [replace(one, notes=(*one.notes, *notes), damaged=damaged) for one in _series(same)]
    return sorted(series, key=lambda one: (one.frames[0].number("SeriesNumber", 0.0), one.uid))


def _series(frames: list[Frame]) -> Iterator[Series]:
    """The stacks of one DICOM series."""
    notes, modality = [], frames[0].text("Modality")
    if any(tag.is_private for tag in frames[0].header.keys()):  # noqa: SIM118
        notes.append("the manufacturer's private data is not carried into a derived series")
    if modality not in ("", "MR"):
        notes.append(f"the modality is {modality}: the network was made for MR")
    by_problem = _grouped(frames, attrgetter("problem"))
    directions = _by_direction(by_problem.pop("", []))
    for problem, same in by_problem.items():
        yield Series(same, tuple(notes), problem)
    stacks = [stack for same in directions for stack in _by_kind(same)]
    localizer = len(directions) > 1 and max(map(len, directions)) <= _FEW
    for stack, kind in stacks:
        said = f"one of {len(stacks)} stacks of slices in its series{f', that of {kind}' if kind else ''}"
        yield _stack(stack, [said, *notes] if len(stacks) > 1 else notes, localizer)


def _by_direction(frames: list[Frame]) -> list[list[Frame]]:
    """Frames of one size and direction each, to what rounding in headers leaves."""
    groups: list[list[Frame]] = []
    for frame in frames:
        same = next((group for group in groups if _alike(frame, group[0])), [])
        if not same:
            groups.append(same)
        same.append(frame)
    return groups


def _alike(a: Frame, b: Frame) -> bool:
    same = (a.shape, a.stored.inverted) == (b.shape, b.stored.inverted) and np.allclose(a.spacing, b.spacing, rtol=1e-4)
    return same and bool(np.abs(a.axes - b.axes).max() < max(_SAME_DIRECTION, 2 * a.rounding, 2 * b.rounding))


def _by_kind(frames: list[Frame]) -> list[tuple[list[Frame], str]]:
    """Frames of one direction, apart where several lie at one place and an attribute tells which is which; (frames, kind)."""
    places = np.sort(np.array([frame.position for frame in frames]) @ frames[0].normal)
    for keyword in () if (np.diff(places) > _ONE_PLACE).all() else _KINDS:
        groups = _grouped(frames, methodcaller("text", keyword))
        if len(groups) > 1 and len(set(map(len, groups.values()))) == 1:
            kinds = ((stack, f"{keyword} {value}", kind) for value, same in groups.items() for stack, kind in _by_kind(same))
            return [(stack, f"{kind}, {more}" if more else kind) for stack, kind, more in kinds]
    return [(frames, "")]


def _stack(frames: list[Frame], notes: list[str], localizer: bool) -> Series:
    """Slices of one direction and kind, in order along their normal."""
    normal, crowded = frames[0].normal, ""
    kept: list[Frame] = []
    for frame in sorted(frames, key=lambda f: (f.position @ normal, f.source.name, f.index)):
        if kept and (frame.position - kept[-1].position) @ normal <= _ONE_PLACE:
            if _pixels(frame) == _pixels(kept[-1]):
                notes = [*notes, f"{frame.source.name} was left out: the same slice as {kept[-1].source.name}"]
                continue
            names = f"{frame.source.name} and {kept[-1].source.name}"
            crowded = crowded or f"has several slices at one place ({names}), and nothing tells them apart"
        kept.append(frame)
    first = kept[0]
    titles = f"{first.text('SeriesDescription')} {first.text('ProtocolName')}"
    localizer = localizer or "LOCALIZER" in first.text("ImageType").split("\\") or bool(_LOCALIZER.search(titles))
    problem, doubt = (crowded, "") if crowded else _misplacement(kept)
    if localizer and not problem:
        doubt = "is a localizer, slices to plan others by"
    return Series(kept, tuple(dict.fromkeys(notes)), problem, doubt)


def _pixels(frame: Frame) -> bytes:
    """Its stored values; its file's name where they cannot be read, as `volume` will tell."""
    try:
        return bytes(frame.source.frames(frame.header, [frame.index])[0].tobytes())
    except InputFileError:
        return frame.source.name.encode()


def _misplacement(frames: list[Frame]) -> tuple[str, str]:
    """The `problem` of slices in order, uneven steps, or their `doubt`, that they are not parallel; at most one of the two."""
    first, step = frames[0], _step(frames)
    tolerance = max(_TOLERANCE_MM, 0.01 * float(np.linalg.norm(step)))
    positions = np.array([frame.position for frame in frames])
    even = first.position + np.arange(len(frames))[:, None] * step
    if np.linalg.norm(positions - even, axis=1).max() > tolerance:
        steps = np.diff(positions @ first.normal)
        usual = float(np.median(steps))
        missing = np.rint(steps / usual) - 1
        if missing.sum() > 0 and np.abs(steps / usual - 1 - missing).max() < 0.1:
            count, at = int(missing.sum()), int(np.argmax(missing))
            between = f"{frames[at].source.name} and {frames[at + 1].source.name}"
            return f"has a gap: {count} of {len(frames) + count} slices are missing, the first between {between}", ""
        return f"has slices at uneven distances, {steps.min():.3g} to {steps.max():.3g} mm: export them evenly spaced", ""
    size = np.multiply(first.shape, first.spacing)[::-1]  # mm along a row and down a column
    off = max(float(size @ np.linalg.norm(frame.axes - first.axes, axis=1)) for frame in frames)
    if off <= max(tolerance, 2 * float(size.sum()) * max(frame.rounding for frame in frames)):
        return "", ""
    return "", f"has slices that are not quite parallel: their corners lie up to {off:.2g} mm from where a volume has them"


def _step(frames: list[Frame]) -> Floats:
    """From a slice to the next, in mm; of a single one, along its normal by the thickness that it says, or by 1."""
    first, last = frames[0], frames[-1]
    if len(frames) > 1:
        return (last.position - first.position) / (len(frames) - 1)
    said = abs(first.number("SpacingBetweenSlices", first.number("SliceThickness", 1.0)))
    return first.normal * (said if 1 / FARTHEST < said < FARTHEST else 1.0)


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Items by what is equal about them, in the order of its first appearance."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
