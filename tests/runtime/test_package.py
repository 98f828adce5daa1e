"""What importing and using the package does to the process around it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT, run_python


def test_runtime_imports_neither_torch_nor_onnx_nor_the_other_rooms() -> None:
    code = """
import sys, runtime, runtime.volume, runtime.__main__
with runtime.Upscaler.load() as up:
    import numpy
    up(numpy.eye(8), 2)
print(sorted(sys.modules.keys() & {'torch', 'onnx', 'train', 'export', 'skimage', 'SimpleITK', 'distributed'}))
print([name for name in sys.modules if name.startswith(('pycuda', 'cuda.', 'tensorrt', 'openvino'))])
"""
    assert run_python(code).stdout.splitlines() == ["[]", "[]"]


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = {module_of(file): {*imports_of(file)} for file in (ROOT / "runtime").rglob("*.py")}
    left = {*imports}
    while ends := {name for name in left if not imports[name] & left}:
        left -= ends
    assert not left, f"these import one another: {sorted(left)}"


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> Iterator[str]:
    """The project's modules that a file imports, anywhere in it."""
    package = module_of(file).split(".") if file.name == "__init__.py" else module_of(file).split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for name in node.names:
                path = ROOT / f"{base}.{name.name}".replace(".", "/")
                yield f"{base}.{name.name}" if path.with_suffix(".py").exists() or path.is_dir() else base


def test_resampling_needs_no_torch() -> None:
    """The demo runs in the clinic's environment and draws bicubic beside the network."""
    assert run_python("import sys, train.resample; print('torch' in sys.modules)").stdout.strip() == "False"


def test_nothing_process_wide_changes() -> None:
    code = """
import locale, logging, os, random, signal, threading, warnings, sys
import numpy, PIL, nibabel, onnxruntime, PIL.Image

def state():
    umask = os.umask(0); os.umask(umask)
    return (dict(os.environ), os.getcwd(), umask, random.getstate(), numpy.geterr(), str(numpy.random.get_state()),
            numpy.get_printoptions(), warnings.filters[:], logging.root.level, logging.root.handlers[:],
            [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], sys.path[:], locale.getlocale(),
            PIL.Image.MAX_IMAGE_PIXELS)

before = state()
import runtime, runtime.volume, runtime.io
with runtime.Upscaler.load() as up:
    up(numpy.eye(8), 2)
    up.volume(nibabel.Nifti1Image(numpy.eye(8, dtype='i2')[..., None], numpy.eye(4)), 1.7320508)
print(before == state(), threading.active_count())
"""
    assert run_python(code).stdout.strip() == "True 1"


def test_nothing_is_reported_to_the_makers_of_libraries(tmp_path: Path) -> None:
    """ONNX Runtime from 1.29 on writes an identifier and a queue of events to the home folder before it sends them."""
    code = """
import os, numpy
from runtime import Upscaler
Upscaler.load(device="cpu")(numpy.eye(32), 2)
print("ORT_DISABLE_TELEMETRY" in os.environ)
"""
    home = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # without CI's variables, which turn it off too
    done = run_python(code, env=home)
    assert done.stdout == "False\n", done.stderr
    assert not list(tmp_path.iterdir())


def test_runtime_may_be_vendored_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "vendored").symlink_to(ROOT / "runtime")
    code = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}]
import numpy, vendored
print(vendored.Upscaler.load()(numpy.eye(6), 2).shape, 'runtime' in sys.modules)
"""
    assert run_python(code).stdout.strip() == "(12, 12) False"


def test_missing_onnxruntime_says_what_to_install() -> None:
    code = """
import sys; sys.modules['onnxruntime'] = None
import runtime
try:
    runtime.Upscaler.load()
except runtime.DeviceError as error:
    print(error)
"""
    assert "pip install onnxruntime, or onnxruntime-gpu" in run_python(code).stdout


def test_training_and_export_without_torch_say_what_to_install() -> None:
    for room, arguments in (("train", "['--data', 'x', '--out', 'y']"), ("export", "['--ckpt', 'x']")):
        code = f"""
import sys; sys.modules['torch'] = None
from {room}.__main__ import main
sys.stderr = sys.stdout
print(main({arguments}))
"""
        assert run_python(code).stdout == (
            "error: torch is not installed: pip install torch scikit-image scipy matplotlib tensorboard pydantic onnx\n1\n"
        )


def test_a_reader_that_leaves_early_is_no_crash() -> None:
    command = f"{sys.executable} -m export inspect runtime/brain.bundle | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_broken_mix_of_onnxruntime_packages_is_explained(tmp_path: Path) -> None:
    """Removing one of onnxruntime and onnxruntime-gpu leaves a folder without the module's content."""
    (tmp_path / "onnxruntime").mkdir()
    code = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}]
import runtime
try:
    runtime.Upscaler.load()
except runtime.DeviceError as error:
    print(error)
"""
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    assert "pip uninstall onnxruntime onnxruntime-gpu" in run_python(code).stdout


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = [
        path.parent.relative_to(ROOT) for room in ("train", "export", "runtime") for path in (ROOT / room).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(".".join(room.parts) for room in rooms)
