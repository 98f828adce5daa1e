"""ONNX Runtime on the CPU: image → features (the trunk), features → pixels (the Meta-Upscale stage).

The stage is one small graph for every scale: gather the 3×3 patches, one batched matrix product with the slot filters,
gather the output pixels. Strips of rows keep its patches in the processor's cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import GRAPHS, Bundle
from .errors import BundleError, DeviceError, reason
from .tiles import Span

Float = NDArray[np.float32]

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
_STRIP_PATCHES = 4800  # 11 MB of patches: the fastest of 10, 20, 40, 60 and 240 rows of a 240×240 image
_STRIP_PIXELS = 16384  # the same for the table-free path, whose unit is the output pixel


class CpuEngine:
    """Runs a bundle's three graphs. Parts in the constructor, `load` builds them. Safe to share between threads."""

    device = "cpu"

    def __init__(self, trunk: Any, stage: Any, table_free: Any) -> None:
        self._trunk, self._stage, self._table_free = trunk, stage, table_free

    @classmethod
    def load(cls, bundle: Bundle, threads: int | None = None) -> CpuEngine:
        """Sessions for a bundle's graphs; by default one thread for each processor this process may use."""
        try:
            import onnxruntime as ort

            ort.InferenceSession  # noqa: B018  a broken mix of onnxruntime packages leaves an empty module
        except (ImportError, AttributeError):
            raise DeviceError(
                "onnxruntime is not installed, or two of its packages have damaged each other: "
                "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'metasrgan-edge[cpu]'"
            ) from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_processors()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The sessions take turns: threads of one that spin after their work would slow the next one down twofold.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            trunk, stage, table_free = (
                ort.InferenceSession(bundle.files[name], options, providers=["CPUExecutionProvider"]) for name in GRAPHS
            )
        except Exception as error:  # ONNX Runtime has no base class for its own
            raise BundleError(f"onnxruntime {ort.__version__} cannot run this bundle ({reason(error)}): update it") from error
        return cls(trunk, stage, table_free)

    def encode(self, image: Float) -> Float:
        """A standardised image (H, W) → features with a border of one, (H + 2, W + 2, C')."""
        features: Float = self._trunk.run(None, {"image": image[None, None]})[0][0]
        return features

    def render(self, features: Float, rows: Span, cols: Span, filters: Float) -> Float:
        """The pixels rows × cols from features and a scale's slot filters; (len(rows), len(cols)), float32."""
        out = np.empty((len(rows), len(cols)), np.float32)
        (qy, ny), (qx, nx) = ((s.axis.scale.denominator, s.axis.slots) for s in (rows, cols))
        first_block, blocks_x = _blocks(cols, cols.start, cols.stop)
        patch_cols = _patches(cols, first_block, blocks_x)[None, :, None, :, None, :]
        class_x, block_x, rank_x = _slots(cols, cols.start, cols.stop, first_block)
        pixels = features.reshape(-1, features.shape[-1])

        strip = max(1, _STRIP_PATCHES // (blocks_x * qx) // qy) * qy  # input rows
        for start, stop in _strips(rows, strip):
            first_block, blocks_y = _blocks(rows, start, stop)
            patch_rows = _patches(rows, first_block, blocks_y)[:, None, :, None, :, None]
            class_y, block_y, rank_y = _slots(rows, start, stop, first_block)
            # The product is laid out (class_y, class_x, block_y, block_x, rank_y, rank_x).
            per_class = blocks_y * blocks_x * ny * nx
            out_rows = class_y * qx * per_class + block_y * blocks_x * ny * nx + rank_y * nx
            out_cols = class_x * per_class + block_x * ny * nx + rank_x
            feeds = {
                "features": pixels,
                "patch_rows": patch_rows * np.int32(features.shape[1]),
                "patch_cols": patch_cols,
                "filters": filters,
                "out_rows": out_rows[:, None].astype(np.int32),
                "out_cols": out_cols[None].astype(np.int32),
            }
            out[start - rows.start : stop - rows.start] = self._stage.run(None, feeds)[0]
        return out

    def render_table_free(
        self, features: Float, rows: Span, cols: Span, units: Float, hidden: tuple[Float, Float], taps: tuple[Float, Float]
    ) -> Float:
        """The same for any scale: the predictor's `units`, hidden parts (len, hidden) and skip taps (len, 3) an axis."""
        out = np.empty((len(rows), len(cols)), np.float32)
        always = [np.full((len(span), 1), v, np.float32) for span, v in ((rows, 1.0), (cols, 0.0))]  # the bias's unit
        hidden_rows, hidden_cols = (np.concatenate(parts, axis=1) for parts in zip(hidden, always))
        patch_cols, out_cols = _patches_read(cols, cols.start, cols.stop)
        step = max(1, _STRIP_PIXELS // len(cols))
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            patch_rows, out_rows = _patches_read(rows, start, stop)
            here = slice(start - rows.start, stop - rows.start)
            feeds = {
                "features": features.reshape(-1, features.shape[-1]),
                "patch_rows": patch_rows[:, None, :, None] * np.int32(features.shape[1]),
                "patch_cols": patch_cols[None, :, None, :],
                "units": units,
                "out_rows": out_rows[:, None] * np.int32(len(patch_cols)),
                "out_cols": out_cols[None],
                "hidden_rows": hidden_rows[here, None],
                "hidden_cols": hidden_cols[None],
                "taps_rows": taps[0][here, None, :, None],
                "taps_cols": taps[1][None, :, None, :],
            }
            out[here] = self._table_free.run(None, feeds)[0]
        return out


def available_processors() -> int:
    """Processors that this process may use: its affinity mask where there is one."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def choose(device: str) -> type[CpuEngine]:
    """The engine for a device by name. Raises DeviceError for an unknown one, and for a known one that cannot run."""
    if device in ("auto", "cpu"):
        return CpuEngine
    if device in DEVICES:
        raise DeviceError(f"device {device!r} is not served by this release: use 'cpu' or 'auto'")
    raise DeviceError(f"device {device!r} is unknown: use one of {', '.join(DEVICES)}")


def _blocks(span: Span, start: int, stop: int) -> tuple[int, int]:
    """First block and number of blocks, of q input pixels each, that the outputs [start, stop) read."""
    q = span.axis.scale.denominator
    first = int(span.axis.source[start]) // q
    return first, int(span.axis.source[stop - 1]) // q - first + 1


def _patches(span: Span, first_block: int, blocks: int) -> NDArray[np.int32]:
    """Feature index of the three taps of every input pixel of some blocks, by class modulo q; (q, blocks, 3).

    Pixels beyond the features stand in the last blocks and are never kept: they read the nearest one.
    """
    q = span.axis.scale.denominator
    pixel = np.arange(q)[:, None] + q * (first_block + np.arange(blocks)) - span.first
    taps: NDArray[np.int32] = (np.clip(pixel, 0, span.size - 1)[:, :, None] + np.arange(3)).astype(np.int32)
    return taps


def _slots(span: Span, start: int, stop: int, first_block: int) -> tuple[NDArray[np.int64], ...]:
    """(class modulo q, block, rank) of each of the outputs [start, stop)."""
    source, q = span.axis.source[start:stop], span.axis.scale.denominator
    return source % q, source // q - first_block, span.axis.rank[start:stop]


def _patches_read(span: Span, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Feature index of the three taps of the input pixels that the outputs [start, stop) read, and which each reads."""
    source = span.axis.source[start:stop]
    pixels = np.arange(source[0], source[-1] + 1)
    taps = pixels[:, None] - span.first + np.arange(3)
    return taps.astype(np.int32), (source - source[0]).astype(np.int32)


def _strips(rows: Span, height: int) -> Iterator[tuple[int, int]]:
    """Runs of outputs whose sources lie in the same `height` input rows."""
    source = rows.axis.source
    start = rows.start
    while start < rows.stop:
        edge = (int(source[start]) // height + 1) * height
        stop = min(int(np.searchsorted(source, edge)), rows.stop)
        yield start, stop
        start = stop
