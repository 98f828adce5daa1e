"""A checkpoint → a bundle's content: the ONNX graphs that docs/bundle-format.md defines, and the weight predictor.

PyTorch's exporter would not choose the operators that are fast.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from runtime import __version__, bundle
from runtime.acquired import LEAST_SIGMA, SOFT
from runtime.files import sha256
from train.generator import TOLD, Generator, ResidualBlock

from .graph import Graph, split


def receptive_radius(generator: Generator) -> int:
    """Input pixels on each side that decide an output pixel: the head, two 3×3s a block, the tail, and the stage."""
    return generator.config.head_kernel // 2 + 2 * generator.config.blocks + 2


def build(generator: Generator, half: bool) -> tuple[bundle.Model, dict[str, bytes]]:
    """The model and the files. With `half`, weights are float16, and there is a trunk that computes in it."""
    config, arrays = generator.config, predictor(generator)[0]
    weights, rest = split(trunk(generator, half))
    files = {"trunk.onnx": weights + rest, "stage.onnx": stage(), "table_free.onnx": table_free(config.skip)}
    for name, array in arrays.items():
        files[f"predictor/{name}.npy"] = bundle.array_bytes(array.astype(np.float16 if half else np.float32))
    if half:  # the weights are the same
        _, files[bundle.TRUNK_FP16] = split(trunk(generator, half, TensorProto.FLOAT16))
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


def trunk(generator: Generator, half: bool, computes: int = TensorProto.FLOAT) -> bytes:
    """image (N, 1, H, W), standardised, float32 → responses (N, H, W, B'), channels last, in what the graph computes in.

    They are the features convolved with the basis, zeros beyond the image; and with a skip each pixel's 3×3 neighbours in the
    image, edges repeated. A generator that is told has a second input: told (3), float32.
    """
    graph = Graph(half, computes)
    image = graph.cast("image")
    first = _conv(graph, image, generator.head)
    if generator.config.told:
        first = _told(graph, first, generator)
    x = first = _act(graph, first, generator.head_act)
    for block in generator.blocks:
        assert isinstance(block, ResidualBlock)
        y = _act(graph, _conv(graph, x, block.conv1, block.norm1), block.act)
        x = graph.op("Add", _conv(graph, y, block.conv2, block.norm2), x)
    x = graph.op("Add", _conv(graph, x, generator.tail, generator.tail_norm), first)
    _, filters = predictor(generator)
    taps = graph.weights(filters.reshape(len(filters), 3, 3, -1).transpose(0, 3, 1, 2))
    x = graph.op("Transpose", graph.op("Conv", x, taps, pads=[1] * 4, kernel_shape=[3, 3]), perm=[0, 2, 3, 1])
    if generator.config.skip:
        wide = graph.op("Pad", image, graph.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
        neighbours = graph.op("Conv", wide, graph.weights(np.eye(9).reshape(9, 1, 3, 3)), kernel_shape=[3, 3])
        x = graph.op("Concat", x, graph.op("Transpose", neighbours, perm=[0, 2, 3, 1]), axis=-1)
    inputs = "float[N, 1, H, W] image" + f", float[{TOLD}] told" * generator.config.told
    return graph.finish(inputs, x, "responses", f"N, H, W, {len(filters) + 9 * generator.config.skip}")


def _told(graph: Graph, x: str, generator: Generator) -> str:
    """What the head gives, with the bias of `told` added to each channel: what it follows from is in float32 in every graph.

    The convolution with ones changes nothing. Behind it ONNX Runtime keeps all sums of the blocks in the layout of its
    convolutions: on a CPU the biases take 0.5 % of the trunk's time, without it 6 %.
    """
    w1, b1, w2, b2 = (p.detach().numpy() for p in generator.condition.parameters())
    sigma, soft = (graph.op("Slice", "told", graph.integers(a), graph.integers(b)) for a, b in ((0, 1), (1, TOLD)))
    times = graph.op("Max", graph.op("Div", sigma, graph.constant([LEAST_SIGMA])), graph.constant([1]))
    level = graph.op("Div", graph.op("Log", times), graph.constant(np.log([10])))
    told = graph.op("Concat", level, graph.op("Mul", soft, graph.constant([SOFT])), axis=0)
    # Products and sums: TensorRT for RTX has no float32 MatMul for every GPU.
    sums = graph.op("ReduceSum", graph.op("Mul", told, graph.constant(w1)), graph.integers(1), keepdims=1)  # (16, 1)
    units = graph.op("Relu", graph.op("Add", sums, graph.constant(b1[:, None])))
    products = graph.op("Mul", units, graph.constant(w2.T))  # (16, C)
    bias = graph.op("Add", graph.op("ReduceSum", products, graph.integers(0), keepdims=0), graph.constant(b2))
    x = graph.op("Add", x, graph.cast(graph.op("Reshape", bias, graph.integers(1, -1, 1, 1))))
    return graph.op("Conv", x, graph.weights(np.ones((len(b2), 1, 1, 1))), group=len(b2), kernel_shape=[1, 1])


def _conv(graph: Graph, x: str, conv: nn.Conv2d, norm: nn.Module | None = None) -> str:
    """A convolution with its batch norm folded in."""
    if isinstance(norm, nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(deepcopy(conv).eval(), deepcopy(norm).eval())
    parts = (graph.weights(p.detach().numpy()) for p in conv.parameters())
    return graph.op("Conv", x, *parts, pads=[conv.kernel_size[0] // 2] * 4, kernel_shape=list(conv.kernel_size))


def _act(graph: Graph, x: str, act: nn.Module) -> str:
    """A one-parameter PReLU as the LeakyRelu that it is."""
    return graph.op("LeakyRelu", x, alpha=float(act.get_parameter("weight").detach()))


def stage() -> bytes:
    """The Meta-Upscale stage of any scale: gather responses by class, multiply by the slot table, gather pixels."""
    graph = Graph(half=False)
    sources = graph.op("Gather", "responses", graph.op("Add", "source_rows", "source_cols"), axis=0)
    classes, channels = graph.op("Shape", "slots", end=1), graph.op("Shape", "slots", start=1, end=2)
    sources = graph.op("Reshape", sources, graph.op("Concat", classes, graph.integers(-1), channels, axis=0))
    product = graph.op("Reshape", graph.op("MatMul", sources, "slots"), graph.integers(-1))
    pixels = graph.op("Gather", product, graph.op("Add", "out_rows", "out_cols"), axis=0)
    inputs = """float[P, K] responses, int32[q_y, 1, R, 1] source_rows, int32[1, q_x, 1, S] source_cols, float[q, K, n] slots,
        int32[h, 1] out_rows, int32[1, w] out_cols"""
    return graph.finish(inputs, pixels, "pixels", "h, w")


def table_free(skip: bool) -> bytes:
    """The Meta-Upscale stage without a table, for any scale: the predictor itself, for every output pixel."""
    graph = Graph(half=False)
    inputs = """float[P, K] responses, int32[h, 1] source_rows, int32[1, w] source_cols, float[h, 1, M] hidden_rows,
        float[1, w, M] hidden_cols, float[M, B] w2, float[B] b2"""
    responses = graph.op("Gather", "responses", graph.op("Add", "source_rows", "source_cols"), axis=0)
    hidden = graph.op("Relu", graph.op("Add", "hidden_rows", "hidden_cols"))
    coefficients = graph.op("Add", graph.op("MatMul", hidden, "w2"), "b2")
    if skip:
        inputs += ", float[h, 1, 3, 1] taps_rows, float[1, w, 1, 3] taps_cols"
        taps = graph.op("Reshape", graph.op("Mul", "taps_rows", "taps_cols"), graph.integers(0, 0, 9))
        coefficients = graph.op("Concat", coefficients, taps, axis=-1)
    pixels = graph.op("ReduceSum", graph.op("Mul", responses, coefficients), graph.integers(-1), keepdims=0)
    return graph.finish(inputs, pixels, "pixels", "h, w")


def predictor(generator: Generator) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """The weight predictor's arrays by the bundle's names, and the basis, (B, 9·C), whose coefficients it gives."""
    weights = generator.upscale.predictor.state_dict()
    w2, b2 = weights["2.weight"], weights["2.bias"]
    if generator.config.basis:
        filters = weights["3.weight"]
    else:  # each hidden unit's column of the last layer is a basis filter, and so is its bias
        filters, one = torch.cat([w2, b2[:, None]], 1), torch.eye(len(w2.T) + 1)
        w2, b2 = one[:, :-1], one[-1]
    arrays = {"w1": weights["0.weight"], "b1": weights["0.bias"], "w2": w2, "b2": b2}
    return {name: array.float().numpy() for name, array in arrays.items()}, np.ascontiguousarray(filters.float().T.numpy())
