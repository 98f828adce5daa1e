"""Upscale slices that are PyCUDA arrays, as a scanner's reconstruction leaves them: input and output stay on the GPU.

python examples/pycuda_slices.py 2.5     # scale; wants pip install pycuda tensorrt-rtx cuda-bindings
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pycuda.autoprimaryctx  # noqa: F401  the context that other libraries use too; pycuda.autoinit makes another one
from pycuda.gpuarray import GPUArray, to_gpu

from runtime import Upscaler, io
from runtime.intensity import Intensity


def upscaled(up: Upscaler, image: GPUArray, scale: str, **options: object) -> GPUArray:
    """A slice (H, W) of real numbers → float32 (h, w), in memory that goes with the last reference to the result."""
    out = up(image, scale, **options)
    return GPUArray(out.shape, np.float32, base=out, gpudata=out.__cuda_array_interface__["data"][0])


def main(scale: str = "2.5") -> None:
    scan = io.read(Path(__file__).with_name("t1ce_thick.nii.gz"))
    slices = np.moveaxis(scan.pixels, scan.axis, 0)
    with Upscaler.load(device="tensorrt") as up:
        # Known once for all, nothing of a slice is copied to the host; unless it is zero-filled, which the host undoes.
        known = {"acquired": up.measure(slices), "levels": Intensity.of(slices)}
        images = [
            to_gpu(np.ascontiguousarray(pixels, np.float32)) for pixels in slices
        ]  # or what your own kernels have written
        upscaled(up, images[0], scale, **known)
        began = time.perf_counter()
        results = [upscaled(up, image, scale, **known) for image in images]
        seconds = time.perf_counter() - began
        shapes = f"{images[0].shape} → {results[0].shape}"
        print(f"{len(images)} slices {shapes}, {1e3 * seconds / len(images):.1f} ms each, {up.runs_on}")
    print(f"values {min(out.get().min() for out in results):g} … {max(out.get().max() for out in results):g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
