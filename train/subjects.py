"""Which file shows which subject, and which subjects train and which validate: none does both.

The first rule that applies tells the subject from a file's path below the data's folder, written with /:

1. `subject`, a regular expression: its first group, or all that it matches.
2. A BIDS label `sub-…` anywhere in the path.
3. Pictures that all lie loose in the folder name no subject: they are split in blocks with gaps.
4. The first sub-folder that is no group (`_GROUP`: HGG, imagesTr, ses-1, …), or a volume's own name; of either without the
   words of `_WORD` and numbers after one of three digits: IXI002-Guys-0828-T1 is IXI002-Guys-0828.

A folder in which rule 4 may take one subject for two is refused: `_check` says when.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime import io
from runtime.errors import InputFileError
from runtime.io import nifti, pictures

log = logging.getLogger(__name__)

GAP = 40  # numbered slices of unknown subjects: this many around each validation block belong to neither side
BLOCKS = 4  # validation blocks, spread over the numbers, so that no single kind of slice is all there is
_FEW = 4  # so few folders may be classes or sequences, where one of them holds more than `_MANY` things
_MANY = 9  # a subject has hardly more series

_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_SEGMENTATION = re.compile(  # a folder's whole name, or part of a file's
    r"(?i)(?:^|/)(?:labels?|masks?|seg[a-z]*)(?:tr|ts)?/"
    r"|(?:(?<![^/_\-. ])[a-z]*seg(?:m[a-z]*|\d*)(?=[_\-. ])|mask(?!ed)|label(?!l?ed))[^/]*$"
)
_WORD = re.compile(  # no part of a subject's name: set off on both sides, or as T1, T2, FLAIR at the end of another word
    r"""(?ix) (?: (?<![^_\-. ]) | (?-i: (?<=[a-z0-9]) (?=T[12]|FLAIR) ) ) (?:
    t[12][a-z]*\+? | flair | pdw? | dwi | adc | dti | swi | mra | mri? | tof | mprage | spgr | contrast | c[et] | gad | gd
    | pre | post | baseline | follow-?up | (?:ses|session|visit|scan|run|tp|timepoint|echo) (?:[-_]?\d+|-[a-z]+)?
    | (?:19|20)\d{6} | ax | axial | cor | coronal | sag | sagittal | tra | \dd | \d+mm | brain | bet | skull | stripped
    | seg\w* | masks? | masked | labels? | n4 | reg | registered | norm | resampled | anon | defaced | raw | nifti | nii
    ) (?![^_\-. ])"""
)
_GROUP = re.compile(
    r"(?i)[hl]gg|(?:images|labels|masks|volumes|scans|slices)(?:tr|ts)?|derivatives|(?:raw|source)?data|dataset"
    r"|train(?:ing)?|val(?:idation)?|test(?:ing)?|anat|func|perf"
)
_SUBJECT = re.compile(  # a number after such a word is a subject's
    r"(?i)(?:s|p|pt|id|hc|(?:.*[_\-. ])?(?:sub|subj|subject|pat|patient|participant|volunteer|case|control))[_\-. ]?\d+"
)


class Split(NamedTuple):
    """Files for training and for validation, each with its subject where that is known, and a sentence on the split."""

    train: dict[Path, str]
    validation: dict[Path, str]
    how: str


def find_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Every image and NIfTI file below a folder whose name matches the pattern, in order of path; not hidden ones, nor
    segmentations and masks, whose number is logged. Raises InputFileError where nothing is left.
    """
    if not folder.is_dir():
        raise InputFileError(f"{folder} is not a folder: give one of image slices or NIfTI volumes")
    found = sorted(f for f in folder.rglob("*") if f.name.lower().endswith((*pictures.SUFFIXES, *nifti.SUFFIXES)))
    paths = {f: f.relative_to(folder).as_posix() for f in found if fnmatchcase(f.name, pattern) and f.is_file()}
    seen = [f for f, path in paths.items() if not re.search(r"(?:^|/)\.", path)]
    files = [f for f in seen if not _SEGMENTATION.search(paths[f])]
    also = f"; {len(seen) - len(files)} segmentations or masks are left out" if len(seen) > len(files) else ""
    if not files:
        raise InputFileError(f"{folder} holds no image or NIfTI file that matches {pattern!r}{also}")
    log.info("%d files in %s%s", len(files), folder, also)
    return files


