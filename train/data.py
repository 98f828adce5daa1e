"""Files of slices or NIfTI volumes → brain crops → batches of (low-resolution, high-resolution) patches."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from tqdm import tqdm

from runtime import grid, io, measure
from runtime.acquired import Band, Told
from runtime.errors import ImageError, InputFileError
from runtime.grid import evenly as evenly
from runtime.intensity import Intensity
from runtime.io import pictures
from runtime.preview import letters
from runtime.scan import Scan

from . import resample, scanner
from .augment import faint_discs
from .resample import Image

if TYPE_CHECKING:
    from .config import Stage

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONTEXT = 16  # pixels around a patch that take part in its downsampling: bicubic reaches 2·r ≤ 8, k-space farther
_LUMINANCE = np.array((0.299, 0.587, 0.114), np.float32)  # of red, green and blue: ITU-R BT.601
_TEXTURE = (-3.0, -2.0)  # log10 of what an estimate of noise finds where there is none: 0.1 to 1 % of white
_MIN_BRIGHT = 0.05  # a slice of a volume with less tissue than this is left out


class Stack(NamedTuple):
    """The slices of a volume or a picture, (H, W) float32, black 0 and white about 1, by their number where they have one."""

    name: str  # its file's, without the suffix
    slices: dict[str, Image]
    axes: str = ""  # where a slice's two axes lead, in nibabel's letters; nothing for a picture


class Crop(NamedTuple):
    """The brain crop of a slice, (H, W) float32, black 0 and white about 1; where it is from, and where its axes lead."""

    pixels: Image
    source: str
    axes: str = ""
    volume: str = ""  # its file, for all crops of which one estimate is made


Batch = tuple[Image, Image, Image, grid.Scales]


def read(path: Path) -> list[Stack]:
    """The scans of a file of any format, or of a folder of DICOM series. Raises InputFileError or ImageError.

    JPEGs are averaged 2×2, which removes most of the compression's error; colour becomes luminance; NPY stacks are volumes.
    """
    kind, name = io.kind(path), path.name.removesuffix(io.suffix(path))
    if kind == "picture":
        return [Stack(name, _picture(path))]
    if kind != "dicom":
        return [_volume(name, io.read(path))]
    series = [one for one in io.dicom().find_series(path) if not one.problem]
    return [_volume(f"{name}_{k}" if len(series) > 1 else name, one.volume()) for k, one in enumerate(series, 1)]


def _volume(name: str, scan: Scan) -> Stack:
    intensity = Intensity.of(scan.pixels, inverted=scan.slope < 0)
    stack = np.moveaxis(scan.pixels, scan.in_plane, (0, 1))
    slices = {",".join(map(str, k)): intensity.normalise(stack[(..., *k)]) for k in np.ndindex(stack.shape[2:])}
    return Stack(name, slices, letters(scan, scan.in_plane))


def _picture(path: Path) -> dict[str, Image]:
    pixels, suffix = pictures.load(path), path.suffix.lower()
    if suffix == ".npy" and pixels.ndim == 3:
        intensity = Intensity.of(pixels)
        return {str(k): intensity.normalise(slice_) for k, slice_ in enumerate(pixels)}
    if pixels.ndim != 2 + (pixels.ndim == 3 and pixels.shape[-1] == 3):
        raise ImageError(f"it has shape {pixels.shape}: give slices (H, W), or NPY stacks (N, H, W)")
    grey = pixels.astype(np.float32)
    grey = grey @ _LUMINANCE if grey.ndim == 3 else grey
    if suffix in (".jpg", ".jpeg"):
        grey = resample.halved(grey)
    return {"": Intensity.of(grey).normalise(grey)}


def load_crops(files: Iterable[Path], min_size: int, truths: str = "stored") -> list[Crop]:
    """Brain crops of every usable slice, each at least `min_size` an axis; `truths` as in `config.Stage`.

    Smaller slices are left out and counted in the log, and so are slices of volumes with hardly any tissue. Raises
    InputFileError, which names the file, for one that cannot be used.
    """
    crops, left_out = [], 0
    for file in bar(list(files), desc="reading", unit="file", leave=False):
        try:
            for scan in read(file):
                for number, image in scan.slices.items():
                    if scan.axes and not (image > 0.05).mean() > _MIN_BRIGHT:
                        continue
                    if truths == "acquired":
                        image = measure.estimate([image]).canonical(image)[0]
                    window = _window(image, min_size)
                    left_out += window is None
                    if window is not None:
                        source = f"{file.name} slice {number}" if number else file.name
                        crops.append(Crop(np.ascontiguousarray(image[window]), source, scan.axes, str(file)))
        except ImageError as error:
            raise InputFileError(f"{file}: {error}") from None
    if left_out:
        log.info("%d slices smaller than %d pixels an axis were left out (JPEGs are halved first)", left_out, min_size)
    return crops


def bar(items: Sequence[T] | None = None, **options: Any) -> tqdm[T]:
    """A progress bar, at a terminal alone, and of the first process alone."""
    return tqdm(items, disable=None if os.environ.get("RANK", "0") == "0" else True, **options)


def brain_crop(image: Image) -> tuple[slice, ...] | None:
    """The smallest rectangle with every pixel above 5 % of the image's maximum, or of white where that is less; or None."""
    found = find_objects((image > 0.05 * min(image.max(initial=0.0), 1.0)).astype(np.uint8))
    return found[0] if found else None


