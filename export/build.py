"""A checkpoint → a bundle's content: graphs and weight predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from runtime import __version__, bundle
from runtime.files import sha256
from train.generator import Generator

from . import graphs
from .graph import split


def receptive_radius(generator: Generator) -> int:
    """Input pixels on each side that decide an output pixel: the head, two 3×3s a block, the tail, and the stage."""
    return generator.config.head_kernel // 2 + 2 * generator.config.blocks + 2


def build(generator: Generator, half: bool) -> tuple[bundle.Model, dict[str, bytes]]:
    """The model and the files. With `half`, weights are float16, and there is a trunk that computes in it."""
    config = generator.config
    dtype = np.float16 if half else np.float32
    arrays = {name: array.astype(dtype) for name, array in graphs.predictor_arrays(generator).items()}
    weights, rest = split(graphs.trunk(generator, half))
    files = {
        "trunk.onnx": weights + rest,
        "stage.onnx": graphs.stage(),
        "table_free.onnx": graphs.table_free(config.skip),
        **{f"predictor/{name}.npy": bundle.array_bytes(array) for name, array in arrays.items()},
    }
    if half:  # the weights are the same
        _, files[bundle.TRUNK_FP16] = split(graphs.trunk(generator, half, TensorProto.FLOAT16))
    model = bundle.Model(
        **{name: getattr(config, name) for name in ("projection", "skip", "mean", "std", "told")},
        basis=len(arrays["b2"]),
        radius=receptive_radius(generator),
        precision="float16" if half else "float32",
        weights=len(weights),
    )
    return model, files


def about(generator: Generator, checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Where a bundle comes from, for its manifest."""
    return {
        "made_by": f"metasrgan-edge {__version__}",
        "parameters": sum(p.numel() for p in generator.parameters()),
        "checkpoint": {"sha256": sha256(path), **{part: checkpoint.get(part) for part in ("generator", "training", "update")}},
    }