def split_by_subject(folder: Path, files: Sequence[Path], subject: str | None = None, fraction: float = 0.1) -> Split:
    """Set about `fraction` of the subjects aside for validation, spread over their names in order; of loose slices that name
    none, `BLOCKS` runs in order of their numbers, with `GAP` slices on either side of each that are used for nothing.

    Raises InputFileError where there are too few of either, and as `subjects` does.
    """
    of = dict(zip(files, subjects(folder, files, subject)))
    names = sorted(set(of.values()))
    if names == [""]:
        return _split_numbered(folder, files, fraction)
    if len(names) < 2:
        raise _unclear(folder, f"holds one subject only ({', '.join(names)}), so that nothing is left to validate on")
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    held = {names[k] for k in np.linspace(0, len(names), count, endpoint=False).astype(int)}
    train, validation = ({f: name for f, name in of.items() if (name in held) == side} for side in (False, True))
    how = f"{len(names) - count} subjects train, {count} validate: {', '.join(sorted(held))}"
    return Split(train, validation, how)


def split_as_given(train: Sequence[Path], validation: Sequence[Path]) -> Split:
    """Two folders' files, which the caller answers for."""
    how = f"{len(train)} files train, {len(validation)} others validate"
    return Split(dict.fromkeys(train, ""), dict.fromkeys(validation, ""), how)


def check_apart(splits: dict[str, Split]) -> None:
    """Raise InputFileError where a file or a named subject trains in one of the splits and validates in any."""
    for (a, split), (b, other) in product(splits.items(), repeat=2):
        files = {f.resolve() for f in split.train} & {f.resolve() for f in other.validation}
        names = {*split.train.values()} & {*other.validation.values()} - {""}
        if both := sorted(map(str, files)) or sorted(names):
            seen = f"{both[0]} would train in {a} and validate in {b}, {len(both)} such in all"
            advice = "give other subjects, for both the same data, pattern and subject, or a validation=FOLDER"
            raise InputFileError(f"{seen}: {advice}")


def subjects(folder: Path, files: Sequence[Path], subject: str | None = None) -> list[str]:
    """The subject of each file by the rules above; of loose slices that name none, "".

    Raises InputFileError for an expression that is none or leaves a file without a subject, and where a guess may be wrong.
    """
    paths = [f.relative_to(folder).as_posix() for f in files]
    if subject is not None:
        return [_matched(subject, path) for path in paths]
    volumes, labels = [f.name.lower().endswith(nifti.SUFFIXES) for f in files], [_BIDS.search(path) for path in paths]
    _same(folder, paths, volumes, "holds volumes such as {} beside pictures such as {}")
    _same(folder, paths, labels, "holds {}, which has a BIDS label, and {}, which has none")
    if all(labels):
        return [label[1] for label in labels if label]
    if not any(volumes) and not any("/" in path for path in paths):
        return [""] * len(paths)
    guesses = [_guess(path) for path in paths]
    in_folders = [inside is not None for _, inside in guesses]
    _same(folder, paths, in_folders, "holds {} in a subject's folder and {} in none")
    for path, (name, _), volume in zip(paths, guesses, volumes):
        if not name or not (in_folders[0] or volume):
            raise _unclear(folder, f"holds {path}, whose path names no subject")
    _check(folder, guesses, in_folders[0])
    return [name for name, _ in guesses]


def _matched(pattern: str, path: str) -> str:
    try:
        match = re.search(pattern, path)
    except re.error as error:
        raise InputFileError(f"subject {pattern!r} is no regular expression ({error}): try 'patient[0-9]+'") from None
    if name := match and match[1 if match.re.groups else 0]:
        return name
    raise InputFileError(f"subject {pattern!r} finds none in {path}: give a regular expression that matches every file")


