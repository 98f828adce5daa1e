"""DICOM series as volumes: slices are told apart, sorted and measured by where they lie, never by name or number."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import headers
from ..errors import ImageError, InputFileError
from ..measure import Fractions
from ..memory import allocate
from ..scan import Scan
from .frames import Frame, Rescale, frames_of
from .source import Skipped, Source, in_memory, sources

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TOLERANCE_MM = 0.05  # between a slice and where even steps would put it; or 1 % of a step
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
    affine: NDArray[np.float64] = field(repr=False)
    notes: tuple[str, ...]
    problem: str
    frames: tuple[Frame, ...] = field(repr=False)
    doubt: str = ""
    damaged: tuple[str, ...] = ()  # a line about each file that belongs to it and cannot be read: slices may be missing

    def volume(self) -> Scan:
        """The real values, array axes (columns, rows, slices): integers where they are, or as stored, with slope and intercept.

        Bright is large even where small numbers are shown bright (MONOCHROME1): those are mirrored in the range of their
        bits. Raises ImageError where there is a `problem`, InputFileError for pixels that are damaged or cannot be decoded.
        """
        if self.problem:
            raise ImageError(f"the series cannot be upscaled: it {self.problem}")
        rows, columns, slices = self.shape
        dtype, shift, slope, intercept = self._layout
        data = allocate((columns, rows, slices), dtype, "F")
        for place, frame, pixels in self._pixels():
            if pixels.shape != (rows, columns):
                raise InputFileError(
                    f"{frame.source.name} holds a picture of {pixels.shape}, not {(rows, columns)}: copy it again"
                )
            values = sum(self.limits) - pixels.astype(np.int32) if frame.inverted else pixels
            if self.rescale is None:
                values = values * frame.rescale[0] + frame.rescale[1]
            elif shift:
                values = values.astype(np.int32) + shift
            data[:, :, place] = values.T
        spacing = tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())
        notes = (f"it {self.doubt}", *self.notes) if self.doubt else self.notes
        known: dict[str, Any] = {"acquired": self.acquired, "padding": self.padding, "header": self, "notes": notes}
        return Scan(data, spacing, self.affine, slope=slope, inter=intercept, **known)

    @cached_property
    def rescale(self) -> Rescale | None:
        """Slope and intercept of all slices; None where each has its own."""
        kinds = {frame.rescale for frame in self.frames}
        return kinds.pop() if len(kinds) == 1 else None

    @cached_property
    def padding(self) -> tuple[int, int] | None:
        """The lowest and highest number of the array of `volume`, before its slope, that stand for no measurement.

        None where the header names none, where slices differ in it, and where each has a slope of its own.
        """
        found = set() if self.problem else {frame.padding for frame in self.frames}
        ends = found.pop() if len(found) == 1 and self.rescale else None
        if not ends:
            return None
        low, high = (sum(self.limits) - end for end in ends[::-1]) if self.frames[0].inverted else ends
        return low + self._layout[1], high + self._layout[1]

    @cached_property
    def _layout(self) -> tuple[np.dtype[Any], int, float, float]:
        """How `volume` stores real values: type, what is added to stored numbers, slope and intercept."""
        stored = np.result_type(*{_dtype(*frame.limits) for frame in self.frames})
        if self.rescale is None:
            return np.dtype(np.float32), 0, 1.0, 0.0
        slope, intercept = self.rescale
        if slope != 1 or not intercept.is_integer() or abs(intercept) >= 1 << 30:
            return stored, 0, slope, intercept
        shift = int(intercept)
        return _dtype(*(limit + shift for limit in self.limits)) if shift else stored, shift, 1.0, 0.0

    @cached_property
    def acquired(self) -> Fractions:
        """The parts of the stored columns, rows and slices that the header says were measured; None where it does not."""
        first = self.frames[0]
        return headers.of_dicom(first.numbers, first.text("InPlanePhaseEncodingDirection"), first.shape)

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The smallest and largest number that the bits of all slices can hold."""
        return min(f.limits[0] for f in self.frames), max(f.limits[1] for f in self.frames)

    def _pixels(self) -> Iterator[tuple[int, Frame, NDArray[Any]]]:
        """(slice, frame, stored values), file by file, as a file of many frames is dear to open."""
        by_file: dict[int, list[int]] = defaultdict(list)
        for place, frame in enumerate(self.frames):
            by_file[id(frame.source)].append(place)
        for places in by_file.values():
            first = self.frames[places[0]]
            frames = first.source.frames(first.header, [self.frames[place].index for place in places])
            for place, pixels in zip(places, frames, strict=True):
                yield place, self.frames[place], pixels


