"""The installed script, in processes of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.io import pictures
from tests.conftest import ROOT, run_python


def script(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = shutil.which("metasrgan", path=Path(sys.executable).parent)
    assert command, "pip install -e ."
    return subprocess.run([command, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with a picture, and with modules of a user's that have our names and must not be run."""
    for name in ("metasrgan", "runtime", "train", "export", "nibabel", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py was run')")
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(tmp_path / "a.png")
    return tmp_path


def test_modules_in_the_current_folder_are_not_run(trapped: Path) -> None:
    done = script("a.png", "--scale", "2", cwd=trapped)
    assert (done.returncode, done.stderr) == (0, "")
    assert pictures.load(trapped / "a_sr.png").shape == (40, 60)
    done = script("upscale", "a.png", "--scale", "2", "-o", "out/", "--workers", "1", cwd=trapped)  # nor by a worker
    assert (done.returncode, done.stderr) == (0, "")
    assert pictures.load(trapped / "out" / "a_sr.png").shape == (40, 60)


@pytest.mark.parametrize("name", ["upscale", "doctor", "prepare", "cache", "train", "export", "evaluate"])
def test_every_command_tells_its_own_name(trapped: Path, name: str) -> None:
    assert script(name, "--help", cwd=trapped).stdout.startswith(f"usage: metasrgan {name} [-h]")
    done = script(name, "--no-such-option", cwd=trapped)
    assert done.returncode == 2
    assert f"metasrgan {name}: error: " in done.stderr


def test_upscaling_needs_no_word(trapped: Path) -> None:
    assert script("--help", cwd=trapped).stdout.startswith("usage: metasrgan [-h]")
    assert "metasrgan: error: " in script("a.png", cwd=trapped).stderr  # no size
    assert script(cwd=trapped).returncode == 2
    done = script("upscale", "train", "--scale", "2", cwd=trapped)  # an input may be called as a command is
    assert done.stderr == "error: train does not exist, or may not be read: check the name\n"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["train", "--data", "x", "--out", "y"], "torch"),
        (["export", "--ckpt", "x"], "torch"),
        (["evaluate", "--data", "x", "--models", "x.pt"], "torch"),
        (["evaluate", "--data", "x"], "scipy"),
    ],
)
def test_what_training_needs_is_named_in_one_line(command: list[str], missing: str) -> None:
    code = f"""
import sys; sys.modules[{missing!r}] = None
import metasrgan
sys.argv[1:] = {command}
sys.exit(metasrgan.main())
"""
    done = run_python(code, status=1)
    install = "pip install torch scikit-image scipy matplotlib tensorboard pydantic onnx"
    assert done.stderr == f"error: {missing} is not installed: {install}\n"
