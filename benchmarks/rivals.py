"""What a clinic would run instead, as ONNX graphs: the real architectures, with weights that a caller gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

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
    factor = net.constant("residual_scale", np.array(residual_scale, np.float32))
    for k in range(blocks):
        y = net.op("Relu", net.conv(x, f"blocks.{k}.conv1", channels, channels))
        y = net.op("Mul", net.conv(y, f"blocks.{k}.conv2", channels, channels), factor)
        x = net.op("Add", x, y)
    x = net.op("Add", first, net.conv(x, "tail", channels, channels))
    for k, s in enumerate(_SHUFFLES[scale]):
        x = net.conv(x, f"upscale.{k}.0", channels, channels * s * s)
        x = net.op("DepthToSpace", x, blocksize=s, mode="CRD")
    return net.finish(net.conv(x, "last", channels, 1))


def convolutions(count: int, channels: int = 64, weight: Weight = random) -> bytes:
    """A bare stack of convolutions 3×3, each with a ReLU: what an engine reaches where nothing is in its way."""
    net = _Network(weight)
    x = net.op("Relu", net.conv("image", "0", 1, channels))
    for k in range(1, count):
        x = net.op("Relu", net.conv(x, str(k), channels, channels))
    return net.finish(x, channels)


class _Network:
    """An ONNX graph that grows layer by layer."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.float32]) -> str:
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, x: str, name: str, c_in: int, c_out: int) -> str:
        shapes = {f"{name}.weight": (c_out, c_in, 3, 3), f"{name}.bias": (c_out,)}
        return self.op("Conv", x, *(self.constant(n, self._weight(n, shape)) for n, shape in shapes.items()), pads=[1] * 4)

    def finish(self, output: str, channels: int = 1) -> bytes:
        image, pixels = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", c, f"{name}_rows", f"{name}_columns"])
            for name, c in (("image", 1), (output, channels))
        )
        graph = helper.make_graph(self._nodes, "rival", [image], [pixels], self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        content: bytes = model.SerializeToString()
        return content