def _window(image: Image, least: int) -> tuple[slice, ...] | None:
    """The brain crop, grown to at least `least` pixels an axis; None where there is none or the image too small."""
    crop = brain_crop(image)
    if min(image.shape) < least or crop is None:
        return None
    lengths = [max(least, side.stop - side.start) for side in crop]
    starts = [(side.start + side.stop - length + 1) // 2 for side, length in zip(crop, lengths)]
    starts = [min(max(0, start), n - length) for start, length, n in zip(starts, lengths, image.shape)]
    return tuple(slice(start, start + length) for start, length in zip(starts, lengths))


@dataclass(frozen=True)
class Batches:
    """Training batches as a pure function of (seed, update): the same again after a resume, whatever came between.

    An epoch takes every crop `patches_per_crop` times in a shuffled order. The last `stage.twins` patches of a batch are its
    first ones again, with the same noise and faint discs. Of `world` processes, number `rank` sees its own `batch` patches.
    """

    crops: Sequence[Crop]
    stage: Stage
    rank: int = 0
    world: int = 1

    def __getitem__(self, update: int) -> Batch:
        """(lr, hr, told, scales): lr (batch, 1, n_y, n_x) with n = patch // scale, or `input_patch` where that is less; hr
        (batch, 1, m_y, m_x) with m = n·p // q; and what is told of each lr, (batch, 3): `runtime.acquired.Told`. float32.
        """
        scales, drawn, twins = self.scales_of(update), self._crops_of(update), self.stage.twins
        once = len(drawn) - twins
        patches = [
            self._patch(
                self.crops[crop].pixels, scales, self._rng(2, update, k), self._rng(3, update, k) if n >= once else None
            )
            for n, (k, crop) in enumerate([*drawn[:once], *drawn[:twins]])
        ]
        lr, hr, told = zip(*patches)
        return np.stack(lr)[:, None], np.stack(hr)[:, None], np.array(told, np.float32), scales

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.stage.seed, *numbers])

    def sources_of(self, update: int) -> list[str]:
        """Where an update's patches are from."""
        return [self.crops[crop].source for _, crop in self._crops_of(update)]

    def scales_of(self, update: int) -> grid.Scales:
        """An update's scales, the same in every process."""
        rng = self._rng(1, update)
        y, x = (self.stage.scales[k] for k in rng.integers(len(self.stage.scales), size=2))
        if rng.random() >= self.stage.anisotropic:
            return y, y
        one = rng.integers(6)  # a third of these batches keep one axis as it is, as thick slices do
        return (Fraction(1) if one == 0 else y), (Fraction(1) if one == 1 else x)

    def _crops_of(self, update: int) -> list[tuple[int, int]]:
        """(number in the update, crop) of this process's patches."""
        batch, per_epoch = self.stage.batch, len(self.crops) * self.stage.patches_per_crop
        drawn = [
            (k, divmod(update * batch * self.world + k, per_epoch)) for k in range(self.rank * batch, (self.rank + 1) * batch)
        ]
        return [(k, int(_order(self.stage.seed, epoch, per_epoch)[at]) % len(self.crops)) for k, (epoch, at) in drawn]

    def _patch(
        self, crop: Image, scales: grid.Scales, rng: np.random.Generator, discs: np.random.Generator | None
    ) -> tuple[Image, Image, Told]:
        """An input, its truth and what is told of it; `discs` draws faint ones into it, and changes nothing else."""
        flip_y, flip_x, transpose = rng.integers(2, size=3)
        crop = crop[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        crop = self.stage.augment.crop(crop.T if transpose else crop, self.stage.patch, rng)

        ny, nx = (min(int(self.stage.patch / r), self.stage.input_patch or self.stage.patch) for r in scales)
        height, width = (math.ceil(n * r) for n, r in zip((ny, nx), scales))  # the patch's field of view
        y, x = (int(rng.integers(n - size + 1)) for n, size in zip(crop.shape, (height, width)))
        top, left = max(0, y - _CONTEXT), max(0, x - _CONTEXT)
        around = crop[top : y + height + _CONTEXT, left : x + width + _CONTEXT]
        around = self.stage.augment.patch(around, (top, left), crop.shape, rng)

        ways = self.stage.degradations
        degradation, sigma = ways[rng.integers(len(ways))], self.stage.augment.sigma(rng)
        around = faint_discs(around, scales, sigma, discs) if discs else around
        start = (y - top, x - left)  # and rows, cols: the soft ends of the band
        if degradation == "scanner":
            lr, around, (sigma, rows, cols) = scanner.canonical_patch(around, scales, start, (ny, nx), sigma, rng)
        else:
            taper = resample.TAPER if rng.random() < 0.75 else rng.uniform(0.25, 0.75)  # and scanners differ
            lr = resample.downsample(around, scales, degradation, start, (ny, nx), taper)
            rows, cols = (Band(taper=taper).soft if degradation == "canonical" and r > 1 else 0.0 for r in scales)
            lr = resample.rician(lr, sigma, rng) if sigma else lr
        my, mx = (grid.output_size(n, r) for n, r in zip((ny, nx), scales))
        hr = around[start[0] : start[0] + my, start[1] : start[1] + mx]
        told = float(np.hypot(sigma, 10 ** rng.uniform(*_TEXTURE))), rows, cols
        return *self.stage.augment.pair(lr, hr, scales, rng), told


@lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)
