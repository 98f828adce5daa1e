"""What a clinic would run instead, as ONNX graphs: the real architectures, with weights that a caller gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.graph import Graph
from runtime.engines.ort import load_onnxruntime

Weight = Callable[[str, tuple[int, ...]], NDArray[np.float32]]  # by the name in PyTorch's state_dict, and shape
_SHUFFLES = {2: (2,), 3: (3,), 4: (2, 2)}


def random(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights that keep the size of what passes through, and no denormal numbers: arithmetic as fast as a trained network's."""
    rng = np.random.default_rng(list(name.encode()))
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100.0
    return (rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan_in))).astype(np.float32)


def edsr(scale: int, channels: int = 256, blocks: int = 32, residual_scale: float = 0.1, weight: Weight = random) -> bytes:
    """EDSR (Lim et al. 2017) without its standardisation: image (N, 1, H, W) → (N, 1, H·s, W·s). 163 MB in full."""
    net = _Network(weight)
    first = net.conv("image", "head", 1, channels)
    x = first
    factor = net.weights(np.array(residual_scale))
    for k in range(blocks):
        y = net.op("Relu", net.conv(x, f"blocks.{k}.conv1", channels, channels))
        y = net.op("Mul", net.conv(y, f"blocks.{k}.conv2", channels, channels), factor)
        x = net.op("Add", x, y)
    x = net.op("Add", first, net.conv(x, "tail", channels, channels))
    for k, s in enumerate(_SHUFFLES[scale]):
        x = net.conv(x, f"upscale.{k}.0", channels, channels * s * s)
        x = net.op("DepthToSpace", x, blocksize=s, mode="CRD")
    return net.network(net.conv(x, "last", channels, 1))


def srgan(scale: int, channels: int = 64, blocks: int = 16, weight: Weight = random) -> bytes:
    """SRGAN's generator (Ledig et al. 2017) without its standardisation. Its one-parameter PReLUs are LeakyRelus: as fast as
    it can be."""
    net = _Network(weight)
    first = net.prelu(net.conv("image", "head.0", 1, channels, 9), "head.1")
    x = first
    for k in range(blocks):
        block = f"blocks.{k}"
        y = net.prelu(net.norm(net.conv(x, f"{block}.conv1", channels, channels), f"{block}.norm1", channels), f"{block}.act")
        x = net.op("Add", x, net.norm(net.conv(y, f"{block}.conv2", channels, channels), f"{block}.norm2", channels))
    x = net.op("Add", first, net.norm(net.conv(x, "tail.0", channels, channels), "tail.1", channels))
    for k, s in enumerate(_SHUFFLES[scale]):
        x = net.conv(x, f"upscale.{k}.0", channels, channels * s * s)
        x = net.prelu(net.op("DepthToSpace", x, blocksize=s, mode="CRD"), f"upscale.{k}.2")
    return net.network(net.conv(x, "last", channels, 1, 9))


def convolutions(count: int, channels: int = 64, weight: Weight = random) -> bytes:
    """A bare stack of convolutions 3×3, each with a ReLU: what an engine reaches where nothing is in its way."""
    net = _Network(weight)
    x = net.op("Relu", net.conv("image", "0", 1, channels))
    for k in range(1, count):
        x = net.op("Relu", net.conv(x, str(k), channels, channels))
    return net.network(x, channels)


def matrix_product(size: int, computes: int = TensorProto.FLOAT, times: int = 1) -> bytes:
    """image (size, size) times a constant of the same size, so many times: what a machine's processor can do at best."""
    graph = Graph(computes != TensorProto.FLOAT, computes)
    product, matrix = graph.cast("image"), graph.weights(random("matrix", (size, size)))
    for _ in range(times):
        product = graph.op("MatMul", product, matrix)
    return graph.finish(f"float[{size}, {size}] image", product, "pixels", f"{size}, {size}")


class _Network(Graph):
    """An ONNX graph that grows layer by layer, with a caller's weights."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(half=False)
        self._weight = weight

    def conv(self, x: str, name: str, c_in: int, c_out: int, kernel: int = 3) -> str:
        shapes = {f"{name}.weight": (c_out, c_in, kernel, kernel), f"{name}.bias": (c_out,)}
        constants = [self.weights(self._weight(n, shape)) for n, shape in shapes.items()]
        return self.op("Conv", x, *constants, pads=[kernel // 2] * 4)

    def norm(self, x: str, name: str, channels: int) -> str:
        parts = [self._weight(f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean")]
        variance = np.abs(self._weight(f"{name}.running_var", (channels,)))  # of random weights, too
        return self.op("BatchNormalization", x, *(self.weights(part) for part in (*parts, variance)))

    def prelu(self, x: str, name: str) -> str:
        return self.op("LeakyRelu", x, alpha=float(self._weight(f"{name}.weight", (1,))[0]))

    def network(self, output: str, channels: int = 1) -> bytes:
        return self.finish("float[N, 1, H, W] image", output, "pixels", f"N, {channels}, h, w")


def multiply_adds(model: bytes) -> int:
    """Multiply-adds of one pixel, in a graph whose convolutions all work at its input's size."""
    return sum(int(np.prod(weight.dims)) for weight in onnx.load_from_string(model).graph.initializer if len(weight.dims) == 4)


def session(model: str | bytes, threads: int = 2) -> Any:
    """A session for a graph or its file. Its threads do not spin after their work, or they would slow down ours."""
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
