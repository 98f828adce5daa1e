"""The scan that is looked at: its planes, and what a browser needs of each slice. Knows nothing of HTTP."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import __version__, grid, measure, volume
from ..acquired import Acquired, Float
from ..errors import ImageError
from ..intensity import Intensity
from ..measure import Matrix
from ..memory import BoundedCache
from ..preview import orientation
from ..scan import Scan
from ..slices import Encoded, Slices, output_shape
from ..uncertainty import COVERAGE
from ..upscaler import Upscaler, View

LARGEST = 1 << 22  # pixels of a slice: 690 MB of responses
_SHADED = 1 << 20  # of one that goes to the browser: 67 MB of them in half precision. Windows of larger ones are rendered here
_HIDDEN = 1000  # units of a predictor whose numbers fit into WebGL's blocks of 16 kB
_KEPT = 192 << 20  # bytes of encoded slices: 17 of 256×256 pixels
IN_BROWSER = 256 << 20  # the same, there
_WINDOW = 1 << 22  # pixels of a window that is rendered here
_NAMES = {"S": "Axial", "I": "Axial", "A": "Coronal", "P": "Coronal", "L": "Sagittal", "R": "Sagittal"}
_OPPOSITE = dict(zip("LRAPIS", "RLPASI"))
_TWICE = Fraction(2)  # the scale at which is computed what the output lacks of the input


@dataclass(frozen=True)
class Key:
    """A slice: across which axis, where, of which volume, and the noise (σ as a part of white) that the network is told."""

    axis: int
    index: int
    volume: int
    noise: float


@dataclass(frozen=True)
class Plane:
    """The slices across one axis. `axes` names where rows and columns lead, from "LRPAIS"; nothing for a picture."""

    axis: int
    pair: tuple[int, int]
    count: int
    shape: tuple[int, int]
    acquired: Acquired
    axes: str = ""
    name: str = "Picture"

    @property
    def spacing(self) -> grid.Scales:
        """Canonical pixels in stored ones."""
        return self.acquired.bands[0].spacing, self.acquired.bands[1].spacing

    @property
    def canonical(self) -> tuple[int, int]:
        return math.ceil(self.shape[0] / self.spacing[0]), math.ceil(self.shape[1] / self.spacing[1])

    @property
    def fine(self) -> grid.Scales:
        """The scale of the grid that holds what the output lacks: two points for each canonical pixel."""
        return 2 / self.spacing[0], 2 / self.spacing[1]


@dataclass(frozen=True)
class Shown:
    """An encoded slice. `nbytes` is what its responses take."""

    slices: Slices
    view: View
    encoded: Encoded
    plane: Plane

    @property
    def nbytes(self) -> int:
        model = self.slices.model
        pixels = sum((y.last - y.first) * (x.last - x.first) for y, x in ((t.rows, t.cols) for t in self.encoded.tiles))
        return 4 * (model.basis + 9 * model.skip) * pixels

    def lacking(self) -> Float:
        """What the output lacks of what was measured, on the grid of `Plane.fine`; black is 0 and white 1."""
        acquired, unit, scales = self.encoded.acquired, self.encoded.unit, (_TWICE, _TWICE)
        sr = self.slices.render(self.encoded, scales, (0, 0, *output_shape(unit.shape, scales)))
        return acquired.given_back(acquired.lacking(unit, sr, scales), unit.shape, self.plane.fine)


class Opened:
    """One scan and the network that upscales it. Safe to share between threads; one slice is encoded at a time."""

    def __init__(
        self, scan: Scan, upscaler: Upscaler, name: str, acquired: Matrix = "auto", noise: float | None = None
    ) -> None:
        """Raises ImageError for what the network is not for, and for a scan without a slice that can be shown."""
        if scan.labels:
            raise ImageError("it holds labels, which the network leaves alone: give an image")
        volume.check_place(scan)
        if scan.colour:
            scan = replace(scan, pixels=scan.pixels.mean(0, dtype=np.float32), colour=False)
        self._upscaler, self._scan = upscaler, scan
        self._volumes = list(np.ndindex(scan.shape[3:]))
        self._ranges = volume.intensities(scan)
        pair, axis = scan.in_plane, scan.axis
        axes = (*pair, axis) if scan.pixels.ndim > 2 else pair
        part = scan.pixels if len(self._ranges) == 1 else scan.pixels[(..., *self._volumes[0])]
        self._measured = measure.of(part, axes, self._ranges[0], acquired, noise, scan.acquired)
        self.planes = self._planes()
        if not self.planes:
            raise ImageError(f"it has the shape {scan.shape}: give slices of 2×2 to {LARGEST} pixels")
        self._name = name
        self._kept: BoundedCache[Shown] = BoundedCache(_KEPT)
        self._encoding = threading.Lock()

    def description(self) -> dict[str, Any]:
        """What the page needs to know of the scan and the network."""
        scan, model, bundle = self._scan, self._upscaler.bundle.model, self._upscaler.bundle
        predictor, head, known = bundle.predictor(), bundle.head(), bundle.envelope
        outside = known.outside(scan, self._ranges[0], self._measured) if known else ()
        return {
            "name": self._name,
            "software": f"metasrgan-edge {__version__}",
            "device": self._upscaler.runs_on,
            "notes": [*outside, *self._measured.notes, *scan.notes],
            "planes": [self._described(plane) for plane in self.planes],
            "volumes": len(self._volumes),
            "ranges": [self._range(intensity) for intensity in self._ranges],
            "noise": self._measured.sigma,
            "largest_scale": grid.MAX_SCALE,
            "kept": IN_BROWSER,
            "network": {
                "shader": model.projection == "centred"
                and len(predictor.b1) <= _HIDDEN
                and all(math.prod(plane.shape) <= _SHADED for plane in self.planes),
                "told": model.told,
                "uncertainty": head is not None,
                "coverage": COVERAGE,
                "skip": model.skip,
                "mean": model.mean,
                "std": model.std,
                "basis": model.basis,
                "hidden": len(predictor.b1),
                "inputs": predictor.w1.shape[1],
            },
        }

    def predictor(self) -> bytes:
        """The weight predictor: w1 (hidden, 3 or 4), b1 (hidden), w2 (basis, hidden), b2 (basis), float32 one after another."""
        p = self._upscaler.bundle.predictor()
        return b"".join(part.astype("<f4").tobytes() for part in (p.w1, p.b1, p.w2, p.b2))

    def key(self, axis: int, index: int, volume: int, noise: float) -> Key:
        """Raises ImageError for a slice that the scan does not have."""
        if not 0 <= index < self.plane(axis).count or not 0 <= volume < len(self._volumes):
            raise ImageError(f"there is no slice {index} of volume {volume} across axis {axis}")
        if not 0 <= noise <= 1:
            raise ImageError(f"noise {noise} is no part of white: give 0 to 1")
        return Key(axis, index, volume, noise)

    def plane(self, axis: int) -> Plane:
        for plane in self.planes:
            if plane.axis == axis:
                return plane
        raise ImageError(f"there are no slices across axis {axis}")

    def stored(self, key: Key) -> Float:
        """The slice (H, W) as the file has it, black 0 and white 1."""
        return self._intensity(key).normalise(self._pixels(key))

    def shown(self, key: Key) -> Shown:
        """The encoded slice, kept from the last time or made now."""
        with self._encoding:
            return self._kept.get(key, lambda: self._encode(key))

    def payload(self, key: Key) -> tuple[tuple[float, float], bytes]:
        """What a browser renders the slice from.

        The canonical image (m, n) float32; the responses (B/4, m, n, 4) float16, one more of them where there is a head, with
        its numbers; what the output lacks of the measured data, on the grid of `Plane.fine`, float16. Also its root mean square
        and its largest value.
        """
        shown, head = self.shown(key), self._upscaler.bundle.head()
        encoded, basis = shown.encoded, self._upscaler.bundle.model.basis
        image, _ = encoded.acquired.canonical(encoded.unit)
        responses = np.zeros((-(-basis // 4) + (head is not None), *encoded.shape, 4), np.float16)
        for tile in encoded.tiles:
            (y, inner_y), (x, inner_x) = (
                (slice(k.start, k.stop), slice(k.start - k.first, k.stop - k.first)) for k in (tile.rows, tile.cols)
            )
            held = shown.slices.engine.responses(tile.features)
            held = held.reshape(tile.rows.last - tile.rows.first, tile.cols.last - tile.cols.first, -1)[inner_y, inner_x]
            fours = [held[..., first : min(first + 4, basis)] for first in range(0, basis, 4)]
            for layer, four in enumerate(fours if head is None else [*fours, head(held, encoded.acquired.told)]):
                responses[layer, y, x, : four.shape[-1]] = four
        lacking = shown.lacking()
        off = float(np.sqrt(np.mean(lacking**2))), float(np.abs(lacking).max())
        return off, image.astype("<f4").tobytes() + responses.astype("<f2").tobytes() + lacking.astype("<f2").tobytes()

    def window(
        self,
        key: Key,
        factors: tuple[float, float],
        grain: float,
        rows: tuple[float, float],
        cols: tuple[float, float],
        uncertainty: bool = False,
    ) -> tuple[dict[str, Any], Float]:
        """For a browser that cannot render: original, bicubic and ours (3, h, w), black 0 and white 1, near these factors; and
        with `uncertainty` that of ours.

        `rows` and `cols` are (first, end) of what is to be seen, in stored pixels. Also tells where the window lies.
        """
        shown, plane = self.shown(key), self.plane(key.axis)
        scales = shown.view.nearest_scale((min(max(factors[0], 1), grid.MAX_SCALE), min(max(factors[1], 1), grid.MAX_SCALE)))
        whole = output_shape(plane.shape, scales)
        (top, bottom), (left, right) = (
            (max(0, math.floor(first * r)), min(n, math.ceil(end * r)))
            for (first, end), r, n in zip((rows, cols), scales, whole)
        )
        height, width = bottom - top, right - left
        if height < 1 or width < 1 or height * width > _WINDOW:
            raise ImageError(f"a window of {height}×{width} pixels cannot be shown: give 1 to {_WINDOW}")
        view, intensity, window = shown.view, self._intensity(key), (top, left, height, width)
        ours = [intensity.normalise(view.render(scales, window=window, grain=grain))]
        if uncertainty:
            ours.append(view.uncertainty(scales, window=window, grain=grain) / np.float32(intensity.width or 1.0))
        stored = self.stored(key)
        y, x = shown.slices.sources(plane.shape, scales)
        box = float(left / scales[1]), float(top / scales[0]), float(right / scales[1]), float(bottom / scales[0])
        bicubic = np.asarray(Image.fromarray(stored).resize((width, height), Image.Resampling.BICUBIC, box))
        pixels = np.stack([stored[np.ix_(y[top:bottom], x[left:right])], bicubic, *ours]).astype("<f4")
        return {"scale": [float(r) for r in scales], "window": window}, pixels

    def _encode(self, key: Key) -> Shown:
        plane = self.plane(key.axis)
        acquired = replace(plane.acquired, sigma=key.noise)
        image, intensity = self._pixels(key), self._intensity(key)
        slices = self._upscaler.slices
        encoded = slices.encode(intensity.normalise(image), acquired)
        return Shown(slices, View(slices, image, intensity, encoded), encoded, plane)

    def _pixels(self, key: Key) -> NDArray[Any]:
        pixels = self._scan.pixels
        one = pixels[(..., *self._volumes[key.volume])]
        return one if pixels.ndim == 2 else one.take(key.index, key.axis)

    def _intensity(self, key: Key) -> Intensity:
        return self._ranges[key.volume % len(self._ranges)]

    def _planes(self) -> list[Plane]:
        """The planes that can be shown, that of the scan's own slices first."""
        scan = self._scan
        axes = [scan.axis, *(k for k in range(3) if k != scan.axis)] if scan.pixels.ndim > 2 else [2]
        codes = ("",) * 3 if scan.affine is None else tuple(code or "" for code in nib.aff2axcodes(scan.affine))
        planes = []
        for axis in axes:
            first, second = (k for k in range(3) if k != axis)
            shape = scan.shape[first], scan.shape[second]
            if min(shape) > 1 and math.prod(shape) <= LARGEST:
                count = scan.shape[axis] if scan.pixels.ndim > 2 else 1
                named = codes[first] + codes[second], _NAMES.get(codes[axis], f"Axis {axis}") if all(codes) else "Picture"
                planes.append(Plane(axis, (first, second), count, shape, self._measured.along(first, second), *named))
        return planes

    def _described(self, plane: Plane) -> dict[str, Any]:
        scan = self._scan
        mm = [scan.spacing[k] for k in plane.pair] if scan.affine is not None else None
        turned, *flipped = orientation(plane.axes)
        return {
            "axis": plane.axis,
            "name": plane.name,
            "count": plane.count,
            "shape": plane.shape,
            "canonical": plane.canonical,
            "fine": output_shape(plane.shape, plane.fine),
            "spacing": [float(s) for s in plane.spacing],
            "mm": mm if mm and np.isfinite(mm).all() else None,
            "turned": turned,
            "flipped": flipped,
            "letters": _letters(plane.axes),
            "position": self._position(plane),
            "acquired": plane.acquired.said(plane.shape),
        }

    def _position(self, plane: Plane) -> dict[str, Any] | None:
        """Where the first slice's middle lies in mm, how far the next one is, and the letters of the two directions."""
        affine = self._scan.affine
        if affine is None or not plane.axes:
            return None
        world = int(np.abs(affine[:3, plane.axis]).argmax())
        middle = [(n - 1) / 2 if k in plane.pair else 0 for k, n in enumerate(self._scan.shape[:3])]
        return {
            "first": float(affine[world] @ [*middle, 1]),
            "step": float(affine[world, plane.axis]),
            "letters": ("LR", "PA", "IS")[world],
        }

    def _range(self, intensity: Intensity) -> dict[str, float]:
        """Real values of 0 and of 1, and the limits of an output between them."""
        scan, span = self._scan, (intensity.white - intensity.black) or 1.0
        limits = sorted((value - intensity.black) / span for value in (intensity.low, intensity.high))
        black, white = (float(scan.real(np.array(value))) for value in (intensity.black, intensity.black + span))
        return {"black": black, "white": white, "low": limits[0], "high": limits[1]}


def _letters(axes: str) -> list[str]:
    """What is at the top, bottom, left and right of an upright slice whose axes lead there; nothing for a picture."""
    if len(axes) != 2:
        return []
    turned, *flipped = orientation(axes)
    ends = reversed(axes) if turned else axes
    bottom, last = (_OPPOSITE[end] if flip else end for end, flip in zip(ends, flipped))
    return [_OPPOSITE[bottom], bottom, _OPPOSITE[last], last]
