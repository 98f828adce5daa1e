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
from runtime.errors import DeviceError
from runtime.files import write_atomically

SOURCE = Path(engines.__file__).with_name("stage.cu")
PTX = SOURCE.with_suffix(".ptx")
OPTIONS = [b"--gpu-architecture=compute_75", b"--std=c++17", b"--no-source-include"]  # Turing, the oldest that CUDA 13 serves


def compile_ptx(source: bytes) -> bytes:
    """CUDA C++ → PTX. Raises DeviceError with the compiler's words."""
    with ThreadPoolExecutor(1) as pool:  # NVRTC 12.0 leaves its thread in the C locale, where Python takes text for ASCII
        return pool.submit(_compile, source).result()


def _compile(source: bytes) -> bytes:
    from cuda.bindings import nvrtc

    def call(function: Any, *arguments: Any) -> Any:
        status, *values = function(*arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise DeviceError(f"{function.__name__} failed: {status.name}")
        return values[0] if values else None

    def text(size: Any, get: Any) -> bytes:
        buffer = bytearray(call(size, program))
        call(get, program, buffer)
        return bytes(buffer).rstrip(b"\0")

    program = call(nvrtc.nvrtcCreateProgram, source, b"stage.cu", 0, [], [])
    try:
        call(nvrtc.nvrtcCompileProgram, program, len(OPTIONS), OPTIONS)
    except DeviceError:
        raise DeviceError(text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode()) from None
    return text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)


def main() -> None:
    ptx = compile_ptx(SOURCE.read_bytes())
    write_atomically(PTX, lambda file: file.write(ptx), overwrite=True)
    print(f"{PTX}: {len(ptx):,} bytes")


if __name__ == "__main__":
    sys.exit(command.run(main))
