"""A checkpoint → a bundle's content: graphs, weight predictor, phase tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from runtime import __version__, bundle, grid
from runtime.errors import ScaleError
from runtime.phases import WeightPredictor
from train.generator import Generator

from . import graphs

MAX_PHASES = 8  # an axis: more are predicted in a millisecond or two


def receptive_radius(generator: Generator) -> int:
    """Input pixels on each side that decide an output pixel: the head, two 3×3s a block, the tail, and the stage."""
    return generator.config.head_kernel // 2 + 2 * generator.config.blocks + 2


def build(
    generator: Generator, scales: Sequence[Fraction] | None, half: bool
) -> tuple[bundle.Model, dict[str, bytes], list[Fraction]]:
    """The model, the files, and the scales whose tables are among them: `scales`, or those of the paper's grid that pay.

    Raises ScaleError for a scale with more phases than any table holds.
    """
    config = generator.config
    dtype = np.float16 if half else np.float32
    arrays = {name: array.astype(dtype) for name, array in graphs.predictor_arrays(generator).items()}
    model = bundle.Model(
        projection=config.projection,
        basis=len(arrays["b2"]),
        skip=config.skip,
        mean=config.mean,
        std=config.std,
        radius=receptive_radius(generator),
        told=config.told,
    )
    predictor = WeightPredictor(**{n: a.astype(np.float32) for n, a in arrays.items()}, projection=config.projection)
    files = {
        "trunk.onnx": graphs.trunk(generator, half),
        "stage.onnx": graphs.stage(),
        "table_free.onnx": graphs.table_free(config.skip),
        **{f"predictor/{name}.npy": bundle.array_bytes(array) for name, array in arrays.items()},
    }
    if scales is None:
        scales = [r for r in grid.PAPER_SCALES if r.numerator <= MAX_PHASES]
    kept = list(dict.fromkeys(scales))
    for scale in kept:
        if not grid.has_table((scale, scale)):
            raise ScaleError(f"scale {scale} has too many phases for a table: leave it out, it is served without one")
        files[bundle.table_file(scale)] = bundle.array_bytes(predictor.table((scale, scale)).astype(dtype))
    return model, files, kept


def about(generator: Generator, checkpoint: dict[str, Any], path: Path, half: bool, int8: bool) -> dict[str, Any]:
    """Where a bundle comes from, for its manifest."""
    precision = "float16 weights, float32 arithmetic" if half else "float32"
    content: dict[str, Any] = {
        "made_by": f"metasrgan-edge {__version__}",
        "precision": f"8-bit integers from the first block to the tail; {precision} elsewhere" if int8 else precision,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "checkpoint": {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "generator": checkpoint["generator"],
            "training": checkpoint.get("training", {}),
            "update": checkpoint.get("update"),
        },
    }
    if half and not int8:
        twins = (graphs.trunk(generator, half, computes) for computes in (TensorProto.FLOAT, TensorProto.FLOAT16))
        content["half"] = bundle.half_switches(*twins)
    return content
