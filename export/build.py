"""A checkpoint → a bundle's content: graphs, weight predictor, phase tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from runtime import __version__, bundle
from runtime.phases import WeightPredictor
from train.generator import Generator

from . import graphs

MAX_TABLE_BYTES = 64 << 10  # a larger table is sooner predicted than worth its bytes in a bundle of 1 MB


def receptive_radius(generator: Generator) -> int:
    """Input pixels on each side that decide an output pixel: the head, two 3×3s a block, the tail, and the stage."""
    return generator.config.head_kernel // 2 + 2 * generator.config.blocks + 2


def build(
    generator: Generator, scales: Sequence[Fraction], half: bool
) -> tuple[bundle.Model, dict[str, bytes], list[Fraction]]:
    """The model, the files, and the scales whose tables are among them: those that pay."""
    config = generator.config
    model = bundle.Model(
        projection=config.projection,
        channels=config.channels,
        skip=config.skip,
        mean=config.mean,
        std=config.std,
        radius=receptive_radius(generator),
    )
    dtype = np.float16 if half else np.float32
    arrays = {name: array.astype(dtype) for name, array in graphs.predictor_arrays(generator).items()}
    predictor = WeightPredictor(**{n: a.astype(np.float32) for n, a in arrays.items()}, projection=config.projection)
    files = {
        "trunk.onnx": graphs.trunk(generator, half),
        "stage.onnx": graphs.stage(),
        "table_free.onnx": graphs.table_free(),
        **{f"predictor/{name}.npy": bundle.array_bytes(array) for name, array in arrays.items()},
    }
    kept = []
    for scale in scales:
        if scale.numerator**2 * arrays["b2"].nbytes <= MAX_TABLE_BYTES:
            table = predictor.table((scale, scale)).astype(dtype)
            files[bundle.table_file(scale)] = bundle.array_bytes(table)
            kept.append(scale)
    return model, files, kept


def about(generator: Generator, checkpoint: dict[str, Any], path: Path, half: bool) -> dict[str, Any]:
    """Where a bundle comes from, for its manifest."""
    return {
        "made_by": f"metasrgan-edge {__version__}",
        "precision": "float16 weights, float32 arithmetic" if half else "float32",
        "parameters": sum(p.numel() for p in generator.parameters()),
        "checkpoint": {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "generator": checkpoint["generator"],
            "training": checkpoint.get("training", {}),
            "update": checkpoint.get("update"),
        },
    }
