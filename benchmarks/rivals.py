"""What a clinic would run instead, as ONNX graphs: the real architectures, with weights that a caller gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from export.graph import Graph

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


def convolutions(count: int, channels: int = 64, weight: Weight = random) -> bytes:
    """A bare stack of convolutions 3×3, each with a ReLU: what an engine reaches where nothing is in its way."""
    net = _Network(weight)
    x = net.op("Relu", net.conv("image", "0", 1, channels))
    for k in range(1, count):
        x = net.op("Relu", net.conv(x, str(k), channels, channels))
    return net.network(x, channels)


class _Network(Graph):
    """An ONNX graph that grows layer by layer, with a caller's weights."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(half=False)
        self._weight = weight

    def conv(self, x: str, name: str, c_in: int, c_out: int) -> str:
        shapes = {f"{name}.weight": (c_out, c_in, 3, 3), f"{name}.bias": (c_out,)}
        return self.op("Conv", x, *(self.weights(self._weight(n, shape)) for n, shape in shapes.items()), pads=[1] * 4)

    def network(self, output: str, channels: int = 1) -> bytes:
        image = {"image": (TensorProto.FLOAT, ["N", 1, "H", "W"])}
        return self.finish(image, output, "pixels", ["N", channels, "h", "w"])


def session(model: str | bytes) -> Any:
    """A session of two threads for a graph or its file. They do not spin after their work, or they would slow down ours."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
