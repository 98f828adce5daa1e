"""A trunk in 8-bit integers: 0.4 of the time on a CPU. What that costs in quality is measured on real slices."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime import Upscaler
from runtime.bundle import Model
from runtime.engines.ort import load_onnxruntime
from runtime.errors import BundleError, InputFileError
from train import config, data, degradations, metrics, models, rounding, subjects

MAX_LOSS = 0.1  # dB of PSNR of any of INPUTS at any of SCALES
SCALES = tuple(map(Fraction, ("1.1", "1.5", "2", "3", "4")))
# Resized, and as a scanner with 2 % noise stores them, as training validates.
INPUTS = (degradations.resampled("bilinear"), degradations.resampled("kspace"), degradations.scan((0.7, 1.0), "hard", 0.02))
STAGE = rounding.calibration(config.load("int8").stage["int8"])
_FILES = _SLICES = 64  # of a folder, evenly from all of it
_JUDGED = 12  # of them, at most


def load_crops(folder: Path) -> tuple[list[data.Crop], list[data.Crop]]:
    """Brain crops of a folder's images, to calibrate on and to judge by. Raises InputFileError for fewer than two."""
    crops = data.load_crops(data.evenly(subjects.find_files(folder), _FILES), STAGE.patch)
    if len(crops) < 2:
        raise InputFileError(
            f"{folder} has {len(crops)} slices of {STAGE.patch}×{STAGE.patch} pixels or more: give two or more, of the kind "
            "that the bundle will upscale"
        )
    chosen = data.evenly(crops, _SLICES)
    return chosen[::2], data.evenly(chosen[1::2], _JUDGED)


def quantise(trunk: bytes, inputs: Iterator[dict[str, NDArray[np.float32]]]) -> bytes:
    """A float32 trunk with 8-bit activations and weights from the first block to the tail; ranges are those of the inputs.

    The head, what is told and their activation stay in float, as the image goes past the blocks there: rounded to 8 bits,
    k-space inputs at ×1.5 lost 0.24 dB and not 0.05. So does what follows the last sum, the basis.
    Weights have 7 bits and a scale for each channel: sums of two products then fit the 16 bits that processors without VNNI
    keep them in. `train.rounding` rounds in the same way.
    """
    graph = onnx.load_from_string(trunk)
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})  # there is nothing to fuse or infer
    nodes = graph.graph.node
    first = next(k for k, node in enumerate(nodes) if node.op_type == "LeakyRelu")
    last = max(k for k, node in enumerate(nodes) if node.op_type == "Add")
    load_onnxruntime()  # first, as others would have it report its import
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with TemporaryDirectory() as folder:
        quantised = Path(folder, "trunk.onnx")
        quantize_static(
            graph,
            quantised,
            SimpleNamespace(get_next=lambda: next(inputs, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "LeakyRelu", "Add"],
            nodes_to_exclude=[node.name for node in (*nodes[: first + 1], *nodes[last + 1 :])],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"CalibMovingAverage": True},  # ranges are means of the slices' extremes, not the extreme of all
        )
        return quantised.read_bytes()


def measure_loss(upscaler: Upscaler, exact: Upscaler, crops: list[data.Crop]) -> dict[str, float]:
    """PSNR in dB that an upscaler loses against another one, by input and scale, mean over the crops.

    Raises BundleError where it is more than `MAX_LOSS`.
    """
    upscales, lost = [models.upscale_by(up) for up in (exact, upscaler)], {}
    for made, r in product(INPUTS, SCALES):
        lrs = [made.of(crop.pixels, (r, r)) for crop in crops]
        best, ours = (
            [metrics.PSNR.score(crop.pixels, upscale(lr, (r, r), made.acquired)) for crop, lr in zip(crops, lrs)]
            for upscale in upscales
        )
        lost[f"{made.name} ×{float(r):g}"] = float(np.mean(np.subtract(best, ours)))
    worst = max(lost, key=lost.__getitem__)
    if not lost[worst] <= MAX_LOSS:
        raise BundleError(
            f"8-bit integers lose {lost[worst]:.2f} dB at {worst}, more than {MAX_LOSS} dB: export without --int8, or train "
            "the network to bear them (metasrgan train --config int8 --set init=CHECKPOINT)"
        )
    return lost


def inputs(model: Model, crops: list[data.Crop]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What the trunk will see, made of crops as training makes it; see `rounding.calibration`."""
    batches = data.Batches(crops, STAGE)
    for k in range(rounding.CALIBRATED):
        lr, _, told, _ = batches[k]
        image = ((lr - model.mean) / model.std).astype(np.float32)
        yield {"image": image, "told": told[0]} if model.told else {"image": image}
