"""An ONNX graph, built node by node; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
_IR_VERSION = 8  # what ONNX Runtime 1.12 and later read


class Graph:
    """An ONNX graph that grows node by node; every method returns the name of what it made."""

    def __init__(self, half: bool, computes: int = TensorProto.FLOAT) -> None:
        """With `half`, weights are stored in half precision and the graph computes in `computes`."""
        self._half, self._computes = half, computes
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def exact(self, array: NDArray[Any]) -> str:
        """A constant in float32, in a bundle in half precision too."""
        return self._constant(array.astype(np.float32))

    def weights(self, array: NDArray[Any]) -> str:
        """A constant, stored in half precision where the bundle is: the runtime widens it once, at load."""
        return self.cast(self._constant(array.astype(np.float16 if self._half else np.float32)))

    def cast(self, value: str) -> str:
        """In what the graph computes in; where nothing is in half precision, all is float32 already."""
        return self.op("Cast", value, to=self._computes) if self._half else value

    def finish(self, inputs: dict[str, tuple[int, list[Any]]], output: str, name: str, shape: list[Any]) -> bytes:
        """Serialise with the graph's inputs {name: (type, shape)} and `output` renamed to `name`."""
        self._nodes.append(helper.make_node("Identity", [output], [name]))
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(n, *info) for n, info in inputs.items()],
            [helper.make_tensor_value_info(name, self._computes, shape)],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name
