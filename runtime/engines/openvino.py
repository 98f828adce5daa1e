"""OpenVINO: a trunk in bfloat16, twice as fast as float32 on processors that have it (AVX-512 BF16, AMX). See docs/gpu.md."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, reason


class Trunk:
    """A trunk's graph, for one thread at a time."""

    def __init__(self, graph: bytes, threads: int, value: Callable[[NDArray[np.float32]], Any]) -> None:
        """`value` gives an array to ONNX Runtime. Raises DeviceError without OpenVINO, and on a processor without bfloat16."""
        openvino = load_openvino()
        self.library = f"openvino {openvino.__version__.split('-')[0]}"
        core = openvino.Core()
        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError("this processor has no bfloat16, without which OpenVINO is no faster", "use device 'cpu'")
        # What is kept for each shape that was ever seen would grow without end.
        settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "CPU_RUNTIME_CACHE_CAPACITY": 0}
        try:
            model = core.compile_model(core.read_model(io.BytesIO(rewritten(graph))), "CPU", settings)
        except Exception as error:
            raise DeviceError(f"{self.library} does not work here: {reason(error)}", "use device 'cpu'") from error
        self._request, self._value = model.create_infer_request(), value

    def __call__(self, feeds: Mapping[str, NDArray[np.float32]], outputs: Mapping[str, str]) -> list[Any]:
        """The features (H·W, B') of an image, as a graph of ONNX Runtime's gives them. Raises DeviceError."""
        try:
            responses: NDArray[np.float32] = self._request.infer(dict(feeds))["responses"]
        except Exception as error:
            raise DeviceError(f"{self.library}: {reason(error)}") from error
        return [self._value(responses.reshape(-1, responses.shape[-1]).copy())]  # its memory is the next one's


def rewritten(graph: bytes) -> bytes:
    """A graph of several messages, which OpenVINO does not merge, as the one that ONNX Runtime writes."""
    import onnxruntime  # as load_onnxruntime has done before

    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = os.path.join(folder, "graph.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


def load_openvino() -> Any:
    """The package, without the part of it that reports its import to its maker: no network is used here."""
    ours = sys.modules.setdefault("openvino_telemetry", None) is None  # type: ignore[arg-type]
    try:
        import openvino

        return openvino
    except ImportError:
        raise DeviceError("openvino is not installed", "pip install openvino, or use device 'cpu'") from None
    finally:
        if ours:
            del sys.modules["openvino_telemetry"]