def read(path: Path, number: int | None = None, allow_gaps: bool = False) -> Scan:
    """The volume of the series of this number, from 0; without one, of the only one that can be upscaled without a doubt.

    Raises InputFileError where there is none, or where it may lack slices, unless that is allowed.
    """
    found, chosen = find_series(path), number is not None
    name = f"{path} (series {number + 1})" if number is not None else str(path)
    if number is None:
        several = usable(found)
        if len(several) > 1:
            listed = ", ".join(f"{k + 1} of {'×'.join(map(str, found[k].shape))}" for k in several[:_LISTED])
            listed += f", and {len(several) - _LISTED} more" if len(several) > _LISTED else ""
            raise InputFileError(f"{path} holds several series ({listed}): choose one by --series, or give a folder, -o DIR/")
        number = (several or [0])[0]
    if not 0 <= number < len(found):
        raise InputFileError(f"{path} holds {len(found)} series, none of which is number {number + 1}")
    series = found[number]
    if series.problem or (series.doubt and not chosen):
        advice = "" if series.problem else f"; take it all the same by --series {number + 1}"
        raise InputFileError(f"{name} cannot be upscaled: it {series.problem or series.doubt}{advice}")
    if series.damaged and not allow_gaps:
        raise InputFileError(
            f"{name} may lack {len(series.damaged)} slices, the first by {series.damaged[0]}: copy it again, or take what is "
            "there by --allow-gaps"
        )
    return series.volume()


def usable(found: Sequence[Series]) -> list[int]:
    """Which of the series that were found can be upscaled without a doubt."""
    return [number for number, series in enumerate(found) if not series.problem and not series.doubt]


def find_series(path: Path) -> list[Series]:
    """The series in a folder with all that is below it, in a file or in a zip, which is read in memory; at least one.

    Raises InputFileError where there is none, and says what there is.
    """
    return _find(sources(path), str(path))


def series_of(files: Iterable[bytes]) -> list[Series]:
    """The series among DICOM files that are in memory, such as those that came over a network."""
    return _find(in_memory(files), "what came")


def _find(found: Iterable[Source], where: str) -> list[Series]:
    by_uid: dict[str, list[Frame]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)  # by series; those that belong to none, under ""
    damaged: dict[str, list[str]] = defaultdict(list)  # of these, by series
    for source in found:
        try:
            frames = frames_of(source, source.header())
        except (Skipped, InputFileError) as error:
            skipped = error if isinstance(error, Skipped) else Skipped("it could not be read", damaged=True)
            notes[skipped.uid].append(f"{source.name} was left out: {skipped}")
            if skipped.damaged:
                damaged[skipped.uid].append(f"{source.name}: {skipped}")
            continue
        by_uid[frames[0].uid] += frames
    if not by_uid:
        said = [note for lines in notes.values() for note in lines]
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        raise InputFileError(f"{where} holds no DICOM picture: {'; '.join(said[:3]) or 'no file'}{more}")
    series = [one for uid, frames in by_uid.items() for one in _series(frames, [*notes.pop(uid, []), *notes[""]])]
    for uid in notes.keys() - {""}:  # series of which no file could be used
        series = [replace(one, notes=(*one.notes, *notes[uid])) for one in series]
    lost = damaged[""] if len(by_uid) == 1 else []  # they say nothing about their series
    series = [replace(one, damaged=(*damaged[one.uid], *lost)) for one in series]
    return sorted(series, key=lambda one: (one.frames[0].numbers("SeriesNumber", 1) or (0.0,), one.uid))


