"""Folders of slices or NIfTI volumes → brain crops by subject → batches of (low-resolution, high-resolution) patches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from runtime import grid, images, volume
from runtime.errors import InputFileError
from runtime.intensity import Intensity

from . import resample

Image = NDArray[np.float32]

GAP = 40  # numbered slices of unknown subjects: this many around each validation block belong to neither side
BLOCKS = 4  # validation blocks, spread over the numbers, so that no single kind of slice is all there is
_CONTEXT = 12  # pixels around a patch that take part in its downsampling: a bicubic kernel reaches 2·r ≤ 8
_GAIN = (0.7, 1.1)  # where white lies differs by what else is in the picture
_MIN_BRIGHT = 0.05  # a slice of a volume with less tissue than this is left out


@dataclass(frozen=True)
class Split:
    """Files for training and for validation, no subject in both, and one sentence on how they were told apart."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    how: str


def find_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Every image and NIfTI file below a folder whose name matches the glob, in order of name."""
    if not folder.is_dir():
        raise InputFileError(f"{folder} is not a folder: give one of image slices or NIfTI volumes")
    files = [f for f in sorted(folder.rglob(pattern)) if images.is_image(f) or volume.is_nifti(f)]
    if not files:
        raise InputFileError(f"{folder} holds no image or NIfTI file that matches {pattern!r}")
    return files


def split_by_subject(folder: Path, files: Sequence[Path], fraction: float = 0.1) -> Split:
    """Set about `fraction` of the subjects aside for validation.

    A subject is a sub-folder; in a flat folder of volumes, a BIDS `sub-` label or the name before its last `_part`. A flat
    folder of slices names no subjects: its slices are taken in order, `BLOCKS` runs of them validate, and `GAP` slices on
    either side of each run are used for nothing.
    """
    if not volume.is_nifti(files[0]) and any(f.parent == folder for f in files):
        return _split_numbered(folder, files, fraction)
    of_file = subjects(folder, files)
    names = sorted(set(of_file))
    if len(names) < 2:
        raise InputFileError(
            f"{folder} holds one subject only ({names[0]}): nothing is left to validate on; "
            "give each subject a sub-folder, or other subjects with --validation"
        )
    count = max(1, round(fraction * len(names)))
    held = {names[k] for k in np.linspace(0, len(names), count, endpoint=False).astype(int)}
    return Split(
        tuple(f for f, name in zip(files, of_file) if name not in held),
        tuple(f for f, name in zip(files, of_file) if name in held),
        f"{len(names) - len(held)} subjects train, {len(held)} validate: {', '.join(sorted(held))}",
    )


def split_as_given(train: Sequence[Path], validation: Sequence[Path]) -> Split:
    """Two folders' files, which the caller answers for; a file on both sides is refused all the same."""
    both = {f.resolve() for f in train} & {f.resolve() for f in validation}
    if both:
        raise InputFileError(f"{len(both)} files, {min(both)} among them, would train and validate: give other subjects")
    return Split(tuple(train), tuple(validation), f"{len(train)} files train, {len(validation)} others validate")


def subjects(folder: Path, files: Sequence[Path]) -> list[str]:
    """The subject of each file: its first sub-folder; in a flat folder its BIDS `sub-` label, or its name before the last _."""
    names = []
    for file in files:
        first, *below = file.relative_to(folder).parts
        stem = first.split(".")[0]
        bids = re.match(r"sub-[A-Za-z0-9]+", stem)
        names.append(first if below else bids.group() if bids else stem.rpartition("_")[0] or stem)
    return names


