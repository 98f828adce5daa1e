from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest

from runtime import DeviceError
from runtime.engines import ort


def test_a_provider_that_was_not_compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong package: onnxruntime where onnxruntime-gpu is needed."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="has no CUDAExecutionProvider") as error:
        ort.check_provider("cuda")
    assert "pip uninstall onnxruntime onnxruntime-gpu" in error.value.repair


@pytest.mark.skipif(sys.platform != "linux", reason="the system's loader is asked on Linux alone")
def test_a_provider_whose_library_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`get_available_providers` tells what was compiled in, not what works: the missing file is named."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(ort.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    for name in ort.PROVIDERS:
        with pytest.raises(DeviceError, match=r"cannot load its .*libonnxruntime_providers_shared.so") as error:
            ort.check_provider(name)
        assert error.value.repair == ort.REPAIRS[name]


def test_two_packages_that_share_a_name_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "installed", lambda: list(ort.PACKAGES))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="onnxruntime and onnxruntime-gpu share its files: pip uninstall"):
        ort.load_onnxruntime()


def test_tensorrts_provider_gets_one_engine_for_all_shapes(tmp_path: Path) -> None:
    settings = ort.tensorrt_settings(True, 544, tmp_path)
    assert settings["trt_profile_min_shapes"] == "image:1x1x1x1"
    assert settings["trt_profile_max_shapes"] == "image:1x1x544x544"
    assert settings["trt_engine_cache_path"] == str(tmp_path)
