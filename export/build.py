"""A checkpoint → a bundle's content: graphs and weight predictor."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from runtime import __version__, bundle
from train.generator import Generator

from . import graphs


def receptive_radius(generator: Generator) -> int:
    """Input pixels on each side that decide an output pixel: the head, two 3×3s a block, the tail, and the stage."""
    return generator.config.head_kernel // 2 + 2 * generator.config.blocks + 2


def build(generator: Generator, half: bool) -> tuple[bundle.Model, dict[str, bytes]]:
    """The model and the files."""
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
    files = {
        "trunk.onnx": graphs.trunk(generator, half),
        "stage.onnx": graphs.stage(),
        "table_free.onnx": graphs.table_free(config.skip),
        **{f"predictor/{name}.npy": bundle.array_bytes(array) for name, array in arrays.items()},
    }
    return model, files


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
