"""`make gpu`, on a machine that has none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import gpu, rivals
from runtime.engines import ort
from tests.conftest import ROOT


def test_it_measures_what_works_and_says_what_does_not_without_more_packages(tmp_path: Path) -> None:
    """On a bare machine: Python, numpy and onnxruntime."""
    blocked = ("nibabel", "PIL", "tqdm", "onnx", "torch", "pytest", "scipy", "onnxruntime_ep_webgpu", "openvino")
    hide = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    code = """
from benchmarks import gpu
gpu.EDSR_CHANNELS = gpu.EDSR_BLOCKS = 2
gpu.in_a_process = lambda what, device, small: {"ours": gpu.ours, "edsr": gpu.edsr}[what](device, small)
gpu.BUDGET_S = 0.1
gpu.main()
"""
    command = [sys.executable, "-c", hide + code, "--small", "--device", "cpu", "gpu", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,), (page,) = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    found = json.loads(result.read_text())
    assert max(found["devices"]["cpu"]["largest_error_of_range"].values()) == 0
    assert found["devices"]["cpu"]["edsr"]["16² ×2"]["p50_ms"] > 0
    assert found["devices"]["gpu"] == {
        "problem": "onnxruntime-ep-webgpu is not installed: pip install onnxruntime-ep-webgpu, or use device 'cpu'"
    }
    assert "- `gpu`: no: onnxruntime-ep-webgpu is not installed" in page.read_text()
    assert "| 16² ×2 | " in page.read_text()
    assert found["tests"] == ["not run: pytest is not installed"]


def test_a_device_that_ends_its_process_is_a_line_of_the_page() -> None:
    assert gpu.in_a_process("ours", "no such device", small=True)["problem"].startswith("ended with status 2: ")


@pytest.mark.parametrize("half", [False, True])
def test_edsr_is_edsr(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same layers as that of the other benchmarks, which needs onnx to be made."""
    graphs: list[bytes] = []
    monkeypatch.setattr(gpu, "EDSR_CHANNELS", 8)
    monkeypatch.setattr(gpu, "EDSR_BLOCKS", 3)
    open_session = ort.Opener.open

    def kept(self: ort.Opener, graph: bytes, *more: Any) -> Any:
        graphs.append(graph)
        return open_session(self, graph, *more)

    monkeypatch.setattr(ort.Opener, "open", kept)
    image = np.random.default_rng(0).random((1, 1, 6, 7), np.float32)
    pixels = gpu.edsr_session("cpu", half)(image)
    assert pixels.shape == (1, 1, 12, 14)
    assert pixels.dtype == np.float32
    onnx.checker.check_model(onnx.load_from_string(graphs[0]), full_check=True)
    assert rivals.multiply_adds(graphs[0]) == rivals.multiply_adds(rivals.edsr(2, 8, 3))
