"""The three ONNX graphs of a bundle, built node by node.

An exporter would need its own dependencies, a batch-norm folding before it and a half-precision rewrite after it; the
trunk has four kinds of layer. Whether a graph is true to the checkpoint is for `export.verify` to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from train.generator import Generator, ResidualBlock

from .graph import Graph

_PREDICTOR_KEYS = {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias"}


def trunk(generator: Generator, half: bool) -> bytes:
    """image (N, 1, H, W), standardised → features (N, H + 2, W + 2, C') with a border of one pixel, channels last.

    The border is what the stage's 3×3 patches read beyond the image: zeros, and the repeated edge in the image channel
    that a skip adds behind the C features.
    """
    graph = Graph(half)
    first = _conv(graph, "image", generator.head, None, generator.head_act)
    x = first
    for block in generator.blocks:
        assert isinstance(block, ResidualBlock)
        y = _conv(graph, x, block.conv1, block.norm1, block.act)
        x = graph.op("Add", _conv(graph, y, block.conv2, block.norm2), x)
    x = graph.op("Add", _conv(graph, x, generator.tail, generator.tail_norm), first)
    border = graph.integers(0, 0, 1, 1, 0, 0, 1, 1)
    x = graph.op("Pad", x, border)
    if generator.config.skip:
        x = graph.op("Concat", x, graph.op("Pad", "image", border, mode="edge"), axis=1)
    features = graph.op("Transpose", x, perm=[0, 2, 3, 1])
    channels = generator.config.channels + generator.config.skip
    return graph.finish(
        {"image": (TensorProto.FLOAT, ["N", 1, "H", "W"])}, features, "features", ["N", "H_plus_2", "W_plus_2", channels]
    )


def _conv(graph: Graph, x: str, conv: nn.Module, norm: nn.Module | None, act: nn.Module | None = None) -> str:
    """A convolution with its batch norm folded in and its one-parameter PReLU as the LeakyRelu that it is."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = weight * gain[:, None, None, None]
        bias = (bias - norm.running_mean.double()) * gain + norm.bias.detach().double()
    k = conv.kernel_size[0]
    y = graph.op("Conv", x, graph.weights(weight.numpy()), graph.weights(bias.numpy()), pads=[k // 2] * 4, kernel_shape=[k, k])
    if act is None:
        return y
    assert isinstance(act, nn.PReLU)
    assert act.num_parameters == 1
    return graph.op("LeakyRelu", y, alpha=float(act.weight.detach()))


def stage() -> bytes:
    """The Meta-Upscale stage of any scale: gather patches, multiply by slot filters, gather pixels.

    features (P, C'), patch_rows (q_y, 1, R, 1, 3, 1) + patch_cols (1, q_x, 1, S, 1, 3) into P, filters
    (q_y·q_x, 9·C', n), out_rows (h, 1) + out_cols (1, w) into the product (q_y·q_x, R·S, n) → pixels (h, w).
    """
    graph = Graph(half=False)
    patches = graph.op("Gather", "features", graph.op("Add", "patch_rows", "patch_cols"), axis=0)
    shape = graph.op("Shape", "filters")
    classes = graph.op("Slice", shape, graph.integers(0), graph.integers(1))
    taps = graph.op("Slice", shape, graph.integers(1), graph.integers(2))
    patches = graph.op("Reshape", patches, graph.op("Concat", classes, graph.integers(-1), taps, axis=0))
    slots = graph.op("Reshape", graph.op("MatMul", patches, "filters"), graph.integers(-1))
    pixels = graph.op("Gather", slots, graph.op("Add", "out_rows", "out_cols"), axis=0)
    integer, real = TensorProto.INT32, TensorProto.FLOAT
    inputs: dict[str, tuple[int, list[Any]]] = {
        "features": (real, ["P", "C"]),
        "patch_rows": (integer, ["q_y", 1, "R", 1, 3, 1]),
        "patch_cols": (integer, [1, "q_x", 1, "S", 1, 3]),
        "filters": (real, ["q", "K", "n"]),
        "out_rows": (integer, ["h", 1]),
        "out_cols": (integer, [1, "w"]),
    }
    return graph.finish(inputs, pixels, "pixels", ["h", "w"])


def table_free() -> bytes:
    """The Meta-Upscale stage without a table, for any scale: pixel = (patch · units) · (relu(hidden), taps).

    features (P, C'), patch_rows (R, 1, 3, 1) + patch_cols (1, S, 1, 3) into P, units (9·C', M + 9); out_rows (h, 1) +
    out_cols (1, w) into the R·S patches; hidden_rows (h, 1, M) + hidden_cols (1, w, M), taps_rows (h, 1, 3, 1) ·
    taps_cols (1, w, 1, 3) → pixels (h, w). `runtime.phases.WeightPredictor.units` says why.
    """
    graph = Graph(half=False)
    patches = graph.op("Gather", "features", graph.op("Add", "patch_rows", "patch_cols"), axis=0)
    taps = graph.op("Slice", graph.op("Shape", "units"), graph.integers(0), graph.integers(1))
    patches = graph.op("Reshape", patches, graph.op("Concat", graph.integers(-1), taps, axis=0))
    sources = graph.op("MatMul", patches, "units")
    hidden = graph.op("Relu", graph.op("Add", "hidden_rows", "hidden_cols"))
    skip = graph.op("Reshape", graph.op("Mul", "taps_rows", "taps_cols"), graph.integers(0, 0, 9))
    position = graph.op("Concat", hidden, skip, axis=-1)
    at_source = graph.op("Gather", sources, graph.op("Add", "out_rows", "out_cols"), axis=0)
    pixels = graph.op("ReduceSum", graph.op("Mul", position, at_source), graph.integers(-1), keepdims=0)
    integer, real = TensorProto.INT32, TensorProto.FLOAT
    inputs: dict[str, tuple[int, list[Any]]] = {
        "features": (real, ["P", "C"]),
        "patch_rows": (integer, ["R", 1, 3, 1]),
        "patch_cols": (integer, [1, "S", 1, 3]),
        "units": (real, ["K", "U"]),
        "out_rows": (integer, ["h", 1]),
        "out_cols": (integer, [1, "w"]),
        "hidden_rows": (real, ["h", 1, "M"]),
        "hidden_cols": (real, [1, "w", "M"]),
        "taps_rows": (real, ["h", 1, 3, 1]),
        "taps_cols": (real, [1, "w", 1, 3]),
    }
    return graph.finish(inputs, pixels, "pixels", ["h", "w"])


def predictor_arrays(generator: Generator) -> dict[str, NDArray[np.float32]]:
    """The weight predictor's arrays by the bundle's names."""
    weights = generator.upscale.predictor.state_dict()
    return {name: weights[key].float().numpy() for name, key in _PREDICTOR_KEYS.items()}