def _split_numbered(folder: Path, files: Sequence[Path], fraction: float) -> Split:
    length = round(fraction * len(files) / BLOCKS)
    if length < 1 or len(files) < BLOCKS * (length + 2 * GAP):
        raise InputFileError(
            f"{folder} has {len(files)} loose slices, too few to tell subjects apart by blocks with gaps of {GAP}: "
            "give each subject a sub-folder, or other subjects with --validation"
        )
    files = sorted(files, key=lambda f: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", f.name)])
    role = np.zeros(len(files), np.int8)  # 0 train, 1 gap, 2 validation
    for k in range(BLOCKS):
        start = round((k + 0.5) * len(files) / BLOCKS - length / 2)
        role[start - GAP : start + length + GAP] = 1
        role[start : start + length] = 2
    return Split(
        tuple(f for f, r in zip(files, role) if r == 0),
        tuple(f for f, r in zip(files, role) if r == 2),
        f"slices without subjects: {(role == 0).sum()} train, {BLOCKS} blocks of {length} validate, gaps of {GAP} between",
    )


def load_crops(files: Iterable[Path], min_size: int, progress: bool = True) -> list[Image]:
    """Brain crops of every usable slice, float32, black 0 and white about 1, each at least `min_size` an axis.

    JPEG slices are averaged 2×2 first, which removes most of the compression's error. Slices smaller than `min_size`,
    and those of volumes that show hardly any tissue, are left out.
    """
    crops = []
    for file in tqdm(list(files), desc="reading", unit="file", disable=not progress, leave=False):
        for image in _slices(file):
            window = _widen(resample.brain_crop(image), image.shape, min_size)
            if window is not None:
                crops.append(np.ascontiguousarray(image[window]))
    return crops


def _slices(file: Path) -> Iterable[Image]:
    if volume.is_nifti(file):
        image = volume.load(file)
        pixels, slope, _ = volume.stored(image)
        intensity = Intensity.of(pixels, inverted=slope < 0)
        slices = np.moveaxis(pixels, volume.slice_axis(image), -1) if pixels.ndim > 2 else pixels[..., None]
        for index in np.ndindex(slices.shape[2:]):
            unit = intensity.normalise(slices[(..., *index)])
            if (unit > 0.05).mean() > _MIN_BRIGHT:
                yield unit
        return
    slice_ = images.read(file).astype(np.float32)
    slice_ = slice_.mean(axis=-1) if slice_.ndim == 3 else slice_
    if file.suffix.lower() in (".jpg", ".jpeg"):
        height, width = (n // 2 * 2 for n in slice_.shape)
        slice_ = slice_[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    yield Intensity.of(slice_).normalise(slice_)


def _widen(window: tuple[slice, slice], shape: tuple[int, ...], size: int) -> tuple[slice, slice] | None:
    """The window grown to at least `size` an axis inside the image, or None where it is empty or the image too small."""
    if min(shape) < size or any(w.stop == w.start for w in window):
        return None
    grown = []
    for w, n in zip(window, shape):
        extra = max(0, size - (w.stop - w.start))
        start = min(max(0, w.start - extra // 2), n - max(size, w.stop - w.start))
        grown.append(slice(start, start + max(size, w.stop - w.start)))
    return grown[0], grown[1]


@dataclass(frozen=True)
class Batches:
    """Training batches as a pure function of (seed, update): the same again after a resume, whatever came between.

    An epoch takes every crop `patches_per_crop` times in a shuffled order. A batch has one scale, drawn from `scales`;
    each patch has its own place, flip, gain and downsampling kernel.
    """

    crops: Sequence[Image]
    batch: int
    patch: int
    patches_per_crop: int
    kernels: tuple[resample.Kernel, ...]
    seed: int
    scales: tuple[Fraction, ...] = grid.PAPER_SCALES

    def __getitem__(self, update: int) -> tuple[Image, Image, Fraction]:
        """(lr, hr, scale) with lr (batch, 1, n, n), n = patch // scale, and hr (batch, 1, m, m), m = n·p // q."""
        rng = np.random.default_rng([self.seed, 1, update])
        scale = self.scales[rng.integers(len(self.scales))]
        pairs = [self._pair(self.crops[k], scale, rng) for k in self._crops_of(update)]
        lr, hr = (np.stack(side)[:, None] for side in zip(*pairs))
        return lr, hr, scale

    def _crops_of(self, update: int) -> list[int]:
        per_epoch = len(self.crops) * self.patches_per_crop
        drawn = range(update * self.batch, (update + 1) * self.batch)
        orders = {e: np.random.default_rng([self.seed, 0, e]).permutation(per_epoch) for e in {d // per_epoch for d in drawn}}
        return [int(orders[d // per_epoch][d % per_epoch]) % len(self.crops) for d in drawn]

    def _pair(self, crop: Image, scale: Fraction, rng: np.random.Generator) -> tuple[Image, Image]:
        flip_y, flip_x, transpose = rng.integers(2, size=3)
        crop = crop[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        crop = crop.T if transpose else crop
        gain = np.float32(rng.uniform(*_GAIN))
        kernel = self.kernels[rng.integers(len(self.kernels))]

        n = int(self.patch / scale)
        m = grid.output_size(n, scale)
        y, x = (int(rng.integers(s - self.patch + 1)) for s in crop.shape)
        top, left = max(0, y - _CONTEXT), max(0, x - _CONTEXT)
        around = crop[top : y + self.patch + _CONTEXT, left : x + self.patch + _CONTEXT] * gain
        lr = resample.downsample(around, (scale, scale), kernel, (y - top, x - left), (n, n))
        return lr, around[y - top : y - top + m, x - left : x - left + m]
