from __future__ import annotations

import locale
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings", reason="needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc-cu12")

from export import kernels
from runtime import DeviceError
from runtime.engines.native import KERNELS


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


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_the_ptx_becomes_machine_code_without_spilled_registers(architecture: str, tmp_path: Path) -> None:
    """From Turing to Blackwell, as the driver does it at load."""
    try:
        ptxas = metadata.distribution("nvidia-cuda-nvcc-cu12").locate_file("nvidia/cuda_nvcc/bin/ptxas")
    except metadata.PackageNotFoundError:
        pytest.skip("needs ptxas: pip install nvidia-cuda-nvcc-cu12")
    command = [str(ptxas), f"-arch={architecture}", "-v", kernels.PTX, "-o", tmp_path / "kernels.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("0 bytes spill stores, 0 bytes spill loads") == len(KERNELS)


def test_what_does_not_compile_is_an_error_with_the_compilers_words() -> None:
    with pytest.raises(DeviceError, match="undefined_name"):
        kernels.compile_ptx(b"__global__ void k() { undefined_name; }")
