"""ONNX Runtime on the CPU: image → responses (the trunk), responses → pixels (the Meta-Upscale stage).

The trunk ends in the responses of the B filters that all filters of all scales are sums of. The stage is one small graph
for every scale: gather the responses class by class, one batched matrix product with the slot table, gather the output
pixels. Strips of rows bound its memory.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import NOTHING, Told
from ..bounded import BoundedCache
from ..bundle import GRAPHS, Bundle, Model
from ..errors import BundleError, DeviceError, DeviceMemoryError, reason
from ..phases import WeightPredictor, slot_table
from ..tiles import Span, by_distance_to_the_ends, content
from .ort import load_onnxruntime, out_of_memory

Float = NDArray[np.float32]

_STRIP_SLOTS = 1 << 20  # of the product, 4 MB: a slice of 240×240 pixels up to ×4 goes through at once
_STRIP_PIXELS = 1 << 15  # of the table-free path, some 8 MB of the hidden units that bend
_ALIKE = 3  # groups of pixels with similar offsets, an axis: the fastest of 2 … 5, with strips of 1 << 14 … 1 << 16
_CACHED = 8 << 20  # bytes of slot tables: the paper's thirty scales take 2.4 MB
_TOO_LITTLE = "there is too little memory for the network", "free some, or give fewer threads or workers"
_BLANKS = 8 << 20  # bytes of the background's responses, by what is told: five of 1.4 MB
_WORTH_SKIPPING = 0.9  # of an image's pixels: to fill in the background's responses takes a twentieth of the trunk's time


class CpuEngine:
    """Runs a bundle's three graphs. Parts in the constructor, `load` builds them. Safe to share between threads."""

    device = "cpu"

    def __init__(self, model: Model, predictor: WeightPredictor, runs_on: str, trunk: Any, stage: Any, table_free: Any) -> None:
        self.runs_on = runs_on
        self._model, self._predictor = model, predictor
        self._trunk, self._stage, self._table_free = trunk, stage, table_free
        self._slots: BoundedCache[Float] = BoundedCache(_CACHED)
        self._background = np.float32((0 - np.float32(model.mean)) / np.float32(model.std))
        self._blanks: BoundedCache[Float] = BoundedCache(_BLANKS)

    @classmethod
    def load(cls, bundle: Bundle, threads: int | None = None) -> CpuEngine:
        """Sessions for a bundle's graphs; by default one thread for each processor this process may use."""
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads = threads or available_processors()
        options.inter_op_num_threads = 1
        # A plan for the memory of each shape would be kept for ever, and takes half as much again: 62 MB of 180 at 240×240.
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what goes wrong is raised
        # The sessions take turns: threads of one that spin after their work would slow the next one down twofold.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        _check_threads(threads * len(GRAPHS) if threads > 1 else 0)
        np.linalg.inv(np.eye(2))  # OpenBLAS takes its memory now: where it gets none later, it ends the process
        try:
            sessions = [
                ort.InferenceSession(bundle.files[name], options, providers=["CPUExecutionProvider"], enable_fallback=0)
                for name in GRAPHS
            ]
        except Exception as error:  # ONNX Runtime has no base class for its own
            if out_of_memory(error):
                raise DeviceMemoryError(*_TOO_LITTLE) from error
            raise BundleError(f"onnxruntime {ort.__version__} cannot run this bundle ({reason(error)}): update it") from error
        precision = "8-bit integers" if bundle.integers else "float32"
        return cls(bundle.model, bundle.predictor(), f"onnxruntime {ort.__version__}, {precision}", *sessions)

    def encode(self, image: Float, told: Told = NOTHING) -> Float:
        """A standardised image (H, W) → responses (H, W, B'). The trunk runs only where they are not the background's."""
        told = told if self._model.told else NOTHING
        radius = self._model.radius
        axes = [content((image != self._background).any(axis), radius) for axis in (1, 0)]
        (inner_y, outer_y), (inner_x, outer_x) = axes
        part = image[outer_y, outer_x]
        if min(image.shape) <= 2 * radius or part.size > _WORTH_SKIPPING * image.size:
            return self._run_trunk(image, told)
        responses = self._blank(told)[np.ix_(*(by_distance_to_the_ends(n, radius) for n in image.shape))]
        if part.size:
            first_y, first_x = inner_y.start - outer_y.start, inner_x.start - outer_x.start
            height, width = inner_y.stop - inner_y.start, inner_x.stop - inner_x.start
            part = self._run_trunk(part, told)
            responses[inner_y, inner_x] = part[first_y : first_y + height, first_x : first_x + width]
        return responses

    def render(self, responses: Float, rows: Span, cols: Span, scales: grid.Scales) -> Float:
        """The pixels rows × cols at a scale; (len(rows), len(cols)), float32."""
        if grid.has_table(scales):
            return self._render_by_table(responses, rows, cols, scales)
        return self._render_table_free(responses, rows, cols, scales)

    def close(self) -> None:
        """Nothing to do: the sessions go with the engine."""

    def _run_trunk(self, image: Float, told: Told) -> Float:
        more = {"told": np.array(told, np.float32)} if self._model.told else {}
        responses: Float = self._run(self._trunk, {"image": image[None, None], **more})[0]
        return responses

    def _run(self, session: Any, feeds: dict[str, Any]) -> Float:
        try:
            output: Float = session.run(None, feeds)[0]
        except Exception as error:
            if out_of_memory(error):
                raise DeviceMemoryError(*_TOO_LITTLE) from error
            raise DeviceError(f"{self.runs_on}: {reason(error)}") from error
        return output

    def _blank(self, told: Told) -> Float:
        """The background's responses: by distance to each end of an axis up to the receptive radius, equal beyond it."""
        image = np.full((2 * self._model.radius + 1,) * 2, self._background, np.float32)
        return self._blanks.get(told, lambda: self._run_trunk(image, told))

    def _slot_table(self, scales: grid.Scales) -> Float:
        model, predictor = self._model, self._predictor
        return self._slots.get(scales, lambda: slot_table(predictor.table(scales), scales, model.projection, model.skip))

    def _render_by_table(self, responses: Float, rows: Span, cols: Span, scales: grid.Scales) -> Float:
        slots = self._slot_table(scales)
        (qy, ny), (qx, nx) = ((s.axis.scale.denominator, s.axis.slots) for s in (rows, cols))
        first_col, blocks_x = _blocks(cols, cols.start, cols.stop)
        source_cols = _sources(cols, first_col, blocks_x)[None, :, None, :]
        class_x, block_x, rank_x = _slots(cols, cols.start, cols.stop, first_col)
        pixels = responses.reshape(-1, responses.shape[-1])

        def rendered(start: int, stop: int) -> Float:
            first_row, blocks_y = _blocks(rows, start, stop)
            source_rows = _sources(rows, first_row, blocks_y)[:, None, :, None]
            class_y, block_y, rank_y = _slots(rows, start, stop, first_row)
            # The product is laid out (class_y, class_x, block_y, block_x, rank_y, rank_x).
            per_class = blocks_y * blocks_x * ny * nx
            out_rows = class_y * qx * per_class + block_y * blocks_x * ny * nx + rank_y * nx
            out_cols = class_x * per_class + block_x * ny * nx + rank_x
            feeds = {
                "responses": pixels,
                "source_rows": source_rows * np.int32(responses.shape[1]),
                "source_cols": source_cols,
                "slots": slots,
                "out_rows": out_rows[:, None].astype(np.int32),
                "out_cols": out_cols[None].astype(np.int32),
            }
            return self._run(self._stage, feeds)

        height = max(1, _STRIP_SLOTS // (blocks_x * qx * ny * nx) // qy) * qy  # input rows
        strips = list(_strips(rows, height))
        if len(strips) == 1:  # as most often: there is nothing to put together
            return rendered(*strips[0])
        out = np.empty((len(rows), len(cols)), np.float32)
        for start, stop in strips:
            out[start - rows.start : stop - rows.start] = rendered(start, stop)
        return out

    def _render_table_free(self, responses: Float, rows: Span, cols: Span, scales: grid.Scales) -> Float:
        """The same for any scale, whose every pixel has coefficients of its own.

        Pixels of similar offsets go together: of the predictor's hidden units they need those that bend between them.
        """
        predictor, skip = self._predictor, self._model.skip
        pixels = responses.reshape(-1, responses.shape[-1])
        source_rows, source_cols = rows.sources * np.int32(responses.shape[1]), cols.sources
        all_rows, all_cols = predictor.hidden_parts(rows.offset, cols.offset, scales)
        taps_rows, taps_cols = (
            grid.skip_taps(r, predictor.projection, span.offset).astype(np.float32) for r, span in zip(scales, (rows, cols))
        )
        out = np.empty((len(rows), len(cols)), np.float32)
        for y, x in product(_alike(rows.offset), _alike(cols.offset)):
            hidden_rows, hidden_cols, w2, b2 = predictor.bending(all_rows[y], all_cols[x], rows.offset[y], cols.offset[x])
            feeds = {
                "responses": pixels,
                "source_cols": source_cols[None, x],
                "hidden_cols": hidden_cols[None],
                "w2": w2,
                "b2": b2,
            }
            step = max(1, _STRIP_PIXELS // len(x))
            for start in range(0, len(y), step):
                strip = slice(start, start + step)
                feeds |= {"source_rows": source_rows[y[strip], None], "hidden_rows": hidden_rows[strip, None]}
                if skip:
                    feeds |= {"taps_rows": taps_rows[y[strip], None, :, None], "taps_cols": taps_cols[None, x, None, :]}
                out[np.ix_(y[strip], x)] = self._run(self._table_free, feeds)
        return out


def _check_threads(count: int) -> None:
    """Raise DeviceMemoryError where so many threads cannot be started: ONNX Runtime would wait for ever for those it has."""
    ready = threading.Event()
    threads = [threading.Thread(target=ready.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except (RuntimeError, MemoryError):
        raise DeviceMemoryError(f"this process may not start {count} threads", "give fewer, or raise its limits") from None
    finally:
        ready.set()
        for thread in threads:
            if thread.ident:
                thread.join()


def available_processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that this process may use: those of its affinity mask, and no more than a container's share of time allows."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or one without a limit: "max 100000"
        return count


def _blocks(span: Span, start: int, stop: int) -> tuple[int, int]:
    """First block and number of blocks, of q input pixels each, that the outputs [start, stop) read."""
    q = span.axis.scale.denominator
    first = int(span.axis.source[start]) // q
    return first, int(span.axis.source[stop - 1]) // q - first + 1


def _sources(span: Span, first_block: int, blocks: int) -> NDArray[np.int32]:
    """Where the responses have every input pixel of some blocks, by class modulo q; (q, blocks).

    Pixels beyond the responses stand in the last blocks and are never kept: they read the nearest one.
    """
    q = span.axis.scale.denominator
    pixel = np.arange(q)[:, None] + q * (first_block + np.arange(blocks)) - span.first
    sources: NDArray[np.int32] = np.minimum(np.maximum(pixel, 0), span.size - 1).astype(np.int32)  # np.clip takes 0.1 ms
    return sources


def _slots(span: Span, start: int, stop: int, first_block: int) -> tuple[NDArray[np.int64], ...]:
    """(class modulo q, block, rank) of each of the outputs [start, stop)."""
    source, q = span.axis.source[start:stop], span.axis.scale.denominator
    return source % q, source // q - first_block, span.axis.rank[start:stop]


def _alike(offset: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Which outputs have similar offsets, in groups as large as each other."""
    return np.array_split(np.argsort(offset), min(_ALIKE, len(offset)))


def _strips(rows: Span, height: int) -> Iterator[tuple[int, int]]:
    """Runs of outputs whose sources lie in the same `height` input rows."""
    source = rows.axis.source
    start = rows.start
    while start < rows.stop:
        edge = (int(source[start]) // height + 1) * height
        stop = min(int(np.searchsorted(source, edge)), rows.stop)
        yield start, stop
        start = stop
