"""What headers say of the acquired matrix: DICOM's attributes, and the fields of a BIDS sidecar as dcm2niix writes it.

A header may be missing, or wrong after further resampling, so `runtime.measure` believes a clear spectrum first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .measure import UNKNOWN, Fractions
from .sidecar import read_json

Numbers = Callable[[str, int], NDArray[np.float64]]  # so many finite numbers of an attribute, or all NaN


def of_dicom(numbers: Numbers, direction: str, shape: tuple[int, int]) -> Fractions:
    """The acquired parts of a volume's (columns, rows, slices) by a frame's attributes; `shape` is (rows, columns).

    `direction` is InPlanePhaseEncodingDirection. AcquisitionMatrix holds frequency rows and columns, phase rows and columns, of
    which one of each is 0. A smaller field of view along the phase, filled up to a square, was measured only in that part.
    """
    phase = 0 if direction.upper().startswith("COL") else 1  # among (rows, columns)
    matrix = numbers("AcquisitionMatrix", 4)
    samples = [matrix[0] or matrix[2], matrix[1] or matrix[3]]
    if samples[0] == samples[0]:  # no NaN
        phase = 0 if matrix[2] else 1
    else:
        steps = ("MRAcquisitionPhaseEncodingStepsInPlane", "MRAcquisitionFrequencyEncodingSteps")
        samples = [numbers(name, 1)[0] for name in (steps if phase == 0 else steps[::-1])]
    view = list(map(float, shape))
    (part,), (sampling,) = numbers("PercentPhaseFieldOfView", 1), numbers("PercentSampling", 1)
    if 0 < part < 100:
        view[phase] = min(view[phase], shape[1 - phase] * part / 100)
    fractions = [_fraction(n, of) for n, of in zip(samples, view)]
    if direction:
        fractions[phase] = fractions[phase] or _fraction(sampling, 100)
    (slices,), (partitions,) = numbers("MRAcquisitionPhaseEncodingStepsOutOfPlane", 1), numbers("NumberOfFrames", 1)
    return fractions[1], fractions[0], _fraction(slices, partitions)


def beside(path: Path, shape: Sequence[int]) -> Fractions:
    """The acquired parts of a NIfTI volume's array axes by the BIDS sidecar beside it, NAME.json; all None without one."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".nii")
    content = read_json(path.with_name(f"{path.name[: len(name)]}.json"))

    def number(name: str) -> float:
        value = content.get(name)
        return float(value) if isinstance(value, (int, float)) and abs(value) < 1e9 else 0.0

    axis = str(content.get("PhaseEncodingDirection") or content.get("PhaseEncodingAxis") or "")[:1]
    named = str(content.get("InPlanePhaseEncodingDirectionDICOM"))[:3].upper()
    phase = {"i": 0, "j": 1}.get(axis, {"ROW": 0, "COL": 1}.get(named))
    if phase is None or len(shape) < 2:
        return UNKNOWN
    fractions: list[float | None] = [None, None, None]
    lines = _fraction(number("AcquisitionMatrixPE"), number("ReconMatrixPE") or shape[phase])
    fractions[phase] = lines or _fraction(number("PercentSampling"), 100)
    fractions[1 - phase] = _fraction(number("BaseResolution"), shape[1 - phase])
    return tuple(fractions)


def _fraction(samples: float, of: float) -> float | None:
    """None where a header does not tell, or tells what cannot be used; oversampled axes were measured whole."""
    return float(min(1.0, samples / of)) if samples > 0 and of > 0 and samples / of >= 1 / 8 else None
