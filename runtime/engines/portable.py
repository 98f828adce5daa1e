"""A bundle's graphs on any device of ONNX Runtime.

The trunk ends in the features convolved with the B filters that all filters of all scales are sums of. They stay on the device
between `encode` and `render`, and so does all that a scale and a geometry need again: up goes an image, down come its pixels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import NOTHING, Float, Told
from ..bundle import Bundle
from ..errors import ClosedError
from ..grid import Span, by_distance_to_the_ends, content
from ..intensity import Intensity
from ..memory import BoundedCache
from ..phases import slot_table
from . import graphs, openvino, stage
from .cuda import Array
from .engine import CLOSED, DeviceEngine, Features
from .native import NativeEngine
from .ort import DEVICES, Opener, Run

_KEPT = 8 << 20  # bytes on the device: backgrounds of 1.4 MB, slot tables (the paper's scales have 2.4 MB), geometries
_OVERHEAD = 1 << 10  # bytes that an array on the device takes beside its own
_WORTH_SKIPPING = 0.9  # of an image's pixels: to fill in the background's features takes a twentieth of the trunk's time


class Sessions(NamedTuple):
    """A bundle's graphs, the trunk's in half precision or not, and the one that joins features."""

    trunks: dict[bool, Run]
    by_table: Run
    table_free: Run
    blend: Run


class _Kept(NamedTuple):
    values: Any  # on the device
    nbytes: int


class PortableEngine(DeviceEngine):
    """A bundle on one device of ONNX Runtime. On the CPU, threads do not take turns."""

    def __init__(self, bundle: Bundle, name: str = "cpu", threads: int | None = None) -> None:
        """On the CPU by default with one thread for each processor that this process may use.

        Raises DeviceError where the device cannot run all of the trunk, DeviceMemoryError, and BundleError on the CPU.
        """
        super().__init__(bundle, DEVICES[name].half and bundle.has_half)
        self._opener = opener = Opener(name, threads)
        self.device, self._memory = name, opener.memory
        if self._memory == "cpu":
            self.in_flight = 1
        if name == "cpu":
            self._turn = contextlib.nullcontext()
        if name == "openvino":
            trunk: Any = openvino.Trunk(bundle.trunk(False), opener.threads, opener.value)
            precision = f"{trunk.library}, bfloat16"
        else:
            trunk = self._open_trunk(self._half)
            precision = "8-bit integers" if bundle.integers else "float16" if self._half else "float32"
        by_table = opener.open(bundle.files["stage.onnx"] + graphs.STAGE_END, wholly=False)  # it computes shapes on the CPU
        table_free = opener.open(bundle.files["table_free.onnx"] + graphs.STAGE_END)
        self._open: Sessions | None
        self._open = Sessions({self._half: trunk}, by_table, table_free, opener.open(graphs.BLEND, threads=1))
        self.runs_on = ", ".join(part for part in (opener.library, precision, opener.processor) if part)
        self._background = np.float32((0 - np.float32(self._model.mean)) / np.float32(self._model.std))
        self._kept: BoundedCache[_Kept] = BoundedCache(_KEPT)
        self._on_arrays: NativeEngine | None = None

    def on_arrays(self) -> Any:
        """On `cuda`, made when it is first asked for. Raises DeviceError, and ImageError on other devices."""
        if self.device != "cuda":
            return super().on_arrays()
        with self.working():
            self._on_arrays = self._on_arrays or TrunkOnArrays(self._bundle, self._opener)
            return self._on_arrays

    def encode(self, image: Any, levels: Intensity, told: Told = NOTHING) -> Any:
        """As any engine does; images may be in the GPU's memory on `cuda`."""
        on_host = isinstance(image, np.ndarray)
        return super().encode(image, levels, told) if on_host else self.on_arrays().encode(image, levels, told)

    def render(self, features: Any, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: Any) -> None:
        """As any engine does; `out` is where the image was, and of any strides on the host."""
        if isinstance(features.value, Array):
            self.on_arrays().render(features, rows, cols, scales, levels, out)
        else:
            super().render(features, rows, cols, scales, levels, out)

    def responses(self, features: Features) -> Float:
        """Features as (H·W, B') on the host."""
        with self.working():
            held = features.value
            if self._memory != "cpu":
                feeds = {"blank": held, "part": held, "index": np.arange(held.shape()[0], dtype=np.int32)}
                (held,) = self._sessions.blend(feeds, {"features": "cpu"})
            values: Float = held.numpy()
            return values

    def _release(self) -> None:
        if self._on_arrays:
            self._on_arrays.close()
        self._open, self._on_arrays, self._kept = None, None, BoundedCache(0)

    @property
    def _sessions(self) -> Sessions:
        if (sessions := self._open) is None:  # on the CPU, where nobody waits for his turn to close it
            raise ClosedError(CLOSED)
        return sessions

    def _open_trunk(self, half: bool) -> Run:
        return self._opener.open(self._bundle.trunk(half) + graphs.TRUNK_END)

    def _standardise(self, image: NDArray[Any], levels: Intensity) -> Float:
        standard: Float = (levels.normalise(image) - np.float32(self._model.mean)) / np.float32(self._model.std)
        return standard

    def _features(self, image: Float, told: Told, half: bool) -> Any:
        """A standardised image (H, W) → features (H·W, B'). The trunk runs only where they are not the background's."""
        radius = self._model.radius
        axes = [content((image != self._background).any(axis), radius) for axis in (1, 0)]
        (inner_y, outer_y), (inner_x, outer_x) = axes
        part = image[outer_y, outer_x]
        if min(image.shape) <= 2 * radius or part.size > _WORTH_SKIPPING * image.size:
            return self._run_trunk(half, image, told)
        blank = self._blank(told, half)
        rows, cols = (by_distance_to_the_ends(n, radius) for n in image.shape)
        index = (rows[:, None] * (2 * radius + 1) + cols).astype(np.int32)
        if part.size:
            first = (2 * radius + 1) ** 2
            places = np.arange(first, first + part.size, dtype=np.int32).reshape(part.shape)
            inside = (slice(i.start - o.start, i.stop - o.start) for i, o in axes)
            index[inner_y, inner_x] = places[tuple(inside)]
        part = self._run_trunk(half, part, told) if part.size else blank
        feeds = {"blank": blank, "part": part, "index": index.ravel()}
        (features,) = self._sessions.blend(feeds, {"features": self._memory})
        return features

    def _run_trunk(self, half: bool, image: Float, told: Told) -> Any:
        trunks = self._sessions.trunks
        if half not in trunks:
            trunks[half] = self._open_trunk(half)
        feeds = {"image": image[None, None]} | ({"told": np.array(told, np.float32)} if self._model.told else {})
        (features,) = trunks[half](feeds, {"features": self._memory})
        return features

    def _blank(self, told: Told, half: bool) -> Any:
        """The background's features: by distance to each end of an axis up to the receptive radius, equal beyond it."""

        def make() -> _Kept:
            value = self._run_trunk(half, np.full((2 * self._model.radius + 1,) * 2, self._background, np.float32), told)
            return _Kept(value, 4 * math.prod(value.shape()))

        return self._kept.get(("blank", told, half), make).values

    def _render(self, features: Any, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: Float) -> bool:
        """Write the pixels; whether all of them are finite."""
        model, predictor, by_table = self._model, self._predictor, grid.has_table(scales)
        grey = stage.affine(model, levels)
        feeds = {"responses": features} | self._keep(tuple(grey.values()), lambda: grey)
        if by_table:
            run, table = self._sessions.by_table, predictor.table
            feeds |= self._keep(scales, lambda: {"slots": slot_table(table(scales), scales, model.projection, model.skip)})
        else:
            run = self._sessions.table_free

        def pieces() -> Iterable[stage.Piece]:
            return stage.by_table(rows, cols) if by_table else stage.table_free(rows, cols, scales, predictor, model.skip)

        target, finite = out if out.flags.c_contiguous else np.empty(out.shape, np.float32), True
        for place, more in self._keep_pieces((by_table, rows.key, cols.key), pieces):
            whole_rows = isinstance(place, slice)
            outputs = {"finished": target[place] if whole_rows else "cpu", "means": "cpu"}
            finished, means = run(feeds | more, outputs)
            finite = finite and bool(np.isfinite(means.numpy()).all())
            if not whole_rows:
                target[place] = finished.numpy()
        if target is not out:
            out[...] = target
        return finite

    def _keep(self, key: Hashable, arrays: Callable[[], Mapping[str, Any]]) -> Any:
        """Arrays on the device, made where they are not kept."""
        ((_, values),) = self._keep_pieces(key, lambda: [stage.Piece(..., arrays())])
        return values

    def _keep_pieces(self, key: Hashable, pieces: Callable[[], Iterable[stage.Piece]]) -> Any:
        """Where pieces lie, and their feeds on the device; made where they are not kept."""

        def make() -> _Kept:
            made, value, memory = list(pieces()), self._opener.value, self._memory
            kept = [(piece.place, {name: value(array, memory) for name, array in piece.feeds.items()}) for piece in made]
            return _Kept(kept, sum(array.nbytes + _OVERHEAD for piece in made for array in piece.feeds.values()))

        return self._kept.get(key, make).values


class TrunkOnArrays(NativeEngine):
    """The native engine with ONNX Runtime's trunk."""

    device = "cuda"

    def __init__(self, bundle: Bundle, opener: Opener) -> None:
        self._opener = opener
        super().__init__(bundle, opener.library)

    def _open_trunk(self, graph: bytes) -> Run:
        return self._opener.open(graph)

    def _run(self, trunk: Run, tensors: Mapping[str, Array]) -> None:
        """ONNX Runtime has a stream of its own: it begins when ours is done, and returns when its own is done."""
        self._gpu.synchronise()
        feeds = dict(tensors)
        trunk(feeds, {"features": feeds.pop("features")})
