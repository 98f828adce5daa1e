"""DICOM series as volumes: slices are told apart, sorted and measured by where they lie, never by name or number."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import headers
from ..errors import ImageError, InputFileError
from ..inputs import quiet
from ..intensity import rescaled
from ..memory import allocate
from ..scan import Scan
from .frames import FARTHEST, Floats, Frame, Rescale, frames_of
from .source import Skipped, Source, in_memory, sources, stored_type

Item = TypeVar("Item")

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


@dataclass(frozen=True, eq=False)
class Series:
    """A stack of slices that belong together, all of a DICOM series or a part that lies or means differently.

    `shape` is (rows, columns, slices) and `spacing` theirs in mm, zeros where unknown. `affine` maps (column, row, slice) to
    mm towards right, front and head. `notes` tell in a line each what was left out and why. `problem` says why it can be no
    volume, and `doubt` why it is only to be upscaled where a person chose it; each is empty where there is none.
    """

    uid: str
    description: str
    modality: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: Floats = field(repr=False)
    notes: tuple[str, ...]
    problem: str
    frames: tuple[Frame, ...] = field(repr=False)
    doubt: str = ""
    damaged: tuple[str, ...] = ()  # a line about each file that belongs to it and cannot be read: slices may be missing

    @quiet("pydicom")
    def volume(self) -> Scan:
        """The values as stored, array axes (columns, rows, slices), with slope and intercept; or real ones where slices differ.

        Bright is large even where small numbers are shown bright (MONOCHROME1): those are mirrored in the range of their
        bits. Raises ImageError where there is a `problem`, InputFileError for pixels that are damaged or cannot be decoded.
        """
        if self.problem:
            raise ImageError(f"the series cannot be upscaled: it {self.problem}")
        rows, columns, slices = self.shape
        data = allocate((columns, rows, slices), self.dtype if self.rescale else np.float32, "F")
        for places in _grouped(range(slices), lambda k: self.frames[k].source).values():  # many frames are dear to open
            first = self.frames[places[0]]
            found = first.source.frames(first.header, [self.frames[k].index for k in places])
            for k, pixels in zip(places, found, strict=True):
                values = sum(self.limits) - pixels.astype(np.int32) if first.inverted else pixels
                data[:, :, k] = values.T if self.rescale else rescaled(values, *self.frames[k].rescale).T
        first, (slope, intercept) = self.frames[0], self.rescale or (1.0, 0.0)
        return Scan(
            data,
            tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist()),
            self.affine,
            slope=slope,
            inter=intercept,
            acquired=headers.of_dicom(first.numbers, first.text("InPlanePhaseEncodingDirection"), first.shape),
            padding=self.padding,
            header=self,
            notes=(f"it {self.doubt}", *self.notes) if self.doubt else self.notes,
        )

    @cached_property
    def rescale(self) -> Rescale | None:
        """Slope and intercept of all slices; None where each has its own."""
        kinds = {frame.rescale for frame in self.frames}
        return kinds.pop() if len(kinds) == 1 else None

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of all stored values."""
        return np.result_type(*{stored_type(frame.header) for frame in self.frames})

    @cached_property
    def padding(self) -> tuple[int, int] | None:
        """The lowest and highest number in `volume`'s array that stand for no measurement; None where slices differ in it."""
        found = set() if self.problem else {frame.padding for frame in self.frames}
        ends = found.pop() if len(found) == 1 and self.rescale else None
        if ends and self.frames[0].inverted:
            return sum(self.limits) - ends[1], sum(self.limits) - ends[0]
        return ends

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The smallest and largest number that the bits of all slices can hold."""
        return min(f.limits[0] for f in self.frames), max(f.limits[1] for f in self.frames)


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
    return _find(in_memory(files), "what came")


@quiet("pydicom")
def _find(found: Iterable[Source], where: str) -> list[Series]:
    by_uid: dict[str, list[Frame]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)  # by series; those that belong to none, under ""
    damaged: dict[str, list[str]] = defaultdict(list)  # of these, by series
    for source in found:
        try:
            frames = frames_of(source, source.header())
            by_uid[frames[0].uid] += frames
        except (Skipped, InputFileError) as error:
            skipped = error if isinstance(error, Skipped) else Skipped("it could not be read", damaged=True)
            notes[skipped.uid].append(f"{source.name} was left out: {skipped}")
            damaged[skipped.uid] += [f"{source.name}: {skipped}"] * skipped.damaged
    if not by_uid:
        said = [note for lines in notes.values() for note in lines]
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        raise InputFileError(f"{where} holds no DICOM picture: {'; '.join(said[:3]) or 'no file'}{more}")
    others = [note for uid, lines in notes.items() if uid and uid not in by_uid for note in lines]
    lost = damaged[""] if len(by_uid) == 1 else []  # they say nothing about their series
    series = [
        replace(one, notes=(*one.notes, *others), damaged=(*damaged[uid], *lost))
        for uid, frames in by_uid.items()
        for one in _series(frames, [*notes[uid], *notes[""]])
    ]
    return sorted(series, key=lambda one: (one.frames[0].number("SeriesNumber", 0.0), one.uid))


def _series(frames: list[Frame], notes: list[str]) -> Iterator[Series]:
    """The stacks of one DICOM series."""
    first = frames[0]
    if any(tag.is_private for tag in first.header.keys()):  # noqa: SIM118
        notes = [*notes, "the manufacturer's private data is not carried into a derived series"]
    if (modality := first.text("Modality")) not in ("", "MR"):
        notes = [*notes, f"the modality is {modality}: the network was made for MR"]
    by_problem = _grouped(frames, lambda f: f.problem)
    sound = by_problem.pop("", [])
    for problem, same in by_problem.items():
        yield _measured(same, notes, problem)
    directions = _by_direction(sound)
    stacks = [(stack, kind) for same in directions for stack, kind in _by_kind(same)]
    localizer = len(directions) > 1 and max(map(len, directions)) <= _FEW
    for stack, kind in stacks:
        said = [f"one of {len(stacks)} stacks of slices in its series{f', that of {kind}' if kind else ''}"] * (len(stacks) > 1)
        yield _stack(stack, [*said, *notes], localizer)


def _stack(frames: list[Frame], notes: list[str], localizer: bool) -> Series:
    """Slices of one direction and kind, in order along their normal."""
    normal = frames[0].normal
    kept: list[Frame] = []
    problem = ""
    for frame in sorted(frames, key=lambda f: (f.position @ normal, f.source.name, f.index)):
        if not kept or (frame.position - kept[-1].position) @ normal > _ONE_PLACE:
            kept.append(frame)
        elif _pixels(frame) == _pixels(kept[-1]):
            notes = [*notes, f"{frame.source.name} was left out: the same slice as {kept[-1].source.name}"]
        else:
            names = f"{frame.source.name} and {kept[-1].source.name}"
            problem = problem or f"has several slices at one place ({names}), and nothing tells them apart"
            kept.append(frame)
    first = kept[0]
    titles = f"{first.text('SeriesDescription')} {first.text('ProtocolName')}"
    localizer = localizer or "LOCALIZER" in first.words("ImageType") or bool(_LOCALIZER.search(titles))
    doubt = "is a localizer, slices to plan others by" if localizer else _tilt(kept)
    return _measured(kept, notes, problem or _unevenness(kept), doubt)


def _measured(frames: list[Frame], notes: list[str], problem: str, doubt: str = "") -> Series:
    first, step = frames[0], _step(frames)
    affine = np.eye(4)
    affine[:3] = np.transpose([first.axes[0] * first.spacing[1], first.axes[1] * first.spacing[0], step, first.position])
    placed = bool(np.isfinite(affine).all())
    spacing = (*first.spacing.tolist(), float(np.linalg.norm(step))) if placed else (0.0, 0.0, 0.0)
    said = first.uid, first.text("SeriesDescription"), first.text("Modality")
    shape, doubt = (*first.shape, len(frames)), "" if problem else doubt
    affine = LPS_TO_RAS @ affine if placed else np.eye(4)
    return Series(*said, shape, spacing, affine, tuple(dict.fromkeys(notes)), problem, tuple(frames), doubt)


def _step(frames: list[Frame]) -> Floats:
    """From a slice to the next, in mm; of a single one, along its normal by the thickness that it says, or by 1."""
    first, last = frames[0], frames[-1]
    if len(frames) > 1:
        return (last.position - first.position) / (len(frames) - 1)
    said = abs(first.number("SpacingBetweenSlices", first.number("SliceThickness", 1.0)))
    return first.normal * (said if 1 / FARTHEST < said < FARTHEST else 1.0)


def _unevenness(frames: list[Frame]) -> str:
    """Why slices in order are no volume: a gap, or steps of several lengths; or nothing."""
    if len(frames) < 2:
        return ""
    positions = np.array([frame.position for frame in frames])
    even = positions[0] + np.arange(len(frames))[:, None] * _step(frames)
    steps = np.diff(positions @ frames[0].normal)
    usual = float(np.median(steps))
    if np.linalg.norm(positions - even, axis=1).max() <= max(_TOLERANCE_MM, 0.01 * usual):
        return ""
    missing = np.rint(steps / usual) - 1
    if missing.sum() > 0 and np.abs(steps / usual - 1 - missing).max() < 0.1:
        count, at = int(missing.sum()), int(np.argmax(missing))
        between = f"{frames[at].source.name} and {frames[at + 1].source.name}"
        return f"has a gap: {count} of {len(frames) + count} slices are missing, the first between {between}"
    return f"has slices at uneven distances, {steps.min():.3g} to {steps.max():.3g} mm: export them evenly spaced"


def _tilt(frames: list[Frame]) -> str:
    """Why slices are not parallel, beyond what rounding in headers and the tolerance of their places allow; or nothing."""
    first = frames[0]
    size = np.multiply(first.shape, first.spacing)[::-1]  # mm along a row and down a column
    off = max(float(size @ np.linalg.norm(frame.axes - first.axes, axis=1)) for frame in frames)
    rounding = 2 * float(size.sum()) * max(frame.rounding for frame in frames)
    if off <= max(_TOLERANCE_MM, 0.01 * float(np.linalg.norm(_step(frames))), rounding):
        return ""
    return f"has slices that are not quite parallel: their corners lie up to {off:.2g} mm from where a volume has them"


def _by_kind(frames: list[Frame]) -> list[tuple[list[Frame], str]]:
    """Frames of one direction, apart where several lie at one place and an attribute tells which is which; (frames, kind)."""
    places = sorted(float(frame.position @ frames[0].normal) for frame in frames)
    if all(b - a > _ONE_PLACE for a, b in itertools.pairwise(places)):
        return [(frames, "")]
    for keyword in _KINDS:
        groups = _grouped(frames, lambda f, keyword=keyword: f.text(keyword))  # type: ignore[misc]
        if len(groups) > 1 and len(set(map(len, groups.values()))) == 1:
            kinds = ((stack, value, kind) for value, same in groups.items() for stack, kind in _by_kind(same))
            return [(stack, f"{keyword} {value}{f', {kind}' if kind else ''}") for stack, value, kind in kinds]
    return [(frames, "")]


def _by_direction(frames: list[Frame]) -> list[list[Frame]]:
    """Frames of one size and direction each, to what rounding in headers leaves."""
    groups: list[list[Frame]] = []
    for frame in frames:
        same = next((group for group in groups if _alike(frame, group[0])), None)
        if same is None:
            groups.append(same := [])
        same.append(frame)
    return groups


def _alike(a: Frame, b: Frame) -> bool:
    same = (a.shape, a.inverted) == (b.shape, b.inverted) and np.allclose(a.spacing, b.spacing, rtol=1e-4)
    return same and bool(np.abs(a.axes - b.axes).max() < max(_SAME_DIRECTION, 2 * a.rounding, 2 * b.rounding))


def _grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Items by what is equal about them, in the order of its first appearance."""
    groups: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _pixels(frame: Frame) -> bytes:
    """Its stored values; its file's name where they cannot be read, as `volume` will tell."""
    try:
        return bytes(frame.source.frames(frame.header, [frame.index])[0].tobytes())
    except InputFileError:
        return frame.source.name.encode()
