"""`python -m export.kernels`: runtime/engines/stage.cu → stage.ptx beside it, which NVIDIA's drivers since 525 can load.

NVRTC 12.0 (`pip install nvidia-cuda-nvrtc-cu12==12.0.140 cuda-bindings`) writes PTX 8.0, which later drivers read too; it needs
neither a GPU nor a driver.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime import command, engines
from runtime.errors import MetasrganError
from runtime.files import write_atomically

SOURCE = Path(engines.__file__).with_name("stage.cu")
PTX = SOURCE.with_suffix(".ptx")
ARCHITECTURE = "compute_75"  # Turing: the oldest that TensorRT for RTX and CUDA 13 serve


class KernelError(MetasrganError):
    """A kernel that does not compile."""


def compile_ptx(source: bytes) -> bytes:
    """CUDA C++ → PTX. Raises KernelError with the compiler's words."""
    with ThreadPoolExecutor(1) as pool:  # NVRTC 12.0 leaves its thread in the C locale, where Python takes text for ASCII
        return pool.submit(_compile, source).result()


def _compile(source: bytes) -> bytes:
    from cuda.bindings import nvrtc

    def call(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"NVRTC failed: {status.name}")
        return values[0] if values else None

    def text(size: int, get: Any) -> bytes:
        buffer = bytearray(size)
        call(get(program, buffer))
        return bytes(buffer).rstrip(b"\0")

    program = call(nvrtc.nvrtcCreateProgram(source, b"stage.cu", 0, [], []))
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17", b"--no-source-include"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(text(call(nvrtc.nvrtcGetProgramLogSize(program)), nvrtc.nvrtcGetProgramLog).decode())
    return text(call(nvrtc.nvrtcGetPTXSize(program)), nvrtc.nvrtcGetPTX)


def main() -> None:
    ptx = compile_ptx(SOURCE.read_bytes())
    write_atomically(PTX, lambda file: file.write(ptx), overwrite=True)
    print(f"{PTX}: {len(ptx):,} bytes")


if __name__ == "__main__":
    sys.exit(command.run(main))
