"""The three ONNX graphs of a bundle, built node by node.

An exporter would need its own dependencies, a batch-norm folding before it and a half-precision rewrite after it; the
trunk has few kinds of layer. Whether a graph is true to the checkpoint is for `export.verify` to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from train.generator import LEAST_SIGMA, SOFT, TOLD, Generator, ResidualBlock

from .graph import Graph


def trunk(generator: Generator, half: bool, computes: int = TensorProto.FLOAT) -> bytes:
    """image (N, 1, H, W), standardised, float32 → responses (N, H, W, B'), channels last, in what the graph computes in.

    They are the features convolved with the basis, zeros beyond the image; and with a skip each pixel's 3×3 neighbours in the
    image, edges repeated. A generator that is told has a second input: told (3), float32.
    """
    graph = Graph(half, computes)
    image = graph.cast("image")
    first = _conv(graph, image, generator.head, None)
    if generator.config.told:
        first = _told(graph, first, generator)
    x = first = _act(graph, first, generator.head_act)
    for block in generator.blocks:
        assert isinstance(block, ResidualBlock)
        y = _act(graph, _conv(graph, x, block.conv1, block.norm1), block.act)
        x = graph.op("Add", _conv(graph, y, block.conv2, block.norm2), x)
    x = graph.op("Add", _conv(graph, x, generator.tail, generator.tail_norm), first)
    filters = basis(generator)
    taps = filters.reshape(len(filters), 3, 3, -1).transpose(0, 3, 1, 2)
    x = graph.op("Transpose", graph.op("Conv", x, graph.weights(taps), pads=[1] * 4, kernel_shape=[3, 3]), perm=[0, 2, 3, 1])
    if generator.config.skip:
        wide = graph.op("Pad", image, graph.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
        taps = np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3)
        neighbours = graph.op("Conv", wide, graph.weights(taps), kernel_shape=[3, 3])
        x = graph.op("Concat", x, graph.op("Transpose", neighbours, perm=[0, 2, 3, 1]), axis=-1)
    inputs: dict[str, tuple[int, list[Any]]] = {"image": (TensorProto.FLOAT, ["N", 1, "H", "W"])}
    if generator.config.told:
        inputs["told"] = (TensorProto.FLOAT, [TOLD])
    return graph.finish(inputs, x, "responses", ["N", "H", "W", len(filters) + 9 * generator.config.skip])


def _told(graph: Graph, x: str, generator: Generator) -> str:
    """What the head gives, with the bias of `told` added to each channel: what it follows from is in float32 in every graph.

    The convolution with ones changes nothing. Behind it ONNX Runtime keeps all sums of the blocks in the layout of its
    convolutions: on a CPU the biases take 0.5 % of the trunk's time, without it 6 %.
    """
    hidden, _, last = generator.condition
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    (w1, b1), (w2, b2) = ([p.detach().numpy() for p in (layer.weight, layer.bias)] for layer in (hidden, last))
    sigma, soft = (graph.op("Slice", "told", graph.integers(a), graph.integers(b)) for a, b in ((0, 1), (1, TOLD)))
    times = graph.op("Max", graph.op("Div", sigma, graph.exact(np.array([LEAST_SIGMA]))), graph.exact(np.array([1])))
    level = graph.op("Div", graph.op("Log", times), graph.exact(np.log([10])))
    told = graph.op("Concat", level, graph.op("Mul", soft, graph.exact(np.array([SOFT]))), axis=0)
    # Products and sums: TensorRT for RTX has no float32 MatMul for every GPU.
    sums = graph.op("ReduceSum", graph.op("Mul", told, graph.exact(w1)), graph.integers(1), keepdims=1)  # (16, 1)
    units = graph.op("Relu", graph.op("Add", sums, graph.exact(b1[:, None])))
    products = graph.op("Mul", units, graph.exact(w2.T))  # (16, C)
    bias = graph.op("Add", graph.op("ReduceSum", products, graph.integers(0), keepdims=0), graph.exact(b2))
    x = graph.op("Add", x, graph.cast(graph.op("Reshape", bias, graph.integers(1, -1, 1, 1))))
    return graph.op("Conv", x, graph.weights(np.ones((len(b2), 1, 1, 1))), group=len(b2), kernel_shape=[1, 1])


def _conv(graph: Graph, x: str, conv: nn.Module, norm: nn.Module | None) -> str:
    """A convolution with its batch norm folded in."""
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
    constants = graph.weights(weight.numpy()), graph.weights(bias.numpy())
    return graph.op("Conv", x, *constants, pads=[k // 2] * 4, kernel_shape=[k, k])


def _act(graph: Graph, x: str, act: nn.Module) -> str:
    """A one-parameter PReLU as the LeakyRelu that it is."""
    assert isinstance(act, nn.PReLU)
    assert act.num_parameters == 1
    return graph.op("LeakyRelu", x, alpha=float(act.weight.detach()))


def stage() -> bytes:
    """The Meta-Upscale stage of any scale: gather responses by class, multiply by the slot table, gather pixels.

    responses (P, B'), source_rows (q_y, 1, R, 1) + source_cols (1, q_x, 1, S) into P, slots (q_y·q_x, B', n),
    out_rows (h, 1) + out_cols (1, w) into the product (q_y·q_x, R·S, n) → pixels (h, w).
    """
    graph = Graph(half=False)
    sources = graph.op("Gather", "responses", graph.op("Add", "source_rows", "source_cols"), axis=0)
    shape = graph.op("Shape", "slots")
    classes = graph.op("Slice", shape, graph.integers(0), graph.integers(1))
    basis = graph.op("Slice", shape, graph.integers(1), graph.integers(2))
    sources = graph.op("Reshape", sources, graph.op("Concat", classes, graph.integers(-1), basis, axis=0))
    product = graph.op("Reshape", graph.op("MatMul", sources, "slots"), graph.integers(-1))
    pixels = graph.op("Gather", product, graph.op("Add", "out_rows", "out_cols"), axis=0)
    integer, real = TensorProto.INT32, TensorProto.FLOAT
    inputs: dict[str, tuple[int, list[Any]]] = {
        "responses": (real, ["P", "K"]),
        "source_rows": (integer, ["q_y", 1, "R", 1]),
        "source_cols": (integer, [1, "q_x", 1, "S"]),
        "slots": (real, ["q", "K", "n"]),
        "out_rows": (integer, ["h", 1]),
        "out_cols": (integer, [1, "w"]),
    }
    return graph.finish(inputs, pixels, "pixels", ["h", "w"])


def table_free(skip: bool) -> bytes:
    """The Meta-Upscale stage without a table, for any scale: the predictor itself, for every output pixel.

    responses (P, B'), source_rows (h, 1) + source_cols (1, w) into P; hidden_rows (h, 1, M) + hidden_cols (1, w, M), w2
    (M, B) and b2 (B) give the coefficients, taps_rows (h, 1, 3, 1) · taps_cols (1, w, 1, 3) the skip's → pixels (h, w).
    """
    graph = Graph(half=False)
    responses = graph.op("Gather", "responses", graph.op("Add", "source_rows", "source_cols"), axis=0)
    hidden = graph.op("Relu", graph.op("Add", "hidden_rows", "hidden_cols"))
    coefficients = graph.op("Add", graph.op("MatMul", hidden, "w2"), "b2")
    if skip:
        taps = graph.op("Reshape", graph.op("Mul", "taps_rows", "taps_cols"), graph.integers(0, 0, 9))
        coefficients = graph.op("Concat", coefficients, taps, axis=-1)
    pixels = graph.op("ReduceSum", graph.op("Mul", responses, coefficients), graph.integers(-1), keepdims=0)
    integer, real = TensorProto.INT32, TensorProto.FLOAT
    inputs: dict[str, tuple[int, list[Any]]] = {
        "responses": (real, ["P", "K"]),
        "source_rows": (integer, ["h", 1]),
        "source_cols": (integer, [1, "w"]),
        "hidden_rows": (real, ["h", 1, "M"]),
        "hidden_cols": (real, [1, "w", "M"]),
        "w2": (real, ["M", "B"]),
        "b2": (real, ["B"]),
    }
    if skip:
        inputs |= {"taps_rows": (real, ["h", 1, 3, 1]), "taps_cols": (real, [1, "w", 1, 3])}
    return graph.finish(inputs, pixels, "pixels", ["h", "w"])


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
    own = weights.get("3.weight")  # or else the last layer's columns, as above
    filters = torch.cat([weights["2.weight"], weights["2.bias"][:, None]], 1) if own is None else own
    array: NDArray[np.float32] = filters.float().T.contiguous().numpy()
    return array
