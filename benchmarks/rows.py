"""The rows of the comparison: every way to make a slice larger, loaded by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Upscale = Callable[[NDArray[np.float32], Fraction], NDArray[np.float32]]

ROOT = Path(__file__).parent.parent
CACHE = Path(__file__).parent / ".cache"  # what is too large to commit, and soon made again
PAPER = ROOT / "models" / "paper.pt"  # 5 blocks of 64 channels, as the public code has
BUNDLES = {"ours, fp16": ROOT / "runtime" / "brain.bundle", "fast, int8": ROOT / "runtime" / "fast.bundle"}
BEST = "best, fp16"
EDSR = {f"EDSR ×{s}": s for s in (2, 3, 4)}
EDSR_SMALL = "EDSR-small ×2"  # 16 blocks of 64 features
SRGAN = "SRGAN ×2"
PUBLIC = "Meta-SR, public formulation"
FILES = {**BUNDLES, BEST: ROOT / "runtime" / "best.bundle", PUBLIC: PAPER}
ROWS = ("bicubic", *FILES, EDSR_SMALL, SRGAN, *EDSR)


def can_load(row: str) -> bool:
    """Whether this environment has what a row needs."""
    return row != PUBLIC or importlib.util.find_spec("torch") is not None


def load(row: str, threads: int) -> Upscale:
    """A row as a function of an image (H, W) float32, black 0 and white 1. EDSR and SRGAN take no scale but their own."""
    if row == "bicubic":
        from train import resample

        return lambda image, scale: resample.upsample(image, (scale, scale))
    if row == PUBLIC:
        from benchmarks import public

        return public.load(PAPER, threads)
    if file(row).suffix == ".bundle":
        from runtime import Upscaler
        from runtime.acquired import STORED

        upscaler = Upscaler.load(file(row), threads=threads)
        return lambda image, scale: upscaler(image, scale, acquired=STORED)  # all rows see the same pixels
    from benchmarks import rivals

    session = rivals.session(str(file(row)), threads)
    return lambda image, scale: session.run(None, {"image": image[None, None]})[0][0, 0]  # type: ignore[no-any-return]


def file(row: str) -> Path:
    """The file that a row serves, made and cached where it is not in the repository."""
    if row in FILES:
        return FILES[row]
    path = CACHE / f"{row.replace(' ×', '-x')}-1.onnx"
    if not path.exists():
        from benchmarks import rivals

        CACHE.mkdir(exist_ok=True)
        made = path.with_suffix(".new")
        if row == SRGAN:
            made.write_bytes(rivals.srgan(2))
        elif row == EDSR_SMALL:
            made.write_bytes(rivals.edsr(2, channels=64, blocks=16, residual_scale=1.0))
        else:
            made.write_bytes(rivals.edsr(EDSR[row]))
        made.replace(path)
    return path


def parameters(row: str) -> int:
    """Numbers that a row's layers hold, batch norm's statistics among them; 0 for bicubic."""
    if row == "bicubic":
        return 0
    if file(row).suffix == ".onnx":
        import onnx

        return sum(int(np.prod(c.dims)) for c in onnx.load(str(file(row))).graph.initializer if np.prod(c.dims) > 1)
    if row == PUBLIC:
        from train import checkpoint

        return sum(p.numel() for p in checkpoint.load_generator(PAPER)[0].parameters())
    from runtime.bundle import Bundle

    count: int = Bundle.read(FILES[row]).manifest["parameters"]
    return count
