from __future__ import annotations

import locale

import pytest

pytest.importorskip("cuda.bindings", reason="needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc-cu12")

from export import kernels
from runtime import DeviceError
from runtime.engines.gpu import KERNELS


def test_the_kernels_compile_and_the_package_has_them_as_they_are() -> None:
    """The PTX that is served is that of the source beside it."""
    before = locale.getencoding()
    ptx = kernels.compile_ptx(kernels.SOURCE.read_bytes())
    for name in KERNELS:
        assert f".entry {name}(".encode() in ptx
    assert b".target sm_75" in ptx
    assert locale.getencoding() == before
    if b"V12.0.140" in ptx:  # another compiler writes other PTX
        assert ptx == kernels.PTX.read_bytes()


def test_what_does_not_compile_is_an_error_with_the_compilers_words() -> None:
    with pytest.raises(DeviceError, match="undefined_name"):
        kernels.compile_ptx(b"__global__ void k() { undefined_name; }")
