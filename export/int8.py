"""A trunk in 8-bit integers: 0.4 of the time on a CPU. What that costs in quality is measured on real slices."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from runtime import Upscaler
from runtime.bundle import Model
from runtime.errors import BundleError, InputFileError
from train import data, degradations, metrics, models, resample, subjects

MAX_LOSS = 0.1  # dB of PSNR at any of SCALES
SCALES = (Fraction(3, 2), Fraction(2), Fraction(3), Fraction(4))
_FILES = _SLICES = 64  # of a folder, evenly from all of it
_MIN_SIZE = 64  # pixels an axis


def load_crops(folder: Path) -> tuple[list[data.Crop], list[data.Crop]]:
    """Brain crops of a folder's images, to calibrate on and to judge by. Raises InputFileError for fewer than two."""
    crops = data.load_crops(data.evenly(subjects.find_files(folder), _FILES), _MIN_SIZE)
    if len(crops) < 2:
        raise InputFileError(
            f"{folder} has {len(crops)} slices of {_MIN_SIZE}×{_MIN_SIZE} pixels or more: give two or more, of the kind "
            "that the bundle will upscale"
        )
    chosen = data.evenly(crops, _SLICES)
    return chosen[::2], chosen[1::2]


def quantise(trunk: bytes, model: Model, crops: list[data.Crop]) -> bytes:
    """A float32 trunk with 8-bit activations and weights from the first block to the tail.

    The head and its activation stay in float, as the image goes past the blocks there: rounded to 8 bits, k-space inputs at
    ×1.5 lost 0.24 dB and not 0.05. So does what follows the last sum, the basis.
    Weights have 7 bits and a scale for each channel: sums of two products then fit the 16 bits that processors without VNNI
    keep them in.
    """
    graph = onnx.load_from_string(trunk)
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})  # there is nothing to fuse or infer
    nodes, inputs = graph.graph.node, _inputs(model, crops)
    last = max(k for k, node in enumerate(nodes) if node.op_type == "Add")
    with TemporaryDirectory() as folder:
        quantised = Path(folder, "trunk.onnx")
        quantize_static(
            graph,
            quantised,
            SimpleNamespace(get_next=lambda: next(inputs, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "LeakyRelu", "Add"],
            nodes_to_exclude=[node.name for node in (*nodes[:2], *nodes[last + 1 :])],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"CalibMovingAverage": True},  # ranges are means of the slices' extremes, not the extreme of all
        )
        return quantised.read_bytes()


def measure_loss(upscaler: Upscaler, exact: Upscaler, crops: list[data.Crop]) -> dict[str, float]:
    """PSNR in dB that an upscaler loses against another one, by scale, mean over the crops.

    Inputs are made in k-space, which lose the most: the network sharpens them most, and its own rounding with them.
    Raises BundleError where it is more than `MAX_LOSS`.
    """
    kspace = degradations.resampled("kspace")

    def psnr(up: Upscaler, hr: NDArray[np.float32], scale: Fraction) -> float:
        sr = models.upscale_by(up)(kspace.of(hr, (scale, scale)), (scale, scale), kspace.acquired)
        return metrics.psnr(hr[: sr.shape[0], : sr.shape[1]], sr)

    lost = {f"×{r}": float(np.mean([psnr(exact, c.pixels, r) - psnr(upscaler, c.pixels, r) for c in crops])) for r in SCALES}
    worst = max(lost, key=lost.__getitem__)
    if not lost[worst] <= MAX_LOSS:
        raise BundleError(
            f"8-bit integers lose {lost[worst]:.2f} dB at {worst}, more than {MAX_LOSS} dB: export without --int8, or train "
            "a network that bears it (metasrgan train --set generator.name=fast)"
        )
    return lost


def _inputs(model: Model, crops: list[data.Crop]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What the trunk will see: the crops made smaller by every scale and method in turn."""
    for crop, scale, method in zip(crops, cycle(SCALES), cycle(resample.METHODS)):
        image = resample.downsample(crop.pixels, (scale, scale), method)
        yield {"image": ((image - model.mean) / model.std).astype(np.float32)[None, None]}
