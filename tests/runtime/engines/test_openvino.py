"""The trunk in bfloat16, by OpenVINO, where it is installed and the processor has it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from runtime import DeviceError, Upscaler
from runtime.engines import openvino
from tests.conftest import ROOT


def test_its_import_is_reported_to_nobody(tmp_path: Path) -> None:
    """The package sends an event to its maker, and writes who sent it to the home folder."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino: pip install openvino")
    code = """
import sys, socket
socket.create_connection = socket.socket.connect = lambda *_: print("network")
from runtime.engines.openvino import Trunk
from runtime.engines.ort import load_onnxruntime
load_onnxruntime()
try:
    Trunk(b"", 1, None)
except Exception:
    pass
print("openvino" in sys.modules, "openvino_telemetry" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HOME": str(tmp_path)}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "True False\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def fast() -> Iterator[Upscaler]:
    try:
        up = Upscaler.load(device="openvino")
    except DeviceError as error:
        pytest.skip(f"openvino could not be loaded here: {error}")
    with up:
        yield up


@pytest.mark.parametrize("scale", ["2", "2.1", "1.7320508"])
def test_pixels_are_near_the_cpus(fast: Upscaler, shipped: Upscaler, head: np.ndarray, scale: str) -> None:
    """bfloat16 has 8 significant bits of features that are added to linear interpolation: 0.004 of the range were seen."""
    assert "bfloat16" in fast.runs_on
    actual, expected = fast(head, scale, acquired="stored"), shipped(head, scale, acquired="stored")
    difference = np.abs(actual - expected) / np.ptp(head)
    assert 1e-5 < difference.max() < 2e-2
    assert np.sqrt(np.mean(difference**2)) < 2e-3


def test_background_noise_tiles_and_volumes(fast: Upscaler, shipped: Upscaler, head: np.ndarray) -> None:
    stack = np.stack([np.pad(head, 60), np.pad(head[::-1], 60)])
    expected = shipped(stack, 2, noise=0.02)
    with Upscaler.load(device="openvino", tile=80) as small:
        for up in (fast, small):
            np.testing.assert_allclose(up(stack, 2, noise=0.02), expected, rtol=0, atol=2e-2 * np.ptp(head))


def test_a_processor_without_bfloat16_and_a_missing_package_are_said(
    shipped: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    fake: Any = SimpleNamespace(__version__="1.0-x", Core=lambda: core)
    monkeypatch.setitem(sys.modules, "openvino", fake)
    with pytest.raises(DeviceError, match="no bfloat16, without which OpenVINO is no faster: use device 'cpu'"):
        Upscaler.load(shipped.bundle, device="openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match="openvino is not installed: pip install openvino"):
        Upscaler.load(shipped.bundle, device="openvino")


def test_a_graph_of_several_messages_is_rewritten_as_one(shipped: Upscaler) -> None:
    """What protobuf makes of them, OpenVINO's reader does not."""
    parts = shipped.bundle.trunk(False)
    whole = onnx.load_from_string(openvino.rewritten(parts))
    assert [node.op_type for node in whole.graph.node] == [node.op_type for node in onnx.load_from_string(parts).graph.node]
    assert openvino.rewritten(whole.SerializeToString()) == openvino.rewritten(parts)
