"""The real onnxruntime-gpu, in an environment of its own, without a GPU: it loads, places and binds, and computes nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import run_python
from tests.fake.environment import FOLDER, environment

LOAD = """
from runtime import DeviceError, Upscaler
try:
    Upscaler.load(device="cuda")
except DeviceError as error:
    print(error)
"""
BIND = """
import ctypes, numpy as np
from dataclasses import replace
from runtime import DeviceError, intensity
from runtime.bundle import Bundle
from runtime.engines import graphs, ort
from runtime.engines.cuda import Device
from runtime.engines.portable import PortableEngine
from runtime.upscaler import open_bundle
cudart = ctypes.CDLL("libcudart.so.13")

def copied():
    return [cudart.fake_bytes(kind) for kind in (1, 2)]

for precision in ("float16", "float32"):
    bundle = open_bundle(None)
    engine = PortableEngine(replace(bundle, model=replace(bundle.model, precision=precision)), "cuda")
    gpu, image = Device(), np.random.default_rng(0).random((16, 20), np.float32)
    with gpu.current():
        source, target = gpu.upload(image), gpu.empty(image.shape, np.float32)
        gpu.synchronise()
        same = graphs.model(graphs.node("Identity", "x", "y"), graphs.graph_input("x", "H W"), graphs.graph_output("y", "H W"))
        run, before = engine._opener.open(same), copied()
        run({"x": source}, {"y": target})
        assert copied() == before
        assert (gpu.download(target) == image).all()
    engine.encode(source, intensity.UNIT)
    before = copied()
    features = engine.encode(source, intensity.UNIT)
    assert copied() == before, "an image in the GPU's memory was copied"
    assert features.value.shape == (bundle.model.basis + 9, 16, 20)
    engine.close()
print(engine.runs_on)
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has a driver."""
    try:
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        pytest.skip("needs onnxruntime-gpu, in an environment without onnxruntime: .ci/run makes one")
    return environment(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def libraries(driver: dict[str, str]) -> dict[str, str]:
    """And the libraries of CUDA's that onnxruntime-gpu is linked with."""
    spec, folder = find_spec("onnxruntime"), Path(driver["LD_LIBRARY_PATH"])
    assert spec
    assert spec.origin
    provider = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    undefined = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True).stdout
    wanted = re.findall(r"U (\w+)@(lib\w+\.so\.\d+)", undefined)
    for library in ("libcurand.so.10", *sorted({library for _, library in wanted})):
        names = [name for name, of in wanted if of == library]
        weak = (f'extern "C" __attribute__((weak)) int {name}() {{ return 0; }}\n' for name in names)
        (folder / "functions.cpp").write_text("".join(weak))
        (folder / "version").write_text(f"{library} {{ *; }};")
        sources = [folder / "functions.cpp", *([FOLDER / "cudart.cpp"] if "cudart" in library else [])]
        flags = ["-std=c++17", "-shared", "-fPIC", f"-Wl,-soname,{library},--version-script,{folder / 'version'}"]
        subprocess.run([str(shutil.which("c++")), *flags, *sources, "-o", folder / library], check=True)
    return driver


def test_libraries_that_are_missing_are_said_with_the_repair(driver: dict[str, str]) -> None:
    said = run_python(LOAD, env=driver).stdout
    assert re.search(r"CUDA does not work here: libcu\w+\.so\.\d+: cannot open shared object file.*: pip install 'onnx", said)


def test_cudnn_that_is_missing_is_said_at_load_with_the_repair(libraries: dict[str, str]) -> None:
    said = run_python(LOAD, env=libraries).stdout
    assert "libcudnn" in said
    assert said.endswith("pip install 'onnxruntime-gpu[cuda,cudnn]'\n")


def test_all_graphs_are_placed_and_arrays_are_bound_where_they_are(libraries: dict[str, str]) -> None:
    folder = Path(libraries["LD_LIBRARY_PATH"])
    shutil.copy(folder / "libcudart.so.13", folder / "libcudnn.so")
    assert run_python(BIND, env=libraries).stdout.startswith("onnxruntime 1.")
