"""The example, on slices that were made small."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Upscaler, io
from runtime.scan import Scan

EXAMPLE = Path(__file__).parents[2] / "examples" / "pycuda_slices.py"
VOLUME = np.random.default_rng(0).integers(0, 900, (20, 24, 3)).astype(np.int16)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    spec = spec_from_file_location("pycuda_slices", EXAMPLE)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(io, "read", lambda path: Scan(VOLUME, (1.0, 1.0, 5.0), np.diag([1.0, 1.0, 5.0, 1.0])))
    yield module
    ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def test_pycuda_arrays_go_in_and_come_out(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example.main("2")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("3 slices (20, 24) → (40, 48), ")
    assert said[0].endswith("ms each, tensorrt 10.13.0, float16, Fake T400")
    assert said[1].startswith("values 0 …")


def test_what_comes_out_outlives_the_upscaler(example: Any) -> None:
    image = VOLUME[..., 0].copy()
    with Upscaler.load(device="tensorrt") as up:
        expected = up(image, 2, acquired="stored")
        out = example.upscaled(up, example.to_gpu(image), "2", acquired="stored")
    np.testing.assert_array_equal(out.get(), expected)
