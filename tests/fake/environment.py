"""A GPU for child processes: libcuda.cpp under the real cuda-bindings, and tensorrt.py beside this file under the engine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that has the GPU, whose driver is compiled into `folder`. Skips where that cannot be."""
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings: pip install cuda-bindings")
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: the driver and the kernels are compiled for the host")
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1", "-ldl"]
    source = ROOT / "runtime" / "engines"
    subprocess.run([compiler, *flags, f"-I{source}", FOLDER / "libcuda.cpp", "-o", folder / "libcuda.so.1"], check=True)
    paths = {"LD_LIBRARY_PATH": folder, "PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER}", "XDG_CACHE_HOME": folder}
    return os.environ | {name: str(path) for name, path in paths.items()} | {"FAKE_GPU": "1"}
