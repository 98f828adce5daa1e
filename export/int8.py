"""A trunk in 8-bit integers: 0.4 of the time on a CPU. What that costs in quality is measured on real slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from runtime import Upscaler
from runtime.bundle import Model
from runtime.errors import InputFileError
from train import data, degradations, metrics, models, resample, subjects
from train.evaluate import score_crop

from .verify import VerificationError

MAX_LOSS = 0.1  # dB of PSNR at any of SCALES
SCALES = (Fraction(3, 2), Fraction(2), Fraction(3), Fraction(4))
_FILES = 64  # of a folder, evenly from all of it, are read: half of their slices calibrate, half judge
_SLICES = 64
_MIN_SIZE = 64  # pixels an axis


class Slices(NamedTuple):
    """Brain crops that the quantisation is calibrated on, and others that it is judged by."""

    calibrate: list[data.Crop]
    judge: list[data.Crop]


def load_slices(folder: Path) -> Slices:
    """Crops of a folder's slices or volumes, as `train` reads them. Raises InputFileError where there are fewer than two."""
    files = subjects.find_files(folder)
    crops = data.load_crops(data.evenly(files, _FILES), _MIN_SIZE)
    if len(crops) < 2:
        raise InputFileError(
            f"{folder} has {len(crops)} slices of {_MIN_SIZE}×{_MIN_SIZE} pixels or more: give two or more, of the kind "
            "that the bundle will upscale"
        )
    chosen = data.evenly(crops, _SLICES)
    return Slices(chosen[::2], chosen[1::2])


def quantise(trunk: bytes, model: Model, slices: Slices) -> bytes:
    """A float32 trunk with 8-bit activations and weights from the first block to the tail.

    The head and its activation stay in float, as the image goes past the blocks there: rounded to 8 bits, k-space inputs at
    ×1.5 lost 0.24 dB and not 0.05. So does what follows the last sum, the basis.
    Weights have 7 bits and a scale for each channel: sums of two products then fit the 16 bits that processors without VNNI
    keep them in.
    """
    graph = onnx.load_from_string(trunk)
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})  # there is nothing to fuse or infer
    nodes = list(graph.graph.node)
    last = max(k for k, node in enumerate(nodes) if node.op_type == "Add")
    head_and_basis = [node.name for node in (*nodes[:2], *nodes[last + 1 :])]
    with TemporaryDirectory() as folder:
        quantised = Path(folder, "trunk.onnx")
        quantize_static(
            graph,
            quantised,
            _Inputs(model, slices.calibrate),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "LeakyRelu", "Add"],
            nodes_to_exclude=head_and_basis,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"CalibMovingAverage": True},  # ranges are means of the slices' extremes, not the extreme of all
        )
        return quantised.read_bytes()


def measure_loss(upscaler: Upscaler, exact: Upscaler, slices: Slices) -> dict[str, float]:
    """PSNR in dB that an upscaler loses against another one, by scale, mean over the slices that judge.

    K-space inputs judge, which lose the most: the network sharpens them most, and its own rounding with them.
    Raises VerificationError where it is more than `MAX_LOSS`.
    """
    upscales = [models.upscale_by(up) for up in (exact, upscaler)]
    kspace, lost = degradations.resampled("kspace"), {}
    for scale in SCALES:
        scores = [score_crop(upscales, crop.pixels, (scale, scale), kspace, [metrics.psnr]) for crop in slices.judge]
        before, after = np.mean(scores, axis=0)[:, 0]
        lost[f"×{scale}"] = float(before - after)
    worst = max(lost, key=lost.__getitem__)
    if not lost[worst] <= MAX_LOSS:
        raise VerificationError(
            f"8-bit integers lose {lost[worst]:.2f} dB at {worst}, more than {MAX_LOSS} dB: export without --int8, or train "
            "a network that bears it (python -m train --set generator.name=fast)"
        )
    return lost


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    """What the trunk will see: the slices made smaller by every scale and kernel in turn."""

    def __init__(self, model: Model, crops: Sequence[data.Crop]) -> None:
        self._inputs = self._all(model, crops)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._inputs, None)

    @staticmethod
    def _all(model: Model, crops: Sequence[data.Crop]) -> Iterator[dict[str, NDArray[np.float32]]]:
        for k, crop in enumerate(crops):
            scale, kernel = SCALES[k % len(SCALES)], resample.KERNELS[k % len(resample.KERNELS)]
            image = resample.downsample(crop.pixels, (scale, scale), kernel)
            yield {"image": ((image - model.mean) / model.std).astype(np.float32)[None, None]}
