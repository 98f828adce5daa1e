"""The ONNX graphs that docs/bundle-format.md defines. PyTorch's exporter would not choose the operators that are fast."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from runtime.acquired import LEAST_SIGMA, SOFT
from train.generator import TOLD, Generator, ResidualBlock

from .graph import Graph, declared


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
    filters = basis(generator)
    taps = graph.weights(filters.reshape(len(filters), 3, 3, -1).transpose(0, 3, 1, 2))
    x = graph.op("Transpose", graph.op("Conv", x, taps, pads=[1] * 4, kernel_shape=[3, 3]), perm=[0, 2, 3, 1])
    if generator.config.skip:
        wide = graph.op("Pad", image, graph.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
        neighbours = graph.op("Conv", wide, graph.weights(np.eye(9).reshape(9, 1, 3, 3)), kernel_shape=[3, 3])
        x = graph.op("Concat", x, graph.op("Transpose", neighbours, perm=[0, 2, 3, 1]), axis=-1)
    inputs = declared("float[N, 1, H, W] image" + f", float[{TOLD}] told" * generator.config.told)
    return graph.finish(inputs, x, "responses", ["N", "H", "W", len(filters) + 9 * generator.config.skip])


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
    return graph.finish(declared(inputs), pixels, "pixels", ["h", "w"])


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
    return graph.finish(declared(inputs), pixels, "pixels", ["h", "w"])


def predictor_arrays(generator: Generator) -> dict[str, NDArray[np.float32]]:
    """The weight predictor's arrays by the bundle's names: what gives the filters' coefficients in the basis."""
    weights = generator.upscale.predictor.state_dict()
    arrays = {"w1": weights["0.weight"], "b1": weights["0.bias"], "w2": weights["2.weight"], "b2": weights["2.bias"]}
    if not generator.config.basis:  # each hidden unit's column of the last layer is a basis filter, and so is its bias
        hidden = generator.config.predictor_hidden
        arrays |= {"w2": torch.eye(hidden + 1, hidden), "b2": torch.eye(hidden + 1)[hidden]}
    return {name: array.float().numpy() for name, array in arrays.items()}


def basis(generator: Generator) -> NDArray[np.float32]:
    """The filters that all predicted ones are sums of, (B, 9·C)."""
    weights = generator.upscale.predictor.state_dict()
    columns = torch.cat([weights["2.weight"], weights["2.bias"][:, None]], 1)  # as above, without a basis of its own
    return np.ascontiguousarray(weights.get("3.weight", columns).float().T.numpy())
