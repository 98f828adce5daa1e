"""ONNX graphs, built node by node; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 17, 8  # what ONNX Runtime 1.12 and later read


class Graph:
    """A graph that grows node by node; methods return the name of what they made. Without `half`, all is float32."""

    def __init__(self, half: bool, computes: int = TensorProto.FLOAT) -> None:
        self._half, self._computes = half, computes
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def constant(self, values: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weights(self, array: ArrayLike) -> str:
        """A constant, with `half` stored in half precision: it is widened once, at load."""
        return self.cast(self.constant(array, np.float16 if self._half else np.float32))

    def cast(self, value: str) -> str:
        """A value in what the graph computes in."""
        return self.op("Cast", value, to=self._computes) if self._half else value

    def finish(self, inputs: str, output: str, name: str, shape: str) -> bytes:
        """Serialise with inputs in ONNX's notation, `float[N, 3] x, int32[N] y`, and `output` as `name`, of a shape `N, 3`."""
        made = f"{TensorProto.DataType.Name(self._computes).lower()}[{shape}] {name}"
        declared = onnx.parser.parse_graph(f"_ ({inputs}) => ({made}) {{}}")
        nodes = [*self._nodes, helper.make_node("Identity", [output], [name])]
        graph = helper.make_graph(nodes, name, declared.input, declared.output, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def split(graph: bytes) -> tuple[bytes, bytes]:
    """A graph's weights, and all else: ONNX messages that are the graph again when they are read as one."""
    rest = onnx.load_from_string(graph)
    weights = onnx.ModelProto(graph=onnx.GraphProto(initializer=rest.graph.initializer))
    del rest.graph.initializer[:]
    return weights.SerializeToString(deterministic=True), rest.SerializeToString(deterministic=True)