def _check(folder: Path, guesses: Sequence[tuple[str, str | None]], in_folders: bool) -> None:
    """Raise InputFileError where one subject may be taken for two.

    So are folders that differ in a short number or in a word after a number, files that begin with the same word, and two to
    `_FEW` folders that may be classes or sequences. Trusted are numbers after such a word as "patient", and one long last
    number in which all differ (BRATS_001).
    """
    held, alike = defaultdict(set), defaultdict(set)
    doubtful = r"[_\-. ]+\d{1,2}$|(?<=\d)[_\-. ]+[A-Za-z]+\d*$" if in_folders else r"[_\-. ].*"
    for name, inside in guesses:
        held[name].add(inside or "")
        alike[re.sub(doubtful, "", name)].add(name)
    for group in alike.values():
        numbered = len(alike) == 1 and len({re.sub(r"\d{3,}$", "", name) for name in group}) == 1
        if len(group) > 1 and not numbered and not all(map(_SUBJECT.fullmatch, group)):
            raise _unclear(folder, f"names {' and '.join(sorted(group)[:2])}, which may be one subject or two")
    if in_folders and 1 < len(held) <= _FEW and not all(map(_SUBJECT.fullmatch, held)):
        shared = [inside for inside in set.intersection(*held.values()) if inside and not inside.isdecimal()]
        if len(shared) > 1 or max(map(len, held.values())) > _MANY:
            raise _unclear(folder, f"has {len(held)} folders that may be classes or sequences ({', '.join(sorted(held))})")


def _guess(path: str) -> tuple[str, str | None]:
    """A subject, and the name of what its folder holds on this path: None where the file itself is named for it."""
    *folders, file = re.sub(r"(?i)(^|/)derivatives/[^/]+/", r"\1", path).split("/")
    for part, inside in zip(folders, [*folders[1:], _stem(file)]):
        name = _name(part)
        if name and not _GROUP.fullmatch(name):
            return name, _name(inside)
    return _name(_stem(file)), None


def _name(part: str) -> str:
    """What is left of a folder's name or a file's stem without the words and numbers that name no subject."""
    name = re.sub(r"([_\-. ])[_\-. ]+", r"\1", _WORD.sub("", part)).strip("_-. ")
    return re.sub(r"(?<=\d{3})([_\-. ]\d+)+$", "", name)


def _stem(name: str) -> str:
    return name.removesuffix(io.suffix(Path(name)) or Path(name).suffix)


def _same(folder: Path, paths: Sequence[str], traits: Sequence[object], seen: str) -> None:
    first = {bool(trait): path for trait, path in reversed([*zip(traits, paths)])}
    if len(first) > 1:
        raise _unclear(folder, seen.format(first[True], first[False]))


def _unclear(folder: Path, seen: str) -> InputFileError:
    way_out = "say with subject=REGEX which part of a path is the subject, or choose files, such as pattern='*t1ce*'"
    return InputFileError(f"{folder} {seen}: {way_out}")


def _split_numbered(folder: Path, files: Sequence[Path], fraction: float) -> Split:
    length = round(fraction * len(files) / BLOCKS)
    if length < 1 or len(files) < BLOCKS * (length + 2 * GAP):
        raise InputFileError(
            f"{folder} has {len(files)} loose slices, too few to tell subjects apart by blocks with gaps of {GAP}: "
            "give each subject a sub-folder, or other subjects as validation=FOLDER"
        )
    files = sorted(files, key=lambda f: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", f.name)])
    role = np.zeros(len(files), np.int8)  # 0 train, 1 gap, 2 validation
    for k in range(BLOCKS):
        start = round((k + 0.5) * len(files) / BLOCKS - length / 2)
        role[start - GAP : start + length + GAP] = 1
        role[start : start + length] = 2
    train, validation = (dict.fromkeys((f for f, r in zip(files, role) if r == wanted), "") for wanted in (0, 2))
    how = f"slices without subjects: {len(train)} train, {BLOCKS} blocks of {length} validate, gaps of {GAP} between"
    return Split(train, validation, how)