def _series(frames: list[Frame], notes: list[str]) -> Iterator[Series]:
    """The stacks of one DICOM series."""
    first = frames[0]
    if any(tag.is_private for tag in first.header.keys()):  # noqa: SIM118
        notes = [*notes, "the manufacturer's private data is not carried into a derived series"]
    if modality := first.text("Modality"):
        notes += [f"the modality is {modality}: the network was made for MR"] * (modality != "MR")
    by_problem = _grouped(frames, lambda f: f.problem)
    usable = by_problem.pop("", [])
    for problem, same in by_problem.items():
        yield _measured(same, notes, problem)
    directions = _by_direction(usable)
    stacks = [(stack, kind) for same in directions for stack, kind in _by_kind(same)]
    localizer = len(directions) > 1 and max(map(len, directions)) <= _FEW
    for stack, kind in stacks:
        said = [f"one of {len(stacks)} stacks of slices in its series{f', that of {kind}' if kind else ''}"] * (len(stacks) > 1)
        yield _stack(stack, [*said, *notes], localizer)


def _stack(frames: list[Frame], notes: list[str], localizer: bool) -> Series:
    """Slices of one direction and kind, in order along their normal."""
    normal = frames[0].normal
    ordered = sorted(frames, key=lambda f: (along(f, normal), f.source.name, f.index))
    kept: list[Frame] = []
    problem = ""
    for frame in ordered:
        if not kept or along(frame, normal) - along(kept[-1], normal) > 1e-3:
            kept.append(frame)
        elif _digest(frame) == _digest(kept[-1]):
            notes = [*notes, f"{frame.source.name} was left out: the same slice as {kept[-1].source.name}"]
        else:
            kept.append(frame)
            problem = problem or (
                f"has several slices at one place ({frame.source.name} and {kept[-2].source.name}), "
                "and nothing tells them apart"
            )
    first = kept[0]
    titles = f"{first.text('SeriesDescription')} {first.text('ProtocolName')}"
    localizer = localizer or "LOCALIZER" in first.words("ImageType") or bool(_LOCALIZER.search(titles))
    doubt = "is a localizer, slices to plan others by" if localizer else _tilt(kept)
    return _measured(kept, notes, problem or _unevenness(kept), doubt)


def _measured(frames: list[Frame], notes: list[str], problem: str, doubt: str = "") -> Series:
    first, count = frames[0], len(frames)
    affine, spacing = np.eye(4), (0.0, 0.0, 0.0)
    if first.position is not None and first.orientation is not None and first.spacing is not None:
        step = _step(frames)
        columns = [first.axes[0] * first.spacing[1], first.axes[1] * first.spacing[0], step, first.position]
        affine[:3] = np.array(columns).T
        affine = LPS_TO_RAS @ affine
        spacing = (*first.spacing, float(np.linalg.norm(step)))
    said = first.uid, first.text("SeriesDescription"), first.text("Modality")
    shape = (*first.shape, count)
    doubt = "" if problem else doubt
    return Series(*said, shape, spacing, affine, tuple(dict.fromkeys(notes)), problem, tuple(frames), doubt)


def _step(frames: list[Frame]) -> NDArray[np.float64]:
    """From a slice to the next, in mm; of a single one, along its normal by the thickness that it says."""
    first, last = frames[0], frames[-1]
    if len(frames) > 1 and first.position is not None and last.position is not None:
        return np.asarray((last.position - first.position) / (len(frames) - 1))
    return np.asarray(first.normal * first.thickness)


