from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from runtime import Upscaler, engines
from runtime.__main__ import main
from runtime.engines import cuda
from runtime.engines.cache import EngineCache


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "driver_is_installed", lambda: False)


def test_without_a_driver_it_says_what_runs_and_what_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cache-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line.split()[0]: line for line in lines}
    assert "ms  the CPU computes: " in said["auto"]
    assert " ms  onnxruntime " in said["cpu"]
    assert said["cuda"].endswith("no: no NVIDIA driver is installed here")
    assert "→ install one, or use device 'gpu' or 'cpu'" in lines[lines.index(said["cuda"]) + 1]
    assert "0 engines" in said["cache"]


def test_a_program_gets_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--cache-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"]["cpu"]["works"] is True
    assert found["devices"]["cpu"]["ms"] > 0
    assert found["devices"]["tensorrt"]["works"] is False
    assert found["gpu"] == {"problem": "no NVIDIA driver is installed here"}
    assert found["packages"]["numpy"]


def test_half_an_installation_is_said_device_by_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU, its driver, and the onnxruntime that is for CPUs."""

    class Device:
        name, capability, driver = "A small GPU", (8, 6), 12080

        def memory(self) -> tuple[int, int]:
            return 3_000_000_000, 4_000_000_000

    monkeypatch.setattr(engines, "driver_is_installed", lambda: True)
    monkeypatch.setattr(cuda, "Device", Device)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert main(["doctor", "--cache-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "A small GPU, compute capability 8.6, 4,000 MB, 3,000 MB of it free; its driver serves CUDA 12.8" in out
    assert "has no CUDAExecutionProvider\n          → pip uninstall onnxruntime onnxruntime-gpu" in out
    assert "the CPU computes: this machine has an NVIDIA driver, but cuda fails: onnxruntime" in out
    with caplog.at_level(logging.WARNING), Upscaler.load(device="auto") as up:  # which falls back aloud
        assert up.device == "cpu"
    assert [record.getMessage()[:46] for record in caplog.records] == ["the CPU computes: this machine has an NVIDIA d"]


def test_a_damaged_bundle_is_no_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.bundle").write_bytes(b"no bundle")
    assert main(["doctor", "--bundle", str(tmp_path / "x.bundle"), "--cache-dir", str(tmp_path)]) == 0
    assert "is no bundle" in capsys.readouterr().out


def test_the_cache_is_listed_and_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EngineCache(tmp_path).get("tensorrt_rtx 1.7, A small GPU", lambda: b"x" * 1_000_000)
    assert main(["cache", "--cache-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 engines, 1.0 MB" in out
    assert "tensorrt_rtx_1.7_A_small_GPU: 1.0 MB" in out
    assert main(["cache", "--clear", "--cache-dir", str(tmp_path)]) == 0
    assert "1 engines removed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_prepare_says_what_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--cache-dir", str(tmp_path)]) == 0
    assert "cpu is ready: onnxruntime" in capsys.readouterr().out
    assert main(["prepare", "--device", "tensorrt", "--cache-dir", str(tmp_path)]) == 1
    assert "no NVIDIA driver" in capsys.readouterr().err
