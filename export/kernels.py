"""`python -m export.kernels`: runtime/engines/meta_upscale.cu → meta_upscale.ptx, which NVIDIA's drivers since 525 can load.

NVRTC 12.0 (`pip install nvidia-cuda-nvrtc-cu12==12.0.140 cuda-bindings`) writes PTX 8.0; it needs neither a GPU nor a driver.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime import command, engines
from runtime.errors import DeviceError
from runtime.files import write_atomically

SOURCE = Path(engines.__file__).with_name("meta_upscale.cu")
PTX = SOURCE.with_suffix(".ptx")
OPTIONS = [b"--gpu-architecture=compute_75", b"--std=c++17", b"--no-source-include"]  # Turing, the oldest that CUDA 13 serves


def compile_ptx(source: bytes) -> bytes:
    """CUDA C++ → PTX. Raises DeviceError with the compiler's words."""
    with ThreadPoolExecutor(1) as pool:  # NVRTC 12.0 leaves its thread in the C locale, where Python takes text for ASCII
        return pool.submit(_compile, source).result()


def _compile(source: bytes) -> bytes:
    from cuda.bindings import nvrtc

    def text(kind: str) -> bytes:
        content = bytearray(getattr(nvrtc, f"nvrtcGet{kind}Size")(program)[1])
        getattr(nvrtc, f"nvrtcGet{kind}")(program, content)
        return bytes(content).rstrip(b"\0")

    _, program = nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), 0, [], [])
    if nvrtc.nvrtcCompileProgram(program, len(OPTIONS), OPTIONS)[0]:
        raise DeviceError(text("ProgramLog").decode())
    return text("PTX")


def main() -> None:
    write_atomically(PTX, compile_ptx(SOURCE.read_bytes()), overwrite=True)


if __name__ == "__main__":
    sys.exit(command.run(main))