def _unevenness(frames: list[Frame]) -> str:
    """Why slices in order are no volume: a gap, or steps of several lengths; or nothing."""
    if len(frames) < 2:
        return ""
    positions = np.array([frame.position for frame in frames])
    even = positions[0] + np.arange(len(frames))[:, None] * _step(frames)
    steps = np.diff(positions @ frames[0].normal)
    usual = float(np.median(steps))
    if np.linalg.norm(positions - even, axis=1).max() <= max(TOLERANCE_MM, 0.01 * usual):
        return ""
    missing = np.rint(steps / usual) - 1
    if missing.sum() > 0 and np.abs(steps / usual - 1 - missing).max() < 0.1:
        at = int(np.argmax(missing))
        return (
            f"has a gap: {int(missing.sum())} of {len(frames) + int(missing.sum())} slices are missing, the first between "
            f"{frames[at].source.name} and {frames[at + 1].source.name}"
        )
    return f"has slices at uneven distances, {steps.min():.3g} to {steps.max():.3g} mm: export them evenly spaced"


def _tilt(frames: list[Frame]) -> str:
    """Why slices are not parallel, beyond what rounding in headers and the tolerance of their places allow; or nothing."""
    first = frames[0]
    size = np.multiply(first.shape, first.spacing or 0)[::-1]  # mm along a row and down a column
    off = max(float(size @ np.linalg.norm(frame.axes - first.axes, axis=1)) for frame in frames)
    rounding = 2 * float(size.sum()) * max(frame.rounding for frame in frames)
    if off <= max(TOLERANCE_MM, 0.01 * float(np.linalg.norm(_step(frames))), rounding):
        return ""
    return f"has slices that are not quite parallel: their corners lie up to {off:.2g} mm from where a volume has them"


def _by_kind(frames: list[Frame]) -> Iterator[tuple[list[Frame], str]]:
    """Frames of one direction, apart where several lie at one place and an attribute tells which is which; (frames, kind)."""
    normal = frames[0].normal

    def crowded(some: list[Frame]) -> bool:
        places = sorted(along(frame, normal) for frame in some)
        return any(b - a <= 1e-3 for a, b in itertools.pairwise(places))

    if not crowded(frames):
        yield frames, ""
        return
    for keyword in _KINDS:
        groups = _grouped(frames, lambda f, keyword=keyword: f.text(keyword))  # type: ignore[misc]
        if len(groups) > 1 and len(set(map(len, groups.values()))) == 1:
            for value, same in groups.items():
                shown = f"{keyword} {value}"
                yield from ((stack, f"{shown}, {kind}" if kind else shown) for stack, kind in _by_kind(same))
            return
    yield frames, ""


def _by_direction(frames: list[Frame]) -> list[list[Frame]]:
    """Frames of one size and direction each, to what rounding in headers leaves."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for same in groups:
            if _alike(frame, same[0]):
                same.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _alike(a: Frame, b: Frame) -> bool:
    return (
        (a.shape, a.inverted) == (b.shape, b.inverted)
        and np.allclose(a.spacing or 0, b.spacing or 0, rtol=1e-4)
        and bool(np.abs(a.axes - b.axes).max() < max(_SAME_DIRECTION, 2 * a.rounding, 2 * b.rounding))
    )


def _grouped(frames: list[Frame], key: Callable[[Frame], Any]) -> dict[Any, list[Frame]]:
    """Frames by what is equal about them, in the order of its first appearance."""
    groups: dict[Any, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return groups


def along(frame: Frame, normal: NDArray[np.float64]) -> float:
    """How far along the normal a frame lies, in mm."""
    return float(np.dot(frame.position, normal)) if frame.position is not None else 0.0


def _digest(frame: Frame) -> bytes:
    try:
        return hashlib.sha256(next(iter(frame.source.frames(frame.header, [frame.index]))).tobytes()).digest()
    except InputFileError:
        return frame.source.name.encode()  # like no other; `volume` will say what is wrong with it


def _dtype(low: int, high: int) -> np.dtype[Any]:
    """The smallest integer type that holds both."""
    return np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)) if low < 0 else np.min_scalar_type(high)
